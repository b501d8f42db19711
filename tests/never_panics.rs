//! What `try_forward` accepts it computes; what it cannot it refuses by an error. Nothing panics, now
//! or when the results are read.

use batchnorm_tests::devices;
use burn::module::{Module, Param, Quantizer};
use burn::tensor::quantization::{Calibration, QuantValue};
use burn::tensor::{DType, Device, Tensor, TensorData};
use burn_batchnorm::{Activation, BatchNorm, BatchNormConfig, SingleValue};

use crate::common::{assert_close, random, vector};

const FLOATS: [DType; 5] = [
    DType::F64,
    DType::F32,
    DType::Flex32,
    DType::F16,
    DType::BF16,
];

/// Every combination of types of input and parameters, in training and in inference.
#[test]
fn every_type_is_computed_or_refused() {
    for (name, device) in devices::all() {
        let mut computed = 0;
        for input in FLOATS {
            for parameter in FLOATS {
                if !device.supports_dtype(input) || !device.supports_dtype(parameter) {
                    continue;
                }
                let device = device.clone().autodiff();
                let mut layer = BatchNormConfig::new(3).init(&device);
                let cast = |tensor: Tensor<1>| Param::from_tensor(tensor.cast(parameter).detach());
                layer.gamma = cast(layer.gamma.val());
                layer.beta = cast(layer.beta.val());
                let x = (random([8, 3], 1, &device) * 2.0 + 1.0).cast(input);
                let x = x.detach().require_grad();
                for layer in [layer.clone(), layer.freeze()] {
                    let y = match layer.try_forward(x.clone()) {
                        Ok(y) => y,
                        Err(error) => {
                            assert_eq!(error.name(), "DType", "{name}: {input:?}, {parameter:?}");
                            continue;
                        }
                    };
                    computed += 1;
                    assert_eq!(y.dtype(), x.dtype(), "{name}");
                    let gradients = y.clone().sum().backward();
                    let gradient = x.grad(&gradients).expect("a gradient");
                    for data in [y.into_data(), gradient.into_data()] {
                        let finite = data.iter::<f64>().all(f64::is_finite);
                        assert!(finite, "{name}: {input:?} with {parameter:?}");
                    }
                }
            }
        }
        // Fault D6: Flex32 goes with F32, both ways.
        let expected = match name {
            "flex" => 2 * (1 + 1 + 4),
            "ndarray" => 2 * 2,
            _ => 2 * 4,
        };
        assert!(computed >= expected, "{name}: {computed}");
    }
}

/// Fault N4: what a compute type cannot hold is no epsilon in it.
#[test]
fn an_epsilon_keeps_constant_channels_at_beta() {
    for (name, device) in devices::all() {
        for epsilon in [
            1e-5,
            1e-20,
            1e-37,
            1e-38,
            1e-40,
            1e-46,
            1e-80,
            f64::MIN_POSITIVE,
        ] {
            let device = device.clone().autodiff();
            let config = BatchNormConfig::new(1).with_epsilon(epsilon);
            let Ok(mut layer) = config.try_init(&device) else {
                assert!(epsilon < f64::from(f32::MIN_POSITIVE), "{name}: {epsilon}");
                continue;
            };
            layer.beta = Param::from_tensor(Tensor::full([1], 0.25, &device));
            let x = Tensor::<2>::full([8, 1], 3.0, &device);
            let y = vector(layer.forward(x.clone()));
            assert_eq!(y, [0.25; 8], "{name}, {epsilon}");
            layer.running_mean.update(Tensor::full([1], 3.0, &device));
            layer.running_var.update(Tensor::zeros([1], &device));
            let y = vector(layer.freeze().forward(x));
            assert_eq!(y, [0.25; 8], "{name}, {epsilon}, inference");
        }
    }
    let device = Device::flex();
    for (epsilon, expected) in [(f64::MIN_POSITIVE, true), (1e-310, false)] {
        let mut layer = BatchNormConfig::new(1).init(&device);
        for param in [&mut layer.gamma, &mut layer.beta] {
            *param = Param::from_tensor(param.val().cast(DType::F64));
        }
        layer.epsilon = epsilon;
        let x = Tensor::<2>::full([8, 1], 3.0, &device).cast(DType::F64);
        assert_eq!(layer.try_forward(x).is_ok(), expected, "{epsilon}");
    }
}

