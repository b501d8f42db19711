//! Every promise about numbers, on every instruction set and in both regimes.

use batchnorm_cpu::reference::{gradient, value};
use batchnorm_cpu::{
    Activation, Affine, Epilogue, Given, Gradients, InOut, Isa, Layout, Saved, Statistics, affine,
    backward, moments, normalize, train,
};
use half::f16;

use crate::common::{Case, EPILOGUES, Random, compare, layout, narrow, wide};

/// Long runs, pieces of a run, columns, narrow columns, small inner.
fn directions() -> [Layout; 6] {
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
        for layout in directions() {
            isa.force(|| f(layout, &format!("{layout:?} {isa:?}")));
        }
    }
}

/// `y`, mean, variance and `inv_std` with gamma 1.5 and beta -0.25.
fn forward_with(layout: Layout, x: &[f32], epsilon: f64) -> (Vec<f32>, [Vec<f32>; 3]) {
    let channels = layout.channels();
    let mut saved = vec![f32::NAN; 4 * channels];
    let mut y = vec![f32::NAN; x.len()];
    let affine = Affine {
        gamma: &vec![1.5; channels],
        beta: &vec![-0.25; channels],
    };
    let out = Statistics::split_mut(&mut saved, channels).expect("four");
    let x = InOut::new(x, &mut y);
    train(layout, x, affine, epsilon, Epilogue::default(), out).expect("valid");
    let s = Statistics::split(&saved, channels).expect("four");
    (y, [s.mean, s.variance, s.inv_std].map(<[f32]>::to_vec))
}

fn forward(layout: Layout, x: &[f32]) -> (Vec<f32>, [Vec<f32>; 3]) {
    forward_with(layout, x, 1e-5)
}

/// The gradients of x, gamma and beta of one channel with gamma 1 and beta 0, whose statistics are given: mean 0 and inv_std 1.
fn constant_gradients(x: &[f32], dy: &[f32], epilogue: Epilogue<'_, f32>) -> [Vec<f32>; 3] {
    let given = Given {
        mean: &[0.0],
        mean_lo: None,
        variance: &[1.0],
        epsilon: 1e-30,
    };
    let affine = Affine {
        gamma: &[1.0],
        beta: &[0.0],
    };
    let layout = layout(1, 1, x.len());
    let run = |gamma: Option<&mut [f32]>, beta: Option<&mut [f32]>| {
        let mut x_grad = vec![-9.0; x.len()];
        let out = Gradients {
            residual: None,
            gamma,
            beta,
        };
        let dy = InOut::new(dy, &mut x_grad);
        backward(layout, x, dy, Saved::Given(given), affine, epilogue, out).expect("valid");
        x_grad
    };
    let (mut gamma, mut beta) = ([0.0], [0.0]);
    let x_grad = run(Some(&mut gamma), Some(&mut beta));
    let alone = run(None, None);
    for (a, b) in alone.iter().zip(&x_grad) {
        assert!(a == b || (a.is_nan() && b.is_nan()), "{alone:?} {x_grad:?}");
    }
    [x_grad, gamma.to_vec(), beta.to_vec()]
}

/// With given statistics x_grad has no part that goes through them, not even one of zero, which infinity would turn into NaN.
#[test]
fn given_statistics_have_no_terms_of_a_batch() {
    const INF: f32 = f32::INFINITY;
    for isa in Isa::available() {
        isa.force(|| {
            let plain = Epilogue::default();
            let gradients = |x: &[f32], dy: &[f32]| constant_gradients(x, dy, plain)[0].clone();
            assert_eq!(
                gradients(&[0., 1., 2., 3.], &[INF, 1., 1., 1.]),
                [INF, 1., 1., 1.]
            );
            assert_eq!(gradients(&[INF, 1., 2., 3.], &[1.; 4]), [1.; 4]);
            assert_eq!(gradients(&[1e20; 8], &[1e20; 8]), [1e20; 8]);
            let relu = Activation::Relu.into();
            let [x_grad, _, beta] =
                constant_gradients(&[INF, 1., -2., 3.], &[1., INF, 1., 1.], relu);
            assert_eq!((x_grad, beta), (vec![1., INF, 0., 1.], vec![INF]));
        });
    }
}

