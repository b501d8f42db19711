//! Numbers that are easily lost: constant channels, outliers, NaN, huge magnitudes, running weights of 0 and 1. With weights of positions
//! too, of which no value is left out here.

use batchnorm_cube::*;
use cubecl::prelude::*;

use crate::device::{Random, client, download, empty, upload};
use crate::positions::Positions;

const F32: Element = Element::F32;

struct Forward {
    y: Vec<f64>,
    mean: Vec<f64>,
    variance: Vec<f64>,
    running_mean: Vec<f64>,
    running_var: Vec<f64>,
}

/// What is done with an input.
#[derive(Debug, Clone, Copy)]
struct Step {
    epsilon: f64,
    /// The running statistics before.
    running: f64,
    keep: f64,
    add: f64,
    positions: Positions,
}

const STEP: Step = Step {
    epsilon: 1e-5,
    running: 1.0,
    keep: 0.5,
    add: 0.5,
    positions: Positions::Even,
};

/// What all positions weigh, if they do; sums of it are exact.
const WEIGHT: f64 = 0.75;

/// A forward with gamma 2 and beta 0.25.
fn forward(client: &Client, layout: Layout, x: &[f64], step: Step) -> Forward {
    let problem = Problem::new(layout, F32);
    let channels = layout.channels;
    let x = upload(client, F32, x);
    let [gamma, beta, old] =
        [2.0, 0.25, step.running].map(|v| upload(client, F32, &vec![v; channels]));
    let y = empty(client, F32, layout.len());
    let [new_mean, new_variance] = [(); 2].map(|()| empty(client, F32, channels));
    let statistics = empty(client, F32, 5 * channels);
    let affine = Affine {
        gamma: &gamma,
        beta: &beta,
    };
    let running = Running {
        mean: &old,
        variance: &old,
        new_mean: &new_mean,
        new_variance: &new_variance,
        keep: step.keep,
        add_mean: step.add,
        add_variance: step.add,
    };
    let out = TrainOutputs {
        y: Target::To(&y),
        statistics: &statistics,
    };
    let weights = vec![WEIGHT; layout.len()];
    let weights = step.positions.upload(client, F32, layout, &weights);
    let (running, epsilon, epilogue) = (Some(running), step.epsilon, Epilogue::default());
    let weights = weights
        .as_ref()
        .map(|weights| step.positions.handle(weights));
    train(
        client, problem, &x, weights, affine, running, epsilon, epilogue, out,
    )
    .unwrap();
    let [y, statistics, running_mean, running_var] =
        [&y, &statistics, &new_mean, &new_variance].map(|h| download(client, F32, h));
    Forward {
        y,
        mean: statistics[..channels].to_vec(),
        variance: statistics[2 * channels..3 * channels].to_vec(),
        running_mean,
        running_var,
    }
}

/// One launch, two and three, by rows and by columns.
fn layouts() -> [Layout; 5] {
    [
        Layout::new(5, 6, 7),
        Layout::new(30, 8, 1),
        Layout::new(500, 3, 50),
        Layout::new(20_000, 3, 1),
        Layout::new(140_000, 3, 1),
    ]
}

/// A step on every layout, with and without weights.
fn steps() -> impl Iterator<Item = (Layout, Step)> {
    layouts()
        .into_iter()
        .flat_map(|layout| Positions::ALL.map(|positions| (layout, Step { positions, ..STEP })))
}

fn channel(layout: Layout, i: usize) -> usize {
    i / layout.inner % layout.channels
}

#[test]
fn constant_channels_give_beta_exactly() {
    let Some(client) = client() else { return };
    for (layout, step) in steps() {
        for value in [0.1, -12345.678, 1e30, 3e-39] {
            // The smaller ones are 0 in f32, or flushed to it: 1 / sqrt(0) is infinite.
            for epsilon in [1e-5, 1e-40, f64::MIN_POSITIVE, 0.0] {
                let step = Step { epsilon, ..step };
                let out = forward(&client, layout, &vec![value; layout.len()], step);
                let what = || format!("{layout:?} of {value}, epsilon {epsilon}, {step:?}");
                assert!(out.y.iter().all(|y| *y == 0.25), "{}", what());
                assert!(out.variance.iter().all(|v| *v == 0.0), "{}", what());
            }
        }
    }
}

