//! Times of work on the device, and the copy that they are held against.

use std::time::Instant;

use cubecl::prelude::*;
use cubecl::server::Handle;

use crate::check::check_copy;

/// Median seconds of one run among many.
#[derive(Clone, Copy)]
pub struct Seconds {
    /// By the device's own clock, where it has one.
    pub device: f64,
    /// Between the first launch and the end of the last, on the host: longer where the host is what the device waits for.
    pub host: f64,
}

/// Times `run`, which gets the number of the run, for about `budget` seconds, but five times at least.
///
/// Short runs are issued several at a time, so that waiting for the device is not what is measured.
pub fn time(client: &Client, budget: f64, mut run: impl FnMut(usize) + Send) -> Seconds {
    let sync = || cubecl::future::block_on(client.sync()).expect("the kernels have run");
    let mut next = 0;
    let mut runs = |count: usize| {
        for _ in 0..count {
            run(next);
            next += 1;
        }
    };
    // The first compiles.
    runs(1);
    sync();
    let start = Instant::now();
    runs(2);
    sync();
    let first = start.elapsed().as_secs_f64() / 2.0;
    let at_a_time = (1e-3 / first).clamp(1.0, 64.0) as usize;

    let (mut device, mut host) = (Vec::new(), Vec::new());
    let start = Instant::now();
    while host.len() < 5 || start.elapsed().as_secs_f64() < budget {
        let begin = Instant::now();
        runs(at_a_time);
        sync();
        host.push(begin.elapsed().as_secs_f64() / at_a_time as f64);
        let profile = client.profile(|| runs(at_a_time), "runs");
        let ticks = profile
            .ok()
            .and_then(|((), duration)| cubecl::future::block_on(duration.resolve()));
        device.extend(ticks.map(|ticks| ticks.duration().as_secs_f64() / at_a_time as f64));
    }
    let host = median(host);
    Seconds {
        device: match device.is_empty() {
            true => host,
            false => median(device),
        },
        host,
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

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

/// The seconds of a copy of so many bytes between two of the pairs of buffers, in the best of some cuts.
pub fn copy_seconds(
    client: &Client,
    budget: f64,
    buffers: &[[Handle; 2]],
    bytes: usize,
) -> Result<Seconds, String> {
    let vectors = bytes / 16;
    let seconds = |units: u32, per_unit: usize| {
        let cubes = vectors.div_ceil(units as usize * per_unit) as u32;
        let width = cubes.min(65535);
        time(client, budget, |run| {
            let [from, to] = &buffers[run % buffers.len()];
            // SAFETY: the caller's buffers have as many bytes, and the kernel compares its indices with that.
            unsafe {
                copy::launch_unchecked(
                    client,
                    CubeCount::Static(width, cubes.div_ceil(width), 1),
                    CubeDim::new_1d(units),
                    4,
                    BufferArg::from_raw_parts(from.clone(), vectors),
                    BufferArg::from_raw_parts(to.clone(), vectors),
                    per_unit,
                )
            }
        })
    };
    let best = [(64, 1), (64, 16), (256, 1), (256, 4)]
        .map(|(units, per_unit)| seconds(units, per_unit))
        .into_iter()
        .min_by(|a, b| a.device.total_cmp(&b.device))
        .expect("there are four");
    buffers
        .iter()
        .try_for_each(|pair| check_copy(client, pair, bytes / 16 * 16))?;
    Ok(best)
}
