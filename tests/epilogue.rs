//! What follows the normalization, fused with it, against the same as separate operations.

use batchnorm_tests::devices;
use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor, TensorData, activation};
use burn_batchnorm::{Activation, BatchNorm, BatchNormConfig, BatchNormError};

use crate::common::{ACTIVATIONS, assert_close, random, tolerance, values};

/// The definition, with Burn's operations.
fn activate<const D: usize>(applied: Activation, v: Tensor<D>) -> Tensor<D> {
    match applied {
        Activation::Relu => v.clamp_min(0.0),
        Activation::LeakyRelu(slope) => v.clone().clamp_min(0.0) + v.clamp_max(0.0) * slope,
        Activation::Relu6 => v.clamp(0.0, 6.0),
        Activation::Clamp { min, max } => v.clamp(min, max),
        Activation::Silu => activation::silu(v),
        // Burn's own differentiates it as if it were the one by tanh.
        Activation::Gelu => v.clone() * ((v * 0.5f64.sqrt()).erf() + 1.0) * 0.5,
        Activation::GeluTanh => activation::gelu_approximate(v),
        Activation::HardSwish => activation::hard_swish(v),
        Activation::Sigmoid => activation::sigmoid(v),
        Activation::Tanh => v.tanh(),
        _ => v,
    }
}

/// A layer whose parameters are not all alike.
fn layer(config: &BatchNormConfig, device: &Device) -> BatchNorm {
    let mut layer = config.init(device);
    let n = config.num_features;
    layer.gamma = Param::from_tensor(random([n], 7, device) * 4.0);
    layer.beta = Param::from_tensor(random([n], 8, device));
    layer.running_mean.update(random([n], 9, device));
    layer
}

