//! Criterion benches of the layer against burn-nn's, through the public API.
//!
//! `cargo bench -p batchnorm-benches --bench layer -- flex` runs those of one device. Each id is
//! `PASS/SHAPE on DEVICE/LAYER`.

use std::time::Duration;

use batchnorm_benches::{Layer, Pass, SHAPES, cpu_devices, random, run, with_rank};
use burn::module::Module;
use burn::tensor::Device;
use criterion::{Criterion, criterion_group, criterion_main};

fn bench_shape<const D: usize>(c: &mut Criterion, name: &str, device: &Device, shape: [usize; D]) {
    let training = &device.clone().autodiff();
    let theirs = burn::nn::BatchNormConfig::new(shape[1]).init(training);
    let ours = burn_batchnorm::BatchNormConfig::new(shape[1]).init(training);
    for pass in Pass::ALL {
        let mut group = c.benchmark_group(format!("{pass}/{shape:?} on {name}"));
        group
            .sample_size(10)
            .warm_up_time(Duration::from_millis(300))
            .measurement_time(Duration::from_secs(1));
        let (theirs, ours, device) = match pass {
            Pass::Inference => (theirs.valid(), ours.valid(), device),
            Pass::Forward | Pass::ForwardBackward => (theirs.clone(), ours.clone(), training),
        };
        let (x, dy) = (random(shape, 1, device), random(shape, 2, device));
        let time = |layer: &dyn Layer<D>, n| (0..n).map(|_| run(layer, pass, &x, &dy).0).sum();
        group.bench_function("burn-nn", |b| b.iter_custom(|n| time(&theirs, n)));
        group.bench_function("burn-batchnorm", |b| b.iter_custom(|n| time(&ours, n)));
        group.finish();
    }
}

fn bench_layer(c: &mut Criterion) {
    for (name, device) in cpu_devices() {
        for axes in SHAPES {
            with_rank!(*axes, shape => bench_shape(c, name, &device, shape));
        }
    }
}

criterion_group!(benches, bench_layer);
criterion_main!(benches);
