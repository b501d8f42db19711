//! Other forms of the layer: by domains, frozen; and what is wrong with a model.

use batchnorm_tests::devices;
use burn::config::Config;
use burn::module::{Module, Quantizer};
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::quantization::{Calibration, QuantValue};
use burn::tensor::{Device, Tensor};
use burn_batchnorm::{
    Activation, Averaging, BatchNorm, BatchNormConfig, DomainBatchNorm, DomainBatchNormConfig,
    Health, NonFinite, Renorm, Snapshot, Statistics, health,
};

use crate::common::{assert_close, random, vector};

fn batch(seed: u64, device: &Device) -> Tensor<2> {
    random([16, 3], seed, device) * 2.0 + 5.0
}

#[test]
fn a_domain_is_a_layer_of_its_own() {
    for (name, device) in devices::all() {
        let device = device.autodiff();
        for shared_affine in [true, false] {
            let config = DomainBatchNormConfig::new(BatchNormConfig::new(3), 2)
                .with_shared_affine(shared_affine);
            let json = serde_json::to_string(&config).expect("JSON");
            assert_eq!(
                serde_json::from_str::<DomainBatchNormConfig>(&json).expect("its own"),
                config
            );
            let layer = config.init(&device);
            let plain = BatchNormConfig::new(3).init(&device);
            let (x, other) = (batch(1, &device), batch(2, &device) + 100.0);
            let y = layer.forward(x.clone(), 0);
            assert_close(name, &y.into_data(), &plain.forward(x).into_data(), 1e-6);
            layer.forward(other, 1);
            let means: Vec<_> = layer
                .domains
                .iter()
                .map(|domain| vector(domain.running_mean.value()))
                .collect();
            assert_eq!(means[0], vector(plain.running_mean.value()), "{name}");
            assert!(means[1][0] > 9.0, "{name}: {means:?}");
            let error = layer
                .try_forward(batch(1, &device), 2)
                .expect_err("a refusal");
            assert_eq!(error.name(), "Domains", "{name}: {error}");
        }
        assert!(
            DomainBatchNormConfig::new(BatchNormConfig::new(3), 0)
                .try_init(&device)
                .is_err()
        );
    }
}

/// Shared parameters: one of each, trained by every domain, saved once.
#[test]
fn shared_affine_parameters_are_one() {
    let device = Device::flex().autodiff();
    let config = DomainBatchNormConfig::new(BatchNormConfig::new(3), 3);
    let layer = config.init(&device);
    assert_eq!(layer.num_params(), 3 + 3 + 3 * (3 + 3));
    let y = layer.forward(batch(1, &device), 0).powi_scalar(3).sum()
        + layer.forward(batch(2, &device), 2).powi_scalar(3).sum();
    let gradients = GradientsParams::from_grads(y.backward(), &layer);
    let before = vector(layer.gamma.as_ref().expect("shared").val());
    let layer = AdamConfig::new().init().step(0.1, layer, gradients);
    let gamma = vector(layer.gamma.as_ref().expect("shared").val());
    assert!(
        gamma
            .iter()
            .zip(before)
            .all(|(new, old)| (new - old).abs() > 1e-3)
    );

    let loaded = config
        .init(&device)
        .load_record(layer.clone().into_record());
    let x = batch(3, &device.clone().inner());
    for domain in 0..3 {
        let (got, expected) = (
            loaded.valid().forward(x.clone(), domain),
            layer.valid().forward(x.clone(), domain),
        );
        let expected = expected.into_data();
        assert_close("loaded", &got.into_data(), &expected, 0.0);
        // And as a plain layer.
        let plain = layer.clone().into_layers().swap_remove(domain);
        assert_eq!(plain.config().num_features, 3);
        assert_close(
            "plain",
            &plain.valid().forward(x.clone()).into_data(),
            &expected,
            1e-6,
        );
    }
    let own = DomainBatchNorm::from_layers(layer.clone().into_layers()).expect("layers");
    assert!(own.gamma.is_none() && own.domains[1].gamma.is_require_grad());
    assert!(DomainBatchNorm::from_layers(vec![]).is_err());
    let differing = vec![
        BatchNormConfig::new(3).init(&device),
        BatchNormConfig::new(4).init(&device),
    ];
    assert!(DomainBatchNorm::from_layers(differing).is_err());
}

