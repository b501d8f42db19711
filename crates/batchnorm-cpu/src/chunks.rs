//! The statistics of channels, chunk by chunk, and their merge.
//!
//! The results are two arrays `[chunk][channel]`. Which thread fills in which part does not matter; then the chunks are merged pairwise,
//!
//! ```text
//! 0  1  2  3  4    ->    01  23  4    ->    0123  4    ->    01234
//! ```
//!
//! in an order that follows from their number alone.

use std::ops::Range;

use crate::Element;
use crate::parallel::{self, Order, Task};
use crate::plan::Plan;
use crate::simd::Isa;
use crate::simd::columns::Scratch;
use crate::simd::reduce::{Reduce, Statistic};
use crate::simd::region::Region;

/// The parameters per channel of a statistic.
pub(crate) type Params<'a, E> = [&'a [<E as Element>::Accum]; 3];

/// The statistic of all channels of a tensor, into the first `channels` values of `out`.
pub(crate) fn statistics<E: Element, St: Statistic<E>>(
    isa: Isa,
    plan: &Plan,
    view: Region<'_, St::Operands>,
    params: Params<'_, E>,
    threads: usize,
    out: [&mut Vec<f64>; 2],
) {
    let channels = plan.layout().channels();
    let chunks = Chunks::<E, St> {
        isa,
        plan,
        view,
        params,
        channels,
    };
    let [first, second] = out;
    chunks.resize([first, second]);
    let items = 0..plan.chunks() * plan.units(channels);
    parallel::run(
        ChunkTask {
            chunks: &chunks,
            items,
            out: [first, second],
        },
        threads,
        Order::FromTheEnds,
    );
    chunks.merge([first, second]);
}

/// The chunks of a statistic of some channels: `[chunk][channel]` pairs.
pub(crate) struct Chunks<'a, E: Element, St: Statistic<E>> {
    pub isa: Isa,
    pub plan: &'a Plan,
    pub view: Region<'a, St::Operands>,
    pub params: Params<'a, E>,
    pub channels: usize,
}

impl<E: Element, St: Statistic<E>> Chunks<'_, E, St> {
    /// Makes room, with the statistic of no values.
    pub(crate) fn resize(&self, out: [&mut Vec<f64>; 2]) {
        for out in out {
            out.clear();
            out.resize(self.channels * self.plan.chunks().max(1), 0.0);
        }
    }

    /// The index in the results at which item `i` begins. Items are the units of the first chunk, then those of the second, ..
    fn start(&self, item: usize) -> usize {
        let units = self.plan.units(self.channels).max(1);
        item / units * self.channels + item % units * self.plan.unit()
    }

    /// Computes some items; `out` begins with the first of them.
    pub(crate) fn reduce(
        &self,
        items: Range<usize>,
        [mut first, mut second]: [&mut [f64]; 2],
        scratch: &mut Scratch<E::Accum>,
    ) {
        let Self {
            isa,
            plan,
            view,
            params,
            channels,
        } = self;
        let (units, inner) = (plan.units(*channels), plan.inner());
        for item in items {
            let (chunk, unit) = (item / units, item % units);
            let range = unit * plan.unit()..(*channels).min((unit + 1) * plan.unit());
            let out = [
                first
                    .split_off_mut(..range.len())
                    .expect("as many results as channels"),
                second
                    .split_off_mut(..range.len())
                    .expect("as many results as channels"),
            ];
            let region = view.view(0..view.grid().rows, range.start * inner..range.end * inner);
            let params = params.map(|p| &p[range.clone()]);
            isa.run(Reduce::<E, St> {
                region,
                plan,
                chunk,
                params,
                scratch,
                out,
            });
        }
    }

    /// Merges the chunks pairwise into the first.
    pub(crate) fn merge(&self, [first, second]: [&mut [f64]; 2]) {
        let chunks = self.plan.chunks();
        let mut counts: Vec<f64> = (0..chunks).map(|chunk| self.plan.count(chunk)).collect();
        let mut step = 1;
        while step < chunks {
            for a in (0..chunks - step).step_by(2 * step) {
                let b = a + step;
                for c in 0..self.channels {
                    let (i, j) = (a * self.channels + c, b * self.channels + c);
                    [first[i], second[i]] = St::merge(
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
}

struct ChunkTask<'a, 'b, E: Element, St: Statistic<E>> {
    chunks: &'a Chunks<'b, E, St>,
    items: Range<usize>,
    out: [&'a mut [f64]; 2],
}

impl<E: Element, St: Statistic<E>> Task for ChunkTask<'_, '_, E, St> {
    fn len(&self) -> usize {
        self.items.len()
    }

    fn split(self, at: usize) -> (Self, Self) {
        let Self {
            chunks,
            items,
            out: [first, second],
        } = self;
        let middle = items.start + at;
        let cut = chunks.start(middle) - chunks.start(items.start);
        let ((f, first), (s, second)) = (first.split_at_mut(cut), second.split_at_mut(cut));
        (
            Self {
                chunks,
                items: items.start..middle,
                out: [f, s],
            },
            Self {
                chunks,
                items: middle..items.end,
                out: [first, second],
            },
        )
    }

    fn run(self) {
        self.chunks
            .reduce(self.items, self.out, &mut Scratch::new());
    }
}
