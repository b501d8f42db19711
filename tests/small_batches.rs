//! Batch renormalization and ghost batches beyond what the goldens and the reference say.

use batchnorm_tests::devices;
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use burn_batchnorm::{
    BatchNorm, BatchNormConfig, Bound, Ghost, GhostVariance, Reference, Renorm, RunningState,
    Statistics, Variance,
};

use crate::common::{assert_close, random, vector};

fn batch(seed: u64, device: &Device) -> Tensor<2> {
    random([8, 3], seed, device) * 2.0 + 5.0
}

fn renorm(r_max: f64, d_max: f64) -> Statistics {
    Statistics::Renorm(Renorm {
        r_min: None,
        r_max: Bound::Constant(r_max),
        d_max: Bound::Constant(d_max),
        reference: Reference::Running,
    })
}

#[test]
fn renormalization_within_tight_bounds_is_batch_normalization() {
    for (name, device) in devices::all() {
        let device = device.autodiff();
        let config = BatchNormConfig::new(3);
        let plain = config.clone().init(&device);
        let bound = config.with_statistics(renorm(1.0, 0.0)).init(&device);
        for seed in 1..4 {
            let x = batch(seed, &device);
            let (got, expected) = (bound.forward(x.clone()), plain.forward(x));
            assert_close(name, &got.into_data(), &expected.into_data(), 1e-5);
        }
        let (got, expected) = (bound.running_var.value(), plain.running_var.value());
        assert_close(name, &got.into_data(), &expected.into_data(), 1e-5);
    }
}

/// What the paper is about: a training pass gives what inference would.
#[test]
fn renormalization_without_bounds_gives_what_inference_gives() {
    for (name, device) in devices::all() {
        let device = device.autodiff();
        let statistics = Statistics::Renorm(Renorm {
            reference: Reference::Running,
            ..Renorm::keras()
        });
        let layer = BatchNormConfig::new(3)
            .with_statistics(statistics)
            .init(&device);
        (1..4).for_each(|seed| drop(layer.forward(batch(seed, &device))));
        let x = batch(9, &device);
        let expected = layer.valid().forward(x.clone().inner());
        assert_close(
            name,
            &layer.forward(x).into_data(),
            &expected.into_data(),
            1e-5,
        );
    }
}

#[test]
fn the_paper_begins_as_batch_normalization_and_loosens() {
    let device = Device::flex().autodiff();
    let (plain, paper) = (
        BatchNormConfig::new(3).init(&device),
        BatchNormConfig::new(3)
            .with_statistics(Statistics::Renorm(Renorm::paper()))
            .init(&device),
    );
    let x = batch(1, &device);
    assert_close(
        "batch 0",
        &paper.forward(x.clone()).into_data(),
        &plain.forward(x.clone()).into_data(),
        1e-5,
    );

    // The count decides, so it is recorded.
    paper.num_batches_tracked.set(22_500);
    let other = paper.clone();
    let restored = BatchNormConfig::new(3)
        .with_statistics(Statistics::Renorm(Renorm::paper()))
        .init(&device)
        .load_record(other.into_record());
    assert_eq!(restored.num_batches_tracked.value(), 22_500);
    // Half way of 5,000 to 40,000 from 1 to 3; 7/8 of 5,000 to 25,000 from 0 to 5.
    let middle = BatchNormConfig::new(3)
        .with_statistics(renorm(2.0, 4.375))
        .init(&device);
    middle.running_mean.update(restored.running_mean.value());
    middle.running_var.update(restored.running_var.value());
    assert_close(
        "half way",
        &restored.forward(x.clone()).into_data(),
        &middle.forward(x).into_data(),
        1e-5,
    );
}

#[test]
fn what_renormalization_keeps_is_saved_and_loaded() {
    for (name, device) in devices::all() {
        let device = device.autodiff();
        let config = BatchNormConfig::keras(3).with_statistics(Statistics::Renorm(Renorm::keras()));
        let layer = config.init(&device);
        (1..4).for_each(|seed| drop(layer.forward(batch(seed, &device))));
        let loaded = config
            .init(&device)
            .load_record(layer.clone().into_record());
        let x = batch(9, &device);
        let same = |a: &BatchNorm, b: &BatchNorm| {
            assert_close(
                name,
                &a.forward(x.clone()).into_data(),
                &b.forward(x.clone()).into_data(),
                0.0,
            );
            assert_close(
                name,
                &a.running_var.value().into_data(),
                &b.running_var.value().into_data(),
                0.0,
            );
        };
        same(&loaded, &layer);
        same(&layer.clone(), &loaded.clone().fork(&device));
        // Of another layer it would be too little.
        let plain = BatchNormConfig::keras(3).init(&device);
        let result = config.init(&device).try_load_record(plain.into_record());
        assert!(result.is_err(), "{name}");
    }
}

