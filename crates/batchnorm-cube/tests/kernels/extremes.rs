//! Infinite bounds, infinite values and infinite gradients: pieces that are flat select, they do not multiply.

use batchnorm_cube::*;
use cubecl::prelude::*;

use crate::device::{client, download, empty, upload};
use crate::reference;

const F32: Element = Element::F32;
const INF: f64 = f64::INFINITY;

/// Output, input gradient and beta's gradient of one channel with a mean of 0, a variance of 1, gamma 1 and beta 0.
fn run(client: &Client, activation: Activation, x: &[f64], dy: &[f64]) -> [Vec<f64>; 3] {
    let problem = Problem::new(Layout::new(x.len(), 1, 1), F32);
    let [x_in, dy_in] = [x, dy].map(|values| upload(client, F32, values));
    let [zero, one] = [0.0, 1.0].map(|v| upload(client, F32, &[v]));
    let [y, dx] = [(); 2].map(|()| empty(client, F32, x.len()));
    let dbeta = empty(client, F32, 1);
    let center = Center::Apart {
        mean: &zero,
        variance: &one,
    };
    let affine = Affine {
        gamma: &one,
        beta: &zero,
    };
    let epilogue = Epilogue {
        activation,
        residual: None,
    };
    let target = Target::To(&y);
    normalize(
        client, problem, &x_in, None, center, affine, 0.0, epilogue, target,
    )
    .unwrap();
    let out = Gradients {
        input: Some(Target::To(&dx)),
        beta: Some(&dbeta),
        ..Gradients::default()
    };
    normalize_backward(
        client, problem, &x_in, None, &dy_in, affine, center, 0.0, epilogue, out,
    )
    .unwrap();
    [&y, &dx, &dbeta].map(|handle| download(client, F32, handle))
}

#[test]
fn bounds_may_be_infinite() {
    let Some(client) = client() else { return };
    let x = [-INF, -8.0, 0.5, 8.0, INF];
    let clamp = |min, max| Activation::Clamp { min, max };
    for (activation, expected) in [
        (clamp(-INF, 6.0), [-INF, -8.0, 0.5, 6.0, 6.0]),
        (clamp(-2.0, INF), [-2.0, -2.0, 0.5, 8.0, INF]),
        (clamp(-INF, INF), x),
        (clamp(INF, INF), [INF; 5]),
        (clamp(-INF, -INF), [-INF; 5]),
    ] {
        let [y, dx, _] = run(&client, activation, &x, &[1.0; 5]);
        assert_eq!(y, expected, "{activation:?}");
        for (dx, (x, y)) in dx.iter().zip(x.iter().zip(expected)) {
            // At an infinite value of its own a bound that is infinite too makes no difference.
            if x.is_finite() {
                assert_eq!(*dx, f64::from(*x == y), "{activation:?} at {x}");
            }
        }
    }
}

#[test]
fn slopes_take_infinite_values() {
    let Some(client) = client() else { return };
    let x = [-INF, -2.0, 3.0, INF];
    for (slope, expected) in [
        (0.25, [-INF, -0.5, 3.0, INF]),
        (0.0, [0.0, 0.0, 3.0, INF]),
        (-0.25, [INF, 0.5, 3.0, INF]),
    ] {
        let [y, ..] = run(&client, Activation::LeakyRelu(slope), &x, &[1.0; 4]);
        assert_eq!(y, expected, "{slope}");
    }
}

#[test]
fn masks_drop_infinite_gradients() {
    let Some(client) = client() else { return };
    let x = [-1.0, 1.0, -2.0, 7.0];
    let dy = [INF, 1.0, f64::NAN, 2.0];
    for activation in [
        Activation::Relu,
        Activation::LeakyRelu(0.0),
        Activation::Clamp { min: 0.0, max: INF },
    ] {
        let [_, dx, dbeta] = run(&client, activation, &x, &dy);
        assert_eq!(dx, [0.0, 1.0, 0.0, 2.0], "{activation:?}");
        assert_eq!(dbeta, [3.0], "{activation:?}");
    }
}

/// A factor of exactly 0 selects 0, and nothing overflows on the way.
#[test]
fn curves_reach_their_limits() {
    let Some(client) = client() else { return };
    let points = [-INF, -1e30, -1e4, -200.0, 200.0, 1e4, 1e30, INF, -0.5, 2.0];
    let near = [-104.0, -95.0, -88.0, 88.0, 95.0, 104.0];
    let x = [&points[..], &near].concat();
    for activation in [
        Activation::Silu,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::HardSwish,
        Activation::Sigmoid,
        Activation::Tanh,
    ] {
        let of = |x: &f64| reference::act(activation, *x);
        // Where the curve is flat, infinite.
        let flat = |x: &f64| x.abs() > 150.0 && of(x).1 == 0.0;
        let dy: Vec<f64> = x.iter().map(|x| if flat(x) { INF } else { 1.0 }).collect();
        let [y, dx, _] = run(&client, activation, &x, &dy);
        for (x, (y, dx)) in x.iter().zip(y.iter().zip(&dx)) {
            let (value, slope) = of(x);
            let close = |got: f64, expected: f64| {
                got == expected || (got - expected).abs() <= 1e-6 * expected.abs().max(1.0)
            };
            assert!(
                close(*y, value),
                "{activation:?} at {x}: {y}, expected {value}"
            );
            assert!(
                close(*dx, slope),
                "{activation:?}' at {x}: {dx}, expected {slope}"
            );
        }
    }
}

/// Given statistics: no gradient of one value reaches another.
#[test]
fn given_statistics_have_no_batch_terms() {
    let Some(client) = client() else { return };
    let [_, dx, _] = run(
        &client,
        Activation::None,
        &[0.0, 1.0, 2.0, 3.0],
        &[INF, 1.0, 1.0, 1.0],
    );
    assert_eq!(dx, [INF, 1.0, 1.0, 1.0]);
    let [_, dx, _] = run(&client, Activation::None, &[1e20; 8], &[1e20; 8]);
    assert!(dx.iter().all(|dx| (dx / 1e20 - 1.0).abs() < 1e-6));
}

/// A variance of 0 with an epsilon that is 0 in `f32`, or nearly: the value of a constant channel gives beta, not `0 * infinity`.
#[test]
fn a_variance_of_zero_gives_beta() {
    let Some(client) = client() else { return };
    let problem = Problem::new(Layout::new(8, 1, 1), F32);
    let x = upload(&client, F32, &[3.0; 8]);
    let [mean, variance, gamma, beta] = [3.0, 0.0, 2.0, 0.25].map(|v| upload(&client, F32, &[v]));
    let packed = upload(&client, F32, &[3.0, 0.0, 0.0]);
    let affine = Affine {
        gamma: &gamma,
        beta: &beta,
    };
    let apart = Center::Apart {
        mean: &mean,
        variance: &variance,
    };
    for center in [apart, Center::Packed(&packed)] {
        for epsilon in [0.0, 1e-46, 1e-40] {
            let y = empty(&client, F32, 8);
            let (epilogue, target) = (Epilogue::default(), Target::To(&y));
            normalize(
                &client, problem, &x, None, center, affine, epsilon, epilogue, target,
            )
            .unwrap();
            assert_eq!(download(&client, F32, &y), [0.25; 8], "{epsilon}");
        }
    }
}
