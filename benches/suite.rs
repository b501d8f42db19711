//! The measured suite: the layer against burn-nn's on named real shapes, in one process and one run.
//!
//! ```text
//! cargo run --release -p batchnorm-benches --bin suite -- --device flex --json flex.json
//! ```
//!
//! Each case first checks both layers against a reference, then times them in turn, pass by pass, so
//! that a change of the machine's mood meets both. The floor is the time that the passes over memory
//! take which no implementation can avoid, at the bandwidth of copying a tensor of that shape between
//! buffers that were touched before, measured between the same passes: reading x and writing y for a
//! forward pass (2 passes), and reading x and dy and writing dx for a backward pass (3 more).

use std::fmt;
use std::fs;
use std::path::PathBuf;

use burn::tensor::DType;
use clap::Parser;
use serde::Serialize;

use crate::case::{Options, measure};
use crate::epilogue::Epilogue;
use crate::{Pass, SHAPES, with_rank};

/// Times the layer and burn-nn's on the shapes of real networks.
#[derive(Debug, Parser)]
struct Arguments {
    /// Device of the example: flex, ndarray, wgpu, cuda, ..
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
    /// Leave burn-nn's layer out
    #[arg(long)]
    ours_only: bool,
    /// What follows, fused: [add-]none, relu, silu, gelu, gelu-tanh, hard-swish, sigmoid or tanh.
    /// Then the other side is our plain layer followed by Burn's operations
    #[arg(long, default_value = "none", value_parser = Epilogue::parse)]
    epilogue: Epilogue,
    /// With a mask that admits every position. Then the other side is the same layer without
    #[arg(long)]
    masked: bool,
    /// Type of the input: f32, f16 or bf16 (in which burn-nn's layer is left out)
    #[arg(long, default_value = "f32", value_parser = dtype)]
    dtype: DType,
}

fn dtype(name: &str) -> Result<DType, String> {
    match name {
        "f32" => Ok(DType::F32),
        "f16" => Ok(DType::F16),
        "bf16" => Ok(DType::BF16),
        _ => Err("expected f32, f16 or bf16".into()),
    }
}

/// The length of every axis.
#[derive(Debug, Clone)]
pub struct Shape(pub Vec<usize>);

/// Reads one, such as `32x64x56x56`.
///
/// # Errors
///
/// If it does not have 2 to 5 lengths above 0.
pub fn shape(text: &str) -> Result<Shape, String> {
    let axes = text
        .split('x')
        .map(|axis| axis.parse().map_err(|_| format!("`{axis}` is no length")))
        .collect::<Result<Vec<usize>, String>>()?;
    match axes.len() {
        2..=5 if !axes.contains(&0) => Ok(Shape(axes)),
        _ => Err("expected 2 to 5 lengths above 0, such as 32x64x56x56".into()),
    }
}

/// Medians of one pass over one shape.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Lengths of the axes.
    pub shape: Vec<usize>,
    /// The device, as the example names it.
    pub device: String,
    /// `forward`, `forward_backward` or `inference`.
    pub pass: String,
    /// Our layer, milliseconds.
    pub ours_ms: f64,
    /// Half the distance between the quartiles of ours, milliseconds.
    pub ours_spread_ms: f64,
    /// burn-nn's layer, or what takes its place, milliseconds, if it took part.
    pub burn_nn_ms: Option<f64>,
    /// The passes over memory that cannot be avoided, milliseconds.
    pub floor_ms: f64,
}

impl Report {
    /// Times as fast as burn-nn.
    fn ratio(&self) -> Option<f64> {
        self.burn_nn_ms.map(|theirs| theirs / self.ours_ms)
    }

    fn header(other: &str) -> String {
        let other = format!("{other} ms");
        format!(
            "{:<20}{:<18}{:>11}{:>10}{:>13}{:>9}{:>11}",
            "shape", "pass", "ours ms", "+-", other, "ratio", "x floor"
        )
    }

    /// The geometric means of the ratios, pass by pass.
    fn summary(reports: &[Self], other: &str) -> String {
        let lines = Pass::ALL.map(|pass| {
            let logs: Vec<f64> = reports
                .iter()
                .filter(|report| report.pass == pass.to_string())
                .filter_map(Report::ratio)
                .map(f64::ln)
                .collect();
            match logs.is_empty() {
                true => String::new(),
                false => {
                    let mean = (logs.iter().sum::<f64>() / logs.len() as f64).exp();
                    format!("geometric mean, {pass}: {mean:.2} times as fast as {other}\n")
                }
            }
        });
        lines.concat()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |value: Option<f64>, digits| match value {
            Some(value) => format!("{value:.digits$}"),
            None => "-".to_string(),
        };
        write!(
            f,
            "{:<20}{:<18}{:>11.4}{:>10.4}{:>13}{:>9}{:>11.2}",
            format!("{:?}", self.shape).replace(' ', ""),
            self.pass,
            self.ours_ms,
            self.ours_spread_ms,
            number(self.burn_nn_ms, 4),
            number(self.ratio(), 2),
            self.ours_ms / self.floor_ms,
        )
    }
}

/// Brings glibc's allocator to the state of a process that has trained for a while. It starts by giving
/// every large block back to the system and learns from what is freed, up to 32 MiB, to keep twice as
/// much. The scripts of the peers do the same, so that neither side is measured while learning.
fn settle_allocator() {
    drop(std::hint::black_box(vec![0u8; 31 << 20]));
}

/// Parses the command line, times, prints, and writes the file that was asked for.
///
/// # Errors
///
/// If there is no such device, or the file cannot be written.
pub fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    let device = mnist::device::resolve(&arguments.device)?.device();
    let shapes = match arguments.shapes.is_empty() {
        true => SHAPES.map(|axes| Shape(axes.to_vec())).to_vec(),
        false => arguments.shapes,
    };
    let options = Options {
        name: &arguments.device,
        device: &device,
        channels_last: arguments.channels_last,
        ours_only: arguments.ours_only,
        epilogue: arguments.epilogue,
        masked: arguments.masked,
        dtype: arguments.dtype,
        seconds: if arguments.quick { 0.2 } else { 2.0 },
    };
    let other = match options.epilogue.any() {
        _ if options.masked => "unmasked",
        true => "separate",
        false => "burn-nn",
    };

    settle_allocator();
    println!("{}", Report::header(other));
    let mut reports = Vec::new();
    for Shape(axes) in shapes {
        let new = with_rank!(axes[..], shape => measure(shape, options));
        new.iter().for_each(|report| println!("{report}"));
        reports.extend(new);
    }
    println!("{}", Report::summary(&reports, other));

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
