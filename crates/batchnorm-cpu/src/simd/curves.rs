//! The activations that are not piecewise linear, register by register.
//!
//! | activation | value | derivative |
//! |---|---|---|
//! | SiLU | `z s(z)` | `s(z) + z s'(z)` |
//! | GELU | `z P(z)` | `P(z) + z p(z)` |
//! | GELU by tanh | `z s(v)` | `s(v) + z s'(v) v'`, where `v = sqrt(8 / pi) (z + 0.044715 z^3)` |
//! | hard swish | `z (z + 3) / 6` | `z / 3 + 1/2`; outside of -3 to 3, 0 and 0, or z and 1 |
//! | sigmoid | `s(z)` | `s'(z)` |
//! | tanh | `tanh(z)` | `4 s'(2 z)` |
//!
//! `s(v) = 1 / (1 + exp(-v))` is the logistic function, `p` the density of the standard normal and `P` its distribution function. (`1 + tanh(v) = 2 s(2 v)`.)
//!
//! All but hard swish come from `e = exp(-t)` with `t >= 0`, which cannot overflow, in forms that nothing cancels in, so that also the tails have all their
//! digits:
//!
//! ```text
//! s(v)  = 1 / (1 + e) where v >= 0, e / (1 + e) where v < 0       s'(v) = e / (1 + e)^2            t = |v|
//! tanh  = (1 - e) / (1 + e), with the sign of z                                                    t = 2 |z|
//! Q(z)  = e * R(|z|),  p(z) = e / sqrt(2 pi)                                                       t = z^2 / 2
//! P(z)  = 1 - Q(z) where z >= 0, Q(z) where z < 0
//! ```
//!
//! Far out `e` is exactly 0, and a factor of 0 selects 0: `z` may be infinite. NaN stays NaN.
//!
//! **Upper tail of the normal distribution.** `R(y) = exp(y^2 / 2) Q(y)`, that is `erfcx(y / sqrt(2)) / 2`, is `w` times a polynomial in `2 w - 1`, where `w = k / (k + y)`
//! maps 0 to infinity onto 1 to 0 (the substitution of Shepherd and Laframboise, Mathematics of Computation 36, 1981). The coefficients are those of
//! mpmath's `chebyfit` for `R / w`, for a `k` that makes the error small, 2e-9 and 1e-17, and
//! that is small itself: near 0 the rounding error of `w` counts `k` times.
//! The square of z is taken in two parts, as in fdlibm's `erfc`: what rounding takes from it would be multiplied with up to 100.

#![allow(
    clippy::excessive_precision,
    reason = "coefficients as they were computed"
)]

use macerator::{Simd, WithSimd};

use super::exponential::{constant, exponential, polynomial};
use super::lanes::Reg;
use crate::Accum;
use crate::activation::{Curve, Exponential};

/// A curve's value at each lane of a register.
#[inline(always)]
pub(super) fn value<S: Simd, A: Accum>(curve: Curve, z: Reg<S, A>) -> Reg<S, A> {
    match curve {
        Curve::HardSwish => {
            let share = (z + constant(3.0)) * constant(1.0 / 6.0);
            hard::<S, A>(z, z, z * share)
        }
        Curve::Exponential(curve) => call::<S, A>(curve, z, false),
    }
}

/// A curve's derivative at each lane of a register.
#[inline(always)]
pub(super) fn derivative<S: Simd, A: Accum>(curve: Curve, z: Reg<S, A>) -> Reg<S, A> {
    match curve {
        Curve::HardSwish => {
            let sloped = z.mul_add(constant(1.0 / 3.0), constant(0.5));
            hard::<S, A>(z, constant(1.0), sloped)
        }
        Curve::Exponential(curve) => call::<S, A>(curve, z, true),
    }
}

/// 0 up to z = -3, `inside` up to 3, then `above`.
#[inline(always)]
fn hard<S: Simd, A: Accum>(z: Reg<S, A>, above: Reg<S, A>, inside: Reg<S, A>) -> Reg<S, A> {
    let lower = z.le(constant(-3.0)).select(constant(0.0), inside);
    z.ge(constant(3.0)).select(above, lower)
}

