//! Backward.
//!
//! With `g = dy * act'(v)`, `xhat = (x - mean) * inv_std` and `n` values per channel, the chain rule through mean and variance gives
//!
//! ```text
//!   dbeta = sum g      dgamma = sum g * xhat      dx = gamma * inv_std * (g - dbeta / n - xhat * dgamma / n)
//!                                                    = a * (g + b * (x - mean) + c)
//!   a = gamma * inv_std      b = -inv_std * dgamma / n      c = -dbeta / n
//! ```
//!
//! `b` and `c` are the batch terms; with given statistics there are none. Where one cube has a channel to itself, `gradients` is the whole
//! backward; otherwise `sums_partial` comes first, and `gradients` begins with merging what the splits have found. Where they are many,
//! merging is a launch of its own, `sums_finish`.

use cubecl::prelude::*;

use super::access::{read, write};
use super::curves::or_zero;
use super::element::{Affine, affine, centred, gradient, inverse_count, spread};
use super::merge::{Partial, merge_few};
use super::numbers::Numbers;
use super::sums::{batch_terms, reduce_sums};
use super::walk::{Geometry, Walk};
use super::weighted::weight;
use crate::blueprint::{GradientBlueprint, Merge, Parameters, Source};

/// The gradients of the input and of the residual of everything that a cube walks over.
///
/// `dx` may be `dy`: a unit reads an element before it writes it, and no other unit reads it.
#[cube]
#[allow(clippy::too_many_arguments)]
fn sweep<E: Numeric, A: Float, M: Size, N: Size, W: Size>(
    x: &[Vector<E, M>],
    dy: &[Vector<E, M>],
    residual: &[Vector<E, M>],
    dx: &mut [Vector<E, M>],
    dresidual: &mut [Vector<E, M>],
    weights: &[Vector<A, W>],
    affine: Affine<A, N>,
    b: Vector<A, N>,
    c: Vector<A, N>,
    geometry: &Geometry,
    numbers: &Numbers,
    #[comptime] blueprint: GradientBlueprint,
) {
    let shape = comptime!(blueprint.element.shape);
    let at_once = comptime!(shape.at_once);
    let mut walk = Walk::new(geometry, comptime!(shape.backwards));
    for _ in 0..walk.count / at_once {
        step::<E, A, M, N, W>(
            x, dy, residual, dx, dresidual, weights, &mut walk, affine, b, c, numbers, at_once,
            blueprint,
        );
    }
    if comptime!(at_once > 1) {
        for _ in 0..walk.count % at_once {
            step::<E, A, M, N, W>(
                x, dy, residual, dx, dresidual, weights, &mut walk, affine, b, c, numbers, 1usize,
                blueprint,
            );
        }
    }
}

/// The gradients of the next few vectors.
#[cube]
#[allow(clippy::too_many_arguments)]
fn step<E: Numeric, A: Float, M: Size, N: Size, W: Size>(
    x: &[Vector<E, M>],
    dy: &[Vector<E, M>],
    residual: &[Vector<E, M>],
    dx: &mut [Vector<E, M>],
    dresidual: &mut [Vector<E, M>],
    weights: &[Vector<A, W>],
    walk: &mut Walk,
    affine: Affine<A, N>,
    b: Vector<A, N>,
    c: Vector<A, N>,
    numbers: &Numbers,
    #[comptime] at_once: usize,
    #[comptime] blueprint: GradientBlueprint,
) {
    let element = comptime!(blueprint.element);
    let shape = comptime!(element.shape);
    let mut places = Sequence::<usize>::new();
    let mut values = Sequence::<Vector<A, N>>::new();
    let mut upstream = Sequence::<Vector<A, N>>::new();
    let mut shares = Sequence::<Vector<A, N>>::new();
    #[unroll]
    for _ in 0..at_once {
        if comptime!(blueprint.shares()) {
            shares.push(weight::<A, W, N>(
                weights,
                walk.index,
                walk.position,
                element.weighting,
            ));
        }
        let i = walk.next(comptime!(shape.backwards), shape);
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
        if comptime!(blueprint.residual) {
            write::<E, A, M, N>(dresidual, i, grad, shape);
        }
        if comptime!(blueprint.input && blueprint.given()) {
            write::<E, A, M, N>(dx, i, affine.scale * grad, shape);
        } else if comptime!(blueprint.input) {
            let batch = if comptime!(blueprint.shares()) {
                or_zero::<A, N>(*shares.index(k), b * diff + c)
            } else {
                b * diff + c
            };
            write::<E, A, M, N>(dx, i, affine.scale * (grad + batch), shape);
        }
    }
}

