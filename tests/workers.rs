//! Clones, forks and threads: what they observe, and whom it reaches.

use std::sync::Barrier;
use std::thread;

use batchnorm_tests::devices;
use burn::module::{Module, ModuleMapper, Param};
use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::{DType, Device, Tensor};
use burn_batchnorm::{Averaging, BatchNorm, BatchNormConfig, Mask, NonFinite};
use proptest::prelude::*;

use crate::common::{random, vector};

fn layer(device: &Device, momentum: f64) -> BatchNorm {
    BatchNormConfig::new(1)
        .with_momentum(momentum)
        .init(&device.clone().autodiff())
}

/// A training pass over the batch `{a, b}`.
fn see(layer: &BatchNorm, a: f32, b: f32) {
    let batch = Tensor::<2>::from_floats([[a], [b]], &layer.gamma.device());
    layer.forward(batch);
}

type Statistics = (f64, f64, u64);

fn statistics(layer: &BatchNorm) -> Statistics {
    (
        vector(layer.running_mean.value())[0],
        vector(layer.running_var.value())[0],
        layer.num_batches_tracked.value(),
    )
}

fn assert_near(got: Statistics, expected: Statistics) {
    let near = |got: f64, expected: f64| (got - expected).abs() <= 2e-6 * (1.0 + expected.abs());
    assert!(
        near(got.0, expected.0) && near(got.1, expected.1) && got.2 == expected.2,
        "{got:?}, expected {expected:?}"
    );
}

/// What Burn's multi-device training makes of a model for one worker.
fn worker(main: &BatchNorm) -> BatchNorm {
    let device = main.gamma.device();
    let of_step = main.clone();
    of_step.clone().fork(&device)
}

/// Fault S1: the worker outlives the clone that it was made from, or not.
#[test]
fn a_fork_of_a_clone_of_a_clone_reports_to_the_model() {
    for (_, device) in devices::all() {
        for drop_first in [true, false] {
            let main = layer(&device, 0.1);
            let of_step = main.clone();
            let worker = of_step.clone().fork(&main.gamma.device());
            see(&worker, 9.0, 11.0);
            if drop_first {
                drop(of_step);
                drop(worker);
            } else {
                drop(worker);
                drop(of_step);
            }
            assert_near(statistics(&main), (1.0, 1.1, 1));
        }
    }
}

/// Fault S2.
#[test]
fn the_order_of_workers_does_not_matter() {
    for order in [[0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 1, 0], [1, 1, 0, 0]] {
        for dropped in [[0, 1], [1, 0]] {
            for looked_at_between in [false, true] {
                let main = layer(&Device::flex(), 0.5);
                let mut workers = [Some(worker(&main)), Some(worker(&main))];
                for index in order {
                    see(workers[index].as_ref().expect("alive"), 1.0, 1.0);
                }
                for index in dropped {
                    workers[index] = None;
                    if looked_at_between {
                        statistics(&main);
                    }
                }
                assert_near(statistics(&main), (0.75, 0.25, 2));
            }
        }
    }
}

/// Fault S3.
#[test]
fn long_lived_workers_count_as_one() {
    let one_after_the_other: Vec<usize> = (0..200).map(|step| step / 50).collect();
    let in_lockstep: Vec<usize> = (0..200).map(|step| step % 4).collect();
    for order in [one_after_the_other, in_lockstep] {
        let main = layer(&Device::flex(), 0.1);
        let workers = [(); 4].map(|()| worker(&main));
        for index in order {
            see(&workers[index], 4.9, 5.1);
        }
        assert_eq!(statistics(&main), (0.0, 1.0, 0));
        drop(workers);
        assert_near(statistics(&main), (4.974_231, 0.025_051, 50));

        let x = Tensor::<2>::from_floats([[5.0]], &main.gamma.device().inner());
        let [y] = vector(main.valid().forward(x))[..] else {
            panic!("one value");
        };
        assert!((0.15..0.17).contains(&y), "{y}");
    }
}

