//! Training with weighted positions: masks, padding, importance.
//!
//! With a weight `w >= 0` for every position and `W = sum(w)` over a channel,
//!
//! ```text
//! mean = sum(w x) / W        variance = sum(w (x - mean)^2) / W        0 and 1 where W = 0
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
//! **Statistics** are summed in one reading, about a shift: the mean of a few values of the channel. So a mean that is large against the spread costs no
//! digits, and a constant channel has differences of exactly 0. Whether the shift was near enough is known afterwards, with `d = sum(w (x - shift)) / W`:
//!
//! ```text
//! mean = shift + d        variance = sum(w (x - shift)^2) / W - d^2        near enough: d^2 <= 3 variance, which costs two bits
//! ```
//!
//! Otherwise the channel is read again about its mean (`driver.rs`). All passes are as many as those of [`train`](crate::train) and
//! [`backward`](crate::backward), and one over the weights: next to nothing where channels share them.
//!
//! Squares are not scaled, as those of the plain statistics are: from a spread of 1e19 in `f32` the variance is infinite.

use crate::activation::{Applied, Curve, Epilogue, Pieces};
use crate::backward::Gradients;
use crate::cut::PerChannel;
use crate::driver::{self, Next, Reduced};
use crate::forward::{applied, check_output, set_applied, with_residual};
use crate::memory::InOut;
use crate::simd::kernels::{Activate, Curved, Nothing};
use crate::simd::tasks::Sums;
use crate::simd::tile::Tile;
use crate::simd::weighted::{
    Behind, WeightSums, WeightedGradientSums, WeightedNormalize, WeightedSums, WeightedXGradient,
};
use crate::statistics::{self, Affine, Statistics, check_epsilon};
use crate::{Accum, Element, Error, Layout};

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

    /// Sets the sum of the weights of each channel.
    fn sum(&self, layout: Layout, sums: &mut [A]) {
        let (layout, values) = match self {
            Self::Shared(values) => (Layout::new(values.len(), 1, 1), values),
            Self::Own(values) => (Ok(layout), values),
        };
        let layout = layout.expect("one channel of so many");
        let tile = Tile::new(&layout.flattened()).read(values);
        let mut arrays = PerChannel::default();
        arrays[0] = match self {
            Self::Shared(_) => sums.get_mut(..1).unwrap_or_default(),
            Self::Own(_) => &mut *sums,
        };
        driver::reduce(
            layout,
            tile,
            Sums(WeightSums),
            arrays,
            |Reduced {
                 pairs: [found, _], ..
             }: Reduced<'_>,
             [sums, ..]: &mut PerChannel<'_, A>| {
                for (sum, found) in sums.iter_mut().zip(found) {
                    *sum = A::from_f64(*found);
                }
                Next::Done
            },
        );
        if let Self::Shared(_) = self
            && let Some(&sum) = sums.first()
        {
            sums.fill(sum);
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
/// Every position is normalized, those of weight 0 too. A channel without any weight has mean 0 and variance 1.
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
        let residual = self.epilogue.residual.is_some();
        match (applied(self.epilogue.activation), residual) {
            (Applied::Nothing, false) => self.with(Nothing),
            (Applied::Nothing, true) => self.with(Pieces::identity()),
            (Applied::Pieces(pieces), _) => self.with(pieces),
            (Applied::Curve(curve), _) => self.with(curved(curve)),
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

/// Without a residual: [`Behind`] adds it.
fn curved(curve: Curve) -> Curved {
    Curved {
        curve,
        residual: false,
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
        let (sums, kernel) = (WeightedGradientSums(behind), WeightedXGradient(behind));
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
        let finish = |Reduced {
                          range,
                          pairs: [sums, products],
                          ..
                      }: Reduced<'_>,
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
            Next::Done
        };
        match writes {
            true => driver::reduce_then_apply(layout, tile, (Sums(sums), kernel), arrays, finish),
            false => driver::reduce(layout, tile, Sums(sums), arrays, finish),
        }
    }
}
