//! The activations in Burn's own operations, and the gradients before them.
//!
//! The formulas are those of the kernels (`curves.rs` of either kernel crate), with the logistic
//! function `s(v) = (1 + tanh(v / 2)) / 2`, which cannot overflow and whose derivative Burn knows.

use burn::backend::tensor::{BoolTensor, FloatTensor};
use burn::backend::{Backend, TensorMetadata, get_or_init_device_settings};
use burn::tensor::BoolDType;

use crate::Activation;

/// `sqrt(8 / pi)`, and that times 0.044715.
const STEEPNESS: f64 = 1.595_769_121_605_731;
const CUBIC: f64 = 0.071_354_816_272_600_26;
/// `1 / sqrt(2 pi)`.
const HEIGHT: f64 = 0.398_942_280_401_432_7;

fn bool_dtype<B: Backend>(tensor: &FloatTensor<B>) -> BoolDType {
    get_or_init_device_settings::<B>(&tensor.device()).bool_dtype
}

fn without<B: Backend>(tensor: FloatTensor<B>, mask: BoolTensor<B>) -> FloatTensor<B> {
    B::float_mask_fill(tensor, mask, 0.0.into())
}

/// `share * v`, and 0 where the share is 0, whatever v is.
fn or_zero<B: Backend>(share: FloatTensor<B>, v: FloatTensor<B>) -> FloatTensor<B> {
    let none = B::float_equal_elem(share.clone(), 0.0.into(), bool_dtype::<B>(&share));
    without::<B>(B::float_mul(share, v), none)
}

/// `factor * v + term`.
fn line<B: Backend>(v: FloatTensor<B>, factor: f64, term: f64) -> FloatTensor<B> {
    B::float_add_scalar(B::float_mul_scalar(v, factor.into()), term.into())
}

/// The logistic function.
fn logistic<B: Backend>(v: FloatTensor<B>) -> FloatTensor<B> {
    line::<B>(B::float_tanh(line::<B>(v, 0.5, 0.0)), 0.5, 0.5)
}

/// Its derivative.
fn bell<B: Backend>(v: FloatTensor<B>) -> FloatTensor<B> {
    let tanh = B::float_tanh(line::<B>(v, 0.5, 0.0));
    line::<B>(B::float_mul(tanh.clone(), tanh), -0.25, 0.25)
}

/// The distribution function of the standard normal.
fn normal<B: Backend>(v: FloatTensor<B>) -> FloatTensor<B> {
    let root = B::float_mul_scalar(v, 0.5f64.sqrt().into());
    line::<B>(B::float_erf(root), 0.5, 0.5)
}

/// The argument of the logistic function in GELU by tanh.
fn inner<B: Backend>(v: FloatTensor<B>) -> FloatTensor<B> {
    let square = B::float_mul(v.clone(), v.clone());
    B::float_mul(line::<B>(square, CUBIC, STEEPNESS), v)
}

/// `activation(z)`.
pub fn activate<B: Backend>(z: FloatTensor<B>, activation: Activation) -> FloatTensor<B> {
    match activation {
        Activation::None => z,
        Activation::Relu => B::relu(z),
        Activation::LeakyRelu(slope) => B::leaky_relu(z, slope.into()),
        Activation::Relu6 => B::float_clamp(z, 0.0.into(), 6.0.into()),
        Activation::Clamp { min, max } => B::float_clamp(z, min.into(), max.into()),
        Activation::Silu => or_zero::<B>(logistic::<B>(z.clone()), z),
        Activation::Gelu => or_zero::<B>(normal::<B>(z.clone()), z),
        Activation::GeluTanh => or_zero::<B>(logistic::<B>(inner::<B>(z.clone())), z),
        Activation::HardSwish => {
            let share = line::<B>(z.clone(), 1.0 / 6.0, 0.5);
            or_zero::<B>(B::float_clamp(share, 0.0.into(), 1.0.into()), z)
        }
        Activation::Sigmoid => logistic::<B>(z),
        Activation::Tanh => B::float_tanh(z),
    }
}

/// The gradient before the activation. A selection, so that what is masked contributes nothing, not
/// even where it is infinite. At a kink it is that of the outer piece, as in PyTorch.
pub fn gradient<B: Backend>(
    z: FloatTensor<B>,
    y_grad: FloatTensor<B>,
    activation: Activation,
) -> FloatTensor<B> {
    let dtype = bool_dtype::<B>(&z);
    let not_above = |bound: f64| B::float_lower_equal_elem(z.clone(), bound.into(), dtype);
    let not_below = |bound: f64| B::float_greater_equal_elem(z.clone(), bound.into(), dtype);
    let between =
        |grad, min: f64, max: f64| without::<B>(without::<B>(grad, not_above(min)), not_below(max));
    let slope = match activation {
        Activation::None => return y_grad,
        Activation::Relu => return without::<B>(y_grad, not_above(0.0)),
        Activation::LeakyRelu(slope) => {
            let sloped = B::float_mul_scalar(y_grad.clone(), slope.into());
            return B::float_mask_where(y_grad, not_above(0.0), sloped);
        }
        Activation::Relu6 => return between(y_grad, 0.0, 6.0),
        Activation::Clamp { min, max } => return between(y_grad, min, max),
        Activation::Silu => {
            let bent = or_zero::<B>(bell::<B>(z.clone()), z.clone());
            B::float_add(logistic::<B>(z), bent)
        }
        Activation::Gelu => {
            let square = B::float_mul(z.clone(), z.clone());
            let density = B::float_exp(B::float_mul_scalar(square, (-0.5).into()));
            let density = B::float_mul_scalar(density, HEIGHT.into());
            B::float_add(normal::<B>(z.clone()), or_zero::<B>(density, z))
        }
        Activation::GeluTanh => {
            let inner = inner::<B>(z.clone());
            let square = B::float_mul(z.clone(), z.clone());
            let steep = B::float_mul(line::<B>(square, 3.0 * CUBIC, STEEPNESS), z);
            let bent = or_zero::<B>(bell::<B>(inner.clone()), steep);
            B::float_add(logistic::<B>(inner), bent)
        }
        Activation::HardSwish => {
            let sloped = line::<B>(z.clone(), 1.0 / 3.0, 0.5);
            let upper = B::float_mask_fill(sloped, not_below(3.0), 1.0.into());
            without::<B>(upper, not_above(-3.0))
        }
        Activation::Sigmoid => bell::<B>(z),
        Activation::Tanh => B::float_mul_scalar(bell::<B>(line::<B>(z, 2.0, 0.0)), 4.0.into()),
    };
    or_zero::<B>(slope, y_grad)
}
