//! The article's dense network with batch normalization, trained on MNIST-style images.
//!
//! The example of [`burn_batchnorm`]: `input -> Dense(50, ReLU) -> BN -> Dense(10)`, Adam, ten
//! epochs of 32 images a step, with Burn's own `SupervisedTraining` around it. The binary is a
//! shell around this library, so that tests and benchmarks can use the parts:
//!
//! | module | what it holds |
//! |--------|---------------|
//! | [`data`] | IDX files, the embedded images, standardised inputs, split, batches from memory |
//! | [`model`] | the network, with this project's layer, burn-nn's or none |
//! | [`training`] | training with the Learner; `metrics`, `recorder`, `checkpoint`, `progress`: what it is given |
//! | [`history`] | loss and accuracy by epoch |
//! | [`train`] | a command; so are `eval`, `predict`, `compare`, `recalibrate`, `health` and the list of [`device`]s |
//! | [`config`], [`folder`] | `config.json` and the other files; `report` and `plots` make tables and pictures |
//!
//! ```
//! # #[cfg(feature = "flex")] {
//! use mnist::{cli::NetworkArgs, config::RunConfig, data::Dataset, model::NormKind};
//! use mnist::training::{Session, TrainingData, train};
//!
//! let device = mnist::device::resolve("flex")?;
//! let data = Dataset::load("embedded")?;
//! let args = NetworkArgs { input: Some(100), epochs: Some(1), ..NetworkArgs::default() };
//! let config = RunConfig::new(&args, NormKind::Batch, &device, &data);
//! let images = TrainingData::new(&config, &data.train)?;
//! let trained = train(&config, &images, &device.device(), Session::default())?;
//! assert!(trained.history.rows[0].train_accuracy > 0.5);
//! # }
//! # Ok::<(), anyhow::Error>(())
//! ```

mod checkpoint;
pub mod cli;
mod compare;
pub mod config;
pub mod data;
pub mod device;
pub mod eval;
pub mod folder;
mod health;
pub mod history;
mod metrics;
pub mod model;
pub mod plots;
pub mod predict;
mod progress;
mod quiet;
mod recalibrate;
mod recorder;
mod report;
pub mod train;
pub mod training;

use std::fmt::Display;
use std::io::{ErrorKind, Write};

use anyhow::{Context, Result};
use burn::train::Interrupter;
use serde::Serialize;

/// How to run this program, for messages: nobody has it on the path.
pub const RUN: &str = "cargo run --release -p mnist --";

/// The user stopped the run; the text says what is left and how to go on.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Interrupted(String);

/// Runs the command and prints its result on standard output.
pub fn execute(cli: cli::Cli) -> Result<()> {
    use cli::Command;
    let json = cli.json;
    match cli.command.unwrap_or(Command::Train(cli.train)) {
        Command::Train(args) => {
            args.progress.check(json)?;
            print(json, &train::run(&args, &interrupter())?)
        }
        Command::Eval(args) => print(json, &eval::run(&args)?),
        Command::Predict(args) => print(json, &predict::run(&args)?),
        Command::Compare(args) => print(json, &compare::run(&args, &interrupter())?),
        Command::Recalibrate(args) => print(json, &recalibrate::run(&args)?),
        Command::Health(args) => print(json, &health::run(&args)?),
        Command::Devices => print(json, &device::list()),
    }
}

/// A line on standard error. Nobody may be listening there any more, which is no reason to stop.
pub fn note(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Prints a result as JSON, or as text.
fn print(json: bool, result: &(impl Serialize + Display)) -> Result<()> {
    let output = match json {
        true => serde_json::to_string_pretty(result)? + "\n",
        false => result.to_string(),
    };
    match std::io::stdout().lock().write_all(output.as_bytes()) {
        // `devices | head -1` closes the pipe early, which is nobody's fault.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write to standard output"),
    }
}

/// Stops training after the current step at Ctrl-C (or SIGTERM, or SIGHUP unless that is ignored,
/// as under `nohup`); the second time it ends the program at once.
fn interrupter() -> Interrupter {
    let interrupter = Interrupter::new();
    let inside = interrupter.clone();
    // SAFETY: setting a signal's disposition to "ignore" runs no code of ours.
    #[cfg(unix)]
    let ignored = unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) } == libc::SIG_IGN;
    let handler = ctrlc::set_handler(move || {
        if inside.should_stop() {
            progress::restore_terminal();
            std::process::exit(130);
        }
        inside.stop(Some("Ctrl-C"));
    });
    #[cfg(unix)]
    if ignored {
        // SAFETY: as above.
        unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
    }
    if let Err(error) = handler {
        note(&format!(
            "note: Ctrl-C will end the program at once: {error}"
        ));
    }
    interrupter
}
