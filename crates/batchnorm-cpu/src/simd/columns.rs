//! The loop across channels: neighbouring columns belong to different ones, so parameters and sums are arrays with one value per column.
//!
//! A register is taken from a few rows at a time, so that its parameters and sums are loaded less often. What does not fill a register is a
//! partial one, as along rows.

use std::mem::MaybeUninit;

use macerator::{Scalar, Simd};

use super::MAX_LANES;
use super::kernels::{Kernel, PARAMS};
use super::lanes;
use super::tile::{Grid, Tile};
use super::weights::{SPREAD, WeightRow};
use crate::{Accum, Element};

/// Rows of this size are not taken together by kernels that write: places that are a power of two apart contend for the same lines of the
/// first-level cache (at `[4096, 1024]` inference is 1.6 times as fast row by row). Of shorter rows several are in one place.
const WIDE_ROW_BYTES: usize = 1 << 10;
/// Rows after which the partial registers of all of them are done, while their lines are still in the cache.
const ROWS_BETWEEN_EDGES: usize = 32;

/// Narrower matrices are read as if 16 of their rows were one, because registers would be mostly empty.
const NARROW: usize = 32;
const ROWS_FUSED: usize = 16;

/// How the columns of a tile belong to channels: `repeat` times all channels in turn, `inner` columns each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Columns {
    pub channels: usize,
    pub inner: usize,
    pub repeat: usize,
}

/// Takes kernel `K` across a tile whose columns have the parameters `params`, and adds to `sums`. The first `K::PARAMS` parameters have a value per column; the
/// sums, where `K` has any, [`padded`] as many, of which those behind the columns are scratch.
#[inline(always)]
pub(super) fn across<S: Simd, E: Element, K: Kernel<E::Accum>>(
    kernel: K,
    tile: &mut Tile<'_, E>,
    params: [&[E::Accum]; PARAMS],
    mut sums: [&mut [E::Accum]; 2],
) {
    tile.expect::<K>();
    let Grid { rows, cols, .. } = tile.grid();
    assert!(params.iter().take(K::PARAMS).all(|p| p.len() >= cols));
    assert!(K::OUTPUTS > 0 || sums.iter().all(|s| s.len() >= padded(cols)));
    let wide = cols * size_of::<E>() >= WIDE_ROW_BYTES;
    // There is room for one row's.
    let together = K::UNROLLED && !tile.spreads::<K>();
    let mut spread = MaybeUninit::<[E::Accum; SPREAD]>::uninit();
    let spread = spread.as_mut_ptr().cast();
    let mut row = 0;
    while row < rows {
        let first = row;
        let end = rows.min(row + ROWS_BETWEEN_EDGES);
        if together && K::OUTPUTS == 0 && K::INPUTS > 1 {
            row = in_turn::<S, E, K, 2>(kernel, tile, row..end, params, &mut sums, spread);
        } else if together && K::OUTPUTS == 0 {
            row = in_turn::<S, E, K, 8>(kernel, tile, row..end, params, &mut sums, spread);
        } else if together && !wide {
            row = in_turn::<S, E, K, 4>(kernel, tile, row..end, params, &mut sums, spread);
        }
        row = in_turn::<S, E, K, 1>(kernel, tile, row..end, params, &mut sums, spread);
        // Rows are aligned alike, except for streaming stores.
        let streaming = K::OUTPUTS > 0 && tile.streams();
        let alike = if streaming { 1 } else { end - first };
        for row in (first..end).step_by(alike) {
            let body = body::<S, E, K>(tile, row);
            for (col, n) in [(0, body.start), (body.end, cols - body.end)] {
                if n > 0 {
                    let rows = row..row + alike;
                    partial::<S, E, K>(kernel, tile, rows, (col, n), params, &mut sums, spread);
                }
            }
        }
    }
}

/// Takes the whole registers of some rows, `U` rows at a time; returns the first row that is left over.
#[inline(always)]
fn in_turn<S: Simd, E: Element, K: Kernel<E::Accum>, const U: usize>(
    kernel: K,
    tile: &mut Tile<'_, E>,
    rows: std::ops::Range<usize>,
    params: [&[E::Accum]; PARAMS],
    sums: &mut [&mut [E::Accum]; 2],
    spread: *mut E::Accum,
) -> usize {
    let mut row = rows.start;
    while row + U <= rows.end {
        registers::<S, E, K, U>(kernel, tile, row, params, sums, spread);
        row += U;
    }
    row
}

