//! Positions with weights: masks, padding, importance.
//!
//! With a weight `w >= 0` for every position and `W = sum w` over a channel,
//!
//! ```text
//!   mean = sum w x / W      variance = sum w (x - mean)^2 / W      0 and 1 where W is 0
//!   dx = a * (g + w * (b * (x - mean) + c))      b = -inv_std * dgamma / W      c = -dbeta / W
//! ```
//!
//! for the derivatives of mean and variance by `x` are `w / W` and `2 w (x - mean) / W`; the rest is as in `backward.rs`. The sums behind
//! `dgamma` and `dbeta` go over all positions: those of weight 0 are normalized too.
//!
//! A position of weight 0 is left out by selection, whatever it holds. Where a value is not finite there, the sweeps that normalize take the
//! channel's mean for it, and need no weight to know where the statistics are those of the batch: one that is not finite at a position that
//! counts makes the variance NaN, and with it the whole channel. Given statistics it does not touch, so there the forward reads the weights;
//! the backward takes the mean for every such value, whose output, and with it the gradient that arrives, is NaN already.
//!
//! The statistics are those of `moments.rs`, with the sum of weights for a count. A block's pivot is the median of the first three values of
//! each lane that have a weight, which lanes reach at different steps. The forward reads the weights once and so does the backward: next to
//! nothing where channels share them.

use cubecl::prelude::*;

use super::access::read;
use super::merge::Partial;
use super::moments::{Block, median};
use super::numbers::Numbers;
use super::walk::Walk;
use crate::blueprint::{CubeShape, Weighting};

/// The weights of a vector, of its index in the tensor and its position in the channel. What is not above 0 is 0, and so is NaN.
#[cube]
pub(crate) fn weight<A: Float, W: Size, N: Size>(
    weights: &[Vector<A, W>],
    index: usize,
    position: usize,
    #[comptime] weighting: Weighting,
) -> Vector<A, N> {
    let zero = Vector::new(A::new(0.0));
    let weight = if comptime!(weighting == Weighting::Shared) {
        Vector::<A, N>::cast_from(weights[position])
    } else {
        Vector::<A, N>::cast_from(weights[index])
    };
    select_many(weight.greater_than(&zero), weight, zero)
}

/// The moments of a channel; of a weighted one without weight mean 0 and variance 1, as of a new layer. Not variance 0: what is there would
/// be divided by the root of epsilon.
#[cube]
pub(crate) fn or_new<A: Float, P: Size>(
    part: Partial<A, P>,
    #[comptime] weighted: bool,
) -> Partial<A, P> {
    let mut part = part;
    if comptime!(weighted) {
        let nothing = part.count.equal(&Vector::new(A::new(0.0)));
        part.second = select_many(nothing, Vector::new(A::new(1.0)), part.second);
    }
    part
}

/// `x - mean`, and 0 where x is not finite.
#[cube]
pub(crate) fn or_mean<A: Float, N: Size>(x: Vector<A, N>, centred: Vector<A, N>) -> Vector<A, N> {
    let zero = Vector::new(A::new(0.0));
    select_many(x.is_nan(), zero, select_many(x.is_inf(), zero, centred))
}

/// The value; something else where it is not finite and has no weight.
#[cube]
pub(crate) fn or_else<A: Float, N: Size>(
    value: Vector<A, N>,
    other: Vector<A, N>,
    weight: Vector<A, N>,
) -> Vector<A, N> {
    let finite = select_many(value.is_inf(), other, value);
    let finite = select_many(value.is_nan(), other, finite);
    select_many(weight.equal(&Vector::new(A::new(0.0))), finite, value)
}

/// The sums over the next `count` vectors.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(crate) fn weighted_block<E: Numeric, A: Float, M: Size, N: Size, W: Size>(
    x: &[Vector<E, M>],
    weights: &[Vector<A, W>],
    walk: &mut Walk,
    count: usize,
    numbers: &Numbers,
    #[comptime] scaled: bool,
    #[comptime] weighting: Weighting,
    #[comptime] shape: CubeShape,
) -> Block<A, N> {
    let zero = Vector::<A, N>::new(A::new(0.0));
    let mut block = Block::<A, N>::about(zero);

    // The last values of each lane that have a weight, up to three.
    let mut first = zero;
    let mut second = zero;
    let mut third = zero;
    let mut first_weight = zero;
    let mut second_weight = zero;
    let mut third_weight = zero;
    let mut done = 0usize;
    // The smallest of the first weights: 0 until every lane has three values, and with them its pivot.
    let mut fewest = A::new(0.0);
    while fewest == A::new(0.0) && done < count {
        let weight = weight::<A, W, N>(weights, walk.index, walk.position, weighting);
        let value = read::<E, A, M, N>(x, walk.next(false, shape), shape);
        done += 1;
        let full = first_weight.greater_than(&zero);
        block.take(value, select_many(full, weight, zero), numbers, scaled);
        let weight = select_many(full, zero, weight);
        let missing = weight.greater_than(&zero);
        first = select_many(missing, second, first);
        first_weight = select_many(missing, second_weight, first_weight);
        second = select_many(missing, third, second);
        second_weight = select_many(missing, third_weight, second_weight);
        third = select_many(missing, value, third);
        third_weight = select_many(missing, weight, third_weight);
        block.pivot = median::<A, N>(first, second, third);
        fewest = first_weight.extract(0usize);
        #[unroll]
        for i in 1..N::value() {
            fewest = min(fewest, first_weight.extract(i));
        }
    }
    // Of fewer than three values, the last one.
    let full = first_weight.greater_than(&zero);
    block.pivot = select_many(full, block.pivot, third);
    block.take(first, first_weight, numbers, scaled);
    block.take(second, second_weight, numbers, scaled);
    block.take(third, third_weight, numbers, scaled);

    let at_once = comptime!(shape.at_once);
    let rest = count - done;
    for _ in 0..rest / at_once {
        take_next::<E, A, M, N, W>(
            &mut block, x, weights, walk, numbers, at_once, scaled, weighting, shape,
        );
    }
    if comptime!(at_once > 1) {
        for _ in 0..rest % at_once {
            take_next::<E, A, M, N, W>(
                &mut block, x, weights, walk, numbers, 1usize, scaled, weighting, shape,
            );
        }
    }
    block
}

/// Takes the next few vectors in.
#[cube]
#[allow(clippy::too_many_arguments)]
fn take_next<E: Numeric, A: Float, M: Size, N: Size, W: Size>(
    block: &mut Block<A, N>,
    x: &[Vector<E, M>],
    weights: &[Vector<A, W>],
    walk: &mut Walk,
    numbers: &Numbers,
    #[comptime] at_once: usize,
    #[comptime] scaled: bool,
    #[comptime] weighting: Weighting,
    #[comptime] shape: CubeShape,
) {
    let mut values = Sequence::<Vector<A, N>>::new();
    let mut weighted = Sequence::<Vector<A, N>>::new();
    #[unroll]
    for _ in 0..at_once {
        weighted.push(weight::<A, W, N>(
            weights,
            walk.index,
            walk.position,
            weighting,
        ));
        values.push(read::<E, A, M, N>(x, walk.next(false, shape), shape));
    }
    let mut few = Block::<A, N>::about(block.pivot);
    #[unroll]
    for k in 0..at_once {
        few.take(*values.index(k), *weighted.index(k), numbers, scaled);
    }
    block.count += few.count;
    block.sum += few.sum;
    block.squares += few.squares;
}
