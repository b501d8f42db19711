//! The activations that are not piecewise linear.
//!
//! | activation | value | derivative |
//! |---|---|---|
//! | SiLU | `v s(v)` | `s(v) + v s'(v)` |
//! | GELU | `v P(v)` | `P(v) + v p(v)` |
//! | GELU by tanh | `v s(u)` | `s(u) + v s'(u) u'`, where `u = sqrt(8 / pi) (v + 0.044715 v^3)` |
//! | hard swish | `v (v + 3) / 6` | `v / 3 + 1/2`; outside of -3 to 3, 0 and 0, or v and 1 |
//! | sigmoid | `s(v)` | `s'(v)` |
//! | tanh | `tanh(v)` | `4 s'(2 v)` |
//!
//! `s(v) = 1 / (1 + exp(-v))` is the logistic function, in terms of `exp(-|v|)`, which cannot overflow; `p` is the density of the standard normal
//! and `P` its distribution function. A factor of 0 selects 0: the other may be infinite.

use cubecl::prelude::*;

use super::numbers::magnitude;
use crate::activation::Curve;

/// `sqrt(8 / pi)`, and that times 0.044715.
const STEEPNESS: f64 = 1.595_769_121_605_731;
const CUBIC: f64 = 0.071_354_816_272_600_26;
/// `1 / sqrt(2 pi)`.
const HEIGHT: f64 = 0.398_942_280_401_432_7;

/// A constant. Literals are `f32`; the second is what the first lacks in `f64`.
#[cube]
fn constant<A: Float, N: Size>(#[comptime] value: f64) -> Vector<A, N> {
    let high = comptime!(value as f32);
    let low = comptime!((value - f64::from(value as f32)) as f32);
    Vector::new(A::new(high) + A::new(low))
}

/// `share * v`, and 0 where the share is 0, whatever v is.
#[cube]
pub(crate) fn or_zero<A: Float, N: Size>(share: Vector<A, N>, v: Vector<A, N>) -> Vector<A, N> {
    let zero = Vector::new(A::new(0.0));
    select_many(share.equal(&zero), zero, share * v)
}

/// `exp(-|v|)`.
#[cube]
fn decay<A: Float, N: Size>(v: Vector<A, N>) -> Vector<A, N> {
    let zero = Vector::new(A::new(0.0));
    (zero - magnitude::<A, N>(v)).exp()
}

/// `s(v)`.
#[cube]
fn logistic<A: Float, N: Size>(v: Vector<A, N>) -> Vector<A, N> {
    let (zero, one) = (Vector::new(A::new(0.0)), Vector::new(A::new(1.0)));
    let decay = decay::<A, N>(v);
    select_many(v.less_than(&zero), decay, one) / (one + decay)
}

/// `s'(v)`.
#[cube]
fn bell<A: Float, N: Size>(v: Vector<A, N>) -> Vector<A, N> {
    let one = Vector::new(A::new(1.0));
    let decay = decay::<A, N>(v);
    let inverse = one / (one + decay);
    decay * inverse * inverse
}

/// `P(v)`.
#[cube]
fn normal<A: Float, N: Size>(v: Vector<A, N>) -> Vector<A, N> {
    let one = Vector::new(A::new(1.0));
    let half = Vector::new(A::new(0.5));
    // Beyond it erf is 1 to the last digit.
    let root = bounded::<A, N>(v * (half.sqrt()), 9.0f32);
    (one + root.erf()) * half
}

/// `v` between the bounds; NaN stays NaN, which `clamp` leaves to the device.
#[cube]
fn bounded<A: Float, N: Size>(v: Vector<A, N>, #[comptime] bound: f32) -> Vector<A, N> {
    let high = Vector::new(A::new(bound));
    let low = Vector::new(A::new(comptime!(-bound)));
    let v = select_many(v.greater_than(&high), high, v);
    select_many(v.less_than(&low), low, v)
}

/// The argument of the logistic function in GELU by tanh.
#[cube]
fn inner<A: Float, N: Size>(v: Vector<A, N>) -> Vector<A, N> {
    v * (v * v * constant::<A, N>(CUBIC) + constant::<A, N>(STEEPNESS))
}

/// 0 up to v = -3, `inside` up to 3, then `above`.
#[cube]
fn hard<A: Float, N: Size>(
    v: Vector<A, N>,
    inside: Vector<A, N>,
    above: Vector<A, N>,
) -> Vector<A, N> {
    let zero = Vector::new(A::new(0.0));
    let lower = select_many(v.less_equal(&Vector::new(A::new(-3.0))), zero, inside);
    select_many(v.greater_equal(&Vector::new(A::new(3.0))), above, lower)
}

/// `act(v)`.
#[cube]
pub(crate) fn value<A: Float, N: Size>(v: Vector<A, N>, #[comptime] curve: Curve) -> Vector<A, N> {
    if comptime!(curve == Curve::Silu) {
        or_zero::<A, N>(logistic::<A, N>(v), v)
    } else if comptime!(curve == Curve::Gelu) {
        or_zero::<A, N>(normal::<A, N>(v), v)
    } else if comptime!(curve == Curve::GeluTanh) {
        or_zero::<A, N>(logistic::<A, N>(inner::<A, N>(v)), v)
    } else if comptime!(curve == Curve::HardSwish) {
        let share = (v + Vector::new(A::new(3.0))) / Vector::new(A::new(6.0));
        hard::<A, N>(v, v * share, v)
    } else if comptime!(curve == Curve::Sigmoid) {
        logistic::<A, N>(v)
    } else {
        // Some devices compute it from exponentials that overflow.
        bounded::<A, N>(v, 30.0f32).tanh()
    }
}

/// `act'(v)`.
#[cube]
pub(crate) fn derivative<A: Float, N: Size>(
    v: Vector<A, N>,
    #[comptime] curve: Curve,
) -> Vector<A, N> {
    if comptime!(curve == Curve::Silu) {
        logistic::<A, N>(v) + or_zero::<A, N>(bell::<A, N>(v), v)
    } else if comptime!(curve == Curve::Gelu) {
        let half = Vector::new(A::new(0.5));
        let density = decay::<A, N>(v * v * half) * constant::<A, N>(HEIGHT);
        normal::<A, N>(v) + or_zero::<A, N>(density, v)
    } else if comptime!(curve == Curve::GeluTanh) {
        let inner = inner::<A, N>(v);
        let steep = v * v * constant::<A, N>(3.0 * CUBIC) + constant::<A, N>(STEEPNESS);
        logistic::<A, N>(inner) + or_zero::<A, N>(bell::<A, N>(inner), v * steep)
    } else if comptime!(curve == Curve::HardSwish) {
        let sloped = v / Vector::new(A::new(3.0)) + Vector::new(A::new(0.5));
        hard::<A, N>(v, sloped, Vector::new(A::new(1.0)))
    } else if comptime!(curve == Curve::Sigmoid) {
        bell::<A, N>(v)
    } else {
        bell::<A, N>(v + v) * Vector::new(A::new(4.0))
    }
}
