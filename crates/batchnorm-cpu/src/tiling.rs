//! How a tensor is cut: what is added up in which order is a function of its shape and element type alone, so that results do not depend on
//! the number of threads.
//!
//! | term | along a channel | across channels |
//! |---|---|---|
//! | group: channels that one task treats together | as many as stay in the second-level cache, and fewer for many threads | up to 1024 columns |
//! | block: what is summed in one go | about 4096 values of one channel | rows of a group: 128, or about 128 KiB |
//! | partial: what one thread sums where groups are few | consecutive blocks, about 256 KiB | the same |
//!
//! The blocks of a partial are merged in sequence and the partials of a channel pairwise. Which thread computes a partial, and whether those of a
//! group are computed by one thread or by many, changes nothing. Along a channel, neither does the size of a group.
//!
//! Worked example: `[32, 64, 56, 56]` is `(32, 64, 3136)` and long runs. A group is one channel (401 KB of `f32`), its blocks are its 32 runs of
//! 12.5 KB, its partials are two of 16 blocks. `[4096, 1024]` is `(4096, 1024, 1)` and columns: one group of all channels, 32 blocks of 128
//! rows, each a partial.

use std::ops::Range;

use crate::simd::MAX_LANES;
use crate::{Element, Layout, cache};

/// Shorter runs are treated as columns: the overhead per run costs more than arrays of parameters. 7x7 images are the largest such ones in `f32`.
/// Measured with AVX-512 and AVX2, every type: columns are 1.3 to 2 times as fast at half of this (3 in half types), as fast as runs at this.
const LONG_RUN_BYTES: usize = 200;
/// With few rows the parameters of columns cost as much as the data; then runs are long from here on.
const LONG_RUN_BYTES_OF_FEW: usize = 64;
const FEW_ROWS: usize = 12;

/// A kernel that writes what was not just reduced goes along runs from here on, in the order in which they lie in memory. As columns it would take one
/// group after the other, each a small part of every row: 1.2 to 1.8 times as slow at twice this (7x7 images in `f32`).
const LONG_RUN_BYTES_IN_ORDER: usize = 100;

/// Values of a block along a channel: `f32` sums of not many more per lane keep six digits, and a second reading comes from the first-level cache.
const BLOCK: usize = 4096;
/// A block of columns is wider than that cache anyway; its second reading comes from the second level.
const COLUMN_BLOCK_BYTES: usize = 128 << 10;
/// What is done once a block and column (shift, moments and merge in `f64`) costs as much as some dozen rows.
const COLUMN_BLOCK_ROWS: usize = 128;
/// The arrays of parameters and sums of so many columns stay in the first-level cache.
pub(crate) const GROUP_COLUMNS: usize = 1024;
const GROUP_CHANNELS: usize = 1024;
/// A partial is worth a thread's while.
const PARTIAL_BYTES: usize = 256 << 10;
/// More would make the partial results of many channels large.
const MAX_PARTIALS: usize = 64;

/// Which of the two loops drives a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// The values of a channel come in long runs: registers lie along them.
    Along,
    /// They do not: registers lie across channels.
    Across,
}

#[derive(Debug, Clone)]
pub(crate) struct Tiling {
    layout: Layout,
    direction: Direction,
    direction_in_order: Direction,
    /// Channels of a group across channels, the most of one along a channel.
    group: usize,
    /// A block is `rows_per_block` whole rows, or one of the `pieces` of a run.
    rows_per_block: usize,
    pieces: usize,
    piece: usize,
    blocks: usize,
    blocks_per_partial: usize,
}

