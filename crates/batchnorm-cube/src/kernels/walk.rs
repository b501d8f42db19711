//! Which unit reads what.
//!
//! A tensor of `(outer, channels, inner)` is a matrix of `outer` rows in memory. A cube takes a tile of it: neighbouring channels times a
//! share of the rest, so that a channel is one cube's or several cubes' (`splits`). Units form a box in the cube, `units_c` channels by
//! `units_x` vectors of a row by `units_y` rows:
//!
//! ```text
//!   rows (inner > 1), units_c = 1                    columns (inner == 1): vectors across channels, units_x = 1
//!
//!            inner, in vectors                                channels, in vectors
//!   outer 0 | x0 x1 x2 x3 x0 x1 ..                   outer 0 | c0 c1 c2 c3
//!   outer 1 | x0 x1 x2 x3 x0 x1 ..   (y = 1)         outer 1 | c0 c1 c2 c3   (y = 1)
//!   outer 2 | x0 x1 x2 x3 x0 x1 ..   (y = 0)         outer 2 | c0 c1 c2 c3   (y = 0)
//! ```
//!
//! Rows that are shorter than what memory delivers at once are in between: several channels side by side, several vectors of each.
//! `UNIT_POS` counts channels first, then vectors, then rows: units on the same channel are `units_c` apart, which is what `merge.rs` builds
//! on, and units next to each other read memory that lies together.
//!
//! A unit's walk over its vectors is one flat loop whose index moves by additions only: the divisions are made once, where the walk starts.
//! Units with nothing to do walk zero steps, so that barriers are met by all of them.

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
        let unit = UNIT_POS as usize;
        let unit_c = unit % comptime!(shape.units_c);
        let unit_x = unit / comptime!(shape.units_c) % comptime!(shape.units_x);
        let unit_y = unit / comptime!(shape.units_c * shape.units_x);

        let wanted = CUBE_POS % geometry.tiles * comptime!(shape.units_c) + unit_c;
        let inside = wanted < geometry.channels;
        let channel = at_most(wanted, geometry.channels - 1);

        let split = CUBE_POS / geometry.tiles;
        let begin = split / geometry.row_splits * geometry.outer_share;
        let end = at_most(begin + geometry.outer_share, geometry.outer);
        let rows = steps(begin + unit_y, end, comptime!(shape.units_y));
        let row_begin = split % geometry.row_splits * geometry.row_share;
        let row_end = at_most(row_begin + geometry.row_share, geometry.row);
        let per_row = steps(row_begin + unit_x, row_end, comptime!(shape.units_x));

        let start = ((begin + unit_y) * geometry.channels + channel) * geometry.row;
        let height = geometry.channels * geometry.row * comptime!(shape.units_y);
        let width = per_row * comptime!(shape.units_x);
        Walk {
            count: select(inside, rows * per_row, 0usize),
            index: start + row_begin + unit_x,
            origin: channel * geometry.row,
            channel,
            split,
            writes: unit_x == 0 && unit_y == 0 && inside && begin < geometry.outer,
            left: per_row,
            per_row,
            jump: height + comptime!(shape.units_x) - width,
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
