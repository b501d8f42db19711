//! What the Learner, metrics, checkpoints and progress of the example's command line cost, against a
//! bare loop over the same model, batches and optimizer, which has forward, backward, Adam and nothing else:
//!
//! ```text
//! cargo run --release -p batchnorm-benches --bin training-overhead -- [--device flex] [--json]
//! ```
//!
//! Both train the article's network on the embedded images, alternating; rates are the medians of
//! the rounds. The command line is the parsed command itself, writing into a temporary folder.

use burn::data::dataloader::DataLoader;
use burn::nn::loss::CrossEntropyLossConfig;
use burn::optim::GradientsParams;
use burn::tensor::Device;
use clap::Parser;
use mnist::cli::{Cli, TrainArgs};
use mnist::config::RunConfig;
use mnist::data::Dataset;
use mnist::folder::{CONFIG, Folder, load_config};
use mnist::training::{TrainingData, optimizer};

/// The allocator of the example, on both sides.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Compares training through the command line with a bare loop.
#[derive(Debug, Parser)]
struct Arguments {
    /// Device of the example
    #[arg(long, default_value = "flex")]
    device: String,
    /// Times that both sides run
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Epochs of each run
    #[arg(long, default_value_t = 5)]
    epochs: usize,
    /// Print JSON and nothing else
    #[arg(long)]
    json: bool,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    let folder = tempfile::tempdir()?;
    let args = train_args(&arguments, folder.path());
    let (mut command_line, mut bare) = (Vec::new(), Vec::new());

    for _ in 0..arguments.rounds {
        let summary = mnist::train::run(&args, &burn::train::Interrupter::new())?;
        command_line.push(summary.train_images_per_second);

        let config = load_config(&Folder::new(folder.path()).file(CONFIG))?;
        let images = Dataset::load(&config.data)?.train;
        let data = TrainingData::new(&config, &images)?;
        let device = mnist::device::resolve(&arguments.device)?.device();
        bare.push(bare_loop(&config, &data, &device));
    }

    let (command_line, bare) = (median(command_line), median(bare));
    let share = command_line / bare;
    if arguments.json {
        let report = serde_json::json!({
            "device": arguments.device,
            "command_line_images_per_second": command_line,
            "bare_loop_images_per_second": bare,
            "share": share,
        });
        println!("{report:#}");
    } else {
        println!("command line  {command_line:>9.0} images/s");
        println!("bare loop     {bare:>9.0} images/s");
        println!("share         {:>8.0} %", share * 100.0);
    }
    Ok(())
}

fn train_args(arguments: &Arguments, folder: &std::path::Path) -> TrainArgs {
    let epochs = arguments.epochs.to_string();
    let out = folder.display().to_string();
    let words = [
        "mnist",
        "--progress",
        "none",
        "--device",
        &arguments.device,
        "--epochs",
        &epochs,
        "--out",
        &out,
    ];
    Cli::parse_from(words).train
}

/// Images per second over all epochs, as the command line's summary counts them.
fn bare_loop(config: &RunConfig, data: &TrainingData, device: &Device) -> f64 {
    let (training, autodiff) = (&config.training, device.clone().autodiff());
    let loader = data.train.batches(training.batch_size, &autodiff);
    let loader = loader.shuffled(training.seed, 1);
    let mut optimizer = optimizer();
    let mut model = config.model.init(training.seed, &autodiff);
    let loss = CrossEntropyLossConfig::new().init(&autodiff);
    let mut seconds = 0.0;
    for _ in 0..training.epochs {
        for batch in loader.iter().flatten() {
            let logits = model.forward(batch.inputs);
            let grads = loss.forward(logits, batch.targets).backward();
            let grads = GradientsParams::from_grads(grads, &model);
            model = optimizer.step(training.learning_rate, model, grads);
        }
        seconds += loader.clock()();
    }
    (training.epochs * data.train.count()) as f64 / seconds
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}
