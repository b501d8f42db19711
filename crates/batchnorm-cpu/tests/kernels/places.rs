//! Results are the same wherever they are written: to other memory, to uninitialised memory, over the input.

use std::mem::MaybeUninit;

use batchnorm_cpu::{Accum, Activation, Isa, Normalization, Output, Stream, normalize};
use half::bf16;

use crate::common::{Case, TAILS, Tested, layout};

fn bits<E: Tested>(values: &[E]) -> Vec<u64> {
    crate::common::wide(values)
        .into_iter()
        .map(f64::to_bits)
        .collect()
}

fn uninitialised<E: Tested>(n: usize, f: impl FnOnce(&mut [MaybeUninit<E>])) -> Vec<E> {
    let mut memory = Vec::with_capacity(n);
    f(&mut memory.spare_capacity_mut()[..n]);
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
        for (activation, residual) in TAILS {
            let case = Case::<E>::random(
                layout(outer, channels, inner),
                activation,
                residual,
                i as u64,
            );
            let n = case.x.len();
            for isa in Isa::available() {
                isa.force(|| {
                    let what = format!("{:?} {activation:?} {isa:?}", case.layout());
                    let mut y = case.dy.clone();
                    let stats = case.train_forward(Stream::new(&case.x, &mut y));
                    let y2 =
                        uninitialised(n, |y| drop(case.train_forward(Stream::new(&case.x, y))));
                    assert_eq!(bits(&y), bits(&y2), "uninitialised y {what}");
                    let mut x = case.x.clone();
                    assert_eq!(
                        case.train_forward(Stream::in_place(&mut x)),
                        stats,
                        "{what}"
                    );
                    assert_eq!(bits(&y), bits(&x), "y over x {what}");

                    let mut x = case.x.clone();
                    let params = Normalization {
                        mean: &stats[0],
                        scale: &stats[2],
                        shift: &case.beta,
                    };
                    normalize(
                        case.layout(),
                        Stream::new(&case.x, &mut y),
                        params,
                        case.epilogue(),
                    )
                    .expect("valid");
                    normalize(
                        case.layout(),
                        Stream::in_place(&mut x),
                        params,
                        case.epilogue(),
                    )
                    .expect("valid");
                    assert_eq!(bits(&y), bits(&x), "inference over x {what}");

                    for train in [true, false] {
                        let (mut dx, mut over) = (case.x.clone(), case.dy.clone());
                        let [mut dr, mut dr2] = [(); 2].map(|()| case.residual.clone());
                        let sums = case.backward(
                            train,
                            Stream::new(&case.dy, &mut dx),
                            &stats,
                            dr.as_mut().map(Output::from),
                        );
                        let sums2 = case.backward(
                            train,
                            Stream::in_place(&mut over),
                            &stats,
                            dr2.as_mut().map(Output::from),
                        );
                        assert_eq!(bits(&dx), bits(&over), "dx over dy {what}");
                        assert_eq!(
                            (sums, dr.as_deref().map(bits)),
                            (sums2, dr2.as_deref().map(bits)),
                            "{what}"
                        );
                        let dx2 = uninitialised(n, |dx| {
                            drop(case.backward(train, Stream::new(&case.dy, dx), &stats, None))
                        });
                        assert_eq!(bits(&dx), bits(&dx2), "uninitialised dx {what}");
                    }
                });
            }
        }
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

/// Outputs of this size are written past the caches, where the address and the instruction set allow it; those over the input never.
fn check_large<E: Tested + PartialEq>(outer: usize, channels: usize, inner: usize) {
    let layout = layout(outer, channels, inner);
    let n = layout.elements();
    assert!(n * size_of::<E>() >= 24 << 20);
    let mut memory = vec![E::from_accum(E::Accum::from_f64(0.0)); n + 3];
    for (activation, residual) in [(Activation::None, false), (Activation::Relu, true)] {
        let case = Case::<E>::random(layout, activation, residual, 8);
        for (isa, offset) in Isa::available().into_iter().zip([3, 0, 1, 3]) {
            isa.force(|| {
                let what = format!("{layout:?} {activation:?} {isa:?}, {offset} off");
                let apart = &mut memory[offset..n + offset];
                let mut over = case.x.clone();
                let stats = case.train_forward(Stream::in_place(&mut over));
                case.train_forward(Stream::new(&case.x, &mut *apart));
                assert!(apart == over, "y {what}");
                let mut over = case.dy.clone();
                case.backward(true, Stream::in_place(&mut over), &stats, None);
                case.backward(true, Stream::new(&case.dy, &mut *apart), &stats, None);
                assert!(apart == over, "dx {what}");
            });
        }
    }
}

#[test]
fn large_outputs_have_the_same_results() {
    check_large::<f32>(10, 321, 2000);
    check_large::<f32>(6150, 1024, 1);
    check_large::<f64>(5, 7, 90_001);
    check_large::<f64>(3100, 48, 24);
}
