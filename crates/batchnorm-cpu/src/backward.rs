//! The backward pass.
//!
//! With `z = (x - mean) * s * gamma + beta (+ residual)`, `s = inv_std` and `y = act(z)`, the gradient that arrives at `z` is
//! `g = dy * act'(z)`. It is recomputed from x, so the output need not be kept. It is also the gradient of the residual.
//!
//! **Parameters.** From `z = xh * gamma + beta` with `xh = (x - mean) * s`:
//!
//! ```text
//! dbeta = sum(g)        dgamma = sum(g * xh) = s * sum(g * (x - mean))
//! ```
//!
//! **Input.** The mean and the variance of the batch depend on every x of the channel. With n values, `d mean / dx = 1/n` and, because the
//! differences sum to zero, `d var / dx_i = 2 (x_i - mean) / n`, hence `d s / dx_i = -s^3 (x_i - mean) / n` and
//!
//! ```text
//! d xh_j / dx_i = s * ([i = j] - 1/n - xh_i * xh_j / n)
//! dx_i = gamma * s * (g_i - sum(g) / n - xh_i * sum(g * xh) / n)
//!      = a * g_i + b * (x_i - mean) + c      a = gamma * s,  b = -a * s^2 * sum(g * (x - mean)) / n,  c = -a * sum(g) / n
//! ```
//!
//! For inference the statistics are constants, and `b = c = 0`.
//!
//! So there are two reductions per channel, and then one sweep. **Passes over memory:** x and dy are read once and dx is written once (3 passes)
//! where a unit of channels fits the second-level cache, otherwise x and dy are read twice (5). Worked example: x `[1, 3]`, dy `[1, 0]`,
//! gamma 1, epsilon 0: mean 2, s 1, sums 1 and -1, so a = 1, b = 1/2, c = -1/2 and dx = `[1 - 1/2 - 1/2, 0 + 1/2 - 1/2] = [0, 0]`, as it must
//! be: two values are normalized to -1 and 1 whatever they are.
//!
//! In `f32`, `s^2` is zero for a spread beyond 1e22 and loses digits from 1e19 on: dx, itself smaller than 1e-19, then lacks the part in `b`.

use std::marker::PhantomData;
use std::ops::Range;

use crate::engine::{Fused, fused};
use crate::primitives::{check_tensors, with_tail};
use crate::simd::operands::ReadPairWrite;
use crate::simd::passes::Gradient;
use crate::simd::reduce::SumsOf;
use crate::simd::region::Region;
use crate::simd::tail::{Activated, Plain, Residual, Tail};
use crate::stream::{Epilogue, Output, Stream};
use crate::{Accum, Activation, Element, Error, Layout};

/// Whether the statistics that the forward pass used depend on its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Statistics {
    /// They are those of its input.
    OfBatch,
    /// They are given, as in inference.
    Constant,
}

/// What the backward pass of a layer knows of its forward pass; the vectors are `[channels]` each.
#[derive(Debug, Clone, Copy)]
pub struct Saved<'a, A> {
    /// The factor of the normalized value.
    pub gamma: &'a [A],
    /// Only matters where an activation follows.
    pub beta: &'a [A],
    /// The mean that the forward pass subtracted.
    pub mean: &'a [A],
    /// What rounding took from it; none if the mean is exact, as a running mean is.
    pub mean_low: Option<&'a [A]>,
    /// The reciprocal standard deviation that it multiplied with.
    pub inv_std: &'a [A],
    /// Where the mean and the deviation came from.
    pub statistics: Statistics,
}

impl<'a, A> Saved<'a, A> {
    fn check(&self, layout: &Layout) -> Result<(), Error> {
        layout.expect_channels("gamma", self.gamma.len())?;
        layout.expect_channels("beta", self.beta.len())?;
        layout.expect_channels("mean", self.mean.len())?;
        self.mean_low
            .map_or(Ok(()), |low| layout.expect_channels("mean_low", low.len()))?;
        layout.expect_channels("inv_std", self.inv_std.len())
    }

    fn split_at(self, at: usize) -> (Self, Self) {
        let [(gamma, g), (beta, b), (mean, m), (inv_std, i)] =
            [self.gamma, self.beta, self.mean, self.inv_std].map(|v| v.split_at(at));
        let (mean_low, low) = self.mean_low.map(|v| v.split_at(at)).unzip();
        let part = |[gamma, beta, mean, inv_std]: [&'a [A]; 4], mean_low| Self {
            gamma,
            beta,
            mean,
            mean_low,
            inv_std,
            ..self
        };
        (
            part([gamma, beta, mean, inv_std], mean_low),
            part([g, b, m, i], low),
        )
    }
}

/// Where the gradients go that not everybody wants. Those left out are not written, and cost nothing.
pub struct Gradients<'a, E: Element> {
    /// Of the residual, `[outer, channels, inner]`; only if there is one.
    pub residual: Option<Output<'a, E>>,
    /// Of gamma, `[channels]`.
    pub gamma: Option<&'a mut [E::Accum]>,
    /// Of beta, `[channels]`.
    pub beta: Option<&'a mut [E::Accum]>,
}

impl<E: Element> Default for Gradients<'_, E> {
    fn default() -> Self {
        Self {
            residual: None,
            gamma: None,
            beta: None,
        }
    }
}

