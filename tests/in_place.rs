//! A backward pass from the output: the same gradients as from the input.

use batchnorm_tests::devices;
use burn::tensor::{DType, Device, Tensor, TensorData};
use burn_batchnorm::{Activation, BatchNormConfig, Memory};

use crate::common::{assert_close, random};

fn results(
    memory: Memory,
    activation: Activation,
    scale: f64,
    mean: f64,
    device: &Device,
) -> Vec<TensorData> {
    let mut layer = BatchNormConfig::new(5)
        .with_activation(activation)
        .with_memory(memory)
        .init(device);
    // Of either sign.
    let gamma =
        (random([5], 2, device) + 1.5) * Tensor::from_floats([1.0, -1.0, 1.0, -1.0, 1.0], device);
    layer.gamma = layer.gamma.map(|_| (gamma * scale).detach().require_grad());
    layer.beta = layer.beta.map(|_| random([5], 3, device).require_grad());
    let x = (random([8, 5, 7], 1, device) * 3.0 + mean)
        .detach()
        .require_grad();
    let y = layer.forward(x.clone());
    let gradients = (y.clone() * random([8, 5, 7], 4, device)).sum().backward();
    vec![
        y.into_data(),
        x.grad(&gradients).expect("dx").into_data(),
        layer.gamma.grad(&gradients).expect("dgamma").into_data(),
        layer.beta.grad(&gradients).expect("dbeta").into_data(),
        layer.running_var.value().into_data(),
    ]
}

#[test]
fn gradients_from_the_output_are_those_from_the_input() {
    for (name, device) in devices::all() {
        for device in [
            device.clone().autodiff(),
            device.autodiff().gradient_checkpointing(),
        ] {
            for activation in [Activation::None, Activation::LeakyRelu(0.01)] {
                // The last but one: gammas too small for it. The last: a mean that the input's digits end at.
                for (scale, mean) in [(1.0, 1.0), (0.1, -2.0), (1e-6, 0.0), (1.0, 1e4)] {
                    let run = |memory| results(memory, activation, scale, mean, &device);
                    let what = format!("{name}, {activation:?}, gamma * {scale}, mean {mean}");
                    for (got, expected) in run(Memory::Output).iter().zip(&run(Memory::Input)) {
                        assert_close(&what, got, expected, 1e-4);
                    }
                }
            }
        }
    }
}

/// Where it would lose digits, or there is nothing to work from, the input is kept: the same bits.
#[test]
fn what_the_output_does_not_tell_is_taken_from_the_input() {
    let device = Device::flex().autodiff();
    let run = |memory| {
        let layer = BatchNormConfig::new(5).with_memory(memory).init(&device);
        let tensor = |seed| random([8, 5, 7], seed, &device).cast(DType::F16);
        let half = tensor(1).detach().require_grad();
        let x = random([8, 5, 7], 1, &device).require_grad();
        let residual = random([8, 5, 7], 2, &device);
        let loss = (layer.forward(half.clone()).cast(DType::F32) * random([8, 5, 7], 3, &device))
            .sum()
            + (layer.forward_residual(x.clone(), residual) * random([8, 5, 7], 4, &device)).sum();
        let gradients = loss.backward();
        [
            half.grad(&gradients)
                .expect("dx")
                .cast(DType::F32)
                .into_data(),
            x.grad(&gradients).expect("dx").into_data(),
        ]
    };
    for (got, expected) in run(Memory::Output).iter().zip(&run(Memory::Input)) {
        assert_close("dx", got, expected, 0.0);
    }
}

#[test]
fn an_activation_that_cannot_be_undone_is_refused() {
    for activation in [
        Activation::Relu,
        Activation::Relu6,
        Activation::LeakyRelu(0.0),
        Activation::LeakyRelu(-1.0),
    ] {
        let config = BatchNormConfig::new(5)
            .with_activation(activation)
            .with_memory(Memory::Output);
        let error = config.try_init(&Device::flex()).expect_err("a refusal");
        assert_eq!(error.name(), "Invalid", "{error}");
        assert!(error.to_string().contains("memory"), "{error}");
    }
}
