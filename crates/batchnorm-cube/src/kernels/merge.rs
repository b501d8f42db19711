//! How partial results become one.
//!
//! A partial result is a count and two vectors: the moments (mean, M2) or two sums. Moments are merged by Chan's formula,
//!
//! ```text
//!   n = n_a + n_b      d = mean_b - mean_a      mean = mean_a + d * n_b / n      M2 = M2_a + M2_b + d^2 * n_a * n_b / n
//! ```
//!
//! sums by addition. The lanes of a vector along a channel are merged first, then the units of a cube, then the cubes by the finishing
//! kernel. Lanes of a vector across channels are never merged. The order is a function of the cut alone, so results are deterministic; there
//! are no atomics.
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

use crate::blueprint::{CubeShape, Merge};

/// A partial result.
#[derive(CubeType, Clone, Copy)]
#[expand(derive(Clone, Copy))]
pub(crate) struct Partial<A: Float, N: Size> {
    /// Values per lane.
    pub count: A,
    /// The mean, or the first sum.
    pub first: Vector<A, N>,
    /// M2, or the second sum.
    pub second: Vector<A, N>,
}

#[cube]
impl<A: Float, N: Size> Partial<A, N> {
    /// Of no value at all.
    pub fn empty() -> Partial<A, N> {
        let zero = Vector::new(A::new(0.0));
        Partial::<A, N> {
            count: A::new(0.0),
            first: zero,
            second: zero,
        }
    }

    /// Takes another one in.
    pub fn merge(&mut self, other: Partial<A, N>, #[comptime] kind: Merge) {
        let count = self.count + other.count;
        if comptime!(kind == Merge::Sums) {
            self.first += other.first;
            self.second += other.second;
        } else {
            // Of two empty parts the weight is 0, not NaN.
            let weight = other.count / max(count, A::new(1.0));
            let delta = other.first - self.first;
            let step = delta * Vector::new(weight);
            self.second += other.second + delta * step * Vector::new(self.count);
            self.first += step;
        }
        self.count = count;
    }

    /// Merges with the unit of the same plane whose position differs in the bit `distance`; both of them get the same bits.
    fn exchange(&mut self, #[comptime] distance: u32, #[comptime] kind: Merge) {
        let count = plane_shuffle_xor(self.count, distance);
        let first = plane_shuffle_xor(self.first, distance);
        let second = plane_shuffle_xor(self.second, distance);
        let lower = UNIT_POS & distance == 0;
        let upper_part = Partial::<A, N> {
            count: select(lower, count, self.count),
            first: select(lower, first, self.first),
            second: select(lower, second, self.second),
        };
        self.count = select(lower, self.count, count);
        self.first = select(lower, self.first, first);
        self.second = select(lower, self.second, second);
        self.merge(upper_part, kind);
    }
}

/// The lanes of a vector along a channel in one; the vector itself across channels.
#[cube]
pub(crate) fn merge_lanes<A: Float, N: Size, P: Size>(
    part: Partial<A, N>,
    #[comptime] kind: Merge,
    #[comptime] shape: CubeShape,
) -> Partial<A, P> {
    if comptime!(shape.columns) {
        Partial::<A, P> {
            count: part.count,
            first: Vector::cast_from(part.first),
            second: Vector::cast_from(part.second),
        }
    } else {
        let mut merged = lane::<A, N, P>(part, 0usize);
        #[unroll]
        for i in 1..N::value() {
            merged.merge(lane::<A, N, P>(part, i), kind);
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
        count: part.count,
        first: Vector::new(part.first.extract(index)),
        second: Vector::new(part.second.extract(index)),
    }
}

/// The results of a cube's units in one per channel, known to all of them afterwards.
#[cube]
pub(crate) fn merge_units<A: Float, P: Size>(
    part: Partial<A, P>,
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
        part.exchange(comptime!((shape.units_c << step) as u32), kind);
    }
    if comptime!(shape.cube_steps() == 0) {
        part
    } else {
        merge_planes::<A, P>(part, kind, shape)
    }
}

/// The results of a cube's planes, or of its units where planes have merged nothing, in one per channel.
#[cube]
fn merge_planes<A: Float, P: Size>(
    part: Partial<A, P>,
    #[comptime] kind: Merge,
    #[comptime] shape: CubeShape,
) -> Partial<A, P> {
    let results = comptime!(shape.units_c);
    // Units in a row that hold the same results.
    let merged = comptime!(results << shape.plane_steps());
    let parts = comptime!(shape.units() >> shape.plane_steps());
    let mut counts = Shared::<[A]>::new_slice(parts);
    let mut firsts = Shared::<[Vector<A, P>]>::new_slice(parts);
    let mut seconds = Shared::<[Vector<A, P>]>::new_slice(parts);

    let unit = UNIT_POS as usize;
    let result = unit % results;
    if unit % merged < results {
        let slot = unit / merged * results + result;
        counts[slot] = part.count;
        firsts[slot] = part.first;
        seconds[slot] = part.second;
    }
    sync_cube();

    #[unroll]
    for step in 0..comptime!(shape.cube_steps()) {
        let half = comptime!(parts >> (step + 1));
        if unit < half {
            let other = unit + half;
            let mut low = Partial::<A, P> {
                count: counts[unit],
                first: firsts[unit],
                second: seconds[unit],
            };
            low.merge(
                Partial::<A, P> {
                    count: counts[other],
                    first: firsts[other],
                    second: seconds[other],
                },
                kind,
            );
            counts[unit] = low.count;
            firsts[unit] = low.first;
            seconds[unit] = low.second;
        }
        sync_cube();
    }

    Partial::<A, P> {
        count: counts[result],
        first: firsts[result],
        second: seconds[result],
    }
}

/// Where the results of all splits wait for the finishing kernel: planes of `[splits][channels]` for count, first and second, then one row
/// of the channels' shifts.
#[cube]
pub(crate) fn store<A: Float, P: Size>(
    partials: &mut [Vector<A, P>],
    part: Partial<A, P>,
    shift: Vector<A, P>,
    channel: usize,
    split: usize,
    channels: usize,
    splits: usize,
) {
    let plane = splits * channels;
    let index = split * channels + channel;
    partials[index] = Vector::new(part.count);
    partials[index + plane] = part.first;
    partials[index + 2 * plane] = part.second;
    if split == 0 {
        partials[3 * plane + channel] = shift;
    }
}

/// The stored results of the splits that this unit merges.
#[cube]
pub(crate) fn load<A: Float, P: Size>(
    partials: &[Vector<A, P>],
    index: usize,
    plane: usize,
) -> Partial<A, P> {
    Partial::<A, P> {
        count: partials[index].extract(0usize),
        first: partials[index + plane],
        second: partials[index + 2 * plane],
    }
}
