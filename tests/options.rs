//! Options that no other framework has a golden for, and the presets.

use batchnorm_tests::devices;
use burn::module::Module;
use burn::tensor::{DType, Device, Tensor, TensorData, s};
use burn_batchnorm::functional::{self, Epilogue};
use burn_batchnorm::{
    Averaging, BatchNormConfig, Bound, Reference, Renorm, SingleValue, Statistics, Variance,
};

use crate::common::{assert_close, random, values, vector};

#[test]
fn a_single_value_is_normalized_by_the_running_statistics_where_asked() {
    for (name, device) in devices::all() {
        let device = device.autodiff();
        let layer = BatchNormConfig::new(2)
            .with_single_value(SingleValue::UseRunning)
            .init(&device);
        layer.forward(random([8, 2], 1, &device));
        let (mean, count) = (
            vector(layer.running_mean.value()),
            layer.num_batches_tracked.value(),
        );
        let x = random([1, 2], 2, &device);
        let expected = layer.clone().freeze().forward(x.clone()).into_data();
        assert_close(name, &layer.forward(x).into_data(), &expected, 0.0);
        assert_eq!(vector(layer.running_mean.value()), mean, "{name}");
        assert_eq!(layer.num_batches_tracked.value(), count, "{name}");
    }
}

#[test]
fn a_single_value_gives_beta_and_no_update_where_skipped() {
    for (name, device) in devices::all() {
        let device = device.autodiff();
        let layer = BatchNormConfig::new(2)
            .with_single_value(SingleValue::SkipUpdate)
            .init(&device);
        let y = layer.forward(random([1, 2, 1, 1], 1, &device) + 7.0);
        assert_eq!(vector(y), [0.0, 0.0], "{name}");
        assert_eq!(vector(layer.running_mean.value()), [0.0, 0.0], "{name}");
        assert_eq!(vector(layer.running_var.value()), [1.0, 1.0], "{name}");
        assert_eq!(layer.num_batches_tracked.value(), 0, "{name}");
    }
}

#[test]
fn one_image_of_several_pixels_is_no_single_value() {
    let device = Device::flex().autodiff();
    let layer = BatchNormConfig::new(2).init(&device);
    layer.forward(random([1, 2, 3], 1, &device));
    assert_eq!(layer.num_batches_tracked.value(), 1);
}

#[test]
fn an_empty_batch_comes_back_and_changes_nothing() {
    for (name, device) in devices::all() {
        let device = device.autodiff();
        let layer = BatchNormConfig::new(3).init(&device);
        let empty = Tensor::<3>::from_data(TensorData::new(Vec::<f32>::new(), [0, 3, 4]), &device);
        assert_eq!(layer.forward(empty).dims(), [0, 3, 4], "{name}");
        assert_eq!(layer.num_batches_tracked.value(), 0, "{name}");
        assert_eq!(vector(layer.running_var.value()), [1.0; 3], "{name}");
    }
}

#[test]
fn momentum_one_replaces_even_what_is_not_finite() {
    let device = Device::flex().autodiff();
    let layer = BatchNormConfig::new(1).with_momentum(1.0).init(&device);
    layer
        .running_mean
        .update(Tensor::from_floats([f32::NAN], &device));
    layer.forward(Tensor::<2>::from_floats([[1.0], [3.0]], &device));
    assert_eq!(vector(layer.running_mean.value()), [2.0]);
    assert_eq!(vector(layer.running_var.value()), [2.0]);
}

#[test]
fn a_constant_channel_gives_exactly_beta() {
    for (name, device) in devices::all() {
        let device = device.autodiff();
        let layer = BatchNormConfig::new(1).init(&device);
        let x = Tensor::<3>::full([7, 1, 13], 12345.678, &device);
        let y = vector(layer.forward(x));
        assert!(y.iter().all(|y| *y == 0.0), "{name}: {y:?}");
    }
}

#[test]
fn a_large_mean_keeps_four_digits_of_the_variance() {
    for (name, device) in devices::all() {
        let x = random([64, 1, 49], 1, &device) + 1e4;
        let exact = values(&x.to_data());
        let n = exact.len() as f64;
        let mean = exact.iter().sum::<f64>() / n;
        let variance = exact.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;

        let (gamma, beta) = (Tensor::ones([1], &device), Tensor::zeros([1], &device));
        let result = functional::train(x, gamma, beta, 1e-5, 1, Epilogue::default());
        let result = result.expect("a batch");
        let [got] = vector(result.variance)[..] else {
            panic!("one channel");
        };
        assert!((got / variance - 1.0).abs() < 1e-4, "{name}: {got}");
    }
}

