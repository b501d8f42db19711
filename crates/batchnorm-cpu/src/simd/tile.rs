//! Pointers with the rectangle that they are valid for.
//!
//! A tensor is a matrix of `outer` rows and `channels * inner` columns. A task works on a rectangle of it: some rows, or the columns of some
//! channels. A [`Tile`] holds the tensors of a kernel as pointers to the same rectangle of each, and is the proof that they are valid there: its
//! fields are private, it is built from slices whose lengths are checked, and afterwards it can only shrink. Splitting consumes a tile and returns
//! disjoint parts, which is what slices cannot express (the columns of a channel are not contiguous) and what makes it sound to give the
//! parts to different threads.
//!
//! An input may be the same memory as an output, if both are the whole of the same slice ([`InOut::in_place`](crate::InOut::in_place)): the loops
//! read a position of every tensor before they write to it, and never read it again.

use std::marker::PhantomData;
use std::ops::Range;

use macerator::{Scalar, Simd};

use super::kernels::{INPUTS, Kernel, OUTPUTS};
use super::lanes::{self, Reg};
use super::weights::{WeightMap, WeightRow};
use crate::memory::{InOut, Output};
use crate::weighted::Weights;
use crate::{Accum, Element, Layout, cache};

/// A rectangle of a matrix: `rows` runs of `cols` elements that start `stride` elements apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Grid {
    pub rows: usize,
    pub cols: usize,
    pub stride: usize,
}

/// Shorter runs are not worth the streaming stores' edges: lanes before the first and behind the last aligned address are stored as usual, and
/// a cache line should be written in one way only (measured: 40 % slower otherwise).
const STREAMED_RUN_BYTES: usize = 1 << 10;

/// The same rectangle of some inputs and outputs.
pub(crate) struct Tile<'a, E: Element> {
    inputs: [*const E; INPUTS],
    outputs: [*mut E; OUTPUTS],
    /// How many of them there are.
    arity: (usize, usize),
    grid: Grid,
    /// Whether the outputs are too large for the caches and better written past them.
    streaming: bool,
    weights: Option<WeightMap<E::Accum>>,
    _memory: PhantomData<&'a mut [E]>,
}

// SAFETY: a tile is a set of shared and exclusive slices of `E` (`read`, `write`), and elements are `Send` and `Sync`.
unsafe impl<E: Element> Send for Tile<'_, E> {}
// SAFETY: as above. Through a shared tile only inputs can be reached (`view`).
unsafe impl<E: Element> Sync for Tile<'_, E> {}

impl<'a, E: Element> Tile<'a, E> {
    /// A whole tensor's rectangle, without any tensors yet.
    pub(crate) fn new(layout: &Layout) -> Self {
        let cols = layout.columns();
        Self {
            inputs: [std::ptr::null(); INPUTS],
            outputs: [std::ptr::null_mut(); OUTPUTS],
            arity: (0, 0),
            grid: Grid {
                rows: layout.outer(),
                cols,
                stride: cols,
            },
            streaming: false,
            weights: None,
            _memory: PhantomData,
        }
    }

    fn elements(&self) -> usize {
        self.grid.rows * self.grid.stride
    }

    /// Adds an input. Panics, as the other two do, unless it is a whole tensor; the public functions have refused that before.
    pub(crate) fn read(mut self, input: &'a [E]) -> Self {
        assert_eq!(input.len(), self.elements());
        self.inputs[self.arity.0] = input.as_ptr();
        self.arity.0 += 1;
        self
    }

    /// Adds the first input once more for each that kernel `K` reads and the tile does not have.
    pub(crate) fn read_first_for<K: Kernel<E::Accum>>(mut self) -> Self {
        while self.arity.0 < K::INPUTS {
            self.inputs[self.arity.0] = self.inputs[0];
            self.arity.0 += 1;
        }
        self
    }

    /// Adds weights of the positions of a tensor of this `layout`, which is that of the tile. Panics unless there are as many as `check` allows.
    pub(crate) fn weigh(mut self, layout: &Layout, weights: Weights<'a, E::Accum>) -> Self {
        self.weights = Some(WeightMap::new(layout, weights));
        self
    }

    /// The value of the first input at a position. Panics if there is none.
    #[inline(always)]
    pub(crate) fn value(&self, row: usize, col: usize) -> f64 {
        let Grid { rows, cols, stride } = self.grid;
        assert!(self.arity.0 > 0 && row < rows && col < cols);
        // SAFETY: inputs are valid in the grid, which has this position.
        let value = unsafe { *self.inputs[0].add(row * stride + col) };
        value.to_accum().to_f64()
    }