/// Curves that are made of an exponential.
///
/// A call, and not inlined: the function is compiled once per instruction set, not at each of the hundred places that a kernel's loops have for a
/// step, and what the call costs is little against an exponential.
#[inline(always)]
fn call<S: Simd, A: Accum>(curve: Exponential, mut z: Reg<S, A>, derivative: bool) -> Reg<S, A> {
    let lanes = (&raw mut z).cast::<A>();
    // SAFETY: the code around this call runs only on processors that have the instruction set `S`. The lanes are those of a register of it.
    unsafe {
        S::vectorize(Apply {
            curve,
            derivative,
            lanes,
        });
    }
    z
}

struct Apply<A> {
    curve: Exponential,
    derivative: bool,
    /// The argument, then the result: valid for reading and writing a register's lanes of the instruction set that this is run with.
    lanes: *mut A,
}

impl<A: Accum> WithSimd for Apply<A> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self) {
        // SAFETY: see the field.
        unsafe {
            let z = A::vload_unaligned::<S>(self.lanes);
            let parts = Parts::new(self.curve, z);
            let result = match self.derivative {
                false => parts.value(self.curve),
                true => parts.derivative(self.curve),
            };
            A::vstore_unaligned(self.lanes, result);
        }
    }
}

/// What values and derivatives have in common.
struct Parts<S: Simd, A: Accum> {
    z: Reg<S, A>,
    /// What the logistic function is applied to; the magnitude of z for GELU.
    v: Reg<S, A>,
    /// `exp(-t)`, and 1 less it.
    e: Reg<S, A>,
    rest: Reg<S, A>,
}

/// `sqrt(8 / pi)`, and that times 0.044715.
const STEEPNESS: f64 = 1.595_769_121_605_731;
const CUBIC: f64 = 0.071_354_816_272_600_26;

impl<S: Simd, A: Accum> Parts<S, A> {
    #[inline(always)]
    fn new(curve: Exponential, z: Reg<S, A>) -> Self {
        let v = match curve {
            Exponential::Silu | Exponential::Sigmoid => z,
            Exponential::GeluTanh => z * (z * z).mul_add(constant(CUBIC), constant(STEEPNESS)),
            Exponential::Tanh => z + z,
            Exponential::Gelu => magnitude(z),
        };
        let (t, low) = match curve {
            Exponential::Gelu => half_square(v),
            _ => (magnitude(v), constant(0.0)),
        };
        let (e, rest) = exponential(t, low);
        Self { z, v, e, rest }
    }

    #[inline(always)]
    fn value(&self, curve: Exponential) -> Reg<S, A> {
        match curve {
            Exponential::Silu | Exponential::GeluTanh => or_zero(self.logistic(), self.z),
            Exponential::Gelu => or_zero(self.normal(), self.z),
            Exponential::Sigmoid => self.logistic(),
            Exponential::Tanh => {
                let one = constant::<S, A>(1.0);
                let size = self.rest / (one + self.e);
                let negative = self.z.lt(constant(0.0));
                negative.select(constant::<S, A>(0.0) - size, size)
            }
        }
    }

    #[inline(always)]
    fn derivative(&self, curve: Exponential) -> Reg<S, A> {
        match curve {
            Exponential::Silu => self.logistic() + or_zero(self.density(), self.z),
            Exponential::GeluTanh => {
                let inner = (self.z * self.z).mul_add(constant(3.0 * CUBIC), constant(STEEPNESS));
                self.logistic() + or_zero(self.density(), self.z * inner)
            }
            Exponential::Gelu => {
                const HEIGHT: f64 = 0.398_942_280_401_432_7;
                self.normal() + or_zero(self.e * constant(HEIGHT), self.z)
            }
            Exponential::Sigmoid => self.density(),
            Exponential::Tanh => self.density() * constant(4.0),
        }
    }

