//! What batch norm adds to a training step of the article's network: forward, cross-entropy,
//! backward, Adam, with the layer, with burn-nn's, and without.
//!
//! ```text
//! cargo run --release -p batchnorm-benches --bin step -- [--device flex] [--json]
//! ```
//!
//! The three take turns, one step each; times are the medians. The allocator is the example's. On a GPU the parts of a step are when they
//! were queued, only the whole is when they were done.

use std::time::{Duration, Instant};

use batchnorm_benches::random;
use burn::module::Module;
use burn::nn::loss::{CrossEntropyLoss, CrossEntropyLossConfig};
use burn::nn::{Linear, LinearConfig};
use burn::optim::{AdamConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Int, Tensor};
use clap::Parser;
use serde::Serialize;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Times a training step with and without batch norm.
#[derive(Debug, Parser)]
struct Arguments {
    /// Device of the example
    #[arg(long, default_value = "flex")]
    device: String,
    /// Time for each network
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Print JSON and nothing else
    #[arg(long)]
    json: bool,
}

/// Inputs -> hidden, ReLU -> normalization or none -> 10 classes.
#[derive(Module, Debug)]
struct Network {
    hidden: Linear,
    ours: Option<burn_batchnorm::BatchNorm>,
    theirs: Option<burn::nn::BatchNorm>,
    output: Linear,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Norm {
    None,
    Ours,
    Theirs,
}

impl Network {
    fn new(inputs: usize, hidden: usize, norm: Norm, device: &Device) -> Self {
        let ours = burn_batchnorm::BatchNormConfig::new(hidden);
        let theirs = burn::nn::BatchNormConfig::new(hidden);
        Self {
            hidden: LinearConfig::new(inputs, hidden).init(device),
            ours: (norm == Norm::Ours).then(|| ours.init(device)),
            theirs: (norm == Norm::Theirs).then(|| theirs.init(device)),
            output: LinearConfig::new(hidden, 10).init(device),
        }
    }

    fn forward(&self, images: Tensor<2>) -> Tensor<2> {
        let mut hidden = relu(self.hidden.forward(images));
        if let Some(norm) = &self.ours {
            hidden = norm.forward(hidden);
        }
        if let Some(norm) = &self.theirs {
            hidden = norm.forward(hidden);
        }
        self.output.forward(hidden)
    }
}

/// One network in training.
struct Training {
    network: Option<Network>,
    optimizer: ModuleOptimizer,
    loss: CrossEntropyLoss,
    times: Vec<[Duration; 3]>,
}

impl Training {
    fn step(&mut self, images: Tensor<2>, labels: Tensor<1, Int>) {
        let device = images.device();
        let network = self.network.take().expect("put back after each step");
        let start = Instant::now();
        let loss = self.loss.forward(network.forward(images), labels);
        let forward = start.elapsed();
        let gradients = loss.backward();
        let backward = start.elapsed() - forward;
        let gradients = GradientsParams::from_grads(gradients, &network);
        self.network = Some(self.optimizer.step(1e-3, network, gradients));
        device.sync().expect("a device that works");
        let optimizer = start.elapsed() - forward - backward;
        self.times.push([forward, backward, optimizer]);
    }

    fn medians(&self) -> Step {
        let median = |time: &dyn Fn(&[Duration; 3]) -> Duration| {
            let mut times: Vec<Duration> = self.times.iter().map(time).collect();
            times.sort();
            times[times.len() / 2].as_secs_f64() * 1e6
        };
        Step {
            us: median(&|parts| parts.iter().sum()),
            forward_us: median(&|parts| parts[0]),
            backward_us: median(&|parts| parts[1]),
            optimizer_us: median(&|parts| parts[2]),
        }
    }
}

/// Medians of a step and of its parts, microseconds.
#[derive(Debug, Serialize)]
struct Step {
    us: f64,
    forward_us: f64,
    backward_us: f64,
    optimizer_us: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    device: String,
    inputs: usize,
    hidden: usize,
    batch: usize,
    without: Step,
    ours: Step,
    burn_nn: Step,
}

fn measure(arguments: &Arguments, device: &Device, sizes: [usize; 3]) -> Report {
    let [inputs, hidden, batch] = sizes;
    let images = random([batch, inputs], 1, device);
    let labels: Vec<i64> = (0..batch).map(|image| (image * 7 % 10) as i64).collect();
    let labels = Tensor::<1, Int>::from_data(labels.as_slice(), device);
    let mut trainings = [Norm::None, Norm::Ours, Norm::Theirs].map(|norm| Training {
        network: Some(Network::new(inputs, hidden, norm, device)),
        optimizer: AdamConfig::new().init(),
        loss: CrossEntropyLossConfig::new().init(device),
        times: Vec::new(),
    });
    let turn = |trainings: &mut [Training]| {
        for training in trainings {
            training.step(images.clone(), labels.clone());
        }
    };
    // A GPU compiles and tunes its kernels in the first steps, which can take minutes.
    const WARM_UP: usize = 10;
    (0..WARM_UP).for_each(|_| turn(&mut trainings));
    trainings
        .iter_mut()
        .for_each(|training| training.times.clear());
    let start = Instant::now();
    while start.elapsed().as_secs_f64() < arguments.seconds {
        turn(&mut trainings);
    }
    let [without, ours, burn_nn] = trainings.each_ref().map(Training::medians);
    Report {
        device: arguments.device.clone(),
        inputs,
        hidden,
        batch,
        without,
        ours,
        burn_nn,
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    let device = mnist::device::resolve(&arguments.device)?.device();
    let device = device.autodiff();
    // The article's network, and the larger one on whole images.
    let reports = [[100, 50, 32], [784, 50, 32], [784, 512, 256]]
        .map(|sizes| measure(&arguments, &device, sizes));
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&reports)?);
        return Ok(());
    }
    println!(
        "{:<22}{:<10}{:>10}{:>10}{:>10}{:>10}{:>10}",
        "network, batch", "norm", "step us", "cost", "forward", "backward", "optimizer"
    );
    for report in reports {
        let network = format!("{}-{}-10, {}", report.inputs, report.hidden, report.batch);
        for (norm, step) in [
            ("none", &report.without),
            ("ours", &report.ours),
            ("burn-nn", &report.burn_nn),
        ] {
            let cost = (step.us / report.without.us - 1.0) * 100.0;
            println!(
                "{network:<22}{norm:<10}{:>10.1}{cost:>+9.1}%{:>10.1}{:>10.1}{:>10.1}",
                step.us, step.forward_us, step.backward_us, step.optimizer_us
            );
        }
    }
    Ok(())
}
