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
/// Units of channels from which on they are, too.
const MANY_UNITS: usize = 32;

/// Between what a tensor is cut. Any cut leaves parts of the same tensor, so it does not change on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// Leaves parts that are contiguous in memory.
    Rows,
    /// Where rows are few; and where many channels have several columns each, for which every part expands the parameters.
    Channels,
    /// Within the only channel, which is one row.
    Columns,
}

impl Cut {
    fn of(plan: &Plan) -> Self {
        let (rows, channels) = (plan.layout().outer(), plan.layout().channels());
        let by_channels = match plan.regime() {
            Regime::Rows => rows < MANY_ROWS,
            Regime::Columns => {
                plan.units(channels) >= MANY_UNITS && (plan.inner() > 1 || rows < MANY_ROWS)
            }
        };
        match channels {
            1 => Self::Columns,
            _ if rows < 2 || by_channels => Self::Channels,
            _ => Self::Rows,
        }
    }
}

impl<E: Element, K: Pass<E, P, 0>, const P: usize> Task for MapTask<'_, E, K, P> {
    fn len(&self) -> usize {
        let grid = self.region.grid();
        match Cut::of(self.plan) {
            Cut::Rows => grid.rows,
            Cut::Channels => self.params[0].len(),
            Cut::Columns => grid.cols.div_ceil(CUT),
        }
    }

    fn split(self, at: usize) -> (Self, Self) {
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
        let ((a, b), (p, q)) = match Cut::of(plan) {
            Cut::Rows => (region.split_rows(at), (params, params)),
            Cut::Channels => (
                region.split_cols(at * plan.inner()),
                (params.map(|p| &p[..at]), params.map(|p| &p[at..])),
            ),
            Cut::Columns => (region.split_cols(at * CUT), (params, params)),
        };
        (part(a, p), part(b, q))
    }

    fn run(mut self) {
        let channels = self.params[0].len();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_tensor_is_cut_between() {
        let cut = |outer, channels, inner| {
            let layout = Layout::new(outer, channels, inner)
                .expect("small")
                .flattened();
            Cut::of(&Plan::new::<f32>(layout))
        };
        // Long rows, many and few; the only channel.
        assert_eq!(cut(32, 64, 3136), Cut::Rows);
        assert_eq!(cut(8, 256, 784), Cut::Channels);
        assert_eq!(cut(100, 1, 3136), Cut::Columns);
        // One column per channel: a single row, many rows, few rows of many units.
        assert_eq!(cut(1, 512, 1), Cut::Channels);
        assert_eq!(cut(4096, 1024, 1), Cut::Rows);
        assert_eq!(cut(12, 40_000, 1), Cut::Channels);
        // Several columns per channel, in many units and in few.
        assert_eq!(cut(64, 8000, 5), Cut::Channels);
        assert_eq!(cut(64, 100, 5), Cut::Rows);
    }
}
