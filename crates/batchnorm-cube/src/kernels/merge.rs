//! How partial results become one.
//!
//! A partial result is of two kinds. Sums are merged by addition. Moments are a count (or the sum of weights), a mean in two parts (a float
//! and what rounding took from it: an outlier in front of many small values costs them no digit) and a standard deviation; they are merged
//! by Chan's formula,
//!
//! ```text
//!   n = n_a + n_b      w = n_b / n      d = mean_b - mean_a      mean = mean_a + d w      s^2 = s_a^2 (1 - w) + s_b^2 w + d^2 w (1 - w)
//! ```
//!
//! with deviations instead of their squares, which overflow beyond 1e19 in `f32`. The lanes of a vector along a channel are merged first,
//! then the units of a cube, then the cubes by the kernel that follows. Lanes of a vector across channels are never merged. The order is a
//! function of the cut alone, so results are deterministic; there are no atomics.
//!
//! # The units of a cube
//!
//! Units on the same channel are `units_c` apart (`walk.rs`), so each step merges pairs a power of two apart. Of 64 units, 8 on each of 8
//! channels, with planes of 32:
//!
//! ```text
//!   unit  0..7   8..15   16..23   24..31  |  32..39   40..47   48..55   56..63
//!           a <-> b        c  <->  d             e  <->  f        g  <->  h       in a plane, 8 apart
//!           ab <---------> cd                    ef <---------> gh                in a plane, 16 apart
//!           abcd <------------------------------ efgh                             through shared memory
//! ```
//!
//! Where the device has plane operations, units of a plane exchange registers: no memory, no barrier. Both units of a pair compute the same
//! thing, the lower one's part merged with the upper one's, so that all of them end with the same bits. What is left, one value per plane and
//! channel, goes through shared memory with a barrier per step. Without plane operations everything does. Where a unit has its channels to
//! itself there is no step at all.

use cubecl::prelude::*;

use super::numbers::{Numbers, divisor, root_of_squares, two_sum};
use super::walk::{Geometry, Walk};
use crate::blueprint::{CubeShape, Merge};

/// A partial result.
#[derive(CubeType, Clone, Copy)]
#[expand(derive(Clone, Copy))]
pub(crate) struct Partial<A: Float, N: Size> {
    /// The values of each lane, or the sum of their weights; of moments only.
    pub count: Vector<A, N>,
    /// The mean, or the first sum.
    pub first: Vector<A, N>,
    /// What rounding took from the mean; of moments only.
    pub low: Vector<A, N>,
    /// The standard deviation, or the second sum.
    pub second: Vector<A, N>,
}

#[cube]
impl<A: Float, N: Size> Partial<A, N> {
    /// Of no value at all.
    pub fn empty() -> Partial<A, N> {
        let zero = Vector::new(A::new(0.0));
        Partial::<A, N> {
            count: zero,
            first: zero,
            low: zero,
            second: zero,
        }
    }

    /// Of two sums.
    pub fn sums(first: Vector<A, N>, second: Vector<A, N>) -> Partial<A, N> {
        let zero = Vector::new(A::new(0.0));
        Partial::<A, N> {
            count: zero,
            first,
            low: zero,
            second,
        }
    }

    /// Takes another one in.
    pub fn merge(&mut self, other: Partial<A, N>, numbers: &Numbers, #[comptime] kind: Merge) {
        if comptime!(kind == Merge::Sums) {
            self.first += other.first;
            self.second += other.second;
        } else {
            let count = self.count + other.count;
            // Of two empty parts the weight is 0, not NaN.
            let weight = other.count / divisor::<A, N>(count, numbers);
            let rest = Vector::new(A::new(1.0)) - weight;
            let delta = (other.first - self.first) + (other.low - self.low);
            let second = root_of_squares::<A, N>(
                self.second,
                rest,
                other.second,
                weight,
                delta,
                weight * rest,
                numbers,
            );
            let step = delta * weight;
            let (first, low) = two_sum::<A, N>(self.first, self.low + step, numbers);
            // The sum of nothing and a mean in two parts would be rounded to one.
            let fresh = self.count.equal(&Vector::new(A::new(0.0)));
            self.first = select_many(fresh, other.first, first);
            self.low = select_many(fresh, other.low, low);
            self.second = select_many(fresh, other.second, second);
            self.count = count;
        }
    }

