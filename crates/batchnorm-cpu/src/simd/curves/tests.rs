//! Every curve against the reference, over the whole range of its argument and on every instruction set.

use macerator::{Simd, WithSimd};

use super::*;
use crate::reference;
use crate::simd::MAX_LANES;
use crate::{Activation, Isa};

const CURVES: [(Curve, Activation); 6] = [
    (Curve::Exponential(Exponential::Silu), Activation::Silu),
    (Curve::Exponential(Exponential::Gelu), Activation::Gelu),
    (
        Curve::Exponential(Exponential::GeluTanh),
        Activation::GeluTanh,
    ),
    (Curve::HardSwish, Activation::HardSwish),
    (
        Curve::Exponential(Exponential::Sigmoid),
        Activation::Sigmoid,
    ),
    (Curve::Exponential(Exponential::Tanh), Activation::Tanh),
];

/// One value or derivative.
fn one<A: Accum>(isa: Isa, curve: Curve, derivative: bool, z: A) -> A {
    isa.run(Lane {
        curve,
        derivative,
        z,
    })
}

struct Lane<A> {
    curve: Curve,
    derivative: bool,
    z: A,
}

impl<A: Accum> WithSimd for Lane<A> {
    type Output = A;

    #[inline(always)]
    fn with_simd<S: Simd>(self) -> A {
        let z = self.z.splat::<S>();
        let result = match self.derivative {
            false => value::<S, A>(self.curve, z),
            true => derivative::<S, A>(self.curve, z),
        };
        let mut lanes = [A::default(); MAX_LANES];
        // SAFETY: `lanes` is as long as the longest register.
        unsafe { A::vstore_unaligned(lanes.as_mut_ptr(), result) };
        lanes[0]
    }
}

/// Arguments of all magnitudes, then a fine grid where the curves bend and where their tails end.
fn arguments() -> impl Iterator<Item = f32> {
    let magnitudes = (0..0x7f80).map(|bits| f32::from_bits(bits << 16 | 0x1357));
    let grid = (0..60_000).map(|i| i as f32 * 2e-3);
    magnitudes.chain(grid).flat_map(|z| [z, -z])
}

/// Checks all arguments to `digits`, relative to the result; a derivative that crosses zero, to its two terms. `least` is the last digit of a result below
/// the normal range.
fn check<A: Accum>(digits: f64, least: f64) {
    for isa in Isa::available() {
        for (curve, activation) in CURVES {
            for z in arguments() {
                let z = f64::from(z);
                let expected = [
                    reference::value(activation, z),
                    reference::gradient(activation, z, 1.0),
                ];
                for (derivative, expected) in [false, true].into_iter().zip(expected) {
                    let got = one(isa, curve, derivative, A::from_f64(z)).to_f64();
                    let crossing = derivative && (-3.0..0.0).contains(&z);
                    let size = expected.abs().max(if crossing { 0.2 } else { 0.0 });
                    // The exponential of a rounded argument, times a large number.
                    let cubic = match curve {
                        Curve::Exponential(Exponential::GeluTanh) => {
                            1.0 + 2.0 * z.abs() + 0.1 * z.abs().powi(3)
                        }
                        _ => 1.0,
                    };
                    let (digits, least) = (digits * cubic, least * cubic);
                    let error = (got - expected).abs();
                    assert!(
                        error <= digits * size + least * z.abs().max(1.0),
                        "{curve:?}, derivative {derivative}, at {z:e} on {isa:?}: {got:e}, expected {expected:e}"
                    );
                }
            }
        }
    }
}

#[test]
fn f32_has_all_its_digits() {
    check::<f32>(4e-7, 3e-45);
}

#[test]
fn f64_has_thirteen_digits() {
    check::<f64>(1e-13, 1e-320);
}

#[test]
fn limits_are_reached_and_nan_stays() {
    for isa in Isa::available() {
        for (curve, activation) in CURVES {
            for derivative in [false, true] {
                let of = |z: f32| one(isa, curve, derivative, z);
                let expected = |z: f64| match derivative {
                    false => reference::value(activation, z) as f32,
                    true => reference::gradient(activation, z, 1.0) as f32,
                };
                for z in [f32::INFINITY, f32::MAX, 1e30, 1e4, 110.0] {
                    for z in [z, -z] {
                        assert_eq!(of(z), expected(f64::from(z)), "{curve:?} at {z}");
                    }
                }
                assert!(of(f32::NAN).is_nan(), "{curve:?}");
            }
        }
    }
}

#[test]
fn zero_and_one_are_exact() {
    for isa in Isa::available() {
        let at = |curve, z: f64| one(isa, Curve::Exponential(curve), false, z);
        assert_eq!(at(Exponential::Sigmoid, 0.0), 0.5);
        assert_eq!(at(Exponential::Tanh, 0.0), 0.0);
        assert_eq!(at(Exponential::Silu, 0.0), 0.0);
        assert_eq!(at(Exponential::Sigmoid, 800.0), 1.0);
        assert_eq!(at(Exponential::Sigmoid, -800.0), 0.0);
        assert_eq!(at(Exponential::Tanh, -60.0), -1.0);
    }
}
