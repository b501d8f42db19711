//! Mean and variance.
//!
//! A lane takes blocks of at most [`BLOCK`] values, sums `x - k` and its square, where `k` is the median of the block's first three values,
//! and merges the block's mean and deviation into its own: neither a long sum nor, beyond a block, a difference of large squares appears.
//! With a mean of 1e4 and a deviation of 1 all digits are kept; an outlier is no block's `k`, and costs the other values none either. A
//! constant channel has differences of 0 and gives exactly `beta`.
//!
//! Squares of differences beyond 1e19 overflow in `f32`. A unit that finds its deviation infinite walks once more, with everything scaled
//! down by a power of two.

use cubecl::prelude::*;

use super::access::read;
use super::merge::{Partial, merge_lanes, merge_units, store};
use super::numbers::{Numbers, divisor, two_sum};
use super::walk::{Geometry, Walk, at_most};
use super::weighted::weighted_block;
use crate::blueprint::{CubeShape, Merge, Weighting};

/// Values of a lane between two merges.
pub(crate) const BLOCK: usize = 64;

/// Sums over a block.
#[derive(CubeType, Clone, Copy)]
#[expand(derive(Clone, Copy))]
pub(crate) struct Block<A: Float, N: Size> {
    /// `k`.
    pub pivot: Vector<A, N>,
    /// The values of each lane, or the sum of their weights.
    pub count: Vector<A, N>,
    /// Of `x - k`.
    pub sum: Vector<A, N>,
    /// Of its square.
    pub squares: Vector<A, N>,
}

#[cube]
impl<A: Float, N: Size> Block<A, N> {
    /// Of nothing.
    pub fn about(pivot: Vector<A, N>) -> Block<A, N> {
        let zero = Vector::new(A::new(0.0));
        Block::<A, N> {
            pivot,
            count: zero,
            sum: zero,
            squares: zero,
        }
    }

    /// Takes values in; of weight 0 they may be anything.
    pub fn take(
        &mut self,
        value: Vector<A, N>,
        weight: Vector<A, N>,
        numbers: &Numbers,
        #[comptime] scaled: bool,
    ) {
        let zero = Vector::new(A::new(0.0));
        let diff = difference::<A, N>(value, self.pivot, numbers, scaled);
        let diff = select_many(weight.equal(&zero), zero, diff);
        let part = weight * diff;
        self.count += weight;
        self.sum += part;
        self.squares += part * diff;
    }

    /// Their moments.
    fn moments(&self, numbers: &Numbers, #[comptime] scaled: bool) -> Partial<A, N> {
        let zero = Vector::new(A::new(0.0));
        let count = divisor::<A, N>(self.count, numbers);
        let mean = self.sum / count;
        let m2 = self.squares - self.sum * mean;
        // Rounding can take it below 0 by a digit; NaN passes.
        let m2 = select_many(m2.less_than(&zero), zero, m2);
        let deviation = (m2 / count).sqrt();
        let mean = unscaled::<A, N>(mean, numbers, scaled);
        let (first, low) = two_sum::<A, N>(self.pivot, mean, numbers);
        Partial::<A, N> {
            count: self.count,
            first,
            low,
            second: unscaled::<A, N>(deviation, numbers, scaled),
        }
    }
}

/// The moments of what the cube walks over.
#[cube]
pub(crate) fn reduce<E: Numeric, A: Float, M: Size, N: Size, P: Size, W: Size>(
    x: &[Vector<E, M>],
    weights: &[Vector<A, W>],
    geometry: &Geometry,
    numbers: &Numbers,
    #[comptime] weighting: Weighting,
    #[comptime] shape: CubeShape,
) -> Partial<A, P> {
    let mut part =
        unit_moments::<E, A, M, N, W>(x, weights, geometry, numbers, false, weighting, shape);
    let most = Vector::<A, N>::new(numbers.most.get::<A>());
    let mut sum = A::new(0.0);
    #[unroll]
    for i in 0..N::value() {
        sum += part.second.extract(i);
    }
    let fits = sum <= numbers.most.get::<A>();
    if !fits {
        let scaled =
            unit_moments::<E, A, M, N, W>(x, weights, geometry, numbers, true, weighting, shape);
        let finite = part.second.less_equal(&most);
        part.first = select_many(finite, part.first, scaled.first);
        part.low = select_many(finite, part.low, scaled.low);
        part.second = select_many(finite, part.second, scaled.second);
    }
    let lanes = merge_lanes::<A, N, P>(part, numbers, comptime!(Merge::Moments), shape);
    merge_units::<A, P>(lanes, numbers, comptime!(Merge::Moments), shape)
}

/// The moments of what a unit walks over.
#[cube]
fn unit_moments<E: Numeric, A: Float, M: Size, N: Size, W: Size>(
    x: &[Vector<E, M>],
    weights: &[Vector<A, W>],
    geometry: &Geometry,
    numbers: &Numbers,
    #[comptime] scaled: bool,
    #[comptime] weighting: Weighting,
    #[comptime] shape: CubeShape,
) -> Partial<A, N> {
    let mut walk = Walk::new(geometry, false);
    let mut part = Partial::<A, N>::empty();
    let mut left = walk.count;
    while left > 0 {
        let count = at_most(left, comptime!(BLOCK).runtime());
        let block = if comptime!(weighting.any()) {
            weighted_block::<E, A, M, N, W>(
                x, weights, &mut walk, count, numbers, scaled, weighting, shape,
            )
        } else {
            block::<E, A, M, N>(x, &mut walk, count, numbers, scaled, shape)
        };
        let block = block.moments(numbers, scaled);
        part.merge(block, numbers, comptime!(Merge::Moments));
        left -= count;
    }
    part
}

