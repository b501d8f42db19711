//! The backward pass with weighted positions.

use super::{Weights, curved};
use crate::activation::{Applied, Epilogue};
use crate::backward::{Gradients, Saved, gradients};
use crate::cut::PerChannel;
use crate::driver::{self, Next, Reduced};
use crate::forward::{applied, set_applied, with_residual};
use crate::memory::InOut;
use crate::simd::kernels::{Activate, Nothing};
use crate::simd::tasks::Sums;
use crate::simd::tile::Tile;
use crate::simd::weighted::{Behind, WeightedGradientSums, WeightedXGradient};
use crate::statistics::Affine;
use crate::{Accum, Element, Layout};

/// A checked call of [`backward_weighted`](crate::backward_weighted).
pub(crate) struct Backward<'a, E: Element> {
    pub(super) layout: Layout,
    pub(super) x: &'a [E],
    pub(super) weights: Weights<'a, E::Accum>,
    pub(super) y_grad: InOut<'a, E>,
    pub(super) saved: Saved<'a, E::Accum>,
    pub(super) sums: &'a [E::Accum],
    pub(super) affine: Affine<'a, E::Accum>,
    pub(super) epilogue: Epilogue<'a, E>,
    pub(super) out: Gradients<'a, E>,
}

impl<E: Element> Backward<'_, E> {
    pub(crate) fn run(self) {
        match applied(self.epilogue.activation) {
            Applied::Nothing => self.with(Nothing),
            Applied::Pieces(pieces) => self.with(pieces),
            Applied::Curve(curve) => self.with(curved(curve)),
        }
    }

    fn with<Act: Activate<E::Accum>>(self, activation: Act) {
        let behind = Behind {
            activation,
            residual: self.epilogue.residual.is_some(),
        };
        let Self {
            layout,
            x,
            weights,
            y_grad,
            saved,
            sums: weight_sums,
            affine,
            epilogue,
            out,
        } = self;
        let [gamma_grad, beta_grad] = [out.gamma, out.beta].map(|g| g.unwrap_or_default());
        let x_grad = y_grad.has_output();
        let parameters = !(gamma_grad.is_empty() && beta_grad.is_empty());
        let writes = x_grad || out.residual.is_some();
        if !writes && !parameters {
            return;
        }
        let mut buffer = vec![E::Accum::default(); 7 * layout.channels()];
        let mut rest = &mut buffer[..];
        let [own_inv_std, mean, scale, shift, a, b, c] =
            [(); 7].map(|()| rest.split_off_mut(..layout.channels()).expect("seven"));
        let (mean_lo, inv_std, of_batch) = match saved {
            Saved::Batch(statistics) => {
                mean.copy_from_slice(statistics.mean);
                (Some(statistics.mean_lo), statistics.inv_std, x_grad)
            }
            Saved::Given(given) => {
                mean.copy_from_slice(given.mean);
                given.set_inv_std(own_inv_std);
                (given.mean_lo, &*own_inv_std, false)
            }
        };
        let sums = WeightedGradientSums(behind);
        let kernel = WeightedXGradient {
            behind,
            of_batch: E::Accum::from_f64(f64::from(u8::from(of_batch))),
        };
        set_applied(affine, mean_lo, inv_std, [&mut *scale, &mut *shift]);
        // Without x_grad, that of the residual, g, is the first output.
        match x_grad {
            true => a.copy_from_slice(scale),
            false => a.fill(E::Accum::from_f64(1.0)),
        }
        let tile = Tile::new(&layout.flattened()).read(x).read_write(y_grad);
        let mut tile = with_residual(tile, epilogue, kernel).weigh(&layout, weights);
        if let Some(residual_grad) = out.residual {
            tile = tile.write(residual_grad);
        }
        let arrays: PerChannel<'_, E::Accum> = [mean, scale, shift, a, b, c, gamma_grad, beta_grad];
        let finish = |Reduced { range, pairs, .. }: Reduced<'_>,
                      arrays: &mut PerChannel<'_, E::Accum>| {
            let count = |i: usize| weight_sums[range.start + i].to_f64();
            let low = mean_lo.map(|low| &low[range.clone()]);
            gradients(count, pairs, low, &inv_std[range.clone()], of_batch, arrays);
            Next::Done
        };
        if !(of_batch || parameters) {
            driver::apply(layout, tile, kernel, std::array::from_fn(|i| &*arrays[i]));
        } else if writes {
            driver::reduce_then_apply(layout, tile, (Sums(sums), kernel), arrays, finish);
        } else {
            driver::reduce(layout, tile, Sums(sums), arrays, finish);
        }
    }
}
