//! Training with weighted positions: masks, padding, importance.
//!
//! With a weight `w >= 0` for every position and `W = sum(w)` over a channel,
//!
//! ```text
//! mean = sum(w x) / W        variance = sum(w (x - mean)^2) / W        both 0 where W = 0
//! ```
//!
//! A position of weight 0 is left out, whatever it holds. Its output is `act((x - mean) * inv_std * gamma + beta + residual)` like all others; where x is
//! not finite there, its mean is taken instead.
//!
//! **Backward.** As in `backward.rs`, with `d mean / dx_i = w_i / W` and `d var / dx_i = 2 w_i (x_i - mean) / W`, since `sum(w (x - mean)) = 0`:
//!
//! ```text
//! x_grad_i = gamma * s * (g_i - (w_i / W) * (sum(g) + xh_i * sum(g * xh)))
//! ```
//!
//! where the sums go over all positions, those of weight 0 included, for they were normalized too.
//!
//! **Passes over memory.** The forward pass reads x twice for the statistics, about a sample's median and then about the mean that this gave, so that a
//! mean that is large against the spread costs no digits, and a constant channel has differences of exactly 0. The second reading
//! stays in the cache for the normalization, as that of [`train`](crate::train) does: 3 passes, or 4. The backward pass has as many as
//! the plain one. Weights that channels share are read from a cache, next to nothing.
//!
//! Squares are not scaled, as those of the plain statistics are: from a spread of 1e19 in `f32` the variance is infinite.

use std::ops::Range;

use crate::activation::Epilogue;
use crate::backward::Gradients;
use crate::cut::PerChannel;
use crate::forward::{applied, check_output, set_applied, with_residual};
use crate::memory::InOut;
use crate::simd::tasks::Sums;
use crate::simd::tile::Tile;
use crate::simd::weighted::{
    Any, WeightedGradientSums, WeightedNormalize, WeightedSums, WeightedXGradient,
};
use crate::statistics::{self, Affine, Statistics, check_epsilon};
use crate::{Accum, Element, Error, Layout, driver};

/// Weights of positions, not negative; 0 leaves a position out.
#[derive(Debug, Clone, Copy)]
pub enum Weights<'a, A> {
    /// The same for all channels: `[outer, inner]`.
    Shared(&'a [A]),
    /// Every channel has its own: `[outer, channels, inner]`.
    Own(&'a [A]),
}

impl<A: Accum> Weights<'_, A> {
    pub(crate) fn check(&self, layout: &Layout) -> Result<(), Error> {
        match self {
            Self::Shared(values) => {
                let positions = layout.samples_per_channel();
                Error::expect_length("weights", positions, "positions", values.len())
            }
            Self::Own(values) => layout.expect_elements("weights", values.len()),
        }
    }

    /// The weight of a position of a channel, for a flattened layout.
    fn at(&self, layout: &Layout, (row, channel, i): (usize, usize, usize)) -> f64 {
        let inner = layout.inner();
        match self {
            Self::Shared(values) => values[row * inner + i],
            Self::Own(values) => values[(row * layout.channels() + channel) * inner + i],
        }
        .to_f64()
    }
}

/// As [`train`](crate::train), of weighted positions; `sums` gets the sum of the weights of each channel, `[channels]`.
///
/// Every position is normalized, those of weight 0 too. A channel without any weight has mean and variance 0.
///
/// ```
/// use batchnorm_cpu::*;
/// // The third of four values is padding.
/// let (layout, x, weights) = (Layout::new(4, 1, 1)?, [1.0f32, 3.0, f32::NAN, 5.0], [1.0, 1.0, 0.0, 1.0]);
/// let (mut y, mut saved, mut sums) = ([0.0; 4], [0.0; 4], [0.0]);
/// let affine = Affine { gamma: &[1.0], beta: &[0.0] };
/// let out = Statistics::split_mut(&mut saved, 1)?;
/// train_weighted(layout, InOut::new(&x, &mut y[..]), Weights::Shared(&weights), affine, 1e-5, Epilogue::default(), out, &mut sums)?;
/// assert_eq!((saved[0], sums[0], y[1]), (3.0, 3.0, 0.0));
/// # Ok::<(), Error>(())
/// ```
///
/// # Errors
///
/// As for [`train`](crate::train), and [`Error::Length`] for `weights` and `sums` that do not fit the layout.
#[allow(clippy::too_many_arguments)]
pub fn train_weighted<E: Element>(
    layout: Layout,
    x: InOut<'_, E>,
    weights: Weights<'_, E::Accum>,
    affine: Affine<'_, E::Accum>,
    epsilon: f64,
    epilogue: Epilogue<'_, E>,
    out: Statistics<&mut [E::Accum]>,
    sums: &mut [E::Accum],
) -> Result<(), Error> {
    check_output(&layout, &x)?;
    weights.check(&layout)?;
    affine.check(&layout)?;
    out.check(&layout)?;
    check_epsilon(epsilon)?;
    epilogue.check(&layout)?;
    layout.expect_channels("sums", sums.len())?;
    (E::compiled().train_weighted)(Train {
        layout,
        x,
        weights,
        affine,
        epsilon,
        epilogue,
        out,
        sums,
    });
    Ok(())
}

