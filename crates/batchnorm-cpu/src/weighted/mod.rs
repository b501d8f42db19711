//! Weighted positions: masks, padding, importance.
//!
//! With a weight `w >= 0` for every position and `W = sum(w)` over a channel,
//!
//! ```text
//! mean = sum(w x) / W        variance = sum(w (x - mean)^2) / W        0 and 1 where W = 0
//! ```
//!
//! A position of weight 0 is left out, whatever it holds. Its output is `act((x - mean) * inv_std * gamma + beta + residual)` like all others; where x is
//! not finite there, its mean is taken instead, and for such a residual 0.
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

mod train;

pub(crate) use train::Train;

use crate::activation::Epilogue;
use crate::backward::{Backward, Gradients, Saved};
use crate::cut::PerChannel;
use crate::driver::{self, Next, Reduced};
use crate::forward::check_output;
use crate::memory::InOut;
use crate::normalize::{Normalized, with_applied};
use crate::simd::tasks::Sums;
use crate::simd::tile::Tile;
use crate::simd::weighted::WeightSums;
use crate::statistics::{Affine, Given, Statistics, check_epsilon};
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
        match self {
            Self::Own(values) => sums_of(layout, values, sums),
            Self::Shared(values) => {
                let mut sum = [A::default()];
                let one = Layout::new(values.len(), 1, 1).expect("a part of the layout");
                sums_of(one, values, &mut sum);
                sums.fill(sum[0]);
            }
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

/// Sets the sum of the weights of each channel of a layout.
fn sums_of<A: Accum>(layout: Layout, weights: &[A], sums: &mut [A]) {
    let tile = Tile::new(&layout.flattened()).read(weights);
    let mut arrays = PerChannel::default();
    arrays[0] = sums;
    driver::reduce(
        layout,
        tile,
        Sums(WeightSums),
        arrays,
        |Reduced { pairs, .. }: Reduced<'_>, [sums, ..]: &mut PerChannel<'_, A>| {
            for (sum, found) in sums.iter_mut().zip(pairs[0]) {
                *sum = A::from_f64(*found);
            }
            Next::Done
        },
    );
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

/// As [`normalize`](crate::normalize), where x and a residual that are not finite at a position of weight 0 are taken for the mean and for 0.
///
/// # Errors
///
/// As for [`normalize`](crate::normalize), and [`Error::Length`] for `weights` that do not fit the layout.
pub fn normalize_weighted<E: Element>(
    layout: Layout,
    x: InOut<'_, E>,
    weights: Weights<'_, E::Accum>,
    given: Given<'_, E::Accum>,
    affine: Affine<'_, E::Accum>,
    epilogue: Epilogue<'_, E>,
) -> Result<(), Error> {
    check_output(&layout, &x)?;
    weights.check(&layout)?;
    given.check(&layout)?;
    affine.check(&layout)?;
    epilogue.check(&layout)?;
    with_applied(layout, given, affine, |params| {
        (E::compiled().normalize)(Normalized {
            layout,
            x,
            weights: Some(weights),
            params,
            epilogue,
        });
    });
    Ok(())
}

/// The backward pass of [`train_weighted`], whose statistics and `sums` are what it wrote, or of [`normalize_weighted`], with given statistics and
/// no `sums`. Otherwise as [`backward`](crate::backward()).
///
/// # Errors
///
/// As for [`backward`](crate::backward()), and [`Error::Length`] for `weights` and `sums` that do not fit the layout.
#[allow(clippy::too_many_arguments)]
pub fn backward_weighted<E: Element>(
    layout: Layout,
    x: &[E],
    weights: Weights<'_, E::Accum>,
    y_grad: InOut<'_, E>,
    saved: Saved<'_, E::Accum>,
    sums: &[E::Accum],
    affine: Affine<'_, E::Accum>,
    epilogue: Epilogue<'_, E>,
    out: Gradients<'_, E>,
) -> Result<(), Error> {
    layout.expect_elements("x", x.len())?;
    weights.check(&layout)?;
    y_grad.check(&layout, "y_grad", "x_grad")?;
    match &saved {
        Saved::Batch(statistics) => {
            statistics.check(&layout)?;
            layout.expect_channels("sums", sums.len())?;
        }
        Saved::Given(given) => given.check(&layout)?,
    }
    affine.check(&layout)?;
    epilogue.check(&layout)?;
    out.check(&layout, &epilogue)?;
    (E::compiled().backward)(Backward {
        layout,
        x,
        weighted: Some((weights, sums)),
        y_grad,
        saved,
        affine,
        epilogue,
        out,
    });
    Ok(())
}
