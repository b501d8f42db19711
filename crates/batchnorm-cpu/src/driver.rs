//! The three verbs that everything is made of: reduce, apply, reduce-then-apply.
//!
//! Reduce-then-apply has two orders of events:
//!
//! - **Fused**, where there are enough groups of channels for all threads: a thread takes a group through the reduction and the kernel that writes, so
//!   that the second finds the group in the cache. Memory is read once and written once.
//! - **Swept**, where there are few groups with much data each: all threads share the partials of the reduction, then the rows or channels of the
//!   kernel. Memory is read twice, unless it fits into the last-level cache.
//!
//! Both merge the same partials in the same order, so they give the same bits.
//!
//! What takes the result of a reduction may find that it was read with unsuitable parameters, set others, and have it read [`Again`](Next::Again), once.

use std::cell::Cell;
use std::ops::Range;

use crate::cut::{Part, PerChannel, cut, parts};
use crate::parallel::{self, for_each, from_the_middle};
use crate::simd::kernels::{Kernel, PARAMS};
use crate::simd::tasks::{Apply, Reduce, Reduction, Scratch};
use crate::simd::tile::Tile;
use crate::simd::{Isa, Plain};
use crate::tiling::{Direction, Tiling};
use crate::{Element, Layout};

thread_local! {
    /// The partials of the last reduction of this thread: some hundred kilobytes, for which an allocator would ask the system anew at each call,
    /// and touch every page for the first time.
    static PAIRS: Cell<[Vec<f64>; 2]> = const { Cell::new([Vec::new(), Vec::new()]) };
}
/// How often a channel is read at most before its results stand.
const READINGS: usize = 2;
/// Larger partials are not kept.
const MOST_KEPT_BYTES: usize = 4 << 20;

/// What some channels were reduced to.
pub(crate) struct Reduced<'a> {
    /// Which channels.
    pub range: Range<usize>,
    /// Their pairs.
    pub pairs: [&'a [f64]; 2],
    /// Whether they cannot be read again.
    pub last: bool,
}

/// What follows from that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Their results stand.
    Done,
    /// They have other parameters now and must be read again. No answer to the last reading.
    Again,
}

/// What the kernels of one call have in common.
struct Call {
    tiling: Tiling,
    isa: Isa,
    threads: usize,
}

impl Call {
    /// A call that reads and writes so many tensors, counting each pass over one.
    fn new<E: Element>(layout: Layout, passes: usize) -> Self {
        let bytes = layout.elements().saturating_mul(size_of::<E>());
        Self {
            tiling: Tiling::new::<E>(layout),
            isa: Isa::current(),
            threads: parallel::threads(bytes.saturating_mul(passes)),
        }
    }
}

/// A kernel that writes, over a whole tensor. Each value is computed on its own, so the tensor may be cut anywhere; what counts is that parts are
/// contiguous in memory.
pub(crate) fn apply<E: Element, K: Kernel<E::Accum>>(
    layout: Layout,
    tile: Tile<'_, E>,
    kernel: K,
    params: [&[E::Accum]; PARAMS],
) {
    let call = Call::new::<E>(layout, K::INPUTS + K::OUTPUTS);
    let parts = parts(&call.tiling, call.threads, tile, params);
    call.apply_parts(parts.into_iter(), kernel);
}

/// A reduction of all channels. `finish` sets their results.
pub(crate) fn reduce<E: Element, R: Reduction<E>>(
    layout: Layout,
    tile: Tile<'_, E>,
    reduction: R,
    mut arrays: PerChannel<'_, E::Accum>,
    finish: impl Fn(Reduced<'_>, &mut PerChannel<'_, E::Accum>) -> Next + Sync,
) {
    let call = Call::new::<E>(layout, 2);
    let all = 0..layout.channels();
    call.reduce_channels(&tile, all, call.threads, reduction, &mut arrays, &finish);
}