/// Writes the gradients of gamma and beta, once for every channel.
#[cube]
fn store_sums<A: Float, P: Size>(
    dgamma: &mut [Vector<A, P>],
    dbeta: &mut [Vector<A, P>],
    gamma_grad: Vector<A, P>,
    beta_grad: Vector<A, P>,
    walk: &Walk,
) {
    if walk.writes && walk.split == 0 {
        dgamma[walk.channel] = gamma_grad;
        dbeta[walk.channel] = beta_grad;
    }
}

/// The gradients, from the sums of [`Source`].
#[cube(launch_unchecked)]
pub(crate) fn gradients<E: Numeric, A: Float, M: Size, N: Size, P: Size, W: Size>(
    x: &[Vector<E, M>],
    dy: &[Vector<E, M>],
    residual: &[Vector<E, M>],
    dx: &mut [Vector<E, M>],
    dresidual: &mut [Vector<E, M>],
    center: &[Vector<A, P>],
    variance: &[Vector<A, P>],
    gamma: &[Vector<A, P>],
    beta: &[Vector<A, P>],
    partials: &[Vector<A, P>],
    dgamma: &mut [Vector<A, P>],
    dbeta: &mut [Vector<A, P>],
    weights: &[Vector<A, W>],
    geometry: &Geometry,
    numbers: &Numbers,
    splits: usize,
    #[comptime] blueprint: GradientBlueprint,
    #[define(E, A)] _dtypes: [ElemType; 2],
) {
    let element = comptime!(blueprint.element);
    let walk = Walk::new(geometry, comptime!(element.shape.backwards));
    let channel = walk.channel;
    let channels = geometry.channels;
    let affine = affine::<A, P>(
        center,
        variance,
        gamma,
        beta,
        channel,
        channels,
        numbers,
        comptime!(element.parameters),
    );
    let wide = spread::<A, P, N>(affine);

    let sums = if comptime!(blueprint.source == Source::Tensor) {
        reduce_sums::<E, A, M, N, P>(
            x, dy, residual, dx, dresidual, wide, geometry, numbers, blueprint,
        )
    } else if comptime!(blueprint.source == Source::Splits) {
        let kind = comptime!(Merge::Sums);
        merge_few::<A, P>(partials, splits, channel, channels, numbers, kind)
    } else {
        Partial::<A, P>::empty()
    };
    let gamma_grad = sums.second * affine.inv_std;
    if comptime!(blueprint.source != Source::Parameters) {
        store_sums::<A, P>(dgamma, dbeta, gamma_grad, sums.first, &walk);
    }

    if comptime!(blueprint.late()) {
        let (b, c) = if comptime!(element.parameters == Parameters::Prepared) {
            (
                center[channel + 4 * channels],
                center[channel + 5 * channels],
            )
        } else {
            let parameters = comptime!(element.parameters);
            let share = inverse_count::<A, P>(center, channel, channels, numbers, parameters);
            batch_terms::<A, P>(gamma_grad, sums.first, affine.inv_std, share)
        };
        sweep::<E, A, M, N, W>(
            x,
            dy,
            residual,
            dx,
            dresidual,
            weights,
            wide,
            Vector::cast_from(b),
            Vector::cast_from(c),
            geometry,
            numbers,
            blueprint,
        );
    }
}
