//! Batch norm in a small network, on 7,000 images of clothes: `cargo run --release -p quickstart`.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig, loss::CrossEntropyLossConfig};
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Device, Int, Tensor, TensorData, activation::relu};
use burn_batchnorm::{BatchNorm, BatchNormConfig};

#[derive(Module, Debug)]
struct Model {
    hidden: Linear,
    norm: BatchNorm,
    output: Linear,
}

impl Model {
    fn new(device: &Device) -> Self {
        Self {
            hidden: LinearConfig::new(784, 50).init(device),
            norm: BatchNormConfig::new(50).init(device),
            output: LinearConfig::new(50, 10).init(device),
        }
    }

    fn forward(&self, images: Tensor<2>) -> Tensor<2> {
        let hidden = relu(self.hidden.forward(images));
        self.output.forward(self.norm.forward(hidden))
    }
}

/// Fashion-MNIST: images and labels for training and for the test.
const FILES: [&[u8]; 4] = [
    include_bytes!("../../mnist/data/fashion-mnist-subset/train-images-idx3-ubyte.gz"),
    include_bytes!("../../mnist/data/fashion-mnist-subset/train-labels-idx1-ubyte.gz"),
    include_bytes!("../../mnist/data/fashion-mnist-subset/t10k-images-idx3-ubyte.gz"),
    include_bytes!("../../mnist/data/fashion-mnist-subset/t10k-labels-idx1-ubyte.gz"),
];

fn load(images: &[u8], labels: &[u8], device: &Device) -> (Tensor<2>, Tensor<1, Int>) {
    let unzip = |file, header| {
        let bytes = std::io::Read::bytes(flate2::read::GzDecoder::new(file));
        bytes.skip(header).map(|byte| f32::from(byte.unwrap()))
    };
    // Mean 0 and deviation 1: this trains better, and faster than pixels that are always 0.
    let pixels = unzip(images, 16).map(|pixel| (pixel / 255.0 - 0.286) / 0.353);
    let labels: Vec<i32> = unzip(labels, 8).map(|label| label as i32).collect();
    let images = TensorData::new(pixels.collect(), [labels.len(), 784]);
    let labels = TensorData::from(&labels[..]);
    (
        Tensor::from_data(images, device),
        Tensor::from_data(labels, device),
    )
}

fn main() {
    let device = Device::flex();
    device.seed(42);
    let training = device.clone().autodiff();
    let (images, labels) = load(FILES[0], FILES[1], &training);
    let (test_images, test_labels) = load(FILES[2], FILES[3], &device);
    let (mut model, mut adam) = (Model::new(&training), AdamConfig::new().init());
    let loss = CrossEntropyLossConfig::new().init(&training);
    for epoch in 1..=5 {
        for start in (0..7000).step_by(50) {
            let batch = start..start + 50;
            let output = model.forward(images.clone().slice(batch.clone()));
            let loss = loss.forward(output, labels.clone().slice(batch));
            let gradients = GradientsParams::from_grads(loss.backward(), &model);
            model = adam.step(1e-3, model, gradients);
        }
        // `valid()` ends training: running statistics, no gradients.
        let answers = model.valid().forward(test_images.clone()).argmax(1);
        let right = answers.squeeze::<1>().equal(test_labels.clone()).int();
        let percent = 100.0 * right.float().mean().into_scalar::<f32>();
        println!("epoch {epoch}: {percent:.1}% of the test images are right");
    }
}
