//! The naive oracle: every formula as it is written, in f64.

use std::f64::consts::PI;

use batchnorm_cube::Activation::{Gelu, GeluTanh, HardSwish, Sigmoid, Silu, Tanh};
use batchnorm_cube::{Activation, Layout};

/// The value and the derivative of an activation.
pub fn act(activation: Activation, v: f64) -> (f64, f64) {
    if v == f64::NEG_INFINITY && matches!(activation, Silu | Gelu | GeluTanh | HardSwish) {
        return (0.0, 0.0);
    }
    let far = v.clamp(-1e9, 1e9);
    let bell = |v: f64| logistic(v) * logistic(-v);
    let (low, slope, high) = match activation {
        Silu => return (v * logistic(v), logistic(far) + far * bell(far)),
        Gelu => return (v * normal(v), normal(far) + far * density(far)),
        GeluTanh => {
            let factor = (8.0 / PI).sqrt();
            let inner = |v: f64| factor * (v + 0.044715 * v.powi(3));
            let steep = factor * (1.0 + 3.0 * 0.044715 * far * far);
            let slope = logistic(inner(far)) + far * steep * bell(inner(far));
            return (v * logistic(inner(v)), slope);
        }
        HardSwish if v <= -3.0 => return (0.0, 0.0),
        HardSwish if v >= 3.0 => return (v, 1.0),
        HardSwish => return (v * (v + 3.0) / 6.0, v / 3.0 + 0.5),
        Sigmoid => return (logistic(v), bell(v)),
        Tanh => return (v.tanh(), v.cosh().powi(-2)),
        Activation::None => return (v, 1.0),
        Activation::Relu => (0.0, 0.0, f64::INFINITY),
        Activation::LeakyRelu(slope) => (0.0, slope, f64::INFINITY),
        Activation::Relu6 => (0.0, 0.0, 6.0),
        Activation::Clamp { min, max } => (min, 0.0, max),
        other => panic!("no reference for {other:?}"),
    };
    match v {
        _ if v <= low => (low + slope * (v - low), slope),
        _ if v >= high => (high, 0.0),
        _ => (v, 1.0),
    }
}

fn logistic(v: f64) -> f64 {
    match v < 0.0 {
        true => v.exp() / (1.0 + v.exp()),
        false => 1.0 / (1.0 + (-v).exp()),
    }
}

/// The density of the standard normal.
fn density(v: f64) -> f64 {
    (-v * v / 2.0).exp() / (2.0 * PI).sqrt()
}

/// Its distribution function, by its series (Abramowitz and Stegun 26.2.11); beyond 9 it is 0 or 1 to 1e-18.
fn normal(v: f64) -> f64 {
    if v.abs() > 9.0 {
        return f64::from(u8::from(v > 0.0));
    }
    let (mut term, mut sum) = (v, v);
    for n in 1..300 {
        term *= v * v / f64::from(2 * n + 1);
        sum += term;
    }
    0.5 + density(v) * sum
}

/// Per channel the sum of the weights, the mean and the biased variance.
pub fn moments(layout: Layout, x: &[f64], weights: &[f64]) -> [Vec<f64>; 3] {
    // Around one of the values, so that a large mean costs no digit of the f64 either.
    let around = |centre: &[f64]| -> Vec<f64> {
        let centred = |i| match weights[i] > 0.0 {
            true => x[i] - centre[channel(layout, i)],
            false => 0.0,
        };
        (0..x.len()).map(centred).collect()
    };
    let mut some = vec![0.0; layout.channels];
    for i in (0..x.len()).filter(|i| weights[*i] > 0.0) {
        some[channel(layout, i)] = x[i];
    }
    let offsets = around(&some);
    let (weight, _) = sums(layout, weights, &offsets);
    let average = |values: &[f64]| -> Vec<f64> {
        let (_, sums) = sums(layout, values, weights);
        sums.iter().zip(&weight).map(|(sum, w)| sum / w).collect()
    };
    let mean: Vec<f64> = some
        .iter()
        .zip(average(&offsets))
        .map(|(some, offset)| some + offset)
        .collect();
    let squares: Vec<f64> = around(&mean).iter().map(|d| d * d).collect();
    let variance = average(&squares);
    [weight, mean, variance]
}

/// The values, with the mean of the channel where one is not finite.
pub fn finite(layout: Layout, x: &[f64], mean: &[f64]) -> Vec<f64> {
    let or_mean = |(i, x): (usize, &f64)| match x.is_finite() {
        true => *x,
        false => mean[channel(layout, i)],
    };
    x.iter().enumerate().map(or_mean).collect()
}

/// The channel of an element.
pub fn channel(layout: Layout, index: usize) -> usize {
    index / layout.inner % layout.channels
}

/// The argument of the activation and the centred input.
pub fn argument(
    layout: Layout,
    x: &[f64],
    mean: &[f64],
    scale: &[f64],
    shift: &[f64],
    residual: &[f64],
) -> (Vec<f64>, Vec<f64>) {
    (0..x.len())
        .map(|i| {
            let c = channel(layout, i);
            let centred = x[i] - mean[c];
            (
                centred * scale[c] + shift[c] + residual.get(i).unwrap_or(&0.0),
                centred,
            )
        })
        .unzip()
}

/// `sum g` and `sum g * factor` of every channel.
pub fn sums(layout: Layout, g: &[f64], factor: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let mut sums = (vec![0.0; layout.channels], vec![0.0; layout.channels]);
    for i in 0..g.len() {
        sums.0[channel(layout, i)] += g[i];
        sums.1[channel(layout, i)] += g[i] * factor[i];
    }
    sums
}
