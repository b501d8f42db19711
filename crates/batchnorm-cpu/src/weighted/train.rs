//! The forward pass with weighted positions.

use super::Weights;
use crate::activation::{Applied, Epilogue, Pieces};
use crate::cut::PerChannel;
use crate::driver::{self, Next, Reduced};
use crate::forward::{applied, with_residual};
use crate::memory::InOut;
use crate::simd::kernels::{Activate, Curved, Nothing};
use crate::simd::tasks::Sums;
use crate::simd::tile::Tile;
use crate::simd::weighted::{Behind, WeightedNormalize, WeightedSums};
use crate::statistics::{self, Affine, Statistics};
use crate::{Accum, Element, Layout};

/// A checked call of [`train_weighted`](crate::train_weighted).
pub(crate) struct Train<'a, E: Element> {
    pub(super) layout: Layout,
    pub(super) x: InOut<'a, E>,
    pub(super) weights: Weights<'a, E::Accum>,
    pub(super) affine: Affine<'a, E::Accum>,
    pub(super) epsilon: f64,
    pub(super) epilogue: Epilogue<'a, E>,
    pub(super) out: Statistics<&'a mut [E::Accum]>,
    pub(super) sums: &'a mut [E::Accum],
}

impl<E: Element> Train<'_, E> {
    pub(crate) fn run(self) {
        let residual = self.epilogue.residual.is_some();
        match (applied(self.epilogue.activation), residual) {
            (Applied::Nothing, false) => self.with(Nothing),
            (Applied::Nothing, true) => self.with(Pieces::identity()),
            (Applied::Pieces(pieces), _) => self.with(pieces),
            (Applied::Curve(curve), residual) => self.with(Curved { curve, residual }),
        }
    }

    fn with<Act: Activate<E::Accum>>(self, activation: Act) {
        let kernel = WeightedNormalize(Behind {
            activation,
            residual: self.epilogue.residual.is_some(),
        });
        let Self {
            layout,
            x,
            weights,
            affine: Affine { gamma, beta },
            epsilon,
            epilogue,
            out,
            sums,
        } = self;
        let flat = layout.flattened();
        let tile = Tile::new(&flat).read_write(x).weigh(&layout, weights);
        let tile = with_residual(tile, epilogue, kernel);
        weights.sum(layout, sums);
        set_shifts(&tile, &flat, weights, out.mean);
        let mut applied = vec![E::Accum::default(); 2 * layout.channels()];
        let (scale, shift) = applied.split_at_mut(layout.channels());
        // The first holds the shift of the sums until it is the mean.
        let arrays = [
            out.mean,
            scale,
            shift,
            out.mean_lo,
            out.variance,
            out.inv_std,
            sums,
            &mut [],
        ];
        driver::reduce_then_apply(
            layout,
            tile,
            (Sums(WeightedSums), kernel),
            arrays,
            |Reduced { range, pairs, last }: Reduced<'_>, arrays: &mut PerChannel<'_, E::Accum>| {
                let [mean, scale, shift, mean_lo, variance, inv_std, sums, _] = arrays;
                let (gamma, beta) = (&gamma[range.clone()], &beta[range]);
                if !last && move_shifts(pairs, sums, mean) {
                    return Next::Again;
                }
                for c in 0..mean.len() {
                    let [exact, spread] = moments(pairs, c, sums[c], mean[c]);
                    mean[c] = E::Accum::from_f64(exact);
                    mean_lo[c] = E::Accum::from_f64(exact - mean[c].to_f64());
                    variance[c] = E::Accum::from_f64(spread);
                    inv_std[c] = statistics::inv_std(spread, epsilon);
                    scale[c] = statistics::scale(gamma[c], inv_std[c]);
                    shift[c] = statistics::shift(beta[c], mean_lo[c], scale[c]);
                }
                Next::Done
            },
        );
    }
}

/// Mean and variance of channel `c` by its sums about a shift.
#[inline(always)]
fn moments<A: Accum>([sums, squares]: [&[f64]; 2], c: usize, weight: A, shift: A) -> [f64; 2] {
    let weight = weight.to_f64();
    if weight == 0.0 {
        return [0.0, 1.0];
    }
    let d = sums[c] / weight;
    let spread = squares[c] / weight - d * d;
    // Not `max`, which would turn NaN into zero.
    let spread = if spread < 0.0 { 0.0 } else { spread };
    [shift.to_f64() + d, spread]
}

/// Moves the shifts that were not near enough to their channels' means. The others stay, and with them their sums: what becomes of a channel does not depend
/// on which others are read with it. Says whether there were any.
fn move_shifts<A: Accum>(pairs: [&[f64]; 2], weights: &[A], shifts: &mut [A]) -> bool {
    let mut moved = false;
    for c in 0..shifts.len() {
        let [mean, spread] = moments(pairs, c, weights[c], shifts[c]);
        let d = mean - shifts[c].to_f64();
        let near = d * d <= 3.0 * spread && spread < f64::INFINITY;
        if !near && mean.is_finite() && weights[c] > A::default() {
            shifts[c] = A::from_f64(mean);
            moved = true;
        }
    }
    moved
}

/// Values of a channel that give a first idea of its mean.
const SAMPLE: usize = 4;
/// How many positions are looked at for each, where every channel has its own weights.
const LOOKED_AT: usize = 16;

/// Sets each channel's shift: the mean of some values, from all over the channel, that are finite and have a weight; 0 without any.
fn set_shifts<E: Element>(
    tile: &Tile<'_, E>,
    layout: &Layout,
    weights: Weights<'_, E::Accum>,
    shifts: &mut [E::Accum],
) {
    let inner = layout.inner();
    let positions = layout.samples_per_channel();
    // The first with a weight among some positions of each part.
    let sample = |c: usize, looked_at: usize| {
        (0..SAMPLE).filter_map(move |part| {
            let start = part * positions / SAMPLE;
            let end = positions.min(start.saturating_add(looked_at));
            let mut places = (start..end).map(|at| (at / inner, at % inner));
            places.find(|&(row, i)| weights.at(layout, (row, c, i)) > 0.0)
        })
    };
    // About the first of them, so that values that are equal have a mean that is equal to them.
    let shift = |c: usize, sample: &mut dyn Iterator<Item = (usize, usize)>| {
        let values = sample.map(|(row, i)| tile.value(row, c * inner + i));
        let mut values = values.filter(|v| v.is_finite());
        let first = values.next().unwrap_or(0.0);
        let (sum, n) = values.fold((0.0, 1.0), |(sum, n), v| (sum + (v - first), n + 1.0));
        E::Accum::from_f64(first + sum / n)
    };
    match weights {
        Weights::Shared(_) if layout.elements() > 0 => {
            let sample: Vec<_> = sample(0, positions).collect();
            for (c, out) in shifts.iter_mut().enumerate() {
                *out = shift(c, &mut sample.iter().copied());
            }
        }
        _ => {
            for (c, out) in shifts.iter_mut().enumerate() {
                *out = shift(c, &mut sample(c, LOOKED_AT));
            }
        }
    }
}