/// Fault N7: the same on every device, by `try_init`; what is accepted survives JSON.
#[test]
fn bounds_are_finite_or_refused() {
    let clamp = |min, max| Activation::Clamp { min, max };
    for (activation, accepted) in [
        (clamp(f64::NEG_INFINITY, 6.0), false),
        (clamp(0.0, f64::INFINITY), false),
        (clamp(0.0, f64::NAN), false),
        (clamp(0.0, 1e39), false),
        (clamp(0.0, 1e38), true),
        (Activation::LeakyRelu(1e39), false),
        (Activation::LeakyRelu(-1e38), true),
    ] {
        for (name, device) in devices::all() {
            let config = BatchNormConfig::new(2).with_activation(activation);
            assert_eq!(
                config.try_init(&device).is_ok(),
                accepted,
                "{name}: {activation:?}"
            );
            if accepted {
                let json = config.to_string();
                let read: BatchNormConfig = serde_json::from_str(&json).expect(&json);
                assert_eq!(read, config);
                let x = random([8, 2], 1, &device.clone().autodiff());
                let y = vector(config.init(&device.autodiff()).forward(x));
                assert!(y.iter().all(|y| y.is_finite()), "{name}: {activation:?}");
            }
        }
    }
}

/// Fault D5.
#[test]
fn empty_batches_have_gradients() {
    for (name, device) in devices::all() {
        let device = device.autodiff();
        for shape in [[0, 3, 4], [2, 3, 0]] {
            for frozen in [false, true] {
                let layer = BatchNormConfig::new(3)
                    .with_activation(Activation::Relu)
                    .init(&device);
                let layer = match frozen {
                    true => {
                        let mut layer = layer;
                        layer.training = layer.training.with_value(false);
                        layer
                    }
                    false => layer,
                };
                let empty = || {
                    let data = TensorData::new(Vec::<f32>::new(), shape);
                    Tensor::<3>::from_data(data, &device).require_grad()
                };
                let (x, residual) = (empty(), empty());
                let y = layer.forward_residual(x.clone(), residual.clone());
                assert_eq!(y.dims(), shape, "{name}");
                let gradients = y.backward();
                for tensor in [&x, &residual] {
                    let gradient = tensor.grad(&gradients).expect("a gradient");
                    assert_eq!(gradient.into_data().shape().to_vec(), shape, "{name}");
                }
                for param in [&layer.gamma, &layer.beta] {
                    let gradient = param.grad(&gradients).expect("a gradient");
                    assert_eq!(vector(gradient), [0.0; 3], "{name}");
                }
                assert_eq!(layer.num_batches_tracked.value(), 0, "{name}");
                assert_eq!(vector(layer.running_var.value()), [1.0; 3], "{name}");
            }
        }
    }
}

/// Fault D2: quantized as burn-nn's layer, dequantized where used.
#[test]
fn a_quantized_model_runs() {
    let device = Device::flex();
    let training = device.clone().autodiff();
    let mut layer = BatchNormConfig::new(32).init(&training);
    layer.gamma = Param::from_tensor(random([32], 1, &training) + 2.0);
    layer.beta = Param::from_tensor(random([32], 2, &training));
    layer.forward(random([16, 32], 3, &training) * 3.0 + 5.0);
    let float = layer.valid();
    let scheme = device
        .settings()
        .quantization
        .scheme
        .with_value(QuantValue::Q8S);
    let mut quantizer = Quantizer::new(Calibration::MinMax, scheme);
    let quantized = float.clone().quantize_weights(&mut quantizer);
    assert!(matches!(quantized.gamma.dtype(), DType::QFloat(_)));
    assert_eq!(quantized.running_var.value().dtype(), DType::F32);
    let x = random([8, 32], 4, &device) * 3.0 + 5.0;
    let y = quantized.forward(x.clone()).into_data();
    assert_close("quantized", &y, &float.forward(x.clone()).into_data(), 0.02);

    // And with low-rank adapters about it: vectors get none.
    let adapted = layer.apply_lora(burn::module::Lora::new(2, 4.0));
    let y = adapted.valid().forward(x.clone()).into_data();
    assert_close("LoRA", &y, &float.forward(x).into_data(), 1e-6);
}

