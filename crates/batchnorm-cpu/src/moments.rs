//! Mean and variance: how they are computed and merged.
//!
//! **Within a block** (some thousand values of a channel) one pass sums the differences from a *pilot* `p` and their squares:
//!
//! ```text
//! d = sum(x - p) / n          mean = p + d          m2 = sum((x - p)^2) - n * d^2
//! ```
//!
//! What makes or breaks this is the pilot. With `p = 0` it is the notorious `E[x^2] - E[x]^2`: with a mean of 1e4 and a standard deviation of 1
//! that leaves no digit of an `f32`. With a pilot near the mean next to nothing is subtracted. So the pilot is the mean of the blocks before
//! this one, or the mean of a sample of the first one, and whether it was near enough is known afterwards: where `n * d^2` is more than
//! three times `m2`, which costs two bits, the block is read once more (from a cache: it was read just now) for the squares of the differences
//! from the mean itself. For a constant channel all differences are exactly zero, so the mean is that constant exactly and `y` is exactly
//! `beta`, whatever the constant is.
//!
//! The mean is kept in `f64`, but that second reading needs it in the type of the arithmetic. For the rounded mean `r` its sum of squares is
//! `n * (mean - r)^2` too large, which is taken off again.
//!
//! **Between blocks** the pair `(mean, m2)` is merged (Chan, Golub and LeVeque), in `f64`:
//!
//! ```text
//! d = mean_b - mean_a      mean = mean_a + d * n_b / n      m2 = m2_a + m2_b + d^2 * n_a * n_b / n
//! ```
//!
//! blocks in sequence to chunks, chunks pairwise (`plan.rs`). Worked example: `[1, 3]` gives (2, 2) and `[5, 9]` gives (7, 8); merged
//! `d = 5`, mean `2 + 5 * 2/4 = 4.5`, m2 `2 + 8 + 25 * 4/4 = 35`, as for `[1, 3, 5, 9]` directly.
//!
//! **Overflow.** In `f32` a spread beyond 1e19 makes a square infinite. Such a block is computed once more in `f64`, so that `inv_std` and the
//! output are right up to the largest `f32`; only where the variance itself is reported in `f32` it is infinite. For `f64` there is nothing wider:
//! from a spread of 1e154 on the variance is infinite, `inv_std` zero and the output `beta`. NaN and infinity make both moments of their
//! channel NaN or infinite and touch no other channel.
//!
//! No values at all have mean 0 and m2 0.

/// Merges the moments `[mean, m2]` of two sets of `n_a` and `n_b` values.
#[inline(always)]
pub(crate) fn merge(
    n_a: f64,
    [mean_a, m2_a]: [f64; 2],
    n_b: f64,
    [mean_b, m2_b]: [f64; 2],
) -> [f64; 2] {
    if n_a == 0.0 {
        return [mean_b, m2_b];
    }
    let d = mean_b - mean_a;
    let share = n_b / (n_a + n_b);
    [mean_a + d * share, m2_a + m2_b + d * d * (n_a * share)]
}

/// `m2` from the squares of the differences from a pilot, which is `d` away from the mean; unless that loses more than two bits.
#[inline(always)]
pub(crate) fn about_pilot(squares: f64, n: f64, d: f64) -> Option<f64> {
    let excess = n * d * d;
    let m2 = squares - excess;
    // False for NaN, and for what has overflowed.
    (excess <= 3.0 * m2 && m2.is_finite()).then_some(m2)
}

/// `m2` without the part that is due to the rounding of the mean.
#[inline(always)]
pub(crate) fn without_rounding(m2: f64, n: f64, mean: f64, rounded: f64) -> f64 {
    let d = mean - rounded;
    let corrected = m2 - n * d * d;
    // Not `max`, which would turn NaN into zero.
    if corrected < 0.0 { 0.0 } else { corrected }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worked_example() {
        assert_eq!(merge(2.0, [2.0, 2.0], 2.0, [7.0, 8.0]), [4.5, 35.0]);
    }

    #[test]
    fn a_pilot_far_from_the_mean_is_noticed() {
        // The values 1 and 3 about the pilots 2, 2.5, 4.
        assert_eq!(about_pilot(2.0, 2.0, 0.0), Some(2.0));
        assert_eq!(about_pilot(2.5, 2.0, -0.5), Some(2.0));
        assert_eq!(about_pilot(10.0, 2.0, -2.0), None);
        assert_eq!(about_pilot(0.0, 2.0, 0.0), Some(0.0));
        for overflown in [f64::INFINITY, f64::NAN] {
            assert_eq!(about_pilot(overflown, 2.0, 0.0), None);
        }
    }

    #[test]
    fn merging_equal_constants_is_exact() {
        for c in [0.1, 1e10, -3.3e30] {
            assert_eq!(merge(3.0, [c, 0.0], 5.0, [c, 0.0]), [c, 0.0]);
        }
    }

    #[test]
    fn nothing_is_neutral() {
        assert_eq!(merge(0.0, [0.0, 0.0], 5.0, [2.0, 3.0]), [2.0, 3.0]);
        assert_eq!(merge(5.0, [2.0, 3.0], 0.0, [0.0, 0.0]), [2.0, 3.0]);
    }
}
