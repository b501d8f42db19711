//! Running statistics across saves, loads, copies and workers.

use batchnorm_tests::case::{Tensors, parse_tensors, serialize};
use batchnorm_tests::devices;
use burn::module::{Module, ModuleMapper, Param};
use burn::optim::{GradientsParams, SgdConfig};
use burn::store::ModuleRecord;
use burn::tensor::{Bytes, DType, Device, Shape, Tensor, TensorData};
use burn_batchnorm::{Averaging, BatchNorm, BatchNormConfig, NonFinite, RunningState};
use burn_store::{BurnToPyTorchAdapter, ModuleSnapshot, PyTorchToBurnAdapter, SafetensorsStore};

use crate::common::{assert_close, random, tolerance, vector};

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

#[test]
fn a_record_taken_right_after_a_step_holds_that_step() {
    for (name, device) in devices::all() {
        let trained = layer(&device);
        step(&trained, 8, 1);
        step(&trained, 8, 2);

        let bytes: Bytes = trained.clone().into_record().into_bytes().expect("bytes");
        let record = ModuleRecord::from_bytes(bytes).expect("a record");
        assert_eq!(record.len(), 4, "{name}");
        let loaded = layer(&device).load_record(record);

        let (mean, variance, _) = statistics(&loaded);
        assert_eq!((mean, variance, 2), statistics(&trained), "{name}");
    }
}

#[test]
fn loaded_values_are_not_overwritten_by_an_older_update() {
    for (name, device) in devices::all() {
        // Cumulative, so that the count is recorded too.
        let layer = || {
            BatchNormConfig::new(CHANNELS)
                .with_averaging(Averaging::Cumulative)
                .init(&device.clone().autodiff())
        };
        let source = layer();
        step(&source, 8, 1);
        let record = source.clone().into_record();
        assert_eq!(record.len(), 5, "{name}");

        let target = layer();
        step(&target, 8, 2);
        step(&target, 8, 3);
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
    assert_eq!(names(config()), 4);
    assert_eq!(names(config().with_averaging(Averaging::Cumulative)), 5);
    assert_eq!(names(config().with_running_stats(false)), 2);
    assert_eq!(names(config().with_scale(false)), 3);
    assert_eq!(names(config().with_scale(false).with_shift(false)), 2);
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
fn a_pytorch_file_loads_as_it_is() {
    let mut model = layer(&Device::flex());
    let mut store =
        SafetensorsStore::from_bytes(Some(pytorch_file())).with_from_adapter(PyTorchToBurnAdapter);
    let result = model.load_from(&mut store).expect("loaded");
    assert_eq!(result.missing.len(), 0, "{result:?}");
    assert_eq!(vector(model.gamma.val()), [1.5, -0.5, 2.0]);
    assert_eq!(
        statistics(&model),
        (vec![-1.0, 0.0, 4.0], vec![0.5, 2.0, 3.0], 0)
    );
}

/// Fault D3: PyTorch's strict load takes these keys and no others.
#[test]
fn a_file_for_pytorch_has_its_keys_and_no_others() {
    let model = layer(&Device::flex());
    let mut store = SafetensorsStore::from_bytes(None).with_to_adapter(BurnToPyTorchAdapter);
    model.save_into(&mut store).expect("saved");
    let bytes = store.get_bytes().expect("the file");
    let names: Vec<_> = parse_tensors(&bytes).expect("a file").into_keys().collect();
    assert_eq!(names, ["bias", "running_mean", "running_var", "weight"]);
}

/// Casts every parameter, as a user's mapper does.
struct Cast(DType);

impl ModuleMapper for Cast {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let requires_grad = param.is_require_grad();
        param.map(|tensor| {
            let tensor = tensor.cast(self.0).detach();
            tensor.set_require_grad(requires_grad)
        })
    }
}

/// Moves every parameter, as a user's mapper does.
struct Move(Device);

impl ModuleMapper for Move {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|tensor| tensor.to_device(&self.0))
    }
}

/// What the layer counts besides its parameters goes where they go.
#[test]
fn a_mapper_can_move_a_layer() {
    for (name, device) in devices::all() {
        let config = BatchNormConfig::new(CHANNELS).with_non_finite(NonFinite::Skip);
        let layer = config.init(&Device::flex());
        let here = Device::flex().autodiff();
        layer.forward(Tensor::<2>::full([4, CHANNELS], f32::NAN, &here));
        let moved = layer.clone().map(&mut Move(device.clone()));
        for seed in 1..3 {
            layer.forward(random([8, CHANNELS], seed, &here));
            moved.forward(random([8, CHANNELS], seed, &device.clone().autodiff()));
        }
        let (got, expected) = (moved.running_var.value(), layer.running_var.value());
        assert_close(name, &got.into_data(), &expected.into_data(), 1e-5);
        assert_eq!(vector(moved.skipped_updates()), [1.0; CHANNELS], "{name}");
    }
}