/// The backward pass: gradients of the input (`stream`, dy to dx), gamma, beta and residual.
///
/// [`Saved::statistics`] says whether it is that of [`train_forward`](crate::train_forward) or of [`normalize`](crate::normalize), whose
/// statistics are constants: `dx = gamma * inv_std * g`. The gradient's buffer may be overwritten with dx ([`Stream::in_place`]), which saves
/// the memory and the page faults of a fresh one.
///
/// # Errors
///
/// [`Error::Length`] for slices that do not have `layout.elements()` or `layout.channels()` values; [`Error::Value`] for senseless parameters of
/// the activation, and for a residual gradient without a residual.
pub fn backward<E: Element>(
    layout: Layout,
    x: &[E],
    stream: Stream<'_, E>,
    saved: Saved<'_, E::Accum>,
    epilogue: Epilogue<'_, E>,
    out: Gradients<'_, E>,
) -> Result<(), Error> {
    saved.check(&layout)?;
    let Gradients {
        residual,
        gamma,
        beta,
    } = out;
    gamma
        .as_ref()
        .map_or(Ok(()), |g| layout.expect_channels("dgamma", g.len()))?;
    beta.as_ref()
        .map_or(Ok(()), |b| layout.expect_channels("dbeta", b.len()))?;
    check_tensors(&layout, x, &stream, &epilogue, &residual)?;
    with_tail!(epilogue, |tail| {
        let region = Region::read_pair_write(&layout.flattened(), x, stream, tail, residual);
        fused(
            Backward {
                saved,
                gamma,
                beta,
                _tail: PhantomData,
            },
            region,
            layout,
            5,
        );
    });
    Ok(())
}

struct Backward<'a, E: Element, T> {
    saved: Saved<'a, E::Accum>,
    gamma: Option<&'a mut [E::Accum]>,
    beta: Option<&'a mut [E::Accum]>,
    _tail: PhantomData<fn() -> T>,
}

impl<E: Element, T: Tail<E>> Fused<E, 6> for Backward<'_, E, T> {
    type Operands = ReadPairWrite<E, T>;
    type Statistic = SumsOf<T>;
    type Pass = Gradient<T>;

    fn split(self, at: usize) -> (Self, Self) {
        let Self {
            saved,
            gamma,
            beta,
            _tail,
        } = self;
        let (saved, rest) = saved.split_at(at);
        let [gamma, beta] = [gamma, beta].map(|v| v.map(|v| v.split_at_mut(at)).unzip());
        let part = |saved, gamma, beta| Self {
            saved,
            gamma,
            beta,
            _tail,
        };
        (part(saved, gamma.0, beta.0), part(rest, gamma.1, beta.1))
    }

    fn before(&self, range: Range<usize>, [mean, scale, shift, ..]: &mut [Vec<E::Accum>; 6]) {
        let Saved {
            gamma,
            beta,
            mean: saved_mean,
            mean_low,
            inv_std,
            ..
        } = self.saved;
        mean.copy_from_slice(&saved_mean[range.clone()]);
        shift.copy_from_slice(&beta[range.clone()]);
        // In the type of the arithmetic, as the forward pass does, so that the recomputed signs are the same.
        for ((scale, &gamma), &inv_std) in scale
            .iter_mut()
            .zip(&gamma[range.clone()])
            .zip(&inv_std[range.clone()])
        {
            *scale = gamma.times(inv_std);
        }
        if let Some(low) = mean_low {
            for ((shift, &low), &scale) in shift.iter_mut().zip(&low[range]).zip(&*scale) {
                *shift = shift.minus(low, scale);
            }
        }
    }

    fn after(
        &mut self,
        range: Range<usize>,
        n: f64,
        [sums, products]: [&[f64]; 2],
        [_, scale, _, a, b, c]: &mut [Vec<E::Accum>; 6],
    ) {
        let inv_std = &self.saved.inv_std[range.clone()];
        let low = self.saved.mean_low.map(|low| &low[range.clone()]);
        let low = |i: usize| low.map_or(0.0, |low| low[i].to_f64());
        // The kernel summed g * (x - mean) with the rounded mean.
        let product = |i: usize| match low(i) {
            0.0 => products[i],
            low => products[i] - low * sums[i],
        };
        if let Some(gamma) = &mut self.gamma {
            for (i, (out, s)) in gamma[range.clone()].iter_mut().zip(inv_std).enumerate() {
                *out = E::Accum::from_f64(product(i) * s.to_f64());
            }
        }
        if let Some(beta) = &mut self.beta {
            beta[range]
                .iter_mut()
                .zip(sums)
                .for_each(|(out, &sum)| *out = E::Accum::from_f64(sum));
        }
        a.copy_from_slice(scale);
        let factor = match self.saved.statistics {
            Statistics::OfBatch => -1.0 / n.max(1.0),
            Statistics::Constant => 0.0,
        };
        for (i, ((b, c), (scale, s))) in b
            .iter_mut()
            .zip(c)
            .zip(scale.iter().zip(inv_std))
            .enumerate()
        {
            let (scale, s) = (scale.to_f64(), s.to_f64());
            let slope = factor * scale * s * s * product(i);
            *b = E::Accum::from_f64(slope);
            *c = E::Accum::from_f64(match low(i) {
                0.0 => factor * scale * sums[i],
                low => factor * scale * sums[i] - slope * low,
            });
        }
    }
}
