//! Activations and their derivatives, by their definitions.

use std::f64::consts::PI;

use crate::Activation;

/// The value of an activation at `v`, by its definition.
pub fn value(activation: Activation, v: f64) -> f64 {
    if v.is_nan() {
        return v;
    }
    match activation {
        Activation::None => v,
        Activation::Relu => v.max(0.0),
        Activation::LeakyRelu(slope) if v < 0.0 => slope * v,
        Activation::LeakyRelu(_) => v,
        Activation::Relu6 => v.clamp(0.0, 6.0),
        Activation::Clamp { min, max } => v.clamp(min, max),
        // 0 at negative infinity, where the formulas have infinity times 0.
        Activation::Silu | Activation::Gelu | Activation::GeluTanh | Activation::HardSwish
            if v == f64::NEG_INFINITY =>
        {
            0.0
        }
        Activation::Silu => v * logistic(v),
        Activation::Gelu => v * normal(v),
        Activation::GeluTanh => v * logistic(2.0 * inner(v)),
        Activation::HardSwish => v * ((v + 3.0).clamp(0.0, 6.0) / 6.0),
        Activation::Sigmoid => logistic(v),
        Activation::Tanh => v.tanh(),
    }
}

fn logistic(v: f64) -> f64 {
    match v < 0.0 {
        true => v.exp() / (1.0 + v.exp()),
        false => 1.0 / (1.0 + (-v).exp()),
    }
}

/// The argument of GELU's tanh.
fn inner(v: f64) -> f64 {
    (2.0 / PI).sqrt() * (v + 0.044715 * v.powi(3))
}

/// The density of the standard normal.
fn density(v: f64) -> f64 {
    (-v * v / 2.0).exp() / (2.0 * PI).sqrt()
}

/// Its distribution function: near 0 by its series, further out by the continued fraction of the tail (Abramowitz and Stegun 26.2.11 and 26.2.14).
fn normal(v: f64) -> f64 {
    if v.abs() < 2.5 {
        let (mut term, mut sum) = (v, v);
        for n in 1..60 {
            term *= v * v / f64::from(2 * n + 1);
            sum += term;
        }
        return 0.5 + density(v) * sum;
    }
    let fraction = (1..200)
        .rev()
        .fold(v.abs(), |tail, n| v.abs() + f64::from(n) / tail);
    let tail = density(v) / fraction;
    if v < 0.0 { tail } else { 1.0 - tail }
}

/// The derivative of a smooth activation at a finite `v`.
fn slope(activation: Activation, v: f64) -> f64 {
    let bell = |v: f64| logistic(v) * logistic(-v);
    match activation {
        Activation::Silu => logistic(v) + v * bell(v),
        Activation::Gelu => normal(v) + v * density(v),
        Activation::GeluTanh => {
            let steep = 2.0 * (2.0 / PI).sqrt() * (1.0 + 3.0 * 0.044715 * v * v);
            logistic(2.0 * inner(v)) + v * steep * bell(2.0 * inner(v))
        }
        Activation::HardSwish if v <= -3.0 => 0.0,
        Activation::HardSwish if v >= 3.0 => 1.0,
        Activation::HardSwish => v / 3.0 + 0.5,
        Activation::Sigmoid => bell(v),
        Activation::Tanh => 4.0 * bell(2.0 * v),
        other => panic!("{other:?} is piecewise linear"),
    }
}

/// `dy` times the derivative of an activation at `v`: 0 where the activation is flat, whatever `dy` is.
pub fn gradient(activation: Activation, v: f64, dy: f64) -> f64 {
    let inside = |min: f64, max: f64| if v <= min || v >= max { 0.0 } else { dy };
    match activation {
        Activation::None => dy,
        Activation::Relu if v <= 0.0 => 0.0,
        Activation::Relu => dy,
        Activation::LeakyRelu(0.0) if v <= 0.0 => 0.0,
        Activation::LeakyRelu(slope) if v <= 0.0 => slope * dy,
        Activation::LeakyRelu(_) => dy,
        Activation::Relu6 => inside(0.0, 6.0),
        Activation::Clamp { min, max } => inside(min, max),
        // At an infinity the derivative is its limit.
        _ => match slope(activation, v.clamp(-1e9, 1e9)) {
            0.0 => 0.0,
            slope => dy * slope,
        },
    }
}
