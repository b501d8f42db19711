//! The operations on tensors of a backend, and who carries them out.
//!
//! [`BatchNormOps`] is what a backend brings fused kernels for; [`composed`] is the same in Burn's own
//! operations, for every other backend, for what a kernel cannot do, and as the reference of tests.
//! Under autodiff, [`moments`](BatchNormOps::moments), [`normalize`](BatchNormOps::normalize) and
//! [`train`](BatchNormOps::train) are one node each.
//!
//! Tensors per channel have shape `[channels]`; several of them are packed as rows of one tensor.
//! They have the type that the input is computed in: its own, but f32 for the half types. Results of
//! the input's shape have its type.

mod activate;
#[cfg(all(feature = "autodiff", any(feature = "host", feature = "cube")))]
mod autodiff;
pub mod composed;
#[cfg(all(test, feature = "autodiff", feature = "flex"))]
#[allow(deprecated, reason = "burn deprecates NdArray, this crate supports it")]
mod tests;
mod weighed;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, ExtensionType};

use crate::Activation;
use crate::view::View;

/// What every pass over a tensor must know: where its channels are, and what follows the
/// normalization, `activation(normalized + residual)`.
#[derive(Debug, Clone, Copy)]
pub struct Pass {
    pub view: View,
    pub activation: Activation,
    /// Added to the variance inside the square root.
    pub epsilon: f64,
    /// Whether the backward pass of [`train`](BatchNormOps::train) works from the output and keeps no
    /// input: there is no residual, and the activation can be undone.
    pub from_output: bool,
}

/// A tensor that may be missing.
#[derive(Debug, Clone, ExtensionType)]
#[extension_type(fusion: cfg(feature = "cube"))]
pub enum Maybe<B: Backend> {
    Absent,
    Present(FloatTensor<B>),
}

/// Running mean and variance, where there are some to update.
#[derive(Debug, Clone, ExtensionType)]
#[extension_type(fusion: cfg(feature = "cube"))]
pub enum Running<B: Backend> {
    Untracked,
    Tracked(FloatTensor<B>, FloatTensor<B>),
}

/// The statistics that an input is normalized by.
#[derive(Debug, Clone, ExtensionType)]
#[extension_type(fusion: cfg(feature = "cube"))]
pub enum Moments<B: Backend> {
    /// Those of the input itself, as [`train`](BatchNormOps::train) returned them: `[4, channels]`, or
    /// `[5, channels]` of weighted positions.
    Batch(FloatTensor<B>),
    /// Given ones, as [`moments`](BatchNormOps::moments) returns them: `[3, channels]`.
    Center(FloatTensor<B>),
    /// Constants: mean and variance.
    Running(FloatTensor<B>, FloatTensor<B>),
}

/// Which gradients somebody asked for. The others may be anything of the right shape.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    pub input: bool,
    pub gamma: bool,
    pub beta: bool,
    pub residual: bool,
}

/// What [`train`](BatchNormOps::train) and [`backward`](BatchNormOps::backward) return.
pub type Four<B> = (
    FloatTensor<B>,
    FloatTensor<B>,
    FloatTensor<B>,
    FloatTensor<B>,
);

#[cfg(any(feature = "host", feature = "cube"))]
pub use extension::BatchNormOps;

#[cfg(any(feature = "host", feature = "cube"))]
#[allow(deprecated, reason = "burn deprecates NdArray, this crate supports it")]
mod extension {
    #[cfg(feature = "cube")]
    use burn::backend::fusion::custom::TensorSpec;
    use burn::backend::tensor::FloatTensor;
    use burn::backend::{Backend, backend_extension};

    #[cfg(feature = "cube")]
    use super::composed::compute_dtype;
    use super::{Maybe, Moments, Pass, Running, Wanted};
    #[cfg(feature = "cube")]
    use super::{MaybeMetadata, MomentsMetadata, RunningMetadata};
    use crate::statistics::Update;
    use crate::view::View;

