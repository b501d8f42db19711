//! Kernels for weighted positions, and where the weights of a register lie.
//!
//! | kernel | inputs | parameters of the channel | sums | outputs |
//! |---|---|---|---|---|
//! | [`WeightedSums`] | x | shift | `w`, `w * (x - shift)`; with squares `w * (x - shift)`, `w * (x - shift)^2` | |
//! | [`WeightedNormalize`] | x, residual | mean, scale, shift | | y |
//! | [`WeightedGradientSums`] | x, dy, residual | mean, scale, shift | `g`, `g * (x - mean)` | |
//! | [`WeightedXGradient`] | x, dy, residual | mean, scale, shift, a, b, c | | x_grad, (residual_grad) |
//!
//! with `x_grad = a * g + w * (b * (x - mean) + c)`. A position whose weight is not above 0 is left out by selection: whatever it holds, it adds
//! nothing to the statistics, and where x is not finite there, the mean takes its place.

use macerator::{Mask, Simd};

use super::kernels::{Activate, Curved, INPUTS, Kernel, OUTPUTS, PARAMS, zero};
use super::lanes::{self, Reg};
use crate::activation::{Applied, Curve};
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

    /// The weights of `n` positions from this row and column on, and zeros behind them.
    ///
    /// # Safety
    ///
    /// The positions must be in the tile, and `n` at most the number of lanes.
    #[inline(always)]
    pub(super) unsafe fn load<S: Simd>(&self, (row, col): (usize, usize), n: usize) -> Reg<S, A> {
        // SAFETY: positions of the tile have weights (`new`), of which these are the ones.
        unsafe {
            let start = self.start.add(row * self.fused * self.stride);
            let at = self.phase + col;
            // Within a period; and where every position has its own, rows that are read as one follow each other.
            if at + n <= self.period || (self.period == self.width && self.skipped == 0) {
                return lanes::load(start.add(at), n);
            }
            if self.period == 1 && self.fused == 1 {
                return start.read().splat();
            }
            let mut values = [A::default(); super::MAX_LANES];
            for i in 0..n {
                let col = self.skipped + col + i;
                let (row, col) = (col / self.width, col % self.width);
                values[i] = start.add(row * self.stride + col % self.period).read();
            }
            A::vload_unaligned(values.as_ptr())
        }
    }
}

/// Sums over a channel, about a shift.
#[derive(Clone, Copy)]
pub(crate) struct WeightedSums<const SQUARES: bool>;

impl<A: Accum, const SQUARES: bool> Kernel<A> for WeightedSums<SQUARES> {
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
        [first, second]: &mut [Reg<S, A>; 2],
    ) -> [Reg<S, A>; OUTPUTS] {
        let weight = present::<S, A>(weight).select(weight, zero());
        let d = present::<S, A>(weight).select(x - *shift, zero());
        let weighted = weight * d;
        if SQUARES {
            *first += weighted;
            *second = weighted.mul_add(d, *second);
        } else {
            *first += weight;
            *second += weighted;
        }
        [zero(); OUTPUTS]
    }
}

#[inline(always)]
fn present<S: Simd, A: Accum>(weight: Reg<S, A>) -> Mask<S, A> {
    weight.gt(zero())
}

/// Any activation, in kernels that read a residual always. They are rare enough for one kernel to do for all.
#[derive(Clone, Copy)]
pub(crate) struct Any<A> {
    pub activation: Applied<A>,
    /// Whether what is read is a residual.
    pub residual: bool,
}

impl<A: Accum> Any<A> {
    /// `x - mean`, and `z`, what the activation is applied to.
    #[inline(always)]
    fn argument<S: Simd>(
        self,
        [x, residual]: [Reg<S, A>; 2],
        weight: Reg<S, A>,
        [mean, scale, shift, ..]: &[Reg<S, A>; PARAMS],
    ) -> (Reg<S, A>, Reg<S, A>) {
        let centred = x - *mean;
        #[allow(clippy::eq_op, reason = "0 but for what is not finite")]
        let finite = (centred - centred).eq(zero());
        let selected = finite.select(centred, zero());
        let centred = present::<S, A>(weight).select(centred, selected);
        let z = centred.mul_add(*scale, *shift);
        match self.residual {
            true => (centred, z + residual),
            false => (centred, z),
        }
    }

    /// `act(z)`.
    #[inline(always)]
    fn value<S: Simd>(self, z: Reg<S, A>) -> Reg<S, A> {
        match self.activation {
            Applied::Nothing => z,
            Applied::Pieces(pieces) => pieces.value::<S>(z),
            Applied::Curve(curve) => curved(curve).value::<S>(z),
        }
    }

    /// `x - mean` and `g = dy * act'(z)`.
    #[inline(always)]
    fn gradient<S: Simd>(
        self,
        [x, dy, residual]: [Reg<S, A>; INPUTS],
        weight: Reg<S, A>,
        params: &[Reg<S, A>; PARAMS],
    ) -> (Reg<S, A>, Reg<S, A>) {
        let (centred, z) = self.argument::<S>([x, residual], weight, params);
        let g = match self.activation {
            Applied::Nothing => dy,
            Applied::Pieces(pieces) => pieces.gradient::<S>(z, dy),
            Applied::Curve(curve) => curved(curve).gradient::<S>(z, dy),
        };
        (centred, g)
    }
}

/// Without a residual: it is in the argument already.
fn curved(curve: Curve) -> Curved {
    Curved {
        curve,
        residual: false,
    }
}

/// The output.
#[derive(Clone, Copy)]
pub(crate) struct WeightedNormalize<A>(pub Any<A>);

impl<A: Accum> Kernel<A> for WeightedNormalize<A> {
    const INPUTS: usize = 2;
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
        let (_, z) = self.0.argument::<S>([x, residual], weight, params);
        [self.0.value::<S>(z), zero()]
    }
}

/// The two sums that the gradients of gamma, beta and the statistics are made of.
#[derive(Clone, Copy)]
pub(crate) struct WeightedGradientSums<A>(pub Any<A>);

impl<A: Accum> Kernel<A> for WeightedGradientSums<A> {
    const INPUTS: usize = 3;
    const OUTPUTS: usize = 0;
    const PARAMS: usize = 3;
    const UNROLLED: bool = false;
    const WEIGHTED: bool = true;

    #[inline(always)]
    fn step<S: Simd>(
        self,
        inputs: [Reg<S, A>; INPUTS],
        weight: Reg<S, A>,
        params: &[Reg<S, A>; PARAMS],
        [sum, product]: &mut [Reg<S, A>; 2],
    ) -> [Reg<S, A>; OUTPUTS] {
        let (centred, g) = self.0.gradient::<S>(inputs, weight, params);
        *sum += g;
        *product = g.mul_add(centred, *product);
        [zero(); OUTPUTS]
    }
}

/// The gradients of the input and, if the tile has a place for it, of the residual.
#[derive(Clone, Copy)]
pub(crate) struct WeightedXGradient<A>(pub Any<A>);

impl<A: Accum> Kernel<A> for WeightedXGradient<A> {
    const INPUTS: usize = 3;
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
        let (centred, g) = self.0.gradient::<S>(inputs, weight, params);
        let [_, _, _, a, b, c] = *params;
        let through = centred.mul_add(b, c) * weight;
        let through = present::<S, A>(weight).select(through, zero());
        [g.mul_add(a, through), g]
    }
}
