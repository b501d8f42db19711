//! Who decides what enters the running statistics: switches, the guard, held updates, snapshots, recalibration.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicUsize, Ordering};

use batchnorm_tests::case::{Tensors, parse_tensors};
use batchnorm_tests::devices;
use burn::module::{Module, ModuleVisitor, Param};
use burn::nn::{Dropout, DropoutConfig};
use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::{DType, Device, Tensor};
use burn_batchnorm::{
    Averaging, BatchNorm, BatchNormConfig, Inference, Mask, NonFinite, Recalibration, Renorm,
    RunningState, SingleValue, Snapshot, Statistics, Variance, hold, recalibrate,
};

use crate::common::{assert_close, random, vector};

fn batch(seed: u64, device: &Device) -> Tensor<2> {
    random([16, 3], seed, device) * 2.0 + 5.0
}

fn state(layer: &BatchNorm) -> (Vec<f64>, Vec<f64>, u64) {
    (
        vector(layer.running_mean.value()),
        vector(layer.running_var.value()),
        layer.num_batches_tracked.value(),
    )
}

/// Fault S10, on every device and for every kind of value that is not finite.
#[test]
fn a_batch_that_is_not_finite_leaves_its_channel_alone_and_is_counted() {
    for (name, device) in devices::all() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let device = device.clone().autodiff();
            let [guarded, plain] = [NonFinite::Skip, NonFinite::Propagate].map(|policy| {
                BatchNormConfig::new(2)
                    .with_non_finite(policy)
                    .init(&device)
            });
            let poisoned = Tensor::<2>::from_floats([[1.0, bad], [3.0, 2.0]], &device);
            for layer in [&guarded, &plain] {
                layer.forward(poisoned.clone());
            }
            assert_eq!(vector(guarded.running_mean.value())[1], 0.0, "{name}");
            assert_eq!(vector(guarded.running_var.value())[1], 1.0, "{name}");
            assert!(!vector(plain.running_var.value())[1].is_finite(), "{name}");
            // The other channel has taken it.
            assert_close(
                name,
                &guarded.running_mean.value().narrow(0, 0, 1).into_data(),
                &Tensor::<1>::from_floats([0.2], &device).into_data(),
                1e-6,
            );
            assert_eq!(vector(guarded.skipped_updates()), [0.0, 1.0], "{name}");
        }
    }
}

#[test]
fn a_skipped_batch_has_no_weight_in_a_cumulative_average() {
    for (name, device) in devices::all() {
        let device = device.autodiff();
        let layer = BatchNormConfig::new(1)
            .with_averaging(Averaging::Cumulative)
            .with_non_finite(NonFinite::Skip)
            .init(&device);
        for values in [[1.0, 3.0], [f32::NAN, 3.0], [5.0, 9.0]] {
            layer.forward(Tensor::<1>::from_floats(values, &device).reshape([2, 1]));
        }
        // Means 2 and 7, unbiased variances 2 and 8.
        assert_close(
            name,
            &layer.running_mean.value().into_data(),
            &Tensor::<1>::from_floats([4.5], &device).into_data(),
            1e-6,
        );
        assert_close(
            name,
            &layer.running_var.value().into_data(),
            &Tensor::<1>::from_floats([5.0], &device).into_data(),
            1e-6,
        );
        // A record counts the two that entered.
        let fresh = BatchNormConfig::new(1)
            .with_averaging(Averaging::Cumulative)
            .init(&device);
        let record = layer.into_record();
        let loaded = fresh.load_record(record);
        assert_eq!(loaded.num_batches_tracked.value(), 2, "{name}");
    }
}

#[test]
fn momentum_one_heals() {
    for (name, device) in devices::all() {
        let device = device.autodiff();
        let mut layer = BatchNormConfig::new(3).init(&device);
        layer.forward(batch(1, &device) * f32::NAN);
        layer.momentum = 1.0;
        layer.forward(batch(1, &device));
        assert!(
            vector(layer.running_var.value())
                .iter()
                .all(|v| v.is_finite()),
            "{name}"
        );
    }
}

