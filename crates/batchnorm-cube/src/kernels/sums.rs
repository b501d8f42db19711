//! The two sums that a backward needs: `sum g` and `sum g * (x - mean)`, where `g = dy * act'(v)`.
//!
//! A lane adds up blocks of at most [`BLOCK`] values and then the blocks, so that no long sum of floats appears. What
//! does not depend on the sums is written in the same sweep: `g` itself, which is the gradient of the residual, and `g * scale`, which is the
//! gradient of an input that was normalized with given statistics.

use cubecl::prelude::*;

use super::access::{read, write};
use super::element::{Affine, affine, centred, gradient};
use super::merge::{Partial, merge_lanes, merge_units, store};
use super::moments::{BLOCK, merge_splits};
use super::walk::{Geometry, Walk, at_most};
use crate::activation::Numbers;
use crate::blueprint::{CubeShape, EarlyGrad, Merge, SumsBlueprint};

/// The sums of what the cube walks over.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(crate) fn reduce_sums<E: Numeric, A: Float, M: Size, N: Size, P: Size>(
    x: &[Vector<E, M>],
    dy: &[Vector<E, M>],
    residual: &[Vector<E, M>],
    dx: &mut [Vector<E, M>],
    dresidual: &mut [Vector<E, M>],
    affine: Affine<A, N>,
    geometry: &Geometry,
    numbers: &Numbers,
    #[comptime] blueprint: SumsBlueprint,
) -> Partial<A, P> {
    let shape = comptime!(blueprint.element.shape);
    let mut walk = Walk::new(geometry, shape);
    let zero = Vector::<A, N>::new(A::new(0.0));

    let mut first = zero;
    let mut second = zero;
    let mut left = walk.count;
    while left > 0 {
        let count = at_most(left, comptime!(BLOCK).runtime());
        let mut sum = zero;
        let mut product = zero;
        for _ in 0..count {
            let i = walk.index;
            let diff = centred::<A, N>(
                read::<E, A, M, N>(x, i, shape),
                affine,
                comptime!(blueprint.element),
            );
            let grad = gradient::<E, A, M, N>(
                diff,
                read::<E, A, M, N>(dy, i, shape),
                affine,
                residual,
                i,
                numbers,
                comptime!(blueprint.element),
            );
            sum += grad;
            product += grad * diff;
            if comptime!(blueprint.residual_grad) {
                write::<E, A, M, N>(dresidual, i, grad, shape);
            }
            if comptime!(blueprint.early == EarlyGrad::Scaled) {
                write::<E, A, M, N>(dx, i, grad * affine.scale, shape);
            }
            walk.advance(shape);
        }
        first += sum;
        second += product;
        left -= count;
    }

    let part = Partial::<A, N> {
        count: A::new(0.0),
        first,
        second,
    };
    let lanes = merge_lanes::<A, N, P>(part, comptime!(Merge::Sums), shape);
    merge_units::<A, P>(lanes, comptime!(Merge::Sums), shape)
}

/// First of two stages: the sums of every split.
#[cube(launch_unchecked)]
pub(crate) fn sums_partial<E: Numeric, A: Float, M: Size, N: Size, P: Size>(
    x: &[Vector<E, M>],
    dy: &[Vector<E, M>],
    residual: &[Vector<E, M>],
    dx: &mut [Vector<E, M>],
    dresidual: &mut [Vector<E, M>],
    center: &[Vector<A, P>],
    scale: &[Vector<A, P>],
    shift: &[Vector<A, P>],
    partials: &mut [Vector<A, P>],
    geometry: &Geometry,
    numbers: &Numbers,
    splits: usize,
    #[comptime] blueprint: SumsBlueprint,
    #[define(E, A)] _dtypes: [ElemType; 2],
) {
    let walk = Walk::new(geometry, comptime!(blueprint.element.shape));
    let affine = affine::<A, N, P>(
        center,
        scale,
        shift,
        walk.channel,
        geometry.channels,
        comptime!(blueprint.element),
    );
    let part = reduce_sums::<E, A, M, N, P>(
        x, dy, residual, dx, dresidual, affine, geometry, numbers, blueprint,
    );
    if walk.writes && walk.split < splits {
        store::<A, P>(
            partials,
            part,
            Vector::new(A::new(0.0)),
            walk.channel,
            walk.split,
            geometry.channels,
            splits,
        );
    }
}

/// Second of two stages: the sums of every channel. With `saved` the second one is of the normalized value instead of the centred one.
#[cube(launch_unchecked)]
pub(crate) fn sums_finish<A: Float, P: Size>(
    partials: &[Vector<A, P>],
    center: &[Vector<A, P>],
    first: &mut [Vector<A, P>],
    second: &mut [Vector<A, P>],
    geometry: &Geometry,
    #[comptime] saved: bool,
    #[comptime] shape: CubeShape,
    #[define(A)] _dtype: ElemType,
) {
    let part = merge_splits::<A, P>(partials, geometry, comptime!(Merge::Sums), shape);
    let walk = Walk::new(geometry, shape);
    if walk.writes {
        first[walk.channel] = part.first;
        if comptime!(saved) {
            second[walk.channel] = part.second * center[walk.channel + 2 * geometry.channels];
        } else {
            second[walk.channel] = part.second;
        }
    }
}
