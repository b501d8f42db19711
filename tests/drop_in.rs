//! One program compiled twice, with burn-nn's layer and with ours: only the `use` line differs.

use batchnorm_tests::devices;
use burn::module::Module;
use burn::tensor::{Device, TensorData};
use burn_batchnorm::Variance;

use crate::common::{assert_close, random, vector};

macro_rules! program {
    ($name:ident, $from:path) => {
        mod $name {
            use super::*;
            use layers::{BatchNorm, BatchNormConfig};
            use $from as layers;

            #[derive(Module, Debug)]
            pub struct Block {
                pub norm: BatchNorm,
            }

            pub fn config() -> BatchNormConfig {
                BatchNormConfig::new(3)
                    .with_epsilon(1e-4)
                    .with_momentum(0.3)
            }

            /// Touches every public name of burn-nn's layer, and returns what a user would see.
            pub fn run(block: Block, device: &Device) -> Vec<TensorData> {
                let device = &device.clone().autodiff();
                let x = random([4, 3, 2, 5], 1, device).require_grad();
                let y = block.norm.forward(x.clone());
                let gradients = (y.clone() * random([4, 3, 2, 5], 2, device))
                    .sum()
                    .backward();
                let norm = &block.norm;
                let mut seen = vec![
                    y.into_data(),
                    x.grad(&gradients).unwrap().into_data(),
                    norm.gamma.grad(&gradients).unwrap().into_data(),
                    norm.beta.grad(&gradients).unwrap().into_data(),
                    norm.gamma.val().into_data(),
                    norm.running_mean.value_sync().into_data(),
                    norm.running_var.value_sync().into_data(),
                ];
                assert_eq!((norm.momentum, norm.epsilon), (0.3, 1e-4));
                assert!(norm.training.is_enabled());

                let frozen = block.clone().freeze();
                let before = vector(frozen.norm.running_mean.value_sync());
                seen.push(frozen.norm.forward(random([6, 3], 3, device)).into_data());
                assert_eq!(vector(frozen.norm.running_mean.value_sync()), before);

                let valid = block.valid();
                let plain = &device.clone().inner();
                seen.push(valid.norm.forward(random([2, 3, 4], 4, plain)).into_data());
                seen.push(valid.norm.running_mean.value().into_data());
                seen
            }
        }
    };
}

program!(theirs, burn::nn);
program!(ours, burn_batchnorm);

#[test]
fn a_program_for_burn_nn_runs_unchanged_and_sees_the_same() {
    for (name, device) in devices::all() {
        let autodiff = device.clone().autodiff();
        let theirs = theirs::Block {
            norm: theirs::config().init(&autodiff),
        };
        // The one deliberate difference: the estimator of the running variance.
        let ours = ours::Block {
            norm: ours::config()
                .with_variance(Variance::Biased)
                .init(&autodiff),
        };
        let theirs = theirs::run(theirs, &device);
        let ours = ours::run(ours, &device);
        for (index, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
            assert_close(&format!("{name}, value {index}"), ours, theirs, 1e-4);
        }
    }
}

#[test]
fn the_display_is_that_of_burn_nn() {
    let device = Device::flex();
    let theirs = theirs::config().init(&device);
    let ours = ours::config().init(&device);
    assert_eq!(ours.to_string(), theirs.to_string());
    assert_eq!(ours.num_params(), theirs.num_params());

    let ours = ours::config()
        .with_channel_axis(-1)
        .with_shift(false)
        .init(&device);
    let shown = ours.to_string();
    assert!(shown.contains("channel_axis: -1"), "{shown}");
    assert!(shown.contains("shift: false"), "{shown}");
}

#[test]
fn a_saved_configuration_of_burn_nn_loads() {
    let theirs = theirs::config().to_string();
    let ours: burn_batchnorm::BatchNormConfig = serde_json::from_str(&theirs).expect("their JSON");
    assert_eq!(ours, ours::config());

    let error = serde_json::from_str::<burn_batchnorm::BatchNormConfig>(
        r#"{"num_features": 3, "momentun": 0.5}"#,
    )
    .expect_err("a misspelled field");
    assert!(error.to_string().contains("momentun"), "{error}");
}

#[test]
fn records_go_both_ways() {
    for (name, device) in devices::all() {
        let device = device.autodiff();
        let x = || random([8, 3, 4], 5, &device);

        let theirs = theirs::Block {
            norm: theirs::config().init(&device),
        };
        theirs.norm.forward(x());
        // burn-nn parks updates until `valid()`: without it the record misses the step above.
        let theirs = theirs.valid().train();
        let ours = ours::Block {
            norm: ours::config().init(&device),
        };
        let ours = ours.load_record(theirs.clone().into_record());
        let statistics = |norm: &burn_batchnorm::BatchNorm| {
            (
                vector(norm.running_mean.value()),
                vector(norm.running_var.value()),
            )
        };
        assert_eq!(
            statistics(&ours.norm),
            (
                vector(theirs.norm.running_mean.value_sync()),
                vector(theirs.norm.running_var.value_sync())
            ),
            "{name}"
        );

        ours.norm.forward(x());
        let expected = statistics(&ours.norm);
        let theirs = theirs.load_record(ours.into_record());
        let theirs = theirs.norm;
        assert_eq!(
            expected,
            (
                vector(theirs.running_mean.value_sync()),
                vector(theirs.running_var.value_sync())
            ),
            "{name}"
        );
    }
}
