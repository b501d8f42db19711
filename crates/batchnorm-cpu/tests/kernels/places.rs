//! Results are the same wherever they are written: to other memory, to uninitialised memory, over the input.

use std::mem::MaybeUninit;

use batchnorm_cpu::{Accum, Activation, InOut, Isa, Output, Saved, normalize, reserve};
use half::{bf16, f16};

use crate::common::{Case, EPILOGUES, Tested, layout};

fn bits<E: Tested>(values: &[E]) -> Vec<u64> {
    crate::common::wide(values)
        .into_iter()
        .map(f64::to_bits)
        .collect()
}

fn uninitialised<E: Tested>(n: usize, f: impl FnOnce(&mut [MaybeUninit<E>])) -> Vec<E> {
    let mut memory = Vec::new();
    f(reserve(&mut memory, n));
    // SAFETY: the kernels write all of an output.
    unsafe { memory.set_len(n) };
    memory
}

fn check<E: Tested>() {
    let layouts = [
        (1, 1, 1),
        (1, 2, 3),
        (3, 2, 17),
        (2, 3, 100),
        (5, 2, 67),
        (4, 3, 64),
        (9, 37, 1),
        (33, 3, 1),
        (70, 5, 1),
        (6, 5, 7),
        (2, 30, 49),
        (3, 1030, 1),
    ];
    for (i, (outer, channels, inner)) in layouts.into_iter().enumerate() {
        for (activation, residual) in EPILOGUES {
            let case = Case::<E>::random(
                layout(outer, channels, inner),
                activation,
                residual,
                i as u64,
            );
            for isa in Isa::available() {
                let what = format!("{:?} {activation:?} {isa:?}", case.layout());
                isa.force(|| check_case(&case, &what));
            }
        }
    }
}

fn check_case<E: Tested>(case: &Case<E>, what: &str) {
    let n = case.x.len();
    let mut y = case.dy.clone();
    let saved = case.train(InOut::new(&case.x, &mut y));
    let y2 = uninitialised(n, |y| drop(case.train(InOut::new(&case.x, y))));
    assert_eq!(bits(&y), bits(&y2), "uninitialised y {what}");
    let mut x = case.x.clone();
    assert_eq!(case.train(InOut::in_place(&mut x)), saved, "{what}");
    assert_eq!(bits(&y), bits(&x), "y over x {what}");

    let mut x = case.x.clone();
    let normalized = |x: InOut<'_, E>| {
        let given = case.given(&saved);
        normalize(case.layout(), x, given, case.affine(), case.epilogue()).expect("valid");
    };
    normalized(InOut::new(&case.x, &mut y));
    normalized(InOut::in_place(&mut x));
    assert_eq!(bits(&y), bits(&x), "inference over x {what}");

    for saved in [
        Saved::Batch(case.batch(&saved)),
        Saved::Given(case.given(&saved)),
    ] {
        let (mut x_grad, mut over) = (case.x.clone(), case.dy.clone());
        let [mut r, mut r2] = [(); 2].map(|()| case.residual.clone());
        let sums = case.backward(
            saved,
            InOut::new(&case.dy, &mut x_grad),
            r.as_mut().map(Output::from),
        );
        let sums2 = case.backward(
            saved,
            InOut::in_place(&mut over),
            r2.as_mut().map(Output::from),
        );
        assert_eq!(bits(&x_grad), bits(&over), "x_grad over dy {what}");
        let residuals = [&r, &r2].map(|r| r.as_deref().map(bits));
        assert_eq!((sums, &residuals[0]), (sums2, &residuals[1]), "{what}");
        let x_grad2 = uninitialised(n, |x_grad| {
            drop(case.backward(saved, InOut::new(&case.dy, x_grad), None))
        });
        assert_eq!(bits(&x_grad), bits(&x_grad2), "uninitialised x_grad {what}");
    }
}

#[test]
fn the_destination_does_not_change_f32_results() {
    check::<f32>();
}

#[test]
fn the_destination_does_not_change_bf16_results() {
    check::<bf16>();
}

/// Outputs of this size are written past the caches, where runs are long and the instruction set allows it; those over the input never.
fn check_large<E: Tested + PartialEq>(outer: usize, channels: usize, inner: usize) {
    let layout = layout(outer, channels, inner);
    let n = layout.elements();
    assert!(n * size_of::<E>() >= 24 << 20);
    let mut memory = vec![E::from_accum(E::Accum::from_f64(0.0)); n + 3];
    let mut other = memory.clone();
    for (activation, residual) in [(Activation::None, false), (Activation::Relu, true)] {
        let case = Case::<E>::random(layout, activation, residual, 8);
        for (isa, offset) in Isa::available().into_iter().zip([3, 0, 1, 3]) {
            isa.force(|| {
                let what = format!("{layout:?} {activation:?} {isa:?}, {offset} off");
                let apart = &mut memory[offset..n + offset];
                let mut over = case.x.clone();
                let saved = case.train(InOut::in_place(&mut over));
                case.train(InOut::new(&case.x, &mut *apart));
                assert!(apart == over, "y {what}");
                let mut over = case.dy.clone();
                let saved = Saved::Batch(case.batch(&saved));
                let mut r = case.residual.clone();
                let r_output = r.as_mut().map(Output::from);
                case.backward(saved, InOut::in_place(&mut over), r_output);
                // One output aligned like the other, and one that is not.
                for shift in [0, 1] {
                    let second = &mut other[(offset + shift) % 4..][..n];
                    let output = residual.then(|| Output::from(&mut *second));
                    case.backward(saved, InOut::new(&case.dy, &mut *apart), output);
                    assert!(apart == over, "x_grad {what}");
                    assert!(
                        r.as_ref().is_none_or(|r| r == second),
                        "residual_grad {what}"
                    );
                }
            });
        }
    }
}

#[test]
fn large_outputs_have_the_same_results() {
    check_large::<f32>(10, 321, 2000);
    check_large::<f32>(6150, 1024, 1);
    check_large::<f32>(6143, 1025, 1);
    check_large::<f64>(5, 7, 90_001);
    check_large::<f64>(3100, 48, 24);
    check_large::<f16>(3, 5, 900_001);
}
