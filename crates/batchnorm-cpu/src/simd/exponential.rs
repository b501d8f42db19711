//! The exponential function of a register.
//!
//! `-t = n ln(2) + r` with `|r| <= ln(2) / 2`, where `n ln(2)` is subtracted in two parts (Cody and Waite), the first of which has so few
//! digits that its product is exact. `q = exp(r) - 1` is the Taylor polynomial, whose remainder is below half a unit: `0.35^8 / 8!` is 6e-9, `0.35^14 / 14!` 5e-18.
//! Then `e = 2^n (1 + q)` and `1 - e = (1 - 2^n) - 2^n q`. The power of two is applied in two halves, since its exponent may leave the normal range.

#![allow(
    clippy::excessive_precision,
    reason = "constants as others have computed them"
)]

use macerator::Simd;

use super::lanes::Reg;
use crate::Accum;

#[inline(always)]
pub(super) fn constant<S: Simd, A: Accum>(value: f64) -> Reg<S, A> {
    A::from_f64(value).splat()
}

/// Coefficients from the highest power down, applied to `x`.
#[inline(always)]
pub(super) fn polynomial<S: Simd, A: Accum>(x: Reg<S, A>, coefficients: &[f64]) -> Reg<S, A> {
    let mut sum = constant(coefficients[0]);
    for i in 1..coefficients.len() {
        sum = x.mul_add(sum, constant(coefficients[i]));
    }
    sum
}

/// `exp(-(t + low))` and 1 less it, for `t >= 0` and a `low` that is small against 1.
#[inline(always)]
pub(super) fn exponential<S: Simd, A: Accum>(
    t: Reg<S, A>,
    low: Reg<S, A>,
) -> (Reg<S, A>, Reg<S, A>) {
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
