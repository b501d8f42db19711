//! Every promise about numbers, on every instruction set and in both regimes.

use batchnorm_cpu::{
    Activation, Affine, BatchStatistics, Coefficients, Epilogue, Gradients, Isa, Layout,
    Normalization, Saved, Statistics, Stream, backward, input_grad, moments, normalize,
    train_forward,
};
use half::f16;

use crate::common::{Case, Random, TAILS, compare, layout, narrow, wide};

/// Long rows, pieces of a row, columns, narrow columns, small inner.
fn regimes() -> [Layout; 6] {
    [
        layout(32, 2, 100),
        layout(1, 2, 9000),
        layout(700, 40, 1),
        layout(3000, 3, 1),
        layout(40, 30, 7),
        layout(2, 3, 2),
    ]
}

fn on_all(f: impl Fn(Layout, &str)) {
    for isa in Isa::available() {
        for layout in regimes() {
            isa.force(|| f(layout, &format!("{layout:?} {isa:?}")));
        }
    }
}

/// `y`, mean, variance and `inv_std` with gamma 1.5, beta -0.25 and epsilon 1e-5.
fn forward(layout: Layout, x: &[f32]) -> (Vec<f32>, [Vec<f32>; 3]) {
    let channels = layout.channels();
    let [mut mean, mut variance, mut inv_std] = std::array::from_fn(|_| vec![f32::NAN; channels]);
    let mut y = vec![f32::NAN; x.len()];
    let (gamma, beta) = (vec![1.5; channels], vec![-0.25; channels]);
    let out = BatchStatistics {
        mean: &mut mean,
        mean_low: None,
        variance: &mut variance,
        inv_std: &mut inv_std,
    };
    train_forward(
        layout,
        Stream::new(x, &mut y),
        Affine {
            gamma: &gamma,
            beta: &beta,
        },
        1e-5,
        Epilogue::default(),
        out,
    )
    .expect("valid");
    (y, [mean, variance, inv_std])
}

#[test]
fn a_large_mean_leaves_four_digits_of_the_variance() {
    on_all(|layout, what| {
        for (centre, digits) in [(1e4, 1e-4), (-1e6, 1e-2)] {
            let mut case = Case::<f32>::random(layout, Activation::None, false, 5);
            case.x = narrow(&Random(9).values(layout.elements(), centre, 3f64.sqrt()));
            case.problem.x = wide(&case.x);
            let (_, [mean, variance, _]) = forward(layout, &case.x);
            let [expected_mean, expected] = case.problem.statistics();
            compare(&mean, &expected_mean, 1e-7, what);
            for (got, expected) in variance.iter().zip(&expected) {
                let error = (f64::from(*got) - expected).abs() / expected;
                assert!(error < digits, "{what}: {got} {expected}");
            }
        }
    });
}

/// Statistics are computed about a first guess of the mean. Here it is wrong: the values jump where nobody has looked yet.
#[test]
fn a_first_guess_far_from_the_mean_loses_no_digits() {
    on_all(|layout, what| {
        let per_channel = layout.elements() / layout.channels();
        for (first, jump) in [(1, 1e3), (70, 1e3), (per_channel / 2, 1e4), (400, -1e5)] {
            let mut case = Case::<f32>::random(layout, Activation::None, false, 5);
            let inner = layout.inner();
            for (i, x) in case.x.iter_mut().enumerate() {
                let position = i / (layout.channels() * inner) * inner + i % inner;
                *x += if position < first { jump } else { 0.0 };
            }
            case.problem.x = wide(&case.x);
            let (_, [mean, variance, _]) = forward(layout, &case.x);
            let [expected_mean, expected] = case.problem.statistics();
            for (c, (got, expected)) in mean.iter().zip(&expected_mean).enumerate() {
                let error = (f64::from(*got) - expected).abs() / f64::from(jump.abs());
                assert!(
                    error < 1e-6,
                    "{what}, jump {jump}: mean of {c}: {got} {expected}"
                );
            }
            for (c, (got, expected)) in variance.iter().zip(&expected).enumerate() {
                let error = (f64::from(*got) - expected).abs() / expected;
                assert!(
                    error < 4e-6,
                    "{what}, jump {jump}: variance of {c}: {got} {expected}"
                );
            }
        }
    });
}

#[test]
fn a_constant_channel_gives_exactly_beta() {
    on_all(|layout, what| {
        for constant in [0.1, -1.0 / 3.0, 1e10, 1e30, -3.3e38, 1e-40] {
            let (y, [mean, variance, _]) = forward(layout, &vec![constant; layout.elements()]);
            assert!(y.iter().all(|&y| y == -0.25), "{what}: {constant}");
            assert!(
                mean.iter().all(|&m| m == constant) && variance.iter().all(|&v| v == 0.0),
                "{what}: {constant}"
            );
        }
    });
}

