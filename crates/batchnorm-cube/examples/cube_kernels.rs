//! Times forward and backward of the suite's shapes against a plain vectorised copy on the same device:
//!
//! ```text
//! cargo run --release -p batchnorm-cube --example cube_kernels -- [NAME_PART] [--weights] [--json FILE]
//! ```
//!
//! With `--weights`, of positions with weights that channels share, every third of which is 0.
//!
//! A row gives, for a forward and for a backward with all gradients, the median time, the number of launches and
//!
//! - `x of passes`: the bytes that the launches move as a multiple of what the passes move in theory (x twice and y; x and dy twice and dx;
//!   and each vector of one value per channel once). The partial results of channels that are split over the grid are what exceeds 1.
//! - `% of copy`: bytes per second as a share of the copy's. It exceeds 100 where caches serve a second pass.

#[path = "../tests/kernels/training.rs"]
mod training;

use std::time::{Duration, Instant};

use batchnorm_cube::*;
use cubecl::Device;
use cubecl::prelude::*;
use cubecl::server::Handle;
use cubecl::wgpu::WgpuDeviceKind;
use serde_json::{Value, json};
use training::{SHAPES, Training};

/// The yardstick: every unit copies vectors a grid apart.
#[cube(launch_unchecked)]
fn copy<N: Size>(input: &[Vector<f32, N>], output: &mut [Vector<f32, N>], per_unit: usize) {
    let start = CUBE_POS * CUBE_DIM as usize * per_unit + UNIT_POS as usize;
    for k in 0..per_unit {
        let i = start + k * CUBE_DIM as usize;
        if i < input.len() {
            output[i] = input[i];
        }
    }
}

/// The seconds of a copy of `len` values, in the better of two cuts.
fn copy_seconds(client: &Client, x: &Handle, len: usize) -> f64 {
    let y = client.empty(4 * len);
    let vector = if len.is_multiple_of(4) { 4 } else { 1 };
    let vectors = len / vector;
    let seconds = |per_unit: usize| {
        let cubes = vectors.div_ceil(64 * per_unit) as u32;
        let width = cubes.min(65535);
        median(client, || {
            // SAFETY: both buffers have been made for `len` elements, and the kernel compares its indices with that.
            unsafe {
                copy::launch_unchecked(
                    client,
                    CubeCount::Static(width, cubes.div_ceil(width), 1),
                    CubeDim::new_1d(64),
                    vector,
                    BufferArg::from_raw_parts(x.clone(), vectors),
                    BufferArg::from_raw_parts(y.clone(), vectors),
                    per_unit,
                )
            }
        })
    };
    seconds(1).min(seconds(16))
}

/// The median of the seconds of a run. Short ones are issued several at a time, so that waiting for the device is not what is measured.
fn median(client: &Client, mut run: impl FnMut()) -> f64 {
    let mut seconds = |runs: usize| {
        let start = Instant::now();
        (0..runs).for_each(|_| run());
        cubecl::future::block_on(client.sync()).expect("the kernels have run");
        start.elapsed().as_secs_f64() / runs as f64
    };
    let first = (0..3).map(|_| seconds(1)).fold(f64::INFINITY, f64::min);
    let at_a_time = (1e-3 / first).clamp(1.0, 64.0) as usize;
    let budget = Duration::from_millis(400).as_secs_f64();
    let rounds = (budget / (first * at_a_time as f64)).clamp(5.0, 300.0) as usize;
    let mut times: Vec<f64> = (0..rounds).map(|_| seconds(at_a_time)).collect();
    times.sort_by(f64::total_cmp);
    times[rounds / 2]
}

/// What was measured of one operation.
struct Measured {
    seconds: f64,
    launches: Launches,
    /// Bytes moved, as a multiple of what the passes move in theory.
    passes_ratio: f64,
    /// Bytes per second, as a share of the copy's.
    share_of_copy: f64,
}

