//! Where the weights of positions lie, for the rows of a tile.

use std::mem::MaybeUninit;

use macerator::Simd;

use super::MAX_LANES;
use super::kernels::{Kernel, zero};
use super::lanes::{self, Reg};
use crate::tiling::GROUP_COLUMNS;
use crate::weighted::Weights;
use crate::{Accum, Layout};

/// Where the weights of the positions of a tile lie.
#[derive(Clone, Copy)]
pub(super) struct WeightMap<A> {
    /// Of the first position of the tile's rows.
    start: *const A,
    /// Weights of a row.
    stride: usize,
    /// Columns after which they repeat.
    period: usize,
    /// Columns of the tensor before the tile.
    skipped: usize,
    /// The same, less whole periods.
    phase: usize,
    /// How many rows of `width` columns the tile reads as one.
    fused: usize,
    width: usize,
}

impl<A: Accum> WeightMap<A> {
    /// Panics unless the weights are as many as the layout says; the public functions have refused that before.
    pub(super) fn new(layout: &Layout, weights: Weights<'_, A>) -> Self {
        weights.check(layout).expect("checked before");
        let flat = layout.flattened();
        let (values, period) = match weights {
            Weights::Shared(values) => (values, flat.inner()),
            Weights::Own(values) => (values, flat.columns()),
        };
        Self {
            start: values.as_ptr(),
            stride: period,
            period: period.max(1),
            skipped: 0,
            phase: 0,
            fused: 1,
            width: flat.columns(),
        }
    }

    /// Of a part of the tile that begins at this row and column.
    #[inline(always)]
    pub(super) fn part(self, row: usize, col: usize) -> Self {
        let skipped = self.skipped + col;
        Self {
            start: self.start.wrapping_add(row * self.fused * self.stride),
            skipped,
            phase: if skipped < self.period {
                skipped
            } else {
                skipped % self.period
            },
            ..self
        }
    }

    /// Of a tile, not cut yet, that reads so many rows of so many columns as one.
    #[inline(always)]
    pub(super) fn fuse_rows(self, fused: usize, width: usize) -> Self {
        Self {
            fused,
            width,
            ..self
        }
    }

    /// Whether the weights of a row of `cols` columns must be spread out.
    #[inline(always)]
    pub(super) fn are_spread(&self, cols: usize) -> bool {
        let same = self.period == 1 && self.fused == 1;
        !(same || self.in_order(cols))
    }

    /// Whether they lie in memory as the columns do: within a period; and where every position has its own, rows that are read as one follow each
    /// other.
    #[inline(always)]
    fn in_order(&self, cols: usize) -> bool {
        self.phase + cols <= self.period || (self.period == self.width && self.skipped == 0)
    }

    /// The weights of a row of `cols` columns. Where they are not in order, they are put there: one for all columns into register `slot` of `spread`,
    /// others all over it.
    ///
    /// # Safety
    ///
    /// The row must be in the tile, whose rows have `cols` columns; `spread` must be valid for writing [`SPREAD`] weights, for as long as the result is
    /// used.
    #[inline(always)]
    pub(super) unsafe fn row(
        &self,
        row: usize,
        cols: usize,
        slot: usize,
        spread: *mut A,
    ) -> WeightRow<A> {
        // SAFETY: positions of the tile have weights (`new`), of which these are the ones: `phase + cols` of a period, a period for each row that is
        // read as one, or one for the row. Nobody else has `spread`, and memory that may be uninitialised need not be.
        unsafe {
            let start = self.start.add(row * self.fused * self.stride);
            if self.in_order(cols) {
                return WeightRow {
                    start: start.add(self.phase),
                    columns: usize::MAX,
                };
            }
            if self.are_spread(cols) {
                let weights = (self.fused - 1) * self.stride + self.period;
                let weights = std::slice::from_raw_parts(start, weights);
                let room = std::slice::from_raw_parts_mut(spread.cast(), SPREAD);
                self.spread_out(weights, &mut room[..cols]);
                return WeightRow {
                    start: spread,
                    columns: usize::MAX,
                };
            }
            let register = spread.add(slot * MAX_LANES);
            for lane in 0..MAX_LANES {
                register.add(lane).write(start.read());
            }
            WeightRow {
                start: register,
                columns: 0,
            }
        }
    }

    /// Copies the weights of a row to `spread`: those of its period again and again, or of all rows that are read as one. A call, so that the kernels
    /// stay small.
    #[inline(never)]
    fn spread_out(&self, weights: &[A], spread: &mut [MaybeUninit<A>]) {
        let width = if self.fused == 1 {
            spread.len()
        } else {
            self.width
        };
        let rows = weights.chunks(self.stride);
        for (period, to) in rows.zip(spread.chunks_mut(width)) {
            // A row begins in the middle of a period. From its end on, what is there is copied behind itself, whole periods until the last time.
            let (after, before) = period.split_at(self.phase);
            let before = &before[..before.len().min(width)];
            let after = &after[..after.len().min(width - before.len())];
            to[..before.len()].write_copy_of_slice(before);
            let mut done = before.len() + after.len();
            to[before.len()..done].write_copy_of_slice(after);
            while done < width {
                let more = done.min(width - done);
                to.copy_within(..more, done);
                done += more;
            }
        }
    }
}

/// The most weights that are spread out: those of a group of columns.
pub(super) const SPREAD: usize = GROUP_COLUMNS;

/// The weights of one row of a tile.
#[derive(Clone, Copy)]
pub(super) struct WeightRow<A> {
    start: *const A,
    /// What is left of a column's number: all, or nothing where one register has them all.
    columns: usize,
}

impl<A: Accum> WeightRow<A> {
    /// For kernels without.
    pub(super) const NONE: Self = Self {
        start: std::ptr::null(),
        columns: 0,
    };

    /// The weights of `n` columns from `col` on.
    ///
    /// # Safety
    ///
    /// The columns must be in the row, and `n` at most the number of lanes. Not for [`NONE`](Self::NONE) unless `K` has no weights.
    #[inline(always)]
    pub(super) unsafe fn load<S: Simd, K: Kernel<A>>(&self, col: usize, n: usize) -> Reg<S, A> {
        if !K::WEIGHTED {
            return zero();
        }
        // SAFETY: the columns have weights there (`WeightMap::row`).
        unsafe { lanes::load(self.start.add(col & self.columns), n) }
    }
}
