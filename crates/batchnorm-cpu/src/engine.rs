//! Statistics, then a pass that writes: the order of events that forward and backward share.
//!
//! - **Fused**, where there are enough units for all threads: each task takes a unit (a channel or a few) through statistics and pass, so that
//!   the pass finds the unit in the cache. Memory is read once and written once.
//! - **Swept**, where there are few units with much data each: all threads share the chunks of all statistics, then the rows or columns of the
//!   pass. Memory is read twice, unless it fits into the last-level cache.
//!
//! Both merge the same chunks in the same order, so they give the same bits.

use std::ops::Range;

use crate::chunks::{Chunks, statistics};
use crate::parallel::{self, Order, Task};
use crate::plan::Plan;
use crate::simd::Isa;
use crate::simd::columns::Scratch;
use crate::simd::map::Map;
use crate::simd::passes::Pass;
use crate::simd::reduce::Statistic;
use crate::simd::region::{Reads, Region};
use crate::sweep::map_on;
use crate::{Element, Layout};

/// What is particular to a fused kernel: the algebra on `[channels]` vectors before, between and after the passes.
pub(crate) trait Fused<E: Element, const P: usize>: Sized + Send {
    /// What the kernel reads and writes.
    type Operands: Reads<<Self::Statistic as Statistic<E>>::Operands>;
    /// What is reduced to two numbers per channel.
    type Statistic: Statistic<E>;
    /// What writes, with `P` parameters per channel.
    type Pass: Pass<E, P, 0, Operands = Self::Operands>;

    /// Cuts the channels at `at`.
    fn split(self, at: usize) -> (Self, Self);

    /// Sets those of the parameters that the statistic needs: the first three, of the channels `range`.
    fn before(&self, range: Range<usize>, params: &mut [Vec<E::Accum>; P]);

    /// Takes the statistic of the channels `range`, of `n` values each, and sets the parameters of the pass.
    fn after(
        &mut self,
        range: Range<usize>,
        n: f64,
        stats: [&[f64]; 2],
        params: &mut [Vec<E::Accum>; P],
    );
}

/// Runs a fused kernel over a whole tensor.
pub(crate) fn fused<E: Element, K: Fused<E, P>, const P: usize>(
    kernel: K,
    region: Region<'_, K::Operands>,
    layout: Layout,
    streams: usize,
) {
    let plan = Plan::new::<E>(layout);
    let (isa, channels) = (Isa::current(), plan.layout().channels());
    let threads = parallel::threads(layout.elements() * size_of::<E>() * streams);
    if threads == 1 || plan.units(channels) >= 2 * threads {
        return parallel::run(
            FusedTask {
                kernel,
                region,
                channels,
                plan: &plan,
                isa,
            },
            threads,
            Order::FromTheEnds,
        );
    }
    let mut kernel = kernel;
    let mut params = std::array::from_fn(|_| vec![E::Accum::default(); channels]);
    kernel.before(0..channels, &mut params);
    let [mut first, mut second] = [Vec::new(), Vec::new()];
    statistics::<E, K::Statistic>(
        isa,
        &plan,
        region.reading(),
        first_three(&params),
        threads,
        [&mut first, &mut second],
    );
    kernel.after(
        0..channels,
        layout.samples_per_channel() as f64,
        [&first[..channels], &second[..channels]],
        &mut params,
    );
    let params = std::array::from_fn(|i| &params[i][..]);
    map_on::<E, K::Pass, P>(isa, &plan, region, params, threads, Order::FromTheMiddle);
}

struct FusedTask<'a, E: Element, K: Fused<E, P>, const P: usize> {
    kernel: K,
    region: Region<'a, K::Operands>,
    channels: usize,
    plan: &'a Plan,
    isa: Isa,
}

impl<E: Element, K: Fused<E, P>, const P: usize> Task for FusedTask<'_, E, K, P> {
    fn len(&self) -> usize {
        self.plan.units(self.channels)
    }

    fn split(self, at: usize) -> (Self, Self) {
        let Self {
            kernel,
            region,
            channels,
            plan,
            isa,
        } = self;
        let at = (at * plan.unit()).min(channels);
        let (kernel, rest) = kernel.split(at);
        let (left, right) = region.split_cols(at * plan.inner());
        let part = |kernel, region, channels| Self {
            kernel,
            region,
            channels,
            plan,
            isa,
        };
        (part(kernel, left, at), part(rest, right, channels - at))
    }

    fn run(mut self) {
        let (plan, inner) = (self.plan, self.plan.inner());
        let n = plan.layout().samples_per_channel() as f64;
        let mut scratch = Scratch::new();
        let mut params = std::array::from_fn(|_| Vec::new());
        let [mut first, mut second] = [Vec::new(), Vec::new()];
        for unit in 0..self.len() {
            let range = unit * plan.unit()..self.channels.min((unit + 1) * plan.unit());
            let channels = range.len();
            let rows = 0..self.region.grid().rows;
            let region = self
                .region
                .window(rows, range.start * inner..range.end * inner);
            params
                .iter_mut()
                .for_each(|p: &mut Vec<_>| p.resize(channels, E::Accum::default()));
            self.kernel.before(range.clone(), &mut params);
            let chunks = Chunks::<E, K::Statistic> {
                isa: self.isa,
                plan,
                view: region.reading(),
                params: first_three(&params),
                channels,
            };
            chunks.resize([&mut first, &mut second]);
            chunks.reduce(0..plan.chunks(), [&mut first, &mut second], &mut scratch);
            chunks.merge([&mut first, &mut second]);
            self.kernel.after(
                range,
                n,
                [&first[..channels], &second[..channels]],
                &mut params,
            );
            let params = std::array::from_fn(|i| &params[i][..]);
            self.isa.run(Map::<E, K::Pass, P> {
                region,
                regime: plan.regime(),
                from_memory: false,
                params,
                scratch: &mut scratch,
            });
        }
    }
}

fn first_three<A, const P: usize>(params: &[Vec<A>; P]) -> [&[A]; 3] {
    std::array::from_fn(|i| &params[i][..])
}