#[test]
fn inputs_in_another_memory_order_give_the_same() {
    for (name, device) in devices::all() {
        let device = device.autodiff();
        let last = random([3, 4, 5, 2], 1, &device);
        let first = last.clone().permute([0, 3, 1, 2]);
        let config = BatchNormConfig::new(2);
        let expected = config.clone().with_channel_axis(-1).init(&device);
        let layer = config.init(&device);

        let y = layer.forward(first).permute([0, 2, 3, 1]).into_data();
        assert_close(name, &y, &expected.forward(last).into_data(), 1e-6);
        assert_eq!(
            layer.running_var.value().into_data().shape().to_vec(),
            [2],
            "{name}"
        );
    }
}

/// Whatever a user cuts, turns or spreads: reversed and skipped positions, strides of 0, a part of the channels.
#[test]
fn views_give_what_their_copies_give() {
    type View = fn(Tensor<4>) -> Tensor<4>;
    let views: [(&str, View); 6] = [
        ("permuted", |x| x.permute([2, 1, 3, 0])),
        ("flipped", |x| x.flip([1, 3])),
        ("stepped", |x| x.slice(s![.., 0..4;2, .., 0..5;3])),
        ("stepped back", |x| x.slice(s![0..3;-1, .., 0..6;-2, ..])),
        ("spread", |x| x.narrow(3, 1, 1).expand([3, 4, 6, 7])),
        ("cut", |x| x.narrow(1, 1, 2).narrow(3, 1, 3)),
    ];
    for (name, device) in devices::all() {
        let device = device.autodiff();
        for (what, view) in views {
            let what = format!("{what} on {name}");
            let run = |x: Tensor<4>| {
                let layer = BatchNormConfig::new(x.dims()[1]).init(&device);
                let x = x.detach().require_grad();
                let y = layer.forward(x.clone());
                let gradients = (y.clone() * random(x.dims(), 2, &device)).sum().backward();
                let dx = x.grad(&gradients).expect("a gradient");
                let inferred = layer.valid().forward(x.inner());
                [y, dx, inferred].map(Tensor::into_data)
            };
            let x = || view(random([3, 4, 6, 5], 1, &device) + 3.0);
            let copy = Tensor::from_data(x().into_data(), &device);
            for (got, expected) in run(x()).iter().zip(&run(copy)) {
                assert_close(&what, got, expected, 1e-4);
            }
        }
    }
}

#[test]
fn half_inputs_keep_f32_statistics() {
    let device = Device::flex().autodiff();
    let layer = BatchNormConfig::new(2).init(&device);
    for dtype in [DType::F16, DType::BF16] {
        // The variance overflows f16: 300^2 > 65504.
        let x = random([16, 2], 1, &device) * 1000.0;
        let y = layer.forward(x.cast(dtype));
        assert_eq!(y.dtype(), dtype);
        assert_eq!(layer.running_var.value().dtype(), DType::F32);
        assert!(vector(y).iter().all(|y| y.abs() < 3.0));
        assert!(
            vector(layer.running_var.value())
                .iter()
                .all(|v| v.is_finite())
        );
    }
}

#[test]
fn a_layer_without_statistics_normalizes_by_its_batch_in_inference_too() {
    let device = Device::flex();
    let x = random([16, 2], 1, &device) * 5.0 + 3.0;
    let layer = BatchNormConfig::new(2)
        .with_running_stats(false)
        .init(&device);
    let mean = layer.valid().forward(x).mean_dim(0).reshape([2]);
    assert!(vector(mean).iter().all(|mean| mean.abs() < 1e-5));
    assert_eq!(layer.num_batches_tracked.value(), 0);
}

#[test]
fn a_disabled_training_flag_still_trains_gamma_and_beta() {
    let device = Device::flex().autodiff();
    let mut layer = BatchNormConfig::new(2).init(&device);
    layer.training = layer.training.with_value(false);
    let y = layer.forward(random([8, 2], 1, &device));
    let gradients = (y * random([8, 2], 2, &device)).sum().backward();
    assert!(layer.gamma.grad(&gradients).is_some());
    assert!(layer.beta.grad(&gradients).is_some());
    assert_eq!(layer.num_batches_tracked.value(), 0);
}

