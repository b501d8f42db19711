//! The forward pass: statistics of the batch, and the normalization with them or with given ones.
//!
//! ```text
//! scale = gamma * inv_std        y = act((x - mean) * scale + beta (+ residual))
//! ```
//!
//! The centred form is used everywhere. `x * scale + (beta - mean * scale)` would save a subtraction, and lose digits of the result as soon as
//! the mean is large against the spread.
//!
//! For the same reason the mean is not simply rounded to the type of the arithmetic: with a mean of 1e4 that costs 5e-4 in `f32`. What rounding
//! takes away (`mean_low`) goes into the shift, once a channel: `(x - mean - mean_low) * scale + beta = (x - mean) * scale + (beta - mean_low *
//! scale)`. The difference `x - mean` of two near values is exact, and a constant channel has `mean_low = 0`.
//!
//! **Passes over memory.** Where a unit of channels fits the second-level cache, the fused kernel reads x once from memory (the statistics) and once
//! from the cache (the normalization), and writes y once: 2 passes. `[32, 64, 56, 56]` is done channel by channel, 401 KB each. Where that
//! is not possible (`[4096, 1024]`: its channels are columns, and a cache full of them would use a few bytes of each memory page) x is read
//! twice from memory: 3 passes. An output that no cache can hold is written past them (`simd/operands.rs`).

use std::marker::PhantomData;
use std::ops::Range;

use crate::engine::{Fused, fused};
use crate::primitives::with_tail;
use crate::simd::operands::ReadWrite;
use crate::simd::passes::Forward;
use crate::simd::reduce::MomentsOf;
use crate::simd::region::Region;
use crate::simd::tail::{Activated, Plain, Residual, Tail};
use crate::stream::{Epilogue, Stream};
use crate::{Accum, Activation, Element, Error, Layout};

/// The learned parameters, `[channels]` each. Without an affine part pass ones and zeros.
#[derive(Debug, Clone, Copy)]
pub struct Affine<'a, A> {
    /// The factor of the normalized value.
    pub gamma: &'a [A],
    /// The value that a channel's mean is moved to.
    pub beta: &'a [A],
}

/// Where the statistics of a batch go, `[channels]` each.
#[derive(Debug)]
pub struct BatchStatistics<'a, A> {
    /// The mean.
    pub mean: &'a mut [A],
    /// What rounding took from the mean, for the backward pass ([`Saved::mean_low`](crate::Saved::mean_low)), if wanted.
    pub mean_low: Option<&'a mut [A]>,
    /// The biased variance, without epsilon.
    pub variance: &'a mut [A],
    /// `1 / sqrt(variance + epsilon)`, from an unrounded variance.
    pub inv_std: &'a mut [A],
}

/// The forward pass of training: statistics of the batch, and the output normalized with them.
///
/// `y = act((x - mean) * inv_std * gamma + beta + residual)`, with the mean and the biased variance of each channel.
///
/// Without any samples the mean and the variance are 0. Running statistics are updated from `out` by
/// [`RunningUpdate`](crate::RunningUpdate).
///
/// # Errors
///
/// As for [`normalize`](crate::normalize), and [`Error::Value`] if `epsilon` is negative or NaN.
pub fn train_forward<E: Element>(
    layout: Layout,
    stream: Stream<'_, E>,
    affine: Affine<'_, E::Accum>,
    epsilon: f64,
    epilogue: Epilogue<'_, E>,
    out: BatchStatistics<'_, E::Accum>,
) -> Result<(), Error> {
    stream.check(&layout, "x", "y")?;
    layout.expect_channels("gamma", affine.gamma.len())?;
    layout.expect_channels("beta", affine.beta.len())?;
    layout.expect_channels("mean", out.mean.len())?;
    layout.expect_channels("variance", out.variance.len())?;
    layout.expect_channels("inv_std", out.inv_std.len())?;
    epilogue.check(&layout)?;
    if epsilon.is_nan() || epsilon < 0.0 {
        return Err(Error::Value {
            name: "epsilon",
            expected: "zero or positive",
            got: epsilon.to_string(),
        });
    }
    with_tail!(epilogue, |tail| {
        let region = Region::read_write(&layout.flattened(), stream, tail);
        fused(
            TrainForward {
                affine,
                epsilon,
                out,
                _tail: PhantomData,
            },
            region,
            layout,
            3,
        );
    });
    Ok(())
}

