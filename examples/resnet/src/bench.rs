//! `bench`: what the layer is worth in this network.

use std::time::Instant;

use anyhow::Result;
use burn::module::Module;
use burn::optim::{GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, Distribution, Int, Tensor};
use serde::Serialize;

use crate::baseline::Baseline;
use crate::cli::BenchArgs;
use crate::model::{ResNet, ResNetConfig};
use crate::table;
use crate::train::optimizer;

/// Milliseconds of a batch, medians.
#[derive(Debug, Clone, Serialize)]
pub struct Timed {
    /// `inference` or `training step`.
    pub pass: &'static str,
    /// Images in the batch.
    pub batch: usize,
    /// With this project's layer.
    pub ours: f64,
    /// The same network without batch norm: folded.
    pub without: f64,
    /// With burn-nn's layer.
    pub burn_nn: f64,
}

/// A pass over a batch that ends when it has been computed.
type Pass<'a> = Box<dyn FnMut() + 'a>;

/// A network that is trained in place.
struct Trainee<M> {
    model: Option<M>,
    optimizer: ModuleOptimizer,
    forward: fn(&M, Tensor<4>) -> Tensor<2>,
}

impl<M: Module> Trainee<M> {
    fn new(model: M, forward: fn(&M, Tensor<4>) -> Tensor<2>) -> Self {
        Self {
            model: Some(model),
            optimizer: optimizer(),
            forward,
        }
    }

    fn step(&mut self, images: Tensor<4>, device: &Device) {
        let Some(model) = self.model.take() else {
            return;
        };
        let [batch, ..] = images.dims();
        let labels = Tensor::<1, Int>::zeros([batch], device);
        let logits = (self.forward)(&model, images);
        let loss = burn::nn::loss::CrossEntropyLossConfig::new()
            .init(device)
            .forward(logits, labels);
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        self.model = Some(self.optimizer.step(1e-3, model, gradients));
    }
}

/// The median time of each pass in milliseconds, after a warm-up. They take turns, and every round another
/// one is first: what the machine does meanwhile meets all of them.
fn medians(passes: &mut [Pass<'_>], rounds: usize) -> Vec<f64> {
    for pass in passes.iter_mut() {
        pass();
    }
    let count = passes.len();
    let mut times = vec![Vec::with_capacity(rounds); count];
    for turn in 0..rounds * count {
        let pass = (turn + turn / count) % count;
        let start = Instant::now();
        passes[pass]();
        times[pass].push(1e3 * start.elapsed().as_secs_f64());
    }
    let median = |mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    times.into_iter().map(median).collect()
}

/// Times the networks on random images.
///
/// # Errors
///
/// If the device is unknown.
pub fn timed(args: &BenchArgs) -> Result<Vec<Timed>> {
    let device = mnist::device::resolve(&args.device)?.device();
    let training = device.clone().autodiff();
    let config = ResNetConfig {
        width: args.width,
        inputs: 3,
        classes: 1000,
        folded: false,
    };
    let unnormalized = ResNetConfig {
        folded: true,
        ..config.clone()
    };
    let mut rows = Vec::new();
    for &batch in &args.batches {
        let shape = [batch, 3, args.size, args.size];
        let images =
            |device: &Device| Tensor::<4>::random(shape, Distribution::Normal(0.0, 1.0), device);
        let plain = images(&device);
        // The read ends the pass: a GPU's work is only queued before.
        let read = |logits: Tensor<2>| {
            std::hint::black_box(logits.into_data());
        };
        let ours = config.init(&device);
        let folded = config.init(&device).fold()?;
        let theirs = Baseline::new(&config, &device);
        let mut passes: [Pass<'_>; 3] = [
            Box::new(|| read(ours.forward(plain.clone()))),
            Box::new(|| read(folded.forward(plain.clone()))),
            Box::new(|| read(theirs.forward(plain.clone()))),
        ];
        let times = medians(&mut passes, args.rounds);
        drop(passes);
        rows.push(Timed {
            pass: "inference",
            batch,
            ours: times[0],
            without: times[1],
            burn_nn: times[2],
        });

        let images = images(&training);
        let sync = || {
            // A device that failed shows at the next read.
            let _ = device.sync();
        };
        let mut ours = Trainee::new(config.init(&training), ResNet::forward);
        let mut without = Trainee::new(unnormalized.init(&training), ResNet::forward);
        let mut theirs = Trainee::new(Baseline::new(&config, &training), Baseline::forward);
        let mut passes: [Pass<'_>; 3] = [
            Box::new(|| {
                ours.step(images.clone(), &training);
                sync();
            }),
            Box::new(|| {
                without.step(images.clone(), &training);
                sync();
            }),
            Box::new(|| {
                theirs.step(images.clone(), &training);
                sync();
            }),
        ];
        let times = medians(&mut passes, args.rounds);
        drop(passes);
        rows.push(Timed {
            pass: "training step",
            batch,
            ours: times[0],
            without: times[1],
            burn_nn: times[2],
        });
    }
    Ok(rows)
}

/// Runs the command; returns what to print.
pub fn run(args: &BenchArgs) -> Result<String> {
    let rows = timed(args)?;
    if args.json {
        return Ok(serde_json::to_string_pretty(&rows)? + "\n");
    }
    let head = ["milliseconds", "batch", "ours", "without", "burn-nn"].map(str::to_string);
    let rows = rows.into_iter().map(|row| {
        [
            row.pass.to_string(),
            row.batch.to_string(),
            format!("{:.1}", row.ours),
            format!("{:.1}", row.without),
            format!("{:.1}", row.burn_nn),
        ]
    });
    Ok(table(std::iter::once(head).chain(rows)))
}
