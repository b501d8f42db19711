//! How partial results become one.
//!
//! A partial result is a count and two vectors: the moments (mean, M2) or two sums. Moments are merged by Chan's formula,
//!
//! ```text
//!   n = n_a + n_b      d = mean_b - mean_a      mean = mean_a + d * n_b / n      M2 = M2_a + M2_b + d^2 * n_a * n_b / n
//! ```
//!
//! sums by addition. The lanes of a vector along a channel are merged first, then the units of a cube in a tree through shared memory (one
//! barrier per step, none where a unit has its channels to itself; that happens once per cube, so plane operations, which not every device
//! has, would gain next to nothing), then the cubes by the finishing kernel. The order is a function of the
//! cut alone, so results are deterministic; there are no atomics. Lanes of a vector across channels are never merged.

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
    if comptime!(shape.merge_steps() == 0) {
        part
    } else {
        let units = comptime!(shape.units());
        let mut counts = Shared::<[A]>::new_slice(units);
        let mut firsts = Shared::<[Vector<A, P>]>::new_slice(units);
        let mut seconds = Shared::<[Vector<A, P>]>::new_slice(units);

        let unit = UNIT_POS as usize;
        counts[unit] = part.count;
        firsts[unit] = part.first;
        seconds[unit] = part.second;
        sync_cube();

        #[unroll]
        for step in 0..comptime!(shape.merge_steps()) {
            let half = comptime!(shape.units() >> (step + 1));
            if unit < half {
                let other = unit + half;
                let mut merged = Partial::<A, P> {
                    count: counts[unit],
                    first: firsts[unit],
                    second: seconds[unit],
                };
                merged.merge(
                    Partial::<A, P> {
                        count: counts[other],
                        first: firsts[other],
                        second: seconds[other],
                    },
                    kind,
                );
                counts[unit] = merged.count;
                firsts[unit] = merged.first;
                seconds[unit] = merged.second;
            }
            sync_cube();
        }

        let result = unit % comptime!(shape.results());
        Partial::<A, P> {
            count: counts[result],
            first: firsts[result],
            second: seconds[result],
        }
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
