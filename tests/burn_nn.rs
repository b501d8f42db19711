//! The cases of burn-nn's tests of its own layer (0.22.1, `modules/norm/batch.rs`), by their names, on
//! ours with the `burn` preset and on every device. Its expected running variances are the unbiased
//! ones, which its tolerance takes for the biased ones that it computes; so does ours.

use batchnorm_tests::devices;
use burn::module::{Module, ParamGroup};
use burn::tensor::{Device, Tensor};
use burn_batchnorm::{BatchNorm, BatchNormConfig};
use rstest::rstest;

use crate::common::{assert_close, vector};

/// Absolute, as burn-nn's numbers have four digits.
fn near(what: &str, got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (got, expected) in got.iter().zip(expected) {
        let error = (got - expected).abs();
        assert!(error <= tolerance, "{what}: {got}, expected {expected}");
    }
}

fn layer(device: &Device) -> BatchNorm {
    BatchNormConfig::burn(3).init(device)
}

fn on_every_device(body: impl Fn(&str, Device)) {
    for (name, device) in devices::all() {
        body(name, device);
    }
}

#[test]
#[should_panic(expected = "num_features must be greater than zero.")]
fn zero_features_is_rejected() {
    BatchNormConfig::burn(0).init(&Device::flex());
}

#[rstest]
#[case::zero(0.0)]
#[case::negative(-1e-5)]
#[case::nan(f64::NAN)]
#[case::positive_infinity(f64::INFINITY)]
#[case::negative_infinity(f64::NEG_INFINITY)]
#[should_panic(expected = "epsilon must be finite and positive.")]
fn invalid_epsilon_is_rejected(#[case] epsilon: f64) {
    let config = BatchNormConfig::burn(1).with_epsilon(epsilon);
    config.init(&Device::flex());
}

#[rstest]
#[case::negative(-0.1)]
#[case::above_one(1.1)]
#[case::nan(f64::NAN)]
#[case::positive_infinity(f64::INFINITY)]
#[case::negative_infinity(f64::NEG_INFINITY)]
#[should_panic(expected = "momentum must be finite and within [0, 1].")]
fn invalid_momentum_is_rejected(#[case] momentum: f64) {
    let config = BatchNormConfig::burn(1).with_momentum(momentum);
    config.init(&Device::flex());
}

#[rstest]
#[case::zero(0.0, 0.0, 1.0)]
#[case::one(1.0, 4.0, 4.0)]
fn momentum_boundaries_update_running_statistics(
    #[case] momentum: f64,
    #[case] mean: f64,
    #[case] variance: f64,
) {
    on_every_device(|name, device| {
        let device = device.autodiff();
        let config = BatchNormConfig::burn(1).with_momentum(momentum);
        let layer = config.init(&device);
        layer.forward(Tensor::<2>::from_floats([[1.0], [3.0]], &device));
        let y = layer.forward(Tensor::<2>::from_floats([[2.0], [6.0]], &device));
        near(name, &vector(y), &[-1.0, 1.0], 1e-4);
        near(
            name,
            &vector(layer.running_mean.value_sync()),
            &[mean],
            1e-6,
        );
        near(
            name,
            &vector(layer.running_var.value_sync()),
            &[variance],
            1e-6,
        );
    });
}

#[test]
#[should_panic(expected = "rank 2 or more")]
fn input_rank_must_be_at_least_two() {
    let device = Device::flex();
    layer(&device).forward(Tensor::<1>::zeros([4], &device));
}

#[test]
#[should_panic(expected = "expects 3 channels on axis 1, got 4")]
fn input_channels_must_match() {
    let device = Device::flex();
    layer(&device).forward(Tensor::<3>::zeros([1, 4, 2], &device));
}

mod rank_3 {
    use super::*;

    const TRAIN: [f64; 12] = [
        1.1483e+00,
        3.7521e-01,
        1.6272e-03,
        7.5067e-01,
        1.6204e+00,
        -4.5168e-02,
        6.8856e-02,
        -1.5923e+00,
        -1.6318e+00,
        8.7949e-01,
        -5.3368e-01,
        -1.0416e+00,
    ];
    const VALID: [f64; 12] = [
        0.9409, 0.6976, 0.5892, 0.8774, 0.9106, 0.6844, 0.6012, 0.0782, -0.0394, 0.9270, 0.6181,
        0.5492,
    ];