#[test]
fn the_switches_survive_train_valid_and_json() {
    for (name, device) in devices::all() {
        let device = device.autodiff();
        let config = BatchNormConfig::new(3)
            .with_statistics(Statistics::Running)
            .with_update_statistics(false)
            .with_train_affine(false);
        let json = config.to_string();
        let config: BatchNormConfig = serde_json::from_str(&json).expect("its own JSON");
        let mut layer = config.init(&device).valid().train().unfreeze();
        let x = batch(1, &device).require_grad();
        let y = layer.forward(x.clone());
        // By the running statistics: mean 0, variance 1.
        assert_close(
            name,
            &y.clone().into_data(),
            &(x.clone() / (1.0f64 + 1e-5).sqrt()).into_data(),
            1e-6,
        );
        assert_eq!(state(&layer), (vec![0.0; 3], vec![1.0; 3], 0), "{name}");
        let gradients = y.sum().backward();
        assert!(layer.gamma.grad(&gradients).is_none(), "{name}");
        assert!(x.grad(&gradients).is_some(), "{name}");

        // Each by itself, on a layer that exists.
        layer
            .reconfigure(config.clone().with_update_statistics(true))
            .expect("another option");
        layer.forward(batch(1, &device));
        assert_eq!(layer.num_batches_tracked.value(), 1, "{name}");
        layer
            .reconfigure(BatchNormConfig::new(3).with_update_statistics(false))
            .expect("another option");
        let y = layer.forward(batch(2, &device));
        assert!(
            vector(y.clone().mean_dim(0))
                .iter()
                .all(|mean| mean.abs() < 1e-5),
            "{name}: by the batch"
        );
        assert_eq!(layer.num_batches_tracked.value(), 1, "{name}");
        let gradients = y.powi_scalar(3).sum().backward();
        assert!(
            layer.gamma.grad(&gradients).is_some(),
            "{name}: trains again"
        );
        for refused in [
            BatchNormConfig::new(4),
            BatchNormConfig::new(3).with_scale(false),
            BatchNormConfig::new(3).with_running_stats(false),
            BatchNormConfig::new(3).with_statistics(Statistics::Renorm(Renorm::keras())),
        ] {
            let before = layer.config();
            let error = layer.reconfigure(refused).expect_err("a refusal");
            assert_eq!(layer.config(), before, "{name}");
            assert_eq!(error.name(), "Reconfigure", "{name}: {error}");
        }
    }
}

#[test]
fn inference_by_the_batch_or_a_blend_adapts_and_keeps_the_state() {
    for (name, device) in devices::all() {
        let [by_batch, half, none] = [
            Inference::Batch,
            Inference::Blend { batch: 0.5 },
            Inference::Blend { batch: 0.0 },
        ]
        .map(|inference| {
            BatchNormConfig::new(3)
                .with_inference(inference)
                .init(&device)
        });
        let x = batch(1, &device);
        let mean = |layer: &BatchNorm| vector(layer.forward(x.clone()).mean_dim(0));
        assert!(
            mean(&by_batch).iter().all(|mean| mean.abs() < 1e-4),
            "{name}"
        );
        for ((half, none), x) in mean(&half)
            .iter()
            .zip(mean(&none))
            .zip(vector(x.clone().mean_dim(0)))
        {
            assert!((none - x).abs() < 1e-4, "{name}: {none} {x}");
            // (x - x / 2) / sqrt(blended variance), which is between the two.
            assert!(*half > 0.2 * x && *half < 0.8 * x, "{name}: {half} {x}");
        }
        assert_eq!(state(&half), (vec![0.0; 3], vec![1.0; 3], 0), "{name}");
    }
}

