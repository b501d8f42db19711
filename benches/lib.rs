//! What the benches of burn-batchnorm share.

pub mod case;

use std::fmt;

use burn::tensor::{Device, Distribution, Tensor};

/// What is timed of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// A training forward pass, with the update of the running statistics.
    Forward,
    /// Forward, then the gradients of the input, gamma and beta.
    ForwardBackward,
}

impl fmt::Display for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Forward => "forward",
            Self::ForwardBackward => "forward_backward",
        })
    }
}

/// The CPU devices that are compared.
pub fn cpu_devices() -> [(&'static str, Device); 2] {
    #[allow(deprecated, reason = "burn deprecates NdArray, this crate supports it")]
    let ndarray = Device::ndarray();
    [("flex", Device::flex()), ("ndarray", ndarray)]
}

/// Standard normal values, the same for the same seed.
pub fn random<const D: usize>(shape: [usize; D], seed: u64, device: &Device) -> Tensor<D> {
    device.seed(seed);
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), device)
}

/// What a layer offers to be timed.
pub trait Layer<const D: usize> {
    /// The forward pass.
    fn forward(&self, x: Tensor<D>) -> Tensor<D>;
    /// Gamma and beta.
    fn parameters(&self) -> [Tensor<1>; 2];
}

macro_rules! layer {
    ($layer:ty) => {
        impl<const D: usize> Layer<D> for $layer {
            fn forward(&self, x: Tensor<D>) -> Tensor<D> {
                <$layer>::forward(self, x)
            }

            fn parameters(&self) -> [Tensor<1>; 2] {
                [self.gamma.val(), self.beta.val()]
            }
        }
    };
}

layer!(burn::nn::BatchNorm);
layer!(burn_batchnorm::BatchNorm);
