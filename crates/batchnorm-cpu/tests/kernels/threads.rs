//! The number of threads changes no bit.

use batchnorm_cpu::{Activation, Epilogue, Normalization, Output, Stream, moments, normalize};
use half::bf16;

use crate::common::{Case, Tested, layout, wide};

fn results<E: Tested>(case: &Case<E>) -> Vec<u64> {
    let mut y = case.x.clone();
    let stats = case.train_forward(Stream::new(&case.x, &mut y));
    let mut dx = case.dy.clone();
    let mut dresidual = case.residual.clone();
    let sums = case.backward(
        true,
        Stream::in_place(&mut dx),
        &stats,
        dresidual.as_mut().map(Output::from),
    );
    let mut mean = stats[0].clone();
    let mut m2 = stats[0].clone();
    moments(case.layout(), &case.x, &mut mean, &mut m2).expect("valid");
    let mut inferred = case.x.clone();
    let params = Normalization {
        mean: &stats[0],
        scale: &stats[2],
        shift: &case.beta,
    };
    let stream = Stream::new(&case.x, &mut inferred);
    normalize(case.layout(), stream, params, Epilogue::default()).expect("valid");
    let mut all = [wide(&y), wide(&dx), wide(&inferred)].concat();
    all.extend(dresidual.iter().flat_map(|d| wide(d)));
    all.extend(
        stats
            .iter()
            .chain(&sums)
            .chain([&mean, &m2])
            .flat_map(|v| wide(v)),
    );
    all.into_iter().map(f64::to_bits).collect()
}

fn check<E: Tested>() {
    // Few channels (threads share a channel), many, columns in one unit, in several and in many, narrow rows, small inner in few units and in
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
        for threads in [2, 3, 8] {
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