#[test]
fn held_updates_wait_and_are_committed_or_discarded() {
    for (name, device) in devices::all() {
        let device = device.autodiff();
        let (layer, plain) = (
            BatchNormConfig::new(3).init(&device),
            BatchNormConfig::new(3).init(&device),
        );
        let x = batch(1, &device);
        let (y, held) = hold(|| layer.forward(x.clone()));
        assert_eq!(held.layers(), 1, "{name}");
        assert_eq!(state(&layer), (vec![0.0; 3], vec![1.0; 3], 0), "{name}");
        assert_close(
            name,
            &y.into_data(),
            &plain.forward(x.clone()).into_data(),
            1e-6,
        );
        held.commit();
        assert_eq!(layer.num_batches_tracked.value(), 1, "{name}");
        let (got, expected) = (layer.running_var.value(), plain.running_var.value());
        assert_close(name, &got.into_data(), &expected.into_data(), 1e-6);

        let before = state(&layer);
        hold(|| layer.forward(batch(2, &device))).1.discard();
        drop(hold(|| layer.forward(batch(2, &device))));
        assert_eq!(state(&layer), before, "{name}");
        // And after it the layer is as ever.
        layer.forward(batch(2, &device));
        assert_eq!(layer.num_batches_tracked.value(), 2, "{name}");
    }
}

/// Four micro-batches of different sizes and means, and the batch that they are parts of.
#[test]
fn accumulated_passes_enter_as_one_batch() {
    for (name, device) in devices::all() {
        for non_finite in [NonFinite::Propagate, NonFinite::Skip] {
            let device = device.clone().autodiff();
            let config = BatchNormConfig::new(3).with_non_finite(non_finite);
            let (layer, whole) = (config.init(&device), config.init(&device));
            let parts: Vec<Tensor<2>> = [3, 16, 1, 7]
                .iter()
                .enumerate()
                .map(|(seed, n)| random([*n, 3], seed as u64, &device) + seed as f64 * 10.0)
                .filter(|part| part.dims()[0] > 1)
                .collect();
            let (_, held) = hold(|| {
                parts[..2]
                    .iter()
                    .for_each(|part| drop(layer.forward(part.clone())))
            });
            let (_, more) = hold(|| layer.forward(parts[2].clone()));
            held.and(more).commit();
            whole.forward(Tensor::cat(parts, 0));
            assert_eq!(layer.num_batches_tracked.value(), 1, "{name}");
            for (got, expected) in [
                (layer.running_mean.value(), whole.running_mean.value()),
                (layer.running_var.value(), whole.running_var.value()),
            ] {
                assert_close(name, &got.into_data(), &expected.into_data(), 1e-5);
            }
        }
    }
}

#[test]
fn what_is_held_reaches_the_layer_after_an_optimizer_step() {
    let device = Device::flex().autodiff();
    let layer = BatchNormConfig::new(3).init(&device);
    let (y, held) = hold(|| layer.forward(batch(1, &device)));
    let gradients = GradientsParams::from_grads(y.powi_scalar(3).sum().backward(), &layer);
    let layer = SgdConfig::new().init().step(0.1, layer, gradients);
    held.commit();
    assert_eq!(layer.num_batches_tracked.value(), 1);
}

#[test]
fn a_pass_that_panics_closes_what_was_open() {
    let device = Device::flex().autodiff();
    let layer = BatchNormConfig::new(3).init(&device);
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| {
        hold(|| layer.forward(Tensor::<2>::ones([4, 2], &device)))
    }));
    assert!(result.is_err());
    layer.forward(batch(1, &device));
    assert_eq!(layer.num_batches_tracked.value(), 1);
}

#[derive(Module, Debug)]
struct Network {
    first: BatchNorm,
    dropout: Dropout,
    blocks: Vec<BatchNorm>,
}

