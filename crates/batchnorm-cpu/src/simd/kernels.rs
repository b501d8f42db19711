//! The kernels, as what happens to one register of each tensor. They own no memory: the loops do (`rows.rs`, `columns.rs`).
//!
//! | kernel | inputs | parameters of the channel | sums | outputs |
//! |---|---|---|---|---|
//! | [`Shifted`] | x | -shift | `x - shift`, `(x - shift)^2` | |
//! | [`GradientSums`] | x, dy, (residual) | mean, scale, shift | `g`, `g * (x - mean)` | |
//! | [`Normalize`] | x, (residual) | mean, scale, shift | | y |
//! | [`XGradient`] | x, dy, (residual) | mean, scale, shift, a, b, c | | x_grad, (residual_grad) |
//!
//! | `weighted.rs` | the same for weighted positions | | | |
//!
//! where `z = (x - mean) * scale + shift (+ residual)`, `y = act(z)`, `g = dy * act'(z)` and `x_grad = a * g + b * (x - mean) + c`.
//!
//! Residual and activation are part of a kernel's type, so that the plain ones neither load nor compute anything for them.

use macerator::Simd;

use super::curves;
use super::lanes::Reg;
use crate::Accum;
use crate::activation::{Curve, Pieces};

/// The most tensors that a kernel reads; those that it does not have are zeros.
pub(crate) const INPUTS: usize = 3;
/// The most tensors that a kernel writes; what it returns for the others is ignored.
pub(crate) const OUTPUTS: usize = 2;
/// The most parameters that a kernel takes per channel.
pub(crate) const PARAMS: usize = 6;

/// One register of everything that a kernel reads to one of everything that it writes, and a contribution to two sums.
pub(crate) trait Kernel<A: Accum>: Copy + Send + Sync {
    /// How many tensors it reads.
    const INPUTS: usize;
    /// How many tensors it writes, or fewer if the tile has fewer, but the first. A kernel either writes or sums up.
    const OUTPUTS: usize;
    /// How many parameters it takes per channel.
    const PARAMS: usize;
    /// Whether several registers at a time are faster than one after the other: not where a step calls a function.
    const UNROLLED: bool;
    /// Whether it takes the weights of positions; zeros otherwise.
    const WEIGHTED: bool = false;

    fn step<S: Simd>(
        self,
        inputs: [Reg<S, A>; INPUTS],
        weight: Reg<S, A>,
        params: &[Reg<S, A>; PARAMS],
        sums: &mut [Reg<S, A>; 2],
    ) -> [Reg<S, A>; OUTPUTS];
}

#[inline(always)]
pub(super) fn zero<S: Simd, A: Accum>() -> Reg<S, A> {
    A::default().splat()
}

/// Differences from a value near the mean, and their squares. Both are scaled: by 1, or by a power of two where squares leave the type's range.
#[derive(Clone, Copy)]
pub(crate) struct Shifted<A> {
    /// The factor of x; the parameter is `-shift`, multiplied with it.
    pub scale: A,
}

impl<A: Accum> Kernel<A> for Shifted<A> {
    const INPUTS: usize = 1;
    const OUTPUTS: usize = 0;
    const PARAMS: usize = 1;
    const UNROLLED: bool = true;

    #[inline(always)]
    fn step<S: Simd>(
        self,
        [x, ..]: [Reg<S, A>; INPUTS],
        _weight: Reg<S, A>,
        [minus_shift, ..]: &[Reg<S, A>; PARAMS],
        [sum, squares]: &mut [Reg<S, A>; 2],
    ) -> [Reg<S, A>; OUTPUTS] {
        let d = x.mul_add(self.scale.splat(), *minus_shift);
        *sum += d;
        *squares = d.mul_add(d, *squares);
        [zero(); OUTPUTS]
    }
}

/// What a kernel applies to `z`.
pub(crate) trait Activate<A: Accum>: Copy + Send + Sync {
    /// Whether it depends on `z` at all.
    const ANY: bool;
    /// Whether it is not a call.
    const INLINE: bool;

    /// `z` with the residual, for a kernel that reads one.
    #[inline(always)]
    fn sum<S: Simd>(self, z: Reg<S, A>, residual: Reg<S, A>) -> Reg<S, A> {
        z + residual
    }

    /// `act(z)`.
    fn value<S: Simd>(self, z: Reg<S, A>) -> Reg<S, A>;

    /// `dy * act'(z)`. A derivative of 0 selects 0, it does not multiply: dy may be infinite.
    fn gradient<S: Simd>(self, z: Reg<S, A>, dy: Reg<S, A>) -> Reg<S, A>;
}

/// No activation.
#[derive(Clone, Copy)]
pub(crate) struct Nothing;

impl<A: Accum> Activate<A> for Nothing {
    const ANY: bool = false;
    const INLINE: bool = true;

    #[inline(always)]
    fn value<S: Simd>(self, z: Reg<S, A>) -> Reg<S, A> {
        z
    }

    #[inline(always)]
    fn gradient<S: Simd>(self, _z: Reg<S, A>, dy: Reg<S, A>) -> Reg<S, A> {
        dy
    }
}

impl<A: Accum> Activate<A> for Pieces<A> {
    const ANY: bool = true;
    const INLINE: bool = true;

    #[inline(always)]
    fn value<S: Simd>(self, z: Reg<S, A>) -> Reg<S, A> {
        let outer = z
            .max(self.floor.splat())
            .mul_add(self.slope.splat(), self.offset.splat());
        let y = z.lt(self.low.splat()).select(outer, z);
        let high = self.high.splat();
        z.gt(high).select(high, y)
    }

