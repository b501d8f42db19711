//! Batch norm inside a network: convolution 3x3 -> batch norm -> ReLU -> convolution 3x3, forward + backward, with our layer (the ReLU
//! fused), with burn-nn's, and without.
//!
//! ```text
//! cargo run --release -p batchnorm-benches --bin block -- [--device flex] [--shapes 32x64x56x56,..] [--json]
//! ```
//!
//! On a GPU, convolutions return channels-last memory: what a copy before the norm or behind it costs shows here, and nowhere in the suite.
//! The three take turns, one step each; times are the medians.

use std::time::{Duration, Instant};

use batchnorm_benches::suite::{Shape, shape};
use batchnorm_benches::{Layer, Pass, random, run};
use burn::nn::PaddingConfig2d;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};
use burn_batchnorm::{Activation, BatchNormConfig};
use clap::Parser;
use serde::Serialize;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Times a block of two convolutions with and without batch norm between them.
#[derive(Debug, Parser)]
struct Arguments {
    /// Device of the example
    #[arg(long, default_value = "flex")]
    device: String,
    /// Only these shapes of rank 4: images, channels, height, width
    #[arg(long, value_delimiter = ',', value_parser = shape, default_value = "32x64x56x56,32x256x14x14,32x512x7x7")]
    shapes: Vec<Shape>,
    /// Time for each shape
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Print JSON and nothing else
    #[arg(long)]
    json: bool,
}

struct Block {
    first: Conv2d,
    norm: Option<Box<dyn Layer<4>>>,
    /// Whether the ReLU is an operation of its own.
    relu: bool,
    second: Conv2d,
}

impl Layer<4> for Block {
    fn forward(&self, images: Tensor<4>) -> Tensor<4> {
        let mut features = self.first.forward(images);
        if let Some(norm) = &self.norm {
            features = norm.forward(features);
        }
        if self.relu {
            features = relu(features);
        }
        self.second.forward(features)
    }

    /// Of the convolutions, which every block has.
    fn parameters(&self) -> [Tensor<1>; 2] {
        [&self.first, &self.second].map(|convolution| {
            let bias = convolution.bias.as_ref();
            bias.expect("a convolution with a bias").val()
        })
    }
}

/// Medians of a step, milliseconds.
#[derive(Debug, Serialize)]
struct Report {
    device: String,
    shape: Vec<usize>,
    without_ms: f64,
    ours_ms: f64,
    burn_nn_ms: f64,
}

fn measure(arguments: &Arguments, device: &Device, shape: [usize; 4]) -> Report {
    let channels = shape[1];
    let convolution = || {
        let config = Conv2dConfig::new([channels, channels], [3, 3]);
        config
            .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
            .init(device)
    };
    let ours = BatchNormConfig::new(channels).with_activation(Activation::Relu);
    let theirs = burn::nn::BatchNormConfig::new(channels);
    let norms: [(Option<Box<dyn Layer<4>>>, bool); 3] = [
        (None, true),
        (Some(Box::new(ours.init(device))), false),
        (Some(Box::new(theirs.init(device))), true),
    ];
    let blocks = norms.map(|(norm, relu)| Block {
        first: convolution(),
        norm,
        relu,
        second: convolution(),
    });
    let (x, dy) = (random(shape, 1, device), random(shape, 2, device));
    let step = |block| run(block, Pass::ForwardBackward, &x, &dy).0;
    // A GPU compiles and tunes its kernels in the first steps, which can take minutes.
    const WARM_UP: usize = 3;
    let mut times = [const { Vec::new() }; 3];
    let mut turn = || {
        for (times, block) in times.iter_mut().zip(&blocks) {
            times.push(step(block));
        }
    };
    (0..WARM_UP).for_each(|_| turn());
    let start = Instant::now();
    loop {
        turn();
        if start.elapsed().as_secs_f64() >= arguments.seconds {
            break;
        }
    }
    let [without_ms, ours_ms, burn_nn_ms] = times.map(|mut times: Vec<Duration>| {
        let mut times = times.split_off(WARM_UP);
        times.sort();
        times[times.len() / 2].as_secs_f64() * 1e3
    });
    Report {
        device: arguments.device.clone(),
        shape: shape.to_vec(),
        without_ms,
        ours_ms,
        burn_nn_ms,
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    let device = mnist::device::resolve(&arguments.device)?
        .device()
        .autodiff();
    let shapes = arguments.shapes.iter().map(|Shape(axes)| {
        let found = axes.len();
        let axes = <[usize; 4]>::try_from(axes.as_slice());
        axes.map_err(|_| format!("expected shapes of 4 lengths, found one of {found}"))
    });
    let shapes = shapes.collect::<Result<Vec<_>, _>>()?;
    if !arguments.json {
        println!(
            "{:<20}{:>12}{:>12}{:>12}{:>9}",
            "shape", "without ms", "ours ms", "burn-nn ms", "ratio"
        );
    }
    let mut reports = Vec::new();
    for shape in shapes {
        let report = measure(&arguments, &device, shape);
        let Report {
            without_ms,
            ours_ms,
            burn_nn_ms,
            ..
        } = report;
        if !arguments.json {
            println!(
                "{:<20}{without_ms:>12.2}{ours_ms:>12.2}{burn_nn_ms:>12.2}{:>9.2}",
                format!("{shape:?}").replace(' ', ""),
                burn_nn_ms / ours_ms,
            );
        }
        reports.push(report);
    }
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&reports)?);
    }
    Ok(())
}
