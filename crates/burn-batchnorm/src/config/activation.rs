use serde::{Deserialize, Serialize};

use crate::BatchNormError;

/// What follows the normalization, fused with it.
///
/// The backward pass recomputes the activation's argument from the input, so a fused activation
/// keeps no tensor of its own. The derivative at a kink is that of PyTorch: the outer piece's.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Activation {
    /// The normalized value as it is.
    #[default]
    None,
    /// `max(v, 0)`.
    Relu,
    /// `v` if positive, else `slope * v`, with a slope that is finite in f32.
    LeakyRelu(f64),
    /// `min(max(v, 0), 6)`.
    Relu6,
    /// `min(max(v, min), max)`, also known as hard tanh.
    Clamp {
        /// The smallest output, finite in f32.
        min: f64,
        /// The largest output, finite in f32; not less than `min`.
        max: f64,
    },
    /// `v * sigmoid(v)`, also known as swish; PyTorch's `silu`
    /// ([Elfwing et al., 2017](https://arxiv.org/abs/1702.03118)).
    Silu,
    /// `v * (1 + erf(v / sqrt(2))) / 2`; PyTorch's `gelu`
    /// ([Hendrycks and Gimpel, 2016](https://arxiv.org/abs/1606.08415)).
    Gelu,
    /// `v * (1 + tanh(sqrt(2 / pi) * (v + 0.044715 * v^3))) / 2`, the approximation of
    /// [`Gelu`](Self::Gelu) in the same paper; PyTorch's `gelu(approximate="tanh")`.
    GeluTanh,
    /// `v * min(max(v + 3, 0), 6) / 6`; PyTorch's `hardswish`
    /// ([Howard et al., 2019](https://arxiv.org/abs/1905.02244)).
    HardSwish,
    /// `1 / (1 + exp(-v))`; PyTorch's `sigmoid`.
    Sigmoid,
    /// `tanh(v)`; PyTorch's `tanh`.
    Tanh,
}

impl Activation {
    pub(crate) fn validate(self) -> Result<(), BatchNormError> {
        let valid = match self {
            Self::LeakyRelu(slope) => in_f32(slope),
            Self::Clamp { min, max } => in_f32(min) && in_f32(max) && min <= max,
            _ => true,
        };
        match valid {
            true => Ok(()),
            false => Err(BatchNormError::Activation { activation: self }),
        }
    }
}

impl Activation {
    #[cfg_attr(
        not(feature = "cube"),
        allow(dead_code, reason = "hosts have it in every type")
    )]
    pub(crate) fn has_exponential(self) -> bool {
        matches!(
            self,
            Self::Silu | Self::Gelu | Self::GeluTanh | Self::Sigmoid | Self::Tanh
        )
    }
}

/// Finite also where it is computed in f32. (An infinite bound is none: use another activation.)
fn in_f32(value: f64) -> bool {
    (value as f32).is_finite()
}

/// To the type of a kernel crate, which knows nothing of this one.
#[cfg(any(feature = "host", feature = "cube"))]
macro_rules! convert {
    ($kernels:ident) => {
        impl From<Activation> for $kernels::Activation {
            fn from(activation: Activation) -> Self {
                match activation {
                    Activation::None => Self::None,
                    Activation::Relu => Self::Relu,
                    Activation::LeakyRelu(slope) => Self::LeakyRelu(slope),
                    Activation::Relu6 => Self::Relu6,
                    Activation::Clamp { min, max } => Self::Clamp { min, max },
                    Activation::Silu => Self::Silu,
                    Activation::Gelu => Self::Gelu,
                    Activation::GeluTanh => Self::GeluTanh,
                    Activation::HardSwish => Self::HardSwish,
                    Activation::Sigmoid => Self::Sigmoid,
                    Activation::Tanh => Self::Tanh,
                }
            }
        }
    };
}

#[cfg(feature = "host")]
convert!(batchnorm_cpu);
#[cfg(feature = "cube")]
convert!(batchnorm_cube);