/// A reduction, then a kernel that writes. `between` sets its parameters, and results.
pub(crate) fn reduce_then_apply<E: Element, R: Reduction<E>, K: Kernel<E::Accum>>(
    layout: Layout,
    tile: Tile<'_, E>,
    (reduction, kernel): (R, K),
    mut arrays: PerChannel<'_, E::Accum>,
    between: impl Fn(Reduced<'_>, &mut PerChannel<'_, E::Accum>) -> Next + Sync,
) {
    let tensors = K::INPUTS + K::OUTPUTS;
    let call = Call::new::<E>(layout, tensors + K::INPUTS);
    let Call {
        tiling,
        isa,
        threads,
    } = &call;
    let channels = tiling.layout().channels();
    let group = tiling.group::<E>(*threads, tensors);
    if *threads > 1 && channels.div_ceil(group) < 2 * threads {
        call.reduce_channels(
            &tile,
            0..channels,
            *threads,
            reduction,
            &mut arrays,
            &between,
        );
        let params = std::array::from_fn(|i| &*arrays[i]);
        let parts = from_the_middle(parts(&call.tiling, call.threads, tile, params));
        return call.apply_parts(parts.into_iter(), kernel);
    }
    let starts = (0..channels).step_by(group);
    let mut rest = Some((tile, arrays));
    let groups = starts.map(|start| {
        let range = start..channels.min(start + group);
        let (tile, arrays) = rest.take().expect("put back below");
        let (tile, right) = tile.split_cols(range.len() * tiling.inner());
        let (arrays, others) = cut(arrays, range.len());
        rest = Some((right, others));
        (range, tile, arrays)
    });
    for_each(
        groups,
        *threads,
        Scratch::new,
        |scratch, (range, mut tile, mut arrays)| {
            call.reduce_channels(&tile, range, 1, reduction, &mut arrays, &between);
            let grid = tile.grid();
            isa.run(Apply {
                tile: tile.window(0..grid.rows, 0..grid.cols),
                direction: tiling.direction(),
                cached: true,
                kernel,
                params: std::array::from_fn(|i| &*arrays[i]),
                scratch,
            });
        },
    );
}

impl Call {
    /// Merges the partials of the channels of a range, `[partial][channel]`, and hands the result on.
    fn finish<E: Element, R: Reduction<E>>(
        &self,
        [first, second]: [&mut [f64]; 2],
        range: Range<usize>,
        last: bool,
        arrays: &mut PerChannel<'_, E::Accum>,
        then: impl Fn(Reduced<'_>, &mut PerChannel<'_, E::Accum>) -> Next,
    ) -> Next {
        let channels = range.len();
        let mut counts = if self.tiling.partials() > 1 {
            self.tiling.counts()
        } else {
            Vec::new()
        };
        let mut next = Next::Done;
        self.isa.run(Plain(
            #[inline(always)]
            || {
                merge::<E, R>(&mut counts, [&mut *first, &mut *second], channels);
                let pairs = [&first[..channels], &second[..channels]];
                next = then(Reduced { range, pairs, last }, arrays);
            },
        ));
        next
    }

