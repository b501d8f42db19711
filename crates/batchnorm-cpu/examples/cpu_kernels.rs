//! Times the training kernels into warm memory and compares them with the bandwidth of copying.
//!
//! `cargo run --release --example cpu_kernels [-- FILTER] [--channels-last] [--half]`
//!
//! The floor of a pass is the time that a parallel copy takes to move the bytes that it must: x and y for the forward pass (2 tensors), x, dy and dx
//! for the backward pass (3). Copy and kernels alternate, medians of all rounds are printed. `RAYON_NUM_THREADS` sets the number of threads.

use std::time::{Duration, Instant};

use batchnorm_cpu::{
    Affine, BatchStatistics, Element, Epilogue, Gradients, Layout, Normalization, Saved,
    Statistics, Stream, backward, normalize, train_forward,
};
use half::bf16;
use rayon::prelude::*;

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

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e3
}

fn copy<E: Element>(from: &[E], to: &mut [E]) {
    const PART: usize = 1 << 16;
    match from.len() {
        0..PART => to.copy_from_slice(from),
        _ => {
            let part = from.len().div_ceil(rayon::current_num_threads() * 4);
            to.par_chunks_mut(part)
                .zip(from.par_chunks(part))
                .for_each(|(to, from)| to.copy_from_slice(from));
        }
    }
}

fn values<E: Element<Accum = f32>>(n: usize, seed: u32) -> Vec<E> {
    let mut state = seed;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            E::from_accum((state >> 8) as f32 / (1 << 24) as f32 - 0.5)
        })
        .collect()
}

fn bench<E: Element<Accum = f32>>(name: &str, layout: Layout) {
    let (n, channels) = (layout.elements(), layout.channels());
    let (x, dy) = (values::<E>(n, 1), values::<E>(n, 2));
    let (mut y, mut dx) = (values::<E>(n, 3), values::<E>(n, 4));
    let (gamma, beta) = (vec![1.0; channels], vec![0.0; channels]);
    let [mut mean, mut variance, mut inv_std, mut dgamma, mut dbeta] =
        std::array::from_fn(|_| vec![0.0; channels]);
    let [mut copies, mut forwards, mut backwards, mut inferences] = [const { Vec::new() }; 4];
    let started = Instant::now();
    // A short call is repeated within a measurement, because the clock itself takes some 30 nanoseconds.
    let repeat = (20_000 / n.max(1)).clamp(1, 100);
    while copies.len() < 15
        || (started.elapsed() < Duration::from_millis(1500) && copies.len() < 2000)
    {
        let time = |times: &mut Vec<Duration>, f: &mut dyn FnMut()| {
            let start = Instant::now();
            (0..repeat).for_each(|_| f());
            times.push(start.elapsed() / repeat as u32);
        };
        time(&mut copies, &mut || copy(&x, &mut y));
        time(&mut forwards, &mut || {
            let out = BatchStatistics {
                mean: &mut mean,
                mean_low: None,
                variance: &mut variance,
                inv_std: &mut inv_std,
            };
            let affine = Affine {
                gamma: &gamma,
                beta: &beta,
            };
            train_forward(
                layout,
                Stream::new(&x, &mut y),
                affine,
                1e-5,
                Epilogue::default(),
                out,
            )
            .expect("valid");
        });
        time(&mut backwards, &mut || {
            let saved = Saved {
                gamma: &gamma,
                beta: &beta,
                mean: &mean,
                mean_low: None,
                inv_std: &inv_std,
                statistics: Statistics::OfBatch,
            };
            let out = Gradients {
                residual: None,
                gamma: Some(&mut dgamma),
                beta: Some(&mut dbeta),
            };
            backward(
                layout,
                &x,
                Stream::new(&dy, &mut dx),
                saved,
                Epilogue::default(),
                out,
            )
            .expect("valid");
        });
        time(&mut inferences, &mut || {
            let params = Normalization {
                mean: &mean,
                scale: &gamma,
                shift: &beta,
            };
            normalize(layout, Stream::new(&x, &mut y), params, Epilogue::default()).expect("valid");
        });
    }
    let (copy, forward, backward) = (median(copies), median(forwards), median(backwards));
    let inference = median(inferences);
    let (floor_forward, floor_backward) = (copy, copy * 1.5);
    println!(
        "{name:<22} {copy:>9.4} {forward:>9.4} {:>6.2} {backward:>9.4} {:>6.2} {inference:>9.4} {:>6.2}   {:>6.1} GB/s copied",
        forward / floor_forward,
        backward / floor_backward,
        inference / floor_forward,
        2.0 * size_of_val(&x[..]) as f64 / copy / 1e6,
    );
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let flag = |name: &str| args.iter().any(|a| a == name);
    let filter = args.iter().find(|a| !a.starts_with("--"));
    println!(
        "{} threads; medians in ms; x = multiple of the floor",
        rayon::current_num_threads()
    );
    println!(
        "{:<22} {:>9} {:>9} {:>6} {:>9} {:>6} {:>9} {:>6}",
        "shape", "copy", "forward", "x", "backward", "x", "inference", "x"
    );
    let mut shapes: Vec<(Vec<usize>, usize)> = SHAPES.iter().map(|s| (s.to_vec(), 1)).collect();
    if flag("--channels-last") {
        for (shape, axis) in &mut shapes {
            let channels = shape.remove(1);
            shape.push(channels);
            *axis = shape.len() - 1;
        }
    }
    if flag("--inner") {
        shapes = [
            1usize, 2, 3, 4, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 48, 49, 63, 64, 65, 100, 128, 196,
        ]
        .iter()
        .map(|&inner| (vec![32, (1usize << 20).div_ceil(32 * inner), inner], 1))
        .collect();
    }
    for (shape, axis) in shapes {
        let name = format!("{shape:?}");
        if filter.is_some_and(|f| !name.contains(f.as_str())) {
            continue;
        }
        let layout = Layout::from_shape(&shape, axis).expect("valid");
        match flag("--half") {
            true => bench::<bf16>(&name, layout),
            false => bench::<f32>(&name, layout),
        }
    }
}
