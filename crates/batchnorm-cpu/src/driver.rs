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

use std::ops::Range;

use crate::parallel::{self, PARTS_PER_THREAD, even, for_each, from_the_middle};
use crate::simd::Isa;
use crate::simd::kernels::{Kernel, PARAMS};
use crate::simd::tasks::{Apply, Reduce, Reduction, Scratch};
use crate::simd::tile::Tile;
use crate::tiling::{Direction, Tiling};
use crate::{Element, Layout};

/// How many arrays a call has per channel: the parameters of its kernels, and results.
pub(crate) const ARRAYS: usize = PARAMS + 2;

/// Arrays with a value per channel, of which the first are the parameters of the kernels. One that nobody wants is empty.
pub(crate) type PerChannel<'a, A> = [&'a mut [A]; ARRAYS];

/// Long runs of a single channel are cut at multiples of this many elements, whole cache lines of every type.
const CUT: usize = 1024;
/// Groups across channels from which on the channels are cut and not the rows, where each part would have to expand the parameters of all.
const MANY_GROUPS: usize = 32;

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
    let parts = call.parts(tile, params);
    call.apply_parts(parts.into_iter(), kernel);
}

/// A pair of numbers per channel.
pub(crate) fn reduce<E: Element, R: Reduction<E>>(
    layout: Layout,
    tile: Tile<'_, E>,
    reduction: R,
    params: [&[E::Accum]; 3],
) -> [Vec<f64>; 2] {
    let call = Call::new::<E>(layout, 2);
    call.reduce_shared(&tile, reduction, params)
}

/// A reduction, then a kernel that writes. `between` takes the pairs of the channels of a range and sets their parameters and results.
pub(crate) fn reduce_then_apply<E: Element, R: Reduction<E>, K: Kernel<E::Accum>>(
    layout: Layout,
    tile: Tile<'_, E>,
    (reduction, kernel): (R, K),
    mut arrays: PerChannel<'_, E::Accum>,
    between: impl Fn(Range<usize>, [&[f64]; 2], &mut PerChannel<'_, E::Accum>) + Sync,
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
        let params = std::array::from_fn(|i| &*arrays[i]);
        let [first, second] = call.reduce_shared(&tile, reduction, params);
        between(
            0..channels,
            [&first[..channels], &second[..channels]],
            &mut arrays,
        );
        let params = std::array::from_fn(|i| &*arrays[i]);
        let parts = from_the_middle(call.parts(tile, params));
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
    let state = || (Scratch::new(), [Vec::new(), Vec::new()]);
    for_each(
        groups,
        *threads,
        state,
        |(scratch, pairs), (range, mut tile, mut arrays)| {
            let channels = range.len();
            let partials = tiling.partials();
            for pairs in &mut *pairs {
                pairs.clear();
                pairs.resize(channels * partials.max(1), 0.0);
            }
            let [first, second] = pairs;
            for partial in 0..partials {
                let slots = partial * channels..(partial + 1) * channels;
                let grid = tile.grid();
                isa.run(Reduce {
                    tile: tile.view(0..grid.rows, 0..grid.cols),
                    tiling,
                    partial,
                    reduction,
                    params: std::array::from_fn(|i| &*arrays[i]),
                    scratch,
                    out: [&mut first[slots.clone()], &mut second[slots]],
                });
            }
            merge::<E, R>(&mut tiling.counts(), [first, second], channels);
            between(
                range,
                [&first[..channels], &second[..channels]],
                &mut arrays,
            );
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
    /// A reduction whose partials all threads share. Only the first `channels` values of the results mean anything.
    fn reduce_shared<E: Element, R: Reduction<E>>(
        &self,
        tile: &Tile<'_, E>,
        reduction: R,
        params: [&[E::Accum]; 3],
    ) -> [Vec<f64>; 2] {
        let Self {
            tiling,
            isa,
            threads,
        } = self;
        let (channels, inner) = (tiling.layout().channels(), tiling.inner());
        let partials = tiling.partials();
        let mut pairs = [(); 2].map(|()| vec![0.0; channels * partials.max(1)]);
        let group = tiling.group::<E>(*threads, 2);
        let rows = tile.grid().rows;
        let [first, second] = &mut pairs;
        if partials > 0 {
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
                *threads,
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
        merge::<E, R>(&mut tiling.counts(), [first, second], channels);
        pairs
    }

    /// Cuts a tensor and its parameters for the threads.
    fn parts<'a, E: Element>(
        &self,
        tile: Tile<'a, E>,
        params: [&'a [E::Accum]; PARAMS],
    ) -> Vec<Part<'a, E>> {
        let Self {
            tiling, threads, ..
        } = self;
        let (channels, inner) = (tiling.layout().channels(), tiling.inner());
        let (rows, cols) = (tile.grid().rows, tile.grid().cols);
        let parts = if *threads == 1 {
            1
        } else {
            threads * PARTS_PER_THREAD
        };
        let by_channels = match tiling.direction() {
            Direction::Along => rows < parts,
            Direction::Across => {
                let groups = channels.div_ceil(tiling.group::<E>(*threads, 2));
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
                let group = match tiling.direction() {
                    Direction::Along => channels,
                    Direction::Across => tiling.group::<E>(*threads, 2),
                };
                for start in (0..channels).step_by(group) {
                    let range = start..channels.min(start + group);
                    isa.run(Apply {
                        tile: tile.window(0..rows, range.start * inner..range.end * inner),
                        direction: tiling.direction(),
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

/// A part of a tensor, and the parameters of its channels.
type Part<'a, E> = (Tile<'a, E>, [&'a [<E as Element>::Accum]; PARAMS]);

/// Cuts all arrays at `at`; an empty one stays empty on both sides.
fn cut<A>(arrays: PerChannel<'_, A>, at: usize) -> (PerChannel<'_, A>, PerChannel<'_, A>) {
    let mut left: PerChannel<'_, A> = Default::default();
    let mut right: PerChannel<'_, A> = Default::default();
    for (i, array) in arrays.into_iter().enumerate() {
        let at = at.min(array.len());
        (left[i], right[i]) = array.split_at_mut(at);
    }
    (left, right)
}

/// Merges partials, `[partial][channel]`, pairwise into the first, in an order that follows from their number alone:
///
/// ```text
/// 0  1  2  3  4    ->    01  23  4    ->    0123  4    ->    01234
/// ```
fn merge<E: Element, R: Reduction<E>>(
    counts: &mut [f64],
    [first, second]: [&mut [f64]; 2],
    channels: usize,
) {
    let mut step = 1;
    while step < counts.len() {
        for a in (0..counts.len() - step).step_by(2 * step) {
            let b = a + step;
            for c in 0..channels {
                let (i, j) = (a * channels + c, b * channels + c);
                [first[i], second[i]] = R::merge(
                    counts[a],
                    [first[i], second[i]],
                    counts[b],
                    [first[j], second[j]],
                );
            }
            counts[a] += counts[b];
        }
        step *= 2;
    }
}