    /// A reduction of the channels of a range, which `tile` and `arrays` are cut to. The threads share the partials.
    fn reduce_channels<E: Element, R: Reduction<E>>(
        &self,
        tile: &Tile<'_, E>,
        range: Range<usize>,
        threads: usize,
        reduction: R,
        arrays: &mut PerChannel<'_, E::Accum>,
        then: impl Fn(Reduced<'_>, &mut PerChannel<'_, E::Accum>) -> Next,
    ) {
        let Self { tiling, isa, .. } = self;
        let (channels, inner) = (range.len(), tiling.inner());
        let partials = tiling.partials();
        let mut pairs = PAIRS.take();
        let group = tiling.group::<E>(threads, 2);
        let rows = tile.grid().rows;
        for reading in 1..=READINGS {
            for pairs in &mut pairs {
                pairs.clear();
                pairs.resize(channels * partials.max(1), 0.0);
            }
            let [first, second] = &mut pairs;
            if partials > 0 {
                let params: [&[E::Accum]; 3] = std::array::from_fn(|i| &*arrays[i]);
                let of_partials = first
                    .chunks_exact_mut(channels)
                    .zip(second.chunks_exact_mut(channels))
                    .enumerate();
                let tasks = of_partials.flat_map(|(partial, (first, second))| {
                    let groups = first.chunks_mut(group).zip(second.chunks_mut(group));
                    groups
                        .enumerate()
                        .map(move |(i, out)| (partial, i * group, out))
                });
                for_each(
                    tasks,
                    threads,
                    Scratch::new,
                    |scratch, (partial, start, out)| {
                        let range = start..start + out.0.len();
                        isa.run(Reduce {
                            tile: tile.view(0..rows, range.start * inner..range.end * inner),
                            tiling,
                            partial,
                            reduction,
                            params: params.map(|p| p.get(range.clone()).unwrap_or_default()),
                            scratch,
                            out: [out.0, out.1],
                        });
                    },
                );
            }
            let (pairs, last) = ([&mut first[..], &mut second[..]], reading == READINGS);
            if self.finish::<E, R>(pairs, range.clone(), last, arrays, &then) == Next::Done {
                break;
            }
        }
        if pairs.iter().map(Vec::capacity).sum::<usize>() * size_of::<f64>() <= MOST_KEPT_BYTES {
            PAIRS.set(pairs);
        }
    }

    fn apply_parts<'a, E: Element, K: Kernel<E::Accum>>(
        &self,
        parts: impl Iterator<Item = Part<'a, E>>,
        kernel: K,
    ) {
        let Self {
            tiling,
            isa,
            threads,
        } = self;
        for_each(
            parts,
            *threads,
            Scratch::new,
            |scratch, (mut tile, params)| {
                let channels = params[0].len();
                if channels == 0 {
                    return;
                }
                let (rows, inner) = (tile.grid().rows, tile.grid().cols / channels);
                let group = match tiling.direction_in_order() {
                    Direction::Along => channels,
                    Direction::Across => tiling.group::<E>(*threads, 2),
                };
                for start in (0..channels).step_by(group) {
                    let range = start..channels.min(start + group);
                    isa.run(Apply {
                        tile: tile.window(0..rows, range.start * inner..range.end * inner),
                        direction: tiling.direction_in_order(),
                        cached: false,
                        kernel,
                        params: params.map(|p| p.get(range.clone()).unwrap_or_default()),
                        scratch,
                    });
                }
            },
        );
    }
}

/// Merges partials, `[partial][channel]`, pairwise into the first, in an order that follows from their number alone:
///
/// ```text
/// 0  1  2  3  4    ->    01  23  4    ->    0123  4    ->    01234
/// ```
#[inline(always)]
fn merge<E: Element, R: Reduction<E>>(
    counts: &mut [f64],
    [first, second]: [&mut [f64]; 2],
    channels: usize,
) {
    let mut step = 1;
    while step < counts.len() {
        for a in (0..counts.len() - step).step_by(2 * step) {
            let b = a + step;
            let (first, first_b) = first[a * channels..].split_at_mut(step * channels);
            let (second, second_b) = second[a * channels..].split_at_mut(step * channels);
            let (first, first_b) = (&mut first[..channels], &first_b[..channels]);
            let (second, second_b) = (&mut second[..channels], &second_b[..channels]);
            let (n_a, n_b) = (counts[a], counts[b]);
            for c in 0..channels {
                let (pair, pair_b) = ([first[c], second[c]], [first_b[c], second_b[c]]);
                [first[c], second[c]] = R::merge(n_a, pair, n_b, pair_b);
            }
            counts[a] += counts[b];
        }
        step *= 2;
    }
}
