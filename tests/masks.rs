//! Masks, lengths and weights.

use batchnorm_tests::devices;
use burn::module::Module;
use burn::tensor::{Bool, DType, Device, Tensor};
use burn_batchnorm::{
    Activation, Averaging, BatchNormConfig, Ghost, Mask, MaskedOutput, NonFinite, Statistics, With,
    functional,
};

use crate::common::{assert_close, random, vector};

fn config() -> BatchNormConfig {
    BatchNormConfig::new(3).with_momentum(0.5)
}

/// Two sequences of 5 steps, of which 5 and 2 count; the rest is NaN.
fn padded(device: &Device) -> (Tensor<3>, Mask, Tensor<3>) {
    let x = random([2, 3, 5], 1, device) * 2.0 + 1.0;
    let valid = [[1.0, 1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0, 0.0]];
    let valid = Tensor::<2>::from_floats(valid, device)
        .reshape([2, 1, 5])
        .expand([2, 3, 5]);
    let x = x.mask_fill(valid.clone().equal_elem(0.0), f32::NAN);
    (x, Mask::from_lengths(&[5, 2], 5, device), valid)
}

/// The seven valid steps as a batch of their own.
fn valid_steps(x: Tensor<3>) -> Tensor<2> {
    let first = x
        .clone()
        .slice([0..1, 0..3, 0..5])
        .permute([0, 2, 1])
        .reshape([5, 3]);
    let second = x
        .slice([1..2, 0..3, 0..2])
        .permute([0, 2, 1])
        .reshape([2, 3]);
    Tensor::cat(vec![first, second], 0)
}

#[test]
fn padding_reaches_neither_statistics_nor_gradients() {
    for (name, device) in devices::all() {
        let device = device.autodiff();
        let (layer, plain) = (config().init(&device), config().init(&device));
        let (x, mask, valid) = padded(&device);
        let x = x.require_grad();
        let y = layer.forward_masked(x.clone(), &mask);
        assert!(
            vector(y.clone()).iter().all(|y| y.is_finite()),
            "{name}: finite outputs"
        );
        let dy = random([2, 3, 5], 2, &device);
        let gradients = (y.clone() * dy.clone() * valid).sum().backward();

        let compact = valid_steps(x.clone()).detach().require_grad();
        let expected = plain.forward(compact.clone());
        let expected_gradients = (expected.clone() * valid_steps(dy)).sum().backward();
        let what = |what: &str| format!("{what} on {name}");
        assert_close(
            &what("y"),
            &valid_steps(y).into_data(),
            &expected.into_data(),
            1e-5,
        );
        let dx = x.grad(&gradients).expect("dx");
        assert!(
            vector(dx.clone()).iter().all(|dx| dx.is_finite()),
            "{name}: finite gradients"
        );
        let expected_dx = compact.grad(&expected_gradients).expect("dx").into_data();
        assert_close(
            &what("dx"),
            &valid_steps(dx).into_data(),
            &expected_dx,
            1e-4,
        );
        for (ours, theirs) in [(&layer.gamma, &plain.gamma), (&layer.beta, &plain.beta)] {
            let got = ours.grad(&gradients).expect("a gradient").into_data();
            let expected = theirs
                .grad(&expected_gradients)
                .expect("a gradient")
                .into_data();
            assert_close(&what("a parameter's gradient"), &got, &expected, 1e-4);
        }
        for (ours, theirs) in [
            (&layer.running_mean, &plain.running_mean),
            (&layer.running_var, &plain.running_var),
        ] {
            let (got, expected) = (ours.value().into_data(), theirs.value().into_data());
            assert_close(&what("a statistic"), &got, &expected, 1e-5);
        }
    }
}

#[test]
fn a_mask_has_any_of_four_shapes() {
    for (name, device) in devices::all() {
        let device = device.autodiff();
        let x = random([4, 3, 5], 1, &device);
        let admitted = |shape: [usize; 3]| {
            Tensor::<3>::from_floats([[[1.0]], [[0.0]], [[1.0]], [[1.0]]], &device).expand(shape)
        };
        let run = |mask: &Mask| {
            let layer = config().init(&device);
            let y = vector(layer.forward_masked(x.clone(), mask));
            (y, vector(layer.running_mean.value()))
        };
        let samples = Tensor::<1, Bool>::from_data([true, false, true, true], &device);
        let expected = run(&Mask::new(samples));
        for mask in [
            Mask::from_weights(admitted([4, 3, 5])),
            Mask::from_weights(admitted([4, 1, 5])),
            Mask::from_weights(admitted([4, 1, 5]).reshape([4, 5])),
        ] {
            assert_eq!(run(&mask), expected, "{name}");
        }
        let layer = config().init(&device);
        for wrong in [
            Mask::from_weights(random([5], 1, &device)),
            Mask::from_weights(random([4, 3], 1, &device)),
            Mask::from_weights(random([4, 5, 1], 1, &device)),
            Mask::from_weights(random([1, 4, 3, 5], 1, &device)),
        ] {
            let error = layer
                .try_forward_masked(x.clone(), &wrong)
                .expect_err("a refusal");
            assert_eq!(error.name(), "Mask", "{name}: {error}");
        }
        assert_eq!(layer.num_batches_tracked.value(), 0, "{name}");
    }
}

