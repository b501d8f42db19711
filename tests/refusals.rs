//! Everything the layer refuses: the error, the sentence of the panic, and an untouched state.

use std::panic::{AssertUnwindSafe, catch_unwind};

use batchnorm_tests::devices;
use burn::module::Param;
use burn::tensor::{DType, Device, Tensor};
use burn_batchnorm::{BatchNorm, BatchNormConfig, BatchNormError, RunningState, SingleValue};
use rstest::rstest;

use crate::common::{random, vector};

#[rstest]
#[case::zero(0.0)]
#[case::negative(-1e-5)]
#[case::nan(f64::NAN)]
#[case::infinite(f64::INFINITY)]
fn epsilon_must_be_finite_and_positive(#[case] epsilon: f64) {
    let config = BatchNormConfig::new(3).with_epsilon(epsilon);
    refused_at_init(&config, "Epsilon", "epsilon must be finite and positive.");
}

#[rstest]
#[case::negative(-0.1)]
#[case::above_one(1.1)]
#[case::nan(f64::NAN)]
#[case::infinite(f64::INFINITY)]
fn momentum_must_be_a_weight(#[case] momentum: f64) {
    let config = BatchNormConfig::new(3).with_momentum(momentum);
    refused_at_init(
        &config,
        "Momentum",
        "momentum must be finite and within [0, 1].",
    );
}

#[rstest]
#[case::zero(0.0)]
#[case::one(1.0)]
fn the_bounds_of_momentum_are_accepted(#[case] momentum: f64) {
    let config = BatchNormConfig::new(3).with_momentum(momentum);
    assert!(config.try_init(&Device::flex()).is_ok());
}

#[test]
fn there_must_be_a_channel() {
    refused_at_init(
        &BatchNormConfig::new(0),
        "NumFeatures",
        "num_features must be greater than zero.",
    );
}

fn refused_at_init(config: &BatchNormConfig, name: &str, sentence: &str) {
    let device = Device::flex();
    let error = config.try_init(&device).expect_err("a refusal");
    assert_eq!(error.name(), name);
    assert!(error.to_string().starts_with(sentence), "{error}");
    assert_eq!(panic_of(|| drop(config.init(&device))), error.to_string());
}

fn panic_of(f: impl FnOnce()) -> String {
    let payload = catch_unwind(AssertUnwindSafe(f)).expect_err("a panic");
    payload.downcast_ref::<String>().expect("a message").clone()
}

/// `layer` refuses `input` by an error and by a panic of the same words, and stays as it was.
fn refused<const D: usize>(
    layer: &BatchNorm,
    input: impl Fn() -> Tensor<D>,
    expected: &BatchNormError,
) {
    let state = || {
        (
            vector(layer.running_mean.value()),
            vector(layer.running_var.value()),
            layer.num_batches_tracked.value(),
        )
    };
    let before = state();
    let error = layer.try_forward(input()).expect_err("a refusal");
    assert_eq!(&error, expected);
    assert_eq!(panic_of(|| drop(layer.forward(input()))), error.to_string());
    assert_eq!(state(), before);
}

/// A layer of three channels that has seen a batch, so that a reset would be noticed.
fn trained(config: BatchNormConfig, device: &Device) -> BatchNorm {
    let layer = config.init(device);
    layer.forward(random([8, 3], 1, device));
    layer
}

#[test]
fn inputs_that_do_not_fit_are_refused_and_change_nothing() {
    for (_, device) in devices::all() {
        let device = device.autodiff();
        let layer = trained(BatchNormConfig::new(3), &device);

        refused(
            &layer,
            || random([3], 2, &device),
            &BatchNormError::Rank { rank: 1 },
        );
        refused(
            &layer,
            || random([8, 4], 2, &device),
            &BatchNormError::Channels {
                expected: 3,
                got: 4,
                axis: 1,
                shape: vec![8, 4],
            },
        );
        refused(
            &layer,
            || random([1, 3, 1], 2, &device),
            &BatchNormError::SingleValue {
                shape: vec![1, 3, 1],
                hint: "UseRunning, SkipUpdate",
            },
        );
    }
}

#[test]
fn the_channel_axis_must_be_one_of_the_input() {
    let device = Device::flex().autodiff();
    for axis in [2, -3] {
        let layer = BatchNormConfig::new(3)
            .with_channel_axis(axis)
            .init(&device);
        refused(
            &layer,
            || random([3, 3], 1, &device),
            &BatchNormError::ChannelAxis { axis, rank: 2 },
        );
    }
    for axis in [0, 1, -1, -2] {
        let layer = BatchNormConfig::new(3)
            .with_channel_axis(axis)
            .init(&device);
        assert!(layer.try_forward(random([3, 3], 1, &device)).is_ok());
    }
    let error = BatchNormError::ChannelAxis { axis: 4, rank: 4 };
    assert!(error.to_string().ends_with("expected -4 to 3."), "{error}");
}

#[test]
fn a_single_value_is_refused_without_statistics_to_use() {
    let device = Device::flex();
    let layer = BatchNormConfig::new(3)
        .with_running_stats(false)
        .with_single_value(SingleValue::UseRunning)
        .init(&device);
    let error = layer
        .try_forward(random([1, 3], 1, &device))
        .expect_err("a refusal");
    assert_eq!(error.name(), "SingleValue");
}

#[test]
fn types_that_make_no_sense_together_are_refused() {
    let device = Device::flex().autodiff();
    let layer = trained(BatchNormConfig::new(3), &device);
    refused(
        &layer,
        || random([8, 3], 1, &device).cast(DType::F64),
        &BatchNormError::DType {
            input: DType::F64,
            name: "gamma",
            parameter: DType::F32,
        },
    );

    let mut layer = trained(BatchNormConfig::new(3), &device);
    layer.beta = Param::from_tensor(layer.beta.val().cast(DType::F16).detach());
    refused(
        &layer,
        || random([8, 3], 1, &device),
        &BatchNormError::DType {
            input: DType::F32,
            name: "beta",
            parameter: DType::F16,
        },
    );
}

#[test]
fn fields_set_out_of_range_are_refused() {
    let device = Device::flex().autodiff();
    let mut layer = trained(BatchNormConfig::new(3), &device);
    layer.epsilon = 0.0;
    refused(
        &layer,
        || random([8, 3], 1, &device),
        &BatchNormError::Epsilon {
            epsilon: 0.0,
            smallest: f32::MIN_POSITIVE.into(),
        },
    );
    layer.epsilon = 1e-5;
    layer.momentum = 2.0;
    refused(
        &layer,
        || random([8, 3], 1, &device),
        &BatchNormError::Momentum { momentum: 2.0 },
    );

    let mut layer = trained(BatchNormConfig::new(3), &device);
    layer.running_var = RunningState::new(Tensor::ones([4], &device));
    refused(
        &layer,
        || random([8, 3], 1, &device),
        &BatchNormError::Parameter {
            name: "running_var",
            expected: 3,
            got: 4,
        },
    );
}