/// Fault S4: weighted by their number of values.
#[test]
fn workers_are_averaged_by_what_they_saw() {
    for order in [[0, 1, 0, 1], [0, 0, 1, 1], [1, 0, 0, 1]] {
        let main = layer(&Device::flex(), 0.1);
        let workers = [worker(&main), worker(&main)];
        for index in order {
            let mean = [10.0, 20.0][index];
            see(&workers[index], mean - 1.0, mean + 1.0);
        }
        drop(workers);
        // Each: 0.81 + 0.19 * 2.
        assert_near(statistics(&main), (2.85, 1.19, 2));
    }

    let main = layer(&Device::flex(), 0.5);
    let (small, large) = (worker(&main), worker(&main));
    see(&small, 9.0, 11.0);
    let batch = [[20.0], [22.0], [20.0], [22.0], [20.0], [22.0]];
    large.forward(Tensor::<2>::from_floats(batch, &main.gamma.device()));
    drop((small, large));
    // A quarter of (5, 1.5) and three quarters of (10.5, 1.1).
    assert_near(statistics(&main), (9.125, 1.2, 1));
}

#[test]
fn workers_in_threads_give_the_same_bits_every_time() {
    for (name, device) in devices::all() {
        let mut seen = Vec::new();
        for _ in 0..5 {
            let main = layer(&device, 0.1);
            let of_step = main.clone();
            let barrier = Barrier::new(3);
            thread::scope(|scope| {
                for mean in [3.1, 7.7, 11.9] {
                    let (clone, barrier) = (of_step.clone(), &barrier);
                    scope.spawn(move || {
                        let device = clone.gamma.device();
                        let worker = clone.fork(&device);
                        barrier.wait();
                        see(&worker, mean, mean + 2.0);
                    });
                }
            });
            drop(of_step);
            seen.push(statistics(&main));
        }
        assert_near(seen[0], ((3.1 + 7.7 + 11.9 + 3.0) / 3.0 * 0.1, 1.1, 1));
        assert!(
            seen.iter().all(|other| *other == seen[0]),
            "{name}: {seen:?}"
        );
    }
}

/// Fault S5: nobody's batch is lost, and each enters by the count of its moment.
#[test]
fn threads_that_share_a_layer_lose_no_update() {
    let device = Device::flex().autodiff();
    let values: Vec<f32> = (0..4096 * 1024)
        .map(|index| if index / 1024 % 2 == 0 { 4.9 } else { 5.1 })
        .collect();
    let batch = Tensor::<1>::from_floats(values.as_slice(), &device).reshape([4096, 1024]);
    let run = |config: BatchNormConfig| {
        let layer = config.init(&device);
        let barrier = Barrier::new(8);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    barrier.wait();
                    layer.forward(batch.clone());
                });
            }
        });
        statistics(&layer)
    };
    let config = || BatchNormConfig::new(1024);
    assert_near(
        run(config().with_averaging(Averaging::Cumulative)),
        (5.0, 0.010_002_44, 8),
    );
    let (mean, variance, count) = run(config().with_momentum(0.5));
    assert!((mean - 4.980_47).abs() < 1e-4, "{mean}");
    assert!((0.01..1.0).contains(&variance), "{variance}");
    assert_eq!(count, 8);
}

/// Fault S7: a set that is read together was entered together. With a momentum of 1 the statistics
/// are those of the last batch, `{m, 3 m}`: mean 2 m, variance 2 m^2.
#[test]
fn records_taken_during_a_step_are_consistent() {
    let device = Device::flex();
    let layer = layer(&device, 1.0);
    see(&layer, 1.0, 3.0);
    thread::scope(|scope| {
        let trained = scope.spawn(|| {
            for step in 0..2000u16 {
                let m = f32::from(step % 50 + 1);
                see(&layer, m, 3.0 * m);
            }
        });
        while !trained.is_finished() {
            for copy in [layer.valid(), layer.clone()] {
                let (mean, variance, _) = statistics(&copy);
                let m = mean / 2.0;
                assert!(
                    (variance - 2.0 * m * m).abs() <= 1e-5 * variance,
                    "{mean} {variance}"
                );
            }
        }
    });
}

