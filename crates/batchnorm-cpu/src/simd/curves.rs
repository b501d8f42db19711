//! The activations that are not piecewise linear, and the exponential function that they are made of, register by register.
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
//! Everything comes from `e = exp(-t)` with `t >= 0`, which cannot overflow, in forms that nothing cancels in, so that also the tails have all their
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
//! **Exponential.** `-t = n ln(2) + r` with `|r| <= ln(2) / 2`, where `n ln(2)` is subtracted in two parts (Cody and Waite), the first of which has so few
//! digits that its product is exact. `q = exp(r) - 1` is the Taylor polynomial, whose remainder is below half a unit: `0.35^8 / 8!` is 6e-9, `0.35^14 / 14!` 5e-18.
//! Then `e = 2^n (1 + q)` and `1 - e = (1 - 2^n) - 2^n q`. The power of two is applied in two halves, since its exponent may leave the normal range.
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

use super::lanes::Reg;
use crate::Accum;
use crate::activation::Curve;

/// Applies a curve, or its derivative, to a register.
///
/// A call, and not inlined: the function is compiled once per instruction set, not at each of the hundred places that a kernel's loops have for a
/// step, and what the call costs is little against an exponential.
#[inline(always)]
pub(super) fn call<S: Simd, A: Accum>(
    curve: Curve,
    mut z: Reg<S, A>,
    derivative: bool,
) -> Reg<S, A> {
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
    curve: Curve,
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

#[inline(always)]
fn constant<S: Simd, A: Accum>(value: f64) -> Reg<S, A> {
    A::from_f64(value).splat()
}

/// `sqrt(8 / pi)`, and that times 0.044715.
const STEEPNESS: f64 = 1.595_769_121_605_731;
const CUBIC: f64 = 0.071_354_816_272_600_26;

impl<S: Simd, A: Accum> Parts<S, A> {
    #[inline(always)]
    fn new(curve: Curve, z: Reg<S, A>) -> Self {
        let v = match curve {
            Curve::Silu | Curve::Sigmoid | Curve::HardSwish => z,
            Curve::GeluTanh => z * (z * z).mul_add(constant(CUBIC), constant(STEEPNESS)),
            Curve::Tanh => z + z,
            Curve::Gelu => magnitude(z),
        };
        let (t, low) = match curve {
            Curve::Gelu => half_square(v),
            _ => (magnitude(v), constant(0.0)),
        };
        let (e, rest) = exponential(t, low);
        Self { z, v, e, rest }
    }

    #[inline(always)]
    fn value(&self, curve: Curve) -> Reg<S, A> {
        match curve {
            Curve::Silu | Curve::GeluTanh => or_zero(self.logistic(), self.z),
            Curve::Gelu => or_zero(self.normal(), self.z),
            Curve::Sigmoid => self.logistic(),
            Curve::Tanh => {
                let one = constant::<S, A>(1.0);
                let size = self.rest / (one + self.e);
                let negative = self.z.lt(constant(0.0));
                negative.select(constant::<S, A>(0.0) - size, size)
            }
            Curve::HardSwish => {
                let share = (self.z + constant(3.0)) * constant(1.0 / 6.0);
                self.hard(self.z, self.z * share)
            }
        }
    }

    #[inline(always)]
    fn derivative(&self, curve: Curve) -> Reg<S, A> {
        match curve {
            Curve::Silu => self.logistic() + or_zero(self.density(), self.z),
            Curve::GeluTanh => {
                let inner = (self.z * self.z).mul_add(constant(3.0 * CUBIC), constant(STEEPNESS));
                self.logistic() + or_zero(self.density(), self.z * inner)
            }
            Curve::Gelu => {
                const HEIGHT: f64 = 0.398_942_280_401_432_7;
                self.normal() + or_zero(self.e * constant(HEIGHT), self.z)
            }
            Curve::Sigmoid => self.density(),
            Curve::Tanh => self.density() * constant(4.0),
            Curve::HardSwish => {
                let sloped = self.z.mul_add(constant(1.0 / 3.0), constant(0.5));
                self.hard(constant(1.0), sloped)
            }
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

    /// 0 up to z = -3, `inside` up to 3, then `above`.
    #[inline(always)]
    fn hard(&self, above: Reg<S, A>, inside: Reg<S, A>) -> Reg<S, A> {
        let lower = self.z.le(constant(-3.0)).select(constant(0.0), inside);
        self.z.ge(constant(3.0)).select(above, lower)
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

/// Coefficients from the highest power down, applied to `x`.
#[inline(always)]
fn polynomial<S: Simd, A: Accum>(x: Reg<S, A>, coefficients: &[f64]) -> Reg<S, A> {
    let mut sum = constant(coefficients[0]);
    for i in 1..coefficients.len() {
        sum = x.mul_add(sum, constant(coefficients[i]));
    }
    sum
}

/// `exp(-(t + low))` and 1 less it, for `t >= 0` and a `low` that is small against 1.
#[inline(always)]
fn exponential<S: Simd, A: Accum>(t: Reg<S, A>, low: Reg<S, A>) -> (Reg<S, A>, Reg<S, A>) {
    // Beyond it the result is 0.
    let most = if A::NARROW { 105.0 } else { 746.0 };
    let t = t.gt(constant(most)).select(constant(most), t);
    let n = nearest(t * constant(-std::f64::consts::LOG2_E));
    let [high, rest] = if A::NARROW { LN_2_32 } else { LN_2_64 };
    let r = n.mul_add(constant(-high), constant::<S, A>(0.0) - t);
    let r = n.mul_add(constant(-rest), r) - low;
    let terms: &[f64] = if A::NARROW { &TAYLOR[6..] } else { &TAYLOR };
    let q = r * polynomial(r, terms);
    let half = nearest(n * constant(0.5));
    let (first, second) = (power_of_two(half), power_of_two(n - half));
    let scale = first * second;
    let e = q.mul_add(first, first) * second;
    (e, (constant::<S, A>(1.0) - scale) - scale * q)
}

/// `1 / k!` for k from 13 down to 1.
const TAYLOR: [f64; 13] = [
    1.0 / 6227020800.0,
    1.0 / 479001600.0,
    1.0 / 39916800.0,
    1.0 / 3628800.0,
    1.0 / 362880.0,
    1.0 / 40320.0,
    1.0 / 5040.0,
    1.0 / 720.0,
    1.0 / 120.0,
    1.0 / 24.0,
    1.0 / 6.0,
    1.0 / 2.0,
    1.0,
];

/// `ln(2)` in two parts; the first of 9 and of 33 bits, as in Cephes' `expf` and fdlibm's `exp`.
const LN_2_32: [f64; 2] = [0.693359375, -2.12194440e-4];
const LN_2_64: [f64; 2] = [6.931_471_803_691_238_2e-1, 1.908_214_929_270_587_7e-10];

/// The nearest whole number, of a magnitude below 2^22: at 1.5 * 2^23 (2^52), whole numbers are all that there is.
#[inline(always)]
fn nearest<S: Simd, A: Accum>(v: Reg<S, A>) -> Reg<S, A> {
    let whole = constant::<S, A>(if A::NARROW { WHOLE_32 } else { WHOLE_64 });
    v + whole - whole
}

const WHOLE_32: f64 = 12582912.0;
const WHOLE_64: f64 = 6755399441055744.0;

/// `2^n` of a whole number that is an exponent of the type: adding it where whole numbers are the last digits leaves it, biased, in the lowest bits,
/// from where it is shifted into its place.
#[inline(always)]
fn power_of_two<S: Simd, A: Accum>(n: Reg<S, A>) -> Reg<S, A> {
    if A::NARROW {
        let biased = n + constant(WHOLE_32 + 127.0);
        (biased.reinterpret::<u32>() << 23).reinterpret()
    } else {
        let biased = n + constant(WHOLE_64 + 1023.0);
        (biased.reinterpret::<u64>() << 52).reinterpret()
    }
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
