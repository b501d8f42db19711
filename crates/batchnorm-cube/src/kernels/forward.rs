//! Training forward and normalization.
//!
//! Where one cube has a channel to itself, `train_whole` is the whole forward: statistics, running update, output; the second read of the
//! channel meets a warm cache. Otherwise there are three launches: `moments_partial`, `train_finish`, `normalize`.

use cubecl::prelude::*;

use super::access::{read, write};
use super::element::{Affine, affine, output};
use super::merge::Partial;
use super::moments::{merge_splits, reduce, two_floats};
use super::walk::{Geometry, Walk};
use crate::activation::Numbers;
use crate::blueprint::{CubeShape, ElementBlueprint, Merge};

/// The numbers of a training step.
#[derive(CubeType, CubeLaunch)]
pub(crate) struct Step {
    /// 1; see `two_floats`.
    pub one: InputScalar,
    /// Added to the variance.
    pub epsilon: InputScalar,
    /// Weight of this batch in the running statistics.
    pub factor: InputScalar,
    /// What the batch's variance is multiplied with on its way into the running one.
    pub correction: InputScalar,
}

/// What a batch leaves behind for every channel.
#[derive(CubeType, Clone, Copy)]
#[expand(derive(Clone, Copy))]
struct Statistics<A: Float, P: Size> {
    mean: Vector<A, P>,
    low: Vector<A, P>,
    variance: Vector<A, P>,
    inv_std: Vector<A, P>,
}

#[cube]
fn statistics<A: Float, P: Size>(
    part: Partial<A, P>,
    shift: Vector<A, P>,
    step: &Step,
) -> Statistics<A, P> {
    let zero = Vector::<A, P>::new(A::new(0.0));
    let (mean, low) = two_floats::<A, P>(shift, part.first, step.one.get::<A>());
    // Rounding can take M2 below 0 by a digit; NaN passes.
    let m2 = select_many(part.second.less_than(&zero), zero, part.second);
    let variance = m2 / Vector::new(part.count);
    let deviation = (variance + Vector::new(step.epsilon.get::<A>())).sqrt();
    Statistics::<A, P> {
        mean,
        low,
        variance,
        inv_std: Vector::new(A::new(1.0)) / deviation,
    }
}

/// `(1 - factor) * running + factor * batch`, where a weight of 0 also drops NaN and infinity.
#[cube]
fn running<A: Float, P: Size>(
    running: Vector<A, P>,
    batch: Vector<A, P>,
    factor: A,
) -> Vector<A, P> {
    let keep = A::new(1.0) - factor;
    let blend = running * Vector::new(keep) + batch * Vector::new(factor);
    let kept = select(factor == A::new(0.0), running, blend);
    select(factor == A::new(1.0), batch, kept)
}

#[cube]
#[allow(clippy::too_many_arguments)]
fn store_statistics<A: Float, P: Size>(
    statistics: Statistics<A, P>,
    running_mean: &[Vector<A, P>],
    running_var: &[Vector<A, P>],
    mean: &mut [Vector<A, P>],
    variance: &mut [Vector<A, P>],
    saved: &mut [Vector<A, P>],
    new_running_mean: &mut [Vector<A, P>],
    new_running_var: &mut [Vector<A, P>],
    channel: usize,
    channels: usize,
    step: &Step,
    #[comptime] with_mean: bool,
    #[comptime] update: bool,
) {
    if comptime!(with_mean) {
        mean[channel] = statistics.mean;
    }
    variance[channel] = statistics.variance;
    saved[channel] = statistics.mean;
    saved[channel + channels] = statistics.low;
    saved[channel + 2 * channels] = statistics.inv_std;
    if comptime!(update) {
        let factor = step.factor.get::<A>();
        let corrected = statistics.variance * Vector::new(step.correction.get::<A>());
        new_running_mean[channel] = running::<A, P>(running_mean[channel], statistics.mean, factor);
        new_running_var[channel] = running::<A, P>(running_var[channel], corrected, factor);
    }
}

/// The output of everything that a cube walks over.
#[cube]
fn sweep<E: Numeric, A: Float, M: Size, N: Size>(
    x: &[Vector<E, M>],
    residual: &[Vector<E, M>],
    y: &mut [Vector<E, M>],
    affine: Affine<A, N>,
    geometry: &Geometry,
    numbers: &Numbers,
    #[comptime] blueprint: ElementBlueprint,
) {
    let shape = comptime!(blueprint.shape);
    let mut walk = Walk::new(geometry, shape);
    for _ in 0..walk.count {
        let i = walk.index;
        let value = read::<E, A, M, N>(x, i, shape);
        let value = output::<E, A, M, N>(value, affine, residual, i, numbers, blueprint);
        write::<E, A, M, N>(y, i, value, shape);
        walk.advance(shape);
    }
}