/// Fault S6: folds of a cross-validation, target networks.
#[test]
fn training_a_fork_of_a_copy_leaves_the_base_alone() {
    let train = |model: BatchNorm, step: &dyn Fn(BatchNorm, GradientsParams) -> BatchNorm| {
        let mut model = model;
        for seed in 0..3 {
            let device = model.gamma.device();
            let y = model.forward(random([8, 1], seed, &device) + 5.0);
            let gradients = GradientsParams::from_grads(y.sum().backward(), &model);
            model = step(model, gradients);
        }
        model
    };
    // The optimizer takes the model, or a clone of it.
    let taken: &dyn Fn(BatchNorm, GradientsParams) -> BatchNorm =
        &|model, gradients| SgdConfig::new().init().step(0.1, model, gradients);
    let cloned: &dyn Fn(BatchNorm, GradientsParams) -> BatchNorm =
        &|model, gradients| SgdConfig::new().init().step(0.1, model.clone(), gradients);
    for step in [taken, cloned] {
        let base = layer(&Device::flex(), 0.1);
        let fold = base.clone().fork(&base.gamma.device());
        let fold = train(fold, step);
        assert_eq!(fold.num_batches_tracked.value(), 3);
        drop(fold);
        assert_eq!(statistics(&base), (0.0, 1.0, 0));
    }
}

/// A model that is itself a copy, such as the start of a fold, keeps its workers' batches from the base.
#[test]
fn workers_of_a_copy_report_to_the_copy() {
    let base = layer(&Device::flex(), 0.1);
    let mut model = base.clone();
    for step in 1..=3 {
        let device = model.gamma.device();
        let of_step = model.clone();
        let worker = of_step.clone().fork(&device);
        let y = worker.forward(random([8, 1], step, &device) + 5.0);
        let gradients = GradientsParams::from_grads(y.sum().backward(), &worker);
        drop(worker);
        drop(of_step);
        model = SgdConfig::new().init().step(0.1, model.clone(), gradients);
        assert_eq!(model.num_batches_tracked.value(), step);
    }
    assert_eq!(statistics(&base), (0.0, 1.0, 0));
}

/// burn-train clones the model of a step for one worker after the other: the first may be done before
/// the second is cloned.
#[test]
fn a_worker_that_is_done_early_is_of_the_same_step() {
    let main = layer(&Device::flex(), 0.1);
    let of_step = main.clone();
    for mean in [10.0, 20.0] {
        let worker = of_step.clone().fork(&main.gamma.device());
        see(&worker, mean - 1.0, mean + 1.0);
    }
    drop(of_step);
    assert_near(statistics(&main), (1.5, 1.1, 1));
}

#[test]
fn a_fold_lives_on_in_a_copy_of_a_copy() {
    let base = layer(&Device::flex(), 0.1);
    let fold = base.clone().fork(&base.gamma.device());
    see(&fold, 9.0, 11.0);
    let snapshot = fold.clone();
    let next = snapshot.clone();
    drop(snapshot);
    let next = next.map(&mut Nothing);
    drop(fold);
    assert_eq!(statistics(&base), (0.0, 1.0, 0));
    assert_near(statistics(&next), (1.0, 1.1, 1));
}

/// Drops a worker in the middle of an optimizer's step.
struct Dropping(Option<BatchNorm>);

impl ModuleMapper for Dropping {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        // gamma, beta, then the running mean: the values have been read by then.
        self.0 = None;
        param
    }
}

#[test]
fn a_report_that_arrives_during_a_mapping_is_not_lost() {
    let main = BatchNormConfig::new(1)
        .with_scale(false)
        .with_shift(false)
        .with_momentum(0.5)
        .init(&Device::flex().autodiff());
    let worker = main.clone().fork(&main.gamma.device());
    see(&worker, 7.0, 9.0);
    let main = main.map(&mut Dropping(Some(worker)));
    // Half of what was there, (0, 1), and what the worker added, (4, 1).
    assert_near(statistics(&main), (4.0, 1.5, 1));
}