    /// Merges with the unit of the same plane whose position differs in the bit `distance`; both of them get the same bits.
    fn exchange(&mut self, numbers: &Numbers, #[comptime] distance: u32, #[comptime] kind: Merge) {
        let lower = UNIT_POS & distance == 0;
        let first = plane_shuffle_xor(self.first, distance);
        let second = plane_shuffle_xor(self.second, distance);
        let mut upper_part = Partial::<A, N>::sums(
            select(lower, first, self.first),
            select(lower, second, self.second),
        );
        self.first = select(lower, self.first, first);
        self.second = select(lower, self.second, second);
        if comptime!(kind == Merge::Moments) {
            let count = plane_shuffle_xor(self.count, distance);
            let low = plane_shuffle_xor(self.low, distance);
            upper_part.count = select(lower, count, self.count);
            upper_part.low = select(lower, low, self.low);
            self.count = select(lower, self.count, count);
            self.low = select(lower, self.low, low);
        }
        self.merge(upper_part, numbers, kind);
    }
}

/// The lanes of a vector along a channel in one; the vector itself across channels.
#[cube]
pub(crate) fn merge_lanes<A: Float, N: Size, P: Size>(
    part: Partial<A, N>,
    numbers: &Numbers,
    #[comptime] kind: Merge,
    #[comptime] shape: CubeShape,
) -> Partial<A, P> {
    if comptime!(shape.columns) {
        Partial::<A, P> {
            count: Vector::cast_from(part.count),
            first: Vector::cast_from(part.first),
            low: Vector::cast_from(part.low),
            second: Vector::cast_from(part.second),
        }
    } else {
        let mut merged = lane::<A, N, P>(part, 0usize);
        #[unroll]
        for i in 1..N::value() {
            merged.merge(lane::<A, N, P>(part, i), numbers, kind);
        }
        merged
    }
}

#[cube]
fn lane<A: Float, N: Size, P: Size>(
    part: Partial<A, N>,
    #[comptime] index: usize,
) -> Partial<A, P> {
    Partial::<A, P> {
        count: Vector::new(part.count.extract(index)),
        first: Vector::new(part.first.extract(index)),
        low: Vector::new(part.low.extract(index)),
        second: Vector::new(part.second.extract(index)),
    }
}

/// The results of a cube's units in one per channel, known to all of them afterwards.
#[cube]
pub(crate) fn merge_units<A: Float, P: Size>(
    part: Partial<A, P>,
    numbers: &Numbers,
    #[comptime] kind: Merge,
    #[comptime] shape: CubeShape,
) -> Partial<A, P> {
    let mut part = part;
    if comptime!(shape.plane_steps() > 0) {
        // Loops of different lengths may have parted the plane's units, and on CUDA a shuffle reaches those only that run with it.
        sync_plane();
    }
    #[unroll]
    for step in 0..comptime!(shape.plane_steps()) {
        part.exchange(numbers, comptime!((shape.units_c << step) as u32), kind);
    }
    if comptime!(shape.cube_steps() == 0) {
        part
    } else {
        merge_planes::<A, P>(part, numbers, kind, shape)
    }
}

