//! What happens to a single vector of the tensor: its normalization, and the gradient behind the activation.

use cubecl::prelude::*;

use super::access::read;
use crate::activation::{Numbers, activate, activation_grad};
use crate::blueprint::ElementBlueprint;

/// The parameters of the channel (or the channels) that a unit works on.
#[derive(CubeType, Clone, Copy)]
#[expand(derive(Clone, Copy))]
pub(crate) struct Affine<A: Float, N: Size> {
    /// The mean.
    pub mean: Vector<A, N>,
    /// What rounding took from the mean.
    pub low: Vector<A, N>,
    /// `1 / sqrt(variance + epsilon)`, or 1 where the scale is applied as it is.
    pub inv_std: Vector<A, N>,
    /// What the centred value is multiplied with.
    pub scale: Vector<A, N>,
    /// What is added to it.
    pub shift: Vector<A, N>,
}

/// Reads them. `channels` is the length of the rows of `center`.
#[cube]
pub(crate) fn affine<A: Float, N: Size, P: Size>(
    center: &[Vector<A, P>],
    scale: &[Vector<A, P>],
    shift: &[Vector<A, P>],
    channel: usize,
    channels: usize,
    #[comptime] blueprint: ElementBlueprint,
) -> Affine<A, N> {
    let mean = Vector::<A, N>::cast_from(center[channel]);
    let scale = Vector::<A, N>::cast_from(scale[channel]);
    let shift = Vector::<A, N>::cast_from(shift[channel]);
    if comptime!(blueprint.saved) {
        let inv_std = Vector::<A, N>::cast_from(center[channel + 2 * channels]);
        Affine::<A, N> {
            mean,
            low: Vector::cast_from(center[channel + channels]),
            inv_std,
            scale: scale * inv_std,
            shift,
        }
    } else {
        Affine::<A, N> {
            mean,
            low: Vector::new(A::new(0.0)),
            inv_std: Vector::new(A::new(1.0)),
            scale,
            shift,
        }
    }
}

/// `x - mean`, of a mean in two parts: `x - (mean + low)` would round the sum first.
#[cube]
pub(crate) fn centred<A: Float, N: Size>(
    x: Vector<A, N>,
    affine: Affine<A, N>,
    #[comptime] blueprint: ElementBlueprint,
) -> Vector<A, N> {
    let diff = x - affine.mean;
    if comptime!(blueprint.saved) {
        diff - affine.low
    } else {
        diff
    }
}

/// The argument of the activation.
#[cube]
pub(crate) fn preactivation<E: Numeric, A: Float, M: Size, N: Size>(
    centred: Vector<A, N>,
    affine: Affine<A, N>,
    residual: &[Vector<E, M>],
    index: usize,
    #[comptime] blueprint: ElementBlueprint,
) -> Vector<A, N> {
    let v = centred * affine.scale + affine.shift;
    if comptime!(blueprint.residual) {
        v + read::<E, A, M, N>(residual, index, comptime!(blueprint.shape))
    } else {
        v
    }
}

/// The output.
#[cube]
pub(crate) fn output<E: Numeric, A: Float, M: Size, N: Size>(
    x: Vector<A, N>,
    affine: Affine<A, N>,
    residual: &[Vector<E, M>],
    index: usize,
    numbers: &Numbers,
    #[comptime] blueprint: ElementBlueprint,
) -> Vector<A, N> {
    let centred = centred::<A, N>(x, affine, blueprint);
    let v = preactivation::<E, A, M, N>(centred, affine, residual, index, blueprint);
    activate::<A, N>(v, numbers, comptime!(blueprint.pieces))
}

/// The gradient of the activation's argument.
#[cube]
pub(crate) fn gradient<E: Numeric, A: Float, M: Size, N: Size>(
    centred: Vector<A, N>,
    dy: Vector<A, N>,
    affine: Affine<A, N>,
    residual: &[Vector<E, M>],
    index: usize,
    numbers: &Numbers,
    #[comptime] blueprint: ElementBlueprint,
) -> Vector<A, N> {
    if comptime!(blueprint.pieces.any()) {
        let v = preactivation::<E, A, M, N>(centred, affine, residual, index, blueprint);
        activation_grad::<A, N>(v, dy, numbers, comptime!(blueprint.pieces))
    } else {
        dy
    }
}
