//! Times the training kernels into warm memory and compares them with the bandwidth of copying.
//!
//! ```text
//! cargo run --release --example cpu_kernels -- ['[32, 64, 7, 7]' ..] [--channels-last | --inner] [--dtype f32|f64|f16|bf16] [--epilogue [add-]none|relu|silu|gelu|gelu-tanh|hard-swish|sigmoid|tanh]
//!     [--weights] [--ramp | --odd-channel] [--size MAGNITUDE]
//! ```
//!
//! The floor of a pass is the time that a parallel copy takes to move the bytes that it must: x and y for the forward pass (2 tensors), x, dy and dx
//! for the backward pass (3). Copy and kernels alternate, medians of all rounds are printed. `RAYON_NUM_THREADS` sets the number of threads.

use std::time::{Duration, Instant};

use batchnorm_cpu::{
    Accum, Activation, Affine, Element, Epilogue, Given, Gradients, InOut, Layout, Saved,
    Statistics, Weights, backward, backward_weighted, normalize, train, train_weighted,
};
use half::{bf16, f16};
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

/// How long a shape is measured.
const DURATION: Duration = Duration::from_millis(1000);

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

fn values<E: Element>(n: usize, seed: u32, value: impl Fn(usize, f64) -> f64) -> Vec<E> {
    let mut state = seed;
    (0..n)
        .map(|i| {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            let random = f64::from(state >> 8) / f64::from(1 << 24) - 0.5;
            E::from_accum(E::Accum::from_f64(value(i, random)))
        })
        .collect()
}

/// Which values the tensors have, and what follows the normalization.
#[derive(Clone, Copy)]
struct Options {
    /// Every row of the batch is brighter than the one before it.
    ramp: bool,
    /// One channel is.
    odd_channel: bool,
    /// Magnitudes.
    size: f64,
    activation: Activation,
    residual: bool,
    /// Whether a training step with weights is timed too.
    weights: bool,
}