    /// `s(v)`.
    #[inline(always)]
    fn logistic(&self) -> Reg<S, A> {
        let one = constant(1.0);
        let negative = self.v.lt(constant(0.0));
        negative.select(self.e, one) / (one + self.e)
    }

    /// `s'(v)`.
    #[inline(always)]
    fn density(&self) -> Reg<S, A> {
        let one = constant::<S, A>(1.0);
        let inverse = one / (one + self.e);
        self.e * inverse * inverse
    }

    /// `P(z)`.
    #[inline(always)]
    fn normal(&self) -> Reg<S, A> {
        let k = if A::NARROW { TAIL_32.0 } else { TAIL_64.0 };
        let coefficients: &[f64] = if A::NARROW { &TAIL_32.1 } else { &TAIL_64.1 };
        let w = constant::<S, A>(k) / (constant::<S, A>(k) + self.v);
        let u = w + w - constant(1.0);
        let tail = self.e * w * polynomial(u, coefficients);
        let negative = self.z.lt(constant(0.0));
        negative.select(tail, constant::<S, A>(1.0) - tail)
    }
}

/// `share * z`, and 0 where the share is 0, whatever z is.
#[inline(always)]
fn or_zero<S: Simd, A: Accum>(share: Reg<S, A>, z: Reg<S, A>) -> Reg<S, A> {
    share.eq(constant(0.0)).select(constant(0.0), share * z)
}

#[inline(always)]
fn magnitude<S: Simd, A: Accum>(v: Reg<S, A>) -> Reg<S, A> {
    v.lt(constant(0.0)).select(constant::<S, A>(0.0) - v, v)
}

/// `y^2 / 2` as a sum of two, the first of which is exact. From a magnitude of 40 on it is what `exp` makes 0 of.
#[inline(always)]
fn half_square<S: Simd, A: Accum>(y: Reg<S, A>) -> (Reg<S, A>, Reg<S, A>) {
    let y = y.gt(constant(40.0)).select(constant(40.0), y);
    // Adding and subtracting this leaves multiples of 2^-8 (2^-20), whose squares are exact as far as `exp` is not 0: they have 24 (52) bits.
    let grain = if A::NARROW {
        1.5 * (1 << 15) as f64
    } else {
        1.5 * (1u64 << 32) as f64
    };
    let coarse = y + constant(grain) - constant(grain);
    let half = constant::<S, A>(0.5);
    (coarse * coarse * half, (y - coarse) * (y + coarse) * half)
}

/// `k`, and the coefficients of `R / w` from the highest power of `2 w - 1` down.
const TAIL_32: (f64, [f64; 12]) = (
    2.5,
    [
        -1.590704873e-5,
        1.13598695e-5,
        9.616279734e-5,
        -0.0001452108081,
        -0.0002988453876,
        0.001022078036,
        0.0006488465471,
        -0.006557463002,
        -0.003695569746,
        0.05279503009,
        0.1734768553,
        0.2826626611,
    ],
);
const TAIL_64: (f64, [f64; 23]) = (
    5.0,
    [
        -1.633238524885797261e-10,
        -1.007460425275971227e-10,
        1.889365503935473291e-9,
        1.003129987971571379e-9,
        -1.356511062658231083e-8,
        -7.163680103086446768e-9,
        8.680525189659550673e-8,
        6.621396143053723951e-8,
        -5.538675742087708331e-7,
        -7.955825281186484495e-7,
        3.336219823172693366e-6,
        9.952354237958436466e-6,
        -0.00001187513465729773117,
        -0.0001089797661801860014,
        -0.0001595738818961612707,
        0.0005986753476446439921,
        0.004159013360188323054,
        0.0138237277417628657,
        0.03300407323406856269,
        0.06270663133424275328,
        0.09906112319399535801,
        0.133076500578011537,
        0.1538386099500125919,
    ],
);

#[cfg(test)]
mod tests;