impl Network {
    fn new(device: &Device) -> Self {
        let norm = || BatchNormConfig::new(3).init(device);
        Self {
            first: norm(),
            dropout: DropoutConfig::new(0.5).init(),
            blocks: vec![norm(), norm()],
        }
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let x = self.dropout.forward(self.first.forward(x)) * 3.0 + 1.0;
        self.blocks
            .iter()
            .fold(x, |x, norm| norm.forward(x).powi_scalar(2))
    }
}

#[test]
fn a_snapshot_restores_the_statistics_and_nothing_else() {
    for (name, device) in devices::all() {
        let device = device.autodiff();
        let mut network = Network::new(&device);
        network.forward(batch(1, &device));
        let before = Snapshot::of(&network);
        let states = |network: &Network| [state(&network.first), state(&network.blocks[1])];
        let expected = states(&network);
        network.forward(batch(2, &device));
        network.first.gamma = network
            .first
            .gamma
            .map(|gamma| (gamma * 2.0).detach().require_grad());
        assert_ne!(states(&network), expected, "{name}");
        let network = before.restore(network);
        for (got, expected) in states(&network).iter().zip(&expected) {
            assert_eq!((&got.0, &got.1), (&expected.0, &expected.1), "{name}");
        }
        assert_eq!(vector(network.first.gamma.val()), [2.0; 3], "{name}");
    }
}

/// The statistics of all values at once, from batches of different sizes and means.
#[test]
fn recalibration_gives_the_statistics_of_the_population() {
    for (name, device) in devices::all() {
        for variance in [Variance::Unbiased, Variance::Biased] {
            let training = device.clone().autodiff();
            let mut layer = BatchNormConfig::new(3)
                .with_variance(variance)
                .init(&training);
            layer.forward(random([8, 3], 1, &training) * f32::NAN);
            layer.momentum = 0.25;
            let parts = || {
                [3, 16, 7, 2]
                    .into_iter()
                    .enumerate()
                    .map(|(seed, n)| random([n, 3], seed as u64, &device) + (seed * seed) as f64)
            };
            let layer = recalibrate(layer, Recalibration::Population, parts(), |layer, x| {
                layer.forward(x);
            });
            let whole = BatchNormConfig::new(3)
                .with_variance(variance)
                .with_momentum(1.0)
                .init(&training);
            whole.forward(Tensor::from_inner(Tensor::cat(parts().collect(), 0)));
            for (got, expected) in [
                (layer.running_mean.value(), whole.running_mean.value()),
                (layer.running_var.value(), whole.running_var.value()),
            ] {
                assert_close(name, &got.into_data(), &expected.into_data(), 1e-5);
            }
            assert_eq!(layer.momentum, 0.25, "{name}");
            assert!(layer.gamma.is_require_grad(), "{name}");
        }
    }
}

#[test]
fn recalibration_leaves_frozen_layers_alone_and_dropout_off() {
    for (name, device) in devices::all() {
        let training = device.clone().autodiff();
        let mut network = Network::new(&training);
        network.forward(batch(1, &training));
        network.blocks[0].training = network.blocks[0].training.clone().with_value(false);
        network.blocks[1]
            .reconfigure(BatchNormConfig::new(3).with_update_statistics(false))
            .expect("another option");
        let before = [state(&network.blocks[0]), state(&network.blocks[1])];
        let passes = AtomicUsize::new(0);
        let run = |network: Network| {
            recalibrate(
                network,
                Recalibration::Population,
                [batch(5, &device)],
                |network, x| {
                    passes.fetch_add(1, Ordering::Relaxed);
                    let y = network.forward(x.clone());
                    // Dropout would make two passes differ.
                    assert_eq!(vector(y), vector(network.forward(x)), "{name}");
                },
            )
        };
        let network = run(network);
        assert_eq!(passes.load(Ordering::Relaxed), 1);
        assert_eq!(
            [state(&network.blocks[0]), state(&network.blocks[1])],
            before,
            "{name}"
        );
        let expected = batch(5, &device).mean_dim(0).into_data();
        assert_close(
            name,
            &network
                .first
                .running_mean
                .value()
                .unsqueeze::<2>()
                .into_data(),
            &expected,
            1e-5,
        );
        // It trains as before.
        network.forward(batch(2, &training));
        assert!(network.first.training.is_enabled() && !network.blocks[0].training.is_enabled());

        let before = state(&network.first);
        let network = recalibrate(
            network,
            Recalibration::Average,
            Vec::<Tensor<2>>::new(),
            |network, x| {
                network.forward(x);
            },
        );
        assert_eq!(
            state(&network.first).0,
            before.0,
            "{name}: no data, no change"
        );
    }
}