/// Fault S8: in bf16 itself the mean would stop at 5.34.
#[test]
fn statistics_of_a_half_record_go_on_in_f32() {
    let device = Device::flex().autodiff();
    let layer = BatchNormConfig::new(1).with_momentum(0.01).init(&device);
    let record = layer.clone().map(&mut Cast(DType::BF16)).into_record();
    let layer = layer.load_record(record);
    assert_eq!(layer.gamma.dtype(), DType::BF16);
    let batch = Tensor::<2>::from_floats([[9.0], [11.0]], &device).cast(DType::BF16);
    for _ in 0..100 {
        assert_eq!(layer.forward(batch.clone()).dtype(), DType::BF16);
    }
    assert_eq!(layer.running_mean.value().dtype(), DType::F32);
    let [mean] = vector(layer.running_mean.value())[..] else {
        panic!("one channel");
    };
    assert!((mean - 6.3397).abs() < 1e-4, "{mean}");
}

/// Fault S9: the variance of the batch overflows f16.
#[test]
fn a_half_variance_does_not_overflow() {
    let device = Device::flex().autodiff();
    let mut layer = BatchNormConfig::new(1).with_momentum(0.5).init(&device);
    layer.running_var = RunningState::new(Tensor::<1>::ones([1], &device).cast(DType::F16));
    let batch = Tensor::<2>::from_floats([[-400.0], [400.0]], &device).cast(DType::F16);
    layer.forward(batch);
    assert_eq!(vector(layer.running_var.value()), [160_000.5]);
}

/// Whole models are cast for inference and back, whatever the configuration.
#[test]
fn a_model_that_is_cast_takes_inputs_of_its_type() {
    for scale in [true, false] {
        let device = Device::flex().autodiff();
        let layer = BatchNormConfig::new(CHANNELS)
            .with_scale(scale)
            .init(&device);
        step(&layer, 8, 1);
        let x = random([4, CHANNELS], 2, &device);
        let expected = layer.clone().freeze().forward(x.clone()).into_data();
        for dtype in [DType::F64, DType::F16, DType::BF16, DType::F32] {
            let cast = layer.clone().map(&mut Cast(dtype));
            let x = x.clone().cast(dtype);
            let y = cast.clone().freeze().forward(x.clone());
            assert_eq!(y.dtype(), dtype);
            let tolerance = tolerance(dtype).0.max(1e-6) * 3.0;
            let y = y.cast(DType::F32).into_data();
            assert_close(
                &format!("{dtype:?}, scale {scale}"),
                &y,
                &expected,
                tolerance,
            );

            let y = cast.forward(x);
            let gradients = (y.clone() * y).sum().backward();
            assert_eq!(cast.gamma.grad(&gradients).is_some(), scale);
            if scale {
                let gamma = cast.gamma.grad(&gradients).expect("a gradient");
                assert_eq!(gamma.dtype(), dtype);
            }
        }
    }
}

/// A field that somebody replaced is a value like any other, from the next step on.
#[test]
fn replaced_statistics_are_used_and_updated() {
    let device = Device::flex().autodiff();
    let constant = |value: f32| RunningState::new(Tensor::full([CHANNELS], value, &device));
    let mut layer = layer(&Device::flex());
    layer.running_mean = constant(10.0);
    let frozen = layer.clone().freeze();
    let y = vector(frozen.forward(Tensor::<2>::full([2, CHANNELS], 10.0, &device)));
    assert_eq!(y, [0.0; 2 * CHANNELS]);

    let batch = Tensor::<2>::from_floats([[1.0; CHANNELS], [3.0; CHANNELS]], &device);
    layer.forward(batch.clone());
    let (mean, variance, count) = statistics(&layer);
    assert!((mean[0] - 9.2).abs() < 1e-6 && (variance[0] - 1.1).abs() < 1e-6);
    assert_eq!(count, 1);
    layer.running_var = constant(4.0);
    let layer = layer.clone();
    layer.forward(batch);
    let (mean, variance, count) = statistics(&layer);
    assert!((mean[0] - 8.48).abs() < 1e-5 && (variance[0] - 3.8).abs() < 1e-6);
    assert_eq!(count, 2);
}