/// A mask selects: where an activation is flat, an infinite gradient becomes 0.
#[test]
fn flat_activations_stop_infinite_gradients() {
    for isa in Isa::available() {
        isa.force(|| {
            for bad in [f32::INFINITY, f32::NAN] {
                for activation in [
                    Activation::Relu,
                    Activation::LeakyRelu(0.0),
                    Activation::Relu6,
                    Activation::Clamp {
                        min: -0.5,
                        max: 1.5,
                    },
                ] {
                    let dy = [bad, 2.0, 3.0];
                    let [x_grad, gamma, beta] =
                        constant_gradients(&[-1.0, 1.0, 0.5], &dy, activation.into());
                    assert_eq!(x_grad, [0.0, 2.0, 3.0], "{activation:?} {isa:?}");
                    assert_eq!((gamma[0], beta[0]), (3.5, 5.0), "{activation:?} {isa:?}");
                }
            }
            // The same with statistics of the batch: the rest of the channel stays finite.
            let mut case = Case::<f32>::random(layout(4, 3, 9), Activation::Relu, true, 4);
            let mut y = case.x.clone();
            let saved = case.train(InOut::new(&case.x, &mut y));
            for (dy, y) in case.dy.iter_mut().zip(&y) {
                *dy = if *y == 0.0 { f32::INFINITY } else { *dy };
            }
            let expected = case
                .problem
                .train_backward(&case.problem.batch(), &wide(&case.dy));
            let mut x_grad = case.x.clone();
            let dy = InOut::new(&case.dy, &mut x_grad);
            case.backward(Saved::Batch(case.batch(&saved)), dy, None);
            compare(&x_grad, &expected.x, 1e-4, "x_grad");
        });
    }
}

/// Epsilon may be smaller than the type of the arithmetic can hold.
#[test]
fn a_constant_channel_gives_beta_for_any_epsilon() {
    on_all(|layout, what| {
        let x = vec![3.0; layout.elements()];
        for epsilon in [1e-40, 1e-46, 1e-80, f64::MIN_POSITIVE, 5e-324] {
            let (y, [.., inv_std]) = forward_with(layout, &x, epsilon);
            assert!(
                y.iter().all(|&y| y == -0.25),
                "{what} {epsilon:e}: {}",
                y[0]
            );
            assert!(inv_std.iter().all(|s| s.is_finite()), "{what} {epsilon:e}");
            let per_channel = |v: f32| vec![v; layout.channels()];
            let (mean, variance) = (per_channel(3.0), per_channel(0.0));
            let given = Given {
                mean: &mean,
                mean_lo: None,
                variance: &variance,
                epsilon,
            };
            let affine = Affine {
                gamma: &per_channel(1.5),
                beta: &per_channel(-0.25),
            };
            let mut y = x.clone();
            normalize(
                layout,
                InOut::in_place(&mut y),
                given,
                affine,
                Epilogue::default(),
            )
            .expect("valid");
            assert!(
                y.iter().all(|&y| y == -0.25),
                "{what} {epsilon:e}: {}",
                y[0]
            );
        }
    });
    let mut saved = [0.0f64; 4];
    let mut x = [3.0f64; 4];
    let out = Statistics::split_mut(&mut saved, 1).expect("four");
    let affine = Affine {
        gamma: &[1.5],
        beta: &[0.25],
    };
    let (one, x_out) = (layout(4, 1, 1), InOut::in_place(&mut x));
    train(
        one,
        x_out,
        affine,
        f64::MIN_POSITIVE,
        Epilogue::default(),
        out,
    )
    .expect("valid");
    assert_eq!(x, [0.25; 4]);
}

/// Squares of small differences are beyond the range of `f32`, on the other side than those of large ones.
#[test]
fn differences_whose_squares_underflow_count() {
    on_all(|layout, what| {
        for (centre, spread) in [(0.0, 1e-23), (2e-22, 1e-22), (0.0, 1e-30)] {
            let x: Vec<f32> = narrow(&Random(5).values(layout.elements(), centre, spread));
            let mut case = Case::<f32>::random(layout, Activation::None, false, 5);
            case.problem.x = wide(&x);
            case.problem.epsilon = 1e-70;
            case.problem.gamma.fill(1.5);
            case.problem.beta.fill(-0.25);
            let (y, _) = forward_with(layout, &x, 1e-70);
            let expected = case.problem.forward(&case.problem.batch());
            compare(&y, &expected, 1e-5, &format!("{what} {spread:e}"));
        }
    });
}

