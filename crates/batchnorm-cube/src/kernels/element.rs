//! What happens to a single vector of the tensor: its normalization, and the gradient behind the activation.

use cubecl::prelude::*;

use super::access::read;
use super::numbers::{Numbers, divisor, inverse_of_variance};
use super::weighted::or_mean;
use crate::activation::{activate, activation_grad};
use crate::blueprint::{ElementBlueprint, Parameters};

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

/// Reads them. What the rows of `center` are, [`Parameters`] tells; `channels` is their length.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(crate) fn affine<A: Float, P: Size>(
    center: &[Vector<A, P>],
    variance: &[Vector<A, P>],
    gamma: &[Vector<A, P>],
    beta: &[Vector<A, P>],
    channel: usize,
    channels: usize,
    numbers: &Numbers,
    #[comptime] parameters: Parameters,
) -> Affine<A, P> {
    let mean = center[channel];
    let one = Vector::new(A::new(1.0));
    if comptime!(parameters == Parameters::Prepared) {
        Affine::<A, P> {
            mean,
            low: center[channel + channels],
            inv_std: one,
            scale: center[channel + 2 * channels],
            shift: center[channel + 3 * channels],
        }
    } else {
        let inv_std = if comptime!(of_batch(parameters)) {
            center[channel + 3 * channels]
        } else if comptime!(parameters == Parameters::Packed) {
            inverse_of_variance::<A, P>(center[channel + 2 * channels], numbers)
        } else if comptime!(parameters == Parameters::Apart) {
            inverse_of_variance::<A, P>(variance[channel], numbers)
        } else {
            one
        };
        let low = if comptime!(two_parts(parameters)) {
            center[channel + channels]
        } else {
            Vector::new(A::new(0.0))
        };
        Affine::<A, P> {
            mean,
            low,
            inv_std,
            scale: gamma[channel] * inv_std,
            shift: beta[channel],
        }
    }
}

/// Whether the statistics are those of a training forward.
fn of_batch(parameters: Parameters) -> bool {
    matches!(parameters, Parameters::Batch | Parameters::Weighted)
}

/// Whether the mean has a second part.
fn two_parts(parameters: Parameters) -> bool {
    !matches!(parameters, Parameters::Apart | Parameters::Affine)
}

/// 1 over the values of a channel, or over the sum of their weights.
#[cube]
pub(crate) fn inverse_count<A: Float, P: Size>(
    center: &[Vector<A, P>],
    channel: usize,
    channels: usize,
    numbers: &Numbers,
    #[comptime] parameters: Parameters,
) -> Vector<A, P> {
    if comptime!(parameters == Parameters::Weighted) {
        let sum = divisor::<A, P>(center[channel + 4 * channels], numbers);
        Vector::new(A::new(1.0)) / sum
    } else {
        Vector::new(numbers.inverse_count.get::<A>())
    }
}

/// Parameters for every lane of a vector of the tensor.
#[cube]
pub(crate) fn spread<A: Float, P: Size, N: Size>(affine: Affine<A, P>) -> Affine<A, N> {
    Affine::<A, N> {
        mean: Vector::cast_from(affine.mean),
        low: Vector::cast_from(affine.low),
        inv_std: Vector::cast_from(affine.inv_std),
        scale: Vector::cast_from(affine.scale),
        shift: Vector::cast_from(affine.shift),
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
    let diff = if comptime!(two_parts(blueprint.parameters)) {
        diff - affine.low
    } else {
        diff
    };
    if comptime!(blueprint.weighting.any()) {
        or_mean::<A, N>(x, diff)
    } else {
        diff
    }
}

/// The argument of the activation.
#[cube]
fn preactivation<E: Numeric, A: Float, M: Size, N: Size>(
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
