//! Burn's own training loop, on one device and on two: statistics against those computed by hand from
//! the same batches.

use std::sync::Arc;

use burn::data::dataloader::batcher::Batcher;
use burn::data::dataloader::{DataLoader, DataLoaderBuilder};
use burn::data::dataset::InMemDataset;
use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::optim::SgdConfig;
use burn::tensor::{Device, Tensor};
use burn::train::logger::{EvaluationProgressLogger, TrainingProgressLogger};
use burn::train::metric::MetricDefinition;
use burn::train::renderer::{
    EvaluationName, MetricState, MetricsRenderer, MetricsRendererEvaluation,
    MetricsRendererTraining,
};
use burn::train::{
    ExecutionStrategy, InferenceStep, Learner, MultiDeviceOptim, SupervisedTraining, TrainOutput,
    TrainStep,
};
use burn_batchnorm::{BatchNorm, BatchNormConfig};

use crate::common::vector;

const ITEMS: usize = 64;
const BATCH: usize = 8;
const CHANNELS: usize = 2;
const MOMENTUM: f64 = 0.2;

macro_rules! network {
    ($name:ident, $layer:ty) => {
        #[derive(Module, Debug)]
        struct $name {
            norm: $layer,
            output: Linear,
        }

        impl $name {
            fn forward(&self, batch: Tensor<2>) -> Tensor<2> {
                self.output.forward(self.norm.forward(batch))
            }
        }

        impl TrainStep for $name {
            type Input = Tensor<2>;
            type Output = ();

            fn step(&self, batch: Tensor<2>) -> TrainOutput<()> {
                let error = self.forward(batch.clone()) - target(batch);
                let gradients = (error.clone() * error).mean().backward();
                TrainOutput::new(self, gradients, ())
            }
        }

        impl InferenceStep for $name {
            type Input = Tensor<2>;
            type Output = ();

            fn step(&self, batch: Tensor<2>) {
                self.forward(batch);
            }
        }
    };
}

network!(Ours, BatchNorm);
network!(Theirs, burn::nn::BatchNorm);

fn ours(device: &Device) -> Ours {
    Ours {
        norm: BatchNormConfig::new(CHANNELS)
            .with_momentum(MOMENTUM)
            .init(device),
        output: LinearConfig::new(CHANNELS, 1).init(device),
    }
}

/// Values of item `index`, none like another.
fn values(index: usize) -> [f32; CHANNELS] {
    let value = |salt: usize| ((index * 37 + salt * 11) % 101) as f32 / 10.0;
    [value(1), value(5)]
}

/// What the network learns: 1 where the first value is large.
fn target(batch: Tensor<2>) -> Tensor<2> {
    let rows = batch.dims()[0];
    batch.slice([0..rows, 0..1]).greater_elem(5.0).float()
}

/// The share of all items that a trained network gets right in inference, by running statistics.
fn accuracy(network: &Ours) -> f64 {
    let all = Items.batch((0..ITEMS).collect(), &Device::flex());
    let answers = network.valid().forward(all.clone()).greater_elem(0.5);
    let right = answers.equal(target(all).greater_elem(0.5)).float();
    vector(right).iter().sum::<f64>() / ITEMS as f64
}

struct Items;

impl Batcher<usize, Tensor<2>> for Items {
    fn batch(&self, items: Vec<usize>, device: &Device) -> Tensor<2> {
        let values: Vec<f32> = items.into_iter().flat_map(values).collect();
        Tensor::<1>::from_floats(values.as_slice(), device).reshape([-1, CHANNELS as i32])
    }
}

fn loader(device: &Device) -> Arc<dyn DataLoader<Tensor<2>>> {
    DataLoaderBuilder::new(Items)
        .batch_size(BATCH)
        .set_device(device.clone())
        .build(InMemDataset::new((0..ITEMS).collect()))
}

struct Silent;

impl MetricsRendererTraining for Silent {
    fn update_train(&mut self, _: MetricState) {}
    fn update_valid(&mut self, _: MetricState) {}
}

