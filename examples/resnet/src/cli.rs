//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, value_parser};

use crate::bench::Network;

/// ResNet-18 with this project's batch norm: torchvision's weights in and out, folded, trained, timed.
#[derive(Debug, Parser)]
#[command(
    name = "resnet",
    bin_name = "cargo run --release -p resnet --",
    version
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Say what is on a picture
    Classify(ClassifyArgs),
    /// Fold every batch norm into the convolution before it
    Fold(FoldArgs),
    /// Train on the embedded part of Fashion-MNIST, or on other files of its kind
    Train(TrainArgs),
    /// Time inference and training steps against burn-nn's batch norm
    Bench(BenchArgs),
}

/// Arguments of `classify`.
#[derive(Args, Debug)]
pub struct ClassifyArgs {
    /// PNG or JPEG
    pub image: PathBuf,
    /// A ResNet-18 of torchvision's, or of `train` or `fold`: .safetensors, .pt or .pth
    #[arg(long, value_name = "FILE")]
    pub weights: PathBuf,
    /// Names of the classes, one a line
    #[arg(long, value_name = "FILE")]
    pub classes: Option<PathBuf>,
    /// The picture is dark on light, and the network, of one channel, was trained on light on dark
    #[arg(long)]
    pub invert: bool,
    /// How many classes to print
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub top: usize,
    /// auto, flex, ndarray, wgpu, ..
    #[arg(long, default_value = "auto")]
    pub device: String,
}

/// Arguments of `fold`.
#[derive(Args, Debug)]
pub struct FoldArgs {
    /// Weights with batch norms
    pub input: PathBuf,
    /// Weights without, as safetensors; a file there is replaced
    pub output: PathBuf,
    /// auto, flex, ndarray, wgpu, ..
    #[arg(long, default_value = "auto")]
    pub device: String,
}

/// Arguments of `train`.
#[derive(Args, Debug)]
pub struct TrainArgs {
    /// Passes over the images
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = at_least_one())]
    pub epochs: usize,
    /// Channels of the first stage; 64 is the ResNet-18 of the paper
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = at_least_one())]
    pub width: usize,
    /// Images in a step
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = at_least_one())]
    pub batch_size: usize,
    /// Learning rate
    #[arg(long, value_name = "RATE", default_value_t = 0.02)]
    pub lr: f64,
    /// Of initial weights and the order of the images
    #[arg(long, value_name = "N", default_value_t = 42)]
    pub seed: u64,
    /// embedded, or a folder with the four IDX files
    #[arg(long, value_name = "DATA", default_value = "embedded")]
    pub data: String,
    /// Folder for weights, metrics and the picture of the learning curves
    #[arg(long, value_name = "DIR", default_value = "artifacts/resnet")]
    pub out: PathBuf,
    /// auto, flex, ndarray, wgpu, ..
    #[arg(long, default_value = "auto")]
    pub device: String,
}

/// Arguments of `bench`.
#[derive(Args, Debug)]
pub struct BenchArgs {
    /// Images in a batch; several with commas
    #[arg(
        long,
        value_name = "N,N,..",
        value_delimiter = ',',
        default_value = "1,32",
        value_parser = at_least_one()
    )]
    pub batches: Vec<usize>,
    /// Which networks; several with commas
    #[arg(
        long,
        value_enum,
        value_name = "NAME,..",
        value_delimiter = ',',
        default_value = "ours,without,burn-nn"
    )]
    pub networks: Vec<Network>,
    /// Pixels a side of an image
    #[arg(long, value_name = "N", default_value_t = 224, value_parser = at_least_one())]
    pub size: usize,
    /// Channels of the first stage
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = at_least_one())]
    pub width: usize,
    /// Times that each network runs, in turns; the median counts
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = at_least_one())]
    pub rounds: usize,
    /// Print JSON and nothing else
    #[arg(long)]
    pub json: bool,
    /// auto, flex, ndarray, wgpu, ..
    #[arg(long, default_value = "auto")]
    pub device: String,
}

fn at_least_one() -> impl clap::builder::TypedValueParser<Value = usize> {
    use clap::builder::TypedValueParser;
    value_parser!(u64)
        .range(1..1 << 20)
        .map(|count| count as usize)
}
