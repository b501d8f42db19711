//! Mean and variance: how they are computed and merged.
//!
//! **Within a block** (some thousand values of a channel) one pass sums the differences from a shift `s` and their squares:
//!
//! ```text
//! d = sum(x - s) / n          mean = s + d          m2 = sum((x - s)^2) - n * d^2
//! ```
//!
//! With `s = 0` this is `E[x^2] - E[x]^2`, which for a mean of 1e4 and a standard deviation of 1 leaves no digit of an `f32`. With a shift near the
//! mean next to nothing is subtracted. So the shift of a block is the mean of the blocks before it. The first block's is the mean of a sample, and
//! whether that was near enough is known afterwards: where `n * d^2` is more than three times `m2`, which costs two bits, the block is read again (from
//! a cache) about its mean. A block after at least as many values as it has itself need not be checked: its shift is their mean, so the merge
//! below adds at least `n * d^2 / 2` to the channel's `m2`, and what the block lost is a rounding error of that.
//!
//! For a constant channel all differences are exactly zero, so the mean is that constant exactly and `y` is exactly `beta`, whatever it is.
//!
//! **Between blocks** the pair `(mean, m2)` is merged (Chan, Golub and LeVeque), in `f64`:
//!
//! ```text
//! d = mean_b - mean_a      mean = mean_a + d * n_b / n      m2 = m2_a + m2_b + d^2 * n_a * n_b / n
//! ```
//!
//! blocks in sequence to partials, partials pairwise (`tiling.rs`). Worked example: `[1, 3]` gives (2, 2) and `[5, 9]` gives (7, 8); merged
//! `d = 5`, mean `2 + 5 * 2/4 = 4.5`, m2 `2 + 8 + 25 * 4/4 = 35`, as for `[1, 3, 5, 9]` directly.
//!
//! **Range.** In `f32` a difference beyond 1e19 has an infinite square, and one below 1e-19 loses digits or all of its square, which matters next to a
//! tiny epsilon. Such a block is read again with all differences multiplied by a power of two, so that `m2`, in `f64`, is right for every finite `f32`. The variance is infinite only where
//! it is reported in `f32`. The output also needs `x - mean` in `f32`, so it is right for magnitudes up to 1e38. For `f64` there is nothing wider: from
//! a spread of 1e154 on the variance is infinite, `inv_std` zero and the output `beta`, up to magnitudes of 1e304. NaN and infinity make both moments of
//! their channel NaN or infinite and touch no other channel.
//!
//! No values at all have mean 0 and m2 0.

use macerator::Simd;

use super::columns::{self, Columns};
use super::kernels::{PARAMS, Shifted};
use super::rows::{self, Ahead};
use super::tasks::{Arrays, Reduction, Scratch};
use super::tile::{Grid, Tile};
use crate::{Accum, Element};

/// Values of a run that give a first idea of the mean.
const SAMPLE: usize = 64;
/// Rows that do so across columns: an eighth of a block of few rows.
const SAMPLE_ROWS: usize = 8;
const FEWEST_SAMPLE_ROWS: usize = 4;

/// What differences are multiplied with where their squares overflow and underflow.
const DOWN: f64 = 1.0 / (1u128 << 80) as f64;
const UP: f64 = (1u128 << 100) as f64;
/// Sums of squares below this have lost digits to the end of the range of `f32`.
const TINY: f64 = UP.recip();
/// Readings of a block that all cases need: an overflowing one, a scaled one, and one about the mean that it found.
const MOST_READINGS: usize = 4;

/// The epsilon from which on squares that underflow in `f32` are nothing next to it.
const LARGE_EPSILON: f64 = 1e-30;

/// `[mean, m2]`; takes no parameters.
#[derive(Clone, Copy)]
pub(crate) struct Moments {
    /// A sum of squares below this may have underflowed, and matters.
    tiny: f64,
}

impl Moments {
    /// Moments that something is added to, or not even that.
    pub(crate) fn next_to<A: Accum>(epsilon: f64) -> Self {
        let matters = A::NARROW && epsilon < LARGE_EPSILON;
        Self {
            tiny: if matters { TINY } else { 0.0 },
        }
    }
}

/// What one reading of a channel's `n` values about a shift has found.
#[derive(Clone, Copy)]
struct Reading {
    n: f64,
    shift: f64,
    scale: f64,
    sum: f64,
    squares: f64,
}