#[test]
fn magnitudes_up_to_1e30_give_finite_and_right_outputs() {
    on_all(|layout, what| {
        for magnitude in [1e15, 1e20, 1e30] {
            let x: Vec<f32> =
                narrow(&Random(3).values(layout.elements(), 0.2 * magnitude, magnitude));
            let mut case = Case::<f32>::random(layout, Activation::None, false, 5);
            case.problem = batchnorm_cpu::reference::Problem {
                x: wide(&x),
                epsilon: 1e-5,
                ..case.problem
            };
            case.problem.gamma.fill(1.5);
            case.problem.beta.fill(-0.25);
            let (y, [_, variance, inv_std]) = forward(layout, &x);
            let used = case.problem.batch();
            compare(&y, &case.problem.forward(&used), 1e-5, what);
            for (got, expected) in inv_std.iter().zip(&used.inv_std) {
                assert!(
                    (f64::from(*got) / expected - 1.0).abs() < 1e-5,
                    "{what}: {got:e} {expected:e}"
                );
            }
            // Beyond the largest f32 the variance is reported as what it is rounded to.
            assert!(
                variance.iter().all(|v| v.is_infinite()) == (magnitude > 1e19),
                "{what}: {magnitude:e}"
            );
        }
    });
}

#[test]
fn f64_overflows_to_beta() {
    let x: Vec<f64> = Random(3).values(200, 0.0, 1e200);
    let [mut mean, mut variance, mut inv_std] = [[0.0]; 3];
    let mut y = vec![f64::NAN; 200];
    let out = BatchStatistics {
        mean: &mut mean,
        mean_low: None,
        variance: &mut variance,
        inv_std: &mut inv_std,
    };
    train_forward(
        layout(1, 1, 200),
        Stream::new(&x, &mut y),
        Affine {
            gamma: &[1.5],
            beta: &[-0.25],
        },
        1e-5,
        Epilogue::default(),
        out,
    )
    .expect("valid");
    assert!(y.iter().all(|&y| y == -0.25) && variance == [f64::INFINITY] && inv_std == [0.0]);
}

#[test]
fn half_inputs_accumulate_in_f32() {
    // In f16 a sum would stop growing at 2048, and squares of 300 would be infinite.
    let layout = layout(50, 2, 100);
    let x: Vec<f16> = narrow(&Random(4).values(layout.elements(), 300.0, 5.0));
    let (mut mean, mut m2) = ([0.0f32; 2], [0.0f32; 2]);
    moments(layout, &x, &mut mean, &mut m2).expect("valid");
    let mut case = Case::<f32>::random(layout, Activation::None, false, 5);
    case.problem.x = wide(&x);
    let [expected_mean, variance] = case.problem.statistics();
    compare(&mean, &expected_mean, 1e-7, "mean");
    compare(
        &m2,
        &variance.iter().map(|v| v * 5000.0).collect::<Vec<_>>(),
        1e-6,
        "m2",
    );
}

#[test]
fn nan_and_infinity_stay_in_their_channel() {
    on_all(|layout, what| {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for position in [0, layout.elements() / 2, layout.elements() - 1] {
                let mut case = Case::<f32>::random(layout, Activation::None, false, 6);
                let (clean, clean_stats) = forward(layout, &case.x);
                let channel = |i: usize| i / layout.inner() % layout.channels();
                case.x[position] = bad;
                let (y, stats) = forward(layout, &case.x);
                for c in 0..layout.channels() {
                    let hit = c == channel(position);
                    assert_eq!(
                        stats[1][c].is_finite(),
                        !hit,
                        "{what}: {bad} at {position}, variance of {c}"
                    );
                    assert!(
                        hit || (0..3).all(|s| stats[s][c] == clean_stats[s][c]),
                        "{what}: {bad} at {position}"
                    );
                }
                for i in 0..y.len() {
                    match channel(i) == channel(position) {
                        true => assert!(
                            y[i].is_nan(),
                            "{what}: {bad} at {position}, y[{i}] = {}",
                            y[i]
                        ),
                        false => assert_eq!(y[i], clean[i], "{what}: {bad} at {position}"),
                    }
                }

                let (case_clean, mut dy) = (
                    Case::<f32>::random(layout, Activation::Relu, false, 6),
                    case.dy.clone(),
                );
                let mut y = clean.clone();
                let stats = case_clean.train_forward(Stream::new(&case_clean.x, &mut y));
                dy[position] = bad;
                case_clean.backward(true, Stream::in_place(&mut dy), &stats, None);
                for (i, dx) in dy.iter().enumerate() {
                    assert!(
                        dx.is_finite() || channel(i) == channel(position),
                        "{what}: dx[{i}], {bad} at {position}"
                    );
                }
            }
        }
    });
}

