//! The number of threads changes no bit.

use batchnorm_cpu::{Activation, InOut, Output, Saved, moments, normalize};
use half::bf16;

use crate::common::{Case, Tested, layout, wide};

fn results<E: Tested>(case: &Case<E>) -> Vec<u64> {
    let mut y = case.x.clone();
    let saved = case.train(InOut::new(&case.x, &mut y));
    let mut all = vec![wide(&y), wide(&saved)];
    for saved in [
        Saved::Batch(case.batch(&saved)),
        Saved::Given(case.given(&saved)),
    ] {
        let mut x_grad = case.dy.clone();
        let mut residual_grad = case.residual.clone();
        let output = residual_grad.as_mut().map(Output::from);
        let sums = case.backward(saved, InOut::in_place(&mut x_grad), output);
        all.extend([wide(&x_grad), wide(&sums[0]), wide(&sums[1])]);
        all.extend(residual_grad.iter().map(|r| wide(r)));
        let mut out = batchnorm_cpu::Gradients::default();
        let mut beta_grad = sums[0].clone();
        out.beta = Some(&mut beta_grad);
        case.gradients(saved, InOut::only(&case.dy), out);
        all.push(wide(&beta_grad));
    }
    let [mut mean, mut mean_lo, mut variance] = [(); 3].map(|()| case.batch(&saved).mean.to_vec());
    moments(
        case.layout(),
        &case.x,
        &mut mean,
        &mut mean_lo,
        &mut variance,
    )
    .expect("valid");
    all.extend([wide(&mean), wide(&mean_lo), wide(&variance)]);
    let x = InOut::new(&case.x, &mut y);
    normalize(
        case.layout(),
        x,
        case.given(&saved),
        case.affine(),
        case.epilogue(),
    )
    .expect("valid");
    all.push(wide(&y));
    all.into_iter().flatten().map(f64::to_bits).collect()
}

fn check<E: Tested>() {
    // Few channels (threads share a channel), many, columns in one group, in several and in many, narrow rows, small inner in few groups and in
    // many, and too little for threads.
    let shapes = [
        (1, 1, 400_000),
        (3, 3, 70_001),
        (40, 2, 5000),
        (16, 48, 784),
        (6001, 64, 1),
        (300, 1500, 1),
        (12, 40_000, 1),
        (120_001, 3, 1),
        (16, 500, 23),
        (10, 8000, 5),
        (16, 500, 49),
        (2, 3, 5),
    ];
    for (i, (outer, channels, inner)) in shapes.into_iter().enumerate() {
        let (activation, residual) = [(Activation::None, false), (Activation::Relu, true)][i % 2];
        let case = Case::<E>::random(
            layout(outer, channels, inner),
            activation,
            residual,
            i as u64,
        );
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .expect("threads");
            pool.install(|| results(&case))
        };
        let one = on(1);
        for threads in [2, 3, 8, 16, 33] {
            assert!(one == on(threads), "{threads} threads, {:?}", case.layout());
        }
    }
}

#[test]
fn f32_results_have_the_same_bits_on_any_number_of_threads() {
    check::<f32>();
}

#[test]
fn bf16_results_have_the_same_bits_on_any_number_of_threads() {
    check::<bf16>();
}