impl Reading {
    /// The shift in the type of the arithmetic, as the kernel gets it: negative and scaled.
    #[inline(always)]
    fn parameter<A: Accum>(shift: f64, scale: f64) -> A {
        A::from_f64(-A::from_f64(shift).to_f64() * scale)
    }

    /// `[mean, m2]`.
    #[inline(always)]
    fn moments(&self) -> [f64; 2] {
        let d = self.sum / self.scale / self.n;
        let m2 = self.squares / self.scale / self.scale - self.n * d * d;
        let mean = self.shift + d;
        if self.squares == f64::INFINITY && mean.is_finite() {
            return [mean, f64::INFINITY];
        }
        // Not `max`, which would turn NaN into zero.
        [mean, if m2 < 0.0 { 0.0 } else { m2 }]
    }

    /// The shift and scale to read the block with once more, if this reading was not accurate. `first` says that nothing was known of the
    /// channel before.
    #[inline(always)]
    fn again<A: Accum>(&self, first: bool, tiny: f64) -> Option<(f64, f64)> {
        let [mean, m2] = self.moments();
        if !self.shift.is_finite() {
            return None;
        }
        if A::NARROW && self.scale == 1.0 {
            // A sum that has overflowed in both directions is NaN.
            if !self.squares.is_finite() {
                return Some((if mean.is_finite() { mean } else { self.shift }, DOWN));
            }
            if self.squares < tiny && self.shift.abs() < 1.0 {
                return Some((mean, UP));
            }
        }
        let d = mean - self.shift;
        let far = self.n * d * d > 3.0 * m2;
        ((first || self.scale != 1.0) && far && mean.is_finite()).then_some((mean, self.scale))
    }
}

impl<E: Element> Reduction<E> for Moments {
    /// Of `n_a + n_b` values. Without any before them, `b` stays what it is.
    #[inline(always)]
    fn merge(n_a: f64, [mean_a, m2_a]: [f64; 2], n_b: f64, [mean_b, m2_b]: [f64; 2]) -> [f64; 2] {
        if n_a == 0.0 {
            return [mean_b, m2_b];
        }
        let d = mean_b - mean_a;
        let share = n_b / (n_a + n_b);
        [mean_a + d * share, m2_a + m2_b + d * d * (n_a * share)]
    }

    #[inline(always)]
    fn along<S: Simd>(
        self,
        tile: &Tile<'_, E>,
        _params: [E::Accum; PARAMS],
        before: Option<f64>,
        ahead: Option<Ahead>,
    ) -> [f64; 2] {
        let Grid { rows, cols, .. } = tile.grid();
        let mut sampling = before.is_none();
        let (mut shift, mut scale) = (before.unwrap_or_else(|| tile.first()), 1.0);
        let mut readings = 0;
        loop {
            let mut part = if sampling {
                tile.view(0..1, 0..cols.min(SAMPLE))
            } else {
                tile.view(0..rows, 0..cols)
            };
            let mut params = [E::Accum::default(); PARAMS];
            params[0] = Reading::parameter(shift, scale);
            let kernel = Shifted {
                scale: E::Accum::from_f64(scale),
            };
            let [sum, squares] = rows::along::<S, E, _>(kernel, &mut part, params, ahead);
            let Grid { rows, cols, .. } = part.grid();
            let reading = Reading {
                n: (rows * cols) as f64,
                shift: -params[0].to_f64() / scale,
                scale,
                sum,
                squares,
            };
            let [mean, m2] = reading.moments();
            if sampling {
                sampling = false;
                shift = if mean.is_finite() { mean } else { shift };
                continue;
            }
            readings += 1;
            match reading.again::<E::Accum>(before.is_none(), self.tiny) {
                Some(next) if readings < MOST_READINGS => (shift, scale) = next,
                _ => return [mean, m2],
            }
        }
    }

