//! Kernels for weighted positions, and where the weights of a register lie.
//!
//! | kernel | inputs | parameters of the channel | sums | outputs |
//! |---|---|---|---|---|
//! | [`WeightSums`] | w | | `w` | |
//! | [`WeightedSums`] | x | shift | `w * (x - shift)`, `w * (x - shift)^2` | |
//! | [`WeightedNormalize`] | x, (residual) | mean, scale, shift | | y |
//! | [`WeightedGradientSums`] | x, dy, (residual) | mean, scale, shift | `g`, `g * (x - mean)` | |
//! | [`WeightedXGradient`] | x, dy, (residual) | mean, scale, shift, a, b, c | | x_grad, (residual_grad) |
//!
//! with `x_grad = a * g + w * (b * (x - mean) + c)`. Those with an activation always read a residual: if there is none, anything. A position whose weight is not above 0 is left out by selection: whatever it holds, it adds
//! nothing to the statistics, and where x is not finite there, the mean takes its place.

use macerator::{Mask, Simd};

use super::MAX_LANES;
use super::kernels::{Activate, INPUTS, Kernel, OUTPUTS, PARAMS, zero};
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
        // SAFETY: positions of the tile have weights (`new`), of which these are the ones: `phase + cols` of a period, or one for the row.
        unsafe {
            let start = self.start.add(row * self.fused * self.stride);
            if self.in_order(cols) {
                return WeightRow {
                    start: start.add(self.phase),
                    columns: usize::MAX,
                };
            }
            if self.are_spread(cols) {
                self.spread_out(start, cols, spread);
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

    /// Copies the weights of `cols` columns to `spread`: those of a row again and again, or of all rows that are read as one. A call, so that the
    /// kernels stay small.
    ///
    /// # Safety
    ///
    /// As for [`row`](Self::row); `start` must be that of the row.
    #[inline(never)]
    unsafe fn spread_out(&self, start: *const A, cols: usize, spread: *mut A) {
        assert!(cols <= SPREAD && self.phase < self.period);
        let width = if self.fused == 1 { cols } else { self.width };
        for first in (0..cols).step_by(width) {
            // SAFETY: each row has a period of weights, and `spread` room for `cols`, to which `first` and a row of `width` add up at most: what is copied
            // is cut to that. A row begins in the middle of a period; from its end on, what is there is copied behind itself, whole periods until the last time.
            unsafe {
                let from = start.add(first / width * self.stride);
                let to = spread.add(first);
                let before = (self.period - self.phase).min(width);
                from.add(self.phase).copy_to_nonoverlapping(to, before);
                let after = self.phase.min(width - before);
                from.copy_to_nonoverlapping(to.add(before), after);
                let mut done = before + after;
                while done < width {
                    let more = done.min(width - done);
                    to.copy_to_nonoverlapping(to.add(done), more);
                    done += more;
                }
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

/// What a register of weights adds up to, those above 0.
#[derive(Clone, Copy)]
pub(crate) struct WeightSums;

impl<A: Accum> Kernel<A> for WeightSums {
    const INPUTS: usize = 1;
    const OUTPUTS: usize = 0;
    const PARAMS: usize = 0;
    const UNROLLED: bool = true;

    #[inline(always)]
    fn step<S: Simd>(
        self,
        [weight, ..]: [Reg<S, A>; INPUTS],
        _weight: Reg<S, A>,
        _params: &[Reg<S, A>; PARAMS],
        [sum, _]: &mut [Reg<S, A>; 2],
    ) -> [Reg<S, A>; OUTPUTS] {
        *sum += present::<S, A>(weight).select(weight, zero());
        [zero(); OUTPUTS]
    }
}

/// Sums over a channel, about a shift.
#[derive(Clone, Copy)]
pub(crate) struct WeightedSums;

impl<A: Accum> Kernel<A> for WeightedSums {
    const INPUTS: usize = 1;
    const OUTPUTS: usize = 0;
    const PARAMS: usize = 1;
    const UNROLLED: bool = true;
    const WEIGHTED: bool = true;

    #[inline(always)]
    fn step<S: Simd>(
        self,
        [x, ..]: [Reg<S, A>; INPUTS],
        weight: Reg<S, A>,
        [shift, ..]: &[Reg<S, A>; PARAMS],
        [sum, squares]: &mut [Reg<S, A>; 2],
    ) -> [Reg<S, A>; OUTPUTS] {
        let d = present::<S, A>(weight).select(x - *shift, zero());
        // d is 0 where the weight is anything but a weight.
        let weighted = present::<S, A>(weight).select(weight * d, zero());
        *sum += weighted;
        *squares = weighted.mul_add(d, *squares);
        [zero(); OUTPUTS]
    }
}

#[inline(always)]
fn present<S: Simd, A: Accum>(weight: Reg<S, A>) -> Mask<S, A> {
    weight.gt(zero())
}

/// What a kernel applies to normalized values, and whether what it reads behind them is a residual.
#[derive(Clone, Copy)]
pub(crate) struct Behind<Act> {
    pub activation: Act,
    pub residual: bool,
}

impl<Act> Behind<Act> {
    /// `x - mean`, 0 where x is not finite at a position without a weight.
    #[inline(always)]
    fn centred<S: Simd, A: Accum>(x: Reg<S, A>, weight: Reg<S, A>, mean: Reg<S, A>) -> Reg<S, A> {
        let centred = x - mean;
        #[allow(clippy::eq_op, reason = "0 but for what is not finite")]
        let finite = (centred - centred).eq(zero());
        let selected = finite.select(centred, zero());
        present::<S, A>(weight).select(centred, selected)
    }

    /// `z`, what the activation is applied to.
    #[inline(always)]
    fn argument<S: Simd, A: Accum>(
        self,
        centred: Reg<S, A>,
        residual: Reg<S, A>,
        [_, scale, shift, ..]: &[Reg<S, A>; PARAMS],
    ) -> Reg<S, A>
    where
        Act: Activate<A>,
    {
        let z = centred.mul_add(*scale, *shift);
        match Act::ANY && self.residual {
            true => z + residual,
            false => z,
        }
    }

    /// `x - mean` and `g = dy * act'(z)`.
    #[inline(always)]
    fn gradient<S: Simd, A: Accum>(
        self,
        [x, dy, residual]: [Reg<S, A>; INPUTS],
        weight: Reg<S, A>,
        params: &[Reg<S, A>; PARAMS],
    ) -> (Reg<S, A>, Reg<S, A>)
    where
        Act: Activate<A>,
    {
        let centred = Self::centred::<S, A>(x, weight, params[0]);
        if !Act::ANY {
            return (centred, dy);
        }
        let z = self.argument::<S, A>(centred, residual, params);
        (centred, self.activation.gradient::<S>(z, dy))
    }
}

/// The output.
#[derive(Clone, Copy)]
pub(crate) struct WeightedNormalize<Act>(pub Behind<Act>);

impl<A: Accum, Act: Activate<A>> Kernel<A> for WeightedNormalize<Act> {
    const INPUTS: usize = 1 + Act::ANY as usize;
    const OUTPUTS: usize = 1;
    const PARAMS: usize = 3;
    const UNROLLED: bool = false;
    const WEIGHTED: bool = true;

    #[inline(always)]
    fn step<S: Simd>(
        self,
        [x, residual, _]: [Reg<S, A>; INPUTS],
        weight: Reg<S, A>,
        params: &[Reg<S, A>; PARAMS],
        _sums: &mut [Reg<S, A>; 2],
    ) -> [Reg<S, A>; OUTPUTS] {
        let centred = Behind::<Act>::centred::<S, A>(x, weight, params[0]);
        let z = self.0.argument::<S, A>(centred, residual, params);
        [self.0.activation.value::<S>(z), zero()]
    }
}

/// The two sums that the gradients of gamma, beta and the statistics are made of.
#[derive(Clone, Copy)]
pub(crate) struct WeightedGradientSums<Act>(pub Behind<Act>);

impl<A: Accum, Act: Activate<A>> Kernel<A> for WeightedGradientSums<Act> {
    const INPUTS: usize = 2 + Act::ANY as usize;
    const OUTPUTS: usize = 0;
    const PARAMS: usize = if Act::ANY { 3 } else { 1 };
    const UNROLLED: bool = Act::INLINE;
    const WEIGHTED: bool = true;

    #[inline(always)]
    fn step<S: Simd>(
        self,
        inputs: [Reg<S, A>; INPUTS],
        weight: Reg<S, A>,
        params: &[Reg<S, A>; PARAMS],
        [sum, product]: &mut [Reg<S, A>; 2],
    ) -> [Reg<S, A>; OUTPUTS] {
        let (centred, g) = self.0.gradient::<S, A>(inputs, weight, params);
        *sum += g;
        *product = g.mul_add(centred, *product);
        [zero(); OUTPUTS]
    }
}

/// The gradients of the input and, if the tile has a place for it, of the residual.
#[derive(Clone, Copy)]
pub(crate) struct WeightedXGradient<Act>(pub Behind<Act>);

impl<A: Accum, Act: Activate<A>> Kernel<A> for WeightedXGradient<Act> {
    const INPUTS: usize = 2 + Act::ANY as usize;
    const OUTPUTS: usize = 2;
    const PARAMS: usize = PARAMS;
    const UNROLLED: bool = false;
    const WEIGHTED: bool = true;

    #[inline(always)]
    fn step<S: Simd>(
        self,
        inputs: [Reg<S, A>; INPUTS],
        weight: Reg<S, A>,
        params: &[Reg<S, A>; PARAMS],
        _sums: &mut [Reg<S, A>; 2],
    ) -> [Reg<S, A>; OUTPUTS] {
        let (centred, g) = self.0.gradient::<S, A>(inputs, weight, params);
        let [_, _, _, a, b, c] = *params;
        let through = centred.mul_add(b, c) * weight;
        let through = present::<S, A>(weight).select(through, zero());
        [g.mul_add(a, through), g]
    }
}