/// A layer of a domain can be made again from its configuration.
#[test]
fn layers_of_domains_have_the_configuration_that_they_were_made_of() {
    let device = Device::flex();
    let config = BatchNormConfig::new(3)
        .with_initial_gamma(0.0)
        .with_initial_beta(0.5);
    for shared in [true, false] {
        let domains = DomainBatchNormConfig::new(config.clone(), 2).with_shared_affine(shared);
        let file = tempfile::NamedTempFile::new().expect("a file");
        domains.save(file.path()).expect("saved");
        assert_eq!(
            DomainBatchNormConfig::load(file.path()).expect("loaded"),
            domains
        );
        let domains = domains.init(&device);
        // What only `into_layers` needs is not shown.
        let shown = domains.to_string();
        assert!(!shown.contains("initial:"), "{shown}");
        for layer in domains.into_layers() {
            assert_eq!(layer.config(), config, "shared: {shared}");
        }
    }
}

#[test]
fn domains_that_share_begin_as_the_layer_and_go_their_own_way() {
    let device = Device::flex().autodiff();
    let layer = BatchNormConfig::new(3).init(&device);
    layer.forward(batch(1, &device));
    let mean = vector(layer.running_mean.value());
    let domains = DomainBatchNorm::sharing(layer, 2).expect("two");
    domains.forward(batch(2, &device), 1);
    assert_eq!(vector(domains.domains[0].running_mean.value()), mean);
    assert_ne!(vector(domains.domains[1].running_mean.value()), mean);
    // A snapshot tells them apart.
    let before = Snapshot::of(&domains);
    domains.forward(batch(3, &device), 0);
    let domains = before.restore(domains);
    assert_eq!(vector(domains.domains[0].running_mean.value()), mean);
    assert_ne!(vector(domains.domains[1].running_mean.value()), mean);
}

fn trained(device: &Device) -> BatchNorm {
    let mut layer = BatchNormConfig::new(3)
        .with_averaging(Averaging::Cumulative)
        .with_activation(Activation::Relu)
        .with_momentum(0.3)
        .init(device);
    layer.gamma = layer
        .gamma
        .map(|_| (random([3], 7, device) + 0.2).require_grad());
    layer.beta = layer.beta.map(|_| random([3], 8, device).require_grad());
    (1..4).for_each(|seed| drop(layer.forward(batch(seed, device))));
    layer
}

/// detectron2's formula, and the layer's own inference.
#[test]
fn the_frozen_form_is_inference_and_thaws() {
    for (name, device) in devices::all() {
        let device = device.autodiff();
        let layer = trained(&device);
        let x = batch(9, &device).require_grad();
        let frozen = layer.clone().frozen();
        let expected = layer.valid().forward(x.clone().inner());
        let y = frozen.forward(x.clone());
        assert_close(name, &y.clone().into_data(), &expected.into_data(), 1e-5);
        let scale = layer.gamma.val().detach() / (layer.running_var.value() + 1e-5).sqrt();
        let shift = layer.beta.val().detach() - layer.running_mean.value() * scale.clone();
        assert_close(
            name,
            &frozen.scale.val().into_data(),
            &scale.into_data(),
            1e-6,
        );
        assert_close(
            name,
            &frozen.shift.val().into_data(),
            &shift.into_data(),
            1e-6,
        );

        // The input gets a gradient, nothing else does, and nothing moves.
        let gradients = y.sum().backward();
        assert!(x.grad(&gradients).is_some(), "{name}");
        assert!(frozen.scale.grad(&gradients).is_none(), "{name}");
        assert_eq!(frozen.num_params(), 6, "{name}");

        let thawed = frozen.thawed();
        assert_eq!(thawed.config(), layer.config(), "{name}");
        assert_eq!(thawed.num_batches_tracked.value(), 3, "{name}");
        for (got, expected) in [
            (thawed.gamma.val(), layer.gamma.val()),
            (thawed.beta.val(), layer.beta.val()),
            (thawed.running_mean.value(), layer.running_mean.value()),
            (thawed.running_var.value(), layer.running_var.value()),
        ] {
            assert_eq!(vector(got), vector(expected), "{name}: bit by bit");
        }
        let y = thawed.forward(batch(4, &device));
        let gradients = y.sum().backward();
        assert!(
            thawed.gamma.grad(&gradients).is_some(),
            "{name}: it trains again"
        );
    }
}

