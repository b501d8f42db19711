//! How a tensor is cut: a function of its shape and element type alone, so that results do not depend on the number of threads.
//!
//! | term | in the regime `Rows` | in the regime `Columns` |
//! |---|---|---|
//! | unit: channels that one task treats together | as many as stay in the second-level cache, at least 1 | up to 1024 columns |
//! | block: what is summed in one go | about 4096 values of one channel | rows of a unit, 128 or about 128 KiB |
//! | chunk: what one thread sums when units are few | consecutive blocks, about 256 KiB | as for `Rows` |
//!
//! A block's sums come from the leaf loops, the blocks of a chunk are merged in sequence and the chunks of a unit pairwise. Which thread computes a
//! chunk, and whether the chunks of a unit are computed by one thread or by many, changes nothing.
//!
//! Worked example: `[32, 64, 56, 56]` is `(32, 64, 3136)` and long rows. A unit is one channel (401 KB of `f32`), its blocks are its 32 rows of
//! 12.5 KB, its chunks are two of 16 blocks. `[4096, 1024]` is `(4096, 1024, 1)` and columns: one unit of all channels, 32 blocks of 128
//! rows, each a chunk.

use std::ops::Range;

use crate::{Element, Layout};

/// Shorter runs are treated as columns: the overhead per run and register tails cost more than arrays of parameters. Measured with
/// AVX2 and AVX-512: rows lose in part at 16 (backward), and are 1.1 to 1.5 times as fast from 24 to 63.
const LONG_ROW: usize = 24;
/// With few rows the parameters of columns cost as much as the data; then rows are long from here on.
const LONG_ROW_OF_FEW: usize = 16;
const FEW_ROWS: usize = 4;

/// Values of a block of a row: `f32` sums of not many more per lane keep six digits, and the rare second reading comes from the first-level
/// cache (32 KiB and more).
const ROW_BLOCK: usize = 4096;
/// A block of columns is wider than that cache anyway; its second reading comes from the second level.
const COLUMN_BLOCK_BYTES: usize = 128 << 10;
/// What is done once a block and column (pilot, moments and merge in `f64`) costs as much as some dozen rows.
const COLUMN_BLOCK_ROWS: usize = 128;
/// The arrays of parameters and accumulators of so many columns stay in the first-level cache.
const UNIT_COLUMNS: usize = 1024;
/// What a unit may hold so that its input and its output stay in the second-level cache (1 MiB on current server cores) between two passes.
const UNIT_BYTES: usize = 256 << 10;
const UNIT_CHANNELS: usize = 1024;
/// A chunk is worth a thread's while.
const CHUNK_BYTES: usize = 256 << 10;
/// More would make the partial results of many channels large.
const MAX_CHUNKS: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Regime {
    /// The values of a channel come in long runs: vectorize along them.
    Rows,
    /// They do not: vectorize across channels.
    Columns,
}

#[derive(Debug, Clone)]
pub(crate) struct Plan {
    layout: Layout,
    regime: Regime,
    unit: usize,
    /// A block is `rows_per_block` whole rows, or one of the `pieces` of a row.
    rows_per_block: usize,
    pieces: usize,
    piece: usize,
    blocks: usize,
    blocks_per_chunk: usize,
}

impl Plan {
    pub(crate) fn new<E: Element>(layout: Layout) -> Self {
        let size = size_of::<E>();
        let layout = layout.flattened();
        let (outer, channels, inner) = (layout.outer(), layout.channels(), layout.inner());
        let long = if outer < FEW_ROWS {
            LONG_ROW_OF_FEW
        } else {
            LONG_ROW
        };
        let regime = if inner >= long {
            Regime::Rows
        } else {
            Regime::Columns
        };
        let channel_bytes = (layout.samples_per_channel() * size).max(1);

        let (unit, rows_per_block, pieces, piece) = match regime {
            Regime::Rows => {
                let unit = (UNIT_BYTES / channel_bytes).clamp(1, UNIT_CHANNELS);
                if inner > ROW_BLOCK {
                    // Pieces of equal length, whole cache lines each.
                    let piece = inner
                        .div_ceil(inner.div_ceil(ROW_BLOCK))
                        .next_multiple_of(64);
                    (unit, 1, inner.div_ceil(piece), piece)
                } else {
                    (unit, (ROW_BLOCK / inner).max(1), 1, inner)
                }
            }
            Regime::Columns => {
                let fits = UNIT_COLUMNS / inner.max(1);
                let unit = if channels <= fits {
                    channels
                } else {
                    (fits / 16 * 16).max(1)
                };
                let row_bytes = (unit * inner * size).max(1);
                // Multiples of 16 rows, so that narrow rows can be fused.
                let rows = (COLUMN_BLOCK_BYTES / row_bytes)
                    .max(COLUMN_BLOCK_ROWS)
                    .next_multiple_of(16);
                (unit, rows, 1, inner)
            }
        };
        let blocks = if layout.elements() == 0 {
            0
        } else {
            outer.div_ceil(rows_per_block) * pieces
        };
        let block_bytes = match regime {
            Regime::Rows => rows_per_block * piece * size,
            Regime::Columns => rows_per_block * unit * inner * size,
        };
        let blocks_per_chunk = CHUNK_BYTES
            .div_ceil(block_bytes.max(1))
            .max(blocks.div_ceil(MAX_CHUNKS))
            .max(1);
        Self {
            layout,
            regime,
            unit: unit.max(1),
            rows_per_block,
            pieces,
            piece,
            blocks,
            blocks_per_chunk,
        }
    }

