//! The measured suite: the layer against burn-nn's on named real shapes, in one process and one run.
//!
//! ```text
//! cargo run --release -p batchnorm-benches --bin suite -- --device flex --json flex.json
//! ```
//!
//! Each case first checks both layers against each other, then times them in turn, pass by pass, so
//! that a change of the machine's mood meets both. The floor is the time that the passes over memory
//! take which no implementation can avoid, at the bandwidth of copying a tensor of that shape, measured
//! between the same passes: reading x and writing y for a forward pass (2 passes), and reading x and
//! dy and writing dx for a backward pass (3 more).

use std::fs;
use std::path::PathBuf;

use batchnorm_benches::case::{Report, measure};
use clap::Parser;

/// Times the layer and burn-nn's on the shapes of real networks.
#[derive(Debug, Parser)]
struct Arguments {
    /// Device of the example: flex, ndarray, wgpu, ..
    #[arg(long, default_value = "flex")]
    device: String,
    /// Only these shapes, such as 32x50,8x256x28x28
    #[arg(long, value_delimiter = ',', value_parser = shape)]
    shapes: Vec<Shape>,
    /// Write the results to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// A tenth of the time: to see that it runs, not to compare
    #[arg(long)]
    quick: bool,
    /// Channels on the last axis instead of axis 1, for our layer alone
    #[arg(long)]
    channels_last: bool,
}

/// The length of every axis.
#[derive(Debug, Clone)]
struct Shape(Vec<usize>);

const SHAPES: [&[usize]; 12] = [
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

fn shape(text: &str) -> Result<Shape, String> {
    let axes = text
        .split('x')
        .map(|axis| axis.parse().map_err(|_| format!("`{axis}` is no length")))
        .collect::<Result<Vec<usize>, String>>()?;
    match axes.len() {
        2..=5 if !axes.contains(&0) => Ok(Shape(axes)),
        _ => Err("expected 2 to 5 lengths above 0, such as 32x64x56x56".into()),
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    let device = mnist::device::resolve(&arguments.device)?.device();
    let shapes = match arguments.shapes.is_empty() {
        true => SHAPES.map(|axes| Shape(axes.to_vec())).to_vec(),
        false => arguments.shapes,
    };
    let seconds = if arguments.quick { 0.2 } else { 2.0 };

    println!("{}", Report::header());
    let mut reports = Vec::new();
    for Shape(axes) in shapes {
        let new = |reports: Vec<Report>| {
            for report in &reports {
                println!("{report}");
            }
            reports
        };
        reports.extend(new(measure(
            &arguments.device,
            &device,
            &axes,
            arguments.channels_last,
            seconds,
        )));
    }
    println!("{}", Report::summary(&reports));

    if let Some(path) = arguments.json {
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        let file = tempfile::NamedTempFile::new_in(folder.unwrap_or(".".as_ref()))?;
        fs::write(file.path(), serde_json::to_string_pretty(&reports)?)?;
        file.persist(path)?;
    }
    Ok(())
}
