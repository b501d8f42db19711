//! Long channels: every value is right, however far a unit has to walk.
//!
//! Mesa's software driver ends the loops of a unit after 65,535 iterations, those of all loops together, and says nothing.

use batchnorm_cube::*;
use cubecl::prelude::*;

use crate::case::{Case, check_train};
use crate::device::{Random, client, download, empty, upload};

#[test]
fn training() {
    let Some(client) = client() else { return };
    for (outer, channels) in [
        (30_000, 100),
        (41_943, 100),
        (65_535, 100),
        (40_000, 400),
        (147_000, 64),
        (147_000, 100),
    ] {
        check_train(&client, Case::new(outer, channels, 1));
    }
    check_train(&client, Case::new(1, 1, 20_000_000));
}

#[test]
fn normalization_and_its_gradients() {
    let Some(client) = client() else { return };
    for (outer, channels, inner) in [(147_000, 100, 1), (65_535, 100, 1), (1, 1, 20_000_000)] {
        let layout = Layout::new(outer, channels, inner);
        for strategy in [Strategy::Auto, Strategy::Gpu] {
            let problem = Problem {
                strategy,
                ..Problem::new(layout, Element::F32)
            };
            check_normalize(&client, problem);
        }
    }
}

/// With a mean of 0.5, a variance of 4 and a gamma of 3.
fn check_normalize(client: &Client, problem: Problem) {
    let f32 = Element::F32;
    let Layout { channels, .. } = problem.layout;
    let values = Random(61).normal(problem.layout.len(), 0.5, 1.0);
    let x = upload(client, f32, &values);
    let [y, dx] = [(); 2].map(|()| empty(client, f32, values.len()));
    let [mean, variance, gamma, beta] =
        [0.5, 4.0, 3.0, 0.25].map(|v| upload(client, f32, &vec![v; channels]));
    let [dgamma, dbeta] = [(); 2].map(|()| empty(client, f32, channels));
    let center = Center::Apart {
        mean: &mean,
        variance: &variance,
    };
    let affine = Affine {
        gamma: &gamma,
        beta: &beta,
    };
    let epilogue = Epilogue::default();
    let target = Target::To(&y);
    normalize(client, problem, &x, center, affine, 0.0, epilogue, target).unwrap();
    for (i, (got, x)) in download(client, f32, &y).iter().zip(&values).enumerate() {
        let expected = (x - 0.5) * 1.5 + 0.25;
        assert!((got - expected).abs() < 1e-5, "y[{i}]: {got}");
    }

    // The input is its own upstream gradient.
    let out = Gradients {
        input: Some(Target::To(&dx)),
        gamma: Some(&dgamma),
        beta: Some(&dbeta),
        residual: None,
    };
    normalize_backward(client, problem, &x, &x, affine, center, 0.0, epilogue, out).unwrap();
    for (i, (got, x)) in download(client, f32, &dx).iter().zip(&values).enumerate() {
        assert!((got - 1.5 * x).abs() < 1e-5, "dx[{i}]: {got}");
    }
    let mut sums = vec![(0.0, 0.0); channels];
    for (i, x) in values.iter().enumerate() {
        let sum = &mut sums[crate::reference::channel(problem.layout, i)];
        sum.0 += x * (x - 0.5) / 2.0;
        sum.1 += x;
    }
    let [dgamma, dbeta] = [dgamma, dbeta].map(|handle| download(client, f32, &handle));
    for c in 0..channels {
        let n = problem.layout.samples_per_channel() as f64;
        let off = |got: f64, expected: f64| (got - expected).abs() / n;
        assert!(off(dgamma[c], sums[c].0) < 1e-6, "dgamma[{c}]");
        assert!(off(dbeta[c], sums[c].1) < 1e-6, "dbeta[{c}]");
    }
}