impl Measured {
    fn new(seconds: f64, launches: Launches, passes: u64, copied: f64) -> Self {
        let bytes = launches.bytes() as f64;
        Self {
            seconds,
            launches,
            passes_ratio: bytes / passes as f64,
            share_of_copy: bytes / seconds / copied,
        }
    }

    fn columns(&self) -> String {
        format!(
            "{:8.3}  {:8}  {:11.3}  {:9.1}",
            self.seconds * 1e3,
            self.launches.count(),
            self.passes_ratio,
            self.share_of_copy * 100.0,
        )
    }

    fn json(&self) -> Value {
        json!({
            "ms": self.seconds * 1e3,
            "launches": self.launches.count(),
            "bytes": self.launches.bytes(),
            "passes_ratio": self.passes_ratio,
            "share_of_copy": self.share_of_copy,
        })
    }
}

fn geometric_mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    (values.map(f64::ln).sum::<f64>() / count).exp()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (mut only, mut file, mut weighted) = (String::new(), None, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--weights" => weighted = true,
            "--json" => file = Some(arguments.next().ok_or("--json needs a FILE")?),
            _ => only = argument,
        }
    }

    let client = Device::wgpu(WgpuDeviceKind::DefaultDevice)?.client();
    let device = &client.properties().identity.name;
    println!("{device}\n{:?}", client.properties().hardware);
    let operation = "ms  launches  x of passes  % of copy";
    println!("shape                 copy GB/s |  fwd {operation} |  bwd {operation}");

    let mut rows = Vec::new();
    let mut measured = Vec::new();
    for (name, shape) in SHAPES.iter().filter(|(name, _)| name.contains(&only)) {
        let problem = Problem::new(Layout::from_shape(shape, 1)?, Element::F32);
        let len = problem.layout.len();
        let values: Vec<u8> = (0..len)
            .flat_map(|i| ((i * 7919 % 1009) as f32 / 500.0).to_ne_bytes())
            .collect();
        let [x, dy] = [(); 2].map(|()| client.create_from_slice(&values));
        let copied = (8 * len) as f64 / copy_seconds(&client, &x, len);

        let weights: Vec<u8> = (0..problem.layout.samples_per_channel())
            .flat_map(|i| f32::to_ne_bytes((i % 3) as f32))
            .collect();
        let weights = client.create_from_slice(&weights);
        let weights = weighted.then_some(Weights::Shared(&weights));
        let step = Training::new(&client, problem, &x, &dy).with_weights(weights);
        let [forward_passes, backward_passes] = step.passes();
        let mut launches = Launches::default();
        let seconds = median(&client, || launches = step.forward());
        let forward = Measured::new(seconds, launches, forward_passes, copied);
        let seconds = median(&client, || launches = step.backward());
        let backward = Measured::new(seconds, launches, backward_passes, copied);

        println!(
            "{name:20} {:10.1} | {} | {}",
            copied * 1e-9,
            forward.columns(),
            backward.columns()
        );
        rows.push(json!({
            "name": name,
            "shape": shape,
            "device": device,
            "copy_bytes_per_second": copied,
            "forward": forward.json(),
            "backward": backward.json(),
        }));
        measured.push([forward, backward]);
    }
    if measured.is_empty() {
        return Err(format!("no shape has `{only}` in its name").into());
    }

    let most = measured.as_flattened().iter().map(|m| m.passes_ratio);
    let [forward, backward] =
        [0, 1].map(|k| 100.0 * geometric_mean(measured.iter().map(|pair| pair[k].share_of_copy)));
    println!(
        "{} shapes: at most {:.3} x of passes; in the geometric mean {forward:.1} and {backward:.1} % of copy",
        measured.len(),
        most.fold(0.0, f64::max),
    );
    if let Some(file) = file {
        let unfinished = format!("{file}.unfinished");
        std::fs::write(&unfinished, serde_json::to_string_pretty(&rows)?)?;
        std::fs::rename(&unfinished, &file)?;
    }
    Ok(())
}
