//! Numbers that are easily lost: constant channels, outliers, NaN, huge magnitudes, weights of 0 and 1.

use batchnorm_cube::*;
use cubecl::prelude::*;

use crate::device::{Random, client, download, empty, upload};

const F32: Element = Element::F32;

struct Forward {
    y: Vec<f64>,
    variance: Vec<f64>,
    running_mean: Vec<f64>,
    running_var: Vec<f64>,
}

/// A forward with gamma 2 and beta 0.25.
fn forward(client: &Client, layout: Layout, x: &[f64], running: f64, factor: f64) -> Forward {
    let problem = Problem::new(layout, F32);
    let channels = layout.channels;
    let x = upload(client, F32, x);
    let [gamma, beta, old] = [2.0, 0.25, running].map(|v| upload(client, F32, &vec![v; channels]));
    let y = empty(client, F32, layout.len());
    let [variance, new_mean, new_variance] = [(); 3].map(|()| empty(client, F32, channels));
    let saved = empty(client, F32, 3 * channels);
    let affine = Affine {
        scale: &gamma,
        shift: &beta,
    };
    let running = Running {
        mean: &old,
        variance: &old,
        new_mean: &new_mean,
        new_variance: &new_variance,
    };
    let params = TrainParams {
        epsilon: 1e-5,
        factor,
        correction: 1.0,
    };
    let out = TrainOutputs {
        y: Target::To(&y),
        mean: None,
        variance: &variance,
        saved: &saved,
    };
    train(
        client,
        problem,
        &x,
        affine,
        Some(running),
        params,
        Epilogue::default(),
        out,
    )
    .unwrap();
    let [y, variance, running_mean, running_var] =
        [&y, &variance, &new_mean, &new_variance].map(|h| download(client, F32, h));
    Forward {
        y,
        variance,
        running_mean,
        running_var,
    }
}

/// One launch and three, by rows and by columns.
const LAYOUTS: [Layout; 4] = [
    Layout {
        outer: 5,
        channels: 6,
        inner: 7,
    },
    Layout {
        outer: 30,
        channels: 8,
        inner: 1,
    },
    Layout {
        outer: 500,
        channels: 3,
        inner: 50,
    },
    Layout {
        outer: 20_000,
        channels: 3,
        inner: 1,
    },
];

fn channel(layout: Layout, i: usize) -> usize {
    i / layout.inner % layout.channels
}

#[test]
fn constant_channels_give_beta_exactly() {
    let Some(client) = client() else { return };
    for layout in LAYOUTS {
        for value in [0.1, -12345.678, 1e30, 3e-39] {
            let out = forward(&client, layout, &vec![value; layout.len()], 1.0, 0.5);
            assert!(out.y.iter().all(|y| *y == 0.25), "{layout:?} of {value}");
            assert!(
                out.variance.iter().all(|v| *v == 0.0),
                "{layout:?} of {value}"
            );
        }
    }
}

#[test]
fn weights_of_zero_and_one_ignore_what_they_drop() {
    let Some(client) = client() else { return };
    for layout in LAYOUTS {
        let x = Random(3).normal(layout.len(), 1.0, 1.0);
        let replaced = forward(&client, layout, &x, f64::NAN, 1.0);
        assert!(
            replaced
                .running_mean
                .iter()
                .chain(&replaced.running_var)
                .all(|v| v.is_finite())
        );
        assert_eq!(replaced.running_var, replaced.variance);

        let x = vec![f64::NAN; layout.len()];
        let kept = forward(&client, layout, &x, 0.75, 0.0);
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
    for layout in LAYOUTS {
        let mut x = Random(5).normal(layout.len(), 1.0, 1.0);
        x[layout.inner] = f64::NAN; // the first value of channel 1
        let out = forward(&client, layout, &x, 1.0, 0.5);
        for (i, y) in out.y.iter().enumerate() {
            assert_eq!(y.is_nan(), channel(layout, i) == 1, "{layout:?} at {i}");
        }
    }
}

/// A channel's first value may be far from all others: it costs digits in its own block only, not in all of them.
#[test]
fn an_outlier_in_front_costs_few_digits() {
    let Some(client) = client() else { return };
    for layout in LAYOUTS {
        let mut x = Random(7).normal(layout.len(), 1.0, 1.0);
        for c in 0..layout.channels {
            x[c * layout.inner] = 1e4;
        }
        let exact: Vec<f64> = x.iter().map(|v| *v as f32 as f64).collect();
        let expected = crate::reference::moments(layout, &exact);
        let out = forward(&client, layout, &x, 1.0, 0.5);
        for (got, (_, variance)) in out.variance.iter().zip(expected) {
            let off = (got / variance - 1.0).abs();
            assert!(off < 5e-5, "{layout:?}: {got} for {variance}");
        }
    }
}

/// Squares overflow beyond a spread of about 1e18; up to there, magnitudes do not matter.
#[test]
fn large_magnitudes() {
    let Some(client) = client() else { return };
    for layout in LAYOUTS {
        let small = Random(9).normal(layout.len(), 1.0, 1.0);
        let large: Vec<f64> = small.iter().map(|v| v * 2f64.powi(55)).collect();
        let [small, large] = [small, large].map(|x| forward(&client, layout, &x, 1.0, 0.5));
        for (a, b) in small.y.iter().zip(&large.y) {
            assert!((a - b).abs() < 1e-4, "{layout:?}: {a} and {b}");
        }
    }
}

#[test]
fn results_are_the_same_every_time() {
    let Some(client) = client() else { return };
    for layout in LAYOUTS {
        let x = Random(11).normal(layout.len(), 1.0, 1.0);
        let [a, b] = [(); 2].map(|()| forward(&client, layout, &x, 1.0, 0.5));
        assert_eq!((a.y, a.variance), (b.y, b.variance));
    }
}