/// PyTorch's `update_bn` (goldens/option_peers.py).
#[test]
fn recalibration_by_averages_is_update_bn() {
    let file = crate::goldens::folder().join("option_pytorch_update_bn.safetensors");
    let tensors: Tensors =
        parse_tensors(&std::fs::read(file).expect("the golden")).expect("tensors");
    for (name, device) in devices::all() {
        let training = device.clone().autodiff();
        let layer = BatchNormConfig::new(4).init(&training);
        layer.forward(random([8, 4, 3], 1, &training));
        let batches = ["x", "x2", "x3"]
            .map(|name| Tensor::<3>::from_data(tensors[name].clone().convert::<f32>(), &device));
        let layer = recalibrate(layer, Recalibration::Average, batches, |layer, x| {
            layer.forward(x);
        });
        for (field, got) in [
            ("running_mean", &layer.running_mean),
            ("running_var", &layer.running_var),
        ] {
            let expected = tensors[&format!("expect.{field}")].clone().convert::<f32>();
            assert_close(
                &format!("{field} on {name}"),
                &got.value().into_data(),
                &expected,
                1e-5,
            );
        }
    }
}

/// An undo, and a model that another thread holds.
#[test]
fn recalibration_can_be_undone() {
    let device = Device::flex().autodiff();
    let layer = BatchNormConfig::new(3)
        .with_statistics(Statistics::Renorm(Renorm::keras()))
        .init(&device);
    layer.forward(batch(1, &device));
    let before = Snapshot::of(&layer);
    /// Every float parameter.
    #[derive(Default)]
    struct Floats(Vec<Vec<f64>>);
    impl ModuleVisitor for Floats {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.push(vector(param.val()));
        }
    }
    let record = |layer: &BatchNorm| {
        let mut floats = Floats::default();
        layer.visit(&mut floats);
        floats.0
    };
    let expected = record(&layer);
    assert_eq!(
        expected.len(),
        7,
        "gamma, beta, mean, variance and what renormalization keeps"
    );
    let layer = recalibrate(
        layer,
        Recalibration::Population,
        [batch(9, &Device::flex())],
        |layer, x| {
            layer.forward(x);
        },
    );
    assert_ne!(record(&layer), expected);
    assert_eq!(record(&before.restore(layer)), expected);
}

/// A pass within a pass, and a step that was held within another.
#[test]
fn held_within_held() {
    let device = Device::flex().autodiff();
    let layer = BatchNormConfig::new(3).init(&device);
    let (inner, outer) = hold(|| {
        layer.forward(batch(1, &device));
        let (_, inner) = hold(|| layer.forward(batch(2, &device)));
        let (_, committed) = hold(|| layer.forward(batch(3, &device)));
        committed.commit();
        inner
    });
    assert_eq!(layer.num_batches_tracked.value(), 0);
    inner.discard();
    outer.commit();
    let whole = BatchNormConfig::new(3).init(&device);
    whole.forward(Tensor::cat(vec![batch(1, &device), batch(3, &device)], 0));
    let (got, expected) = (layer.running_var.value(), whole.running_var.value());
    assert_close(
        "as one batch",
        &got.into_data(),
        &expected.into_data(),
        1e-5,
    );
}