    /// Adds an output.
    pub(crate) fn write(mut self, output: Output<'a, E>) -> Self {
        let start = output.into_start(self.elements());
        // A store through the caches reads the line from memory first, for nothing where all of it is overwritten. Not so where the line is
        // there already, because an input is the same memory.
        let known = self.inputs.iter().any(|&input| input == start);
        self.streaming |=
            !known && self.elements() * size_of::<E>() >= cache::streaming_output_bytes();
        self.outputs[self.arity.1] = start;
        self.arity.1 += 1;
        self
    }

    /// Adds an input, and its output if it has one.
    pub(crate) fn read_write(mut self, tensor: InOut<'a, E>) -> Self {
        let (input, output) = tensor.into_parts(self.elements());
        self.inputs[self.arity.0] = input;
        self.arity.0 += 1;
        match output {
            Some(output) => self.write(output),
            None => self,
        }
    }

    #[inline(always)]
    pub(crate) fn grid(&self) -> Grid {
        self.grid
    }

    /// Cuts at row `at`.
    pub(crate) fn split_rows(self, at: usize) -> (Self, Self) {
        let Grid { rows, cols, .. } = self.grid;
        assert!(at <= rows);
        (self.part(0..at, 0..cols), self.part(at..rows, 0..cols))
    }

    /// Cuts at column `at`.
    pub(crate) fn split_cols(self, at: usize) -> (Self, Self) {
        let Grid { rows, cols, .. } = self.grid;
        assert!(at <= cols);
        (self.part(0..rows, 0..at), self.part(0..rows, at..cols))
    }

