//! What follows the normalization, fused with it or as separate operations.

use burn::tensor::{Tensor, activation};
use burn_batchnorm::{Activation, BatchNorm, Mask, With};

use crate::Layer;

/// An activation behind the layer, and whether a residual is added before it.
#[derive(Debug, Clone, Copy)]
pub struct Epilogue {
    /// Applied last.
    pub activation: Activation,
    /// Whether there is a residual.
    pub residual: bool,
}

impl Epilogue {
    /// From its name: `none`, `relu`, `silu`, `gelu`, `gelu-tanh`, `hard-swish`, `sigmoid` or `tanh`, with a residual as in `add-relu`.
    ///
    /// # Errors
    ///
    /// A sentence, for any other name.
    pub fn parse(name: &str) -> Result<Self, String> {
        let residual = name.starts_with("add-");
        let activation = match name.trim_start_matches("add-") {
            "none" => Activation::None,
            "relu" => Activation::Relu,
            "silu" => Activation::Silu,
            "gelu" => Activation::Gelu,
            "gelu-tanh" => Activation::GeluTanh,
            "hard-swish" => Activation::HardSwish,
            "sigmoid" => Activation::Sigmoid,
            "tanh" => Activation::Tanh,
            _ => return Err(format!("there is no epilogue `{name}`")),
        };
        Ok(Self {
            activation,
            residual,
        })
    }

    /// Whether there is anything.
    pub fn any(self) -> bool {
        self.residual || self.activation != Activation::None
    }
}

/// A layer that applies the epilogue itself.
#[derive(Debug)]
pub struct Fused<const D: usize> {
    /// The layer, with its activation.
    pub layer: BatchNorm,
    /// What it adds.
    pub residual: Option<Tensor<D>>,
    /// Which positions count.
    pub mask: Option<Mask>,
}

impl<const D: usize> Layer<D> for Fused<D> {
    fn forward(&self, x: Tensor<D>) -> Tensor<D> {
        let with = With {
            residual: self.residual.clone(),
            mask: self.mask.clone(),
        };
        self.layer.forward_with(x, with)
    }

    fn parameters(&self) -> [Tensor<1>; 2] {
        Layer::<D>::parameters(&self.layer)
    }
}

/// A layer, and the epilogue in Burn's operations.
#[derive(Debug)]
pub struct Separate<L, const D: usize> {
    /// The layer, without an activation.
    pub layer: L,
    /// What follows it.
    pub activation: Activation,
    /// What is added.
    pub residual: Option<Tensor<D>>,
}

impl<L: Layer<D>, const D: usize> Layer<D> for Separate<L, D> {
    fn forward(&self, x: Tensor<D>) -> Tensor<D> {
        let y = self.layer.forward(x);
        let y = match &self.residual {
            Some(residual) => y + residual.clone(),
            None => y,
        };
        match self.activation {
            Activation::Relu => activation::relu(y),
            Activation::Silu => activation::silu(y),
            Activation::Gelu => activation::gelu(y),
            Activation::GeluTanh => activation::gelu_approximate(y),
            Activation::HardSwish => activation::hard_swish(y),
            Activation::Sigmoid => activation::sigmoid(y),
            Activation::Tanh => activation::tanh(y),
            _ => y,
        }
    }

    fn parameters(&self) -> [Tensor<1>; 2] {
        self.layer.parameters()
    }
}
