//! The two sums that a backward needs: `sum g` and `sum g * (x - mean)`, where `g = dy * act'(v)`.
//!
//! A lane adds up blocks of at most [`BLOCK`] values and then the blocks, so that no long sum of floats appears. Where the statistics were
//! given, no gradient waits for the sums: those of the input and of the residual are written in the same sweep.

use cubecl::prelude::*;

use super::access::{read, write};
use super::element::{Affine, affine, centred, gradient, inverse_count, spread};
use super::merge::{Partial, merge_lanes, merge_many, merge_units, store};
use super::moments::BLOCK;
use super::numbers::Numbers;
use super::walk::{Geometry, Walk, at_most};
use crate::blueprint::{CubeShape, GradientBlueprint, Merge, Parameters};

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
    #[comptime] blueprint: GradientBlueprint,
) -> Partial<A, P> {
    let shape = comptime!(blueprint.element.shape);
    let at_once = comptime!(shape.at_once);
    let mut walk = Walk::new(geometry, false);

    let mut all = Partial::<A, N>::empty();
    let mut left = walk.count;
    while left > 0 {
        let count = at_most(left, comptime!(BLOCK).runtime());
        let mut block = Partial::<A, N>::empty();
        for _ in 0..count / at_once {
            add::<E, A, M, N>(
                x, dy, residual, dx, dresidual, &mut walk, &mut block, affine, numbers, at_once,
                blueprint,
            );
        }
        if comptime!(at_once > 1) {
            for _ in 0..count % at_once {
                add::<E, A, M, N>(
                    x, dy, residual, dx, dresidual, &mut walk, &mut block, affine, numbers, 1usize,
                    blueprint,
                );
            }
        }
        all.merge(block, numbers, comptime!(Merge::Sums));
        left -= count;
    }
    let lanes = merge_lanes::<A, N, P>(all, numbers, comptime!(Merge::Sums), shape);
    merge_units::<A, P>(lanes, numbers, comptime!(Merge::Sums), shape)
}

/// Adds the next few vectors to the sums.
#[cube]
#[allow(clippy::too_many_arguments)]
fn add<E: Numeric, A: Float, M: Size, N: Size>(
    x: &[Vector<E, M>],
    dy: &[Vector<E, M>],
    residual: &[Vector<E, M>],
    dx: &mut [Vector<E, M>],
    dresidual: &mut [Vector<E, M>],
    walk: &mut Walk,
    sums: &mut Partial<A, N>,
    affine: Affine<A, N>,
    numbers: &Numbers,
    #[comptime] at_once: usize,
    #[comptime] blueprint: GradientBlueprint,
) {
    let element = comptime!(blueprint.element);
    let shape = comptime!(element.shape);
    let mut places = Sequence::<usize>::new();
    let mut values = Sequence::<Vector<A, N>>::new();
    let mut upstream = Sequence::<Vector<A, N>>::new();
    #[unroll]
    for _ in 0..at_once {
        let i = walk.next(false, shape);
        places.push(i);
        values.push(read::<E, A, M, N>(x, i, shape));
        upstream.push(read::<E, A, M, N>(dy, i, shape));
    }
    #[unroll]
    for k in 0..at_once {
        let i = *places.index(k);
        let diff = centred::<A, N>(*values.index(k), affine, element);
        let dy = *upstream.index(k);
        let grad = gradient::<E, A, M, N>(diff, dy, affine, residual, i, numbers, element);
        sums.first += grad;
        sums.second += grad * diff;
        if comptime!(blueprint.early() && blueprint.residual) {
            write::<E, A, M, N>(dresidual, i, grad, shape);
        }
        if comptime!(blueprint.early() && blueprint.input) {
            write::<E, A, M, N>(dx, i, grad * affine.scale, shape);
        }
    }
}

/// First of several stages: the sums of every split.
#[cube(launch_unchecked)]
pub(crate) fn sums_partial<E: Numeric, A: Float, M: Size, N: Size, P: Size>(
    x: &[Vector<E, M>],
    dy: &[Vector<E, M>],
    residual: &[Vector<E, M>],
    dx: &mut [Vector<E, M>],
    dresidual: &mut [Vector<E, M>],
    center: &[Vector<A, P>],
    variance: &[Vector<A, P>],
    gamma: &[Vector<A, P>],
    beta: &[Vector<A, P>],
    partials: &mut [Vector<A, P>],
    geometry: &Geometry,
    numbers: &Numbers,
    #[comptime] blueprint: GradientBlueprint,
    #[define(E, A)] _dtypes: [ElemType; 2],
) {
    let element = comptime!(blueprint.element);
    let walk = Walk::new(geometry, false);
    let affine = affine::<A, P>(
        center,
        variance,
        gamma,
        beta,
        walk.channel,
        geometry.channels,
        numbers,
        comptime!(element.parameters),
    );
    let affine = spread::<A, P, N>(affine);
    let part = reduce_sums::<E, A, M, N, P>(
        x, dy, residual, dx, dresidual, affine, geometry, numbers, blueprint,
    );
    store::<A, P>(partials, part, &walk, geometry, comptime!(Merge::Sums));
}

/// The gradients of gamma and beta from the sums of the splits; with `prepare` also the rows of [`Parameters::Prepared`], which hold all that
/// the input's gradient needs.
#[cube(launch_unchecked)]
pub(crate) fn sums_finish<A: Float, P: Size>(
    partials: &[Vector<A, P>],
    center: &[Vector<A, P>],
    variance: &[Vector<A, P>],
    gamma: &[Vector<A, P>],
    beta: &[Vector<A, P>],
    dgamma: &mut [Vector<A, P>],
    dbeta: &mut [Vector<A, P>],
    prepared: &mut [Vector<A, P>],
    geometry: &Geometry,
    numbers: &Numbers,
    #[comptime] parameters: Parameters,
    #[comptime] prepare: bool,
    #[comptime] shape: CubeShape,
    #[define(A)] _dtype: ElemType,
) {
    let sums = merge_many::<A, P>(partials, geometry, numbers, comptime!(Merge::Sums), shape);
    let walk = Walk::new(geometry, false);
    if walk.writes {
        let channel = walk.channel;
        let channels = geometry.channels;
        let affine = affine::<A, P>(
            center, variance, gamma, beta, channel, channels, numbers, parameters,
        );
        let gamma_grad = sums.second * affine.inv_std;
        dgamma[channel] = gamma_grad;
        dbeta[channel] = sums.first;
        if comptime!(prepare) {
            let share = inverse_count::<A, P>(center, channel, channels, numbers, parameters);
            let (b, c) = batch_terms::<A, P>(gamma_grad, sums.first, affine.inv_std, share);
            prepared[channel] = affine.mean;
            prepared[channel + channels] = affine.low;
            prepared[channel + 2 * channels] = affine.scale;
            prepared[channel + 3 * channels] = affine.shift;
            prepared[channel + 4 * channels] = b;
            prepared[channel + 5 * channels] = c;
        }
    }
}

/// What comes of the gradient through mean and variance: the factor of `x - mean`, and the constant; see `backward.rs`.
#[cube]
pub(crate) fn batch_terms<A: Float, P: Size>(
    dgamma: Vector<A, P>,
    dbeta: Vector<A, P>,
    inv_std: Vector<A, P>,
    inverse_count: Vector<A, P>,
) -> (Vector<A, P>, Vector<A, P>) {
    let share = Vector::new(A::new(-1.0)) * inverse_count;
    (share * dgamma * inv_std, share * dbeta)
}
