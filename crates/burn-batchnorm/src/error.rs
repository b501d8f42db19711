use burn::tensor::DType;
use thiserror::Error;

use crate::Activation;

/// Why a [`BatchNorm`](crate::BatchNorm) layer refuses its configuration or its input.
///
/// `try_init` and `try_forward` return it; `init` and `forward` panic with the same sentence. Every
/// check runs before any state changes, so a refused call leaves the layer as it was.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum BatchNormError {
    /// The layer was configured without channels.
    #[error("num_features must be greater than zero.")]
    NumFeatures,
    /// `epsilon` cannot keep the division finite.
    #[error(
        "epsilon must be finite and positive. Got {epsilon}, expected at least {smallest:e}, the \
         smallest normal value of the type computed in, and at most its largest: use a value such as the default 1e-5."
    )]
    Epsilon {
        /// The value found.
        epsilon: f64,
        /// The smallest one allowed.
        smallest: f64,
    },
    /// `momentum` is not a weight.
    #[error(
        "momentum must be finite and within [0, 1]. Got {momentum}: it is the weight of the new \
         batch (Keras and Flax state the weight of the old value: use 1 - their momentum)."
    )]
    Momentum {
        /// The value found.
        momentum: f64,
    },
    /// The activation has no meaning with its numbers.
    #[error(
        "activation expects a slope or bounds that are finite in f32, and bounds in order (min <= max), \
         got {activation:?}: for a single bound use `Relu`, or clamp the output."
    )]
    Activation {
        /// The configured one.
        activation: Activation,
    },
    /// The residual cannot be added to the output.
    #[error(
        "batch norm expects a residual of the input's shape {expected:?} and type {dtype:?}, got \
         {got:?} of {got_dtype:?}: reshape, expand or cast it."
    )]
    Residual {
        /// Shape of the input.
        expected: Vec<usize>,
        /// Type of the input.
        dtype: DType,
        /// Shape of the residual.
        got: Vec<usize>,
        /// Type of the residual.
        got_dtype: DType,
    },
    /// The input has no axis besides the channels.
    #[error(
        "batch norm expects an input of rank 2 or more ([batch, channels, ...]), got rank {rank}: \
         add the missing axis with `unsqueeze` or `reshape`."
    )]
    Rank {
        /// The rank of the input.
        rank: usize,
    },
    /// The input has no axis of the configured number.
    #[error(
        "channel_axis {axis} is out of range for an input of rank {rank}: expected {min} to {max}.",
        min = -(*rank as isize),
        max = *rank as isize - 1
    )]
    ChannelAxis {
        /// The configured axis, counted from the end where negative.
        axis: isize,
        /// The rank of the input.
        rank: usize,
    },
    /// The channel axis of the input has another length than the layer.
    #[error(
        "batch norm expects {expected} channels on axis {axis}, got {got} (input shape {shape:?}): \
         set `num_features` or `channel_axis` to match the input."
    )]
    Channels {
        /// `num_features` of the layer.
        expected: usize,
        /// Length of the input's channel axis.
        got: usize,
        /// The channel axis, counted from the front.
        axis: usize,
        /// Shape of the input.
        shape: Vec<usize>,
    },
    /// A parameter or a statistic was replaced by one of another length.
    #[error("batch norm expects `{name}` of shape [{expected}], got [{got}].")]
    Parameter {
        /// The field.
        name: &'static str,
        /// `num_features` of the layer.
        expected: usize,
        /// Length found.
        got: usize,
    },
    /// One value per channel: its variance is zero, and says nothing of the data.
    #[error(
        "batch norm needs more than 1 value per channel to compute batch statistics, got input \
         shape {shape:?}: use a larger batch, drop the last one, or choose another \
         `single_value` policy ({hint})."
    )]
    SingleValue {
        /// Shape of the input.
        shape: Vec<usize>,
        /// The policies that accept such an input here.
        hint: &'static str,
    },
    /// The types of input and parameters cannot be combined.
    #[error(
        "batch norm cannot combine an input of type {input:?} with `{name}` of type {parameter:?}: \
         both must have one floating-point type, or the input be F16 or BF16 with F32 parameters; \
         cast one of them."
    )]
    DType {
        /// Type of the input.
        input: DType,
        /// The field of the other type.
        name: &'static str,
        /// Type of the field.
        parameter: DType,
    },
    /// The device cannot compute with values of that type.
    #[error(
        "batch norm expects a type that the device {device} can compute with, got {dtype:?}: cast \
         the input to F32."
    )]
    Unsupported {
        /// Type of the input.
        dtype: DType,
        /// The device of the input.
        device: String,
    },
    /// The device cannot bind a buffer of that size.
    #[error(
        "batch norm expects an input of at most {limit} bytes on the device {device}, got {bytes}: split \
         the batch, or use another device."
    )]
    TooLarge {
        /// Bytes of the input.
        bytes: u64,
        /// The most that a kernel can bind.
        limit: u64,
        /// The device of the input.
        device: String,
    },
    /// Input and parameters are in different places.
    #[error(
        "batch norm expects `{name}` on the device of the input, {expected}, got {got}: move a tensor with \
         `to_device`, or the module with `to_device` or `fork`."
    )]
    Device {
        /// The field or argument.
        name: &'static str,
        /// Device of the input.
        expected: String,
        /// Device found.
        got: String,
    },
    /// The packed statistics of a functional call have another shape.
    #[error(
        "batch norm expects `center` of shape [3, {channels}] or [4, {channels}], as `moments` returns \
         it, got {got:?}."
    )]
    Center {
        /// Channels of the input.
        channels: usize,
        /// Shape found.
        got: Vec<usize>,
    },
    /// The weights of a functional call do not go with its input.
    #[error(
        "batch norm expects weights of the input's shape {expected:?}, or with 1 channel, got {got:?}."
    )]
    Weights {
        /// Shape of the input.
        expected: Vec<usize>,
        /// Shape found.
        got: Vec<usize>,
    },
    /// An option has a value that means nothing.
    #[error("{option}: expected {expected}, got {got}.")]
    Invalid {
        /// The field of the configuration.
        option: &'static str,
        /// What it may be.
        expected: &'static str,
        /// What it is.
        got: String,
    },
    /// An option needs running statistics, which another switches off.
    #[error(
        "`{option}` normalizes by running statistics, and `running_stats` is off: switch it on, or use \
         statistics of the batch."
    )]
    Conflict {
        /// The field of the configuration.
        option: &'static str,
    },
    /// A mask does not go with its input.
    #[error(
        "batch norm expects a mask of the input's shape {input:?}, or of its positions {positions:?}, or of \
         the first axes of those, got {got:?}."
    )]
    Mask {
        /// Shape of the input.
        input: Vec<usize>,
        /// The same without the channel axis.
        positions: Vec<usize>,
        /// Shape found.
        got: Vec<usize>,
    },
    /// A layer cannot take over a configuration.
    #[error(
        "a layer cannot change `{option}`, which decides what parameters it has: initialize another from the \
         configuration."
    )]
    Reconfigure {
        /// The field of the configuration.
        option: &'static str,
    },
    /// There is no such domain.
    #[error("{}", match expected {
        None => "batch norm by domains expects at least 1 domain, got none.".to_string(),
        Some((got, domains)) => format!(
            "batch norm expects a domain below {domains}, the number that it has, got {got}: domains are \
             counted from 0."
        ),
    })]
    Domains {
        /// The domain asked for and the number of domains, if there are any.
        expected: Option<(usize, usize)>,
    },
}

impl BatchNormError {
    /// Name of the variant, for programs that report errors by kind.
    pub fn name(&self) -> &'static str {
        match self {
            Self::NumFeatures => "NumFeatures",
            Self::Epsilon { .. } => "Epsilon",
            Self::Momentum { .. } => "Momentum",
            Self::Activation { .. } => "Activation",
            Self::Residual { .. } => "Residual",
            Self::Rank { .. } => "Rank",
            Self::ChannelAxis { .. } => "ChannelAxis",
            Self::Channels { .. } => "Channels",
            Self::Parameter { .. } => "Parameter",
            Self::SingleValue { .. } => "SingleValue",
            Self::DType { .. } => "DType",
            Self::Unsupported { .. } => "Unsupported",
            Self::TooLarge { .. } => "TooLarge",
            Self::Device { .. } => "Device",
            Self::Center { .. } => "Center",
            Self::Weights { .. } => "Weights",
            Self::Invalid { .. } => "Invalid",
            Self::Conflict { .. } => "Conflict",
            Self::Mask { .. } => "Mask",
            Self::Reconfigure { .. } => "Reconfigure",
            Self::Domains { .. } => "Domains",
        }
    }
}
