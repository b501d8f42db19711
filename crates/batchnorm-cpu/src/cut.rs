//! How tensors and arrays per channel are cut for threads. Nothing that is computed depends on it.

use crate::Element;
use crate::parallel::{PARTS_PER_THREAD, even};
use crate::simd::kernels::PARAMS;
use crate::simd::tile::Tile;
use crate::tiling::{Direction, Tiling};

/// How many arrays a call has per channel: the parameters of its kernels, and results.
pub(crate) const ARRAYS: usize = PARAMS + 2;

/// Arrays with a value per channel, of which the first are the parameters of the kernels. One that nobody wants is empty.
pub(crate) type PerChannel<'a, A> = [&'a mut [A]; ARRAYS];

/// Long runs of a single channel are cut at multiples of this many elements, whole cache lines of every type.
const CUT: usize = 1024;
/// Groups across channels from which on the channels are cut and not the rows, where each part would have to expand the parameters of all.
const MANY_GROUPS: usize = 32;

/// A part of a tensor, and the parameters of its channels.
pub(crate) type Part<'a, E> = (Tile<'a, E>, [&'a [<E as Element>::Accum]; PARAMS]);

/// Cuts all arrays at `at`; an empty one stays empty on both sides.
pub(crate) fn cut<A>(
    arrays: PerChannel<'_, A>,
    at: usize,
) -> (PerChannel<'_, A>, PerChannel<'_, A>) {
    let mut left: PerChannel<'_, A> = Default::default();
    let mut right: PerChannel<'_, A> = Default::default();
    for (i, array) in arrays.into_iter().enumerate() {
        let at = at.min(array.len());
        (left[i], right[i]) = array.split_at_mut(at);
    }
    (left, right)
}

/// Cuts a tensor and its parameters for the threads.
pub(crate) fn parts<'a, E: Element>(
    tiling: &Tiling,
    threads: usize,
    tile: Tile<'a, E>,
    params: [&'a [E::Accum]; PARAMS],
) -> Vec<Part<'a, E>> {
    let (channels, inner) = (tiling.layout().channels(), tiling.inner());
    let (rows, cols) = (tile.grid().rows, tile.grid().cols);
    let parts = if threads == 1 {
        1
    } else {
        threads * PARTS_PER_THREAD
    };
    let by_channels = match tiling.direction_in_order() {
        Direction::Along => rows < parts,
        Direction::Across => {
            let groups = channels.div_ceil(tiling.group::<E>(threads, 2));
            groups >= MANY_GROUPS && (inner > 1 || rows < parts)
        }
    };
    let mut rest = (tile, params);
    let mut result = Vec::with_capacity(parts);
    if channels == 1 {
        for len in even(cols, parts, CUT) {
            let (part, tile) = rest.0.split_cols(len);
            result.push((part, rest.1));
            rest.0 = tile;
        }
    } else if by_channels || rows < 2 {
        for len in even(channels, parts, 1) {
            let (part, tile) = rest.0.split_cols(len * inner);
            let cut = |p: &'a [E::Accum]| p.split_at(len.min(p.len()));
            result.push((part, rest.1.map(|p| cut(p).0)));
            rest = (tile, rest.1.map(|p| cut(p).1));
        }
    } else {
        for len in even(rows, parts, 1) {
            let (part, tile) = rest.0.split_rows(len);
            result.push((part, rest.1));
            rest.0 = tile;
        }
    }
    result
}