/// The backward pass of [`train_weighted`]; `statistics` and `sums` are what it wrote. Otherwise as [`backward`](crate::backward).
///
/// # Errors
///
/// As for [`backward`](crate::backward), and [`Error::Length`] for `weights` and `sums` that do not fit the layout.
#[allow(clippy::too_many_arguments)]
pub fn backward_weighted<E: Element>(
    layout: Layout,
    x: &[E],
    weights: Weights<'_, E::Accum>,
    y_grad: InOut<'_, E>,
    statistics: Statistics<&[E::Accum]>,
    sums: &[E::Accum],
    affine: Affine<'_, E::Accum>,
    epilogue: Epilogue<'_, E>,
    out: Gradients<'_, E>,
) -> Result<(), Error> {
    layout.expect_elements("x", x.len())?;
    weights.check(&layout)?;
    y_grad.check(&layout, "y_grad", "x_grad")?;
    statistics.check(&layout)?;
    layout.expect_channels("sums", sums.len())?;
    affine.check(&layout)?;
    epilogue.check(&layout)?;
    out.check(&layout, &epilogue)?;
    (E::compiled().backward_weighted)(Backward {
        layout,
        x,
        weights,
        y_grad,
        statistics,
        sums,
        affine,
        epilogue,
        out,
    });
    Ok(())
}

/// A checked call of [`train_weighted`].
pub(crate) struct Train<'a, E: Element> {
    layout: Layout,
    x: InOut<'a, E>,
    weights: Weights<'a, E::Accum>,
    affine: Affine<'a, E::Accum>,
    epsilon: f64,
    epilogue: Epilogue<'a, E>,
    out: Statistics<&'a mut [E::Accum]>,
    sums: &'a mut [E::Accum],
}

impl<E: Element> Train<'_, E> {
    pub(crate) fn run(self) {
        let kernel = WeightedNormalize(Any {
            activation: applied(self.epilogue.activation),
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
        let (rows, cols) = (tile.grid().rows, tile.grid().cols);
        medians(&tile, &flat, weights, out.mean);

        // The mean, about the median of a sample. `variance` holds it until it is a shift itself.
        let mut arrays = PerChannel::default();
        [arrays[0], arrays[3], arrays[4]] = [&mut *out.mean, &mut *sums, &mut *out.variance];
        driver::reduce(
            layout,
            tile.view(0..rows, 0..cols),
            Sums(WeightedSums::<false>),
            arrays,
            |_, [weight, sum], [shift, .., sums, mean, _, _, _]: &mut PerChannel<'_, E::Accum>| {
                for c in 0..shift.len() {
                    sums[c] = E::Accum::from_f64(weight[c]);
                    let d = sum[c] / weight[c];
                    let d = if weight[c] == 0.0 { 0.0 } else { d };
                    mean[c] = E::Accum::from_f64(shift[c].to_f64() + d);
                }
            },
        );
        out.mean.copy_from_slice(out.variance);

        let mut applied = vec![E::Accum::default(); 2 * layout.channels()];
        let (scale, shift) = applied.split_at_mut(layout.channels());
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
            (Sums(WeightedSums::<true>), kernel),
            arrays,
            |range: Range<usize>, [sum, squares], arrays: &mut PerChannel<'_, E::Accum>| {
                let [mean, scale, shift, mean_lo, variance, inv_std, sums, _] = arrays;
                let (gamma, beta) = (&gamma[range.clone()], &beta[range]);
                for c in 0..mean.len() {
                    let weight = sums[c].to_f64();
                    let share = |sum: f64| if weight == 0.0 { 0.0 } else { sum / weight };
                    let d = share(sum[c]);
                    let exact = mean[c].to_f64() + d;
                    let spread = share(squares[c]) - d * d;
                    // Not `max`, which would turn NaN into zero.
                    let spread = if spread < 0.0 { 0.0 } else { spread };
                    mean[c] = E::Accum::from_f64(exact);
                    mean_lo[c] = E::Accum::from_f64(exact - mean[c].to_f64());
                    variance[c] = E::Accum::from_f64(spread);
                    inv_std[c] = statistics::inv_std(spread, epsilon);
                    scale[c] = statistics::scale(gamma[c], inv_std[c]);
                    shift[c] = statistics::shift(beta[c], mean_lo[c], scale[c]);
                }
            },
        );
    }
}

/// Values of a channel that give a first idea of its mean: few enough to look for, and so many that some outliers among them do not matter.
const SAMPLE: usize = 7;