#[test]
fn a_frozen_form_that_was_loaded_thaws_to_what_it_does() {
    let device = Device::flex();
    let record = trained(&device.clone().autodiff()).frozen().into_record();
    let fresh = BatchNormConfig::new(3)
        .with_activation(Activation::Relu)
        .init(&device)
        .frozen();
    let loaded = fresh.load_record(record);
    let x = batch(9, &device);
    let expected = loaded.forward(x.clone());
    assert_close(
        "thawed",
        &loaded.thawed().forward(x).into_data(),
        &expected.into_data(),
        1e-5,
    );
}

#[derive(Module, Debug)]
struct Network {
    stem: BatchNorm,
    blocks: Vec<BatchNorm>,
}

impl Network {
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.blocks
            .iter()
            .fold(self.stem.forward(x), |x, norm| norm.forward(x))
    }
}

#[test]
fn health_finds_what_is_wrong_where_it_is() {
    for (name, device) in devices::all() {
        let training = device.clone().autodiff();
        let norm = || {
            BatchNormConfig::new(3)
                .with_non_finite(NonFinite::Skip)
                .with_momentum(1.0)
                .init(&training)
        };
        let mut network = Network {
            stem: norm(),
            blocks: vec![norm(), norm()],
        };
        let x = random([64, 3], 1, &training) * 2.0 + 5.0;
        network.forward(x.clone());
        let run = |network: &Network, x: Tensor<2>| {
            health(network, [x.clone().inner(), x.inner()], |network, x| {
                network.forward(x);
            })
        };
        let report = run(&network, x.clone());
        assert_eq!(report.layers.len(), 3, "{name}");
        assert!(report.is_healthy(), "{name}:\n{report}");
        assert!(
            report
                .layers
                .iter()
                .all(|layer| layer.output_gap.is_some_and(|gap| gap < 0.05)),
            "{name}:\n{report}"
        );
        assert_eq!(report.layers[1].path, "blocks.0", "{name}");

        // Data that has moved by 3 standard deviations of its own.
        let stddev = vector(network.stem.running_var.value())[0].sqrt();
        let moved = run(&network, x.clone() + 3.0 * stddev);
        let drift = moved.layers[0].mean_drift.expect("examined");
        assert!((2.5..3.6).contains(&drift), "{name}: {drift}");
        assert!(
            moved.layers[0].output_gap > Some(2.0) && !moved.is_healthy(),
            "{name}:\n{moved}"
        );

        // One fault each.
        network.forward(Tensor::<2>::from_floats(
            [[f32::NAN, 0.0, 0.0], [1.0, 1.0, 2.0]],
            &training,
        ));
        let stem = &run(&network, x.clone()).layers[0];
        assert_eq!(stem.skipped, 1, "{name}");
        network.blocks[1].gamma = network.blocks[1]
            .gamma
            .clone()
            .map(|_| Tensor::from_floats([1.0, 1e-5, 1.0], &training));
        network.blocks[0]
            .running_var
            .update(Tensor::from_floats([1.0, 1.0, 1e-9], &training));
        network
            .stem
            .running_mean
            .update(Tensor::from_floats([0.0, f32::NAN, 0.0], &training));
        let report = run(&network, x.clone());
        assert_eq!(report.layers[2].dead, [1], "{name}");
        assert_eq!(report.layers[1].vanishing, [2], "{name}");
        assert_eq!(report.layers[0].non_finite, [1], "{name}");
        let table = report.to_string();
        assert!(
            table.contains("blocks.1") && table.lines().count() == 4,
            "{table}"
        );

        let report = run(&network, x);
        let json = serde_json::to_string(&report).expect("JSON");
        let read: Health = serde_json::from_str(&json).expect("its own JSON");
        assert_eq!(read.layers[2].dead, [1], "{name}");
    }
}

#[test]
fn health_without_data_tells_what_parameters_tell() {
    let device = Device::flex();
    let layer = BatchNormConfig::new(3).init(&device);
    layer
        .running_var
        .update(Tensor::from_floats([1.0, -1.0, 1.0], &device));
    let report = health(&layer, Vec::<Tensor<2>>::new(), |layer, x| {
        layer.forward(x);
    });
    assert_eq!(report.layers[0].non_finite, [1]);
    assert_eq!(report.layers[0].mean_drift, None);
    assert_eq!(report.layers[0].path, "");
}

