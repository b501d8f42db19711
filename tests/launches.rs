//! What a batch norm between two convolutions launches on a GPU: its own kernels, and no copy. (What these move is
//! counted by the tests of batchnorm-cube.)
//!
//! A binary of its own, for CubeCL reports the launches of the whole process.

use std::sync::{Arc, Mutex, PoisonError};

use batchnorm_tests::devices;
use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::tensor::{Device, Distribution, Tensor};
use burn_batchnorm::{Activation, BatchNorm, BatchNormConfig, Mask, With};
use cubecl::logging::{LaunchObservation, LaunchObserver};

/// The kernels that were launched, in order.
#[derive(Default)]
struct Launched(Mutex<Vec<&'static str>>);

impl LaunchObserver for Launched {
    fn launched(&self, kernel: &'static str) {
        let names = self.0.lock();
        names.unwrap_or_else(PoisonError::into_inner).push(kernel);
    }
}

impl Launched {
    /// Those since the last time, of work that the device has been given.
    fn take(&self, device: &Device) -> Vec<&'static str> {
        device.sync().expect("the device works");
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// conv -> batch norm and ReLU -> conv.
struct Network {
    first: Conv2d,
    norm: BatchNorm,
    second: Conv2d,
}

/// What comes between the convolutions.
enum Between {
    Nothing,
    Norm,
    Masked(Mask),
}

impl Network {
    fn new(device: &Device) -> Self {
        let convolution = |channels| {
            Conv2dConfig::new(channels, [3, 3])
                .with_bias(false)
                .init(device)
        };
        let norm = BatchNormConfig::new(16).with_activation(Activation::Relu);
        Self {
            first: convolution([8, 16]),
            norm: norm.init(device),
            second: convolution([16, 8]),
        }
    }

    /// The launches of a forward and a backward pass.
    fn launches(
        &self,
        input: &Tensor<4>,
        between: &Between,
        launched: &Launched,
    ) -> [Vec<&'static str>; 2] {
        let device = input.device();
        launched.take(&device);
        let hidden = self.first.forward(input.clone());
        let hidden = match between {
            Between::Nothing => hidden,
            Between::Norm => self.norm.forward(hidden),
            Between::Masked(mask) => self.norm.forward_masked(hidden, mask),
        };
        let output = self.second.forward(hidden);
        let forward = launched.take(&device);
        // Held until the launches are counted: what nobody asks for may not be computed.
        let _gradients = output.sum().backward();
        [forward, launched.take(&device)]
    }
}

/// `with` less `without`, which it must contain in the same order.
fn added(with: &[&'static str], without: &[&'static str]) -> Vec<&'static str> {
    let mut rest = without.iter().peekable();
    let mut added = Vec::new();
    for name in with {
        match rest.next_if_eq(&name) {
            Some(_) => {}
            None => added.push(*name),
        }
    }
    assert_eq!(
        rest.next(),
        None,
        "launched without a batch norm alone, of {with:#?}"
    );
    added
}

/// One kernel forward and one backward. With a mask one more, for the running statistics: it works on channels, so
/// that it moves next to nothing.
#[test]
fn a_batch_norm_between_convolutions_launches_its_kernels_and_no_copy() {
    let Some(device) = devices::by_name("wgpu") else {
        return;
    };
    let device = device.autodiff();
    let network = Network::new(&device);
    let random = |shape: [usize; 4]| Tensor::<4>::random(shape, Distribution::Default, &device);
    let mask = Mask::from_weights(random([4, 1, 12, 12]));
    let contiguous = random([4, 8, 14, 14]);
    let channels_last = random([4, 14, 14, 8]).permute([0, 3, 1, 2]);
    let launched = Arc::new(Launched::default());
    let _observation = LaunchObservation::new(launched.clone());
    for (order, input) in [("contiguous", contiguous), ("channels last", channels_last)] {
        let run = |between: Between| {
            // Not the first times: then CubeCL measures which kernels to choose, and Burn learns what to fuse.
            for _ in 0..2 {
                network.launches(&input, &between, &launched);
            }
            network.launches(&input, &between, &launched)
        };
        let without = run(Between::Nothing);
        let running =
            "burn_cubecl_fusion::optim::elemwise::optimization::elemwise_fuse::ElemwiseFuse";
        let forward = "batchnorm_cube::kernels::forward::train::Train";
        let backward = "batchnorm_cube::kernels::backward::gradients::Gradients";
        for (between, expected) in [
            (Between::Norm, [vec![forward], vec![backward]]),
            (
                Between::Masked(mask.clone()),
                [vec![forward, running], vec![backward]],
            ),
        ] {
            let with = run(between);
            let got = [0, 1].map(|pass| added(&with[pass], &without[pass]));
            assert_eq!(got, expected, "{order}");
        }
    }

    // Inference is one launch, with a mask too.
    let norm = network.norm.valid();
    let [x, weights] = [[4, 16, 12, 12], [4, 1, 12, 12]].map(|shape| random(shape).inner());
    let mask = Mask::from_weights(weights);
    for mask in [None, Some(mask)] {
        let with = || With {
            residual: None,
            mask: mask.clone(),
        };
        for _ in 0..2 {
            norm.forward_with(x.clone(), with());
        }
        launched.take(&x.device());
        let _output = norm.forward_with(x.clone(), with());
        let normalize = "batchnorm_cube::kernels::forward::normalize::Normalize";
        assert_eq!(launched.take(&x.device()), [normalize]);
    }
}
