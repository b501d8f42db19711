use thiserror::Error;

use crate::{Activation, BatchNormError, Inference};

/// Why a batch norm is not folded. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum FoldError {
    /// The statistics of a layer that trains are those of each batch.
    #[error(
        "a batch norm that trains cannot be folded: its output depends on the batch. Fold \
         `model.valid()`, or `freeze()` the layer first."
    )]
    Training,
    /// Without running statistics, inference too depends on the batch.
    #[error(
        "a batch norm without running statistics cannot be folded: its output depends on the batch. \
         Use one with `running_stats`."
    )]
    NoStatistics,
    /// Inference too depends on the batch.
    #[error(
        "a batch norm whose inference is by {0:?} cannot be folded: its output depends on the batch. Set \
         `inference` to `Running` first."
    )]
    Inference(
        /// What the batch norm is configured to.
        Inference,
    ),
    /// Something that is not linear stands between the two layers.
    #[error(
        "a batch norm with the activation {0:?} cannot be folded into what follows it: fold it into the \
         layer before."
    )]
    Activation(
        /// The activation of the batch norm.
        Activation,
    ),
    /// The channels of the two layers are on different axes.
    #[error(
        "expected a batch norm with its channels on axis {expected} of tensors of rank {rank}, where \
         the other layer has them, got channel_axis {got}."
    )]
    ChannelAxis {
        /// The axis of the other layer's channels, counted from the front.
        expected: usize,
        /// The configured axis of the batch norm.
        got: isize,
        /// The rank of the tensors between the layers.
        rank: usize,
    },
    /// The layers do not follow each other.
    #[error("expected a batch norm of {expected} channels, which the other layer has, got {got}.")]
    Channels {
        /// Channels of the other layer, on the side of the batch norm.
        expected: usize,
        /// Channels of the batch norm.
        got: usize,
    },
    /// Zeros of a padding would have to be normalized too.
    #[error(
        "a batch norm cannot be folded into a convolution after it that pads with zeros, got padding \
         {padding}: the padding stands for other values once the batch norm is gone. Pad explicitly \
         before the batch norm, or keep it."
    )]
    Padding {
        /// The padding of the convolution.
        padding: String,
    },
    /// The branches of a sum do not see the same positions.
    #[error("expected every branch of the sum to have {expected}, got {got} in branch {branch}.")]
    Branch {
        /// Position in the list.
        branch: usize,
        /// What the first branch has, or what is needed.
        expected: String,
        /// What this one has.
        got: String,
    },
    /// The channels do not divide into the groups.
    #[error("expected groups that divide the {channels} channels of the batch norm, got {groups}.")]
    Groups {
        /// Channels of the batch norm.
        channels: usize,
        /// Groups asked for.
        groups: usize,
    },
    /// A sum of nothing.
    #[error("expected at least one branch to add up, got none.")]
    NoBranches,
    /// The batch norm itself would refuse to run.
    #[error(transparent)]
    Layer(#[from] BatchNormError),
}