impl Tiling {
    pub(crate) fn new<E: Element>(layout: Layout) -> Self {
        let size = size_of::<E>();
        let layout = layout.flattened();
        let (outer, channels, inner) = (layout.outer(), layout.channels(), layout.inner());
        let long = if outer < FEW_ROWS {
            LONG_RUN_BYTES_OF_FEW
        } else {
            LONG_RUN_BYTES
        };
        let from = |long| match inner.saturating_mul(size) >= long {
            true => Direction::Along,
            false => Direction::Across,
        };
        let (direction, direction_in_order) = (from(long), from(long.min(LONG_RUN_BYTES_IN_ORDER)));
        let (group, rows_per_block, pieces, piece) = if layout.elements() == 0 {
            (channels.max(1), 1, 1, inner)
        } else if direction == Direction::Across {
            let most = (GROUP_COLUMNS / inner).max(1);
            // Several groups are whole registers each, if so many channels fit.
            let whole = MAX_LANES >> inner.trailing_zeros().min(MAX_LANES.ilog2());
            let unit = if whole <= most { whole } else { 1 };
            let even = channels.div_ceil(channels.div_ceil(most / unit * unit));
            let group = match even < channels {
                true => even.next_multiple_of(unit),
                false => even,
            };
            // Multiples of 16 rows, so that narrow rows can be fused.
            let rows = (COLUMN_BLOCK_BYTES / (group * inner * size))
                .max(COLUMN_BLOCK_ROWS)
                .next_multiple_of(16);
            (group, rows, 1, inner)
        } else if inner > BLOCK {
            // Pieces of equal length, whole cache lines each.
            let piece = inner.div_ceil(inner.div_ceil(BLOCK)).next_multiple_of(64);
            (GROUP_CHANNELS, 1, inner.div_ceil(piece), piece)
        } else {
            (GROUP_CHANNELS, (BLOCK / inner).max(1), 1, inner)
        };
        let blocks = if layout.elements() == 0 {
            0
        } else {
            outer.div_ceil(rows_per_block) * pieces
        };
        let block_elements = match direction {
            Direction::Along => rows_per_block * piece,
            Direction::Across => rows_per_block.saturating_mul(group * inner),
        };
        let blocks_per_partial = PARTIAL_BYTES
            .div_ceil(block_elements.saturating_mul(size).max(1))
            .max(blocks.div_ceil(MAX_PARTIALS))
            .max(1);
        Self {
            layout,
            direction,
            direction_in_order,
            group,
            rows_per_block,
            pieces,
            piece,
            blocks,
            blocks_per_partial,
        }
    }

    pub(crate) fn layout(&self) -> Layout {
        self.layout
    }

    pub(crate) fn direction(&self) -> Direction {
        self.direction
    }

    /// Of a kernel that writes what was not just reduced.
    pub(crate) fn direction_in_order(&self) -> Direction {
        self.direction_in_order
    }

    pub(crate) fn inner(&self) -> usize {
        self.layout.inner()
    }

    /// Channels per group, for `threads` threads and passes over `tensors` tensors of elements `E`.
    pub(crate) fn group<E>(&self, threads: usize, tensors: usize) -> usize {
        if self.direction == Direction::Across {
            return self.group;
        }
        let bytes = self.layout.samples_per_channel() * size_of::<E>();
        let cached = cache::group_bytes(tensors) / bytes.max(1);
        let shared = self.layout.channels() / (threads * crate::parallel::PARTS_PER_THREAD);
        let most = if threads > 1 { shared } else { self.group };
        cached.min(most).clamp(1, self.group)
    }

    /// Number of partials of each channel.
    pub(crate) fn partials(&self) -> usize {
        self.blocks.div_ceil(self.blocks_per_partial)
    }

    /// The blocks of a partial.
    pub(crate) fn blocks(&self, partial: usize) -> Range<usize> {
        let start = partial * self.blocks_per_partial;
        start..(start + self.blocks_per_partial).min(self.blocks)
    }

    /// The rows of a block, and its columns within a channel.
    pub(crate) fn block(&self, block: usize) -> (Range<usize>, Range<usize>) {
        let (row, piece) = (
            block / self.pieces * self.rows_per_block,
            block % self.pieces * self.piece,
        );
        let rows = row..(row + self.rows_per_block).min(self.layout.outer());
        (rows, piece..(piece + self.piece).min(self.inner()))
    }