/// Ids are what optimizers, records and snapshots know parameters by.
#[test]
fn domains_made_of_clones_are_told_apart() {
    let device = Device::flex().autodiff();
    let renorm = BatchNormConfig::keras(3).with_statistics(Statistics::Renorm(Renorm::keras()));
    let layer = renorm.init(&device);
    layer.forward(batch(1, &device));
    for domains in [
        DomainBatchNorm::from_layers(vec![layer.clone(), layer.clone()]).expect("two"),
        DomainBatchNorm::sharing(layer.clone(), 2).expect("two"),
    ] {
        domains.forward(batch(2, &device) + 50.0, 1);
        let means = |domains: &DomainBatchNorm| {
            domains
                .domains
                .iter()
                .map(|domain| vector(domain.running_mean.value()))
                .collect::<Vec<_>>()
        };
        let expected = means(&domains);
        let domains = Snapshot::of(&domains).restore(domains);
        assert_eq!(means(&domains), expected);
        for domain in 0..2 {
            domains.forward(batch(3, &device), domain);
        }
        assert_ne!(means(&domains)[0], means(&domains)[1]);
    }
}

#[test]
fn a_frozen_form_thaws_to_the_mode_of_its_model() {
    let device = Device::flex().autodiff();
    let trains = |layer: &BatchNorm, x: Tensor<2>| {
        let count = layer.num_batches_tracked.value();
        let y = layer.forward(x);
        let gradients = y.powi_scalar(3).sum().backward();
        layer.num_batches_tracked.value() > count && layer.gamma.grad(&gradients).is_some()
    };
    let thawed = trained(&device).frozen().valid().thawed();
    assert!(!thawed.gamma.device().is_autodiff() && !thawed.training.is_enabled());
    let thawed = trained(&device).valid().frozen().train().thawed();
    assert!(trains(&thawed, batch(1, &device)), "trains again");

    // Loaded from elsewhere, on a device that checkpoints.
    let device = Device::flex().autodiff().gradient_checkpointing();
    let record = trained(&device).frozen().into_record();
    let fresh = BatchNormConfig::new(3)
        .init(&device)
        .frozen()
        .load_record(record);
    let thawed = fresh.thawed();
    let y = thawed.forward(batch(1, &device));
    let gradients = y.powi_scalar(3).sum().backward();
    assert!(thawed.gamma.grad(&gradients).is_some());
    let text = trained(&device).frozen().to_string();
    assert!(text.lines().count() < 12, "{text}");
}

#[test]
fn health_takes_empty_batches_and_finds_nan_in_any_channel() {
    let device = Device::flex();
    let layer = BatchNormConfig::new(2).init(&device);
    let empty = Tensor::<2>::from_data(
        burn::tensor::TensorData::new(Vec::<f32>::new(), [0, 2]),
        &device,
    );
    health(&layer, [empty], |layer, x| layer.forward(x));
    let bad = Tensor::<2>::from_floats([[f32::NAN, 0.1], [1.0, -0.1]], &device);
    let report = health(&layer, [bad], |layer, x| layer.forward(x));
    assert!(report.layers[0].mean_drift.expect("examined").is_nan());
    assert!(!report.is_healthy());
}

/// What `valid()` disabled for a time comes back with `train()`, whatever was made in between.
#[test]
fn forms_made_of_plain_layers_train_again() {
    let training = Device::flex().autodiff();
    let trains = |layer: &BatchNorm| {
        let y = layer.forward(batch(1, &training));
        let gradients = y.powi_scalar(3).sum().backward();
        layer.num_batches_tracked.value() > 0
            && layer.gamma.grad(&gradients).is_some()
            && layer.beta.grad(&gradients).is_some()
    };
    let config = BatchNormConfig::new(3);
    let plain = config.init(&Device::flex());
    let own = DomainBatchNorm::from_layers(vec![plain.clone(), plain.clone()]).expect("two");
    assert!(
        own.train().domains.iter().all(trains),
        "from clones on a plain device"
    );

    let shared = DomainBatchNorm::sharing(config.init(&training).valid(), 2)
        .expect("two")
        .train();
    let y = shared.forward(batch(1, &training), 1).powi_scalar(3).sum();
    let gradients = y.backward();
    assert!(
        shared
            .gamma
            .as_ref()
            .expect("shared")
            .grad(&gradients)
            .is_some()
    );
    assert_eq!(shared.domains[1].num_batches_tracked.value(), 1);
    let layers = shared.valid().into_layers();
    assert!(
        layers
            .into_iter()
            .map(Module::train)
            .all(|layer| trains(&layer)),
        "into layers"
    );

    let record = trained(&training).frozen().into_record();
    let loaded = config.init(&Device::flex()).frozen().load_record(record);
    assert!(trains(&loaded.thawed().train()), "thawed");

    // Options that decide nothing for a domain do not stand in its way.
    let zero = DomainBatchNormConfig::new(config.with_initial_gamma(0.0), 2).init(&training);
    let mut domain = zero.domains[0].clone();
    domain
        .reconfigure(domain.config().with_momentum(0.2))
        .expect("another option");
}

