//! Running statistics across saves, loads, copies and workers.

use std::thread;

use batchnorm_tests::case::{Tensors, serialize};
use batchnorm_tests::devices;
use burn::module::{Module, ModuleMapper, Param};
use burn::optim::{GradientsParams, SgdConfig};
use burn::store::ModuleRecord;
use burn::tensor::{Bytes, Device, Shape, Tensor, TensorData};
use burn_batchnorm::{BatchNorm, BatchNormConfig};
use burn_store::{ModuleSnapshot, PyTorchToBurnAdapter, SafetensorsStore};

use crate::common::{random, vector};

const CHANNELS: usize = 3;

fn layer(device: &Device) -> BatchNorm {
    BatchNormConfig::new(CHANNELS).init(&device.clone().autodiff())
}

fn step(layer: &BatchNorm, batch: usize, seed: u64) {
    let device = layer.gamma.device();
    layer.forward(random([batch, CHANNELS], seed, &device) * 3.0 + 1.0);
}

type Statistics = (Vec<f64>, Vec<f64>, u64);

fn statistics(layer: &BatchNorm) -> Statistics {
    (
        vector(layer.running_mean.value()),
        vector(layer.running_var.value()),
        layer.num_batches_tracked.value(),
    )
}

/// The statistics after one batch of `batch` values from `seed`, from a fresh layer.
fn after_one(device: &Device, batch: usize, seed: u64) -> Statistics {
    let layer = layer(device);
    step(&layer, batch, seed);
    statistics(&layer)
}

fn assert_near(got: &Statistics, mean: &[f64], variance: &[f64], count: u64) {
    for (got, expected) in got.0.iter().chain(&got.1).zip(mean.iter().chain(variance)) {
        assert!((got - expected).abs() < 1e-6, "{got} != {expected}");
    }
    assert_eq!(got.2, count);
}

#[test]
fn a_record_taken_right_after_a_step_holds_that_step() {
    for (name, device) in devices::all() {
        let trained = layer(&device);
        step(&trained, 8, 1);
        step(&trained, 8, 2);

        let bytes: Bytes = trained.clone().into_record().into_bytes().expect("bytes");
        let record = ModuleRecord::from_bytes(bytes).expect("a record");
        assert_eq!(record.len(), 5, "{name}");
        let loaded = layer(&device).load_record(record);

        assert_eq!(statistics(&loaded), statistics(&trained), "{name}");
        assert_eq!(loaded.num_batches_tracked.value(), 2, "{name}");
    }
}

#[test]
fn loaded_values_are_not_overwritten_by_an_older_update() {
    for (name, device) in devices::all() {
        let source = layer(&device);
        step(&source, 8, 1);
        let record = source.clone().into_record();

        let target = layer(&device);
        step(&target, 8, 2);
        let target = target.load_record(record);
        assert_eq!(statistics(&target), statistics(&source), "{name}");
        assert_eq!(statistics(&target.valid()), statistics(&source), "{name}");
        // burn-nn would merge the parked update of seed 2 here.
        target.running_mean.value_sync();
        assert_eq!(statistics(&target), statistics(&source), "{name}");
    }
}

#[test]
fn an_update_is_visible_to_inference_at_once() {
    let device = Device::flex();
    let trained = layer(&device);
    step(&trained, 8, 1);
    let x = random([2, CHANNELS], 3, &device.clone().autodiff());
    let frozen = trained.clone().freeze();
    let expected = trained.valid().forward(x.clone().inner());
    assert_eq!(vector(frozen.forward(x)), vector(expected));
}

#[test]
fn a_clone_and_its_source_do_not_change_each_other() {
    let device = Device::flex();
    let source = layer(&device);
    let copy = source.clone();
    step(&copy, 8, 1);
    assert_eq!(statistics(&source), statistics(&layer(&device)));
    let of_copy = statistics(&copy);
    step(&source, 8, 2);
    step(&source, 8, 3);
    assert_eq!(statistics(&copy), of_copy);
}

