//! The operations that a backend can bring a fused kernel for.
//!
//! Per-channel tensors (`gamma`, `mean`, ..) have shape `[channels]` and the type that the input is
//! computed in: its own, but f32 for the half types. Outputs of the input's shape have its type.
//! Backends that are not listed never get here: [`functional`](crate::functional) asks
//! [`is_fused`](crate::functional::is_fused) first and composes Burn's operations otherwise.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, backend_extension};

use crate::view::View;

/// The numbers of a training pass.
#[derive(Debug, Clone, Copy)]
pub struct TrainParams {
    pub view: View,
    pub epsilon: f64,
    /// Weight of the batch in the running statistics.
    pub factor: f64,
    /// What the biased batch variance is multiplied by before it enters the running one.
    pub correction: f64,
}

/// Which gradients somebody asked for. The others may be anything of the right shape.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    pub input: bool,
    pub scale: bool,
    pub shift: bool,
}

/// Fused batch normalization.
#[backend_extension(
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    Autodiff: cfg(feature = "autodiff"),
)]
pub trait BatchNormOps: Backend {
    /// Normalizes by the statistics of the batch: output, mean, biased variance, what
    /// [`train_backward`](Self::train_backward) needs of them, new running mean, new running variance.
    #[allow(clippy::type_complexity)]
    fn train(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        running_mean: FloatTensor<Self>,
        running_var: FloatTensor<Self>,
        params: TrainParams,
    ) -> (
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
    );

    /// Gradients of [`train`](Self::train) for x, gamma and beta. `saved` is what it returned.
    fn train_backward(
        x: FloatTensor<Self>,
        output_grad: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        saved: FloatTensor<Self>,
        view: View,
        wanted: Wanted,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// `(x - mean) * scale + shift`.
    fn normalize(
        x: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        view: View,
    ) -> FloatTensor<Self>;

    /// Gradients of [`normalize`](Self::normalize) for x, scale and shift; the mean is a constant.
    fn normalize_backward(
        x: FloatTensor<Self>,
        output_grad: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        view: View,
        wanted: Wanted,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}