    /// Fused batch normalization.
    ///
    /// A backend that is not listed never gets here: [`functional`](crate::functional) composes
    /// Burn's operations there.
    #[backend_extension(
        Flex: cfg(feature = "flex"),
        NdArray: cfg(feature = "ndarray"),
        Cube: cfg(feature = "cube"),
        Fusion: cfg(feature = "cube"),
        Autodiff: cfg(feature = "autodiff"),
    )]
    pub trait BatchNormOps: Backend {
        /// Normalizes by the statistics of the batch: the output; `[4, channels]` with the mean, what
        /// rounding took from it, the biased variance and the inverse standard deviation; the running
        /// mean and variance after `update` (anything of their shape where they are untracked).
        ///
        /// With weights, not negative and of shape `[outer, 1 or channels, inner]`, the statistics are
        /// those of weighted positions, and the sum of the weights is a fifth row. A position of weight
        /// 0 is left out, whatever it holds. Weights are constants.
        #[allow(clippy::type_complexity, clippy::too_many_arguments)]
        #[fusion(meta = trained)]
        fn train(
            x: FloatTensor<Self>,
            gamma: FloatTensor<Self>,
            beta: FloatTensor<Self>,
            #[extension_type] residual: Maybe<Self>,
            #[extension_type] weights: Maybe<Self>,
            #[extension_type] running: Running<Self>,
            pass: Pass,
            update: Update,
        ) -> (
            FloatTensor<Self>,
            FloatTensor<Self>,
            FloatTensor<Self>,
            FloatTensor<Self>,
        );

        /// The statistics of an input, its *center*: `[3, channels]` with the mean, what rounding took
        /// from it, and the biased variance.
        #[fusion(meta = centered)]
        fn moments(x: FloatTensor<Self>, view: View) -> FloatTensor<Self>;

        /// `activation((x - mean) / sqrt(variance + epsilon) * gamma + beta + residual)`.
        ///
        /// At a position of weight 0, an x that is not finite is taken for the mean, and such a residual for 0.
        /// So it is in [`train`](Self::train).
        #[fusion(meta = normalized)]
        fn normalize(
            x: FloatTensor<Self>,
            #[extension_type] moments: Moments<Self>,
            gamma: FloatTensor<Self>,
            beta: FloatTensor<Self>,
            #[extension_type] residual: Maybe<Self>,
            #[extension_type] weights: Maybe<Self>,
            pass: Pass,
        ) -> FloatTensor<Self>;

        /// The gradients of [`train`](Self::train), whose statistics depend on the input, or of
        /// [`normalize`](Self::normalize), where they are constants: for x, gamma, beta, residual. The
        /// weights are those of the forward pass.
        #[allow(clippy::type_complexity, clippy::too_many_arguments)]
        #[fusion(meta = gradients)]
        fn backward(
            x: FloatTensor<Self>,
            y_grad: FloatTensor<Self>,
            #[extension_type] moments: Moments<Self>,
            gamma: FloatTensor<Self>,
            beta: FloatTensor<Self>,
            #[extension_type] residual: Maybe<Self>,
            #[extension_type] weights: Maybe<Self>,
            pass: Pass,
            wanted: Wanted,
        ) -> (
            FloatTensor<Self>,
            FloatTensor<Self>,
            FloatTensor<Self>,
            FloatTensor<Self>,
        );

        /// `(x - mean) * scale + shift`.
        #[fusion(meta = affined)]
        fn affine(
            x: FloatTensor<Self>,
            mean: FloatTensor<Self>,
            scale: FloatTensor<Self>,
            shift: FloatTensor<Self>,
            view: View,
        ) -> FloatTensor<Self>;
    }

    // What the operations return, for Burn's fusion, which runs them later.

    #[cfg(feature = "cube")]
    fn packed(rows: usize, like: &TensorSpec, channels: usize) -> TensorSpec {
        TensorSpec::new([rows, channels].into(), compute_dtype(like.dtype))
    }

    #[cfg(feature = "cube")]
    #[allow(clippy::too_many_arguments)]
    fn trained(
        x: &TensorSpec,
        gamma: &TensorSpec,
        _beta: &TensorSpec,
        _residual: &MaybeMetadata,
        weights: &MaybeMetadata,
        _running: &RunningMetadata,
        pass: &Pass,
        _update: &Update,
    ) -> (TensorSpec, TensorSpec, TensorSpec, TensorSpec) {
        let rows = match weights {
            MaybeMetadata::Absent => 4,
            MaybeMetadata::Present(_) => 5,
        };
        let moments = packed(rows, x, pass.view.channels);
        (x.clone(), moments, gamma.clone(), gamma.clone())
    }

    #[cfg(feature = "cube")]
    fn centered(x: &TensorSpec, view: &View) -> TensorSpec {
        packed(3, x, view.channels)
    }

    #[cfg(feature = "cube")]
    fn normalized(
        x: &TensorSpec,
        _moments: &MomentsMetadata,
        _gamma: &TensorSpec,
        _beta: &TensorSpec,
        _residual: &MaybeMetadata,
        _weights: &MaybeMetadata,
        _pass: &Pass,
    ) -> TensorSpec {
        x.clone()
    }

    #[cfg(feature = "cube")]
    #[allow(clippy::too_many_arguments)]
    fn gradients(
        x: &TensorSpec,
        _y_grad: &TensorSpec,
        _moments: &MomentsMetadata,
        gamma: &TensorSpec,
        beta: &TensorSpec,
        _residual: &MaybeMetadata,
        _weights: &MaybeMetadata,
        _pass: &Pass,
        _wanted: &Wanted,
    ) -> (TensorSpec, TensorSpec, TensorSpec, TensorSpec) {
        (x.clone(), gamma.clone(), beta.clone(), x.clone())
    }

    #[cfg(feature = "cube")]
    fn affined(
        x: &TensorSpec,
        _mean: &TensorSpec,
        _scale: &TensorSpec,
        _shift: &TensorSpec,
        _view: &View,
    ) -> TensorSpec {
        x.clone()
    }
}