/// Blends a model into a moving average, as an averaged model does.
struct Average {
    new: Vec<Vec<f32>>,
}

impl ModuleMapper for Average {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let new = self.new.remove(0);
        param.map(|old| {
            let new = Tensor::<1>::from_floats(new.as_slice(), &old.device()).reshape(old.shape());
            old * 0.9 + new * 0.1
        })
    }
}

#[test]
fn averaging_into_a_copy_leaves_the_original_alone() {
    let device = Device::flex();
    let model = layer(&device);
    step(&model, 8, 1);
    let before = statistics(&model);
    for copy in [
        model.clone(),
        model.clone().to_device(&device),
        model.clone().fork(&device.clone().autodiff()),
        model.valid(),
    ] {
        let copy = copy.map(&mut Average {
            new: vec![vec![5.0; CHANNELS]; 4],
        });
        assert_ne!(statistics(&copy).0, before.0);
        assert_eq!(statistics(&model), before);
    }
}

/// One step of Burn's multi-device training: the main thread clones the model for each worker, the
/// worker forks the clone onto its device and trains on its part.
fn multi_device_step(model: &BatchNorm, batches: &[(usize, u64)]) {
    let clones: Vec<_> = batches.iter().map(|_| model.clone()).collect();
    for (clone, &(batch, seed)) in clones.into_iter().zip(batches) {
        thread::spawn(move || {
            let device = clone.gamma.device();
            step(&clone.fork(&device), batch, seed);
        })
        .join()
        .expect("the worker");
    }
}

#[test]
fn what_workers_observe_reaches_the_main_model_as_one_batch() {
    for (_, device) in devices::all() {
        let (a, b) = (after_one(&device, 8, 1), after_one(&device, 24, 2));
        let weighted = |a: &[f64], b: &[f64]| -> Vec<f64> {
            a.iter().zip(b).map(|(a, b)| a * 0.25 + b * 0.75).collect()
        };
        let (mean, variance) = (weighted(&a.0, &b.0), weighted(&a.1, &b.1));

        for batches in [[(8, 1), (24, 2)], [(24, 2), (8, 1)]] {
            let main = layer(&device);
            multi_device_step(&main, &batches);
            assert_near(&statistics(&main), &mean, &variance, 1);
        }
    }
}

#[test]
fn steps_of_workers_follow_each_other() {
    let device = Device::flex();
    let main = layer(&device);
    multi_device_step(&main, &[(8, 1)]);
    multi_device_step(&main, &[(8, 2)]);

    let alone = layer(&device);
    step(&alone, 8, 1);
    step(&alone, 8, 2);
    let expected = statistics(&alone);
    assert_near(&statistics(&main), &expected.0, &expected.1, 2);
}

#[test]
fn a_fork_that_goes_on_training_adds_its_changes() {
    let device = Device::flex();
    let main = layer(&device);
    let worker = main.clone().fork(&main.gamma.device());
    step(&worker, 8, 1);
    assert_eq!(statistics(&main), statistics(&worker));
    step(&worker, 8, 2);
    let expected = statistics(&worker);
    assert_near(&statistics(&main), &expected.0, &expected.1, 2);
}

#[test]
fn a_fork_of_a_model_that_is_gone_keeps_its_own_statistics() {
    let device = Device::flex();
    let worker = {
        let main = layer(&device);
        main.clone().fork(&main.gamma.device())
    };
    step(&worker, 8, 1);
    assert_eq!(statistics(&worker), after_one(&device, 8, 1));
}

#[test]
fn threads_that_share_a_layer_lose_no_update() {
    let device = Device::flex();
    let shared = layer(&device);
    thread::scope(|scope| {
        for seed in 0..4 {
            let shared = &shared;
            scope.spawn(move || (0..25).for_each(|_| step(shared, 8, seed)));
        }
    });
    assert_eq!(shared.num_batches_tracked.value(), 100);
    // Every batch has a mean within 1 of 1, and 100 updates leave 3e-5 of the start.
    let (mean, _, _) = statistics(&shared);
    assert!(
        mean.iter().all(|mean| (-2.5..4.5).contains(mean)),
        "{mean:?}"
    );
}