/// Fault D7 and its kind: a layer on an autodiff device takes plain inputs, and the other way round.
#[test]
fn plain_and_tracked_tensors_mix() {
    for (name, device) in devices::all() {
        let tracked = BatchNormConfig::new(2).init(&device.clone().autodiff());
        let plain = BatchNormConfig::new(2).init(&device);
        let x = random([8, 2], 1, &device);
        let y = tracked.forward(x.clone());
        assert_eq!(vector(y), vector(plain.forward(x.clone())), "{name}");
        let x = Tensor::from_inner(x).require_grad();
        let y = plain.forward(x.clone());
        let gradients = y.sum().backward();
        assert!(x.grad(&gradients).is_some(), "{name}");
    }
}

#[test]
fn operands_on_other_devices_are_refused() {
    let devices = devices::all();
    for (name, device) in &devices {
        for (other_name, other) in &devices {
            let layer = BatchNormConfig::new(2).init(device);
            let x = random([8, 2], 1, other);
            let residual = random([8, 2], 1, device);
            let result = layer.try_forward(x.clone()).map(|y| vector(y).len());
            match name == other_name {
                true => assert_eq!(result.expect("computed"), 16),
                false => assert_eq!(result.expect_err("refused").name(), "Device"),
            }
            let layer = BatchNormConfig::new(2).init(other);
            let result = layer.try_forward_residual(x, residual);
            assert_eq!(result.is_ok(), name == other_name);
        }
    }
}

/// Two strategies of gradient checkpointing meet in no operation of Burn's.
#[test]
fn strategies_of_checkpointing_do_not_mix() {
    let plain = Device::flex().autodiff();
    let checkpointed = Device::flex().autodiff().gradient_checkpointing();
    let layer = BatchNormConfig::new(2).init(&plain);
    let x = random([8, 2], 1, &checkpointed);
    let error = layer.try_forward(x).expect_err("a refusal");
    assert_eq!(error.name(), "Device");
}

#[test]
fn a_constant_scale_does_not_hide_an_unsupported_type() {
    let Some(device) = devices::by_name("wgpu") else {
        return;
    };
    if device.supports_dtype(DType::F64) {
        return;
    }
    let x = Tensor::<2>::from_data(
        TensorData::new(vec![1.0f64, 2.0], [2, 1]),
        (&device, DType::F64),
    );
    let layer = BatchNormConfig::new(1).with_scale(false).init(&device);
    assert_eq!(
        layer.try_forward(x).expect_err("a refusal").name(),
        "Unsupported"
    );
}

#[test]
fn functional_calls_take_empty_inputs() {
    use burn_batchnorm::functional::{Epilogue, moments, normalize, train};
    for (name, device) in devices::all() {
        for device in [device.clone(), device.autodiff()] {
            for shape in [[0, 3, 1], [2, 3, 0]] {
                let empty =
                    || Tensor::<3>::from_data(TensorData::new(Vec::<f32>::new(), shape), &device);
                let [gamma, beta] = [(); 2].map(|()| Tensor::<1>::ones([3], &device));
                let trained = train(
                    empty(),
                    gamma.clone(),
                    beta.clone(),
                    1e-5,
                    1,
                    Epilogue::default(),
                );
                let trained = trained.expect("computed");
                assert_eq!(trained.output.dims(), shape, "{name}");
                assert_eq!(vector(trained.mean), [0.0; 3], "{name}");
                let center = moments(empty(), 1, None).expect("computed");
                assert_eq!(vector(center.clone()), [0.0; 9], "{name}");
                let weighted = moments(empty(), 1, Some(empty())).expect("computed");
                assert_eq!(vector(weighted), [0.0; 12], "{name}");
                let y = normalize(empty(), center, gamma, beta, 1e-5, 1, Epilogue::default());
                assert_eq!(y.expect("computed").dims(), shape, "{name}");
            }
        }
    }
}

