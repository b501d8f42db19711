//! What the operations take and give.
//!
//! A [`Handle`] is a contiguous buffer on the client's device. Vectors of one value per channel are `f32` (`f64` for `f64` tensors). Outputs
//! are allocated by the caller and need not be initialised. Unless a [`Target`] says so, an output may not share memory with an input.

use cubecl::server::Handle;

use crate::{Activation, Error};

/// What the centred value is multiplied with, and what is added to it; `[channels]` each.
///
/// In training these are gamma and beta: the inverse deviation comes on top.
#[derive(Debug, Clone, Copy)]
pub struct Affine<'a> {
    /// Gamma, or the scale of given statistics.
    pub scale: &'a Handle,
    /// Beta.
    pub shift: &'a Handle,
}

/// What follows the normalization in the same sweep: `act(normalized + residual)`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// The activation.
    pub activation: Activation,
    /// What is added before it, of the tensor's shape and type.
    pub residual: Option<&'a Handle>,
}

/// Where a result of the tensor's shape goes.
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

/// The numbers of a training step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrainParams {
    /// Added to the variance; not negative.
    pub epsilon: f64,
    /// Weight of the batch in the running statistics, between 0 and 1. 0 keeps and 1 replaces them, NaN or not.
    pub factor: f64,
    /// What the biased variance is multiplied with on its way into the running one: `n / (n - 1)` for the unbiased estimator, else 1.
    pub correction: f64,
}

impl TrainParams {
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let checks = [
            (
                "epsilon",
                "finite and not negative",
                self.epsilon >= 0.0 && self.epsilon.is_finite(),
                self.epsilon,
            ),
            (
                "factor",
                "between 0 and 1",
                (0.0..=1.0).contains(&self.factor),
                self.factor,
            ),
            (
                "correction",
                "finite and not negative",
                self.correction >= 0.0 && self.correction.is_finite(),
                self.correction,
            ),
        ];
        match checks.into_iter().find(|(.., valid, _)| !valid) {
            Some((name, expected, _, got)) => Err(Error::Value {
                name,
                expected,
                got: got.to_string(),
            }),
            None => Ok(()),
        }
    }
}

/// Running statistics and where the updated ones go; `[channels]` each.
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
}

/// What a training forward writes.
#[derive(Debug, Clone, Copy)]
pub struct TrainOutputs<'a> {
    /// The output; may be over `x`.
    pub y: Target<'a>,
    /// The mean, `[channels]`; also the first row of `saved`.
    pub mean: Option<&'a Handle>,
    /// The biased variance without epsilon, `[channels]`.
    pub variance: &'a Handle,
    /// What the backward needs, `[3][channels]`: the mean, what rounding took from it, `1 / sqrt(variance + epsilon)`.
    pub saved: &'a Handle,
}

/// What a backward writes: the gradients that are wanted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Gradients<'a> {
    /// The input's; may be over the output gradient.
    pub input: Option<Target<'a>>,
    /// Gamma's or the scale's, `[channels]`.
    pub scale: Option<&'a Handle>,
    /// Beta's or the shift's, `[channels]`.
    pub shift: Option<&'a Handle>,
    /// The residual's, of the tensor's shape. Without an activation it is the output gradient itself and need not be asked for.
    pub residual: Option<&'a Handle>,
}

impl Gradients<'_> {
    pub(crate) fn is_empty(&self) -> bool {
        self.input.is_none()
            && self.scale.is_none()
            && self.shift.is_none()
            && self.residual.is_none()
    }
}

/// The numbers of `a * dy + b * (x - mean) + c`; `[channels]` each.
#[derive(Debug, Clone, Copy)]
pub struct Coefficients<'a> {
    /// Of the output gradient.
    pub a: &'a Handle,
    /// Of the centred input.
    pub b: &'a Handle,
    /// The constant.
    pub c: &'a Handle,
}