impl MetricsRendererEvaluation for Silent {
    fn update_test(&mut self, _: EvaluationName, _: MetricState) {}
}

impl TrainingProgressLogger for Silent {
    fn start(&mut self, _: usize, _: usize, _: Option<usize>, _: Option<&str>) {}
    fn update_epoch(&mut self, _: usize) {}
    fn start_split(&mut self, _: &str, _: usize) {}
    fn update_split(&mut self, _: usize) {}
    fn end_split(&mut self) {}
    fn end(&mut self) {}
    fn log_event_training(&mut self, _: String) {}
}

impl EvaluationProgressLogger for Silent {
    fn start_global_progress(&mut self, _: usize) {}
    fn start_test(&mut self, _: &str, _: usize) {}
    fn update_test_progress(&mut self, _: usize) {}
    fn end_test(&mut self) {}
    fn end_global_progress(&mut self) {}
    fn log_event_evaluation(&mut self, _: String) {}
}

impl MetricsRenderer for Silent {
    fn manual_close(&mut self) {}
    fn register_metric(&mut self, _: MetricDefinition) {}
}

struct Run {
    epochs: usize,
    resume: Option<usize>,
    accumulation: usize,
    workers: usize,
}

impl Run {
    fn new(workers: usize) -> Self {
        Self {
            epochs: 2,
            resume: None,
            accumulation: 1,
            workers,
        }
    }

    fn train<M>(&self, folder: &std::path::Path, strategy: ExecutionStrategy, model: M) -> M
    where
        M: Module
            + core::fmt::Display
            + TrainStep<Input = Tensor<2>, Output = ()>
            + InferenceStep<Input = Tensor<2>, Output = ()>
            + 'static,
    {
        let device = strategy.main_device().clone();
        let mut training = SupervisedTraining::new(
            folder,
            loader(&device.clone().autodiff()),
            loader(&device.inner()),
        )
        .with_training_strategy(strategy.into())
        .with_application_logger(None)
        .with_default_checkpointers()
        .renderer(Box::new(Silent))
        .grads_accumulation(self.accumulation)
        .num_epochs(self.epochs);
        if let Some(epoch) = self.resume {
            training = training.checkpoint(epoch);
        }
        let result = training.launch(Learner::new(model, SgdConfig::new().init(), 0.2));
        if let Some(error) = &result.error {
            panic!("{error}");
        }
        result.model
    }

    /// The running statistics by their definition: every step enters the average of its workers.
    fn expected(&self) -> ([f64; CHANNELS], [f64; CHANNELS], u64) {
        let (mut mean, mut variance, mut count) = ([0.0; CHANNELS], [1.0; CHANNELS], 0);
        let shard = ITEMS / self.workers;
        for _ in 0..self.epochs {
            for step in 0..shard / BATCH {
                for channel in 0..CHANNELS {
                    let (mut batch_mean, mut batch_variance) = (0.0, 0.0);
                    for worker in 0..self.workers {
                        let start = worker * shard + step * BATCH;
                        let batch: Vec<f64> = (start..start + BATCH)
                            .map(|index| f64::from(values(index)[channel]))
                            .collect();
                        let n = BATCH as f64;
                        let m = batch.iter().sum::<f64>() / n;
                        let v = batch.iter().map(|x| (x - m).powi(2)).sum::<f64>() / (n - 1.0);
                        batch_mean += m / self.workers as f64;
                        batch_variance += v / self.workers as f64;
                    }
                    let blend = |old: &mut f64, new: f64| *old += MOMENTUM * (new - *old);
                    blend(&mut mean[channel], batch_mean);
                    blend(&mut variance[channel], batch_variance);
                }
                count += 1;
            }
        }
        (mean, variance, count)
    }

    fn check(&self, norm: &BatchNorm) {
        let (mean, variance, count) = self.expected();
        let got = vector(norm.running_mean.value());
        let got = got
            .iter()
            .chain(&vector(norm.running_var.value()))
            .copied()
            .collect::<Vec<_>>();
        for (got, expected) in got.iter().zip(mean.iter().chain(&variance)) {
            assert!(
                (got - expected).abs() < 1e-4 * (1.0 + expected),
                "{got} != {expected}"
            );
        }
        assert_eq!(norm.num_batches_tracked.value(), count);
    }
}