    /// Number of values that each partial has of a channel.
    pub(crate) fn counts(&self) -> Vec<f64> {
        let of_block = |b| {
            let (rows, cols) = self.block(b);
            rows.len() * cols.len()
        };
        (0..self.partials())
            .map(|partial| self.blocks(partial).map(of_block).sum::<usize>() as f64)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiling(outer: usize, channels: usize, inner: usize) -> Tiling {
        Tiling::new::<f32>(Layout::new(outer, channels, inner).expect("small"))
    }

    #[test]
    fn blocks_cover_each_channel_once() {
        let inners = [
            1, 2, 15, 16, 17, 63, 64, 65, 100, 4095, 4096, 4097, 8192, 9999, 20000,
        ];
        for inner in inners {
            for outer in [1, 2, 3, 4, 5, 15, 16, 17, 100] {
                for channels in [1, 2, 3, 1000] {
                    let tiling = tiling(outer, channels, inner);
                    let (outer, inner) = (tiling.layout().outer(), tiling.inner());
                    let mut seen = vec![0u8; outer * inner];
                    for partial in 0..tiling.partials() {
                        for block in tiling.blocks(partial) {
                            let (rows, cols) = tiling.block(block);
                            assert!(!rows.is_empty() && !cols.is_empty());
                            rows.for_each(|r| cols.clone().for_each(|c| seen[r * inner + c] += 1));
                        }
                    }
                    assert!(seen.iter().all(|&n| n == 1), "{tiling:?}");
                    assert_eq!(tiling.counts().iter().sum::<f64>(), (outer * inner) as f64);
                    assert!(tiling.partials() <= MAX_PARTIALS);
                }
            }
        }
    }

    #[test]
    fn the_worked_examples() {
        let images = tiling(32, 64, 3136);
        assert_eq!(images.direction(), Direction::Along);
        assert_eq!((images.blocks, images.partials()), (32, 2));
        let matrix = tiling(4096, 1024, 1);
        assert_eq!(matrix.direction(), Direction::Across);
        assert_eq!((matrix.group::<f32>(8, 2), matrix.blocks), (1024, 32));
        assert_eq!(matrix.partials(), 32);
    }

    #[test]
    fn short_runs_are_columns_until_they_are_written_in_order() {
        let directions = |outer, inner| {
            let tiling = tiling(outer, 64, inner);
            (tiling.direction(), tiling.direction_in_order())
        };
        assert_eq!(directions(32, 64), (Direction::Along, Direction::Along));
        assert_eq!(directions(32, 49), (Direction::Across, Direction::Along));
        assert_eq!(directions(32, 16), (Direction::Across, Direction::Across));
        // Few rows.
        assert_eq!(directions(8, 16), (Direction::Along, Direction::Along));
        let half = Tiling::new::<half::f16>(Layout::new(32, 64, 64).expect("small"));
        assert_eq!(half.direction(), Direction::Across);
    }

    #[test]
    fn groups_are_even_and_shared_between_threads() {
        // One odd channel does not become a group of its own.
        assert_eq!(tiling(8192, 1025, 1).group::<f32>(2, 2), 528);
        // Groups of short runs are whole registers: 16 channels of 7x7 images, 4 of 6x6, any number of 4x4.
        assert_eq!(tiling(20, 500, 23).group::<f32>(2, 2), 32);
        assert_eq!(tiling(32, 512, 49).group::<f32>(2, 2), 16);
        assert_eq!(tiling(32, 500, 36).group::<f32>(2, 2), 28);
        assert_eq!(tiling(32, 500, 16).group::<f32>(2, 2), 63);
        let few = tiling(32, 512, 64);
        assert!(few.group::<f32>(16, 2) <= 512 / 64);
        assert!(few.group::<f32>(1, 2) >= few.group::<f32>(1, 5));
    }

    #[test]
    fn empty_tensors_have_no_blocks() {
        for (outer, channels, inner) in [
            (0, 3, 5),
            (2, 0, 5),
            (2, 3, 0),
            (0, 1, 0),
            (0, 0, 0),
            (0, 2, usize::MAX),
            (usize::MAX, 2, 0),
        ] {
            assert_eq!(tiling(outer, channels, inner).partials(), 0);
        }
    }
}
