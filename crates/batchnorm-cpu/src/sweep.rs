//! A pass that writes, over a whole tensor: how it is cut for threads.
//!
//! Each value is computed on its own, so it may be cut anywhere; what counts is that the parts are contiguous in memory.

use crate::parallel::{self, Order, Task};
use crate::plan::{Plan, Regime};
use crate::simd::Isa;
use crate::simd::columns::Scratch;
use crate::simd::map::Map;
use crate::simd::passes::Pass;
use crate::simd::region::Region;
use crate::{Element, Layout};

/// Runs a pass over a whole tensor.
pub(crate) fn map<E: Element, K: Pass<E, P, 0>, const P: usize>(
    region: Region<'_, K::Operands>,
    layout: Layout,
    params: [&[E::Accum]; P],
    streams: usize,
) {
    let plan = Plan::new::<E>(layout);
    let threads = parallel::threads(layout.elements() * size_of::<E>() * streams);
    map_on::<E, K, P>(
        Isa::current(),
        &plan,
        region,
        params,
        threads,
        Order::FromTheEnds,
    );
}

pub(crate) fn map_on<E: Element, K: Pass<E, P, 0>, const P: usize>(
    isa: Isa,
    plan: &Plan,
    region: Region<'_, K::Operands>,
    params: [&[E::Accum]; P],
    threads: usize,
    order: Order,
) {
    let task = MapTask::<E, K, P> {
        region,
        params,
        plan,
        isa,
    };
    parallel::run(task, threads, order);
}

struct MapTask<'a, E: Element, K: Pass<E, P, 0>, const P: usize> {
    region: Region<'a, K::Operands>,
    params: [&'a [E::Accum]; P],
    plan: &'a Plan,
    isa: Isa,
}

/// Long pieces of a single row are cut at multiples of this many elements, whole cache lines of every type.
const CUT: usize = 1024;
/// Rows from which on they are enough parts for any number of threads.
const MANY_ROWS: usize = 32;

impl<E: Element, K: Pass<E, P, 0>, const P: usize> MapTask<'_, E, K, P> {
    fn channels(&self) -> usize {
        self.params[0].len()
    }

    /// Cuts between rows leave parts that are contiguous in memory. Where rows are long and few, the cut is between channels, or else within
    /// the only row.
    fn by_rows(&self) -> bool {
        let rows = self.region.grid().rows;
        rows > 1
            && (self.plan.regime() == Regime::Columns || self.channels() == 1 || rows >= MANY_ROWS)
    }
}

impl<E: Element, K: Pass<E, P, 0>, const P: usize> Task for MapTask<'_, E, K, P> {
    fn len(&self) -> usize {
        let grid = self.region.grid();
        match (self.by_rows(), self.channels()) {
            (true, _) => grid.rows,
            (false, 1) => grid.cols.div_ceil(CUT),
            (false, channels) => channels,
        }
    }

    fn split(self, at: usize) -> (Self, Self) {
        let (by_rows, channels) = (self.by_rows(), self.channels());
        let Self {
            region,
            params,
            plan,
            isa,
        } = self;
        let part = |region, params| Self {
            region,
            params,
            plan,
            isa,
        };
        if by_rows {
            let (a, b) = region.split_rows(at);
            return (part(a, params), part(b, params));
        }
        if channels == 1 {
            let (a, b) = region.split_cols(at * CUT);
            return (part(a, params), part(b, params));
        }
        let (a, b) = region.split_cols(at * plan.inner());
        (
            part(a, params.map(|p| &p[..at])),
            part(b, params.map(|p| &p[at..])),
        )
    }

    fn run(mut self) {
        let channels = self.channels();
        if channels == 0 {
            return;
        }
        let rows = self.region.grid().rows;
        let inner = self.region.grid().cols / channels;
        let mut scratch = Scratch::new();
        let unit = match self.plan.regime() {
            Regime::Rows => channels,
            Regime::Columns => self.plan.unit(),
        };
        for start in (0..channels).step_by(unit) {
            let range = start..channels.min(start + unit);
            let region = self
                .region
                .window(0..rows, range.start * inner..range.end * inner);
            let params = self.params.map(|p| &p[range.clone()]);
            self.isa.run(Map::<E, K, P> {
                region,
                regime: self.plan.regime(),
                from_memory: true,
                params,
                scratch: &mut scratch,
            });
        }
    }
}
