//! What a thread does in one go, compiled once per instruction set: one partial of a reduction over a group of channels, or a kernel that writes.

use macerator::{Simd, WithSimd};

use super::columns::{self, Columns, padded, strips};
use super::kernels::{Kernel, PARAMS};
use super::lanes::fence;
use super::rows::{self, Ahead};
use super::tile::{Grid, Tile};
use crate::tiling::{Direction, Tiling};
use crate::{Accum, Element};

/// The hardware, which recognises a sequence of cache lines only after some of them, is of no help with runs shorter than this that are taken channel
/// by channel: the run of the next channel, which lies right behind, is asked for while this one is in work.
const SHORT_RUN_BYTES: usize = 1 << 10;
/// So kernels that take runs in the order in which they lie in memory take those of so many rows at a time (measured up to 1.5 times as fast as one).
const SHORT_RUNS_IN_ORDER: usize = 4;
/// Up to this size, two pages, it still pays to ask for the channel's next run (measured 5 to 20 %).
const PREFETCHED_RUN_BYTES: usize = 8 << 10;

/// What a channel is reduced to: a pair of numbers that is computed block by block.
pub(crate) trait Reduction<E: Element>: Copy + Send + Sync {
    /// The pair of `n_a + n_b` values from those of two parts.
    fn merge(n_a: f64, a: [f64; 2], n_b: f64, b: [f64; 2]) -> [f64; 2];

    /// The pair of one channel's block. `before` is the first number of the pair of the blocks before it, if there are any.
    fn along<S: Simd>(
        self,
        tile: &Tile<'_, E>,
        params: [E::Accum; PARAMS],
        before: Option<f64>,
        ahead: Option<Ahead>,
    ) -> [f64; 2];

    /// The pairs of the channels of some columns, into `out`; `before` as for `along`.
    fn across<S: Simd>(
        self,
        tile: Tile<'_, E>,
        columns: Columns,
        params: [&[E::Accum]; PARAMS],
        before: Option<&[f64]>,
        scratch: &mut Scratch<E::Accum>,
        out: [&mut [f64]; 2],
    );
}

/// The plain sums of a kernel.
#[derive(Clone, Copy)]
pub(crate) struct Sums<K>(pub K);

impl<E: Element, K: Kernel<E::Accum>> Reduction<E> for Sums<K> {
    #[inline(always)]
    fn merge(_n_a: f64, a: [f64; 2], _n_b: f64, b: [f64; 2]) -> [f64; 2] {
        [a[0] + b[0], a[1] + b[1]]
    }

    #[inline(always)]
    fn along<S: Simd>(
        self,
        tile: &Tile<'_, E>,
        params: [E::Accum; PARAMS],
        _before: Option<f64>,
        ahead: Option<Ahead>,
    ) -> [f64; 2] {
        let Grid { rows, cols, .. } = tile.grid();
        rows::along::<S, E, K>(self.0, &mut tile.view(0..rows, 0..cols), params, ahead)
    }

    #[inline(always)]
    fn across<S: Simd>(
        self,
        mut tile: Tile<'_, E>,
        columns: Columns,
        params: [&[E::Accum]; PARAMS],
        _before: Option<&[f64]>,
        scratch: &mut Scratch<E::Accum>,
        out: [&mut [f64]; 2],
    ) {
        let expanded = if columns.are_channels() { 0 } else { K::PARAMS };
        let [sums, products, arrays @ ..] = scratch.columns(tile.grid().cols, 2 + expanded);
        sums.fill(E::Accum::default());
        products.fill(E::Accum::default());
        let params = expand::<E, K>(columns, params, arrays);
        columns::across::<S, E, K>(self.0, &mut tile, params, [&mut *sums, &mut *products]);
        for (out, sums) in out.into_iter().zip([sums, products]) {
            columns.fold(sums, out);
        }
    }
}