#[test]
fn reports_fit_what_has_become_of_the_model() {
    struct Wide;
    impl ModuleMapper for Wide {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(|tensor| tensor.cast(DType::F64).detach())
        }
    }
    let main = layer(&Device::flex(), 0.5);
    let late = worker(&main);
    see(&late, 7.0, 9.0);
    let main = main.map(&mut Wide);
    drop(late);
    assert_eq!(main.running_mean.value().dtype(), DType::F64);
    assert_near(statistics(&main), (4.0, 1.5, 1));

    // Of another length: it says nothing of these channels.
    let main = layer(&Device::flex(), 0.5);
    let late = worker(&main);
    see(&late, 7.0, 9.0);
    let device = main.gamma.device();
    main.running_mean.update(Tensor::zeros([4], &device));
    main.running_var.update(Tensor::ones([4], &device));
    drop(late);
    assert_eq!(vector(main.running_mean.value()), [0.0; 4]);
}

#[test]
fn a_late_report_of_momentum_one_replaces_even_nan() {
    let main = layer(&Device::flex(), 1.0);
    let late = worker(&main);
    see(&late, 7.0, 9.0);
    see(&main, f32::NAN, 1.0);
    assert!(statistics(&main).0.is_nan());
    drop(late);
    assert_near(statistics(&main), (8.0, 2.0, 2));
}

#[test]
fn a_worker_that_makes_copies_still_reports() {
    let main = layer(&Device::flex(), 0.1);
    let worker = worker(&main);
    see(&worker, 9.0, 11.0);
    // An evaluation or a teacher within the step.
    let copy = worker.clone();
    see(&copy, 100.0, 102.0);
    drop((worker.valid(), copy));
    drop(worker);
    assert_near(statistics(&main), (1.0, 1.1, 1));
}

#[test]
fn late_reports_blend_in() {
    let main = layer(&Device::flex(), 0.5);
    let late = worker(&main);
    see(&late, 7.0, 9.0);
    see(&main, 1.0, 3.0);
    assert_near(statistics(&main), (1.0, 1.5, 1));
    drop(late);
    // 0.5 * (1, 1.5) and what the worker added, 0.5 * (8, 2).
    assert_near(statistics(&main), (4.5, 1.75, 2));
}

#[test]
fn a_worker_whose_step_panics_reports_nothing() {
    let main = layer(&Device::flex(), 0.1);
    let clone = main.clone();
    let result = thread::spawn(move || {
        let device = clone.gamma.device();
        let worker = clone.fork(&device);
        see(&worker, 9.0, 11.0);
        panic!("on purpose");
    })
    .join();
    assert!(result.is_err());
    assert_eq!(statistics(&main), (0.0, 1.0, 0));
}

#[test]
fn the_layer_twice_in_a_step_counts_twice() {
    let main = layer(&Device::flex(), 0.5);
    let workers = [worker(&main), worker(&main)];
    for worker in &workers {
        see(worker, 1.0, 3.0);
        see(worker, 5.0, 7.0);
    }
    drop(workers);
    assert_near(statistics(&main), (0.5 + 3.0, 0.25 + 0.5 + 1.0, 2));
}

#[test]
fn a_fork_of_a_model_that_is_gone_keeps_its_own_statistics() {
    let worker = worker(&layer(&Device::flex(), 0.1));
    see(&worker, 9.0, 11.0);
    assert_near(statistics(&worker), (1.0, 1.1, 1));
}

#[test]
fn cumulative_workers_count_as_one_batch() {
    let main = BatchNormConfig::new(1)
        .with_averaging(Averaging::Cumulative)
        .init(&Device::flex().autodiff());
    for step in 0..3 {
        let workers = [worker(&main), worker(&main)];
        see(&workers[0], 9.0, 11.0);
        see(&workers[1], 19.0, 21.0);
        drop(workers);
        assert_near(statistics(&main), (15.0, 2.0, step + 1));
    }
}

struct Nothing;

impl ModuleMapper for Nothing {}

struct Scale;

