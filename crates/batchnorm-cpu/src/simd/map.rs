//! A pass that writes, over a rectangle of channels.

use macerator::Simd;

use super::Op;
use super::columns::{Scratch, strips};
use super::leaf::{across_columns, along_rows};
use super::passes::Pass;
use super::region::{Operands, Region};
use crate::Element;
use crate::plan::Regime;

/// Pass `K` over a region that consists of `params[..].len()` channels, or of a part of the one channel.
pub(crate) struct Map<'a, E: Element, K: Pass<E, P, 0>, const P: usize> {
    pub region: Region<'a, K::Operands>,
    pub regime: Regime,
    pub params: [&'a [E::Accum]; P],
    pub scratch: &'a mut Scratch<E::Accum>,
}

impl<E: Element, K: Pass<E, P, 0>, const P: usize> Op for Map<'_, E, K, P> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let (o, grid) = (self.region.operands(), self.region.grid());
        let channels = self.params[0].len();
        assert!(self.params.iter().all(|p| p.len() == channels));
        if channels == 0 || grid.cols == 0 {
            return;
        }
        let inner = grid.cols / channels;
        match self.regime {
            Regime::Rows => {
                for channel in 0..channels {
                    let mut params = [E::Accum::default(); P];
                    for (param, values) in params.iter_mut().zip(self.params) {
                        *param = values[channel];
                    }
                    // SAFETY: `channels * inner <= grid.cols`, so these columns lie in the region, for which `o` is valid.
                    unsafe {
                        along_rows::<S, E, K, P, 0>(
                            o.offset(channel * inner),
                            (grid.rows, grid.stride, inner),
                            params,
                        )
                    };
                }
            }
            Regime::Columns => {
                for (offset, strip, columns) in strips(grid, channels).into_iter().flatten() {
                    let shape = (strip.rows, strip.stride, strip.cols);
                    let o = o.offset(offset);
                    let mut params = self.params;
                    if !columns.are_channels() {
                        let mut arrays = self.scratch.arrays::<P>(strip.cols).into_iter();
                        for param in &mut params {
                            let array = arrays.next().expect("P arrays");
                            columns.expand(param, array);
                            *param = array;
                        }
                    }
                    // SAFETY: strips are parts of the grid that they are made from.
                    unsafe { across_columns::<S, E, K, P, 0>(o, shape, params, []) };
                }
            }
        }
    }
}
