//! The command line.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, RangedU64ValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};

use crate::compare::Method;
use crate::config::{BATCH_SIZE, EPOCHS, HIDDEN, LEARNING_RATE, VALIDATION};
use crate::folder::DEFAULT_OUT;
use crate::model::NormKind;
use crate::progress::Progress;

/// Trains the article's dense network with batch normalization on MNIST-style images.
///
/// Without a command it trains on the embedded images: 10 epochs, some seconds.
#[derive(Debug, Parser)]
#[command(name = "mnist", bin_name = crate::RUN, version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What to do; `train` if absent.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Flags of `train` work without its name.
    #[command(flatten)]
    pub train: TrainArgs,
    /// Print the results as JSON, and nothing else on standard output
    #[arg(long, global = true)]
    pub json: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train, test and save the network (also what runs without a command)
    Train(TrainArgs),
    /// Repeat the test of a saved network
    Eval(EvalArgs),
    /// Say what is on PNG or JPEG images
    Predict(PredictArgs),
    /// Train with and without batch normalization over seeds and learning rates or batch sizes, and compare
    Compare(CompareArgs),
    /// Compute the running statistics of a saved network anew, from all its training images
    Recalibrate(RecalibrateArgs),
    /// Examine the batch normalization of a saved network on test images
    Health(EvalArgs),
    /// List the devices of this machine
    Devices,
}

/// Flags of `train`. Absent ones take the default, or with `--resume` the value of the saved run.
#[derive(Args, Clone, Debug, Default)]
pub struct TrainArgs {
    /// The network.
    #[command(flatten)]
    pub network: NetworkArgs,
    /// Normalization: batch (this project's layer), burn (burn-nn's) or none [default: batch]
    #[arg(long, value_enum, value_name = "KIND", hide_possible_values = true)]
    pub norm: Option<NormKind>,
    /// Learning rate of Adam [default: 0.001]
    #[arg(long, allow_negative_numbers = true, value_name = "RATE", value_parser = learning_rate())]
    pub lr: Option<f64>,
    /// Stop when the validation loss has not improved for N epochs; the best epoch is then saved
    #[arg(long, allow_negative_numbers = true, value_name = "N", value_parser = count(EPOCHS))]
    pub early_stopping: Option<usize>,
    /// Names of the ten classes [default: classes.txt beside the data, else what the data is known by]
    #[arg(long, value_name = "NAME,NAME,..", value_delimiter = ',')]
    pub classes: Option<Vec<String>>,
    /// Continue the run in --out after its last checkpoint, up to --epochs in total
    #[arg(long)]
    pub resume: bool,
    /// Folder for model, metrics and pictures; results of an earlier run there are replaced at the end
    #[arg(long, value_name = "DIR", default_value = DEFAULT_OUT)]
    pub out: PathBuf,
    /// How to show progress, on standard error
    #[arg(long, value_enum, value_name = "HOW", default_value_t = Progress::Auto)]
    pub progress: Progress,
}

/// Flags that `train` and `compare` share.
#[derive(Args, Clone, Debug, Default)]
pub struct NetworkArgs {
    /// Inputs: 784, or 100 for images reduced to 10x10 (the article's size) [default: 784]
    #[arg(long, value_name = "784|100", value_parser = input(), hide_possible_values = true)]
    pub input: Option<usize>,
    /// Width of the hidden layer [default: 50]
    #[arg(long, allow_negative_numbers = true, value_name = "N", value_parser = count(HIDDEN))]
    pub hidden: Option<usize>,
    /// Normalize before the activation, not after it as the article does
    #[arg(long)]
    pub bn_before_activation: bool,
    /// Passes over the training images [default: 10]
    #[arg(long, allow_negative_numbers = true, value_name = "N", value_parser = count(EPOCHS))]
    pub epochs: Option<usize>,
    /// Images in a step; a last batch of one image joins the batch before it [default: 32]
    #[arg(long, allow_negative_numbers = true, value_name = "N", value_parser = batch_size)]
    pub batch_size: Option<usize>,
    /// Of initial weights, validation split and order of the images [default: 42]
    #[arg(long, allow_negative_numbers = true, value_name = "N")]
    pub seed: Option<u64>,
    /// Share of the training images held out for validation, 0 to 0.5 [default: 0.1]
    #[arg(long, allow_negative_numbers = true, value_name = "SHARE", value_parser = within(VALIDATION, "a share from 0 to 0.5"))]
    pub validation: Option<f64>,
    /// Images: `embedded`, a folder with the four IDX files, or `mnist` to download [default: embedded]
    #[arg(long, value_name = "DIR|mnist|embedded")]
    pub data: Option<String>,
    /// auto, flex, ndarray, wgpu, wgpu:INDEX, wgpu:cpu, cuda or cuda:INDEX; see `devices` [default: auto]
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
}

/// Flags of the commands that use a trained network.
#[derive(Args, Debug)]
pub struct ModelArgs {
    /// Folder that `train` wrote
    #[arg(long, value_name = "DIR", default_value = DEFAULT_OUT)]
    pub model: PathBuf,
    /// Device [default: that of the training, which repeats its numbers exactly]
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
}

