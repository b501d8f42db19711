//! Positions with weights: as many launches as without, and what has no weight reaches nothing.

use batchnorm_cube::*;
use cubecl::prelude::*;

use crate::case::{Case, check_train};
use crate::device::{client, download, empty, upload};
use crate::positions::Positions;
use crate::training::{SHAPES, Training};

const F32: Element = Element::F32;
const NAN: f64 = f64::NAN;

/// Rows and columns, in one launch, in two and in three.
#[test]
fn weights_of_positions() {
    let Some(client) = client() else { return };
    for (outer, channels, inner) in [
        (4, 6, 5),
        (3, 5, 49),
        (8, 16, 196),
        (5, 1, 1),
        (64, 24, 1),
        (301, 7, 1),
        (64, 1, 1_024),
        (1, 1, 100_003),
        (30_011, 3, 1),
        (150_000, 8, 1),
        (400, 2, 5_000),
    ] {
        for strategy in [Strategy::Software, Strategy::Gpu] {
            let case = Case {
                strategy,
                ..Case::new(outer, channels, inner)
            };
            let launches = check_train(&client, case);
            for positions in [Positions::Shared, Positions::Own] {
                let case = Case { positions, ..case };
                assert_eq!(check_train(&client, case), launches, "{:?}", case.layout);
                let case = Case {
                    activation: Activation::Silu,
                    residual: true,
                    in_place: true,
                    mean: 1e3,
                    ..case
                };
                check_train(&client, case);
            }
        }
    }
}

/// A training step with gamma 2, beta 0.25 and a gradient of 1 to 9.
struct Step {
    y: Vec<f64>,
    dx: Vec<f64>,
    statistics: Vec<f64>,
}

fn step(client: &Client, layout: Layout, x: &[f64], weights: &[f64]) -> Step {
    let problem = Problem::new(layout, F32);
    let dy: Vec<f64> = (0..layout.len()).map(upstream).collect();
    let [x, dy, weights] = [x, &dy, weights].map(|values| upload(client, F32, values));
    let weights = Weights::Own(&weights);
    let [gamma, beta] = [2.0, 0.25].map(|v| upload(client, F32, &vec![v; layout.channels]));
    let [y, dx] = [(); 2].map(|()| empty(client, F32, layout.len()));
    let statistics = empty(client, F32, 5 * layout.channels);
    let affine = Affine {
        gamma: &gamma,
        beta: &beta,
    };
    let epilogue = Epilogue::default();
    let out = TrainOutputs {
        y: Target::To(&y),
        statistics: &statistics,
    };
    train(
        client,
        problem,
        &x,
        Some(weights),
        affine,
        None,
        1e-5,
        epilogue,
        out,
    )
    .unwrap();
    let out = Gradients {
        input: Some(Target::To(&dx)),
        ..Gradients::default()
    };
    train_backward(
        client,
        problem,
        &x,
        Some(weights),
        &dy,
        affine,
        &statistics,
        epilogue,
        out,
    )
    .unwrap();
    let [y, dx, statistics] = [&y, &dx, &statistics].map(|handle| download(client, F32, handle));
    Step { y, dx, statistics }
}

fn upstream(i: usize) -> f64 {
    (i % 9) as f64 + 1.0
}

/// One launch, two and three, by rows and by columns.
const LAYOUTS: [(usize, usize, usize); 5] = [
    (5, 6, 7),
    (30, 8, 1),
    (500, 3, 50),
    (20_000, 3, 1),
    (140_000, 3, 1),
];

fn layouts() -> impl Iterator<Item = Layout> {
    LAYOUTS
        .into_iter()
        .map(|(outer, channels, inner)| Layout::new(outer, channels, inner))
}

fn channel(layout: Layout, i: usize) -> usize {
    i / layout.inner % layout.channels
}

/// Mean 0, variance 1; an output that is normalized by them; gradients that go through no statistic.
#[test]
fn a_channel_without_weight() {
    let Some(client) = client() else { return };
    for layout in layouts() {
        let of = |i: usize| channel(layout, i);
        let weights: Vec<f64> = (0..layout.len()).map(|i| f64::from(of(i) != 1)).collect();
        let value = |i: usize| match (of(i), i % 2) {
            (1, 0) => NAN,
            (1, _) => 0.5,
            _ => (i % 7) as f64,
        };
        let x: Vec<f64> = (0..layout.len()).map(value).collect();
        let got = step(&client, layout, &x, &weights);
        let row = |row: usize| got.statistics[row * layout.channels + 1];
        assert_eq!(
            [row(0), row(1), row(2), row(4)],
            [0.0, 0.0, 1.0, 0.0],
            "{layout:?}"
        );
        let inv_std = 1.0 / (1.0 + 1e-5f64).sqrt();
        assert!((row(3) / inv_std - 1.0).abs() < 1e-6);
        for i in (0..layout.len()).filter(|i| of(*i) == 1) {
            let centred = if x[i].is_nan() { 0.0 } else { x[i] };
            let y = centred * inv_std * 2.0 + 0.25;
            let dx = upstream(i) * inv_std * 2.0;
            assert!(
                (got.y[i] - y).abs() < 1e-5,
                "{layout:?}: {} for {y}",
                got.y[i]
            );
            assert!(
                (got.dx[i] / dx - 1.0).abs() < 1e-5,
                "{layout:?}: {} for {dx}",
                got.dx[i]
            );
        }
    }
}