/// The results of a cube's planes, or of its units where planes have merged nothing, in one per channel.
#[cube]
fn merge_planes<A: Float, P: Size>(
    part: Partial<A, P>,
    numbers: &Numbers,
    #[comptime] kind: Merge,
    #[comptime] shape: CubeShape,
) -> Partial<A, P> {
    let results = comptime!(shape.units_c);
    // Units in a row that hold the same results.
    let merged = comptime!(results << shape.plane_steps());
    let parts = comptime!(shape.parts());
    let moments = comptime!(match kind {
        Merge::Moments => parts,
        Merge::Sums => 1,
    });
    let mut counts = Shared::<[Vector<A, P>]>::new_slice(moments);
    let mut lows = Shared::<[Vector<A, P>]>::new_slice(moments);
    let mut firsts = Shared::<[Vector<A, P>]>::new_slice(parts);
    let mut seconds = Shared::<[Vector<A, P>]>::new_slice(parts);

    let unit = UNIT_POS as usize;
    let result = unit % results;
    if unit % merged < results {
        let slot = unit / merged * results + result;
        firsts[slot] = part.first;
        seconds[slot] = part.second;
        if comptime!(kind == Merge::Moments) {
            counts[slot] = part.count;
            lows[slot] = part.low;
        }
    }
    sync_cube();

    #[unroll]
    for step in 0..comptime!(shape.cube_steps()) {
        let half = comptime!(parts >> (step + 1));
        if unit < half {
            let other = unit + half;
            let mut near = Partial::<A, P>::sums(firsts[unit], seconds[unit]);
            let mut far = Partial::<A, P>::sums(firsts[other], seconds[other]);
            if comptime!(kind == Merge::Moments) {
                near.count = counts[unit];
                near.low = lows[unit];
                far.count = counts[other];
                far.low = lows[other];
            }
            near.merge(far, numbers, kind);
            firsts[unit] = near.first;
            seconds[unit] = near.second;
            if comptime!(kind == Merge::Moments) {
                counts[unit] = near.count;
                lows[unit] = near.low;
            }
        }
        sync_cube();
    }

    let mut all = Partial::<A, P>::sums(firsts[result], seconds[result]);
    if comptime!(kind == Merge::Moments) {
        all.count = counts[result];
        all.low = lows[result];
    }
    all
}

/// Where the results of all splits wait for the kernel that follows: planes of `[splits][channels]` for first and second and, of moments,
/// for low and the count.
#[cube]
pub(crate) fn store<A: Float, P: Size>(
    partials: &mut [Vector<A, P>],
    part: Partial<A, P>,
    walk: &Walk,
    geometry: &Geometry,
    #[comptime] kind: Merge,
) {
    if walk.writes {
        let plane = geometry.splits * geometry.channels;
        let index = walk.split * geometry.channels + walk.channel;
        partials[index] = part.first;
        partials[index + plane] = part.second;
        if comptime!(kind == Merge::Moments) {
            partials[index + 2 * plane] = part.low;
            partials[index + 3 * plane] = part.count;
        }
    }
}

#[cube]
fn load<A: Float, P: Size>(
    partials: &[Vector<A, P>],
    index: usize,
    plane: usize,
    #[comptime] kind: Merge,
) -> Partial<A, P> {
    let mut part = Partial::<A, P>::sums(partials[index], partials[index + plane]);
    if comptime!(kind == Merge::Moments) {
        part.low = partials[index + 2 * plane];
        part.count = partials[index + 3 * plane];
    }
    part
}

/// The results of few splits, merged by every unit for itself.
#[cube]
pub(crate) fn merge_few<A: Float, P: Size>(
    partials: &[Vector<A, P>],
    splits: usize,
    channel: usize,
    channels: usize,
    numbers: &Numbers,
    #[comptime] kind: Merge,
) -> Partial<A, P> {
    let mut part = Partial::<A, P>::empty();
    for split in 0..splits {
        let other = load::<A, P>(
            partials,
            split * channels + channel,
            splits * channels,
            kind,
        );
        part.merge(other, numbers, kind);
    }
    part
}

/// The results of many splits, merged by the cube's units together: the tensor here is `[splits][channels]`, walked by columns.
#[cube]
pub(crate) fn merge_many<A: Float, P: Size>(
    partials: &[Vector<A, P>],
    geometry: &Geometry,
    numbers: &Numbers,
    #[comptime] kind: Merge,
    #[comptime] shape: CubeShape,
) -> Partial<A, P> {
    let mut walk = Walk::new(geometry, false);
    let plane = geometry.len * geometry.channels;
    let mut part = Partial::<A, P>::empty();
    for _ in 0..walk.count {
        let other = load::<A, P>(partials, walk.next(false, shape), plane, kind);
        part.merge(other, numbers, kind);
    }
    merge_units::<A, P>(part, numbers, kind, shape)
}
