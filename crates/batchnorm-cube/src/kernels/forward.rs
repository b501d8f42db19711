//! Training forward and normalization.
//!
//! Where one cube has a channel to itself, `train` is the whole forward: statistics, running update, output; the second read of the channel
//! meets a warm cache. Otherwise `moments_partial` comes first, and `train` begins with merging what the splits have found. Where they are
//! many, merging is a launch of its own, `finish`, and `normalize` follows.

use cubecl::prelude::*;

use super::access::{read, write};
use super::element::{Affine, affine, output, spread};
use super::merge::{Partial, merge_few, merge_many};
use super::moments::reduce;
use super::numbers::{Numbers, inverse_of_deviation};
use super::walk::{Geometry, Walk};
use super::weighted::{or_else, or_new, weight};
use crate::blueprint::{CubeShape, ElementBlueprint, Merge, Source, TrainBlueprint};

/// Writes the statistics of a channel: rows of the mean, of what rounding took from it and of the variance, with `train` of the inverse
/// deviation, and with `weighted` of the sum of the weights; and the running ones.
#[cube]
#[allow(clippy::too_many_arguments)]
fn store_statistics<A: Float, P: Size>(
    part: Partial<A, P>,
    old_mean: &[Vector<A, P>],
    old_variance: &[Vector<A, P>],
    statistics: &mut [Vector<A, P>],
    new_mean: &mut [Vector<A, P>],
    new_variance: &mut [Vector<A, P>],
    channel: usize,
    channels: usize,
    numbers: &Numbers,
    #[comptime] train: bool,
    #[comptime] weighted: bool,
    #[comptime] update: bool,
) {
    let variance = part.second * part.second;
    statistics[channel] = part.first;
    statistics[channel + channels] = part.low;
    statistics[channel + 2 * channels] = variance;
    if comptime!(train) {
        statistics[channel + 3 * channels] = inverse_of_deviation::<A, P>(part.second, numbers);
    }
    if comptime!(weighted) {
        statistics[channel + 4 * channels] = part.count;
    }
    if comptime!(update) {
        let keep = numbers.keep.get::<A>();
        let add_mean = numbers.add_mean.get::<A>();
        let add_variance = numbers.add_variance.get::<A>();
        let old = times::<A, P>(old_mean[channel], keep);
        new_mean[channel] = old + times::<A, P>(part.first, add_mean);
        let old = times::<A, P>(old_variance[channel], keep);
        new_variance[channel] = old + times::<A, P>(variance, add_variance);
    }
}

/// `value * weight`, where a weight of 0 also drops NaN and infinity.
#[cube]
fn times<A: Float, P: Size>(value: Vector<A, P>, weight: A) -> Vector<A, P> {
    let zero = Vector::new(A::new(0.0));
    select(weight == A::new(0.0), zero, value * Vector::new(weight))
}

/// The output of everything that a cube walks over.
///
/// `y` may be `x`: a unit reads an element before it writes it, and no other unit reads it.
#[cube]
#[allow(clippy::too_many_arguments)]
fn sweep<E: Numeric, A: Float, M: Size, N: Size, W: Size>(
    x: &[Vector<E, M>],
    residual: &[Vector<E, M>],
    y: &mut [Vector<E, M>],
    weights: &[Vector<A, W>],
    affine: Affine<A, N>,
    geometry: &Geometry,
    numbers: &Numbers,
    #[comptime] blueprint: ElementBlueprint,
) {
    let at_once = comptime!(blueprint.shape.at_once);
    let mut walk = Walk::new(geometry, comptime!(blueprint.shape.backwards));
    for _ in 0..walk.count / at_once {
        outputs::<E, A, M, N, W>(
            x, residual, y, weights, &mut walk, affine, numbers, at_once, blueprint,
        );
    }
    if comptime!(at_once > 1) {
        for _ in 0..walk.count % at_once {
            outputs::<E, A, M, N, W>(
                x, residual, y, weights, &mut walk, affine, numbers, 1usize, blueprint,
            );
        }
    }
}

/// The output of the next few vectors.
#[cube]
#[allow(clippy::too_many_arguments)]
fn outputs<E: Numeric, A: Float, M: Size, N: Size, W: Size>(
    x: &[Vector<E, M>],
    residual: &[Vector<E, M>],
    y: &mut [Vector<E, M>],
    weights: &[Vector<A, W>],
    walk: &mut Walk,
    affine: Affine<A, N>,
    numbers: &Numbers,
    #[comptime] at_once: usize,
    #[comptime] blueprint: ElementBlueprint,
) {
    let shape = comptime!(blueprint.shape);
    let mut places = Sequence::<usize>::new();
    let mut values = Sequence::<Vector<A, N>>::new();
    let mut counted = Sequence::<Vector<A, N>>::new();
    let weighs = comptime!(blueprint.weighs());
    #[unroll]
    for _ in 0..at_once {
        if comptime!(weighs) {
            let weighting = comptime!(blueprint.weighting);
            counted.push(weight::<A, W, N>(
                weights,
                walk.index,
                walk.position,
                weighting,
            ));
        }
        let i = walk.next(comptime!(shape.backwards), shape);
        places.push(i);
        values.push(read::<E, A, M, N>(x, i, shape));
    }
    #[unroll]
    for k in 0..at_once {
        let i = *places.index(k);
        let value = *values.index(k);
        let value = if comptime!(weighs) {
            or_else::<A, N>(value, affine.mean, *counted.index(k))
        } else {
            value
        };
        let blueprint = comptime!(blueprint.once_weighed());
        let value = output::<E, A, M, N>(value, affine, residual, i, numbers, blueprint);
        write::<E, A, M, N>(y, i, value, shape);
    }
}