#[test]
fn an_optimizer_step_leaves_the_statistics_as_they_are() {
    for (name, device) in devices::all() {
        let model = layer(&device);
        let device = model.gamma.device();
        let y = model.forward(random([8, CHANNELS], 1, &device));
        let before = statistics(&model);
        let gradients = (y * random([8, CHANNELS], 2, &device)).sum().backward();
        let gradients = GradientsParams::from_grads(gradients, &model);
        let gamma = vector(model.gamma.val());
        let model = SgdConfig::new().init().step(0.1, model, gradients);
        assert_ne!(vector(model.gamma.val()), gamma, "{name}");
        assert_eq!(statistics(&model), before, "{name}");
    }
}

#[test]
fn moving_to_another_device_takes_the_statistics_along() {
    let devices = devices::all();
    let (_, first) = &devices[0];
    let model = layer(first);
    step(&model, 8, 1);
    let expected = statistics(&model);
    for (name, device) in &devices {
        let moved = model.clone().to_device(device);
        assert_eq!(statistics(&moved), expected, "{name}");
        assert_eq!(&moved.running_mean.value().device(), device, "{name}");
        assert_eq!(moved.devices(), vec![device.clone()], "{name}");
    }
}

#[test]
fn statistics_are_recorded_only_where_they_are_kept() {
    let device = Device::flex();
    let names = |config: BatchNormConfig| config.init(&device).into_record().len();
    let config = || BatchNormConfig::new(CHANNELS);
    assert_eq!(names(config()), 5);
    assert_eq!(names(config().with_running_stats(false)), 2);
    assert_eq!(names(config().with_scale(false)), 4);
    assert_eq!(names(config().with_scale(false).with_shift(false)), 3);
}

#[test]
fn a_parameter_that_is_off_is_not_trained_nor_unfrozen() {
    let device = Device::flex().autodiff();
    let model = BatchNormConfig::new(CHANNELS)
        .with_scale(false)
        .init(&device)
        .freeze()
        .unfreeze();
    assert!(!model.gamma.is_require_grad());
    assert!(model.beta.is_require_grad());
    assert!(!model.valid().train().gamma.is_require_grad());
    assert_eq!(model.num_params(), 3 * CHANNELS);
}

/// PyTorch's state dict of `torch.nn.BatchNorm1d(3)`, as `safetensors.torch.save_file` writes it.
fn pytorch_file() -> Vec<u8> {
    let vector = |values: [f32; CHANNELS]| TensorData::from(values);
    let tensors = Tensors::from([
        ("weight".to_string(), vector([1.5, -0.5, 2.0])),
        ("bias".to_string(), vector([0.1, 0.2, 0.3])),
        ("running_mean".to_string(), vector([-1.0, 0.0, 4.0])),
        ("running_var".to_string(), vector([0.5, 2.0, 3.0])),
        (
            "num_batches_tracked".to_string(),
            TensorData::new(vec![7i64], Shape::new([])),
        ),
    ]);
    serialize(&tensors, None).expect("a file")
}

#[test]
fn a_pytorch_file_loads_with_one_documented_call() {
    let mut model = layer(&Device::flex());
    let store = || {
        SafetensorsStore::from_bytes(Some(pytorch_file())).with_from_adapter(PyTorchToBurnAdapter)
    };
    let result = model
        .load_from(&mut store().allow_partial(true))
        .expect("loaded");
    assert_eq!(result.missing.len(), 1, "{result:?}");
    assert_eq!(vector(model.gamma.val()), [1.5, -0.5, 2.0]);
    assert_eq!(
        statistics(&model),
        (vec![-1.0, 0.0, 4.0], vec![0.5, 2.0, 3.0], 0)
    );
    // Without the call, the file's lack of a counter in our shape is an error and not a surprise.
    let error = layer(&Device::flex()).load_from(&mut store()).unwrap_err();
    assert!(error.to_string().contains("batches_tracked"), "{error}");
}
