//! Weights in and out: the files that `weights/generate.py` had PyTorch, Keras and Flax write.

use std::path::PathBuf;

use batchnorm_tests::case::{Tensors, parse_tensors, serialize};
use batchnorm_tests::devices;
use burn::module::{Module, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig, ConvTranspose2d, ConvTranspose2dConfig};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{DType, Device, Shape, Tensor, TensorData};
use burn_batchnorm::store::{Framework, Reason, WeightsError};
use burn_batchnorm::{Activation, Averaging, BatchNorm, BatchNormConfig};
use burn_store::{ModuleSnapshot, SafetensorsStore};
use rstest::rstest;

use crate::common::{assert_close, random, vector};

#[derive(Module, Debug)]
struct Network {
    conv: Conv2d,
    norm: BatchNorm,
    up: Option<ConvTranspose2d>,
    head: Linear,
}

impl Network {
    /// With the epsilon and the channels of a framework's default layer; NCHW, as burn-nn's layers are.
    fn new(framework: Framework, averaging: Averaging, device: &Device) -> Self {
        let epsilon = match framework {
            Framework::Keras => 1e-3,
            Framework::PyTorch | Framework::Flax => 1e-5,
        };
        let up = ConvTranspose2dConfig::new([4, 5], [3, 3]).with_stride([2, 2]);
        let up = (framework != Framework::Flax).then(|| up.init(device));
        let features = if up.is_some() { 5 } else { 4 };
        Self {
            conv: Conv2dConfig::new([3, 4], [3, 3])
                .with_bias(false)
                .init(device),
            norm: BatchNormConfig::new(4)
                .with_epsilon(epsilon)
                .with_averaging(averaging)
                .init(device),
            up,
            head: LinearConfig::new(features, 2).init(device),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<2> {
        let x = self.norm.forward(self.conv.forward(x));
        let x = match &self.up {
            Some(up) => up.forward(x),
            None => x,
        };
        let [batch, channels, ..] = x.dims();
        let x: Tensor<3> = x.flatten(2, 3);
        self.head.forward(x.mean_dim(2).reshape([batch, channels]))
    }
}

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("weights")
        .join(name)
}

fn tensors(name: &str) -> Tensors {
    parse_tensors(&std::fs::read(path(name)).expect(name)).expect(name)
}

fn pytorch(device: &Device) -> Network {
    Network::new(Framework::PyTorch, Averaging::Cumulative, device)
}

#[rstest]
#[case("pytorch", "pytorch.safetensors", Framework::PyTorch)]
#[case("pytorch", "pytorch.pt", Framework::PyTorch)]
#[case("keras", "keras.safetensors", Framework::Keras)]
#[case("flax_nnx", "flax_nnx.safetensors", Framework::Flax)]
#[case("flax_linen", "flax_linen.safetensors", Framework::Flax)]
fn a_network_computes_what_its_framework_does(
    #[case] output: &str,
    #[case] file: &str,
    #[case] framework: Framework,
) {
    let expected = tensors("expected.safetensors");
    for (name, device) in devices::all() {
        let mut model = Network::new(framework, Averaging::Exponential, &device);
        framework.load(&mut model, path(file)).expect("loaded");
        let x = Tensor::from_data(expected["x"].clone(), &device);
        let y = model.forward(x).into_data();
        assert_close(&format!("{file} on {name}"), &y, &expected[output], 2e-5);
    }
}

/// Keys, shapes, types and bits; the file has a counter of shape `[]` and type int64.
#[rstest]
#[case("pytorch.safetensors", Framework::PyTorch)]
#[case("keras.safetensors", Framework::Keras)]
#[case("flax_nnx.safetensors", Framework::Flax)]
fn what_is_loaded_and_saved_is_the_same_file(#[case] file: &str, #[case] framework: Framework) {
    let folder = tempfile::tempdir().expect("a folder");
    let saved = folder.path().join("saved.safetensors");
    for (name, device) in devices::all() {
        let averaging = match framework {
            Framework::PyTorch => Averaging::Cumulative,
            Framework::Keras | Framework::Flax => Averaging::Exponential,
        };
        let mut model = Network::new(framework, averaging, &device);
        framework.load(&mut model, path(file)).expect("loaded");
        framework.save(&model, &saved).expect("saved");
        let saved = parse_tensors(&std::fs::read(&saved).expect("saved")).expect("a file");
        let expected: Tensors = tensors(file)
            .into_iter()
            .map(|(key, data)| (key.trim_start_matches("sequential/").to_string(), data))
            .collect();
        assert_eq!(saved, expected, "{name}");
    }
}

/// Fault D3: where no counter decides anything there is none, which PyTorch's strict load accepts.
#[test]
fn a_file_for_pytorch_has_its_keys() {
    let folder = tempfile::tempdir().expect("a folder");
    let saved = folder.path().join("saved.safetensors");
    let device = Device::flex();
    let model = Network::new(Framework::PyTorch, Averaging::Exponential, &device);
    Framework::PyTorch.save(&model, &saved).expect("saved");
    let mut expected: Vec<String> = tensors("pytorch.safetensors").into_keys().collect();
    expected.retain(|key| key != "norm.num_batches_tracked");
    let saved = parse_tensors(&std::fs::read(&saved).expect("saved")).expect("a file");
    assert_eq!(saved.into_keys().collect::<Vec<_>>(), expected);
}

/// Fault S11, with burn-store's own store and our adapter.
#[test]
fn a_counter_goes_on_where_pytorch_stopped() {
    let file = Tensors::from([
        ("weight".to_string(), TensorData::from([1f32; 3])),
        ("bias".to_string(), TensorData::from([0f32; 3])),
        (
            "running_mean".to_string(),
            TensorData::from([-1f32, 0.0, 4.0]),
        ),
        (
            "running_var".to_string(),
            TensorData::from([0.5f32, 2.0, 3.0]),
        ),
        (
            "num_batches_tracked".to_string(),
            TensorData::new(vec![7i64], Shape::new([])),
        ),
    ]);
    let file = serialize(&file, None).expect("a file");
    for (name, device) in devices::all() {
        let device = device.autodiff();
        let config = BatchNormConfig::new(3).with_averaging(Averaging::Cumulative);
        let mut layer = config.init(&device);
        let mut store = SafetensorsStore::from_bytes(Some(file.clone()))
            .with_from_adapter(Framework::PyTorch.import());
        let result = layer.load_from(&mut store).expect("loaded");
        assert!(
            result.missing.is_empty() && result.unused.is_empty(),
            "{result}"
        );

        layer.forward(Tensor::<2>::from_floats([[9.0; 3], [11.0; 3]], &device));
        assert_eq!(layer.num_batches_tracked.value(), 8, "{name}");
        let close = |got: Vec<f64>, expected: [f64; 3]| {
            let error = got.iter().zip(expected).map(|(a, b)| (a - b).abs());
            assert!(
                error.fold(0.0, f64::max) < 1e-6,
                "{name}: {got:?}, {expected:?}"
            );
        };
        close(vector(layer.running_mean.value()), [0.375, 1.25, 4.75]);
        close(vector(layer.running_var.value()), [0.6875, 2.0, 2.875]);
    }
}

fn refused(file: &Tensors, device: &Device) -> Vec<(String, Reason)> {
    let mut model = pytorch(device);
    let file = serialize(file, None).expect("a file");
    let mut store = SafetensorsStore::from_bytes(Some(file));
    let before = model.clone().into_record().into_bytes().expect("bytes");
    let error = Framework::PyTorch
        .load_from(&mut model, &mut store)
        .expect_err("refused");
    let after = model.into_record().into_bytes().expect("bytes");
    assert_eq!(&before[..], &after[..], "something was loaded");
    let text = error.to_string();
    let WeightsError::Refused(refusals) = error else {
        panic!("{text}");
    };
    for refusal in &refusals {
        assert!(text.contains(&format!("\n  {refusal}")), "{text}");
    }
    refusals
        .into_iter()
        .map(|refusal| (refusal.key, refusal.reason))
        .collect()
}

#[test]
fn one_error_names_everything_that_is_wrong() {
    let device = Device::flex();
    let mut file = tensors("pytorch.safetensors");
    let count = |count: i64| TensorData::new(vec![count], Shape::new([]));
    file.remove("head.bias");
    file.remove("up.weight");
    file.insert("norm2.weight".to_string(), TensorData::from([1f32; 4]));
    file.insert("fc.num_batches_tracked".to_string(), count(1));
    file.insert("norm.num_batches_tracked".to_string(), count(-1));
    file.insert("norm.weight".to_string(), TensorData::from([1f32; 5]));
    file.insert("norm.bias".to_string(), TensorData::from([1i32; 4]));
    file.insert(
        "norm.running_mean".to_string(),
        TensorData::from([0.0, f32::NAN, f32::INFINITY, 1.0]),
    );
    file.insert(
        "norm.running_var".to_string(),
        TensorData::from([1.0f32, -0.25, 0.0, 1.0]),
    );
    let shape = |dims: &[usize]| Shape::from(dims.to_vec());
    let expected = [
        ("fc.num_batches_tracked", Reason::Extra),
        (
            "head.bias",
            Reason::Missing {
                expected: shape(&[2]),
            },
        ),
        (
            "norm.bias",
            Reason::DType {
                expected: DType::F32,
                got: DType::I32,
            },
        ),
        (
            "norm.num_batches_tracked",
            Reason::Negative { smallest: -1.0 },
        ),
        ("norm.running_mean", Reason::NonFinite { count: 2, of: 4 }),
        ("norm.running_var", Reason::Negative { smallest: -0.25 }),
        (
            "norm.weight",
            Reason::Shape {
                expected: shape(&[4]),
                got: shape(&[5]),
            },
        ),
        ("norm2.weight", Reason::Extra),
        (
            "up.weight",
            Reason::Missing {
                expected: shape(&[4, 5, 3, 3]),
            },
        ),
    ];
    let expected = expected.map(|(key, reason)| (key.to_string(), reason));
    assert_eq!(refused(&file, &device), expected);
}

/// Burn would end the process there, in the middle of loading.
#[test]
fn a_type_that_the_device_lacks_is_refused() {
    let device = devices::by_name("ndarray").expect("a device");
    assert!(!device.supports_dtype(DType::F16));
    let mut file = tensors("pytorch.safetensors");
    let half = TensorData::from([1f32; 4]).convert_dtype(DType::F16);
    file.insert("norm.weight".to_string(), half);
    let expected = Reason::DType {
        expected: DType::F32,
        got: DType::F16,
    };
    assert_eq!(
        refused(&file, &device),
        [("norm.weight".to_string(), expected)]
    );
}

#[test]
fn files_that_are_none_are_errors() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut model = pytorch(&Device::flex());
    for name in ["missing.safetensors", "missing.pt"] {
        let error = Framework::PyTorch.load(&mut model, folder.path().join(name));
        assert!(matches!(error, Err(WeightsError::Store { .. })), "{name}");
    }
    for name in ["damaged.safetensors", "damaged.pt"] {
        let path = folder.path().join(name);
        std::fs::write(&path, b"no weights").expect("written");
        let error = Framework::PyTorch.load(&mut model, path);
        assert!(matches!(error, Err(WeightsError::Store { .. })), "{name}");
    }
    let error = Framework::PyTorch.save(&model, folder.path().join("missing/file.safetensors"));
    assert!(matches!(error, Err(WeightsError::Store { .. })));
}

