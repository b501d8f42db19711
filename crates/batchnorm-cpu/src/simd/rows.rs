//! The loop along one channel: its runs of memory are long, its parameters are constants and its sums stay in registers.
//!
//! ```text
//!   run of 22, register of 8     |0......7|8.....15|16..21|     the remainder is a partial register, whose other lanes do not count
//! ```
//!
//! Streaming stores must be aligned, so with them a run may begin with a partial register too.
//!
//! Without them, a kernel that writes takes a whole register up to the end of the run instead, which overlaps the one before it. What both write is
//! the same; but memory that is overwritten is read before, so it is loaded first of all.

use std::mem::MaybeUninit;

use macerator::{Scalar, Simd};

use super::kernels::{INPUTS, Kernel, PARAMS};
use super::lanes::first_lanes;
use super::tile::{Grid, Tile};
use super::weights::SPREAD;
use crate::{Accum, Element};

/// Registers in flight: enough to hide the latency of an addition.
const UNROLL: usize = 4;

/// Which memory to ask for ahead of time: what lies `distance` elements behind the current position.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ahead {
    pub distance: usize,
    pub inputs: bool,
    pub outputs: bool,
}

/// Takes kernel `K` along a tile that belongs to one channel; returns the totals of its sums.
#[inline(always)]
pub(super) fn along<S: Simd, E: Element, K: Kernel<E::Accum>>(
    kernel: K,
    tile: &mut Tile<'_, E>,
    params: [E::Accum; PARAMS],
    ahead: Option<Ahead>,
) -> [f64; 2] {
    tile.expect::<K>();
    let Grid { rows, cols, stride } = tile.grid();
    let lanes = E::Accum::lanes::<S>();
    let zero = E::Accum::default().splat::<S>();
    let mut splats = [zero; PARAMS];
    for (splat, param) in splats.iter_mut().zip(params).take(K::PARAMS) {
        *splat = param.splat();
    }
    let mut sums = [[zero; 2]; UNROLL];
    let streaming = K::OUTPUTS > 0 && tile.streams();
    let line = lanes.max(64 / size_of::<E>());

    let mut spread = MaybeUninit::<[E::Accum; SPREAD]>::uninit();
    for row in 0..rows {
        let start = row * stride;
        let head = if streaming {
            tile.unaligned::<S>(start).min(cols)
        } else {
            0
        };
        let whole = cols - (cols - head) % lanes;
        // SAFETY: the tile passed `expect` and has the row. Every position is in `start..start + cols`: whole registers lie in `head..whole`, which is a multiple of
        // their size, and the partial ones in `0..head` and `whole..cols`; the overlapping one ends at `cols`, and where `whole` is not zero there is room for
        // it. Behind the head, addresses are aligned.
        unsafe {
            let weights = tile.weights::<K>(row, 0, spread.as_mut_ptr().cast());
            let overlaps = K::OUTPUTS > 0 && !streaming && 0 < whole && whole < cols;
            let last = match overlaps {
                true => tile.load::<S, K>(start + cols - lanes, lanes),
                false => [zero; INPUTS],
            };
            let mut i = head;
            while K::UNROLLED && i + UNROLL * lanes <= whole {
                let at = start + i;
                if let Some(ahead) = ahead {
                    for next in (0..UNROLL * lanes).step_by(line) {
                        tile.prefetch::<K>(at + ahead.distance + next, ahead.inputs, ahead.outputs);
                    }
                }
                let mut loaded = [tile.load::<S, K>(at, lanes); UNROLL];
                for u in 1..UNROLL {
                    loaded[u] = tile.load::<S, K>(at + u * lanes, lanes);
                }
                for u in 0..UNROLL {
                    let weight = weights.load::<S, K>(i + u * lanes, lanes);
                    let values = kernel.step(loaded[u], weight, &splats, &mut sums[u]);
                    tile.store::<S, K>(at + u * lanes, lanes, values, streaming);
                }
                i += UNROLL * lanes;
            }
            if let Some(ahead) = ahead {
                for next in (i..cols).step_by(line) {
                    tile.prefetch::<K>(start + ahead.distance + next, ahead.inputs, ahead.outputs);
                }
            }
            while i < whole {
                let loaded = tile.load::<S, K>(start + i, lanes);
                let weight = weights.load::<S, K>(i, lanes);
                let values = kernel.step(loaded, weight, &splats, &mut sums[0]);
                tile.store::<S, K>(start + i, lanes, values, streaming);
                // The next one is not to wait for this one's additions.
                let [a, b, c, d] = sums;
                sums = [b, c, d, a];
                i += lanes;
            }
            if overlaps {
                let weight = weights.load::<S, K>(cols - lanes, lanes);
                let values = kernel.step(last, weight, &splats, &mut sums[0]);
                tile.store::<S, K>(start + cols - lanes, lanes, values, false);
            }
            for (at, n) in [(start, head), (start + whole, cols - whole)] {
                if n == 0 || overlaps {
                    continue;
                }
                let loaded = tile.load::<S, K>(at, n);
                let mut extra = [zero; 2];
                let weight = weights.load::<S, K>(at - start, n);
                let values = kernel.step(loaded, weight, &splats, &mut extra);
                tile.store::<S, K>(at, n, values, false);
                let counted = first_lanes::<S, E::Accum>(n);
                sums[1][0] += counted.select(extra[0], zero);
                let counted = first_lanes::<S, E::Accum>(n);
                sums[1][1] += counted.select(extra[1], zero);
            }
        }
    }
    let mut totals = [0.0; 2];
    for (i, total) in totals.iter_mut().enumerate() {
        let sum = (sums[0][i] + sums[1][i]) + (sums[2][i] + sums[3][i]);
        *total = sum.reduce_add().to_f64();
    }
    totals
}
