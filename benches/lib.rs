//! What the benches of burn-batchnorm share.

pub mod case;
pub mod epilogue;
pub mod suite;
#[allow(deprecated, reason = "burn deprecates NdArray, this crate measures it")]
mod upstream;

use std::fmt;
use std::hint::black_box;
use std::time::{Duration, Instant};

use burn::tensor::{Device, Distribution, Tensor};

use crate::upstream::upstream;

/// Lengths of the axes of real inputs, from a small dense layer to an image network's first block.
pub const SHAPES: [&[usize]; 12] = [
    &[32, 50],
    &[128, 512],
    &[1024, 512],
    &[4096, 1024],
    &[64, 128, 256],
    &[32, 64, 56, 56],
    &[32, 256, 56, 56],
    &[32, 512, 28, 28],
    &[32, 2048, 7, 7],
    &[8, 256, 28, 28],
    &[1, 64, 224, 224],
    &[4, 32, 16, 28, 28],
];

/// Runs `$run` with `$shape` as an array, whose length is the rank of a tensor.
#[macro_export]
macro_rules! with_rank {
    ($axes:expr, $shape:ident => $run:expr) => {
        match $axes {
            [a, b] => {
                let $shape = [a, b];
                $run
            }
            [a, b, c] => {
                let $shape = [a, b, c];
                $run
            }
            [a, b, c, d] => {
                let $shape = [a, b, c, d];
                $run
            }
            [a, b, c, d, e] => {
                let $shape = [a, b, c, d, e];
                $run
            }
            ref axes => panic!("the benches expect rank 2 to 5, got {axes:?}"),
        }
    };
}

/// What is timed of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// A training forward pass, with the update of the running statistics.
    Forward,
    /// Forward, then the gradients of the input, gamma and beta.
    ForwardBackward,
    /// With the running statistics.
    Inference,
}

impl Pass {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Forward, Self::ForwardBackward, Self::Inference];

    /// How often the memory of a tensor must at least be read or written: x, y; x, y, x, dy, dx.
    pub fn streams(self) -> f64 {
        match self {
            Self::Forward | Self::Inference => 2.0,
            Self::ForwardBackward => 5.0,
        }
    }
}

impl fmt::Display for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Forward => "forward",
            Self::ForwardBackward => "forward_backward",
            Self::Inference => "inference",
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

/// The results of a pass: the output, and the gradients of x, gamma and beta where it has them.
#[derive(Debug)]
pub struct Results<const D: usize> {
    /// The output, unless the pass gave it away.
    pub y: Option<Tensor<D>>,
    /// The gradient of x.
    pub dx: Option<Tensor<D>>,
    /// The gradients of gamma and beta.
    pub parameters: [Option<Tensor<1>>; 2],
}

/// Runs a pass and tells the time until the device has done it.
///
/// Its x is a new node, and its upstream gradient a tensor that nobody else holds, as in a network.
/// Both are made before the clock starts, and what the pass leaves is freed after it stops.
pub fn run<const D: usize>(
    layer: &dyn Layer<D>,
    pass: Pass,
    x: &Tensor<D>,
    dy: &Tensor<D>,
) -> (Duration, Results<D>) {
    let device = x.device();
    let sync = || device.sync().expect("a device that works");
    let x = match pass {
        Pass::Inference => x.clone(),
        Pass::Forward | Pass::ForwardBackward => x.clone().detach().require_grad(),
    };
    let dy = (pass == Pass::ForwardBackward).then(|| dy.clone() + 0.0);
    sync();

    let start = Instant::now();
    let y = layer.forward(x.clone());
    let results = match dy {
        None => Results {
            y: Some(y),
            dx: None,
            parameters: [None, None],
        },
        Some(dy) => {
            let gradients = upstream(y, dy).backward();
            Results {
                y: None,
                dx: x.grad(&gradients),
                parameters: layer.parameters().map(|tensor| tensor.grad(&gradients)),
            }
        }
    };
    sync();
    (start.elapsed(), black_box(results))
}
