//! Training with weights: the kernels against the composed operations, and those against what Burn's
//! autodiff makes of them.

use burn::backend::Dispatch;
use burn::tensor::{Device, Tensor, TensorData};

use super::{BatchNormOps, Maybe, Moments, Pass, Running, Wanted, composed};
use crate::Activation;
use crate::statistics::Update;
use crate::view::View;

const OUTER: usize = 6;
const CHANNELS: usize = 5;
const INNER: usize = 40;

/// The operands on a device, with values that are the same on all.
struct Operands {
    x: Tensor<3>,
    residual: Tensor<3>,
    dy: Tensor<3>,
    weights: Tensor<3>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
}

impl Operands {
    /// A third of the positions has no weight; x is `missing` there.
    fn new(device: &Device, own: bool, missing: f32) -> Self {
        // Of its own: tests run beside each other.
        let mut state = 7u64;
        let mut value = move || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32) / (1u32 << 22) as f32 - 1.5
        };
        let mut random = |shape: [usize; 3]| {
            let values: Vec<f32> = (0..shape.iter().product()).map(|_| value()).collect();
            Tensor::<3>::from_data(TensorData::new(values, shape), &Device::flex())
        };
        let shape = [OUTER, CHANNELS, INNER];
        let here = |tensor: Tensor<3>| Tensor::<3>::from_data(tensor.to_data(), device);
        let weights = random([OUTER, if own { CHANNELS } else { 1 }, INNER]).clamp_min(0.0);
        let absent = weights.clone().equal_elem(0.0).expand(shape);
        let x = random(shape).mask_fill(absent, missing);
        let row = |tensor: Tensor<3>| here(tensor).reshape([CHANNELS]);
        Self {
            x: here(x),
            residual: here(random(shape)),
            dy: here(random(shape)),
            weights: here(weights),
            gamma: row(random([1, CHANNELS, 1])),
            beta: row(random([1, CHANNELS, 1])),
        }
    }

    fn tracked(self) -> Self {
        Self {
            x: self.x.require_grad(),
            residual: self.residual.require_grad(),
            gamma: self.gamma.require_grad(),
            beta: self.beta.require_grad(),
            ..self
        }
    }

    /// `[y, dx, dresidual]` and `[moments, dgamma, dbeta]`, by autodiff.
    fn differentiated(self, fused: bool) -> Results {
        let this = self.tracked();
        let train = if fused {
            Dispatch::train
        } else {
            composed::train::<Dispatch>
        };
        let (y, moments, ..) = train(
            this.x.clone().into_dispatch(),
            this.gamma.clone().into_dispatch(),
            this.beta.clone().into_dispatch(),
            Maybe::Present(this.residual.clone().into_dispatch()),
            Maybe::Present(this.weights.clone().into_dispatch()),
            Running::Untracked,
            pass(),
            UNTRACKED,
        );
        let y = Tensor::<3>::from_dispatch(y);
        let gradients = (y.clone() * this.dy.clone()).sum().backward();
        let of = |tensor: &Tensor<3>| tensor.grad(&gradients).expect("a gradient");
        let vector = |tensor: &Tensor<1>| tensor.grad(&gradients).expect("one").unsqueeze();
        Results {
            tensors: [y.without_autodiff(), of(&this.x), of(&this.residual)],
            moments: Tensor::from_dispatch(moments).without_autodiff(),
            vectors: [vector(&this.gamma), vector(&this.beta)],
        }
    }

    /// The same, by the composed operations.
    fn composed(self) -> Results {
        let [x, residual, dy, weights] =
            [self.x, self.residual, self.dy, self.weights].map(Tensor::into_dispatch);
        let [gamma, beta] = [self.gamma, self.beta].map(Tensor::into_dispatch);
        let (y, moments, ..) = composed::train::<Dispatch>(
            x.clone(),
            gamma.clone(),
            beta.clone(),
            Maybe::Present(residual.clone()),
            Maybe::Present(weights.clone()),
            Running::Untracked,
            pass(),
            UNTRACKED,
        );
        let wanted = Wanted {
            input: true,
            gamma: true,
            beta: true,
            residual: true,
        };
        let (dx, dgamma, dbeta, dresidual) = composed::backward::<Dispatch>(
            x,
            dy,
            Moments::Batch(moments.clone()),
            gamma,
            beta,
            Maybe::Present(residual),
            Maybe::Present(weights),
            pass(),
            wanted,
        );
        Results {
            tensors: [y, dx, dresidual].map(Tensor::from_dispatch),
            moments: Tensor::from_dispatch(moments),
            vectors: [dgamma, dbeta].map(|v| Tensor::<1>::from_dispatch(v).unsqueeze()),
        }
    }
}

struct Results {
    tensors: [Tensor<3>; 3],
    moments: Tensor<2>,
    vectors: [Tensor<2>; 2],
}

impl Results {
    fn assert_close(self, other: Self, what: &str) {
        for (i, (a, b)) in self.tensors.into_iter().zip(other.tensors).enumerate() {
            close(a, b, &format!("tensor {i} of {what}"));
        }
        close(self.moments, other.moments, &format!("moments of {what}"));
        for (i, (a, b)) in self.vectors.into_iter().zip(other.vectors).enumerate() {
            close(a, b, &format!("vector {i} of {what}"));
        }
    }
}

/// Relative to the larger of 1 and the value; NaN is as good as NaN, and an infinity as the same one.
fn close<const D: usize>(got: Tensor<D>, expected: Tensor<D>, what: &str) {
    assert_eq!(got.shape(), expected.shape(), "{what}");
    let (got, expected) = (got.to_data(), expected.to_data());
    for (got, expected) in got.iter::<f64>().zip(expected.iter::<f64>()) {
        let near = (got - expected).abs() <= 1e-4 * expected.abs().max(1.0);
        let both = got.is_nan() && expected.is_nan();
        assert!(
            near || both || got == expected,
            "{what}: got {got}, expected {expected}"
        );
    }
}

const UNTRACKED: Update = Update {
    keep: 1.0,
    add_mean: 0.0,
    add_variance: 0.0,
};

fn pass() -> Pass {
    Pass {
        view: View {
            axis: 1,
            outer: OUTER,
            channels: CHANNELS,
            inner: INNER,
        },
        activation: Activation::Silu,
        epsilon: 1e-5,
        from_output: false,
    }
}

fn devices() -> Vec<(&'static str, Device)> {
    vec![
        #[cfg(feature = "flex")]
        ("flex", Device::flex()),
        #[cfg(feature = "ndarray")]
        ("ndarray", Device::ndarray()),
    ]
}

#[test]
fn weighted_kernels_are_as_the_composed_operations() {
    for (name, device) in devices() {
        for own in [false, true] {
            for missing in [0.25, f32::NAN, f32::INFINITY] {
                let expected = Operands::new(&device, own, missing).composed();
                let got = Operands::new(&device.clone().autodiff(), own, missing);
                let what = format!("{name}, own {own}, missing {missing}");
                got.differentiated(true).assert_close(expected, &what);
            }
        }
    }
}

#[test]
fn composed_gradients_of_weighted_positions_are_those_of_autodiff() {
    for own in [false, true] {
        let device = Device::flex();
        let expected = Operands::new(&device.clone().autodiff(), own, 0.25);
        let got = Operands::new(&device, own, 0.25).composed();
        got.assert_close(expected.differentiated(false), &format!("own {own}"));
    }
}
