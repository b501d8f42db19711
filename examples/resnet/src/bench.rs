//! `bench`: what the layer is worth in this network.

use std::time::Instant;

use anyhow::{Result, ensure};
use burn::module::Module;
use burn::optim::{GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, Distribution, Int, Tensor};
use burn_batchnorm::Memory;
use serde::Serialize;

use crate::baseline::Baseline;
use crate::cli::BenchArgs;
use crate::model::{ResNet, ResNetConfig};
use crate::table;
use crate::train::optimizer;

/// A network to time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// With this project's batch norm.
    Ours,
    /// Without any: folded.
    Without,
    /// With burn-nn's batch norm, a ReLU and an addition.
    BurnNn,
    /// With this project's and leaky ReLUs of 0.01.
    Leaky,
    /// The same, and batch norms that keep their outputs and not their inputs.
    InPlace,
}

impl Network {
    /// As the command line has it.
    fn name(self) -> String {
        let value = clap::ValueEnum::to_possible_value(&self);
        value.map_or_else(String::new, |value| value.get_name().to_string())
    }

    /// Of that many channels in the first stage.
    fn config(self, width: usize) -> ResNetConfig {
        ResNetConfig {
            width,
            folded: self == Self::Without,
            slope: match self {
                Self::Leaky | Self::InPlace => 0.01,
                _ => 0.0,
            },
            memory: match self {
                Self::InPlace => Memory::Output,
                _ => Memory::Input,
            },
            ..ResNetConfig::default()
        }
    }
}

/// The time of one network.
#[derive(Debug, Clone, Serialize)]
pub struct Timed {
    /// `inference` or `training step`.
    pub pass: &'static str,
    /// Images in the batch.
    pub batch: usize,
    /// Which network.
    pub network: Network,
    /// Milliseconds for a batch, the median of the rounds.
    pub milliseconds: f64,
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
        // A device that failed shows at the next read.
        let _ = device.sync();
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

/// What a network does with the images.
fn inference(network: Network, width: usize, images: &Tensor<4>) -> Result<Pass<'_>> {
    let device = images.device();
    // The read ends the pass: a GPU's work is only queued before.
    let read = |logits: Tensor<2>| {
        std::hint::black_box(logits.into_data());
    };
    if network == Network::BurnNn {
        let model = Baseline::new(&network.config(width), &device);
        return Ok(Box::new(move || read(model.forward(images.clone()))));
    }
    let mut config = network.config(width);
    let fold = std::mem::take(&mut config.folded);
    let model = config.init(&device);
    let model = if fold { model.fold()? } else { model };
    Ok(Box::new(move || read(model.forward(images.clone()))))
}

/// A step of training on the images, which are on an autodiff device.
fn training(network: Network, width: usize, images: &Tensor<4>) -> Pass<'_> {
    let device = images.device();
    let config = network.config(width);
    if network == Network::BurnNn {
        let mut trainee = Trainee::new(Baseline::new(&config, &device), Baseline::forward);
        return Box::new(move || trainee.step(images.clone(), &device));
    }
    let mut trainee = Trainee::new(config.init(&device), ResNet::forward);
    Box::new(move || trainee.step(images.clone(), &device))
}

/// Times the networks on random images.
///
/// # Errors
///
/// If the device is unknown.
pub fn timed(args: &BenchArgs) -> Result<Vec<Timed>> {
    let device = mnist::device::resolve(&args.device)?.device();
    let mut rows = Vec::new();
    for &batch in &args.batches {
        let shape = [batch, 3, args.size, args.size];
        let images =
            |device: &Device| Tensor::<4>::random(shape, Distribution::Normal(0.0, 1.0), device);
        let (plain, tracked) = (images(&device), images(&device.clone().autodiff()));
        let networks = || args.networks.iter().copied();
        let mut add = |pass, mut passes: Vec<Pass<'_>>| {
            let times = medians(&mut passes, args.rounds);
            rows.extend(networks().zip(times).map(|(network, milliseconds)| Timed {
                pass,
                batch,
                network,
                milliseconds,
            }));
        };
        let passes = networks().map(|network| inference(network, args.width, &plain));
        add("inference", passes.collect::<Result<_>>()?);
        let passes = networks().map(|network| training(network, args.width, &tracked));
        add("training step", passes.collect());
    }
    Ok(rows)
}

/// Runs the command; returns what to print.
pub fn run(args: &BenchArgs) -> Result<String> {
    // The last stage has a 32nd of the pixels a side.
    let pixels = args.size.div_ceil(32).pow(2);
    ensure!(
        args.batches.iter().all(|batch| batch * pixels > 1),
        "expected batches of 2 images and more of {} pixels a side: the last stage has one pixel, and batch norm \
         trains on several values",
        args.size
    );
    let rows = timed(args)?;
    if args.json {
        return Ok(serde_json::to_string_pretty(&rows)? + "\n");
    }
    let head = ["pass", "batch", "network", "milliseconds"].map(str::to_string);
    let rows = rows.into_iter().map(|row| {
        [
            row.pass.to_string(),
            row.batch.to_string(),
            row.network.name(),
            format!("{:.1}", row.milliseconds),
        ]
    });
    Ok(table(std::iter::once(head).chain(rows)))
}
