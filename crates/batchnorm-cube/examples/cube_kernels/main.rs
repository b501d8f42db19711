//! Times the kernels on a device, beside a plain copy there:
//!
//! ```text
//! cargo run --release -p batchnorm-cube --example cube_kernels -- --device vulkan --json FILE
//! ```
//!
//! With `--features cubecl/vulkan` or `cubecl/cuda` there are those devices, and with `--features tuning` the numbers that cut the work are
//! tried one after the other (`--sweep`). A row gives of a forward, a forward and backward with all gradients, and an inference:
//!
//! - `ms`: by the device's clock, the median, and `(loop)`, a run in a loop by the host's;
//! - `n`: launches;
//! - `%copy`: the bytes that nothing can avoid, every tensor read or written once, per second, as a share of what a large copy moves. It
//!   exceeds 100 where caches hold a tensor.
//!
//! `copy ms` is a copy of a tensor of that shape. Small tensors are many, one after the other, so that no cache of the device holds them.

mod check;
mod clock;
mod memory;
mod rows;
#[path = "../../tests/kernels/runtime.rs"]
mod runtime;
#[cfg(feature = "tuning")]
mod sweep;
mod table;
#[path = "../../tests/kernels/training.rs"]
mod training;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use batchnorm_cube::Element;
use clap::Parser;
use cubecl::prelude::*;
use serde_json::{Value, json};

use rows::{Choice, Table};
use runtime::DeviceName;
use table::Row;

/// Times the kernels on a device
#[derive(Parser)]
struct Arguments {
    /// wgpu, wgpu:cpu, vulkan, cuda or cuda:NUMBER
    #[arg(long, default_value = "wgpu")]
    device: DeviceName,
    /// Only shapes with this in their name
    #[arg(long, value_name = "PART", default_value = "")]
    only: String,
    /// Begin no row later
    #[arg(long, value_name = "SECONDS", default_value_t = 3600.0)]
    seconds: f64,
    /// Three small shapes and little time: to see that it runs, not to compare
    #[arg(long)]
    quick: bool,
    /// Of positions with weights that channels share, every third of which is 0
    #[arg(long)]
    weights: bool,
    /// Say what the device is and can, and time nothing
    #[arg(long)]
    describe: bool,
    /// Try the numbers of `tuning.rs`, and nothing else
    #[cfg(feature = "tuning")]
    #[arg(long)]
    sweep: bool,
    /// Write the results to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What decides how work is cut, and which types there are.
fn describe(name: DeviceName, client: &Client) -> Value {
    let properties = client.properties();
    let hardware = &properties.hardware;
    let types: Vec<String> = [Element::F32, Element::F16, Element::Bf16, Element::F64]
        .iter()
        .filter(|element| properties.supports_type(element.elem_type()))
        .map(|element| format!("{element:?}").to_lowercase())
        .collect();
    // CubeCL names the compiler that it would choose.
    let runtime = match name {
        DeviceName::Software | DeviceName::Wgpu => "wgpu<wgsl>",
        DeviceName::Vulkan | DeviceName::Cuda(_) => client.name(),
    };
    json!({
        "name": properties.identity.name,
        "runtime": runtime,
        "software": properties.identity.physical.is_none(),
        "types": types,
        "plane_operations": properties.features.plane.contains(cubecl::features::Plane::Ops),
        "plane": [hardware.plane_size_min, hardware.plane_size_max],
        "units_per_cube": hardware.max_units_per_cube,
        "shared_memory": hardware.max_shared_memory_size,
        "bindings": hardware.max_bindings,
        "processors": hardware.num_streaming_multiprocessors,
        "vector": hardware.max_vector_size,
        "largest_buffer": properties.memory.max_page_size,
        "clock": properties.timing_method.to_string(),
    })
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let until = Instant::now() + Duration::try_from_secs_f64(arguments.seconds)?;
    let client = arguments.device.client()?;
    let device = describe(arguments.device, &client);
    if arguments.describe {
        println!("{}: {device}", arguments.device);
        return write(arguments.json, &device);
    }
    let mut result = json!({"device": device["name"], "runtime": device["runtime"]});
    let budget = match arguments.quick {
        true => 0.0,
        false => 0.02,
    };
    #[cfg(feature = "tuning")]
    if arguments.sweep {
        result["sweep"] = sweep::sweep(&client, arguments.quick, budget, until)?.into();
        return write(arguments.json, &result);
    }
    let choice = Choice {
        only: arguments.only,
        quick: arguments.quick,
        weights: arguments.weights,
        budget,
        until,
    };
    let Table {
        copied,
        rows,
        left,
        failures,
    } = rows::measure(&client, &choice)?;
    print!("{}", table::summary(&rows));
    result["copy_bytes_per_second"] = copied.into();
    result["rows"] = rows.iter().map(Row::json).collect();
    result["rows_left_out"] = left.into();
    result["failures"] = failures.clone().into();
    write(arguments.json, &result)?;
    match failures.is_empty() {
        true => Ok(()),
        false => Err(format!("{} rows failed", failures.len()).into()),
    }
}

/// Replaces the file, if there is to be one.
fn write(file: Option<PathBuf>, result: &Value) -> Result<(), Box<dyn std::error::Error>> {
    if let Some(file) = file {
        let unfinished = file.with_extension("unfinished");
        std::fs::write(&unfinished, serde_json::to_string_pretty(result)?)?;
        std::fs::rename(&unfinished, &file)?;
    }
    Ok(())
}