fn strategies() -> Vec<(usize, ExecutionStrategy)> {
    let flex = || vec![Device::flex(), Device::flex()];
    vec![
        (1, ExecutionStrategy::single(Device::flex())),
        (
            2,
            ExecutionStrategy::multi(flex(), MultiDeviceOptim::OptimMainDevice),
        ),
        (
            2,
            ExecutionStrategy::multi(flex(), MultiDeviceOptim::OptimSharded),
        ),
    ]
}

/// Fault S1, with burn-train's strategies: statistics by hand, and validation as on one device. The
/// model that went in is kept, as in a cross-validation,
/// and stays as it was.
#[test]
fn every_strategy_enters_each_step_once() {
    for (workers, strategy) in strategies() {
        let folder = tempfile::tempdir().expect("a folder");
        let base = ours(&Device::flex().autodiff());
        let run = Run::new(workers);
        let trained = run.train(folder.path(), strategy, base.clone());
        run.check(&trained.norm);
        let right = accuracy(&trained);
        assert!(right > 0.85, "{workers} workers: {right}");
        assert_eq!(base.norm.num_batches_tracked.value(), 0);
        assert_eq!(vector(base.norm.running_mean.value()), [0.0; CHANNELS]);

        // The record of the last epoch holds the last step.
        let file = folder.path().join("checkpoint").join("model-2.bpk");
        let saved = ours(&Device::flex()).load_file(file);
        let statistics = |norm: &BatchNorm| {
            (
                vector(norm.running_mean.value()),
                vector(norm.running_var.value()),
            )
        };
        assert_eq!(statistics(&saved.norm), statistics(&trained.norm));
    }
}

#[test]
fn accumulated_gradients_enter_every_batch() {
    for (workers, strategy) in strategies() {
        let folder = tempfile::tempdir().expect("a folder");
        let run = Run {
            accumulation: 4,
            ..Run::new(workers)
        };
        let base = ours(&Device::flex().autodiff());
        let trained = run.train(folder.path(), strategy, base);
        run.check(&trained.norm);
    }
}

/// Fault D1: a run that began with burn-nn's layer goes on with ours. The optimizer's record goes by
/// the ids of parameters, so this is the whole checkpoint and not the model alone.
#[test]
fn a_run_of_burn_nn_is_resumed_after_the_swap() {
    let folder = tempfile::tempdir().expect("a folder");
    let device = Device::flex().autodiff();
    let theirs = Theirs {
        norm: burn::nn::BatchNormConfig::new(CHANNELS)
            .with_momentum(MOMENTUM)
            .init(&device),
        output: LinearConfig::new(CHANNELS, 1).init(&device),
    };
    let first = Run {
        epochs: 1,
        ..Run::new(1)
    };
    let theirs = first.train(
        folder.path(),
        ExecutionStrategy::single(Device::flex()),
        theirs,
    );
    let mean = vector(theirs.norm.running_mean.value_sync());

    let config = BatchNormConfig::burn(CHANNELS).with_momentum(MOMENTUM);
    let ours = Ours {
        norm: config.init(&device),
        output: LinearConfig::new(CHANNELS, 1).init(&device),
    };
    let second = Run {
        resume: Some(1),
        ..Run::new(1)
    };
    let ours = second.train(
        folder.path(),
        ExecutionStrategy::single(Device::flex()),
        ours,
    );
    assert_eq!(
        ours.norm.num_batches_tracked.value(),
        (ITEMS / BATCH) as u64
    );
    // One more epoch of the same batches, from where the first ended.
    let keep = (1.0 - MOMENTUM).powi((ITEMS / BATCH) as i32);
    for (got, first) in vector(ours.norm.running_mean.value()).iter().zip(&mean) {
        let expected = keep * first + first;
        assert!(
            (got - expected).abs() < 1e-4 * expected,
            "{got} != {expected}"
        );
    }
}
