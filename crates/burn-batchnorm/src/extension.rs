//! The operations that a backend can bring a fused kernel for.
//!
//! Per-channel tensors (`gamma`, `mean`, ..) have shape `[channels]` and the type that the input is
//! computed in: its own, but f32 for the half types. Outputs of the input's shape have its type.
//! The macro knows no optional tensors: `residual` is read only where [`Pass::residual`] says so, and
//! may be any tensor otherwise. Backends that are not listed never get here:
//! [`functional`](crate::functional) asks [`is_fused`](crate::functional::is_fused) first and
//! composes Burn's operations otherwise.

#[cfg(feature = "cube")]
use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, backend_extension};

use crate::Activation;
use crate::view::View;

/// What every pass over a tensor must know: where its channels are, and what follows the
/// normalization, `activation(normalized + residual)`.
#[derive(Debug, Clone, Copy)]
pub struct Pass {
    pub view: View,
    pub activation: Activation,
    pub residual: bool,
}

/// The numbers of a training pass.
#[derive(Debug, Clone, Copy)]
pub struct TrainParams {
    pub epsilon: f64,
    /// Weight of the batch in the running statistics.
    pub factor: f64,
    /// What the biased batch variance is multiplied by before it enters the running one.
    pub correction: f64,
}

/// Which statistics the forward pass normalized with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Statistics {
    /// Those of its input, which the gradient takes account of.
    Batch,
    /// Constants.
    Given,
}

/// Which gradients somebody asked for. The others may be anything of the right shape.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    pub input: bool,
    pub scale: bool,
    pub shift: bool,
    pub residual: bool,
}

/// Fused batch normalization.
#[backend_extension(
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    Cube: cfg(feature = "cube"),
    Fusion: cfg(feature = "cube"),
    Autodiff: cfg(feature = "autodiff"),
)]
pub trait BatchNormOps: Backend {
    /// Normalizes by the statistics of the batch: output, mean, biased variance, what
    /// [`backward`](Self::backward) needs of them, new running mean, new running variance.
    #[allow(clippy::type_complexity, clippy::too_many_arguments)]
    #[fusion(meta = trained)]
    fn train(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        running_mean: FloatTensor<Self>,
        running_var: FloatTensor<Self>,
        pass: Pass,
        params: TrainParams,
    ) -> (
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
    );

    /// `activation((x - mean) * scale + shift + residual)`.
    #[fusion(dtype = x, shape = x)]
    fn normalize(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        pass: Pass,
    ) -> FloatTensor<Self>;

    /// Gradients of [`train`](Self::train) for x, gamma, beta and the residual, or of
    /// [`normalize`](Self::normalize) for x, scale, shift and the residual. `saved` is what the first
    /// returned, or the mean that was given to the second.
    #[allow(clippy::type_complexity, clippy::too_many_arguments)]
    #[fusion(meta = gradients)]
    fn backward(
        x: FloatTensor<Self>,
        output_grad: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        saved: FloatTensor<Self>,
        statistics: Statistics,
        pass: Pass,
        wanted: Wanted,
    ) -> (
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
    );
}

/// What [`BatchNormOps::train`] returns, for Burn's fusion, which runs it later.
#[cfg(feature = "cube")]
#[allow(clippy::too_many_arguments)]
fn trained(
    x: &TensorSpec,
    gamma: &TensorSpec,
    _beta: &TensorSpec,
    _residual: &TensorSpec,
    _running_mean: &TensorSpec,
    _running_var: &TensorSpec,
    _pass: &Pass,
    _params: &TrainParams,
) -> (
    TensorSpec,
    TensorSpec,
    TensorSpec,
    TensorSpec,
    TensorSpec,
    TensorSpec,
) {
    let saved = TensorSpec::new([3, gamma.shape[0]].into(), gamma.dtype);
    let vector = || gamma.clone();
    (x.clone(), vector(), vector(), saved, vector(), vector())
}

/// What [`BatchNormOps::backward`] returns.
#[cfg(feature = "cube")]
#[allow(clippy::too_many_arguments)]
fn gradients(
    x: &TensorSpec,
    _output_grad: &TensorSpec,
    scale: &TensorSpec,
    _shift: &TensorSpec,
    _residual: &TensorSpec,
    _saved: &TensorSpec,
    _statistics: &Statistics,
    _pass: &Pass,
    _wanted: &Wanted,
) -> (TensorSpec, TensorSpec, TensorSpec, TensorSpec) {
    (x.clone(), scale.clone(), scale.clone(), x.clone())
}
