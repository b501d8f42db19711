//! `train`: the network on Fashion-MNIST or a relative of it.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use burn::module::Module;
use burn::nn::loss::CrossEntropyLossConfig;
use burn::optim::decay::WeightDecayConfig;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{GradientsParams, ModuleOptimizer, SgdConfig};
use burn::tensor::{Device, Int, Tensor, TensorData};
use indicatif::{ProgressBar, ProgressStyle};
use mnist::data::{CLASSES, Dataset, Images, SIDE};
use mnist::history::{EpochRow, History};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::cli::TrainArgs;
use crate::model::{ResNet, ResNetConfig};
use crate::weights;

/// What a run writes.
const WEIGHTS: &str = "resnet18.safetensors";
const METRICS: &str = "metrics.csv";
const CURVES: &str = "learning-curves.png";

/// Mean and deviation of the pixels of Fashion-MNIST.
const MEAN: f32 = 0.286;
const DEVIATION: f32 = 0.353;

/// What a pixel is as an input.
pub fn standardised(pixel: u8) -> f32 {
    (f32::from(pixel) / 255.0 - MEAN) / DEVIATION
}

/// The optimizer of the paper: stochastic gradient descent with momentum 0.9 and weight decay 1e-4.
pub fn optimizer() -> ModuleOptimizer {
    // Burn dampens by 0.1 where nothing is said.
    let momentum = MomentumConfig::new().with_dampening(0.0);
    let decay = WeightDecayConfig::new(1e-4);
    SgdConfig::new()
        .with_momentum(Some(momentum))
        .with_weight_decay(Some(decay))
        .init()
}

/// One step. Returns the network after it, and the logits and the mean cross entropy before it.
///
/// # Shapes
///
/// - `images`: `[batch, channels, height, width]`, on an autodiff device
/// - `labels`: `[batch]`, each a class
pub fn step(
    model: ResNet,
    optimizer: &mut ModuleOptimizer,
    images: Tensor<4>,
    labels: Tensor<1, Int>,
    learning_rate: f64,
) -> (ResNet, Tensor<2>, Tensor<1>) {
    let logits = model.forward(images);
    let cross_entropy = CrossEntropyLossConfig::new().init(&logits.device());
    let loss = cross_entropy.forward(logits.clone(), labels);
    let gradients = GradientsParams::from_grads(loss.backward(), &model);
    let model = optimizer.step(learning_rate, model, gradients);
    (model, logits.detach(), loss.detach())
}

/// Images and labels of some positions.
fn batch(images: &Images, at: &[usize], device: &Device) -> (Tensor<4>, Tensor<1, Int>) {
    let size = SIDE * SIDE;
    let pixels = at
        .iter()
        .flat_map(|at| &images.pixels[at * size..(at + 1) * size])
        .map(|pixel| standardised(*pixel));
    let pixels = TensorData::new(pixels.collect(), [at.len(), 1, SIDE, SIDE]);
    let labels = at.iter().map(|at| i32::from(images.labels[*at]));
    let labels = TensorData::new(labels.collect(), [at.len()]);
    (
        Tensor::from_data(pixels, device),
        Tensor::from_data(labels, device),
    )
}

/// Sums over images: of the loss, of the right answers, of the images.
#[derive(Default)]
struct Sums {
    loss: f64,
    right: f64,
    images: f64,
}

impl Sums {
    fn add(&mut self, logits: Tensor<2>, loss: Tensor<1>, labels: Tensor<1, Int>) {
        let [images, _] = logits.dims();
        let right = logits.argmax(1).reshape([images]).equal(labels).int().sum();
        self.right += right.into_data().iter::<f64>().sum::<f64>();
        self.loss += images as f64 * loss.into_data().iter::<f64>().sum::<f64>();
        self.images += images as f64;
    }

    /// Loss and share of right answers.
    fn means(&self) -> (f64, f64) {
        (self.loss / self.images, self.right / self.images)
    }
}