#[test]
fn weights_of_zero_and_one_ignore_what_they_drop() {
    let Some(client) = client() else { return };
    for layout in layouts() {
        let x = Random(3).normal(layout.len(), 1.0, 1.0);
        let replaced = forward(
            &client,
            layout,
            &x,
            Step {
                running: f64::NAN,
                keep: 0.0,
                add: 1.0,
                ..STEP
            },
        );
        assert!(
            replaced
                .running_mean
                .iter()
                .chain(&replaced.running_var)
                .all(|v| v.is_finite())
        );
        assert_eq!(replaced.running_var, replaced.variance);

        let x = vec![f64::NAN; layout.len()];
        let kept = forward(
            &client,
            layout,
            &x,
            Step {
                running: 0.75,
                keep: 1.0,
                add: 0.0,
                ..STEP
            },
        );
        assert!(
            kept.running_mean
                .iter()
                .chain(&kept.running_var)
                .all(|v| *v == 0.75)
        );
    }
}

#[test]
fn nan_stays_in_its_channel() {
    let Some(client) = client() else { return };
    for (layout, step) in steps() {
        let mut x = Random(5).normal(layout.len(), 1.0, 1.0);
        x[layout.inner] = f64::NAN; // the first value of channel 1
        let out = forward(&client, layout, &x, step);
        for (i, y) in out.y.iter().enumerate() {
            assert_eq!(y.is_nan(), channel(layout, i) == 1, "{layout:?} at {i}");
        }
    }
}

/// A value may be far from all others, at the front of anything that a tensor is cut into: the channel, a split, a unit's walk, a block.
#[test]
fn an_outlier_costs_no_digits() {
    let Some(client) = client() else { return };
    for layout in [
        Layout::new(5, 6, 7),
        Layout::new(500, 3, 50),
        Layout::new(20_000, 3, 1),
        Layout::new(1, 1, 1 << 20),
        Layout::new(1 << 18, 4, 1),
    ] {
        let n = layout.samples_per_channel();
        let values = Random(7).normal(layout.len(), 5.0, 1.0);
        let places = [
            0,
            1,
            8,
            31,
            64,
            512,
            n / 8,
            n / 4 + 64,
            n / 2,
            n - n / 8,
            n - 1,
        ];
        for (place, outlier) in places.into_iter().zip([1e6, -1e6, 1e4].into_iter().cycle()) {
            let place = place.min(n - 1);
            let mut x = values.clone();
            for c in 0..layout.channels {
                let row = place / layout.inner * layout.channels + c;
                x[row * layout.inner + place % layout.inner] = outlier;
            }
            let exact: Vec<f64> = x.iter().map(|v| *v as f32 as f64).collect();
            let ones = vec![1.0; layout.len()];
            let [_, means, variances] = crate::reference::moments(layout, &exact, &ones);
            for positions in Positions::ALL {
                let out = forward(&client, layout, &x, Step { positions, ..STEP });
                for (c, (mean, variance)) in means.iter().zip(&variances).enumerate() {
                    let what = || format!("{layout:?}, {outlier} at {place}, {positions:?}");
                    let off = (out.variance[c] / variance - 1.0).abs();
                    assert!(off < 5e-5, "{}: variance off by {off:e}", what());
                    // Some ulps of the outlier's share, and of the mean.
                    let allowed = 1e-6 * (mean.abs() + outlier.abs() / n as f64);
                    let off = (out.mean[c] - mean).abs();
                    assert!(off < allowed, "{}: mean {} for {mean}", what(), out.mean[c]);
                }
            }
        }
    }
}

/// Magnitudes do not matter, not even where squares overflow, in one channel or in all.
#[test]
fn large_magnitudes() {
    let Some(client) = client() else { return };
    for (layout, step) in steps() {
        let small = Random(9).normal(layout.len(), 1.0, 1.0);
        for exponent in [55, 67, 110] {
            for every in [true, false] {
                let large: Vec<f64> = (0..layout.len())
                    .map(|i| match every || channel(layout, i) == 1 {
                        true => small[i] * 2f64.powi(exponent),
                        false => small[i],
                    })
                    .collect();
                let [small, large] = [&small, &large].map(|x| forward(&client, layout, x, step));
                for (i, (a, b)) in small.y.iter().zip(&large.y).enumerate() {
                    let off = (a - b).abs();
                    assert!(off < 1e-4, "{layout:?}, 2^{exponent}, {i}: {a} and {b}");
                }
            }
        }
    }
    let x = [1e20, -1e20, 3e20, -3e20];
    let out = forward(&client, Layout::new(4, 1, 1), &x, STEP);
    let expected = [0.44721, -0.44721, 1.34164, -1.34164];
    for (got, expected) in out.y.iter().zip(expected) {
        assert!((got - (2.0 * expected + 0.25)).abs() < 1e-4, "{got}");
    }
}

#[test]
fn results_are_the_same_every_time() {
    let Some(client) = client() else { return };
    for (layout, step) in steps() {
        let x = Random(11).normal(layout.len(), 1.0, 1.0);
        let [a, b] = [(); 2].map(|()| forward(&client, layout, &x, step));
        assert_eq!((a.y, a.variance), (b.y, b.variance));
    }
}