#[cfg(unix)]
#[test]
fn saved_files_have_the_permissions_of_new_ones_or_of_those_that_they_replace() {
    use std::fs::{self, File, Permissions};
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("a folder");
    let model = pytorch(&Device::flex());
    let mode = |name: &str| {
        let file = folder.path().join(name).metadata().expect("a file");
        file.permissions().mode() & 0o777
    };
    let saved = folder.path().join("model.safetensors");
    let save = || Framework::PyTorch.save(&model, &saved).expect("saved");
    File::create(folder.path().join("any")).expect("created");
    save();
    assert_eq!(mode("model.safetensors"), mode("any"));
    fs::set_permissions(&saved, Permissions::from_mode(0o640)).expect("set");
    save();
    assert_eq!(mode("model.safetensors"), 0o640);
}

#[test]
fn a_layer_of_burn_nn_becomes_ours_and_back() {
    for (name, device) in devices::all() {
        let training = device.clone().autodiff();
        let x = || random([4, 3, 5], 1, &training) * 3.0;
        let theirs = burn::nn::BatchNormConfig::new(3)
            .with_momentum(0.3)
            .init(&training);
        // Parked in burn-nn's layer when it is converted.
        theirs.forward(x());
        let ours = BatchNorm::from(theirs.clone());
        assert_eq!((ours.momentum, ours.epsilon), (0.3, 1e-5));
        assert_eq!(ours.gamma.id, theirs.gamma.id, "optimizers know it by that");
        theirs.forward(x());
        ours.forward(x());
        let theirs = theirs.valid();
        let close = |ours: Tensor<1>, theirs: Tensor<1>| {
            assert_close(name, &ours.into_data(), &theirs.into_data(), 1e-5);
        };
        close(ours.running_mean.value(), theirs.running_mean.value());
        close(ours.running_var.value(), theirs.running_var.value());

        let back = burn::nn::BatchNorm::try_from(ours.clone()).expect("converts");
        let bits = |tensor: Tensor<1>| tensor.into_data();
        assert_eq!(
            bits(back.running_var.value()),
            bits(ours.running_var.value())
        );
        let plain = || random([2, 3], 2, &device);
        let expected = ours.valid().forward(plain()).into_data();
        let y = back.valid().forward(plain()).into_data();
        assert_close(name, &y, &expected, 1e-5);
        // It trains on.
        let gradients = back.forward(x()).sum().backward();
        assert!(back.gamma.grad(&gradients).is_some());
    }
}