/// `y = act((x - mean) * scale + shift + residual)`.
///
/// `y` may be `x`: a unit reads an element before it writes it, and no other unit reads it.
#[cube(launch_unchecked)]
pub(crate) fn normalize<E: Numeric, A: Float, M: Size, N: Size, P: Size>(
    x: &[Vector<E, M>],
    residual: &[Vector<E, M>],
    y: &mut [Vector<E, M>],
    center: &[Vector<A, P>],
    scale: &[Vector<A, P>],
    shift: &[Vector<A, P>],
    geometry: &Geometry,
    numbers: &Numbers,
    #[comptime] blueprint: ElementBlueprint,
    #[define(E, A)] _dtypes: [ElemType; 2],
) {
    let walk = Walk::new(geometry, comptime!(blueprint.shape));
    let affine = affine::<A, N, P>(
        center,
        scale,
        shift,
        walk.channel,
        geometry.channels,
        blueprint,
    );
    sweep::<E, A, M, N>(x, residual, y, affine, geometry, numbers, blueprint);
}

/// The statistics of every channel from those of the splits, and the running update.
#[cube(launch_unchecked)]
pub(crate) fn train_finish<A: Float, P: Size>(
    partials: &[Vector<A, P>],
    running_mean: &[Vector<A, P>],
    running_var: &[Vector<A, P>],
    mean: &mut [Vector<A, P>],
    variance: &mut [Vector<A, P>],
    saved: &mut [Vector<A, P>],
    new_running_mean: &mut [Vector<A, P>],
    new_running_var: &mut [Vector<A, P>],
    geometry: &Geometry,
    step: &Step,
    #[comptime] with_mean: bool,
    #[comptime] update: bool,
    #[comptime] shape: CubeShape,
    #[define(A)] _dtype: ElemType,
) {
    let part = merge_splits::<A, P>(partials, geometry, comptime!(Merge::Moments), shape);
    let walk = Walk::new(geometry, shape);
    if walk.writes {
        let shift = partials[3 * geometry.outer * geometry.channels + walk.channel];
        store_statistics::<A, P>(
            statistics::<A, P>(part, shift, step),
            running_mean,
            running_var,
            mean,
            variance,
            saved,
            new_running_mean,
            new_running_var,
            walk.channel,
            geometry.channels,
            step,
            with_mean,
            update,
        );
    }
}

/// The whole forward of the cube's channels.
///
/// `y` may be `x`: all units have read the channel's first value before the barrier that ends the reduction (without a barrier a unit has
/// its channels to itself), and in the sweep a unit reads an element before it writes it.
#[cube(launch_unchecked)]
pub(crate) fn train_whole<E: Numeric, A: Float, M: Size, N: Size, P: Size>(
    x: &[Vector<E, M>],
    residual: &[Vector<E, M>],
    y: &mut [Vector<E, M>],
    gamma: &[Vector<A, P>],
    beta: &[Vector<A, P>],
    running_mean: &[Vector<A, P>],
    running_var: &[Vector<A, P>],
    mean: &mut [Vector<A, P>],
    variance: &mut [Vector<A, P>],
    saved: &mut [Vector<A, P>],
    new_running_mean: &mut [Vector<A, P>],
    new_running_var: &mut [Vector<A, P>],
    geometry: &Geometry,
    numbers: &Numbers,
    step: &Step,
    #[comptime] with_mean: bool,
    #[comptime] update: bool,
    #[comptime] blueprint: ElementBlueprint,
    #[define(E, A)] _dtypes: [ElemType; 2],
) {
    let shape = comptime!(blueprint.shape);
    let moments = reduce::<E, A, M, N, P>(x, geometry, shape);
    let statistics = statistics::<A, P>(moments.part, moments.shift, step);

    let walk = Walk::new(geometry, shape);
    if walk.writes {
        store_statistics::<A, P>(
            statistics,
            running_mean,
            running_var,
            mean,
            variance,
            saved,
            new_running_mean,
            new_running_var,
            walk.channel,
            geometry.channels,
            step,
            with_mean,
            update,
        );
    }

    let affine = Affine::<A, N> {
        mean: Vector::cast_from(statistics.mean),
        low: Vector::cast_from(statistics.low),
        inv_std: Vector::cast_from(statistics.inv_std),
        scale: Vector::cast_from(gamma[walk.channel] * statistics.inv_std),
        shift: Vector::cast_from(beta[walk.channel]),
    };
    sweep::<E, A, M, N>(x, residual, y, affine, geometry, numbers, blueprint);
}