#[test]
fn a_quantized_layer_has_its_forms_too() {
    let device = Device::flex();
    let mut layer = BatchNormConfig::new(32).init(&device.clone().autodiff());
    layer.gamma = layer
        .gamma
        .map(|_| (random([32], 1, &device.clone().autodiff()) + 2.0).require_grad());
    let scheme = device
        .settings()
        .quantization
        .scheme
        .with_value(QuantValue::Q8S);
    let mut quantizer = Quantizer::new(Calibration::MinMax, scheme);
    let quantized = layer.valid().quantize_weights(&mut quantizer);
    let x = random([8, 32], 4, &device);
    let expected = quantized.forward(x.clone()).into_data();
    assert_close(
        "frozen",
        &quantized.clone().frozen().forward(x.clone()).into_data(),
        &expected,
        1e-5,
    );
    let domains = DomainBatchNorm::sharing(quantized, 2).expect("two");
    assert_close(
        "domain",
        &domains.forward(x, 1).into_data(),
        &expected,
        1e-5,
    );
}

/// One statistic that is not finite changes nothing else.
#[test]
fn a_frozen_form_with_a_nan_thaws_to_the_same_parameters() {
    let device = Device::flex().autodiff();
    let layer = trained(&device);
    layer
        .running_var
        .update(Tensor::from_floats([1.0, f32::NAN, 2.0], &device));
    let gamma = vector(layer.gamma.val());
    let thawed = layer.frozen().thawed();
    assert_eq!(vector(thawed.gamma.val()), gamma);
    thawed.reset_statistics();
    assert!(
        vector(thawed.forward(batch(1, &device)))
            .iter()
            .all(|y| y.is_finite())
    );
}

/// Two vectors are another function than statistics of each batch.
#[test]
fn what_infers_by_batches_is_not_frozen() {
    let device = Device::flex();
    for config in [
        BatchNormConfig::new(1).with_inference(burn_batchnorm::Inference::Batch),
        BatchNormConfig::new(1).with_inference(burn_batchnorm::Inference::Blend { batch: 0.5 }),
        BatchNormConfig::new(1).with_running_stats(false),
    ] {
        let error = config
            .init(&device)
            .try_frozen()
            .expect_err("another function");
        assert_eq!(error.name(), "Invalid");
        assert!(error.to_string().contains("to freeze"), "{error}");
    }
}

#[test]
fn health_finds_faults_that_most_channels_share_and_keeps_nan_in_json() {
    let device = Device::flex();
    let mut layer = BatchNormConfig::new(4).init(&device);
    let tiny = [1e-12, 1e-12, 1e-12, 1.0];
    layer.running_var.update(Tensor::from_floats(tiny, &device));
    layer.gamma = layer.gamma.map(|_| Tensor::from_floats([1e-9; 4], &device));
    let x = random([8, 4], 1, &device);
    let report = health(&layer, [x], |layer, x| layer.forward(x));
    assert_eq!(report.layers[0].vanishing, [0, 1, 2]);
    assert_eq!(report.layers[0].dead, [0, 1, 2, 3]);

    let layer = BatchNormConfig::new(2).init(&device);
    let bad = Tensor::<2>::from_floats([[f32::NAN, 0.1], [1.0, -0.1]], &device);
    let report = health(&layer, [bad], |layer, x| layer.forward(x));
    let json = serde_json::to_string(&report).expect("JSON");
    let read: Health = serde_json::from_str(&json).expect("its own JSON");
    assert!(read.layers[0].mean_drift.is_some_and(f64::is_nan), "{json}");
    assert!(!read.is_healthy());
}