/// burn-nn's layer has its statistics in the type of its parameters.
#[test]
fn a_half_layer_becomes_one_of_burn_nn() {
    let device = Device::flex().autodiff();
    let mut layer = BatchNormConfig::new(3).init(&device);
    let half = |tensor: Tensor<1>| Param::from_tensor(tensor.cast(DType::F16).detach());
    (layer.gamma, layer.beta) = (half(layer.gamma.val()), half(layer.beta.val()));
    let x = random([8, 3], 1, &device).cast(DType::F16);
    layer.forward(x.clone());
    let converted = || burn::nn::BatchNorm::try_from(layer.clone()).expect("converts");
    let record = layer.clone().into_record().cast_to_module_dtype();
    let theirs = [converted(), converted().load_record(record)];
    let inferred = layer.valid().forward(x.clone().inner()).into_data();
    let trained = layer.forward(x.clone()).into_data();
    for theirs in theirs {
        let y = theirs.valid().forward(x.clone().inner());
        assert_close("inference", &y.into_data(), &inferred, 1e-3);
        assert_close(
            "training",
            &theirs.forward(x.clone()).into_data(),
            &trained,
            1e-3,
        );
    }
}

#[test]
fn what_burn_nn_cannot_do_is_not_converted() {
    let device = Device::flex();
    let config = BatchNormConfig::keras(3)
        .with_activation(Activation::Relu)
        .with_running_stats(false);
    let error = burn::nn::BatchNorm::try_from(config.init(&device)).expect_err("refused");
    assert_eq!(
        error.options,
        [
            "activation: Relu",
            "channel_axis: -1",
            "running_stats: false"
        ]
    );
    assert!(
        error
            .to_string()
            .contains("no activation: Relu, no channel_axis")
    );
}

/// The one format that is written has one name: by another, `load` would take it for a pickle.
#[test]
fn a_path_of_another_format_is_not_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = Network::new(Framework::PyTorch, Averaging::Exponential, &Device::flex());
    for name in ["model.pth", "model.pt", "model"] {
        let path = folder.path().join(name);
        let error = Framework::PyTorch.save(&model, &path).expect_err(name);
        assert!(error.to_string().contains(".safetensors"), "{error}");
        assert!(!path.exists());
    }
}