fn bench<E: Element>(name: &str, layout: Layout, options: Options) {
    let (n, channels) = (layout.elements(), layout.channels());
    let row = n / layout.outer();
    let brightness = |i: usize| {
        let odd = options.odd_channel && i / layout.inner() % channels == channels / 2;
        if options.ramp || odd {
            10.0 * (i / row) as f64
        } else {
            0.0
        }
    };
    let x = values::<E>(n, 1, |i, v| v * options.size + brightness(i));
    let dy = values::<E>(n, 2, |_, v| v * options.size);
    let skip = options.residual.then(|| values::<E>(n, 5, |_, v| v));
    let (mut y, mut dx) = (values::<E>(n, 3, |_, v| v), values::<E>(n, 4, |_, v| v));
    let mut skip_grad = skip.clone();
    let one = |value: f64| vec![E::Accum::from_f64(value); channels];
    let (gamma, beta) = (one(1.0), one(0.0));
    let affine = Affine {
        gamma: &gamma,
        beta: &beta,
    };
    let epilogue = Epilogue {
        residual: skip.as_deref(),
        activation: options.activation,
    };
    let mut saved = vec![E::Accum::from_f64(0.0); 4 * channels];
    let [mut gamma_grad, mut beta_grad] = [one(0.0), one(0.0)];
    // Three of four positions count, in all channels alike.
    let positions = 0..layout.samples_per_channel();
    let weights: Vec<E::Accum> = positions
        .map(|i| E::Accum::from_f64(if i % 4 == 3 { 0.0 } else { 1.0 }))
        .collect();
    let (mut weighted, mut sums) = (Vec::new(), one(0.0));
    let [mut copies, mut forwards, mut backwards, mut inferences] = [const { Vec::new() }; 4];
    let started = Instant::now();
    // A short call is repeated within a measurement, because the clock itself takes some 30 nanoseconds.
    let repeat = (20_000 / n.max(1)).clamp(1, 100);
    while copies.len() < 15 || (started.elapsed() < DURATION && copies.len() < 2000) {
        let time = |times: &mut Vec<Duration>, f: &mut dyn FnMut()| {
            let start = Instant::now();
            (0..repeat).for_each(|_| f());
            times.push(start.elapsed() / repeat as u32);
        };
        time(&mut copies, &mut || copy(&x, &mut y));
        time(&mut forwards, &mut || {
            let out = Statistics::split_mut(&mut saved, channels).expect("four vectors");
            let x = InOut::new(&x, &mut y);
            train(layout, x, affine, 1e-5, epilogue, out).expect("valid");
        });
        time(&mut backwards, &mut || {
            let statistics = Statistics::split(&saved, channels).expect("four vectors");
            let out = Gradients {
                residual: skip_grad.as_mut().map(Into::into),
                gamma: Some(&mut gamma_grad),
                beta: Some(&mut beta_grad),
            };
            let dy = InOut::new(&dy, &mut dx);
            backward(
                layout,
                &x,
                dy,
                Saved::Batch(statistics),
                affine,
                epilogue,
                out,
            )
            .expect("valid");
        });
        if options.weights {
            time(&mut weighted, &mut || {
                let weights = Weights::Shared(&weights);
                let out = Statistics::split_mut(&mut saved, channels).expect("four vectors");
                let y = InOut::new(&x, &mut y);
                train_weighted(layout, y, weights, affine, 1e-5, epilogue, out, &mut sums)
                    .expect("valid");
                let statistics = Statistics::split(&saved, channels).expect("four vectors");
                let saved = Saved::Batch(statistics);
                let out = Gradients {
                    residual: skip_grad.as_mut().map(Into::into),
                    gamma: Some(&mut gamma_grad),
                    beta: Some(&mut beta_grad),
                };
                let dy = InOut::new(&dy, &mut dx);
                backward_weighted(layout, &x, weights, dy, saved, &sums, affine, epilogue, out)
                    .expect("valid");
            });
        }
        time(&mut inferences, &mut || {
            let statistics = Statistics::split(&saved, channels).expect("four vectors");
            let given = Given {
                mean: statistics.mean,
                mean_lo: None,
                variance: statistics.variance,
                epsilon: 1e-5,
            };
            normalize(layout, InOut::new(&x, &mut y), given, affine, epilogue).expect("valid");
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
    if options.weights {
        let (weighted, plain) = (median(weighted), forward + backward);
        println!(
            "{:<22} {weighted:>9.4} ms forward + backward, {:.2} times the plain ones",
            "  weighted",
            weighted / plain
        );
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let flag = |name: &str| args.iter().any(|a| a == name);
    let after = |name: &str| {
        let at = args.iter().position(|a| a == name)?;
        args.get(at + 1).cloned()
    };
    let epilogue = after("--epilogue").unwrap_or_default();
    let options = Options {
        ramp: flag("--ramp"),
        odd_channel: flag("--odd-channel"),
        size: after("--size").map_or(1.0, |s| s.parse().expect("a number")),
        activation: match epilogue.trim_start_matches("add-") {
            "relu" => Activation::Relu,
            "silu" => Activation::Silu,
            "gelu" => Activation::Gelu,
            "gelu-tanh" => Activation::GeluTanh,
            "hard-swish" => Activation::HardSwish,
            "sigmoid" => Activation::Sigmoid,
            "tanh" => Activation::Tanh,
            _ => Activation::None,
        },
        residual: epilogue.starts_with("add-"),
        weights: flag("--weights"),
    };
    println!(
        "{} threads; medians in ms; x = multiple of the floor",
        rayon::current_num_threads()
    );
    println!(
        "{:<22} {:>9} {:>9} {:>6} {:>9} {:>6} {:>9} {:>6}",
        "shape", "copy", "forward", "x", "backward", "x", "inference", "x"
    );
    let wanted: Vec<Vec<usize>> = args
        .iter()
        .filter_map(|a| a.strip_prefix('[')?.strip_suffix(']'))
        .map(|list| {
            let lengths = list.split(',').map(|n| n.trim().parse());
            lengths.collect::<Result<_, _>>().expect("[32, 64, 7, 7]")
        })
        .collect();
    let mut shapes: Vec<(Vec<usize>, usize)> = match wanted.is_empty() {
        true => SHAPES.iter().map(|s| (s.to_vec(), 1)).collect(),
        false => wanted.into_iter().map(|s| (s, 1)).collect(),
    };
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
        let layout = Layout::from_shape(&shape, axis).expect("valid");
        let run = match after("--dtype").as_deref() {
            Some("f64") => bench::<f64>,
            Some("f16") => bench::<f16>,
            Some("bf16") => bench::<bf16>,
            _ => bench::<f32>,
        };
        run(&name, layout, options);
    }
}