/// The parameters of `K` as arrays with a value per column.
#[inline(always)]
fn expand<'s, E: Element, K: Kernel<E::Accum>>(
    columns: Columns,
    mut params: [&'s [E::Accum]; PARAMS],
    arrays: [&'s mut [E::Accum]; PARAMS],
) -> [&'s [E::Accum]; PARAMS] {
    if !columns.are_channels() {
        for (param, array) in params.iter_mut().zip(arrays).take(K::PARAMS) {
            columns.expand(param, array);
            *param = array;
        }
    }
    params
}

/// Arrays of a thread, kept from task to task.
pub(crate) struct Scratch<A> {
    channels: Vec<f64>,
    parameters: Vec<A>,
    columns: Vec<A>,
}

/// Parts of a [`Scratch`], with whatever they held: arrays of a value per channel, and [`padded`] arrays of a value per column.
pub(super) struct Arrays<'s, A> {
    pub channels: [&'s mut [f64]; 3],
    pub parameters: &'s mut [A],
    pub columns: [&'s mut [A]; 3],
}

impl<A: Accum> Scratch<A> {
    pub(crate) fn new() -> Self {
        Self {
            channels: Vec::new(),
            parameters: Vec::new(),
            columns: Vec::new(),
        }
    }

    /// Arrays for the moments of `channels` channels in `cols` columns.
    #[inline(always)]
    pub(super) fn arrays(&mut self, channels: usize, cols: usize) -> Arrays<'_, A> {
        if self.parameters.len() < channels {
            self.channels.resize(3 * channels, 0.0);
            self.parameters.resize(channels, A::default());
        }
        let mut values = self.channels.chunks_exact_mut(channels);
        let [a, b, c, ..] = columns(&mut self.columns, cols, 3);
        Arrays {
            channels: std::array::from_fn(|_| values.next().expect("resized to three")),
            parameters: &mut self.parameters[..channels],
            columns: [a, b, c],
        }
    }

    /// `count` arrays of a value per column; the others are empty.
    #[inline(always)]
    fn columns(&mut self, cols: usize, count: usize) -> [&mut [A]; PARAMS + 2] {
        columns(&mut self.columns, cols, count)
    }
}

#[inline(always)]
fn columns<A: Accum>(memory: &mut Vec<A>, cols: usize, count: usize) -> [&mut [A]; PARAMS + 2] {
    let len = padded(cols);
    if memory.len() < count * len {
        memory.resize(count * len, A::default());
    }
    let mut arrays = memory.chunks_exact_mut(len).take(count);
    std::array::from_fn(|_| arrays.next().unwrap_or_default())
}

/// The runs of all rows of `cols` elements: which memory to ask for while one of them is in work.
#[inline(always)]
fn ahead<E>(grid: Grid, inputs: bool, outputs: bool) -> Option<Ahead> {
    let bytes = grid.cols * size_of::<E>();
    let distance = if bytes < SHORT_RUN_BYTES {
        grid.cols
    } else {
        grid.stride
    };
    let worthwhile = grid.rows > 1 && bytes <= PREFETCHED_RUN_BYTES && (inputs || outputs);
    worthwhile.then_some(Ahead {
        distance,
        inputs,
        outputs,
    })
}

/// One partial of a reduction over a tile that consists of `out[0].len()` channels, all rows of them.
pub(crate) struct Reduce<'a, E: Element, R> {
    pub tile: Tile<'a, E>,
    pub tiling: &'a Tiling,
    pub partial: usize,
    pub reduction: R,
    pub params: [&'a [E::Accum]; 3],
    pub scratch: &'a mut Scratch<E::Accum>,
    /// Zeros.
    pub out: [&'a mut [f64]; 2],
}

impl<E: Element, R: Reduction<E>> WithSimd for Reduce<'_, E, R> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self) {
        let Self {
            tile,
            tiling,
            partial,
            reduction,
            params,
            scratch,
            out: [first, second],
        } = self;
        let channels = first.len();
        let inner = tiling.inner();
        assert_eq!(tile.grid().cols, channels * inner);
        match tiling.direction() {
            Direction::Along => {
                for c in 0..channels {
                    let mut values = [E::Accum::default(); PARAMS];
                    for (value, param) in values.iter_mut().zip(params) {
                        *value = param.get(c).copied().unwrap_or_default();
                    }
                    let mut count = 0.0;
                    for block in tiling.blocks(partial) {
                        let (rows, cols) = tiling.block(block);
                        let n = (rows.len() * cols.len()) as f64;
                        let part = tile.view(rows, c * inner + cols.start..c * inner + cols.end);
                        // Of fewer values than the block has, it would be a shift to be checked.
                        let before = (count >= n).then_some(first[c]);
                        let ahead = ahead::<E>(part.grid(), true, false);
                        let block = reduction.along::<S>(&part, values, before, ahead);
                        [first[c], second[c]] = R::merge(count, [first[c], second[c]], n, block);
                        count += n;
                    }
                }
            }
            Direction::Across => {
                let mut arrays = [&[][..]; PARAMS];
                arrays[..3].copy_from_slice(&params);
                let mut block_pairs = [Vec::new(), Vec::new()];
                let mut count = 0.0;
                for block in tiling.blocks(partial) {
                    let (rows, _) = tiling.block(block);
                    let part = tile.view(rows, 0..channels * inner);
                    for (strip, columns) in strips(part, channels).into_iter().flatten() {
                        let n = (strip.grid().rows * columns.inner * columns.repeat) as f64;
                        let [a, b] = &mut block_pairs;
                        let (before, out) = if count == 0.0 {
                            (None, [&mut *first, &mut *second])
                        } else {
                            a.resize(channels, 0.0);
                            b.resize(channels, 0.0);
                            let before = (count >= n).then_some(&*first);
                            (before, [&mut a[..], &mut b[..]])
                        };
                        reduction.across::<S>(strip, columns, arrays, before, scratch, out);
                        if count > 0.0 {
                            for c in 0..channels {
                                let pair = [first[c], second[c]];
                                [first[c], second[c]] = R::merge(count, pair, n, [a[c], b[c]]);
                            }
                        }
                        count += n;
                    }
                }
            }
        }
    }
}