    pub(crate) fn layout(&self) -> Layout {
        self.layout
    }

    pub(crate) fn regime(&self) -> Regime {
        self.regime
    }

    pub(crate) fn inner(&self) -> usize {
        self.layout.inner()
    }

    /// Channels per unit.
    pub(crate) fn unit(&self) -> usize {
        self.unit
    }

    /// Number of units of `channels` channels.
    pub(crate) fn units(&self, channels: usize) -> usize {
        channels.div_ceil(self.unit)
    }

    /// Number of chunks of each unit.
    pub(crate) fn chunks(&self) -> usize {
        self.blocks.div_ceil(self.blocks_per_chunk)
    }

    /// The blocks of a chunk.
    pub(crate) fn blocks(&self, chunk: usize) -> Range<usize> {
        let start = chunk * self.blocks_per_chunk;
        start..(start + self.blocks_per_chunk).min(self.blocks)
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

    /// Number of values that a chunk has of each channel.
    pub(crate) fn count(&self, chunk: usize) -> f64 {
        let of_block = |b| {
            let (rows, cols) = self.block(b);
            rows.len() * cols.len()
        };
        self.blocks(chunk).map(of_block).sum::<usize>() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(outer: usize, channels: usize, inner: usize) -> Plan {
        Plan::new::<f32>(Layout::new(outer, channels, inner).expect("small"))
    }

    #[test]
    fn blocks_cover_each_channel_once() {
        let inners = [
            1, 2, 15, 16, 17, 63, 64, 65, 100, 4095, 4096, 4097, 8192, 9999, 20000,
        ];
        for inner in inners {
            for outer in [1, 2, 3, 4, 5, 15, 16, 17, 100] {
                for channels in [1, 2, 3, 1000] {
                    let plan = plan(outer, channels, inner);
                    let (outer, inner) = (plan.layout().outer(), plan.inner());
                    let mut seen = vec![0u8; outer * inner];
                    let mut count = 0.0;
                    for chunk in 0..plan.chunks() {
                        for block in plan.blocks(chunk) {
                            let (rows, cols) = plan.block(block);
                            assert!(!rows.is_empty() && !cols.is_empty());
                            rows.for_each(|r| cols.clone().for_each(|c| seen[r * inner + c] += 1));
                        }
                        count += plan.count(chunk);
                    }
                    assert!(seen.iter().all(|&n| n == 1), "{plan:?}");
                    assert_eq!(count, (outer * inner) as f64);
                    assert!(plan.chunks() <= MAX_CHUNKS);
                }
            }
        }
    }

    #[test]
    fn the_worked_examples() {
        let images = plan(32, 64, 3136);
        assert_eq!(
            (
                images.regime(),
                images.unit(),
                images.blocks,
                images.chunks()
            ),
            (Regime::Rows, 1, 32, 2)
        );
        let matrix = plan(4096, 1024, 1);
        assert_eq!(
            (
                matrix.regime(),
                matrix.unit(),
                matrix.blocks,
                matrix.chunks()
            ),
            (Regime::Columns, 1024, 32, 32)
        );
    }

    #[test]
    fn empty_tensors_have_no_blocks() {
        for (outer, channels, inner) in [(0, 3, 5), (2, 0, 5), (2, 3, 0), (0, 1, 0), (0, 0, 0)] {
            assert_eq!(plan(outer, channels, inner).chunks(), 0);
        }
    }
}
