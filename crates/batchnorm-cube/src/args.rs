//! What the operations take and give.
//!
//! A [`Handle`] is a buffer on the client's device. Tensors have the layout of the [`Problem`](crate::Problem). Vectors of one value per
//! channel are contiguous, `f32` (`f64` for `f64` tensors). Outputs are allocated by the caller and need not be initialised. Unless a
//! [`Target`] says so, an output may not share memory with an input.

use cubecl::server::Handle;

use crate::blueprint::Weighting;
use crate::{Activation, Error};

/// The learned parameters, `[channels]` each.
#[derive(Debug, Clone, Copy)]
pub struct Affine<'a> {
    /// What the normalized value is multiplied with.
    pub gamma: &'a Handle,
    /// What is added to it.
    pub beta: &'a Handle,
}

/// Weights of positions, `f32` (`f64` for `f64` tensors). One that is 0, negative or NaN leaves its position out, whatever that holds.
#[derive(Debug, Clone, Copy)]
pub enum Weights<'a> {
    /// The same for all channels: `[outer][inner]`, contiguous.
    Shared(&'a Handle),
    /// Of every channel its own: of the tensor's layout.
    Own(&'a Handle),
}

impl<'a> Weights<'a> {
    pub(crate) fn handle(&self) -> &'a Handle {
        match self {
            Weights::Shared(handle) | Weights::Own(handle) => handle,
        }
    }

    pub(crate) fn weighting(weights: Option<Self>) -> Weighting {
        match weights {
            None => Weighting::Even,
            Some(Weights::Shared(_)) => Weighting::Shared,
            Some(Weights::Own(_)) => Weighting::Own,
        }
    }
}

/// Statistics that are given: running ones, or those of [`moments`](crate::moments).
#[derive(Debug, Clone, Copy)]
pub enum Center<'a> {
    /// `[3][channels]`: the mean, what rounding took from it, the biased variance.
    Packed(&'a Handle),
    /// In buffers of their own, `[channels]` each.
    Apart {
        /// The mean.
        mean: &'a Handle,
        /// The variance, without epsilon.
        variance: &'a Handle,
    },
}

/// What follows the normalization in the same sweep: `act(normalized + residual)`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// The activation.
    pub activation: Activation,
    /// What is added before it, of the tensor's layout and type.
    pub residual: Option<&'a Handle>,
}

/// Where a result of the tensor's layout goes.
#[derive(Debug, Clone, Copy)]
pub enum Target<'a> {
    /// To other memory.
    To(&'a Handle),
    /// Over the input that it belongs to: `y` over `x`, the input gradient over the output gradient.
    ///
    /// The kernels bind such a buffer once, for reading and writing. Every element is read and then written by one and the same unit.
    InPlace,
}

impl<'a> Target<'a> {
    pub(crate) fn apart(&self) -> Option<&'a Handle> {
        match *self {
            Target::To(handle) => Some(handle),
            Target::InPlace => None,
        }
    }
}

/// Running statistics and how they change: `new = keep * old + add * batch`; `[channels]` each.
///
/// A weight of 0 drops what it is multiplied with, NaN or not: `keep: 0.0` replaces the statistics, `add_mean: 0.0` keeps the mean.
#[derive(Debug, Clone, Copy)]
pub struct Running<'a> {
    /// The running mean before this batch.
    pub mean: &'a Handle,
    /// The running variance before this batch.
    pub variance: &'a Handle,
    /// The running mean after it.
    pub new_mean: &'a Handle,
    /// The running variance after it.
    pub new_variance: &'a Handle,
    /// Weight of the old statistics.
    pub keep: f64,
    /// Weight of the batch's mean.
    pub add_mean: f64,
    /// Weight of the batch's biased variance; here belongs the factor `n / (n - 1)` of the unbiased one.
    pub add_variance: f64,
}

impl Running<'_> {
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let weights = [
            ("keep", self.keep),
            ("add_mean", self.add_mean),
            ("add_variance", self.add_variance),
        ];
        weights
            .into_iter()
            .try_for_each(|(name, weight)| check_number(name, weight))
    }
}

/// What a training forward writes.
#[derive(Debug, Clone, Copy)]
pub struct TrainOutputs<'a> {
    /// The output; may be over `x`.
    pub y: Target<'a>,
    /// `[4][channels]`: the mean, what rounding took from it, the biased variance without epsilon, `1 / sqrt(variance + epsilon)`; of
    /// weighted positions `[5][channels]`, with the sum of the weights.
    pub statistics: &'a Handle,
}

/// What a backward writes: the gradients that are wanted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Gradients<'a> {
    /// The input's; may be over the output gradient.
    pub input: Option<Target<'a>>,
    /// Gamma's, `[channels]`.
    pub gamma: Option<&'a Handle>,
    /// Beta's, `[channels]`.
    pub beta: Option<&'a Handle>,
    /// The residual's, of the tensor's layout. Without an activation it is the output gradient itself and need not be asked for.
    pub residual: Option<&'a Handle>,
}

impl Gradients<'_> {
    pub(crate) fn is_empty(&self) -> bool {
        self.input.is_none()
            && self.gamma.is_none()
            && self.beta.is_none()
            && self.residual.is_none()
    }
}

/// Checks a number that must be finite and not negative.
pub(crate) fn check_number(name: &'static str, value: f64) -> Result<(), Error> {
    match value >= 0.0 && value.is_finite() {
        true => Ok(()),
        false => Err(Error::Value {
            name,
            expected: "finite and not negative",
            got: value.to_string(),
        }),
    }
}
