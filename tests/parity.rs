//! Fifty Adam steps of the article's network from PyTorch's weights on PyTorch's batches.

use batchnorm_tests::case::{Tensors, parse_tensors};
use batchnorm_tests::devices;
use burn::module::{Module, Param};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::nn::{Linear, LinearConfig};
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Device, Int, Tensor, TensorData, activation::relu};
use burn_batchnorm::{BatchNorm, BatchNormConfig};

use crate::common::assert_close;
use crate::goldens::folder;

const LEARNING_RATE: f64 = 1e-3;

#[derive(Module, Debug)]
struct Network {
    linear1: Linear,
    norm: BatchNorm,
    linear2: Linear,
}

impl Network {
    fn new(weights: &Tensors, device: &Device) -> Self {
        let vector = |name: &str| {
            let data: TensorData = weights[name].clone();
            Param::from_tensor(Tensor::<1>::from_data(data, device))
        };
        let linear = |name: &str| {
            let weight = weights[&format!("{name}.weight")].clone();
            let [inputs, outputs] = weight.shape().dims();
            let mut linear = LinearConfig::new(inputs, outputs).init(device);
            linear.weight = Param::from_tensor(Tensor::from_data(weight, device));
            linear.bias = Some(vector(&format!("{name}.bias")));
            linear
        };
        let mut norm = BatchNormConfig::new(50).init(device);
        norm.gamma = vector("norm.gamma");
        norm.beta = vector("norm.beta");
        Self {
            linear1: linear("linear1"),
            norm,
            linear2: linear("linear2"),
        }
    }

    fn forward(&self, images: Tensor<2>) -> Tensor<2> {
        let hidden = relu(self.linear1.forward(images));
        self.linear2.forward(self.norm.forward(hidden))
    }
}

#[test]
fn fifty_adam_steps_follow_pytorch() {
    let bytes = std::fs::read(folder().join("parity.safetensors")).expect("parity.safetensors");
    let golden = parse_tensors(&bytes).expect("parity.safetensors");
    let [steps, batch, inputs] = golden["x"].shape().dims();
    assert_eq!(steps, 50);
    let pixels: Vec<f32> = golden["x"].iter::<f32>().map(|x| x / 255.0).collect();
    let targets: Vec<i64> = golden["targets"].iter().collect();

    for (name, device) in devices::all() {
        let device = device.autodiff();
        let tolerance = if name == "wgpu" { 1e-3 } else { 1e-4 };
        let mut network = Network::new(&golden, &device);
        let mut adam = AdamConfig::new().init();
        let loss = CrossEntropyLossConfig::new().init(&device);

        for (step, expected) in golden["loss"].iter::<f64>().enumerate() {
            let x = pixels[step * batch * inputs..][..batch * inputs].to_vec();
            let x = Tensor::<2>::from_data(TensorData::new(x, [batch, inputs]), &device);
            let t = targets[step * batch..][..batch].to_vec();
            let t = Tensor::<1, Int>::from_data(TensorData::new(t, [batch]), &device);

            let loss = loss.forward(network.forward(x), t);
            let got = f64::from(loss.clone().into_scalar::<f32>());
            assert!(
                (got - expected).abs() <= tolerance,
                "{name}, step {step}: loss {got}, PyTorch {expected}"
            );
            let gradients = GradientsParams::from_grads(loss.backward(), &network);
            network = adam.step(LEARNING_RATE, network, gradients);
        }

        for (state, key) in [
            (&network.norm.running_mean, "norm.running_mean"),
            (&network.norm.running_var, "norm.running_var"),
        ] {
            let what = format!("{name}: {key}");
            let expected = &golden[key];
            assert_close(&what, &state.value().into_data(), expected, tolerance);
        }
        assert_eq!(network.norm.num_batches_tracked.value(), 50);
    }
}