type Named = (&'static str, TensorData);

/// The output and every gradient of `sum(y * dy)`.
fn results<const D: usize>(
    layer: &BatchNorm,
    shape: [usize; D],
    with_residual: bool,
    forward: impl Fn(&BatchNorm, Tensor<D>, Option<Tensor<D>>) -> Tensor<D>,
) -> Vec<Named> {
    let device = layer.gamma.val().device();
    let x = (random(shape, 1, &device) * 3.0 + 1.0).require_grad();
    let residual = with_residual.then(|| random(shape, 2, &device).require_grad());
    let y = forward(layer, x.clone(), residual.clone());
    let gradients = (y.clone() * random(shape, 3, &device)).sum().backward();
    let data = |tensor: Tensor<D>| tensor.into_data();
    let mut results = vec![
        ("y", data(y)),
        ("dx", data(x.grad(&gradients).expect("dx"))),
        (
            "dgamma",
            layer.gamma.grad(&gradients).expect("dgamma").into_data(),
        ),
        (
            "dbeta",
            layer.beta.grad(&gradients).expect("dbeta").into_data(),
        ),
    ];
    if let Some(residual) = residual {
        results.push(("dresidual", data(residual.grad(&gradients).expect("it"))));
    }
    results
}

fn fused<const D: usize>(
    layer: &BatchNorm,
    x: Tensor<D>,
    residual: Option<Tensor<D>>,
) -> Tensor<D> {
    match residual {
        Some(residual) => layer.forward_residual(x, residual),
        None => layer.forward(x),
    }
}

fn check<const D: usize>(shape: [usize; D], axis: isize) {
    for (name, device) in devices::all() {
        let device = device.autodiff();
        let channels = shape[axis.rem_euclid(D as isize) as usize];
        for activation in ACTIVATIONS {
            for with_residual in [false, true] {
                for training in [true, false] {
                    let config = BatchNormConfig::new(channels).with_channel_axis(axis);
                    let mut separate = layer(&config, &device);
                    let mut together = layer(&config.with_activation(activation), &device);
                    separate.training = separate.training.with_value(training);
                    together.training = together.training.with_value(training);

                    let expected =
                        results(&separate, shape, with_residual, |layer, x, residual| {
                            let y = layer.forward(x);
                            activate(
                                activation,
                                residual.map_or(y.clone(), |residual| y + residual),
                            )
                        });
                    let got = results(&together, shape, with_residual, fused);
                    for ((what, got), (_, expected)) in got.iter().zip(&expected) {
                        let what = format!(
                            "{what} of {activation:?} on {name} at {shape:?}, residual: \
                             {with_residual}, training: {training}"
                        );
                        assert_close(&what, got, expected, tolerance(DType::F32).1);
                    }
                    assert_eq!(got.len(), expected.len());
                }
            }
        }
    }
}

#[test]
fn rows_are_as_separate_operations() {
    check([3, 4, 9, 9], 1);
}

#[test]
fn columns_are_as_separate_operations() {
    check([37, 19], -1);
}

#[test]
fn short_rows_are_as_separate_operations() {
    check([5, 6, 7], 1);
}

#[test]
fn gradients_that_nobody_asked_for_change_nothing() {
    for (name, device) in devices::all() {
        let device = device.autodiff();
        let config = BatchNormConfig::new(3).with_activation(Activation::Relu);
        let layer = layer(&config, &device);
        let shape = [6, 3, 11];
        let all = results(&layer, shape, true, fused);
        let x = random(shape, 1, &device) * 3.0 + 1.0;
        let residual = random(shape, 2, &device);
        let dy = random(shape, 3, &device);

        let y = layer.forward_residual(x.clone(), residual.clone());
        let gradients = (y * dy.clone()).sum().backward();
        for (what, parameter) in [("dgamma", &layer.gamma), ("dbeta", &layer.beta)] {
            let expected = &all.iter().find(|(name, _)| *name == what).expect(what).1;
            let got = parameter.grad(&gradients).expect(what).into_data();
            assert_close(&format!("{what} on {name}"), &got, expected, 1e-5);
        }

        let residual = residual.require_grad();
        let frozen = layer.clone().freeze();
        let y = frozen.forward_residual(x.clone(), residual.clone());
        let expected = layer_output_sign(&y) * dy.clone();
        let gradients = (y * dy).sum().backward();
        assert!(x.grad(&gradients).is_none());
        let got = residual.grad(&gradients).expect("it").into_data();
        assert_close(name, &got, &expected.into_data(), 1e-6);
    }
}

/// 1 where a ReLU let the value through.
fn layer_output_sign<const D: usize>(y: &Tensor<D>) -> Tensor<D> {
    y.clone().detach().greater_elem(0.0).float()
}

#[test]
fn half_inputs_are_activated_after_widening() {
    let device = Device::flex().autodiff();
    let config = BatchNormConfig::new(4).with_activation(Activation::Relu);
    let layer = config.init(&device);
    let x = random([32, 4], 1, &device).cast(DType::F16);
    let residual = random([32, 4], 2, &device).cast(DType::F16);
    let y = layer.forward_residual(x.clone(), residual.clone());
    assert_eq!(y.dtype(), DType::F16);
    let wide = BatchNormConfig::new(4).init(&device);
    let expected = wide.forward(x.cast(DType::F32)) + residual.cast(DType::F32);
    let expected = expected.clamp_min(0.0).into_data();
    let got = y.cast(DType::F32).into_data();
    assert_close("half", &got, &expected, tolerance(DType::F16).0);
}

/// What a residual that is infinite or huge makes of a curve: its limit, and no NaN in the gradients.
#[test]
fn curves_reach_their_limits() {
    const INF: f32 = f32::INFINITY;
    let far = [-INF, -1e30, -1e4, -120.0, 120.0, 1e4, 1e30, INF];
    for (name, device) in devices::all() {
        let device = device.autodiff();
        let cases = [
            (Activation::Silu, 0.0, None),
            (Activation::Gelu, 0.0, None),
            (Activation::GeluTanh, 0.0, None),
            (Activation::HardSwish, 0.0, None),
            (Activation::Sigmoid, 0.0, Some(1.0)),
            (Activation::Tanh, -1.0, Some(1.0)),
        ];
        for (activation, low, high) in cases {
            let config = BatchNormConfig::new(1).with_activation(activation);
            let layer = config.init(&device);
            let x = Tensor::<2>::zeros([8, 1], &device).require_grad();
            let data = TensorData::new(far.to_vec(), [8, 1]);
            let residual = Tensor::<2>::from_data(data, &device).require_grad();
            let y = layer.forward_residual(x.clone(), residual.clone());
            let gradients = y.clone().sum().backward();
            let slope = if high.is_some() { 0.0 } else { 1.0 };
            for (i, &z) in far.iter().enumerate() {
                let at = |tensor: Tensor<2>| values(&tensor.into_data())[i];
                let what = format!("{activation:?} at {z} on {name}");
                let upper = f64::from(high.unwrap_or(z));
                let (expected, slope) = if z < 0.0 { (low, 0.0) } else { (upper, slope) };
                assert_eq!(at(y.clone()), expected, "{what}");
                let got = at(residual.grad(&gradients).expect("it"));
                assert_eq!(got, slope, "derivative of {what}");
                assert!(at(x.grad(&gradients).expect("dx")).is_finite(), "{what}");
            }
        }
    }
}

#[test]
fn a_residual_of_another_shape_or_type_is_refused() {
    let device = Device::flex().autodiff();
    let layer = BatchNormConfig::new(2).init(&device);
    let x = random([4, 2], 1, &device);
    let refused = layer.try_forward_residual(x.clone(), random([1, 2], 2, &device));
    let Err(error @ BatchNormError::Residual { .. }) = refused else {
        panic!("expected a refusal");
    };
    assert_eq!(
        error.to_string(),
        "batch norm expects a residual of the input's shape [4, 2] and type F32, got [1, 2] of F32: \
         reshape, expand or cast it."
    );
    let half = random([4, 2], 2, &device).cast(DType::F16);
    assert!(layer.try_forward_residual(x, half).is_err());
    assert_eq!(layer.num_batches_tracked.value(), 0);
}

#[test]
fn senseless_activations_are_refused() {
    for activation in [
        Activation::LeakyRelu(f64::NAN),
        Activation::Clamp { min: 1.0, max: 0.0 },
    ] {
        let config = BatchNormConfig::new(2).with_activation(activation);
        let error = config.try_init(&Device::flex()).expect_err("senseless");
        assert_eq!(error.name(), "Activation");
    }
}

#[test]
fn an_activation_is_shown_and_saved() {
    let config = BatchNormConfig::new(2).with_activation(Activation::LeakyRelu(0.1));
    let layer = config.init(&Device::flex());
    assert!(layer.to_string().contains("activation: LeakyRelu(0.1)"));
    for activation in ACTIVATIONS {
        let config = BatchNormConfig::new(2).with_activation(activation);
        let json = config.to_string();
        assert_eq!(
            serde_json::from_str::<BatchNormConfig>(&json).expect("its own JSON"),
            config
        );
    }
}