#[test]
fn presets_are_those_of_their_frameworks() {
    let facts = |config: BatchNormConfig| {
        (
            config.epsilon,
            config.momentum,
            config.variance,
            config.channel_axis,
        )
    };
    use Variance::{Biased, Unbiased};
    assert_eq!(facts(BatchNormConfig::pytorch(4)), (1e-5, 0.1, Unbiased, 1));
    assert_eq!(facts(BatchNormConfig::keras(4)), (1e-3, 0.01, Biased, -1));
    assert_eq!(facts(BatchNormConfig::flax(4)), (1e-5, 0.01, Biased, -1));
    assert_eq!(facts(BatchNormConfig::onnx(4)), (1e-5, 0.1, Biased, 1));
    assert_eq!(facts(BatchNormConfig::burn(4)), (1e-5, 0.1, Biased, 1));
    assert_eq!(BatchNormConfig::new(4), BatchNormConfig::pytorch(4));
    for config in [
        BatchNormConfig::keras(4),
        BatchNormConfig::flax(4),
        BatchNormConfig::onnx(4),
        BatchNormConfig::burn(4),
    ] {
        assert_eq!(config.single_value, SingleValue::SkipUpdate);
    }
    assert_eq!(BatchNormConfig::pytorch(4).single_value, SingleValue::Error);

    let keras = Renorm::keras();
    assert_eq!(keras.reference, Reference::Separate { momentum: 0.01 });
    let unbounded = (Some(0.0), Bound::Unbounded, Bound::Unbounded);
    assert_eq!((keras.r_min, keras.r_max, keras.d_max), unbounded);
    let paper = Renorm::paper();
    assert_eq!((paper.r_min, paper.reference), (None, Reference::Running));
    let ramp = |start, end, until| Bound::Ramp {
        start,
        end,
        from: 5_000,
        until,
    };
    assert_eq!(paper.r_max, ramp(1.0, 3.0, 40_000));
    assert_eq!(paper.d_max, ramp(0.0, 5.0, 25_000));
}

/// What is infinite once it is rounded to the type computed in.
#[test]
fn numbers_beyond_f32_are_refused() {
    let device = Device::flex();
    let config = BatchNormConfig::new(2);
    let refused = |config: BatchNormConfig| config.try_init(&device).map(drop).unwrap_err();
    let epsilon = refused(config.clone().with_epsilon(1e39));
    assert_eq!(epsilon.name(), "Epsilon");
    assert!(
        epsilon.to_string().contains("at most its largest"),
        "{epsilon}"
    );
    let renorm = Renorm {
        r_min: Some(1e39),
        ..Renorm::keras()
    };
    let r_min = refused(config.with_statistics(Statistics::Renorm(renorm)));
    assert_eq!(r_min.name(), "Invalid");
}

#[test]
fn a_layer_tells_the_configuration_that_makes_it() {
    let config = BatchNormConfig::keras(4)
        .with_averaging(Averaging::Cumulative)
        .with_scale(false);
    let mut layer = config.init(&Device::flex());
    assert_eq!(layer.config(), config);
    layer.momentum = 0.5;
    assert_eq!(layer.config().momentum, 0.5);

    let json = config.to_string();
    assert_eq!(
        serde_json::from_str::<BatchNormConfig>(&json).expect("its own JSON"),
        config
    );
}

/// That it is true is shown by what a step holds ([`crate::memory`]) and by CubeCL's log
/// ([`crate::runner`]).
#[test]
fn every_device_of_the_build_runs_fused_kernels() {
    for (name, device) in devices::all() {
        assert!(functional::is_fused(&device), "{name}");
        assert!(functional::is_fused(&device.autodiff()), "{name}");
    }
}

#[test]
fn gradients_that_nobody_asked_for_are_not_there() {
    for (name, device) in devices::all() {
        let device = device.autodiff();
        let layer = BatchNormConfig::new(2).with_scale(false).init(&device);
        let x = random([16, 2, 9], 1, &device);
        let y = layer.forward(x.clone());
        let gradients = (y * random([16, 2, 9], 2, &device)).sum().backward();
        assert!(x.grad(&gradients).is_none(), "{name}");
        assert!(layer.gamma.grad(&gradients).is_none(), "{name}");
        let beta = vector(layer.beta.grad(&gradients).expect("a gradient"));
        let dy = random([16, 2, 9], 2, &device);
        let expected = vector(dy.swap_dims(0, 1).reshape([2, 144]).sum_dim(1));
        for (got, expected) in beta.iter().zip(expected) {
            assert!((got - expected).abs() < 1e-4, "{name}: {got} {expected}");
        }
    }
}