/// `y = act((x - mean) * inv_std * gamma + beta + residual)`, with given parameters of any kind.
#[cube(launch_unchecked)]
pub(crate) fn normalize<E: Numeric, A: Float, M: Size, N: Size, P: Size, W: Size>(
    x: &[Vector<E, M>],
    residual: &[Vector<E, M>],
    y: &mut [Vector<E, M>],
    center: &[Vector<A, P>],
    variance: &[Vector<A, P>],
    gamma: &[Vector<A, P>],
    beta: &[Vector<A, P>],
    weights: &[Vector<A, W>],
    geometry: &Geometry,
    numbers: &Numbers,
    #[comptime] blueprint: ElementBlueprint,
    #[define(E, A)] _dtypes: [ElemType; 2],
) {
    let walk = Walk::new(geometry, comptime!(blueprint.shape.backwards));
    let affine = affine::<A, P>(
        center,
        variance,
        gamma,
        beta,
        walk.channel,
        geometry.channels,
        numbers,
        comptime!(blueprint.parameters),
    );
    let affine = spread::<A, P, N>(affine);
    sweep::<E, A, M, N, W>(
        x, residual, y, weights, affine, geometry, numbers, blueprint,
    );
}

/// The statistics of every channel from those of the splits, and the running update.
#[cube(launch_unchecked)]
pub(crate) fn finish<A: Float, P: Size>(
    partials: &[Vector<A, P>],
    old_mean: &[Vector<A, P>],
    old_variance: &[Vector<A, P>],
    statistics: &mut [Vector<A, P>],
    new_mean: &mut [Vector<A, P>],
    new_variance: &mut [Vector<A, P>],
    geometry: &Geometry,
    numbers: &Numbers,
    #[comptime] train: bool,
    #[comptime] weighted: bool,
    #[comptime] update: bool,
    #[comptime] shape: CubeShape,
    #[define(A)] _dtype: ElemType,
) {
    let kind = comptime!(Merge::Moments);
    let part = merge_many::<A, P>(partials, geometry, numbers, kind, shape);
    let part = or_new::<A, P>(part, weighted);
    let walk = Walk::new(geometry, false);
    if walk.writes {
        store_statistics::<A, P>(
            part,
            old_mean,
            old_variance,
            statistics,
            new_mean,
            new_variance,
            walk.channel,
            geometry.channels,
            numbers,
            train,
            weighted,
            update,
        );
    }
}

/// The forward from the cube's own moments or from those of a few splits.
#[cube(launch_unchecked)]
pub(crate) fn train<E: Numeric, A: Float, M: Size, N: Size, P: Size, W: Size>(
    x: &[Vector<E, M>],
    residual: &[Vector<E, M>],
    y: &mut [Vector<E, M>],
    gamma: &[Vector<A, P>],
    beta: &[Vector<A, P>],
    partials: &[Vector<A, P>],
    old_mean: &[Vector<A, P>],
    old_variance: &[Vector<A, P>],
    statistics: &mut [Vector<A, P>],
    new_mean: &mut [Vector<A, P>],
    new_variance: &mut [Vector<A, P>],
    weights: &[Vector<A, W>],
    geometry: &Geometry,
    numbers: &Numbers,
    splits: usize,
    #[comptime] blueprint: TrainBlueprint,
    #[define(E, A)] _dtypes: [ElemType; 2],
) {
    let shape = comptime!(blueprint.element.shape);
    let weighting = comptime!(blueprint.element.weighting);
    let walk = Walk::new(geometry, comptime!(shape.backwards));
    let part = if comptime!(blueprint.source == Source::Tensor) {
        reduce::<E, A, M, N, P, W>(x, weights, geometry, numbers, weighting, shape)
    } else {
        merge_few::<A, P>(
            partials,
            splits,
            walk.channel,
            geometry.channels,
            numbers,
            comptime!(Merge::Moments),
        )
    };
    let part = or_new::<A, P>(part, comptime!(weighting.any()));
    if walk.writes && walk.split == 0 {
        store_statistics::<A, P>(
            part,
            old_mean,
            old_variance,
            statistics,
            new_mean,
            new_variance,
            walk.channel,
            geometry.channels,
            numbers,
            true,
            comptime!(weighting.any()),
            comptime!(blueprint.update),
        );
    }

    let inv_std = inverse_of_deviation::<A, P>(part.second, numbers);
    let affine = Affine::<A, P> {
        mean: part.first,
        low: part.low,
        inv_std,
        scale: gamma[walk.channel] * inv_std,
        shift: beta[walk.channel],
    };
    let affine = spread::<A, P, N>(affine);
    sweep::<E, A, M, N, W>(
        x,
        residual,
        y,
        weights,
        affine,
        geometry,
        numbers,
        comptime!(blueprint.element),
    );
}
