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
//! | [`training`] | training with the Learner, and [`training::bare_loop`] to measure it against |
//! | [`history`] | loss and accuracy by epoch; beside it `metrics`, `checkpoint`, `progress`: what the Learner is given |
//! | [`train`] | a command; so are `eval`, `predict`, `compare`, `recalibrate`, `health` and the list of [`device`]s |
//! | [`config`], [`folder`] | `config.json` and the other files; `report` and `plots` make tables and pictures |
//!
//! ```
//! # #[cfg(feature = "flex")] {
//! use mnist::{cli::NetworkArgs, config::RunConfig, data::Source, model::NormKind};
//! use mnist::training::{Session, TrainingData, train};
//!
//! let device = mnist::device::resolve("flex")?;
//! let data = Source::Embedded.load()?;
//! let args = NetworkArgs { input: Some(100), epochs: Some(1), ..NetworkArgs::default() };
//! let config = RunConfig::new(&args, NormKind::Batch, "embedded", &device, &data);
//! let images = TrainingData::new(&config, &data.train)?;
//! let trained = train(&config, &images, &device.device(), Session::silent())?;
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
mod report;
pub mod train;
pub mod training;

use std::io::Write;
use std::sync::OnceLock;

use anyhow::{Context, Result};
use burn::train::Interrupter;
use serde::Serialize;

/// How to run this program, for messages: nobody has it on the path.
pub const RUN: &str = "cargo run --release -p mnist --";

/// The user stopped the run; the text says what is left and how to go on.
#[derive(Debug)]
pub struct Interrupted(String);

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Interrupted {}

/// Runs the command and prints its result on standard output.
pub fn execute(cli: cli::Cli) -> Result<()> {
    use cli::Command;
    match cli.command.unwrap_or(Command::Train(cli.train)) {
        Command::Train(args) => {
            let summary = train::run(&args, &interrupter())?;
            print(args.json, &summary, || {
                report::training(&summary, &args.out)
            })
        }
        Command::Eval(args) => {
            let (report, config) = eval::run(&args)?;
            print(args.model.json, &report, || report::eval(&report, &config))
        }
        Command::Predict(args) => {
            let predictions = predict::run(&args)?;
            print(args.model.json, &predictions, || {
                predict::table(&predictions)
            })
        }
        Command::Compare(args) => {
            let comparison = compare::run(&args, &interrupter())?;
            print(args.json, &comparison, || {
                compare::text(&comparison, &args.out)
            })
        }
        Command::Recalibrate(args) => {
            let report = recalibrate::run(&args)?;
            print(args.model.json, &report, || recalibrate::text(&report))
        }
        Command::Health(args) => {
            let report = health::run(&args)?;
            print(args.model.json, &report, || health::text(&report))
        }
        Command::Devices(args) => {
            let devices = device::list();
            print(args.json, &devices, || device::table(&devices))
        }
    }
}

/// A line on standard error. Nobody may be listening there any more, which is no reason to stop.
pub fn note(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Prints JSON, or text that is only made if it is wanted.
fn print(json: bool, value: &impl Serialize, text: impl FnOnce() -> String) -> Result<()> {
    let output = if json {
        serde_json::to_string_pretty(value)? + "\n"
    } else {
        text()
    };
    match std::io::stdout().lock().write_all(output.as_bytes()) {
        // `devices | head -1` closes the pipe early, which is nobody's fault.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write to standard output"),
    }
}

/// Stops training after the current step at Ctrl-C (or SIGTERM, or SIGHUP unless that is ignored,
/// as under `nohup`); the second time it ends the program at once.
fn interrupter() -> Interrupter {
    static INTERRUPTER: OnceLock<Interrupter> = OnceLock::new();
    let made = INTERRUPTER.get_or_init(|| {
        let interrupter = Interrupter::new();
        let inside = interrupter.clone();
        let stopping = std::sync::atomic::AtomicBool::new(false);
        // SAFETY: setting a signal's disposition to "ignore" runs no code of ours.
        #[cfg(unix)]
        let ignored = unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) } == libc::SIG_IGN;
        let handler = ctrlc::set_handler(move || {
            if stopping.swap(true, std::sync::atomic::Ordering::Relaxed) {
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
    });
    made.clone()
}
