//! Which unit reads what.
//!
//! A channel of a tensor is a sequence of vectors: its rows, one after the other. In memory `channel_stride` lies between the rows of
//! neighbouring channels and `stride` between the rows of one channel. A cube takes neighbouring channels, and of each the share that the
//! channel's *split* has of the sequence. Its units count channels first; those on the same channel, the *lanes*, take its vectors in turn:
//!
//! ```text
//!   rows (inner > 1): 1 channel, 4 lanes, rows of 6         columns (inner == 1): vectors across channels; 4 of them, 2 lanes
//!
//!            inner, in vectors                                      channels, in vectors
//!   outer 0 | u0 u1 u2 u3 u0 u1                             outer 0 | u0 u1 u2 u3
//!   outer 1 | u2 u3 u0 u1 u2 u3                             outer 1 | u4 u5 u6 u7
//!   outer 2 | u0 u1 ..                                      outer 2 | u0 u1 u2 u3
//! ```
//!
//! So no lane idles before the last step, whatever the length of a row. Units next to each other read memory that lies together, and units
//! on the same channel are `units_c` apart, which is what `merge.rs` builds on.
//!
//! A walk is one flat loop whose index moves by additions: the divisions are made once, where it starts. Units with nothing to do walk zero
//! steps, so that barriers are met by all of them. A walk can go backwards: on a GPU the second sweep over a tensor does, for what the first
//! one read last is what caches still hold. (Not measured on a GPU; Mesa's software driver takes 1.7 times as long.)

use cubecl::prelude::*;

use crate::blueprint::CubeShape;

/// The shape of the tensor and its cut, in vectors.
#[derive(CubeType, CubeLaunch)]
pub(crate) struct Geometry {
    /// Vectors of channel parameters.
    pub channels: usize,
    /// Vectors of a channel.
    pub len: usize,
    /// Vectors of a channel in a row.
    pub row: usize,
    /// From a row of a channel to its next one.
    pub stride: usize,
    /// From a row of a channel to that of the next channel.
    pub channel_stride: usize,
    /// Groups of channels; `tiles * splits` cubes have work.
    pub tiles: usize,
    /// Cubes that share a channel.
    pub splits: usize,
    /// Vectors of a split.
    pub share: usize,
    /// Channels of a cube.
    pub units_c: usize,
    /// Units on the same channel.
    pub lanes: usize,
    /// A step of a walk within its row: `lanes % row`.
    pub step: usize,
    /// The same in memory, with the rows that it skips.
    pub jump: usize,
}

/// A unit's way over its vectors.
#[derive(CubeType)]
pub(crate) struct Walk {
    /// Vectors on the way.
    pub count: usize,
    /// Index of the current vector.
    pub index: usize,
    /// Its place in the sequence of its channel.
    pub position: usize,
    /// Index of the channel's parameters: a valid one even where `count` is 0.
    pub channel: usize,
    /// Index of the split.
    pub split: usize,
    /// Whether this unit writes what the cube computes for the channel.
    pub writes: bool,
    within: usize,
    row: usize,
    lanes: usize,
    step: usize,
    jump: usize,
    jump_over: usize,
}

#[cube]
impl Walk {
    /// The way of this unit.
    pub fn new(geometry: &Geometry, #[comptime] backwards: bool) -> Walk {
        let unit = UNIT_POS as usize;
        let lane = unit / geometry.units_c;
        let wanted = CUBE_POS % geometry.tiles * geometry.units_c + unit % geometry.units_c;
        let channel = at_most(wanted, geometry.channels - 1);
        let turn = CUBE_POS / geometry.tiles;
        // A grid can have more cubes than there is work for.
        let inside = wanted < geometry.channels && turn < geometry.splits;
        let split = if comptime!(backwards) {
            geometry.splits - 1 - turn
        } else {
            turn
        };

        let begin = split * geometry.share;
        let end = at_most(begin + geometry.share, geometry.len);
        let first = begin + lane;
        let steps = (end - first).div_ceil(geometry.lanes);
        let count = select(inside && first < end, steps, 0usize);
        let start = if comptime!(backwards) {
            first + (select(count == 0, 1usize, count) - 1) * geometry.lanes
        } else {
            first
        };
        let within = start % geometry.row;
        let row = start / geometry.row;
        Walk {
            count,
            index: row * geometry.stride + channel * geometry.channel_stride + within,
            position: start,
            channel,
            split,
            writes: lane == 0 && inside,
            within,
            row: geometry.row,
            lanes: geometry.lanes,
            step: geometry.step,
            jump: geometry.jump,
            jump_over: geometry.jump + geometry.stride - geometry.row,
        }
    }

    /// The current vector's index, and on to the next one.
    pub fn next(&mut self, #[comptime] backwards: bool, #[comptime] shape: CubeShape) -> usize {
        // A copy: the walk's own index changes.
        let mut index = 0usize;
        index += self.index;
        self.advance(backwards, shape);
        index
    }

    /// To the next vector.
    fn advance(&mut self, #[comptime] backwards: bool, #[comptime] shape: CubeShape) {
        if comptime!(backwards) {
            self.position -= self.lanes;
        } else {
            self.position += self.lanes;
        }
        if comptime!(shape.columns && backwards) {
            self.index -= self.jump;
        } else if comptime!(shape.columns) {
            self.index += self.jump;
        } else if comptime!(backwards) {
            let over = self.within < self.step;
            self.index -= select(over, self.jump_over, self.jump);
            self.within = select(over, self.within + self.row, self.within) - self.step;
        } else {
            let next = self.within + self.step;
            let over = next >= self.row;
            self.index += select(over, self.jump_over, self.jump);
            self.within = select(over, next - self.row, next);
        }
    }
}

/// The smaller of both.
#[cube]
pub(crate) fn at_most(value: usize, limit: usize) -> usize {
    select(value < limit, value, limit)
}