/// The columns of a row that are taken in whole registers: all but a remainder, and with streaming stores from an aligned address on.
#[inline(always)]
fn body<S: Simd, E: Element, K: Kernel<E::Accum>>(
    tile: &Tile<'_, E>,
    row: usize,
) -> std::ops::Range<usize> {
    let Grid { cols, stride, .. } = tile.grid();
    let head = if K::OUTPUTS > 0 && tile.streams() {
        tile.unaligned::<S>(row * stride).min(cols)
    } else {
        0
    };
    head..cols - (cols - head) % E::Accum::lanes::<S>()
}

/// Takes the whole registers of the `U` rows from `row` on.
#[inline(always)]
fn registers<S: Simd, E: Element, K: Kernel<E::Accum>, const U: usize>(
    kernel: K,
    tile: &mut Tile<'_, E>,
    row: usize,
    params: [&[E::Accum]; PARAMS],
    sums: &mut [&mut [E::Accum]; 2],
    spread: *mut E::Accum,
) {
    let stride = tile.grid().stride;
    let lanes = E::Accum::lanes::<S>();
    let zero = E::Accum::default().splat::<S>();
    let streaming = K::OUTPUTS > 0 && tile.streams();
    debug_assert!(U == 1 || !streaming);
    // Raw pointers: the bounds are those that `across` asserted.
    let params = pointers(params);
    let sums = [sums[0].as_mut_ptr(), sums[1].as_mut_ptr()];
    let mut weights = [WeightRow::NONE; U];
    for u in 0..U {
        // SAFETY: the tile has these rows (`across`), and `spread` room, also for each row a register of its own.
        weights[u] = unsafe { tile.weights::<K>(row + u, u, spread) };
    }
    let body = body::<S, E, K>(tile, row);
    let mut col = body.start;
    while col < body.end {
        // SAFETY: the tile passed `expect` and has rows `row..row + U` (`across`); `col + lanes <= cols`, which is within a row, the parameters and
        // the sums. Streamed rows come one at a time, and their bodies begin at an aligned address.
        unsafe {
            let at = row * stride + col;
            let mut loaded = [tile.load::<S, K>(at, lanes); U];
            for u in 1..U {
                loaded[u] = tile.load::<S, K>(at + u * stride, lanes);
            }
            let mut p = [zero; PARAMS];
            for i in 0..K::PARAMS {
                p[i] = lanes::load(params[i].add(col), lanes);
            }
            let mut total = [zero; 2];
            if K::OUTPUTS == 0 {
                for (total, &sum) in total.iter_mut().zip(&sums) {
                    *total = lanes::load(sum.add(col), lanes);
                }
            }
            for u in 0..U {
                let weight = weights[u].load::<S, K>(col, lanes);
                let values = kernel.step(loaded[u], weight, &p, &mut total);
                tile.store::<S, K>(at + u * stride, lanes, values, streaming);
            }
            if K::OUTPUTS == 0 {
                for (total, &sum) in total.iter().zip(&sums) {
                    lanes::store(sum.add(col), lanes, *total, false);
                }
            }
        }
        col += lanes;
    }
}

/// Takes the `n` columns from `col` on of some rows, fewer than a register has lanes.
#[inline(always)]
fn partial<S: Simd, E: Element, K: Kernel<E::Accum>>(
    kernel: K,
    tile: &mut Tile<'_, E>,
    rows: std::ops::Range<usize>,
    (col, n): (usize, usize),
    params: [&[E::Accum]; PARAMS],
    sums: &mut [&mut [E::Accum]; 2],
    spread: *mut E::Accum,
) {
    let stride = tile.grid().stride;
    let lanes = E::Accum::lanes::<S>();
    let zero = E::Accum::default().splat::<S>();
    let params = pointers(params);
    // SAFETY: the tile passed `expect` and has these rows (`across`); `col + n <= cols`, and a register of sums at `col` is within `padded(cols)`.
    unsafe {
        let mut p = [zero; PARAMS];
        for i in 0..K::PARAMS {
            p[i] = lanes::load(params[i].add(col), n);
        }
        let mut total = [zero; 2];
        if K::OUTPUTS == 0 {
            for (total, sum) in total.iter_mut().zip(sums.iter()) {
                *total = lanes::load(sum.as_ptr().add(col), lanes);
            }
        }
        for row in rows {
            let at = row * stride + col;
            let weight = tile.weights::<K>(row, 0, spread).load::<S, K>(col, n);
            let values = kernel.step(tile.load::<S, K>(at, n), weight, &p, &mut total);
            tile.store::<S, K>(at, n, values, false);
        }
        if K::OUTPUTS == 0 {
            for (total, sum) in total.iter().zip(sums) {
                lanes::store(sum.as_mut_ptr().add(col), lanes, *total, false);
            }
        }
    }
}