/// A state that somebody has put into the fields is updated, held or not.
#[test]
fn replaced_fields_are_held_too() {
    let device = Device::flex().autodiff();
    let mut layer = BatchNormConfig::new(3).init(&device);
    layer.running_mean = RunningState::new(Tensor::zeros([3], &device));
    let (_, held) = hold(|| {
        layer.forward(batch(1, &device));
        layer.forward(batch(2, &device));
    });
    assert_eq!(held.layers(), 1);
    held.commit();
    assert!(
        vector(layer.running_mean.value())
            .iter()
            .all(|mean| *mean > 0.1)
    );
    assert_eq!(layer.num_batches_tracked.value(), 1);
}

/// A channel that no batch tells anything of keeps what it has.
#[test]
fn recalibration_keeps_what_it_knows_nothing_of() {
    for (name, device) in devices::all() {
        for mode in [Recalibration::Population, Recalibration::Average] {
            let layer = BatchNormConfig::new(2)
                .with_non_finite(NonFinite::Skip)
                .init(&device.clone().autodiff());
            layer
                .running_mean
                .update(Tensor::from_floats([5.0, 5.0], &device));
            let bad = Tensor::<2>::from_floats([[1.0, f32::NAN], [3.0, 1.0]], &device);
            let layer = recalibrate(layer, mode, [bad.clone(), bad], |layer, x| layer.forward(x));
            assert_eq!(
                vector(layer.running_mean.value()),
                [2.0, 5.0],
                "{name}: {mode:?}"
            );
            assert_eq!(
                vector(layer.running_var.value())[1],
                1.0,
                "{name}: {mode:?}"
            );
        }
    }
}

/// Statistics in f64, and inputs in f32 with a guard and a mask.
#[test]
fn wide_statistics_take_every_option() {
    for (name, device) in devices::all() {
        if !device.supports_dtype(DType::F64) {
            continue;
        }
        let device = device.autodiff();
        let mut layer = BatchNormConfig::new(3)
            .with_non_finite(NonFinite::Skip)
            .with_averaging(Averaging::Cumulative)
            .init(&device);
        let wide = |tensor: Tensor<1>| RunningState::new(tensor.cast(DType::F64));
        layer.running_mean = wide(layer.running_mean.value());
        layer.running_var = wide(layer.running_var.value());
        for seed in 1..3 {
            layer.forward_masked(
                batch(seed, &device),
                &Mask::from_weights(Tensor::<1>::ones([16], &device)),
            );
        }
        assert_eq!(layer.running_var.value().dtype(), DType::F64, "{name}");
        assert_eq!(layer.num_batches_tracked.value(), 2, "{name}");
        layer.clone().frozen().forward(batch(3, &device));
    }
}

/// The first batch replaces, and the rest weigh as in an exponential average without its start.
#[test]
fn a_debiased_average_begins_with_the_first_batch() {
    for (name, device) in devices::all() {
        let device = device.autodiff();
        let layer = BatchNormConfig::new(1)
            .with_averaging(Averaging::Debiased)
            .with_momentum(0.25)
            .init(&device);
        let see = |a: f32| layer.forward(Tensor::<2>::from_floats([[a - 1.0], [a + 1.0]], &device));
        see(8.0);
        assert_eq!(vector(layer.running_mean.value()), [8.0], "{name}");
        assert_eq!(vector(layer.running_var.value()), [2.0], "{name}");
        see(1.0);
        // (0.75 * 8 + 1) / 1.75
        let [mean] = vector(layer.running_mean.value())[..] else {
            panic!("one channel")
        };
        assert!((mean - 4.0).abs() < 1e-6, "{name}: {mean}");
        // The count decides, so it is recorded.
        let config = layer.config();
        let loaded = config.init(&device).load_record(layer.into_record());
        assert_eq!(loaded.num_batches_tracked.value(), 2, "{name}");
    }
}

