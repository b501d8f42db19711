//! Criterion benches of the layer against burn-nn's, through the public API.
//!
//! `cargo bench -p batchnorm-benches --bench layer -- flex` runs those of one device. Each id is
//! `PASS/SHAPE on DEVICE/LAYER`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use batchnorm_benches::{Layer, Pass, cpu_devices, random};
use burn::tensor::{Device, Tensor};
use criterion::{Criterion, criterion_group, criterion_main};

/// Time of `iterations` passes. Inputs and upstream gradients are made outside the clock.
fn time<const D: usize>(
    layer: &impl Layer<D>,
    pass: Pass,
    x: &Tensor<D>,
    dy: &Tensor<D>,
    iterations: u64,
) -> Duration {
    let device = x.device();
    let mut total = Duration::ZERO;
    for _ in 0..iterations {
        let x = x.clone().detach().require_grad();
        device.sync().expect("a device that works");
        let start = Instant::now();
        let y = layer.forward(x.clone());
        if pass == Pass::ForwardBackward {
            let gradients = (y * dy.clone()).sum().backward();
            black_box(x.grad(&gradients));
            for parameter in layer.parameters() {
                black_box(parameter.grad(&gradients));
            }
        } else {
            black_box(y);
        }
        device.sync().expect("a device that works");
        total += start.elapsed();
    }
    total
}

fn bench_shape<const D: usize>(c: &mut Criterion, name: &str, device: &Device, shape: [usize; D]) {
    let device = &device.clone().autodiff();
    let (x, dy) = (random(shape, 1, device), random(shape, 2, device));
    let theirs = burn::nn::BatchNormConfig::new(shape[1]).init(device);
    let ours = burn_batchnorm::BatchNormConfig::new(shape[1]).init(device);
    for pass in [Pass::Forward, Pass::ForwardBackward] {
        let mut group = c.benchmark_group(format!("{pass}/{shape:?} on {name}"));
        group
            .sample_size(10)
            .warm_up_time(Duration::from_millis(300))
            .measurement_time(Duration::from_secs(1));
        group.bench_function("burn-nn", |b| {
            b.iter_custom(|n| time(&theirs, pass, &x, &dy, n))
        });
        group.bench_function("burn-batchnorm", |b| {
            b.iter_custom(|n| time(&ours, pass, &x, &dy, n))
        });
        group.finish();
    }
}

fn bench_layer(c: &mut Criterion) {
    for (name, device) in cpu_devices() {
        bench_shape(c, name, &device, [32, 50]);
        bench_shape(c, name, &device, [1024, 512]);
        bench_shape(c, name, &device, [64, 128, 256]);
        bench_shape(c, name, &device, [8, 256, 28, 28]);
        bench_shape(c, name, &device, [32, 64, 56, 56]);
    }
}

criterion_group!(benches, bench_layer);
criterion_main!(benches);