impl ModuleMapper for Scale {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|tensor| tensor * 1.0)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever is done to any copy, and whenever it is looked at: nobody's mean leaves [0, 10] nor
    /// anybody's variance [1, 8], the hull of what goes in: (0, 1) at the start, then (3, 2) and (10, 8).
    #[test]
    fn no_sequence_leaves_the_convex_hull(
        momentum in 0.0..=1.0f64,
        calls in proptest::collection::vec((0..11u8, 0..6usize, 0..6usize), 1..60),
    ) {
        let check = |model: &BatchNorm| {
            let (mean, variance, _) = statistics(model);
            prop_assert!((-1e-4..=10.0001).contains(&mean), "mean {mean}");
            prop_assert!((0.999..=8.001).contains(&variance), "variance {variance}");
            Ok(())
        };
        let mut models = vec![layer(&Device::flex(), momentum)];
        for (call, index, other) in calls {
            let index = index % models.len();
            let other = other % models.len();
            let device = models[index].gamma.device();
            match call {
                0 => { let copy = models[index].clone(); models.push(copy); }
                1 => { let worker = models[index].clone().fork(&device); models.push(worker); }
                2 => see(&models[index], 2.0, 4.0),
                3 => see(&models[index], 8.0, 12.0),
                4 => {
                    let model = models.swap_remove(index);
                    models.push(model.map(&mut Nothing));
                }
                5 => {
                    let model = models.swap_remove(index);
                    models.push(model.map(&mut Scale));
                }
                6 => {
                    let record = models[other].clone().into_record();
                    let model = models.swap_remove(index);
                    models.push(model.load_record(record));
                }
                7 => { let copy = models[index].valid().train(); models.push(copy); }
                8 => {
                    let model = models.swap_remove(index);
                    models.push(model.to_device(&device));
                }
                9 => check(&models[index])?,
                _ if models.len() > 1 => { models.swap_remove(index); }
                _ => {}
            }
        }
        for model in &models {
            check(model)?;
        }
    }
}

/// Workers that leave out batches, or differ in how many positions of theirs count.
#[test]
fn workers_are_weighted_by_what_they_took() {
    for (name, device) in devices::all() {
        let device = device.autodiff();
        let layer = |averaging| {
            BatchNormConfig::new(1)
                .with_momentum(0.5)
                .with_averaging(averaging)
                .with_non_finite(NonFinite::Skip)
                .init(&device)
        };
        let nan = f32::NAN;
        // Both leave out the first step, one the second, none the third.
        let main = layer(Averaging::Cumulative);
        for [first, second] in [
            [(nan, 1.0), (nan, 2.0)],
            [(9.0, 11.0), (nan, 1.0)],
            [(1.0, 3.0), (3.0, 5.0)],
        ] {
            let workers = [worker(&main), worker(&main)];
            see(&workers[0], first.0, first.1);
            see(&workers[1], second.0, second.1);
        }
        // Of two steps: means 10 and 3, variances 2 and 2.
        assert_near(statistics(&main), (6.5, 2.0, 2));

        // Three of four positions here, all four there.
        let main = layer(Averaging::Exponential);
        let workers = [worker(&main), worker(&main)];
        let batch = |values: [f32; 4]| Tensor::<1>::from_floats(values, &device).reshape([4, 1]);
        let mask = Mask::from_weights(Tensor::<1>::from_floats([1.0, 1.0, 1.0, 0.0], &device));
        workers[0].forward_masked(batch([1.0, 2.0, 3.0, nan]), &mask);
        workers[1].forward(batch([8.0, 10.0, 8.0, 10.0]));
        drop(workers);
        let (mean, ..) = statistics(&main);
        // Means 1 and 4.5, weighted 3 to 4.
        assert!((mean - 3.0).abs() < 1e-5, "{name}: {mean}");
        assert_eq!(vector(main.skipped_updates()), [0.0], "{name}");

        // And a plain pass after a masked one counts by what was taken.
        let main = layer(Averaging::Cumulative);
        main.forward_masked(
            batch([1.0, 2.0, 3.0, 4.0]),
            &Mask::from_weights(Tensor::<1>::zeros([4], &device)),
        );
        main.forward(batch([3.0, 5.0, 3.0, 5.0]));
        assert_near(statistics(&main), (4.0, 4.0 / 3.0, 1));
    }
}