fn evaluated(model: &ResNet, images: &Images, batch_size: usize, device: &Device) -> (f64, f64) {
    let all: Vec<usize> = (0..images.labels.len()).collect();
    let mut sums = Sums::default();
    for at in all.chunks(batch_size) {
        let (inputs, labels) = batch(images, at, device);
        let logits = model.forward(inputs);
        let cross_entropy = CrossEntropyLossConfig::new().init(device);
        let loss = cross_entropy.forward(logits.clone(), labels.clone());
        sums.add(logits, loss, labels);
    }
    sums.means()
}

/// Runs the command; returns what to print.
pub fn run(args: &TrainArgs) -> Result<String> {
    let device = mnist::device::resolve(&args.device)?.device();
    let training = device.clone().autodiff();
    let data = Dataset::load(&args.data)?;
    ensure!(
        args.batch_size > 1 && args.batch_size <= data.train.labels.len(),
        "expected a batch size of 2 to {}, the number of images, got {}: batch norm needs several",
        data.train.labels.len(),
        args.batch_size
    );
    let present = |name: &str| args.out.join(name).exists();
    if !present(WEIGHTS)
        && let Some(name) = [METRICS, CURVES].into_iter().find(|name| present(name))
    {
        bail!(
            "expected in {} nothing, or what an earlier run left there, found {name} without {WEIGHTS}: choose another folder by --out",
            args.out.display()
        );
    }
    std::fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot create the folder {}", args.out.display()))?;
    let config = ResNetConfig {
        width: args.width,
        inputs: 1,
        classes: CLASSES,
        ..ResNetConfig::default()
    };
    training.seed(args.seed);
    let mut model = config.init(&training);
    let mut optimizer = optimizer();
    let mut random = ChaCha8Rng::seed_from_u64(args.seed);
    let mut order: Vec<usize> = (0..data.train.labels.len()).collect();
    let mut history = History::default();
    for epoch in 1..=args.epochs {
        order.shuffle(&mut random);
        // A short last batch waits for the next epoch: other images are in it then.
        let batches: Vec<_> = order.chunks_exact(args.batch_size).collect();
        let bar = bar(batches.len(), epoch, args.epochs);
        let start = Instant::now();
        let mut sums = Sums::default();
        for at in batches {
            let (images, labels) = batch(&data.train, at, &training);
            let (trained, logits, loss) =
                step(model, &mut optimizer, images, labels.clone(), args.lr);
            model = trained;
            sums.add(logits, loss, labels);
            bar.set_message(format!("loss {:.4}", sums.means().0));
            bar.inc(1);
        }
        bar.finish_and_clear();
        let seconds = start.elapsed().as_secs_f64();
        let (train_loss, train_accuracy) = sums.means();
        ensure!(
            train_loss.is_finite(),
            "the loss is {train_loss} in epoch {epoch}: try a smaller --lr than {}",
            args.lr
        );
        let (loss, accuracy) = evaluated(&model.valid(), &data.test, args.batch_size, &device);
        let row = EpochRow {
            epoch,
            train_loss,
            train_accuracy,
            valid_loss: Some(loss),
            valid_accuracy: Some(accuracy),
            train_seconds: seconds,
            train_images_per_second: sums.images / seconds,
        };
        mnist::note(&row.line(args.epochs));
        history.rows.push(row);
    }
    written(args, &model.valid(), &history)
}

fn written(args: &TrainArgs, model: &ResNet, history: &History) -> Result<String> {
    let file = |name: &str| -> PathBuf { args.out.join(name) };
    weights::save(model, &file(WEIGHTS))?;
    history.save(&file(METRICS))?;
    let last = history.rows.last().context("expected at least one epoch")?;
    let test = (
        last.valid_loss.unwrap_or(f64::NAN),
        last.valid_accuracy.unwrap_or(f64::NAN),
    );
    mnist::plots::learning_curves(&file(CURVES), history, test)?;
    Ok(format!(
        "test loss {:.4}, accuracy {:.2}%; weights, metrics and the picture are in {}\n",
        test.0,
        100.0 * test.1,
        args.out.display()
    ))
}

fn bar(steps: usize, epoch: usize, epochs: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {msg} {eta}");
    let bar = ProgressBar::new(steps as u64);
    // The template above is constant.
    bar.set_style(style.expect("a template"));
    bar.set_prefix(format!("epoch {epoch}/{epochs}"));
    bar
}