#[inline(always)]
fn pointers<A>(params: [&[A]; PARAMS]) -> [*const A; PARAMS] {
    let mut pointers = [std::ptr::null(); PARAMS];
    for (pointer, param) in pointers.iter_mut().zip(params) {
        *pointer = param.as_ptr();
    }
    pointers
}

/// The length of an array of sums per column.
#[inline(always)]
pub(super) fn padded(cols: usize) -> usize {
    cols + MAX_LANES
}

impl Columns {
    /// Whether there is one column per channel.
    #[inline(always)]
    pub(super) fn are_channels(&self) -> bool {
        self.inner == 1 && self.repeat == 1
    }

    /// Copies a value per channel to all of its columns.
    #[inline(always)]
    pub(super) fn expand<A: Accum>(&self, values: &[A], columns: &mut [A]) {
        let once = self.channels * self.inner;
        match self.inner {
            1 => columns[..once].copy_from_slice(&values[..once]),
            2 => runs::<A, 2>(values, &mut columns[..once]),
            3 => runs::<A, 3>(values, &mut columns[..once]),
            4 => runs::<A, 4>(values, &mut columns[..once]),
            inner => {
                for (run, &value) in columns[..once].chunks_exact_mut(inner).zip(values) {
                    run.fill(value);
                }
            }
        }
        for copy in 1..self.repeat {
            columns.copy_within(..once, copy * once);
        }
    }

    /// Sets `sums` to the sum of the columns of each channel.
    #[inline(always)]
    pub(super) fn fold<A: Accum>(&self, columns: &[A], sums: &mut [f64]) {
        if self.are_channels() {
            for (sum, column) in sums.iter_mut().zip(columns) {
                *sum = column.to_f64();
            }
            return;
        }
        sums.fill(0.0);
        let once = self.channels * self.inner;
        for copy in columns[..once * self.repeat].chunks_exact(once) {
            for (sum, run) in sums.iter_mut().zip(copy.chunks_exact(self.inner)) {
                *sum += total(run);
            }
        }
    }
}

/// Runs of a known length, which take no loop each.
#[inline(always)]
fn runs<A: Copy, const N: usize>(values: &[A], columns: &mut [A]) {
    for (run, &value) in columns.as_chunks_mut::<N>().0.iter_mut().zip(values) {
        *run = [value; N];
    }
}

/// The sum of a short run: in eight parts, for one after the other would wait for each addition.
#[inline(always)]
fn total<A: Accum>(run: &[A]) -> f64 {
    let (eights, rest) = run.as_chunks::<8>();
    let mut parts = [0.0; 8];
    for eight in eights {
        for (part, value) in parts.iter_mut().zip(eight) {
            *part += value.to_f64();
        }
    }
    for (part, value) in parts.iter_mut().zip(rest) {
        *part += value.to_f64();
    }
    let [a, b, c, d, e, f, g, h] = parts;
    ((a + b) + (c + d)) + ((e + f) + (g + h))
}

/// Calls `f` with the rows of a tile of `channels` channels, as at most two tiles that are wide enough to fill registers.
#[inline(always)]
pub(super) fn strips<'t, E: Element>(
    tile: Tile<'t, E>,
    channels: usize,
) -> [Option<(Tile<'t, E>, Columns)>; 2] {
    let Grid { rows, cols, stride } = tile.grid();
    let columns = |repeat| Columns {
        channels,
        inner: cols / channels,
        repeat,
    };
    if cols >= NARROW || stride != cols || rows < 2 {
        return [Some((tile, columns(1))), None];
    }
    let (fused, rest) = tile.split_rows(rows / ROWS_FUSED * ROWS_FUSED);
    let strip = |tile: Tile<'t, E>, repeat: usize| {
        (tile.grid().rows > 0).then(|| (tile.fuse_rows(repeat), columns(repeat)))
    };
    let left = rest.grid().rows.max(1);
    [strip(fused, ROWS_FUSED), strip(rest, left)]
}

#[cfg(test)]
mod tests;