#[test]
fn a_reset_layer_is_as_new_but_for_its_parameters() {
    for (name, device) in devices::all() {
        let device = device.autodiff();
        let config = BatchNormConfig::keras(3)
            .with_statistics(Statistics::Renorm(Renorm::keras()))
            .with_averaging(Averaging::Cumulative)
            .with_non_finite(NonFinite::Skip)
            .with_initial_gamma(0.0)
            .with_initial_beta(2.0);
        let (layer, fresh) = (config.init(&device), config.init(&device));
        layer.forward(batch(1, &device) * f32::NAN);
        layer.forward(batch(1, &device));
        layer.reset_statistics();
        assert_eq!(state(&layer), (vec![0.0; 3], vec![1.0; 3], 0), "{name}");
        assert_eq!(vector(layer.skipped_updates()), [0.0; 3], "{name}");
        for layer in [&layer, &fresh] {
            let y = layer.forward(batch(2, &device));
            assert!(
                vector(y).iter().all(|y| *y == 2.0),
                "{name}: gamma 0, beta 2"
            );
        }
        assert_eq!(state(&layer), state(&fresh), "{name}");
    }
    for config in [
        BatchNormConfig::new(3).with_initial_gamma(f64::NAN),
        BatchNormConfig::new(3)
            .with_scale(false)
            .with_initial_gamma(0.5),
        BatchNormConfig::new(3)
            .with_shift(false)
            .with_initial_beta(0.5),
    ] {
        assert_eq!(
            config
                .try_init(&Device::flex())
                .expect_err("a refusal")
                .name(),
            "Invalid"
        );
    }
}

/// PyTorch's `bn.eval()` takes one image, and so does a layer that is frozen by its options.
#[test]
fn a_layer_that_runs_by_its_statistics_takes_one_value() {
    for (name, device) in devices::all() {
        let device = device.autodiff();
        for policy in [
            SingleValue::Error,
            SingleValue::SkipUpdate,
            SingleValue::UseRunning,
        ] {
            let layer = BatchNormConfig::new(3)
                .with_statistics(Statistics::Running)
                .with_update_statistics(false)
                .with_single_value(policy)
                .init(&device);
            let x = batch(1, &device).narrow(0, 0, 1);
            let expected = layer.valid().forward(x.clone().inner());
            assert_close(
                name,
                &layer.forward(x).into_data(),
                &expected.into_data(),
                1e-6,
            );
        }
    }
}

/// The weight of the second batch is half, however small the momentum: by channel, as on the host.
#[test]
fn debiased_averages_of_small_momenta_keep_their_digits() {
    for (name, device) in devices::all() {
        for momentum in [1e-8, 1e-5, 1e-3, 0.3] {
            let device = device.clone().autodiff();
            let config = BatchNormConfig::new(3)
                .with_averaging(Averaging::Debiased)
                .with_momentum(momentum);
            let plain = config.clone().init(&device);
            let guarded = config.with_non_finite(NonFinite::Skip).init(&device);
            for seed in 1..4 {
                plain.forward(batch(seed, &device) * seed as f64);
                guarded.forward(batch(seed, &device) * seed as f64);
            }
            for (got, expected) in [
                (&guarded.running_mean, &plain.running_mean),
                (&guarded.running_var, &plain.running_var),
            ] {
                let (got, expected) = (got.value().into_data(), expected.value().into_data());
                assert_close(&format!("{name}, {momentum}"), &got, &expected, 1e-5);
            }
        }
    }
}