/// Flags of `eval` and `health`.
#[derive(Args, Debug)]
pub struct EvalArgs {
    /// The network.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Images to test with [default: those of the training]
    #[arg(long, value_name = "DIR|mnist|embedded")]
    pub data: Option<String>,
}

/// Flags of `recalibrate`.
#[derive(Args, Debug)]
pub struct RecalibrateArgs {
    /// The network.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Folder for the new network, which must be new or empty [default: that of --model and "-recalibrated"]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Replace the network in --model
    #[arg(long, conflicts_with = "out")]
    pub in_place: bool,
}

/// Flags of `predict`.
#[derive(Args, Debug)]
pub struct PredictArgs {
    /// PNG or JPEG files of any size: light on dark, or dark on light with --invert
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<PathBuf>,
    /// The network.
    #[command(flatten)]
    pub model: ModelArgs,
    /// The images are dark on light: the training images are light on dark
    #[arg(long)]
    pub invert: bool,
    /// Number of classes to show
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value = "3", value_parser = count(1..=10))]
    pub top: usize,
}

/// Flags of `compare`.
#[derive(Args, Debug)]
pub struct CompareArgs {
    /// What is the same in all runs; --seed is the first seed.
    #[command(flatten)]
    pub network: NetworkArgs,
    /// Kinds of normalization to compare: batch, burn, none, and against small batches recalibrated,
    /// blend, renorm, ghost [default: batch,none; with --batch-sizes all but burn]
    #[arg(
        long,
        value_enum,
        value_name = "KINDS",
        value_delimiter = ',',
        hide_possible_values = true
    )]
    pub norms: Vec<Method>,
    /// Number of seeds
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value = "5", value_parser = count(1..=1000))]
    pub seeds: usize,
    /// Learning rates of Adam
    #[arg(long, value_name = "RATES", value_delimiter = ',', default_value = "0.0001,0.001,0.01,0.1", value_parser = learning_rate())]
    pub lrs: Vec<f64>,
    /// Batch sizes to compare instead of learning rates; Adam's rate goes with their square root
    #[arg(long, value_name = "SIZES", value_delimiter = ',', value_parser = batch_size,
          conflicts_with_all = ["lrs", "batch_size"])]
    pub batch_sizes: Vec<usize>,
    /// Note the first epoch with this validation accuracy
    #[arg(long, allow_negative_numbers = true, value_name = "SHARE", default_value = "0.8", value_parser = within(f64::MIN_POSITIVE..=1.0, "a share above 0, up to 1"))]
    pub target: f64,
    /// Folder for the picture, the table and the JSON file
    #[arg(long, value_name = "DIR", default_value = "artifacts/compare")]
    pub out: PathBuf,
}

fn count(range: RangeInclusive<u64>) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(range)
}

fn batch_size(text: &str) -> Result<usize, String> {
    let (least, most) = (BATCH_SIZE.start(), BATCH_SIZE.end());
    let size = text
        .trim()
        .parse()
        .ok()
        .filter(|size| BATCH_SIZE.contains(size));
    let size = size.ok_or(format!(
        "expected {least} to {most}: one image has no variance to normalize by"
    ))?;
    Ok(size as usize)
}

fn input() -> impl TypedValueParser<Value = usize> {
    PossibleValuesParser::new(["784", "100"]).try_map(|inputs| inputs.parse())
}

fn within(
    range: RangeInclusive<f64>,
    expected: &'static str,
) -> impl Fn(&str) -> Result<f64, String> + Clone + Send + Sync {
    move |text| {
        let number = text.trim().parse().ok();
        let number = number.filter(|number| range.contains(number));
        number.ok_or_else(|| format!("expected {expected}"))
    }
}

fn learning_rate() -> impl TypedValueParser<Value = f64> {
    within(LEARNING_RATE, "more than 0, at most 10")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn train_is_the_default_command() {
        Cli::command().debug_assert();
        let cli = Cli::try_parse_from(["mnist", "--epochs", "3"]).expect("flags of train");
        assert!(cli.command.is_none());
        assert_eq!(cli.train.network.epochs, Some(3));
        let command = Cli::try_parse_from(["mnist", "train"])
            .expect("train")
            .command;
        assert!(matches!(command, Some(Command::Train(_))));
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for flags in [
            "--epochs 0",
            "--batch-size 1",
            "--lr 0",
            "--lr nan",
            "--lr -1",
            "--input 99",
            "--hidden 0",
            "--validation 0.9",
            "--norm layer",
            "--early-stopping 0",
            "--seed -1",
        ] {
            let words = ["mnist", "train"].into_iter().chain(flags.split(' '));
            let error = Cli::try_parse_from(words).expect_err(flags).to_string();
            assert!(
                error.contains(flags.split(' ').next().expect("a flag")),
                "{error}"
            );
        }
    }

    #[test]
    fn lists_are_separated_by_commas() {
        let words = "mnist compare --lrs 0.1,0.2 --norms burn,none".split(' ');
        let Some(Command::Compare(args)) = Cli::try_parse_from(words).expect("lists").command
        else {
            panic!("compare")
        };
        assert_eq!(args.lrs, [0.1, 0.2]);
        assert_eq!(args.norms, [Method::Burn, Method::None]);
    }
}