    #[inline(always)]
    fn gradient<S: Simd>(self, z: Reg<S, A>, dy: Reg<S, A>) -> Reg<S, A> {
        let slope = self.slope.splat::<S>();
        let outer = slope.eq(zero()).select(zero(), dy * slope);
        let g = z.le(self.low.splat()).select(outer, dy);
        z.ge(self.high.splat()).select(zero(), g)
    }
}

/// A curve, in kernels that read a residual always: if there is none, anything. A curve costs more than a load, and half as many kernels are compiled.
#[derive(Clone, Copy)]
pub(crate) struct Curved {
    pub curve: Curve,
    /// Whether what is read is a residual.
    pub residual: bool,
}

impl<A: Accum> Activate<A> for Curved {
    const ANY: bool = true;
    const INLINE: bool = false;

    #[inline(always)]
    fn sum<S: Simd>(self, z: Reg<S, A>, residual: Reg<S, A>) -> Reg<S, A> {
        match self.residual {
            true => z + residual,
            false => z,
        }
    }

    #[inline(always)]
    fn value<S: Simd>(self, z: Reg<S, A>) -> Reg<S, A> {
        curves::value::<S, A>(self.curve, z)
    }

    #[inline(always)]
    fn gradient<S: Simd>(self, z: Reg<S, A>, dy: Reg<S, A>) -> Reg<S, A> {
        let slope = curves::derivative::<S, A>(self.curve, z);
        slope.eq(zero()).select(zero(), dy * slope)
    }
}

/// Normalizes.
#[derive(Clone, Copy)]
pub(crate) struct Normalize<Act, const RESIDUAL: bool>(pub Act);

impl<A: Accum, Act: Activate<A>, const RESIDUAL: bool> Kernel<A> for Normalize<Act, RESIDUAL> {
    const INPUTS: usize = 1 + RESIDUAL as usize;
    const OUTPUTS: usize = 1;
    const PARAMS: usize = 3;
    const UNROLLED: bool = Act::INLINE;

    #[inline(always)]
    fn step<S: Simd>(
        self,
        [x, residual, _]: [Reg<S, A>; INPUTS],
        _weight: Reg<S, A>,
        [mean, scale, shift, ..]: &[Reg<S, A>; PARAMS],
        _sums: &mut [Reg<S, A>; 2],
    ) -> [Reg<S, A>; OUTPUTS] {
        let mut z = (x - *mean).mul_add(*scale, *shift);
        if RESIDUAL {
            z = self.0.sum(z, residual);
        }
        [self.0.value(z), zero()]
    }
}

/// The two sums that the gradients of gamma, beta and the batch statistics are made of.
#[derive(Clone, Copy)]
pub(crate) struct GradientSums<Act, const RESIDUAL: bool>(pub Act);

impl<A: Accum, Act: Activate<A>, const RESIDUAL: bool> Kernel<A> for GradientSums<Act, RESIDUAL> {
    const INPUTS: usize = 2 + RESIDUAL as usize;
    const OUTPUTS: usize = 0;
    const PARAMS: usize = if Act::ANY { 3 } else { 1 };
    const UNROLLED: bool = Act::INLINE;

    #[inline(always)]
    fn step<S: Simd>(
        self,
        inputs: [Reg<S, A>; INPUTS],
        _weight: Reg<S, A>,
        params: &[Reg<S, A>; PARAMS],
        [sum, product]: &mut [Reg<S, A>; 2],
    ) -> [Reg<S, A>; OUTPUTS] {
        let (centred, g) = gradient::<S, A, Act, RESIDUAL>(self.0, inputs, params);
        *sum += g;
        *product = g.mul_add(centred, *product);
        [zero(); OUTPUTS]
    }
}

/// The gradients of the input and, if the tile has a place for it, of the residual.
#[derive(Clone, Copy)]
pub(crate) struct XGradient<A, Act, const RESIDUAL: bool> {
    pub activation: Act,
    /// 0 if the statistics are constants. Then `x_grad = a * g` whatever x is: nothing is multiplied with a b of zero, because that is NaN for
    /// an infinite x.
    pub of_batch: A,
}

impl<A: Accum, Act: Activate<A>, const RESIDUAL: bool> Kernel<A> for XGradient<A, Act, RESIDUAL> {
    const INPUTS: usize = 2 + RESIDUAL as usize;
    const OUTPUTS: usize = 1 + RESIDUAL as usize;
    const PARAMS: usize = PARAMS;
    const UNROLLED: bool = Act::INLINE;

    #[inline(always)]
    fn step<S: Simd>(
        self,
        inputs: [Reg<S, A>; INPUTS],
        _weight: Reg<S, A>,
        params: &[Reg<S, A>; PARAMS],
        _sums: &mut [Reg<S, A>; 2],
    ) -> [Reg<S, A>; OUTPUTS] {
        let (centred, g) = gradient::<S, A, Act, RESIDUAL>(self.activation, inputs, params);
        let [_, _, _, a, b, c] = *params;
        let constant = self.of_batch.splat::<S>().eq(zero());
        let centred = constant.select(zero(), centred);
        [g.mul_add(a, centred.mul_add(b, c)), g]
    }
}

/// `x - mean` and `g = dy * act'(z)`.
#[inline(always)]
fn gradient<S: Simd, A: Accum, Act: Activate<A>, const RESIDUAL: bool>(
    activation: Act,
    [x, dy, residual]: [Reg<S, A>; INPUTS],
    [mean, scale, shift, ..]: &[Reg<S, A>; PARAMS],
) -> (Reg<S, A>, Reg<S, A>) {
    let centred = x - *mean;
    if !Act::ANY {
        return (centred, dy);
    }
    let mut z = centred.mul_add(*scale, *shift);
    if RESIDUAL {
        z = activation.sum(z, residual);
    }
    (centred, activation.gradient(z, dy))
}