/// Fault G3: more than one buffer may hold on software Vulkan (128 MiB).
#[test]
fn tensors_over_a_binding_limit_are_computed_or_refused() {
    for (name, device) in devices::all() {
        let layer = BatchNormConfig::new(1)
            .with_momentum(1.0)
            .init(&device.clone().autodiff());
        check_large(name, &layer, [1, 1, 40_000_000]);
    }
}

fn check_large(name: &str, layer: &BatchNorm, shape: [usize; 3]) {
    let device = layer.gamma.device();
    let n: usize = shape.iter().product();
    // Twice as many ones as fours: mean 2, variance 2.
    let values: Vec<f32> = (0..n).map(|i| if i % 3 == 0 { 4.0 } else { 1.0 }).collect();
    let x = Tensor::<3>::from_data(TensorData::new(values, shape), &device);
    match layer.try_forward(x) {
        Ok(y) => {
            let y = y.into_data();
            let y = y.as_slice::<f32>().expect("f32");
            for index in [0, 1, 2, n / 2, n - 1] {
                let expected = match index % 3 {
                    0 => 2.0f64.sqrt(),
                    _ => -0.5f64.sqrt(),
                };
                let got = f64::from(y[index]);
                assert!((got - expected).abs() < 1e-4, "{name}: y[{index}] = {got}");
            }
            let mean = vector(layer.running_mean.value())[0];
            assert!((mean - 2.0).abs() < 1e-4, "{name}: mean {mean}");
        }
        Err(error) => {
            assert_eq!((name, error.name()), ("wgpu", "TooLarge"), "{error}");
            assert_eq!(vector(layer.running_mean.value()), [0.0], "{error}");
        }
    }
}

#[test]
fn one_value_per_channel_is_no_trap() {
    for (name, device) in devices::all() {
        for policy in [
            SingleValue::Error,
            SingleValue::UseRunning,
            SingleValue::SkipUpdate,
        ] {
            let device = device.clone().autodiff();
            let layer = BatchNormConfig::new(2)
                .with_single_value(policy)
                .init(&device);
            let result = layer.try_forward(random([1, 2], 1, &device));
            assert_eq!(result.is_err(), policy == SingleValue::Error, "{name}");
            assert!(
                vector(layer.running_var.value()).iter().all(|v| *v == 1.0),
                "{name}"
            );
        }
    }
}

/// Vulkan's shaders have no exponential function of f64: garbage, if it is asked for.
#[test]
fn curves_of_f64_are_computed_or_refused() {
    for (name, device) in devices::all() {
        if !device.supports_dtype(DType::F64) {
            continue;
        }
        for activation in [
            Activation::Silu,
            Activation::Gelu,
            Activation::Tanh,
            Activation::HardSwish,
        ] {
            let layer = BatchNormConfig::new(1)
                .with_scale(false)
                .with_shift(false)
                .with_activation(activation)
                .init(&device);
            let data = TensorData::new(vec![-2.0f64, 1.0], [2, 1]);
            let x = Tensor::<2>::from_data(data, (&device, DType::F64));
            match layer.try_forward(x) {
                Ok(y) => {
                    let expected = match activation {
                        Activation::Silu => -2.0 / (1.0 + 2.0f64.exp()),
                        Activation::Gelu => -2.0 * 0.022_750_131_948_179_2,
                        Activation::Tanh => (-2.0f64).tanh(),
                        _ => -2.0 / 6.0,
                    };
                    let got = vector(y)[0];
                    assert!(
                        (got - expected).abs() < 1e-4,
                        "{name}, {activation:?}: {got}"
                    );
                }
                Err(error) => assert_eq!((name, error.name()), ("wgpu", "Unsupported")),
            }
        }
    }
}
