//! Training backward.
//!
//! With `g = dy * act'(v)`, `xhat = (x - mean) * inv_std` and `n` values per channel, the chain rule through mean and variance gives
//!
//! ```text
//!   dbeta = sum g      dgamma = sum g * xhat      dx = gamma * inv_std * (g - dbeta / n - xhat * dgamma / n)
//!                                                    = a * g + b * (x - mean) + c
//!   a = gamma * inv_std      b = -a * inv_std * dgamma / n      c = -a * dbeta / n
//! ```
//!
//! Where one cube has a channel to itself, `sums_whole` is the whole backward; otherwise there are three launches: `sums_partial`,
//! `sums_finish`, `input_grad`.

use cubecl::prelude::*;

use super::access::{read, write};
use super::element::{Affine, affine, centred, gradient};
use super::sums::reduce_sums;
use super::walk::{Geometry, Walk};
use crate::activation::Numbers;
use crate::blueprint::{ElementBlueprint, SumsBlueprint};

/// The three numbers of a channel's gradient.
#[derive(CubeType, Clone, Copy)]
#[expand(derive(Clone, Copy))]
struct Coefficients<A: Float, N: Size> {
    a: Vector<A, N>,
    b: Vector<A, N>,
    c: Vector<A, N>,
}

#[cube]
fn coefficients<A: Float, N: Size, P: Size>(
    affine: Affine<A, N>,
    dgamma: Vector<A, P>,
    dbeta: Vector<A, P>,
    inv_n: A,
) -> Coefficients<A, N> {
    let a = affine.scale;
    let share = a * Vector::new(A::new(-1.0) * inv_n);
    Coefficients::<A, N> {
        a,
        b: share * affine.inv_std * Vector::cast_from(dgamma),
        c: share * Vector::cast_from(dbeta),
    }
}

/// The input gradient of everything that a cube walks over.
#[cube]
#[allow(clippy::too_many_arguments)]
fn sweep<E: Numeric, A: Float, M: Size, N: Size>(
    x: &[Vector<E, M>],
    dy: &[Vector<E, M>],
    residual: &[Vector<E, M>],
    dx: &mut [Vector<E, M>],
    affine: Affine<A, N>,
    coefficients: Coefficients<A, N>,
    geometry: &Geometry,
    numbers: &Numbers,
    #[comptime] blueprint: ElementBlueprint,
) {
    let shape = comptime!(blueprint.shape);
    let mut walk = Walk::new(geometry, shape);
    for _ in 0..walk.count {
        let i = walk.index;
        let diff = centred::<A, N>(read::<E, A, M, N>(x, i, shape), affine, blueprint);
        let dy = read::<E, A, M, N>(dy, i, shape);
        let grad = gradient::<E, A, M, N>(diff, dy, affine, residual, i, numbers, blueprint);
        let grad = coefficients.a * grad + coefficients.b * diff + coefficients.c;
        write::<E, A, M, N>(dx, i, grad, shape);
        walk.advance(shape);
    }
}

/// `dx` of given sums (`saved`: `first` is gamma's place, `second` dgamma's, `third` dbeta's) or of given coefficients a, b and c.
///
/// `dx` may be `dy`: a unit reads an element before it writes it, and no other unit reads it.
#[cube(launch_unchecked)]
pub(crate) fn input_grad<E: Numeric, A: Float, M: Size, N: Size, P: Size>(
    x: &[Vector<E, M>],
    dy: &[Vector<E, M>],
    residual: &[Vector<E, M>],
    dx: &mut [Vector<E, M>],
    center: &[Vector<A, P>],
    first: &[Vector<A, P>],
    second: &[Vector<A, P>],
    third: &[Vector<A, P>],
    shift: &[Vector<A, P>],
    geometry: &Geometry,
    numbers: &Numbers,
    inv_n: InputScalar,
    #[comptime] blueprint: ElementBlueprint,
    #[define(E, A)] _dtypes: [ElemType; 2],
) {
    let walk = Walk::new(geometry, comptime!(blueprint.shape));
    let channel = walk.channel;
    let affine = affine::<A, N, P>(center, first, shift, channel, geometry.channels, blueprint);
    let coefficients = if comptime!(blueprint.saved) {
        coefficients::<A, N, P>(affine, second[channel], third[channel], inv_n.get::<A>())
    } else {
        Coefficients::<A, N> {
            a: affine.scale,
            b: Vector::cast_from(second[channel]),
            c: Vector::cast_from(third[channel]),
        }
    };
    sweep::<E, A, M, N>(
        x,
        dy,
        residual,
        dx,
        affine,
        coefficients,
        geometry,
        numbers,
        blueprint,
    );
}

/// The sums of the cube's channels and, with `input`, their gradient.
///
/// `dx` may be `dy`: the sweeps are ordered by the walk, in which every unit meets its own elements only.
#[cube(launch_unchecked)]
pub(crate) fn sums_whole<E: Numeric, A: Float, M: Size, N: Size, P: Size>(
    x: &[Vector<E, M>],
    dy: &[Vector<E, M>],
    residual: &[Vector<E, M>],
    dx: &mut [Vector<E, M>],
    dresidual: &mut [Vector<E, M>],
    center: &[Vector<A, P>],
    scale: &[Vector<A, P>],
    shift: &[Vector<A, P>],
    first: &mut [Vector<A, P>],
    second: &mut [Vector<A, P>],
    geometry: &Geometry,
    numbers: &Numbers,
    inv_n: InputScalar,
    #[comptime] input: bool,
    #[comptime] blueprint: SumsBlueprint,
    #[define(E, A)] _dtypes: [ElemType; 2],
) {
    let element = comptime!(blueprint.element);
    let walk = Walk::new(geometry, comptime!(element.shape));
    let affine = affine::<A, N, P>(
        center,
        scale,
        shift,
        walk.channel,
        geometry.channels,
        element,
    );
    let sums = reduce_sums::<E, A, M, N, P>(
        x, dy, residual, dx, dresidual, affine, geometry, numbers, blueprint,
    );
    let dbeta = sums.first;
    let dgamma = if comptime!(element.saved) {
        sums.second * center[walk.channel + 2 * geometry.channels]
    } else {
        sums.second
    };
    if walk.writes {
        first[walk.channel] = dbeta;
        second[walk.channel] = dgamma;
    }
    if comptime!(input) {
        let coefficients = coefficients::<A, N, P>(affine, dgamma, dbeta, inv_n.get::<A>());
        sweep::<E, A, M, N>(
            x,
            dy,
            residual,
            dx,
            affine,
            coefficients,
            geometry,
            numbers,
            element,
        );
    }
}