/// The running variance is made from a standard deviation that is kept apart: one that somebody sets, by whatever
/// way, is not undone by the next batch.
#[test]
fn a_running_variance_that_is_set_stays() {
    for (name, device) in devices::all() {
        let device = device.autodiff();
        let config = BatchNormConfig::keras(3).with_statistics(Statistics::Renorm(Renorm::keras()));
        let hundred = || Tensor::<1>::full([3], 100.0, &device);
        let layer = || {
            let layer = config.init(&device);
            layer.forward(batch(1, &device));
            layer
        };
        let updated = layer();
        updated.running_var.update(hundred());
        let mut replaced = layer();
        replaced.running_var = RunningState::new(hundred());
        // As a file of a layer without renormalization has it.
        let plain = BatchNormConfig::keras(3).init(&device);
        plain.running_var.update(hundred());
        let loaded = layer().load_record(plain.into_record().allow_partial(true));
        for (way, layer) in [
            ("updated", updated),
            ("replaced", replaced),
            ("loaded", loaded),
        ] {
            for seed in 2..4 {
                layer.forward(batch(seed, &device));
            }
            // Twice 0.99 of a deviation of 10, and a little of the batches'.
            let variance = vector(layer.running_var.value());
            let near = |variance: &f64| (90.0..100.0).contains(variance);
            assert!(variance.iter().all(near), "{way} on {name}: {variance:?}");
        }
    }
}

#[test]
fn each_ghost_batch_is_normalized_by_itself() {
    for (name, device) in devices::all() {
        for (shape, axis, samples) in [
            ([6, 3, 4], 1, 6),
            ([6, 4, 3], -1, 6),
            ([3, 6, 4], 0, 6),
            ([7, 3, 4], 1, 7),
        ] {
            let device = device.clone().autodiff();
            let layer = BatchNormConfig::new(3)
                .with_channel_axis(axis)
                .with_statistics(Statistics::Ghost(Ghost::new(2)))
                .init(&device);
            let plain = BatchNormConfig::new(3)
                .with_channel_axis(axis)
                .init(&device);
            let x = random(shape, 1, &device) * 3.0 + 1.0;
            let y = layer.forward(x.clone());
            let of = usize::from(axis == 0);
            let groups = samples / 2 + samples % 2;
            for group in 0..groups {
                let members: Vec<Tensor<3>> = (group..samples)
                    .step_by(groups)
                    .map(|sample| x.clone().narrow(of, sample, 1))
                    .collect();
                let expected = plain.forward(Tensor::cat(members, of));
                for (at, sample) in (group..samples).step_by(groups).enumerate() {
                    let got = y.clone().narrow(of, sample, 1).into_data();
                    let expected = expected.clone().narrow(of, at, 1).into_data();
                    assert_close(&format!("{name}, {shape:?}"), &got, &expected, 1e-5);
                }
            }
            // What enters is the whole batch.
            let whole = BatchNormConfig::new(3)
                .with_channel_axis(axis)
                .init(&device);
            whole.forward(x);
            let (got, expected) = (layer.running_var.value(), whole.running_var.value());
            assert_close(name, &got.into_data(), &expected.into_data(), 1e-5);
        }
    }
}

#[test]
fn a_ghost_size_of_the_batch_or_more_is_batch_normalization() {
    let device = Device::flex().autodiff();
    for size in [8, 9, usize::MAX] {
        let ghost = Ghost {
            size,
            variance: GhostVariance::Mean,
        };
        let config = BatchNormConfig::new(3).with_variance(Variance::Unbiased);
        let layer = config
            .clone()
            .with_statistics(Statistics::Ghost(ghost))
            .init(&device);
        let plain = config.init(&device);
        let x = batch(1, &device);
        assert_close(
            "y",
            &layer.forward(x.clone()).into_data(),
            &plain.forward(x).into_data(),
            1e-6,
        );
        assert_close(
            "variance",
            &layer.running_var.value().into_data(),
            &plain.running_var.value().into_data(),
            1e-6,
        );
    }
}

/// A ghost batch of one value would have no variance: seven samples of one value are 3, 2 and 2.
#[test]
fn ghosts_of_an_odd_batch_have_two_values() {
    for (name, device) in devices::all() {
        let device = device.autodiff();
        let config = BatchNormConfig::new(3);
        let layer = config
            .clone()
            .with_statistics(Statistics::Ghost(Ghost::new(2)))
            .init(&device);
        let x = random([7, 3], 4, &device);
        let y = layer.forward(x.clone());
        for ghost in 0..3usize {
            let take = |tensor: &Tensor<2>| {
                let rows = (ghost..7)
                    .step_by(3)
                    .map(|i| tensor.clone().slice([i..i + 1, 0..3]));
                Tensor::cat(rows.collect(), 0)
            };
            let expected = config.init(&device).forward(take(&x));
            assert_close(name, &take(&y).into_data(), &expected.into_data(), 1e-4);
        }
        // Of one sample each they were asked for, and have none.
        let one = config.with_statistics(Statistics::Ghost(Ghost::new(1)));
        assert!(one.init(&device).try_forward(x).is_err(), "{name}");
    }
}
