//! Mean and variance.
//!
//! A lane takes blocks of at most [`BLOCK`] values, sums `x - k` and its square, where `k` is the block's first value, and merges the block's
//! mean and M2 into its own by Chan's formula: neither a long sum nor, beyond a block, a difference of large squares appears. Means are kept
//! relative to one value of the channel, its first (the shift): with a mean of 1e4 and a deviation of 1 they keep all of their digits, and the
//! mean of the channel is the sum of two floats. A constant channel has differences of 0 and gives exactly `beta`.

use cubecl::prelude::*;

use super::access::read;
use super::merge::{Partial, load, merge_lanes, merge_units, store};
use super::walk::{Geometry, Walk, at_most};
use crate::blueprint::{CubeShape, Merge};

/// Values of a lane between two merges.
pub(crate) const BLOCK: usize = 64;

/// The moments of a channel, or of a split of it.
#[derive(CubeType)]
pub(crate) struct Moments<A: Float, P: Size> {
    /// Count, mean relative to the shift, M2.
    pub part: Partial<A, P>,
    /// The channel's first value.
    pub shift: Vector<A, P>,
}

/// The moments of what the cube walks over.
#[cube]
pub(crate) fn reduce<E: Numeric, A: Float, M: Size, N: Size, P: Size>(
    x: &[Vector<E, M>],
    geometry: &Geometry,
    #[comptime] shape: CubeShape,
) -> Moments<A, P> {
    let mut walk = Walk::new(geometry, shape);
    let zero = Vector::<A, N>::new(A::new(0.0));

    let origin = read::<E, A, M, N>(x, walk.origin, shape);
    let shift = if comptime!(shape.columns) {
        Vector::<A, P>::cast_from(origin)
    } else {
        Vector::<A, P>::new(origin.extract(0usize))
    };

    let mut part = Partial::<A, N>::empty();
    let mut left = walk.count;
    while left > 0 {
        let count = at_most(left, comptime!(BLOCK).runtime());
        let pivot = read::<E, A, M, N>(x, walk.index, shape);
        walk.advance(shape);
        let mut sum = zero;
        let mut squares = zero;
        for _ in 1..count {
            let diff = read::<E, A, M, N>(x, walk.index, shape) - pivot;
            sum += diff;
            squares += diff * diff;
            walk.advance(shape);
        }
        let n = A::cast_from(count);
        let mean = sum / Vector::new(n);
        let block = Partial::<A, N> {
            count: n,
            first: (pivot - Vector::cast_from(shift)) + mean,
            second: squares - sum * mean,
        };
        part.merge(block, comptime!(Merge::Moments));
        left -= count;
    }

    let lanes = merge_lanes::<A, N, P>(part, comptime!(Merge::Moments), shape);
    let part = merge_units::<A, P>(lanes, comptime!(Merge::Moments), shape);
    Moments::<A, P> { part, shift }
}

/// First of two stages: the moments of every split.
#[cube(launch_unchecked)]
pub(crate) fn moments_partial<E: Numeric, A: Float, M: Size, N: Size, P: Size>(
    x: &[Vector<E, M>],
    partials: &mut [Vector<A, P>],
    geometry: &Geometry,
    splits: usize,
    #[comptime] shape: CubeShape,
    #[define(E, A)] _dtypes: [ElemType; 2],
) {
    let moments = reduce::<E, A, M, N, P>(x, geometry, shape);
    let walk = Walk::new(geometry, shape);
    if walk.writes && walk.split < splits {
        store::<A, P>(
            partials,
            moments.part,
            moments.shift,
            walk.channel,
            walk.split,
            geometry.channels,
            splits,
        );
    }
}

/// Merges the splits' results: the tensor here is `[splits][channels]`, walked by columns.
#[cube]
pub(crate) fn merge_splits<A: Float, P: Size>(
    partials: &[Vector<A, P>],
    geometry: &Geometry,
    #[comptime] kind: Merge,
    #[comptime] shape: CubeShape,
) -> Partial<A, P> {
    let mut walk = Walk::new(geometry, shape);
    let plane = geometry.outer * geometry.channels;
    let mut part = Partial::<A, P>::empty();
    for _ in 0..walk.count {
        let split = load::<A, P>(partials, walk.index, plane);
        part.merge(split, kind);
        walk.advance(shape);
    }
    merge_units::<A, P>(part, kind, shape)
}

/// The two parts of the mean: a float and what rounding took from it.
///
/// `one` is 1 and known when the kernel is launched only: a compiler that reorders sums would otherwise turn the second part into 0.
#[cube]
pub(crate) fn two_floats<A: Float, P: Size>(
    shift: Vector<A, P>,
    relative: Vector<A, P>,
    one: A,
) -> (Vector<A, P>, Vector<A, P>) {
    let high = (shift + relative) * Vector::new(one);
    let low = relative - (high - shift);
    (high, low)
}

/// Second of two stages: the moments of every channel.
#[cube(launch_unchecked)]
pub(crate) fn moments_finish<A: Float, P: Size>(
    partials: &[Vector<A, P>],
    mean: &mut [Vector<A, P>],
    m2: &mut [Vector<A, P>],
    geometry: &Geometry,
    #[comptime] shape: CubeShape,
    #[define(A)] _dtype: ElemType,
) {
    let part = merge_splits::<A, P>(partials, geometry, comptime!(Merge::Moments), shape);
    let walk = Walk::new(geometry, shape);
    if walk.writes {
        let shift = partials[3 * geometry.outer * geometry.channels + walk.channel];
        mean[walk.channel] = shift + part.first;
        m2[walk.channel] = part.second;
    }
}
