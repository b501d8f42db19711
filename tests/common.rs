//! Comparing tensors, and inputs that no symmetry makes easy.

use burn::tensor::{DType, Device, Shape, Tensor, TensorData};
use burn_batchnorm::Activation;

/// One of each, with numbers that matter to values around 0.
pub const ACTIVATIONS: [Activation; 11] = [
    Activation::None,
    Activation::Relu,
    Activation::LeakyRelu(0.2),
    Activation::Relu6,
    Activation::Clamp {
        min: -0.5,
        max: 0.75,
    },
    Activation::Silu,
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::HardSwish,
    Activation::Sigmoid,
    Activation::Tanh,
];

/// Largest allowed error of results of type `dtype`: (forward and statistics, gradients).
///
/// Relative to the size of the value plus the root mean square of its tensor, since a value near 0
/// is a difference of values of the tensor's size. Half types: half of their last digit. f32: a few
/// of its last digits for the forward pass, and ten times that for gradients, whose sums cancel.
/// f64: what PyTorch itself has at a mean of 1e4, whose rounding is 1e-12.
pub fn tolerance(dtype: DType) -> (f64, f64) {
    match dtype {
        DType::F64 => (1e-11, 1e-11),
        DType::F16 => (5e-4, 5e-4),
        DType::BF16 => (4e-3, 4e-3),
        _ => (1e-5, 1e-4),
    }
}

pub fn values(data: &TensorData) -> Vec<f64> {
    data.iter::<f64>().collect()
}

/// # Panics
///
/// Panics, naming the worst value, where `got` is farther from `expected` than `tolerance` allows.
pub fn assert_close(what: &str, got: &TensorData, expected: &TensorData, tolerance: f64) {
    if let Some(difference) = difference(what, got, expected, tolerance) {
        panic!("{difference}");
    }
}

/// The worst value of `got` that is farther from `expected` than `tolerance` allows.
pub fn difference(
    what: &str,
    got: &TensorData,
    expected: &TensorData,
    tolerance: f64,
) -> Option<String> {
    if got.shape() != expected.shape() {
        let (got, expected) = (got.shape(), expected.shape());
        return Some(format!("{what}: shape {got:?}, expected {expected:?}"));
    }
    let (got, expected) = (values(got), values(expected));
    let mean_square =
        expected.iter().map(|value| value * value).sum::<f64>() / expected.len().max(1) as f64;
    let worst = got
        .iter()
        .zip(&expected)
        .enumerate()
        .map(|(index, (got, expected))| {
            let scale = expected.abs() + mean_square.sqrt() + f64::MIN_POSITIVE;
            let error = (got - expected).abs() / scale;
            // Two equal infinities agree; NaN agrees with nothing.
            (if got == expected { 0.0 } else { error }, index)
        })
        .fold((0.0, 0), |worst, this| match this.0 <= worst.0 {
            true => worst,
            false => this,
        });
    let (error, index) = worst;
    // Not `error > tolerance`: a NaN is a difference too.
    let close = error <= tolerance;
    (!close).then(|| {
        format!(
            "{what}: got {} at {index}, expected {}: relative error {error:.2e} > {tolerance:.0e}",
            got[index], expected[index]
        )
    })
}

/// Deterministic values in [-1, 1) from a linear congruential generator.
pub fn random<const D: usize>(shape: [usize; D], seed: u64, device: &Device) -> Tensor<D> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let values = (0..shape.iter().product())
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32) / (1u32 << 23) as f32 - 1.0
        })
        .collect::<Vec<f32>>();
    Tensor::from_data(TensorData::new(values, Shape::from(shape.to_vec())), device)
}

pub fn vector<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    values(&tensor.into_data())
}
