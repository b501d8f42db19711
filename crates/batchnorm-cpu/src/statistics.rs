//! What a forward pass knows of a channel, and what its kernels make of it. Forward and backward share these functions, so that the backward pass
//! recomputes exactly what the forward pass computed, and with it the sign of every activation's argument.

use crate::{Accum, Error, Layout};

/// The statistics of a batch, `[channels]` each: what [`train`](crate::train) writes (`V` is `&mut [A]`) and [`backward`](crate::backward) reads
/// (`V` is `&[A]`).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Statistics<V> {
    /// The mean.
    pub mean: V,
    /// What rounding took from the mean: 5e-4 in `f32` for a mean of 1e4.
    pub mean_lo: V,
    /// The biased variance, without epsilon.
    pub variance: V,
    /// `1 / sqrt(variance + epsilon)`, from the variance before it was rounded.
    pub inv_std: V,
}

impl<'a, A> Statistics<&'a mut [A]> {
    /// The four vectors one after the other in one buffer of `4 * channels` values, in the order of the fields. [`Error::Length`] otherwise.
    pub fn split_mut(buffer: &'a mut [A], channels: usize) -> Result<Self, Error> {
        Error::expect_length("statistics", four(channels), "values", buffer.len())?;
        let (mean, rest) = buffer.split_at_mut(channels);
        let (mean_lo, rest) = rest.split_at_mut(channels);
        let (variance, inv_std) = rest.split_at_mut(channels);
        Ok(Self {
            mean,
            mean_lo,
            variance,
            inv_std,
        })
    }
}

impl<'a, A> Statistics<&'a [A]> {
    /// As [`split_mut`](Statistics::split_mut), to read.
    pub fn split(buffer: &'a [A], channels: usize) -> Result<Self, Error> {
        Error::expect_length("statistics", four(channels), "values", buffer.len())?;
        let part = |i: usize| &buffer[i * channels..(i + 1) * channels];
        Ok(Self {
            mean: part(0),
            mean_lo: part(1),
            variance: part(2),
            inv_std: part(3),
        })
    }
}

fn four(channels: usize) -> usize {
    channels.saturating_mul(4)
}

impl<V> Statistics<V> {
    pub(crate) fn check<A>(&self, layout: &Layout) -> Result<(), Error>
    where
        V: AsRef<[A]>,
    {
        layout.expect_channels("mean", self.mean.as_ref().len())?;
        layout.expect_channels("mean_lo", self.mean_lo.as_ref().len())?;
        layout.expect_channels("variance", self.variance.as_ref().len())?;
        layout.expect_channels("inv_std", self.inv_std.as_ref().len())
    }
}

/// Statistics that do not depend on the input, as in inference; `[channels]` each.
#[derive(Debug, Clone, Copy)]
pub struct Given<'a, A> {
    /// The mean.
    pub mean: &'a [A],
    /// What rounding took from it; none if the mean is exact, as a running mean is.
    pub mean_lo: Option<&'a [A]>,
    /// The variance, without epsilon.
    pub variance: &'a [A],
    /// Added to the variance; finite and positive.
    pub epsilon: f64,
}

impl<A> Given<'_, A> {
    pub(crate) fn check(&self, layout: &Layout) -> Result<(), Error> {
        layout.expect_channels("mean", self.mean.len())?;
        if let Some(low) = self.mean_lo {
            layout.expect_channels("mean_lo", low.len())?;
        }
        layout.expect_channels("variance", self.variance.len())?;
        check_epsilon(self.epsilon)
    }

    #[inline(always)]
    pub(crate) fn set_inv_std(&self, out: &mut [A])
    where
        A: Accum,
    {
        for (out, variance) in out.iter_mut().zip(self.variance) {
            *out = inv_std(variance.to_f64(), self.epsilon);
        }
    }
}

/// The learned parameters, `[channels]` each. Without an affine part pass ones and zeros.
#[derive(Debug, Clone, Copy)]
pub struct Affine<'a, A> {
    /// The factor of the normalized value.
    pub gamma: &'a [A],
    /// The value that a channel's mean is moved to.
    pub beta: &'a [A],
}

impl<A> Affine<'_, A> {
    pub(crate) fn check(&self, layout: &Layout) -> Result<(), Error> {
        layout.expect_channels("gamma", self.gamma.len())?;
        layout.expect_channels("beta", self.beta.len())
    }
}

pub(crate) fn check_epsilon(epsilon: f64) -> Result<(), Error> {
    if epsilon.is_finite() && epsilon > 0.0 {
        return Ok(());
    }
    Err(Error::Value {
        name: "epsilon",
        expected: "finite and positive",
        got: epsilon.to_string(),
    })
}

/// `1 / sqrt(variance + epsilon)`, computed in `f64`; at most the largest finite value, since a constant channel multiplies it with 0.
#[inline(always)]
pub(crate) fn inv_std<A: Accum>(variance: f64, epsilon: f64) -> A {
    let (inv_std, most) = (1.0 / (variance + epsilon).sqrt(), A::LARGEST.to_f64());
    // Not `min`, which would turn NaN into a number.
    A::from_f64(if inv_std > most { most } else { inv_std })
}

/// `gamma * inv_std`, finite where both are.
#[inline(always)]
pub(crate) fn scale<A: Accum>(gamma: A, inv_std: A) -> A {
    let (product, most) = (gamma.to_f64() * inv_std.to_f64(), A::LARGEST.to_f64());
    if gamma.to_f64().is_finite() {
        A::from_f64(product.clamp(-most, most))
    } else {
        A::from_f64(product)
    }
}

/// `beta - mean_lo * scale`, so that `(x - mean) * scale + shift` is the output for the mean before it was rounded; exactly `beta` where nothing
/// was lost, whatever the scale.
#[inline(always)]
pub(crate) fn shift<A: Accum>(beta: A, mean_lo: A, scale: A) -> A {
    if mean_lo == A::default() {
        return beta;
    }
    A::from_f64(beta.to_f64() - mean_lo.to_f64() * scale.to_f64())
}
