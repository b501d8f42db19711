//! Which unit reads what.
//!
//! A tensor of `(outer, channels, inner)` is a matrix of `outer` rows in memory. A cube takes a tile of it: a block of channels times a share
//! of the rest, so that a channel is one cube's or several cubes' (`splits`). Units form a rectangle in the cube:
//!
//! ```text
//!   rows (inner > 1): tile = one channel            columns (inner == 1): tile = units_x vectors of channels
//!
//!            inner, in vectors                                channels, in vectors
//!   outer 0 | x0 x1 x2 x3 x0 x1 ..                   outer 0 | x0 x1 x2 x3
//!   outer 1 | x0 x1 x2 x3 x0 x1 ..   (y = 1)         outer 1 | x0 x1 x2 x3   (y = 1)
//!   outer 2 | x0 x1 x2 x3 x0 x1 ..   (y = 0)         outer 2 | x0 x1 x2 x3   (y = 0)
//! ```
//!
//! Neighbouring units read neighbouring vectors. A unit's walk over its vectors is one flat loop whose index moves by additions only: the
//! divisions are made once, where the walk starts. Units with nothing to do walk zero steps, so that barriers are met by all of them.

use cubecl::prelude::*;

use crate::blueprint::CubeShape;

/// The shape of the tensor and its cut, in vectors.
#[derive(CubeType, CubeLaunch)]
pub(crate) struct Geometry {
    /// Rows of the tensor.
    pub outer: usize,
    /// Vectors of channel parameters.
    pub channels: usize,
    /// Vectors of a channel in a row.
    pub row: usize,
    /// Tiles side by side; `tiles * splits` cubes have work.
    pub tiles: usize,
    /// Rows of a split.
    pub outer_share: usize,
    /// Vectors of a row in a split.
    pub row_share: usize,
    /// Splits of a row.
    pub row_splits: usize,
}

/// A unit's way over its vectors.
#[derive(CubeType)]
pub(crate) struct Walk {
    /// Vectors on the way.
    pub count: usize,
    /// Index of the current vector.
    pub index: usize,
    /// Index of the first vector of the channel: a valid one even where `count` is 0.
    pub origin: usize,
    /// Index of the channel's parameters.
    pub channel: usize,
    /// Index of the split.
    pub split: usize,
    /// Whether this unit writes what the cube computes for the channel.
    pub writes: bool,
    left: usize,
    per_row: usize,
    jump: usize,
}

#[cube]
impl Walk {
    /// The way of this unit.
    pub fn new(geometry: &Geometry, #[comptime] shape: CubeShape) -> Walk {
        let tile = CUBE_POS % geometry.tiles;
        let split = CUBE_POS / geometry.tiles;
        let unit_x = UNIT_POS_X as usize;
        let unit_y = UNIT_POS_Y as usize;
        let outer_split = split / geometry.row_splits;

        let begin = outer_split * geometry.outer_share;
        let end = at_most(begin + geometry.outer_share, geometry.outer);
        let rows = steps(begin + unit_y, end, comptime!(shape.units_y));

        if comptime!(shape.columns) {
            let wanted = tile * comptime!(shape.units_x) + unit_x;
            let inside = wanted < geometry.channels;
            let channel = at_most(wanted, geometry.channels - 1);
            Walk {
                count: select(inside, rows, 0usize),
                index: (begin + unit_y) * geometry.channels + channel,
                origin: channel,
                channel,
                split,
                writes: unit_y == 0 && inside && begin < geometry.outer,
                left: 1usize,
                per_row: 1usize,
                jump: geometry.channels * comptime!(shape.units_y),
            }
        } else {
            let row_begin = (split % geometry.row_splits) * geometry.row_share;
            let row_end = at_most(row_begin + geometry.row_share, geometry.row);
            let per_row = steps(row_begin + unit_x, row_end, comptime!(shape.units_x));
            let start = ((begin + unit_y) * geometry.channels + tile) * geometry.row;
            let height = geometry.channels * geometry.row * comptime!(shape.units_y);
            let width = per_row * comptime!(shape.units_x);
            Walk {
                count: rows * per_row,
                index: start + row_begin + unit_x,
                origin: tile * geometry.row,
                channel: tile,
                split,
                writes: unit_x == 0 && unit_y == 0 && begin < geometry.outer,
                left: per_row,
                per_row,
                jump: height + comptime!(shape.units_x) - width,
            }
        }
    }

    /// To the next vector.
    pub fn advance(&mut self, #[comptime] shape: CubeShape) {
        if comptime!(shape.columns) {
            self.index += self.jump;
        } else {
            let last = self.left == 1;
            self.index += select(last, self.jump, comptime!(shape.units_x).runtime());
            self.left = select(last, self.per_row, self.left - 1);
        }
    }
}

/// The smaller of both.
#[cube]
pub(crate) fn at_most(value: usize, limit: usize) -> usize {
    select(value < limit, value, limit)
}

/// Steps of width `step` from `begin` before `end`.
#[cube]
fn steps(begin: usize, end: usize, #[comptime] step: usize) -> usize {
    select(begin < end, (end - begin).div_ceil(step), 0usize)
}
