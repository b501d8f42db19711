//! ResNet-18, whole: torchvision's weights in and out, classified with, folded, trained and timed.
//!
//! The example of what [`burn_batchnorm`] does in a network of convolutions. The network itself is
//! [`model`], in one file; the binary is a shell around this library, so that tests can use the parts.

pub mod baseline;
pub mod bench;
pub mod classify;
pub mod cli;
pub mod model;
pub mod train;
pub mod weights;

use anyhow::{Context, Result, ensure};

use cli::{Cli, Command, FoldArgs};

/// Runs a command; returns what to print on standard output.
///
/// # Errors
///
/// Whatever goes wrong, with what to do.
pub fn execute(cli: &Cli) -> Result<String> {
    match &cli.command {
        Command::Classify(args) => classify::run(args),
        Command::Fold(args) => fold(args),
        Command::Train(args) => train::run(args),
        Command::Bench(args) => bench::run(args),
    }
}

fn fold(args: &FoldArgs) -> Result<String> {
    let device = mnist::device::resolve(&args.device)?.device();
    let (model, config) = weights::load(&args.input, &device)?;
    let shown = args.input.display();
    ensure!(
        !config.folded,
        "{shown} has no batch norm: it is folded already"
    );
    let folded = model
        .fold()
        .with_context(|| format!("cannot fold {shown}"))?;
    weights::save(&folded, &args.output)?;
    Ok(format!(
        "{} is {shown} without batch norm\n",
        args.output.display()
    ))
}

/// Rows with their columns side by side.
fn table<const COLUMNS: usize>(rows: impl Iterator<Item = [String; COLUMNS]>) -> String {
    let rows: Vec<_> = rows.collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..COLUMNS).map(width).collect();
    let line = |row: &[String; COLUMNS]| {
        let cells = row.iter().zip(&widths);
        let line: String = cells
            .map(|(cell, width)| format!("{cell:<width$}  "))
            .collect();
        line.trim_end().to_string() + "\n"
    };
    rows.iter().map(line).collect()
}