/// A plain ramp, whose blocks all have means of their own.
#[test]
fn a_ramp_keeps_its_digits() {
    for isa in Isa::available() {
        for layout in [
            layout(64, 2, 3136),
            layout(4096, 40, 1),
            layout(1, 1, 100_000),
        ] {
            isa.force(|| {
                let mut case = Case::<f32>::random(layout, Activation::None, false, 5);
                let row = layout.channels() * layout.inner();
                for (i, x) in case.x.iter_mut().enumerate() {
                    *x += 10.0 * (i / row + i % layout.inner() / 4096) as f32;
                }
                case.problem.x = wide(&case.x);
                let (_, [mean, variance, _]) = forward(layout, &case.x);
                let [expected_mean, expected] = case.problem.statistics();
                for (got, expected) in mean
                    .iter()
                    .zip(&expected_mean)
                    .chain(variance.iter().zip(&expected))
                {
                    let error = (f64::from(*got) - expected).abs() / expected.abs();
                    assert!(error < 1e-6, "{layout:?} {isa:?}: {got} {expected}");
                }
            });
        }
    }
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

/// A partial that starts with a piece of one value: its mean is no shift for a whole block unchecked.
#[test]
fn a_short_piece_in_front_costs_no_digits() {
    let layout = Layout::new(2, 2, 262_145).expect("a layout");
    for k in [1.118_903_9f32, 1.379_489_9, 1.064_851_8] {
        let mut x = vec![0.0f32; layout.elements()];
        x[262_144] = k;
        let (_, [mean, variance, _]) = forward(layout, &x);
        let (k, n) = (f64::from(k), 2.0 * 262_145.0);
        let expected = k * k / n - (k / n).powi(2);
        let error = (f64::from(variance[0]) / expected - 1.0).abs();
        assert!(error < 1e-5, "{k}: variance {} {expected}", variance[0]);
        let error = (f64::from(mean[0]) * n / k - 1.0).abs();
        assert!(error < 1e-5, "{k}: mean {} {}", mean[0], k / n);
    }
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
    for magnitude in [1e200, 1e300] {
        let x: Vec<f64> = Random(3).values(200, 0.0, magnitude);
        let (mut y, mut saved) = (vec![f64::NAN; 200], [0.0; 4]);
        let out = Statistics::split_mut(&mut saved, 1).expect("four");
        let affine = Affine {
            gamma: &[1.5],
            beta: &[-0.25],
        };
        let x = InOut::new(&x, &mut y);
        train(layout(1, 1, 200), x, affine, 1e-5, Epilogue::default(), out).expect("valid");
        assert!(y.iter().all(|&y| y == -0.25));
        assert_eq!(saved[2..], [f64::INFINITY, 0.0]);
    }
}

#[test]
fn half_inputs_accumulate_in_f32() {
    // In f16 a sum would stop growing at 2048, and squares of 300 would be infinite.
    let layout = layout(50, 2, 100);
    let x: Vec<f16> = narrow(&Random(4).values(layout.elements(), 300.0, 5.0));
    let [mut mean, mut mean_lo, mut variance] = [[0.0f32; 2]; 3];
    moments(layout, &x, &mut mean, &mut mean_lo, &mut variance).expect("valid");
    let mut case = Case::<f32>::random(layout, Activation::None, false, 5);
    case.problem.x = wide(&x);
    let [expected_mean, expected] = case.problem.statistics();
    compare(&mean, &expected_mean, 1e-7, "mean");
    compare(&variance, &expected, 1e-6, "variance");
}

/// Subnormal halves, which gradients are full of, are exact.
#[test]
fn subnormal_halves_keep_their_values() {
    for isa in Isa::available() {
        isa.force(|| {
            let x: Vec<f16> = (0..2000).map(f16::from_bits).collect();
            let mut y = vec![f16::ONE; x.len()];
            let (one, out) = (layout(1, 1, x.len()), InOut::new(&x, &mut y));
            affine(one, out, &[0.0], &[1.0], &[0.0]).expect("valid");
            assert_eq!(x, y, "{isa:?}");
        });
    }
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

                let case = Case::<f32>::random(layout, Activation::Relu, false, 6);
                let (mut y, mut dy) = (clean.clone(), case.dy.clone());
                let saved = case.train(InOut::new(&case.x, &mut y));
                dy[position] = bad;
                let saved = Saved::Batch(case.batch(&saved));
                case.backward(saved, InOut::in_place(&mut dy), None);
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
        let [zeros, ones] = [0.0, 1.0].map(|v| vec![v; layout.channels()]);
        let given = Given {
            mean: &zeros,
            mean_lo: None,
            variance: &ones,
            epsilon: 1e-30,
        };
        let affine = Affine {
            gamma: &ones,
            beta: &zeros,
        };
        for activation in [
            Activation::None,
            Activation::Relu,
            Activation::LeakyRelu(0.5),
            Activation::LeakyRelu(0.0),
            Activation::Relu6,
            Activation::Clamp {
                min: f64::NEG_INFINITY,
                max: 6.0,
            },
            Activation::Clamp {
                min: -2.0,
                max: f64::INFINITY,
            },
        ] {
            let mut y = vec![-9.0; n];
            let x_out = InOut::new(&x, &mut y);
            normalize(layout, x_out, given, affine, activation.into()).expect("valid");
            for (x, y) in x.iter().zip(&y) {
                let expected = match activation {
                    // By its definition 0 times infinity; by what everybody means by it, ReLU.
                    Activation::LeakyRelu(0.0) => value(Activation::Relu, f64::from(*x)) as f32,
                    _ => value(activation, f64::from(*x)) as f32,
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
        let [zeros, ones] = [0.0, 1.0].map(|v| vec![v; layout.channels()]);
        let given = Saved::Given(Given {
            mean: &zeros,
            mean_lo: None,
            variance: &ones,
            epsilon: 1e-30,
        });
        let affine = Affine {
            gamma: &ones,
            beta: &zeros,
        };
        for (activation, _) in EPILOGUES {
            let mut x_grad = vec![f32::NAN; n];
            let dy_out = InOut::new(&dy, &mut x_grad);
            let out = Gradients::default();
            backward(layout, &x, dy_out, given, affine, activation.into(), out).expect("valid");
            for ((x, dy), x_grad) in x.iter().zip(&dy).zip(&x_grad) {
                let slope = gradient(activation, f64::from(*x), 1.0) as f32;
                let error = (x_grad - dy * slope).abs();
                assert!(
                    *x_grad == dy * slope || error <= 1e-6 * dy.abs(),
                    "{what} {activation:?} at {x}: got {x_grad}, expected {}",
                    dy * slope
                );
            }
        }
    });
}

/// Where a curve is flat its derivative is exactly 0, and an infinite gradient, x or residual makes no NaN of it.
#[test]
fn curves_at_the_extremes() {
    const CURVES: [Activation; 6] = [
        Activation::Silu,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::HardSwish,
        Activation::Sigmoid,
        Activation::Tanh,
    ];
    let far = [1e4, 1e30, f32::MAX, f32::INFINITY];
    let near = [88.0, 90.0, 95.0, 103.0, 104.0, 106.0];
    let points: Vec<f32> = far
        .into_iter()
        .chain(near)
        .flat_map(|z| [z, -z])
        .chain([f32::NAN, 0.5, 0.0, -1.0])
        .collect();
    on_all(|layout, what| {
        let n = layout.elements();
        let z: Vec<f32> = (0..n).map(|i| points[i % points.len()]).collect();
        let nothing = vec![0.0f32; n];
        let [zeros, ones] = [0.0, 1.0].map(|v| vec![v; layout.channels()]);
        let given = Given {
            mean: &zeros,
            mean_lo: None,
            variance: &ones,
            epsilon: 1e-30,
        };
        let affine = Affine {
            gamma: &ones,
            beta: &zeros,
        };
        for activation in CURVES {
            for (x, residual) in [(&z, None), (&nothing, Some(&z[..]))] {
                let epilogue = Epilogue {
                    residual,
                    activation,
                };
                let what = format!("{what} {activation:?}, residual {}", residual.is_some());
                let same = |got: f32, expected: f32, z: f32| {
                    let close = (got - expected).abs() <= 1e-6 * expected.abs() + 1e-42;
                    assert!(
                        got == expected || close || (got.is_nan() && expected.is_nan()),
                        "{what} at {z}: got {got:e}, expected {expected:e}"
                    );
                };
                let mut y = vec![-9.0; n];
                let out = InOut::new(x, &mut y);
                normalize(layout, out, given, affine, epilogue).expect("valid");
                for (&z, &y) in z.iter().zip(&y) {
                    same(y, value(activation, f64::from(z)) as f32, z);
                }
                // A gradient that is infinite where the curve is flat, to f32's last digit.
                let dy: Vec<f32> = z
                    .iter()
                    .map(|&z| match gradient(activation, f64::from(z), 1.0) as f32 {
                        0.0 => f32::INFINITY,
                        _ => 1.0,
                    })
                    .collect();
                let mut x_grad = vec![-9.0; n];
                let (out, saved) = (InOut::new(&dy, &mut x_grad), Saved::Given(given));
                let none = Gradients::default();
                backward(layout, x, out, saved, affine, epilogue, none).expect("valid");
                for (&z, &x_grad) in z.iter().zip(&x_grad) {
                    // The tails of GELU by tanh have the error of its argument.
                    let expected = gradient(activation, f64::from(z), 1.0) as f32;
                    same(x_grad, expected, z);
                }
            }
        }
    });
}

#[test]
fn all_instruction_sets_agree_closely() {
    for layout in directions() {
        let case = Case::<f32>::random(layout, Activation::Relu, true, 8);
        let results: Vec<Vec<f32>> = Isa::available()
            .into_iter()
            .map(|isa| {
                isa.force(|| {
                    let mut y = case.x.clone();
                    case.train(InOut::new(&case.x, &mut y));
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
    // What synchronised and ghost statistics rely on.
    let (a, b) = (layout(3, 4, 50), layout(5, 4, 50));
    let x: Vec<f32> = narrow(&Random(11).values(8 * 200, 2.0, 1.0));
    let of = |layout: Layout, x: &[f32]| {
        let [mut mean, mut mean_lo, mut variance] = [[0.0; 4]; 3];
        moments(layout, x, &mut mean, &mut mean_lo, &mut variance).expect("valid");
        (mean, variance)
    };
    let ((mean_a, var_a), (mean_b, var_b)) = (of(a, &x[..600]), of(b, &x[600..]));
    let (mean, variance) = of(layout(8, 4, 50), &x);
    for c in 0..4 {
        let d = mean_b[c] - mean_a[c];
        let merged = [
            mean_a[c] + d * 0.625,
            var_a[c] * 0.375 + var_b[c] * 0.625 + d * d * 0.375 * 0.625,
        ];
        compare(&merged, &wide(&[mean[c], variance[c]]), 1e-6, "merged");
    }
}

#[test]
fn the_worked_example_of_the_backward_pass() {
    let saved = Saved::Batch(Statistics {
        mean: &[2.0][..],
        mean_lo: &[0.0],
        variance: &[1.0],
        inv_std: &[1.0],
    });
    let affine = Affine {
        gamma: &[1.0],
        beta: &[0.0],
    };
    let (mut gradient, mut gamma, mut beta) = ([1.0f64, 0.0], [0.0], [0.0]);
    let out = Gradients {
        residual: None,
        gamma: Some(&mut gamma),
        beta: Some(&mut beta),
    };
    let dy = InOut::in_place(&mut gradient);
    let plain = Epilogue::default();
    backward(layout(2, 1, 1), &[1.0, 3.0], dy, saved, affine, plain, out).expect("valid");
    assert_eq!((gradient, gamma, beta), ([0.0, 0.0], [-1.0], [1.0]));
}

/// Half of f32's range may not lie between a value and the mean; up to there the output is right.
#[test]
fn the_documented_range_is_right() {
    on_all(|layout, what| {
        let x: Vec<f32> = narrow(&Random(3).values(layout.elements(), 0.0, 1e38));
        let mut case = Case::<f32>::random(layout, Activation::None, false, 5);
        case.problem.x = wide(&x);
        case.problem.gamma.fill(1.5);
        case.problem.beta.fill(-0.25);
        let (y, _) = forward(layout, &x);
        let expected = case.problem.forward(&case.problem.batch());
        compare(&y, &expected, 1e-4, what);
    });
}

/// The mask of the backward pass is that of the forward pass, also where the mean was rounded: nothing but y decides it.
#[test]
fn forward_and_backward_agree_on_every_mask() {
    on_all(|layout, what| {
        let mut case = Case::<f32>::random(layout, Activation::Relu, false, 5);
        case.x = narrow(&Random(9).values(layout.elements(), 1e4, 1.0));
        let mut y = case.x.clone();
        let saved = case.train(InOut::new(&case.x, &mut y));
        let lost = case.batch(&saved).mean_lo.iter().any(|&low| low != 0.0);
        assert!(lost, "the means of this test are rounded");
        let ones = vec![1.0f32; case.x.len()];
        for saved in [
            Saved::Batch(case.batch(&saved)),
            Saved::Given(case.given(&saved)),
        ] {
            case.residual = None;
            let (mut x_grad, zeros) = (ones.clone(), vec![0.0; ones.len()]);
            let residual = Epilogue {
                residual: Some(&zeros),
                activation: Activation::Relu,
            };
            let mut mask = ones.clone();
            let out = Gradients {
                residual: Some((&mut mask).into()),
                ..Gradients::default()
            };
            let dy = InOut::new(&ones, &mut x_grad);
            backward(layout, &case.x, dy, saved, case.affine(), residual, out).expect("valid");
            for (y, mask) in y.iter().zip(&mask) {
                assert_eq!(*mask == 1.0, *y > 0.0, "{what}: {y:e}");
            }
        }
    });
}