#[test]
fn activations_of_special_values() {
    on_all(|layout, what| {
        let n = layout.elements();
        let specials = [
            f32::NAN,
            f32::INFINITY,
            f32::NEG_INFINITY,
            -0.0,
            0.0,
            1e-45,
            f32::MAX,
            f32::MIN,
            -1.0,
            6.0,
            7.0,
        ];
        let x: Vec<f32> = (0..n).map(|i| specials[i % specials.len()]).collect();
        let ones = vec![1.0; layout.channels()];
        let zeros = vec![0.0; layout.channels()];
        for activation in [
            Activation::None,
            Activation::Relu,
            Activation::LeakyRelu(0.5),
            Activation::Relu6,
        ] {
            let mut y = vec![-9.0; n];
            let params = Normalization {
                mean: &zeros,
                scale: &ones,
                shift: &zeros,
            };
            normalize(
                layout,
                Stream::new(&x, &mut y),
                params,
                Epilogue::activation(activation),
            )
            .expect("valid");
            for (x, y) in x.iter().zip(&y) {
                let expected = match activation {
                    Activation::Relu => {
                        if x.is_nan() {
                            *x
                        } else {
                            x.max(0.0)
                        }
                    }
                    Activation::Relu6 => x.clamp(0.0, 6.0),
                    // Negative infinity becomes the largest finite value times the slope.
                    Activation::LeakyRelu(_) if *x == f32::NEG_INFINITY => f32::MIN * 0.5,
                    Activation::LeakyRelu(_) if *x < 0.0 => x * 0.5,
                    _ => *x,
                };
                assert!(
                    *y == expected || (y.is_nan() && x.is_nan()),
                    "{what} {activation:?}: {x} gives {y}, expected {expected}"
                );
            }
        }
    });
}

#[test]
fn derivatives_at_the_kinks_and_beyond() {
    on_all(|layout, what| {
        let n = layout.elements();
        let points = [
            -1e30, -7.0, -0.5, -0.0, 0.0, 1e-45, 0.75, 5.0, 6.0, 7.0, 1e30,
        ];
        let x: Vec<f32> = (0..n).map(|i| points[i % points.len()]).collect();
        let dy: Vec<f32> = narrow(&Random(2).values(n, 0.0, 1.0));
        let (ones, zeros) = (vec![1.0; layout.channels()], vec![0.0; layout.channels()]);
        let params = Normalization {
            mean: &zeros,
            scale: &ones,
            shift: &zeros,
        };
        let coefficients = Coefficients {
            a: &ones,
            b: &zeros,
            c: &zeros,
        };
        for (activation, _) in TAILS {
            let mut dx = vec![f32::NAN; n];
            let epilogue = Epilogue::activation(activation);
            input_grad(
                layout,
                &x,
                Stream::new(&dy, &mut dx),
                params,
                coefficients,
                epilogue,
                None,
            )
            .expect("valid");
            for ((x, dy), dx) in x.iter().zip(&dy).zip(&dx) {
                let expected = dy * activation.derivative(f64::from(*x)) as f32;
                assert_eq!(*dx, expected, "{what} {activation:?} at {x}");
            }
        }
    });
}

#[test]
fn all_instruction_sets_agree_closely() {
    for layout in regimes() {
        let case = Case::<f32>::random(layout, Activation::Relu, true, 8);
        let results: Vec<Vec<f32>> = Isa::available()
            .into_iter()
            .map(|isa| {
                isa.force(|| {
                    let mut y = case.x.clone();
                    case.train_forward(Stream::new(&case.x, &mut y));
                    y
                })
            })
            .collect();
        for other in &results[1..] {
            compare(other, &wide(&results[0]), 1e-6, &format!("{layout:?}"));
        }
    }
}

#[test]
fn merged_moments_of_parts_are_those_of_the_whole() {
    // What synchronised and ghost statistics rely on: m2 is a sum, so parts can be merged by the caller.
    let (a, b) = (layout(3, 4, 50), layout(5, 4, 50));
    let x: Vec<f32> = narrow(&Random(11).values(8 * 200, 2.0, 1.0));
    let of = |layout: Layout, x: &[f32]| {
        let (mut mean, mut m2) = ([0.0; 4], [0.0; 4]);
        moments(layout, x, &mut mean, &mut m2).expect("valid");
        (mean, m2)
    };
    let ((mean_a, m2_a), (mean_b, m2_b)) = (of(a, &x[..600]), of(b, &x[600..]));
    let (mean, m2) = of(layout(8, 4, 50), &x);
    for c in 0..4 {
        let d = mean_b[c] - mean_a[c];
        compare(
            &[mean_a[c] + d * 0.625],
            &[f64::from(mean[c])],
            1e-6,
            "mean",
        );
        compare(
            &[m2_a[c] + m2_b[c] + d * d * 150.0 * 250.0 / 400.0],
            &[f64::from(m2[c])],
            1e-5,
            "m2",
        );
    }
}

#[test]
fn the_worked_example_of_the_backward_pass() {
    let layout = layout(2, 1, 1);
    let saved = Saved {
        gamma: &[1.0],
        beta: &[0.0],
        mean: &[2.0],
        mean_low: None,
        inv_std: &[1.0],
        statistics: Statistics::OfBatch,
    };
    let (mut gradient, mut dgamma, mut dbeta) = ([1.0f64, 0.0], [0.0], [0.0]);
    let out = Gradients {
        residual: None,
        gamma: Some(&mut dgamma),
        beta: Some(&mut dbeta),
    };
    backward(
        layout,
        &[1.0, 3.0],
        Stream::in_place(&mut gradient),
        saved,
        Epilogue::default(),
        out,
    )
    .expect("valid");
    assert_eq!((gradient, dgamma, dbeta), ([0.0, 0.0], [-1.0], [1.0]));
}