/// What is not above 0 is no weight, and where there is none anything may lie.
#[test]
fn what_has_no_weight_reaches_nothing() {
    let Some(client) = client() else { return };
    for layout in layouts() {
        let absent = |i: usize| i % 5 == 1 || i % 64 < 20;
        let all = |present: fn(usize) -> f64, other: f64| -> Vec<f64> {
            let choose = |i| if absent(i) { other } else { present(i) };
            (0..layout.len()).map(choose).collect()
        };
        let x = |other| all(|i| (i * i % 11) as f64, other);
        let weights = |other| all(|i| 1.0 + (i % 3) as f64, other);
        let run = |x: &[f64], weights: &[f64]| step(&client, layout, x, weights);
        let expected = run(&x(1.0), &weights(0.0));
        for (none, other) in [(-1.0, 1e30), (NAN, NAN), (0.0, f64::INFINITY)] {
            let got = run(&x(other), &weights(none));
            assert_eq!(got.statistics, expected.statistics, "{layout:?}, {none}");
            for i in 0..layout.len() {
                assert!(got.y[i].is_finite(), "{layout:?}, {other} at {i}");
                assert!(
                    absent(i) || got.y[i] == expected.y[i],
                    "{layout:?}, {other} at {i}"
                );
            }
            // A value that is finite takes part in the gradient of gamma.
            assert!(
                other == 1e30 || got.dx.iter().all(|dx| dx.is_finite()),
                "{layout:?}"
            );
        }
        let mut lost = x(1.0);
        let second = |i: &usize| channel(layout, *i) == 1 && !absent(*i);
        lost[(0..layout.len()).find(second).expect("one that counts")] = NAN;
        for (i, y) in run(&lost, &weights(0.0)).y.iter().enumerate() {
            assert_eq!(y.is_nan(), channel(layout, i) == 1, "{layout:?} at {i}");
        }
    }
}

/// As many launches as without weights, and at most a third more bytes.
#[test]
fn weights_cost_little() {
    let Some(client) = client() else { return };
    for (name, shape) in SHAPES {
        let layout = Layout::from_shape(shape, 1).unwrap();
        let [x, dy, weights] = [(); 3].map(|()| client.empty(4 * layout.len()));
        for strategy in [Strategy::Gpu, Strategy::Software] {
            let problem = Problem {
                strategy,
                ..Problem::new(layout, F32)
            };
            let run = |weights| {
                let step = Training::new(&client, problem, &x, &dy).with_weights(weights);
                [step.forward(), step.backward()]
            };
            let plain = run(None);
            for (weights, most) in [
                (Weights::Shared(&weights), 1.04),
                (Weights::Own(&weights), 1.34),
            ] {
                for (weighted, plain) in run(Some(weights)).iter().zip(&plain) {
                    assert_eq!(weighted.count(), plain.count(), "{name}");
                    let ratio = weighted.bytes() as f64 / plain.bytes() as f64;
                    assert!((1.0..most).contains(&ratio), "{name}: {ratio}");
                }
            }
        }
    }
}

/// With given statistics a value that is not finite stays what it is where it has a weight, and is taken for the mean where it has none.
#[test]
fn given_statistics_and_what_has_no_weight() {
    let Some(client) = &client() else { return };
    for layout in layouts() {
        let problem = Problem::new(layout, F32);
        let value = |i: usize| match i % 4 {
            0 => NAN,
            1 => f64::INFINITY,
            i => i as f64,
        };
        let x: Vec<f64> = (0..layout.len()).map(value).collect();
        let absent = |i: usize| i.is_multiple_of(3);
        let weights: Vec<f64> = (0..layout.len()).map(|i| f64::from(!absent(i))).collect();
        let dy: Vec<f64> = (0..layout.len()).map(upstream).collect();
        let [x_in, weights, dy_in] = [&x, &weights, &dy].map(|v| upload(client, F32, v));
        let channels = layout.channels;
        let [mean, variance, gamma, beta] =
            [2.0, 3.0, 0.5, 0.25].map(|v| upload(client, F32, &vec![v; channels]));
        let [y, dx] = [(); 2].map(|()| empty(client, F32, layout.len()));
        let [dgamma, dbeta] = [(); 2].map(|()| empty(client, F32, channels));
        let (mean, variance) = (&mean, &variance);
        let center = Center::Apart { mean, variance };
        let affine = Affine {
            gamma: &gamma,
            beta: &beta,
        };
        let weights = Some(Weights::Own(&weights));
        let (epilogue, target) = (Epilogue::default(), Target::To(&y));
        let launches = normalize(
            client, problem, &x_in, weights, center, affine, 1.0, epilogue, target,
        );
        assert_eq!(launches.unwrap().count(), 1);
        let y = download(client, F32, &y);
        for i in 0..layout.len() {
            let x = match absent(i) && !x[i].is_finite() {
                true => 2.0,
                false => x[i],
            };
            let expected = (x - 2.0) / 2.0 * 0.5 + 0.25;
            let same = y[i] == expected || (y[i] - expected).abs() < 1e-6;
            let same = same || y[i].is_nan() && expected.is_nan();
            assert!(same, "{layout:?} at {i}: {} for {expected}", y[i]);
        }

        let out = Gradients {
            input: Some(Target::To(&dx)),
            gamma: Some(&dgamma),
            beta: Some(&dbeta),
            residual: None,
        };
        normalize_backward(
            client, problem, &x_in, weights, &dy_in, affine, center, 1.0, epilogue, out,
        )
        .unwrap();
        let [dx, dgamma] = [&dx, &dgamma].map(|handle| download(client, F32, handle));
        let exact = |i: usize| (dx[i] - dy[i] * 0.25).abs() < 1e-5;
        assert!((0..layout.len()).all(exact), "{layout:?}");
        assert!(dgamma.iter().all(|v| v.is_finite()), "{layout:?}");
    }
}
