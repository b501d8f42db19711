use burn::tensor::{Tensor, activation};
use serde::{Deserialize, Serialize};

use crate::BatchNormError;

/// What follows the normalization, fused with it: the ReLU family.
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
    /// `v` if positive, else `slope * v`, with a finite slope.
    LeakyRelu(f64),
    /// `min(max(v, 0), 6)`.
    Relu6,
    /// `min(max(v, min), max)`, also known as hard tanh.
    Clamp {
        /// The smallest output.
        min: f64,
        /// The largest output; not less than `min`.
        max: f64,
    },
}

impl Activation {
    pub(crate) fn validate(self) -> Result<(), BatchNormError> {
        let valid = match self {
            Self::LeakyRelu(slope) => slope.is_finite(),
            Self::Clamp { min, max } => min <= max,
            Self::None | Self::Relu | Self::Relu6 => true,
        };
        match valid {
            true => Ok(()),
            false => Err(BatchNormError::Activation { activation: self }),
        }
    }

    /// The same with Burn's operations, for devices without a kernel.
    pub(crate) fn apply<const D: usize>(self, tensor: Tensor<D>) -> Tensor<D> {
        match self {
            Self::None => tensor,
            Self::Relu => activation::relu(tensor),
            Self::LeakyRelu(slope) => activation::leaky_relu(tensor, slope),
            Self::Relu6 => tensor.clamp(0.0, 6.0),
            Self::Clamp { min, max } => tensor.clamp(min, max),
        }
    }
}

/// To the type of a kernel crate, which knows nothing of this one.
#[cfg(any(feature = "cpu", feature = "cube"))]
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
                }
            }
        }
    };
}

#[cfg(feature = "cpu")]
convert!(batchnorm_cpu);
#[cfg(feature = "cube")]
convert!(batchnorm_cube);