#[test]
fn nothing_admitted_leaves_the_state_alone() {
    for (name, device) in devices::all() {
        for averaging in [Averaging::Exponential, Averaging::Cumulative] {
            let device = device.clone().autodiff();
            let layer = config().with_averaging(averaging).init(&device);
            let all = Mask::from_lengths(&[5, 5], 5, &device);
            let x = |seed| random([2, 3, 5], seed, &device) + 4.0;
            layer.forward_masked(x(1), &all);
            let state = (
                vector(layer.running_mean.value()),
                vector(layer.running_var.value()),
            );
            let y = layer.forward_masked(x(2), &Mask::from_lengths(&[0, 0], 5, &device));
            assert!(vector(y).iter().all(|y| y.is_finite()), "{name}");
            let after = (
                vector(layer.running_mean.value()),
                vector(layer.running_var.value()),
            );
            assert_eq!(after, state, "{name}");
            assert_eq!(vector(layer.skipped_updates()), [1.0; 3], "{name}");

            // Nor does it weigh in what comes: the next batch is the second.
            let other = config().with_averaging(averaging).init(&device);
            other.forward(x(1));
            other.forward(x(3));
            layer.forward_masked(x(3), &all);
            let (got, expected) = (layer.running_var.value(), other.running_var.value());
            assert_close(name, &got.into_data(), &expected.into_data(), 1e-5);
        }
    }
}

#[test]
fn weights_count_positions() {
    for (name, device) in devices::all() {
        let device = device.autodiff();
        let x = Tensor::<2>::from_floats([[1.0], [3.0], [8.0], [100.0]], &device);
        let weights = Tensor::<2>::from_floats([[1.0], [2.0], [1.0], [0.0]], &device);
        let repeated = Tensor::<2>::from_floats([[1.0], [3.0], [3.0], [8.0]], &device);
        let [weighted, plain] =
            [(); 2].map(|()| BatchNormConfig::new(1).with_momentum(1.0).init(&device));
        weighted.forward_masked(x, &Mask::from_weights(weights));
        plain.forward(repeated);
        let (got, expected) = (weighted.running_mean.value(), plain.running_mean.value());
        assert_close(name, &got.into_data(), &expected.into_data(), 1e-6);
        let (got, expected) = (weighted.running_var.value(), plain.running_var.value());
        assert_close(name, &got.into_data(), &expected.into_data(), 1e-6);
    }
}

/// What comes out of a model for inference is plain, wherever its mask was made.
#[test]
fn a_mask_from_a_training_device_goes_with_inference() {
    for (name, device) in devices::all() {
        let (x, mask, _) = padded(&device.clone().autodiff());
        let layer = config().init(&device);
        for policy in [MaskedOutput::Normalize, MaskedOutput::Zero] {
            let layer = config().with_masked_output(policy).init(&device);
            let y = layer.forward_masked(x.clone().inner(), &mask);
            assert!(!y.device().is_autodiff(), "{name} {policy:?}");
        }
        let weights = Tensor::ones([2, 5], &device.clone().autodiff()).require_grad();
        let mask = Mask::from_weights::<2>(weights);
        let y = layer.forward_masked(x.inner(), &mask);
        assert!(!y.device().is_autodiff(), "{name}");
    }
}

/// Negative numbers, NaN and infinities admit nothing, with the layer and with the functions.
#[test]
fn what_is_no_weight_counts_as_none() {
    for (name, device) in devices::all() {
        let device = device.autodiff();
        let rows = [[1.0], [3.0], [8.0], [5.0], [-2.0], [7.0]];
        let x = Tensor::<2>::from_floats(rows, &device).require_grad();
        let run = |no_weight: [f32; 3]| {
            let [a, b, c] = no_weight;
            let weights = Tensor::<2>::from_floats([[1.0], [a], [2.0], [b], [0.5], [c]], &device);
            let moments = functional::moments(x.clone(), 1, Some(weights.clone()));
            let layer = BatchNormConfig::new(1).init(&device);
            let y = layer.forward_masked(x.clone(), &Mask::from_weights(weights));
            let gradients = (y.clone() * x.clone().detach()).sum().backward();
            let dx = x.grad(&gradients).expect("a gradient");
            let variance = layer.running_var.value();
            let moments = vector(moments.expect("moments"));
            [moments, vector(y), vector(dx), vector(variance)]
        };
        let expected = run([0.0; 3]);
        assert!(expected.iter().flatten().all(|value| value.is_finite()));
        let (nan, infinity) = (f32::NAN, f32::INFINITY);
        for no_weight in [[-1.0, nan, infinity], [-infinity, infinity, -0.0]] {
            assert_eq!(run(no_weight), expected, "{name}: {no_weight:?}");
        }
    }
}

