//! What a batch norm between two convolutions launches on a GPU: its own kernels, and no copy.
//!
//! A binary of its own, for CubeCL reports the launches of the whole process.

use std::sync::{Arc, Mutex, PoisonError};

use batchnorm_tests::devices;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::tensor::{Device, Distribution, Tensor};
use burn_batchnorm::{Activation, BatchNorm, BatchNormConfig};
use cubecl::logging::{LaunchObservation, LaunchObserver};

/// The kernels that were launched.
#[derive(Default)]
struct Launched(Mutex<Vec<&'static str>>);

impl LaunchObserver for Launched {
    fn launched(&self, kernel: &'static str) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(kernel);
    }
}

impl Launched {
    fn take(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct Network {
    first: Conv2d,
    norm: BatchNorm,
    second: Conv2d,
}

#[test]
fn a_batch_norm_between_convolutions_copies_nothing() {
    let Some(device) = devices::by_name("wgpu") else {
        return;
    };
    let device = device.autodiff();
    let network = Network {
        first: Conv2dConfig::new([8, 16], [3, 3])
            .with_bias(false)
            .init(&device),
        norm: BatchNormConfig::new(16)
            .with_activation(Activation::Relu)
            .init(&device),
        second: Conv2dConfig::new([16, 8], [3, 3])
            .with_bias(false)
            .init(&device),
    };
    let contiguous = Tensor::<4>::random([4, 8, 14, 14], Distribution::Default, &device);
    let last = Tensor::<4>::random([4, 14, 14, 8], Distribution::Default, &device);
    for (order, input) in [
        ("contiguous", contiguous),
        ("channels last", last.permute([0, 3, 1, 2])),
    ] {
        let launched = Arc::new(Launched::default());
        let run = |with: bool| {
            device.sync().unwrap();
            launched.take();
            let hidden = network.first.forward(input.clone());
            let hidden = match with {
                true => network.norm.forward(hidden),
                false => hidden,
            };
            let output = network.second.forward(hidden);
            device.sync().unwrap();
            let forward = launched.take();
            let gradients = output.sum().backward();
            device.sync().unwrap();
            drop(gradients);
            [forward, launched.take()]
        };
        run(true);
        run(false);
        let _watching = LaunchObservation::new(launched.clone());
        for with in [false, true] {
            let [f, b] = run(with);
            println!(
                "{order} {with}\n  {}\n --\n  {}",
                f.join("\n  "),
                b.join("\n  ")
            );
        }
    }
}