    fn input(device: &Device) -> Tensor<3> {
        Tensor::from_floats(
            [
                [[0.9601, 0.7277], [0.6272, 0.9034], [0.9378, 0.7230]],
                [[0.6356, 0.1362], [0.0249, 0.9509], [0.6600, 0.5945]],
            ],
            device,
        )
    }

    #[test]
    fn batch_norm_forward_train() {
        on_every_device(|name, device| {
            let device = device.autodiff();
            let y = layer(&device).forward(input(&device));
            near(name, &vector(y), &TRAIN, 1e-3);
        });
    }

    #[test]
    fn batch_norm_forward_inference() {
        on_every_device(|name, device| {
            let training = device.clone().autodiff();
            let layer = layer(&training);
            layer.forward(input(&training));
            let y = layer.valid().forward(input(&device));
            near(name, &vector(y), &VALID, 3e-3);
        });
    }

    #[test]
    fn batch_norm_trains_under_gradient_checkpointing() {
        on_every_device(|name, device| {
            let device = device.autodiff().gradient_checkpointing();
            let layer = layer(&device);
            let y = layer.forward(input(&device));
            near(name, &vector(y), &TRAIN, 1e-3);
            assert_eq!(layer.running_mean.value_sync().dims(), [3]);
        });
    }

    #[test]
    fn batch_norm_forward_train_inference() {
        on_every_device(|name, device| {
            let training = device.clone().autodiff();
            let layer = layer(&training);
            layer.forward(input(&training));
            let layer = layer.valid();
            near(name, &vector(layer.forward(input(&device))), &VALID, 3e-3);
            let layer = layer.train();
            near(name, &vector(layer.forward(input(&training))), &TRAIN, 1e-3);
        });
    }
}

mod rank_4 {
    use super::*;

    fn input(device: &Device) -> Tensor<4> {
        Tensor::from_floats(
            [
                [
                    [[0.9601, 0.7277], [0.1270, 0.5441]],
                    [[0.6272, 0.9034], [0.4066, 0.7179]],
                    [[0.9378, 0.7230], [0.3544, 0.9591]],
                ],
                [
                    [[0.6356, 0.1362], [0.1333, 0.7287]],
                    [[0.0249, 0.9509], [0.3791, 0.2481]],
                    [[0.6600, 0.5945], [0.5424, 0.4767]],
                ],
            ],
            device,
        )
    }

    #[test]
    fn batch_norm_forward_train() {
        let expected = [
            1.5136, 0.7506, -1.2216, 0.1477, 0.3135, 1.2252, -0.4150, 0.6130, 1.4186, 0.3372,
            -1.5183, 1.5262, 0.4483, -1.1914, -1.2010, 0.7537, -1.6752, 1.3822, -0.5058, -0.9381,
            0.0200, -0.3097, -0.5715, -0.9026,
        ];
        on_every_device(|name, device| {
            let device = device.autodiff();
            let y = layer(&device).forward(input(&device));
            near(name, &vector(y), &expected, 1e-3);
        });
    }

    #[test]
    fn batch_norm_forward_inference() {
        let expected = [
            0.9538, 0.7103, 0.0808, 0.5179, 0.6015, 0.8910, 0.3703, 0.6966, 0.9171, 0.6912, 0.3037,
            0.9395, 0.6138, 0.0904, 0.0874, 0.7113, -0.0297, 0.9408, 0.3415, 0.2042, 0.6250,
            0.5561, 0.5013, 0.4323,
        ];
        on_every_device(|name, device| {
            let training = device.clone().autodiff();
            let layer = layer(&training);
            layer.forward(input(&training));
            let y = layer.valid().forward(input(&device));
            near(name, &vector(y), &expected, 3e-3);
        });
    }

    #[test]
    fn batch_norm_running_mean() {
        on_every_device(|name, device| {
            let device = device.autodiff();
            let layer = layer(&device);
            layer.forward(input(&device));
            let mean = vector(layer.running_mean.value_sync());
            near(name, &mean, &[0.0499, 0.0532, 0.0656], 1e-4);
        });
    }

    #[test]
    fn batch_norm_running_var() {
        on_every_device(|name, device| {
            let device = device.autodiff();
            let layer = layer(&device);
            layer.forward(input(&device));
            let variance = vector(layer.running_var.value_sync());
            near(name, &variance, &[0.9106, 0.9105, 0.9045], 3e-3);
        });
    }