#[test]
fn masked_outputs_follow_the_policy() {
    for (name, device) in devices::all() {
        for training in [true, false] {
            let device = device.clone().autodiff();
            let (x, mask, valid) = padded(&device);
            let run = |policy| {
                let layer = config()
                    .with_activation(Activation::Relu)
                    .with_masked_output(policy)
                    .init(&device);
                match training {
                    true => layer.forward_masked(x.clone(), &mask),
                    false => layer.valid().forward_masked(
                        x.clone().inner(),
                        &Mask::from_lengths(&[5, 2], 5, &device.clone().inner()),
                    ),
                }
            };
            let valid = vector(valid);
            let normal = vector(run(MaskedOutput::Normalize));
            let zero = vector(run(MaskedOutput::Zero));
            let passed = vector(run(MaskedOutput::PassThrough));
            for (index, valid) in valid.iter().enumerate() {
                match *valid == 1.0 {
                    true => assert!(
                        zero[index] == normal[index] && passed[index] == normal[index],
                        "{name}"
                    ),
                    false => {
                        assert_eq!(zero[index], 0.0, "{name}");
                        assert!(
                            passed[index].is_nan() && normal[index].is_finite(),
                            "{name}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn masks_go_with_residuals_ghosts_and_half_types() {
    let device = Device::flex().autodiff();
    let (x, mask, valid) = padded(&device);
    let residual = random([2, 3, 5], 9, &device);
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let layer = config()
            .with_statistics(Statistics::Ghost(Ghost::new(1)))
            .with_non_finite(NonFinite::Skip)
            .with_masked_output(MaskedOutput::Zero)
            .init(&device);
        let with = With {
            residual: Some(residual.clone().cast(dtype)),
            mask: Some(mask.clone()),
        };
        let y = layer
            .try_forward_with(x.clone().cast(dtype), with)
            .expect("an output");
        assert_eq!(y.dtype(), dtype);
        // Each sequence by itself: the mean of its valid steps is that of the residual's.
        let sums = |tensor: Tensor<3>| {
            let tensor = tensor
                .cast(DType::F32)
                .mask_fill(valid.clone().equal_elem(0.0), 0.0);
            tensor.sum_dim(2).into_data()
        };
        let expected = sums(residual.clone());
        let tolerance = if dtype == DType::F32 { 1e-5 } else { 3e-2 };
        assert_close("sums", &sums(y), &expected, tolerance);
        assert_eq!(vector(layer.skipped_updates()), [0.0; 3]);
    }
}

/// A residual that is not finite where nothing counts reaches no gradient, and with `Normalize` no output.
#[test]
fn residuals_of_padding_reach_nothing() {
    for (name, device) in devices::all() {
        let device = device.autodiff();
        for (activation, policy) in [
            (Activation::Relu, MaskedOutput::Zero),
            (Activation::HardSwish, MaskedOutput::Zero),
            (Activation::Tanh, MaskedOutput::Normalize),
        ] {
            for statistics in [Statistics::Batch, Statistics::Ghost(Ghost::new(4))] {
                let layer = BatchNormConfig::new(1)
                    .with_activation(activation)
                    .with_masked_output(policy)
                    .with_statistics(statistics)
                    .init(&device);
                let column = |values: [f32; 4]| {
                    let rows = values.map(|value| [value]);
                    Tensor::<2>::from_floats(rows, &device).require_grad()
                };
                let x = column([1.0, 3.0, 5.0, f32::NAN]);
                let residual = column([0.0, 0.5, 0.0, f32::NAN]);
                let mask = Mask::from_weights(Tensor::<1>::from_floats([1., 1., 1., 0.], &device));
                let with = With {
                    residual: Some(residual.clone()),
                    mask: Some(mask),
                };
                let y = layer.forward_with(x.clone(), with);
                assert!(vector(y.clone()).iter().all(|y| y.is_finite()), "{name}");
                let valid = Tensor::<2>::from_floats([[1.], [2.], [3.], [0.]], &device);
                let gradients = (y * valid).sum().backward();

                let plain = BatchNormConfig::new(1)
                    .with_activation(activation)
                    .init(&device);
                let rows = |tensor: &Tensor<2>| {
                    let rows = tensor.clone().slice([0..3, 0..1]);
                    rows.detach().require_grad()
                };
                let compact = rows(&x);
                let expected = plain.forward_residual(compact.clone(), rows(&residual));
                let valid = Tensor::<2>::from_floats([[1.], [2.], [3.]], &device);
                let of_plain = (expected * valid).sum().backward();
                let what = format!("{name} {activation:?} {statistics:?}");
                let gamma = |layer: &burn_batchnorm::BatchNorm, gradients: &_| {
                    layer.gamma.grad(gradients).expect("gamma").into_data()
                };
                assert_close(
                    &what,
                    &gamma(&layer, &gradients),
                    &gamma(&plain, &of_plain),
                    1e-4,
                );
                let dx = x.grad(&gradients).expect("x").slice([0..3, 0..1]);
                let expected = compact.grad(&of_plain).expect("x");
                assert_close(&what, &dx.into_data(), &expected.into_data(), 1e-4);
            }
        }
    }
}

/// One value has no variance, whichever way the others were left out: nothing enters.
#[test]
fn a_mask_that_leaves_one_value_leaves_the_state_alone() {
    for (name, device) in devices::all() {
        let device = device.autodiff();
        for config in [BatchNormConfig::keras(1), BatchNormConfig::pytorch(1)] {
            let layer = config.with_channel_axis(1).init(&device);
            let x = Tensor::<2>::from_floats([[5.0], [7.0]], &device);
            let weights =
                |weights: [f32; 2]| Mask::from_weights(Tensor::<1>::from_floats(weights, &device));
            layer.forward_masked(x.clone(), &weights([1.0, 0.0]));
            assert_eq!(vector(layer.running_var.value()), [1.0], "{name}");
            assert_eq!(layer.num_batches_tracked.value(), 0, "{name}");
            // A little more than one is two at most: a biased variance of 0.001, times 2 and not 1001.
            layer.forward_masked(x, &weights([1.0, 0.001]));
            let variance = vector(layer.running_var.value())[0];
            assert!(variance < 1.0, "{name}: {variance}");
        }
    }
}

/// What no statistic is known of is not divided by the root of epsilon.
#[test]
fn a_channel_without_anything_admitted_keeps_its_size() {
    for (name, device) in devices::all() {
        let device = device.autodiff();
        let x = Tensor::<2>::from_floats([[300.0], [-300.0]], &device);
        let mask = Mask::from_weights(Tensor::<1>::zeros([2], &device));
        let layer = BatchNormConfig::new(1).init(&device);
        let y = vector(layer.forward_masked(x, &mask));
        assert!((y[0] - 300.0).abs() < 0.1 && y[0] == -y[1], "{name}: {y:?}");
    }
}

/// The dimensions of an input may lie in memory in any order: masks follow it.
#[test]
fn the_order_of_memory_changes_nothing() {
    for (name, device) in devices::all() {
        let device = device.autodiff();
        let shape = [3, 4, 2, 5];
        let (x, dy) = (random(shape, 1, &device), random(shape, 2, &device));
        // The weights of a third of the positions are 0.
        let weights = |shape: [usize; 4]| (random(shape, 3, &device) + 0.3).clamp_min(0.0);
        for mask in [weights([3, 1, 2, 5]), weights(shape)].map(Mask::from_weights) {
            let run = |order: [usize; 4]| {
                let mut back = [0; 4];
                for (place, dim) in order.into_iter().enumerate() {
                    back[dim] = place;
                }
                let memory = x.clone().permute(order.map(|dim| dim as isize)).into_data();
                let x = Tensor::<4>::from_data(memory, &device);
                let x = x.permute(back.map(|dim| dim as isize)).require_grad();
                let layer = BatchNormConfig::new(4)
                    .with_activation(Activation::Silu)
                    .init(&device);
                let y = layer.forward_masked(x.clone(), &mask);
                let gradients = (y.clone() * dy.clone()).sum().backward();
                let dx = x.grad(&gradients).expect("dx");
                [y, dx].map(Tensor::into_data)
            };
            let expected = run([0, 1, 2, 3]);
            // NHWC, CNHW, CHWN, WNCH.
            for order in [[0, 2, 3, 1], [1, 0, 2, 3], [1, 2, 3, 0], [3, 0, 1, 2]] {
                for (got, expected) in run(order).iter().zip(&expected) {
                    assert_close(&format!("{name}, {order:?}"), got, expected, 1e-5);
                }
            }
        }
    }
}
