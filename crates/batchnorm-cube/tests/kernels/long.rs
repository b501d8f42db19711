//! Long channels: every value is right, however far a unit has to walk.
//!
//! Mesa's software driver ends the loops of a unit after 65,535 iterations, those of all loops together, and says nothing.

use batchnorm_cube::*;
use cubecl::prelude::*;

use crate::device::{client, download, upload};
use crate::reference::channel;
use crate::training::Training;

const F32: Element = Element::F32;

/// Numbers between 0 and 2, in an order of their own for every `step`.
fn values(len: usize, step: usize) -> Vec<f64> {
    let value = |i: usize| (i * step % 10_007) as f32 / 5_000.0;
    (0..len).map(|i| value(i).into()).collect()
}

#[test]
fn training() {
    let Some(client) = client() else { return };
    for (outer, channels, inner) in [
        (30_000, 100, 1),
        (41_943, 100, 1),
        (65_535, 100, 1),
        (40_000, 400, 1),
        (147_000, 64, 1),
        (147_000, 100, 1),
        (1, 1, 20_000_000),
    ] {
        let layout = Layout::new(outer, channels, inner);
        check_training(&client, Problem::new(layout, F32));
    }
}

/// With a gamma and a beta of 1.
fn check_training(client: &Client, problem: Problem) {
    let layout = problem.layout;
    let n = layout.samples_per_channel() as f64;
    let [x, dy] = [7919, 6007].map(|step| values(layout.len(), step));
    let [x_in, dy_in] = [&x, &dy].map(|values| upload(client, F32, values));
    let step = Training::new(client, problem, &x_in, &dy_in);
    step.forward();
    step.backward();

    // Sums of x, x^2, dy and dy * x.
    let mut sums = vec![[0.0; 4]; layout.channels];
    for (i, (x, dy)) in x.iter().zip(&dy).enumerate() {
        let sums = &mut sums[channel(layout, i)];
        for (sum, term) in sums.iter_mut().zip([*x, x * x, *dy, dy * x]) {
            *sum += term;
        }
    }
    let [y, dx] = [&step.y, &step.dx].map(|handle| download(client, F32, handle));
    for (i, (y, dx)) in y.iter().zip(&dx).enumerate() {
        let [x_sum, squares, dbeta, products] = sums[channel(layout, i)];
        let mean = x_sum / n;
        let inv_std = 1.0 / (squares / n - mean * mean + 1e-5).sqrt();
        let dgamma = (products - dbeta * mean) * inv_std;
        let xhat = (x[i] - mean) * inv_std;
        let off = (y - (xhat + 1.0)).abs();
        assert!(off < 1e-5, "{layout:?}: y[{i}] is off by {off:e}");
        let expected = inv_std * (dy[i] - dbeta / n - xhat * dgamma / n);
        let off = (dx - expected).abs();
        assert!(off < 1e-4, "{layout:?}: dx[{i}] is off by {off:e}");
    }
}

#[test]
fn normalization_and_its_gradients() {
    let Some(client) = client() else { return };
    for (outer, channels, inner) in [(147_000, 100, 1), (65_535, 100, 1), (1, 1, 20_000_000)] {
        let layout = Layout::new(outer, channels, inner);
        for strategy in [Strategy::Auto, Strategy::Gpu] {
            let problem = Problem {
                strategy,
                ..Problem::new(layout, F32)
            };
            check_normalize(&client, problem);
        }
    }
}

/// With a mean of 0.5, a variance of 4 and a gamma of 3.
fn check_normalize(client: &Client, problem: Problem) {
    let Layout { channels, .. } = problem.layout;
    let values = values(problem.layout.len(), 7919);
    let x = upload(client, F32, &values);
    let [y, dx] = [(); 2].map(|()| client.empty(4 * values.len()));
    let [mean, variance, gamma, beta] =
        [0.5, 4.0, 3.0, 0.25].map(|v| upload(client, F32, &vec![v; channels]));
    let [dgamma, dbeta] = [(); 2].map(|()| client.empty(4 * channels));
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
    normalize(
        client, problem, &x, None, center, affine, 0.0, epilogue, target,
    )
    .unwrap();
    for (i, (got, x)) in download(client, F32, &y).iter().zip(&values).enumerate() {
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
    normalize_backward(
        client, problem, &x, None, &x, affine, center, 0.0, epilogue, out,
    )
    .unwrap();
    for (i, (got, x)) in download(client, F32, &dx).iter().zip(&values).enumerate() {
        assert!((got - 1.5 * x).abs() < 1e-5, "dx[{i}]: {got}");
    }
    let mut sums = vec![(0.0, 0.0); channels];
    for (i, x) in values.iter().enumerate() {
        let sum = &mut sums[channel(problem.layout, i)];
        sum.0 += x * (x - 0.5) / 2.0;
        sum.1 += x;
    }
    let [dgamma, dbeta] = [dgamma, dbeta].map(|handle| download(client, F32, &handle));
    for c in 0..channels {
        let n = problem.layout.samples_per_channel() as f64;
        let off = |got: f64, expected: f64| (got - expected).abs() / n;
        assert!(off(dgamma[c], sums[c].0) < 1e-6, "dgamma[{c}]");
        assert!(off(dbeta[c], sums[c].1) < 1e-6, "dbeta[{c}]");
    }
}