/// The sums over the next `count` vectors.
#[cube]
fn block<E: Numeric, A: Float, M: Size, N: Size>(
    x: &[Vector<E, M>],
    walk: &mut Walk,
    count: usize,
    numbers: &Numbers,
    #[comptime] scaled: bool,
    #[comptime] shape: CubeShape,
) -> Block<A, N> {
    let at_once = comptime!(shape.at_once);
    let zero = Vector::<A, N>::new(A::new(0.0));
    let mut pivot = read::<E, A, M, N>(x, walk.next(false, shape), shape);
    let mut done = 1usize;
    let mut sum = zero;
    let mut squares = zero;
    if count > 2 {
        let second = read::<E, A, M, N>(x, walk.next(false, shape), shape);
        let third = read::<E, A, M, N>(x, walk.next(false, shape), shape);
        let middle = median::<A, N>(pivot, second, third);
        let a = difference::<A, N>(pivot, middle, numbers, scaled);
        let b = difference::<A, N>(second, middle, numbers, scaled);
        let c = difference::<A, N>(third, middle, numbers, scaled);
        sum = a + b + c;
        squares = a * a + b * b + c * c;
        pivot = middle;
        done = 3usize;
    }
    let rest = count - done;
    for _ in 0..rest / at_once {
        let (a, b) = differences::<E, A, M, N>(x, walk, pivot, numbers, at_once, scaled, shape);
        sum += a;
        squares += b;
    }
    if comptime!(at_once > 1) {
        for _ in 0..rest % at_once {
            let (a, b) = differences::<E, A, M, N>(x, walk, pivot, numbers, 1usize, scaled, shape);
            sum += a;
            squares += b;
        }
    }
    Block::<A, N> {
        pivot,
        count: Vector::new(A::cast_from(count)),
        sum,
        squares,
    }
}

/// The sums of `x - k` and of its square, of the next few vectors.
#[cube]
fn differences<E: Numeric, A: Float, M: Size, N: Size>(
    x: &[Vector<E, M>],
    walk: &mut Walk,
    pivot: Vector<A, N>,
    numbers: &Numbers,
    #[comptime] at_once: usize,
    #[comptime] scaled: bool,
    #[comptime] shape: CubeShape,
) -> (Vector<A, N>, Vector<A, N>) {
    let mut values = Sequence::<Vector<A, N>>::new();
    #[unroll]
    for _ in 0..at_once {
        let i = walk.next(false, shape);
        values.push(read::<E, A, M, N>(x, i, shape));
    }
    let mut sum = difference::<A, N>(*values.index(0usize), pivot, numbers, scaled);
    let mut squares = sum * sum;
    #[unroll]
    for k in 1..at_once {
        let diff = difference::<A, N>(*values.index(k), pivot, numbers, scaled);
        sum += diff;
        squares += diff * diff;
    }
    (sum, squares)
}

/// The one in the middle.
#[cube]
pub(crate) fn median<A: Float, N: Size>(
    a: Vector<A, N>,
    b: Vector<A, N>,
    c: Vector<A, N>,
) -> Vector<A, N> {
    let ordered = a.less_than(&b);
    let low = select_many(ordered, a, b);
    let high = select_many(ordered, b, a);
    let rest = select_many(c.less_than(&low), low, c);
    select_many(high.less_than(&rest), high, rest)
}

/// `x - k`, scaled down if so wanted.
#[cube]
pub(crate) fn difference<A: Float, N: Size>(
    value: Vector<A, N>,
    pivot: Vector<A, N>,
    numbers: &Numbers,
    #[comptime] scaled: bool,
) -> Vector<A, N> {
    if comptime!(scaled) {
        let down = Vector::new(numbers.down.get::<A>());
        value * down - pivot * down
    } else {
        value - pivot
    }
}

#[cube]
fn unscaled<A: Float, N: Size>(
    value: Vector<A, N>,
    numbers: &Numbers,
    #[comptime] scaled: bool,
) -> Vector<A, N> {
    if comptime!(scaled) {
        value * Vector::new(numbers.up.get::<A>())
    } else {
        value
    }
}

/// First of two stages: the moments of every split.
#[cube(launch_unchecked)]
pub(crate) fn moments_partial<E: Numeric, A: Float, M: Size, N: Size, P: Size, W: Size>(
    x: &[Vector<E, M>],
    partials: &mut [Vector<A, P>],
    weights: &[Vector<A, W>],
    geometry: &Geometry,
    numbers: &Numbers,
    #[comptime] weighting: Weighting,
    #[comptime] shape: CubeShape,
    #[define(E, A)] _dtypes: [ElemType; 2],
) {
    let part = reduce::<E, A, M, N, P, W>(x, weights, geometry, numbers, weighting, shape);
    let walk = Walk::new(geometry, false);
    store::<A, P>(partials, part, &walk, geometry, comptime!(Merge::Moments));
}

/// The moments of channels that a cube has to itself.
#[cube(launch_unchecked)]
pub(crate) fn moments_whole<E: Numeric, A: Float, M: Size, N: Size, P: Size>(
    x: &[Vector<E, M>],
    center: &mut [Vector<A, P>],
    no_weights: &[Vector<A, P>],
    geometry: &Geometry,
    numbers: &Numbers,
    #[comptime] shape: CubeShape,
    #[define(E, A)] _dtypes: [ElemType; 2],
) {
    let even = comptime!(Weighting::Even);
    let part = reduce::<E, A, M, N, P, P>(x, no_weights, geometry, numbers, even, shape);
    let walk = Walk::new(geometry, false);
    if walk.writes {
        center[walk.channel] = part.first;
        center[walk.channel + geometry.channels] = part.low;
        center[walk.channel + 2 * geometry.channels] = part.second * part.second;
    }
}