/// The median of the first values of each channel that are finite and have a weight; 0 without any.
fn medians<E: Element>(
    tile: &Tile<'_, E>,
    layout: &Layout,
    weights: Weights<'_, E::Accum>,
    out: &mut [E::Accum],
) {
    let (rows, inner) = (layout.outer(), layout.inner());
    let positions = || (0..rows).flat_map(|row| (0..inner).map(move |i| (row, i)));
    let present =
        |c: usize| positions().filter(move |&(row, i)| weights.at(layout, (row, c, i)) > 0.0);
    // Looked for once where channels share them: there may be few, or none.
    const MOST: usize = 8 * SAMPLE;
    let shared: Option<Vec<_>> = match weights {
        Weights::Shared(_) if layout.elements() > 0 => Some(present(0).take(MOST).collect()),
        _ => None,
    };
    let mut sample = Vec::with_capacity(SAMPLE);
    for (c, out) in out.iter_mut().enumerate() {
        sample.clear();
        let value = |(row, i): (usize, usize)| tile.value(row, c * inner + i);
        let finite = |v: &f64| v.is_finite();
        match &shared {
            Some(shared) => {
                let values = shared.iter().map(|&at| value(at));
                sample.extend(values.filter(finite).take(SAMPLE));
            }
            None => sample.extend(present(c).take(MOST).map(value).filter(finite).take(SAMPLE)),
        }
        sample.sort_by(f64::total_cmp);
        let median = sample.get(sample.len() / 2).copied().unwrap_or(0.0);
        *out = E::Accum::from_f64(median);
    }
}

/// A checked call of [`backward_weighted`].
pub(crate) struct Backward<'a, E: Element> {
    layout: Layout,
    x: &'a [E],
    weights: Weights<'a, E::Accum>,
    y_grad: InOut<'a, E>,
    statistics: Statistics<&'a [E::Accum]>,
    sums: &'a [E::Accum],
    affine: Affine<'a, E::Accum>,
    epilogue: Epilogue<'a, E>,
    out: Gradients<'a, E>,
}

impl<E: Element> Backward<'_, E> {
    pub(crate) fn run(self) {
        let Self {
            layout,
            x,
            weights,
            y_grad,
            statistics,
            sums: weight_sums,
            affine,
            epilogue,
            out,
        } = self;
        let any = Any {
            activation: applied(epilogue.activation),
            residual: epilogue.residual.is_some(),
        };
        let (sums, kernel) = (WeightedGradientSums(any), WeightedXGradient(any));
        let [gamma_grad, beta_grad] = [out.gamma, out.beta].map(|g| g.unwrap_or_default());
        let x_grad = y_grad.has_output();
        let writes = x_grad || out.residual.is_some();
        if !writes && gamma_grad.is_empty() && beta_grad.is_empty() {
            return;
        }
        let mut buffer = vec![E::Accum::default(); 6 * layout.channels()];
        let mut rest = &mut buffer[..];
        let [mean, scale, shift, a, b, c] =
            [(); 6].map(|()| rest.split_off_mut(..layout.channels()).expect("six"));
        let (mean_lo, inv_std) = (statistics.mean_lo, statistics.inv_std);
        mean.copy_from_slice(statistics.mean);
        set_applied(affine, Some(mean_lo), inv_std, [&mut *scale, &mut *shift]);
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
        let finish = |range: Range<usize>,
                      [sums, products]: [&[f64]; 2],
                      arrays: &mut PerChannel<'_, E::Accum>| {
            let [_, scale, _, _, b, c, gamma_grad, beta_grad] = arrays;
            for (i, channel) in range.enumerate() {
                let (low, s) = (mean_lo[channel].to_f64(), inv_std[channel].to_f64());
                // The kernel summed g * (x - mean) with the rounded mean.
                let product = if low == 0.0 {
                    products[i]
                } else {
                    products[i] - low * sums[i]
                };
                if let Some(gamma_grad) = gamma_grad.get_mut(i) {
                    *gamma_grad = E::Accum::from_f64(product * s);
                }
                if let Some(beta_grad) = beta_grad.get_mut(i) {
                    *beta_grad = E::Accum::from_f64(sums[i]);
                }
                let weight = weight_sums[channel].to_f64();
                if x_grad && weight > 0.0 {
                    let a = scale[i].to_f64();
                    let slope = -(product / weight * s) * s * a;
                    let through_low = if low == 0.0 { 0.0 } else { slope * low };
                    b[i] = E::Accum::from_f64(slope);
                    c[i] = E::Accum::from_f64(-a * (sums[i] / weight) - through_low);
                }
            }
        };
        match writes {
            true => driver::reduce_then_apply(layout, tile, (Sums(sums), kernel), arrays, finish),
            false => driver::reduce(layout, tile, Sums(sums), arrays, finish),
        }
    }
}