/// What rounding took from the mean `value` to make it `mean`.
fn low<A: Accum>(mean: A, value: f64) -> A {
    A::from_f64(value - mean.to_f64())
}

struct TrainForward<'a, E: Element, T> {
    affine: Affine<'a, E::Accum>,
    epsilon: f64,
    out: BatchStatistics<'a, E::Accum>,
    _tail: PhantomData<fn() -> T>,
}

impl<E: Element, T: Tail<E>> Fused<E, 3> for TrainForward<'_, E, T> {
    type Operands = ReadWrite<E, T>;
    type Statistic = MomentsOf;
    type Pass = Forward<T>;

    fn split(self, at: usize) -> (Self, Self) {
        let Self {
            affine: Affine { gamma, beta },
            epsilon,
            out:
                BatchStatistics {
                    mean,
                    mean_low,
                    variance,
                    inv_std,
                },
            _tail,
        } = self;
        let ((gamma, g), (beta, b)) = (gamma.split_at(at), beta.split_at(at));
        let ((mean, m), (variance, v), (inv_std, i)) = (
            mean.split_at_mut(at),
            variance.split_at_mut(at),
            inv_std.split_at_mut(at),
        );
        let (mean_low, low) = mean_low.map(|v| v.split_at_mut(at)).unzip();
        let part = |affine, out| Self {
            affine,
            epsilon,
            out,
            _tail,
        };
        (
            part(
                Affine { gamma, beta },
                BatchStatistics {
                    mean,
                    mean_low,
                    variance,
                    inv_std,
                },
            ),
            part(
                Affine { gamma: g, beta: b },
                BatchStatistics {
                    mean: m,
                    mean_low: low,
                    variance: v,
                    inv_std: i,
                },
            ),
        )
    }

    fn before(&self, _range: Range<usize>, _params: &mut [Vec<E::Accum>; 3]) {}

    fn after(
        &mut self,
        range: Range<usize>,
        n: f64,
        [means, m2s]: [&[f64]; 2],
        [mean, scale, shift]: &mut [Vec<E::Accum>; 3],
    ) {
        let n = n.max(1.0);
        let out = &mut self.out;
        let (variances, inv_stds) = (
            &mut out.variance[range.clone()],
            &mut out.inv_std[range.clone()],
        );
        for ((mean, value), (variance, m2)) in mean
            .iter_mut()
            .zip(means)
            .zip(variances.iter_mut().zip(m2s))
        {
            *mean = E::Accum::from_f64(*value);
            *variance = E::Accum::from_f64(m2 / n);
        }
        for (inv_std, m2) in inv_stds.iter_mut().zip(m2s) {
            *inv_std = E::Accum::from_f64(1.0 / (m2 / n + self.epsilon).sqrt());
        }
        for ((scale, &gamma), &inv_std) in scale
            .iter_mut()
            .zip(&self.affine.gamma[range.clone()])
            .zip(&*inv_stds)
        {
            *scale = gamma.times(inv_std);
        }
        out.mean[range.clone()].copy_from_slice(mean);
        for ((((shift, &beta), scale), mean), value) in shift
            .iter_mut()
            .zip(&self.affine.beta[range.clone()])
            .zip(&*scale)
            .zip(&*mean)
            .zip(means)
        {
            *shift = beta.minus(low(*mean, *value), *scale);
        }
        if let Some(mean_low) = &mut out.mean_low {
            for ((out, mean), value) in mean_low[range].iter_mut().zip(&*mean).zip(means) {
                *out = low(*mean, *value);
            }
        }
    }
}
