//! A pass that writes, over a rectangle of channels.

use macerator::Simd;

use super::Op;
use super::columns::{Scratch, strips};
use super::lanes::fence;
use super::leaf::{across_columns, along_rows};
use super::passes::{Pass, Reg};
use super::region::{Operands, Region};
use crate::Element;
use crate::plan::Regime;

/// Runs shorter than this cost more to begin than their order gains.
const ORDERED_RUN_BYTES: usize = 1 << 10;

/// Pass `K` over a region that consists of `params[..].len()` channels, or of a part of the one channel.
pub(crate) struct Map<'a, E: Element, K: Pass<E, P, 0>, const P: usize> {
    pub region: Region<'a, K::Operands>,
    pub regime: Regime,
    /// Whether the region comes from memory and not from a cache: then runs of different channels are taken in the order in which they lie
    /// there. Otherwise channel by channel, so that parameters stay in registers and the next run is asked for ahead of time.
    pub from_memory: bool,
    pub params: [&'a [E::Accum]; P],
    pub scratch: &'a mut Scratch<E::Accum>,
}

impl<E: Element, K: Pass<E, P, 0>, const P: usize> Op for Map<'_, E, K, P> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let stride = self.region.grid().stride * size_of::<E>();
        let aligned = stride.is_multiple_of(size_of::<Reg<S, E>>());
        if aligned && K::past_caches(self.region.operands()).is_some() {
            self.sweep::<S, true>();
            fence();
        } else {
            self.sweep::<S, false>();
        }
    }
}

impl<E: Element, K: Pass<E, P, 0>, const P: usize> Map<'_, E, K, P> {
    #[inline(always)]
    fn sweep<S: Simd, const PAST: bool>(self) {
        let (o, grid) = (self.region.operands(), self.region.grid());
        let channels = self.params[0].len();
        assert!(self.params.iter().all(|p| p.len() == channels));
        if channels == 0 || grid.cols == 0 {
            return;
        }
        let inner = grid.cols / channels;
        match self.regime {
            Regime::Rows => {
                let ordered = self.from_memory && inner * size_of::<E>() >= ORDERED_RUN_BYTES;
                let (steps, rows) = match ordered {
                    true => (grid.rows, 1),
                    false => (1, grid.rows),
                };
                for step in 0..steps {
                    for channel in 0..channels {
                        let mut params = [E::Accum::default(); P];
                        for (param, values) in params.iter_mut().zip(self.params) {
                            *param = values[channel];
                        }
                        let o = o.offset(step * grid.stride + channel * inner);
                        let shape = (rows, grid.stride, inner);
                        // SAFETY: `step + rows <= grid.rows` and `channels * inner <= grid.cols`, so these runs lie in the region, for which
                        // `o` is valid.
                        unsafe { along_rows::<S, E, K, P, 0, PAST>(o, shape, params) };
                    }
                }
            }
            Regime::Columns => {
                for (offset, strip, columns) in strips(grid, channels).into_iter().flatten() {
                    let shape = (strip.rows, strip.stride, strip.cols);
                    let o = o.offset(offset);
                    let mut params = self.params;
                    if !columns.are_channels() {
                        let (_, arrays) = self.scratch.arrays::<P>(channels, strip.cols);
                        let mut arrays = arrays.into_iter();
                        for param in &mut params {
                            let array = arrays.next().expect("P arrays");
                            columns.expand(param, array);
                            *param = array;
                        }
                    }
                    // SAFETY: strips are parts of the grid that they are made from.
                    unsafe { across_columns::<S, E, K, P, 0, PAST>(o, shape, params, []) };
                }
            }
        }
    }
}
