//! How batches enter the running statistics, and what to do with awkward ones.

use serde::{Deserialize, Serialize};

/// How a new batch enters the running statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Averaging {
    /// `running = (1 - momentum) * running + momentum * batch`.
    #[default]
    Exponential,
    /// The plain average over all batches seen, `momentum` unused: PyTorch's `momentum=None`.
    ///
    /// Every batch weighs the same, whatever its size.
    Cumulative,
    /// [`Exponential`](Self::Exponential) without the initial values' part: the average of the batches so far,
    /// each weighing `1 - momentum` of the one after it. At batch `t`, counted from 1:
    ///
    /// ```text
    /// add = momentum / (1 - (1 - momentum)^t)        running = (1 - add) * running + add * batch
    /// ```
    ///
    /// The first replaces the initial statistics, and validation is right from the first step on: the correction
    /// of [Adam's](https://arxiv.org/abs/1412.6980) moments, and equinox's batch norm. The number of batches is
    /// recorded.
    Debiased,
}

/// Which estimate of the batch variance enters the running variance.
///
/// The output of a training step is always normalized by the biased one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Variance {
    /// Divide by `n - 1`: the [paper](https://arxiv.org/abs/1502.03167) (Algorithm 2), PyTorch.
    #[default]
    Unbiased,
    /// Divide by `n`: Keras 3, Flax, ONNX, burn-nn.
    Biased,
}

/// What to do where batch statistics are asked of one value per channel.
///
/// Its variance is 0, the output is `beta` whatever the input, and the unbiased variance does not
/// exist. Such a batch is often the short last one of an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum SingleValue {
    /// Refuse it with [`BatchNormError::SingleValue`](crate::BatchNormError::SingleValue), as PyTorch
    /// does.
    #[default]
    Error,
    /// Normalize it by the running statistics, which stay as they are. Without `running_stats` it
    /// is refused.
    UseRunning,
    /// Normalize it by its own statistics (the output is `beta`), and leave the running ones alone.
    SkipUpdate,
}

/// What a batch with a NaN or an infinity does to the running statistics of its channel. (A loss that
/// overflows under [mixed precision](https://arxiv.org/abs/1710.03740) makes such batches, and its optimizer step is
/// skipped.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum NonFinite {
    /// It enters, as in PyTorch: they are not finite from then on.
    #[default]
    Propagate,
    /// It is left out, channel by channel and without waiting for the device, and counted:
    /// [`BatchNorm::skipped_updates`](crate::BatchNorm::skipped_updates).
    Skip,
}

/// What a masked pass returns where the mask admits nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum MaskedOutput {
    /// Normalized like the rest: Keras, Flax. What is not finite there is taken for the mean.
    #[default]
    Normalize,
    /// Zeros.
    Zero,
    /// The input as it is.
    PassThrough,
}

/// What a training pass keeps for its backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Memory {
    /// The input: the fewest operations.
    #[default]
    Input,
    /// The output, from which the input is computed back: in-place batch normalization
    /// ([Rota Bulo et al. 2018](https://arxiv.org/abs/1712.02616)). The operation that follows holds the output
    /// anyway, so a network keeps one tensor less a layer.
    ///
    /// Only with no activation or a [`LeakyRelu`](crate::Activation::LeakyRelu) of a positive slope. A pass
    /// keeps its input all the same where it would lose digits or has no output to work from: of a half type,
    /// with a residual or a mask, by statistics other than its batch's, on a device without kernels, or where a
    /// gamma is less than a thirtieth of its beta (which it reads from the device in each pass).
    Output,
}