    #[inline(always)]
    fn across<S: Simd>(
        self,
        mut tile: Tile<'_, E>,
        columns: Columns,
        _params: [&[E::Accum]; PARAMS],
        before: Option<&[f64]>,
        scratch: &mut Scratch<E::Accum>,
        [means, m2s]: [&mut [f64]; 2],
    ) {
        let Grid { rows, cols, .. } = tile.grid();
        let per_row = (columns.inner * columns.repeat) as f64;
        let first = before.is_none();
        let Arrays {
            channels: [shifts, sums, squares],
            parameters,
            columns: [expanded, column_sums, column_squares],
        } = scratch.arrays(columns.channels, cols);
        match before {
            Some(before) => shifts.copy_from_slice(before),
            None => {
                for (c, shift) in shifts.iter_mut().enumerate() {
                    let column = c * columns.inner;
                    *shift = tile.view(0..1, column..column + 1).first();
                }
            }
        }
        let (mut sampling, mut scale) = (first, 1.0);
        let mut pending: Option<Vec<Pending>> = None;
        loop {
            for (parameter, &shift) in parameters.iter_mut().zip(&*shifts) {
                *parameter = Reading::parameter(shift, scale);
            }
            columns.expand(parameters, expanded);
            column_sums.fill(E::Accum::default());
            column_squares.fill(E::Accum::default());
            let read_rows = if sampling {
                rows.min((rows / 8).clamp(FEWEST_SAMPLE_ROWS, SAMPLE_ROWS))
            } else {
                rows
            };
            let mut params = [&[][..]; PARAMS];
            params[0] = expanded;
            let kernel = Shifted {
                scale: E::Accum::from_f64(scale),
            };
            columns::across::<S, E, _>(
                kernel,
                &mut tile.window(0..read_rows, 0..cols),
                params,
                [&mut *column_sums, &mut *column_squares],
            );
            columns.fold(column_sums, sums);
            let n = read_rows as f64 * per_row;
            if sampling {
                sampling = false;
                for (shift, sum) in shifts.iter_mut().zip(&*sums) {
                    let mean = *shift + sum / n;
                    *shift = if mean.is_finite() { mean } else { *shift };
                }
                continue;
            }
            columns.fold(column_squares, squares);
            let reading = |c: usize| Reading {
                n,
                shift: -parameters[c].to_f64() / scale,
                scale,
                sum: sums[c],
                squares: squares[c],
            };
            let left = match &mut pending {
                None => {
                    let mut accurate = true;
                    let len = columns.channels;
                    let (means, m2s) = (&mut means[..len], &mut m2s[..len]);
                    let (sums, squares) = (&sums[..len], &squares[..len]);
                    let parameters = &parameters[..len];
                    for c in 0..len {
                        let (sum, squares) = (sums[c], squares[c]);
                        let d = sum / n;
                        let excess = n * d * d;
                        let m2 = squares - excess;
                        accurate &= (squares < f64::INFINITY) & (squares >= self.tiny);
                        accurate &= !first | (excess <= 3.0 * m2);
                        means[c] = -parameters[c].to_f64() + d;
                        m2s[c] = if m2 < 0.0 { 0.0 } else { m2 };
                    }
                    if accurate {
                        return;
                    }
                    for c in 0..columns.channels {
                        [means[c], m2s[c]] = reading(c).moments();
                    }
                    let again = |c: usize| reading(c).again::<E::Accum>(first, self.tiny);
                    pending.insert(
                        (0..columns.channels)
                            .map(|c| again(c).map(|a| (1, a)))
                            .collect(),
                    )
                }
                Some(left) => {
                    for (c, left) in left.iter_mut().enumerate() {
                        // What becomes of a channel does not depend on its neighbours.
                        let Some((readings, _)) = left.take_if(|(_, (_, s))| *s == scale) else {
                            continue;
                        };
                        [means[c], m2s[c]] = reading(c).moments();
                        *left = reading(c)
                            .again::<E::Accum>(first, self.tiny)
                            .filter(|_| readings + 1 < MOST_READINGS)
                            .map(|again| (readings + 1, again));
                    }
                    left
                }
            };
            let Some((_, (_, next))) = left.iter().flatten().next() else {
                return;
            };
            scale = *next;
            for (shift, left) in shifts.iter_mut().zip(&*left) {
                if let Some((_, (again, s))) = left
                    && *s == scale
                {
                    *shift = *again;
                }
            }
        }
    }
}

/// How often a channel was read, and with which shift and scale it is to be read next.
type Pending = Option<(usize, (f64, f64))>;

#[cfg(test)]
mod tests;