    /// A part of this tile, borrowed from it.
    #[inline(always)]
    pub(crate) fn window(&mut self, rows: Range<usize>, cols: Range<usize>) -> Tile<'_, E> {
        self.part(rows, cols)
    }

    /// The inputs of a part of this tile. Nothing can be written to the tile while they are in use.
    #[inline(always)]
    pub(crate) fn view(&self, rows: Range<usize>, cols: Range<usize>) -> Tile<'_, E> {
        let mut part = self.part(rows, cols);
        part.arity.1 = 0;
        part
    }

    /// The first value of the first input. Panics if there is none.
    #[inline(always)]
    pub(super) fn first(&self) -> f64 {
        self.value(0, 0)
    }

    /// Reads `fused` rows as one. Panics unless the rows follow each other in memory; rows that are left over are dropped.
    #[inline(always)]
    pub(super) fn fuse_rows(mut self, fused: usize) -> Self {
        let Grid { rows, cols, stride } = self.grid;
        assert!(cols == stride);
        self.weights = self.weights.map(|w| w.fuse_rows(fused, cols));
        self.grid = Grid {
            rows: rows / fused,
            cols: fused * cols,
            stride: fused * cols,
        };
        self
    }

    #[inline(always)]
    fn part<'b>(&self, rows: Range<usize>, cols: Range<usize>) -> Tile<'b, E> {
        assert!(rows.start <= rows.end && rows.end <= self.grid.rows);
        assert!(cols.start <= cols.end && cols.end <= self.grid.cols);
        let start = rows.start * self.grid.stride + cols.start;
        let mut part = Tile {
            inputs: self.inputs,
            outputs: self.outputs,
            arity: self.arity,
            grid: Grid {
                rows: rows.len(),
                cols: cols.len(),
                stride: self.grid.stride,
            },
            streaming: self.streaming,
            weights: self.weights.map(|w| w.part(rows.start, cols.start)),
            _memory: PhantomData,
        };
        for input in &mut part.inputs {
            *input = input.wrapping_add(start);
        }
        for output in &mut part.outputs {
            *output = output.wrapping_add(start);
        }
        part
    }

    /// Panics unless the tile has all that kernel `K` reads, and the first that it writes.
    #[inline(always)]
    pub(super) fn expect<K: Kernel<E::Accum>>(&self) {
        assert!(K::INPUTS <= self.arity.0 && K::OUTPUTS.min(1) <= self.arity.1);
        assert!(!K::WEIGHTED || self.weights.is_some());
    }

    /// Whether the runs of this tile are to be written with streaming stores.
    #[inline(always)]
    pub(super) fn streams(&self) -> bool {
        self.streaming && self.arity.1 > 0 && self.grid.cols * size_of::<E>() >= STREAMED_RUN_BYTES
    }

    /// The number of elements from position `at` to the first that a streaming store of the first output may begin at.
    #[inline(always)]
    pub(super) fn unaligned<S: Simd>(&self, at: usize) -> usize {
        let bytes = E::Accum::lanes::<S>() * size_of::<E>();
        let past = self.outputs[0].wrapping_add(at).addr() % bytes;
        (bytes - past) % bytes / size_of::<E>()
    }

    /// Whether the outputs are aligned alike, so that streaming stores to one are aligned in all.
    #[inline(always)]
    fn alike<S: Simd>(&self, output: usize) -> bool {
        let apart = self.outputs[output]
            .addr()
            .wrapping_sub(self.outputs[0].addr());
        apart.is_multiple_of(E::Accum::lanes::<S>() * size_of::<E>())
    }

    /// Asks for the cache lines at position `at` of all tensors of `K`, which need not exist.
    #[inline(always)]
    pub(super) fn prefetch<K: Kernel<E::Accum>>(&self, at: usize, inputs: bool, outputs: bool) {
        if inputs {
            for input in self.inputs.iter().take(K::INPUTS) {
                lanes::prefetch(input.wrapping_add(at));
            }
        }
        if outputs {
            for output in self.outputs.iter().take(K::OUTPUTS.min(self.arity.1)) {
                lanes::prefetch(output.wrapping_add(at));
            }
        }
    }

    /// Loads `n` elements at position `at` of each input of `K`.
    ///
    /// # Safety
    ///
    /// The tile must have passed [`expect`](Self::expect) for `K`; `at..at + n` must be within one row of the grid and `n` at most the lanes of a register.
    #[inline(always)]
    pub(super) unsafe fn load<S: Simd, K: Kernel<E::Accum>>(
        &self,
        at: usize,
        n: usize,
    ) -> [Reg<S, E::Accum>; INPUTS] {
        let mut loaded = [E::Accum::default().splat::<S>(); INPUTS];
        for i in 0..K::INPUTS {
            // SAFETY: inputs are valid in the grid, in which the caller says `at..at + n` is.
            loaded[i] = unsafe { lanes::load(self.inputs[i].add(at), n) };
        }
        loaded
    }

    /// Whether the weights that `K` wants are spread out row by row.
    #[inline(always)]
    pub(super) fn spreads<K: Kernel<E::Accum>>(&self) -> bool {
        K::WEIGHTED && self.weights.is_some_and(|w| w.are_spread(self.grid.cols))
    }

    /// The weights of a row, if `K` wants them; register `slot` of `spread` is for this row.
    ///
    /// # Safety
    ///
    /// The row must be in the grid; `spread` must be valid for writing [`SPREAD`](super::weights::SPREAD) weights, for as long as the result is used.
    #[inline(always)]
    pub(super) unsafe fn weights<K: Kernel<E::Accum>>(
        &self,
        row: usize,
        slot: usize,
        spread: *mut E::Accum,
    ) -> WeightRow<E::Accum> {
        match &self.weights {
            // SAFETY: the map is that of the tile's grid, in which the caller says the row is.
            Some(weights) if K::WEIGHTED => unsafe {
                weights.row(row, self.grid.cols, slot, spread)
            },
            _ => WeightRow::NONE,
        }
    }

    /// Stores `n` lanes at position `at` of each output of `K` that the tile has.
    ///
    /// # Safety
    ///
    /// As for [`load`](Self::load). If `streaming` and `n` is the lanes of a register, [`unaligned`](Self::unaligned) must be zero at `at`.
    #[inline(always)]
    pub(super) unsafe fn store<S: Simd, K: Kernel<E::Accum>>(
        &mut self,
        at: usize,
        n: usize,
        values: [Reg<S, E::Accum>; OUTPUTS],
        streaming: bool,
    ) {
        for i in 0..K::OUTPUTS {
            if i > 0 && i >= self.arity.1 {
                return;
            }
            let streaming = streaming && (i == 0 || self.alike::<S>(i));
            // SAFETY: the outputs that the tile has (the first, by `expect`) are valid in the grid, and exclusive: this tile is borrowed mutably,
            // and its parts are disjoint. The first is aligned as the caller says, the others if they are aligned like it.
            unsafe { lanes::store(self.outputs[i].add(at), n, values[i], streaming) };
        }
    }
}

#[cfg(test)]
mod tests;