/// A kernel that writes, over a tile that consists of `params[0].len()` channels, or of a part of the only one.
pub(crate) struct Apply<'a, E: Element, K> {
    pub tile: Tile<'a, E>,
    pub direction: Direction,
    /// Whether the inputs are in a cache, because they were just reduced. Otherwise runs are taken in the order in which they lie in memory.
    pub cached: bool,
    pub kernel: K,
    pub params: [&'a [E::Accum]; PARAMS],
    pub scratch: &'a mut Scratch<E::Accum>,
}

impl<E: Element, K: Kernel<E::Accum>> WithSimd for Apply<'_, E, K> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self) {
        let Self {
            mut tile,
            direction,
            cached,
            kernel,
            params,
            scratch,
        } = self;
        let Grid { rows, cols, .. } = tile.grid();
        let channels = params[0].len();
        if channels == 0 || cols == 0 {
            return;
        }
        let inner = cols / channels;
        match direction {
            Direction::Along => {
                let together = match inner * size_of::<E>() {
                    _ if cached => rows,
                    ..SHORT_RUN_BYTES => SHORT_RUNS_IN_ORDER,
                    _ => 1,
                };
                for row in (0..rows).step_by(together.max(1)) {
                    for c in 0..channels {
                        let mut values = [E::Accum::default(); PARAMS];
                        for (value, param) in values.iter_mut().zip(params).take(K::PARAMS) {
                            *value = param[c];
                        }
                        let rows = row..rows.min(row + together);
                        let mut part = tile.window(rows, c * inner..(c + 1) * inner);
                        let ahead = ahead::<E>(part.grid(), !cached, !part.streams());
                        rows::along::<S, E, K>(kernel, &mut part, values, ahead);
                    }
                }
            }
            Direction::Across => {
                let strips = strips(tile.window(0..rows, 0..cols), channels);
                for (mut strip, columns) in strips.into_iter().flatten() {
                    let expanded = if columns.are_channels() { 0 } else { K::PARAMS };
                    let [arrays @ .., _, _] = scratch.columns(strip.grid().cols, expanded);
                    let arrays = expand::<E, K>(columns, params, arrays);
                    let none = [&mut [][..], &mut [][..]];
                    columns::across::<S, E, K>(kernel, &mut strip, arrays, none);
                }
            }
        }
        fence();
    }
}