/// What the second layer will see in inference is what the first makes of the data by its new statistics.
#[test]
fn recalibration_reaches_layers_behind_layers_by_other_statistics() {
    for (name, device) in devices::all() {
        let x = batch(1, &device) * 2.0 + 5.0;
        for statistics in [
            Statistics::Running,
            Statistics::Blend { batch: 0.1 },
            Statistics::Ghost(burn_batchnorm::Ghost {
                size: 2,
                variance: burn_batchnorm::GhostVariance::Mean,
            }),
        ] {
            let norm = || {
                BatchNormConfig::new(3)
                    .with_statistics(statistics)
                    .with_variance(Variance::Biased)
                    .init(&device.clone().autodiff())
            };
            let mut network = Network::new(&device.clone().autodiff());
            (network.first, network.blocks) = (norm(), vec![norm()]);
            let network = recalibrate(
                network,
                Recalibration::Population,
                [x.clone()],
                |network, x| network.blocks[0].forward(network.first.forward(x)),
            );
            let what = format!("{name} {statistics:?}");
            let second = &network.blocks[0];
            for (got, expected) in [
                (
                    &network.first.running_var,
                    x.clone().var_bias(0).reshape([3]),
                ),
                (&second.running_mean, Tensor::zeros([3], &device)),
                (&second.running_var, Tensor::ones([3], &device)),
            ] {
                let (got, expected) = (vector(got.value()), vector(expected));
                for (got, expected) in got.iter().zip(&expected) {
                    assert!((got - expected).abs() < 1e-4, "{what}: {got}, {expected}");
                }
            }
        }
    }
}

/// A last batch of one value has no variance of its own, but belongs to the population.
#[test]
fn recalibration_takes_parts_of_one_value() {
    let device = Device::flex();
    let layer = BatchNormConfig::new(1).init(&device.clone().autodiff());
    let column =
        |values: &[f32]| Tensor::<1>::from_floats(values, &device).reshape([values.len(), 1]);
    let layer = recalibrate(
        layer,
        Recalibration::Population,
        [column(&[1.0, 3.0]), column(&[8.0])],
        |layer, x| layer.forward(x),
    );
    assert!((vector(layer.running_mean.value())[0] - 4.0).abs() < 1e-5);
    assert!((vector(layer.running_var.value())[0] - 13.0).abs() < 1e-4);
}

/// Counts too, and what each channel has left out: the next batch weighs as it would have.
#[test]
fn a_snapshot_restores_what_each_channel_has_skipped() {
    for averaging in [Averaging::Cumulative, Averaging::Exponential] {
        let device = Device::flex().autodiff();
        let layer = BatchNormConfig::new(2)
            .with_averaging(averaging)
            .with_non_finite(NonFinite::Skip)
            .init(&device);
        let means = |a: f32, b: f32| {
            Tensor::<2>::from_floats([[a - 1.0, b - 1.0], [a + 1.0, b + 1.0]], &device)
        };
        layer.forward(means(2.0, 2.0));
        layer.forward(means(4.0, f32::NAN));
        let before = Snapshot::of(&layer);
        let untouched = layer.clone();
        layer.forward(means(f32::NAN, 30.0));
        let layer = before.restore(layer);
        assert_eq!(layer.num_batches_tracked.value(), 2);
        assert_eq!(vector(layer.skipped_updates()), [0.0, 1.0]);
        for layer in [&layer, &untouched] {
            layer.forward(means(9.0, 9.0));
        }
        assert_eq!(
            vector(layer.running_mean.value()),
            vector(untouched.running_mean.value())
        );
        if averaging == Averaging::Cumulative {
            let mean = vector(layer.running_mean.value());
            assert!(
                (mean[0] - 5.0).abs() < 1e-5 && (mean[1] - 5.5).abs() < 1e-5,
                "{mean:?}"
            );
        }
    }
}

/// Of the smallest momentums, too.
#[test]
fn debiased_averages_stay_finite() {
    let device = Device::flex().autodiff();
    for momentum in [1e-17, 1e-300, f64::MIN_POSITIVE] {
        let layer = BatchNormConfig::new(3)
            .with_averaging(Averaging::Debiased)
            .with_momentum(momentum)
            .init(&device);
        for seed in 1..4 {
            layer.forward(batch(seed, &device));
        }
        let (mean, variance) = (
            vector(layer.running_mean.value()),
            vector(layer.running_var.value()),
        );
        assert!(
            mean.iter().chain(&variance).all(|v| v.is_finite()),
            "{momentum}: {mean:?}"
        );
    }
}