    #[test]
    fn batch_norm_running_mean_inner_module() {
        on_every_device(|name, device| {
            let device = device.autodiff();
            let layer = layer(&device);
            layer.forward(input(&device));
            let valid = layer.valid().running_mean.value();
            let here = layer.running_mean.value();
            assert_close(name, &here.into_data(), &valid.into_data(), 0.0);
        });
    }

    #[test]
    fn frozen_batch_norm_on_a_training_device_uses_the_running_statistics() {
        on_every_device(|name, device| {
            let device = device.autodiff();
            let x = input(&device);
            // Mean 0, variance 1, gamma 1, beta 0: the identity.
            let y = layer(&device).freeze().forward(x.clone());
            near(name, &vector(y), &vector(x), 1e-3);
        });
    }

    #[test]
    fn frozen_batch_norm_does_not_update_its_running_statistics() {
        on_every_device(|name, device| {
            let device = device.autodiff();
            let layer = layer(&device).freeze();
            let before = vector(layer.running_mean.value_sync());
            layer.forward(input(&device));
            assert_eq!(vector(layer.running_mean.value_sync()), before, "{name}");
        });
    }

    #[test]
    fn enabling_gradients_does_not_make_running_statistics_trainable() {
        on_every_device(|name, device| {
            let device = device.autodiff();
            let layer = layer(&device).freeze();
            let group = ParamGroup::ids_from_module(layer.clone());
            let layer = layer.set_require_grad_group(group, true);
            assert!(layer.gamma.is_require_grad(), "{name}");
            assert!(layer.beta.is_require_grad(), "{name}");
            assert!(!layer.training.is_enabled(), "{name}");
            assert!(!layer.running_mean.value_sync().is_require_grad(), "{name}");
            assert!(!layer.running_var.value_sync().is_require_grad(), "{name}");

            let gradients = layer.forward(input(&device)).sum().backward();
            assert!(layer.gamma.grad(&gradients).is_some(), "{name}");
            assert!(layer.beta.grad(&gradients).is_some(), "{name}");
            let (mean, variance) = (
                layer.running_mean.value_sync(),
                layer.running_var.value_sync(),
            );
            assert!(mean.grad(&gradients).is_none(), "{name}");
            assert!(variance.grad(&gradients).is_none(), "{name}");
        });
    }

    #[test]
    fn freezing_only_gamma_keeps_batch_norm_training_behavior() {
        on_every_device(|name, device| {
            let device = device.autodiff();
            let layer = layer(&device).freeze_group(ParamGroup::from_path("gamma"));
            assert!(!layer.gamma.is_require_grad(), "{name}");
            assert!(layer.beta.is_require_grad(), "{name}");
            assert!(layer.training.is_enabled(), "{name}");
            let before = vector(layer.running_mean.value_sync());
            layer.forward(input(&device));
            assert_ne!(vector(layer.running_mean.value_sync()), before, "{name}");
        });
    }

    #[test]
    fn batch_norm_grads() {
        on_every_device(|name, device| {
            let device = device.autodiff();
            let layer = layer(&device);
            let x = input(&device).require_grad();
            let gradients = layer.forward(x.clone()).backward();
            let gamma = layer.gamma.grad(&gradients).expect("a gradient");
            near(name, &vector(gamma), &[0.0; 3], 1e-5);
            let beta = layer.beta.grad(&gradients).expect("a gradient");
            near(name, &vector(beta), &[8.0; 3], 1e-5);
            let x = x.grad(&gradients).expect("a gradient");
            near(name, &vector(x), &[0.0; 24], 1e-5);
        });
    }
}

#[test]
fn display() {
    let ours = layer(&Device::flex());
    let options = "variance: Biased, single_value: SkipUpdate";
    assert_eq!(
        ours.to_string(),
        format!(
            "BatchNorm {{num_features: 3, momentum: 0.1, epsilon: 0.00001, {options}, params: 12}}"
        )
    );
    // The default options are not shown.
    let plain = BatchNormConfig::new(3).init(&Device::flex());
    assert_eq!(
        plain.to_string(),
        "BatchNorm {num_features: 3, momentum: 0.1, epsilon: 0.00001, params: 12}"
    );
    assert_eq!(
        plain.freeze().to_string(),
        "BatchNorm {num_features: 3, momentum: 0.1, epsilon: 0.00001, training: disabled, params: 12}"
    );
}
