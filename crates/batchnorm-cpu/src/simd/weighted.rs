//! Kernels for weighted positions.
//!
//! | kernel | inputs | parameters of the channel | sums | outputs |
//! |---|---|---|---|---|
//! | [`WeightSums`] | w | | `w` | |
//! | [`WeightedSums`] | x | shift | `w * (x - shift)`, `w * (x - shift)^2` | |
//! | [`WeightedNormalize`] | x, (residual) | mean, scale, shift | | y |
//! | [`WeightedGradientSums`] | x, dy, (residual) | mean, scale, shift | `g`, `g * (x - mean)` | |
//! | [`WeightedXGradient`] | x, dy, (residual) | mean, scale, shift, a, b, c | | x_grad, (residual_grad) |
//!
//! with `x_grad = a * g + w * (b * (x - mean) + c)`. Those with an activation always read a residual: if there is none, anything.
//!
//! A position whose weight is not above 0 is left out by selection: whatever it holds, it adds nothing to the statistics, and where x is not
//! finite there, the mean takes its place.

use macerator::{Mask, Simd};

use super::kernels::{Activate, INPUTS, Kernel, OUTPUTS, PARAMS, zero};
use super::lanes::Reg;
use crate::Accum;

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
        Self::counted(x - mean, weight)
    }

    /// `z`, what the activation is applied to.
    #[inline(always)]
    fn argument<S: Simd, A: Accum>(
        self,
        centred: Reg<S, A>,
        residual: Reg<S, A>,
        weight: Reg<S, A>,
        [_, scale, shift, ..]: &[Reg<S, A>; PARAMS],
    ) -> Reg<S, A>
    where
        Act: Activate<A>,
    {
        let z = centred.mul_add(*scale, *shift);
        match Act::ANY && self.residual {
            true => z + Self::counted(residual, weight),
            false => z,
        }
    }

    /// The value, 0 where it is not finite at a position without a weight.
    #[inline(always)]
    fn counted<S: Simd, A: Accum>(value: Reg<S, A>, weight: Reg<S, A>) -> Reg<S, A> {
        #[allow(clippy::eq_op, reason = "0 but for what is not finite")]
        let finite = (value - value).eq(zero());
        let selected = finite.select(value, zero());
        present::<S, A>(weight).select(value, selected)
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
        let z = self.argument::<S, A>(centred, residual, weight, params);
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
        let z = self.0.argument::<S, A>(centred, residual, weight, params);
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
pub(crate) struct WeightedXGradient<A, Act> {
    pub behind: Behind<Act>,
    /// 0 if the statistics are constants, as for [`XGradient`](super::kernels::XGradient).
    pub of_batch: A,
}

impl<A: Accum, Act: Activate<A>> Kernel<A> for WeightedXGradient<A, Act> {
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
        let (centred, g) = self.behind.gradient::<S, A>(inputs, weight, params);
        let [_, _, _, a, b, c] = *params;
        // 0 where the position or the batch has no part in the statistics.
        let weight = weight * self.of_batch.splat();
        let through = centred.mul_add(b, c) * weight;
        let through = present::<S, A>(weight).select(through, zero());
        [g.mul_add(a, through), g]
    }
}
