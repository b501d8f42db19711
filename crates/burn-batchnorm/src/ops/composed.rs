//! The operations in Burn's own, on any backend.
//!
//! The same formulas as the kernels', with the same names; several passes over memory each. On an
//! autodiff backend they are differentiated by Burn, operation by operation.
//!
//! The moments are taken about the first value of each channel, so that a constant channel has
//! deviations of exactly 0 (and an output of exactly `beta`) and a mean that is large against the
//! spread costs no digits; and the mean in two steps, so that a first value that is an outlier costs
//! none either.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{DType, FloatDType, Shape, Slice};

use super::activate::{self, activate};
use super::weighed::{Absent, Weighed};
use super::{Four, Maybe, Moments, Pass, Running, Wanted};
use crate::statistics::Update;
use crate::view::View;

/// The type that an input of type `dtype` is computed in.
pub fn compute_dtype(dtype: DType) -> DType {
    match dtype {
        DType::F64 => DType::F64,
        _ => DType::F32,
    }
}

fn float_dtype(dtype: DType) -> FloatDType {
    match dtype {
        DType::F64 => FloatDType::F64,
        DType::F16 => FloatDType::F16,
        DType::BF16 => FloatDType::BF16,
        _ => FloatDType::F32,
    }
}

pub fn cast<B: Backend>(tensor: FloatTensor<B>, dtype: DType) -> FloatTensor<B> {
    match tensor.dtype() == dtype {
        true => tensor,
        false => B::float_cast(tensor, float_dtype(dtype)),
    }
}

/// Zeros of the type that `like` is computed in, on its device.
pub fn zeros<B: Backend>(like: &FloatTensor<B>, shape: Shape) -> FloatTensor<B> {
    let dtype = float_dtype(compute_dtype(like.dtype()));
    B::float_zeros(shape, &like.device(), dtype)
}

/// Row `index` of a packed tensor, `[channels]`.
pub fn row<B: Backend>(packed: &FloatTensor<B>, index: usize) -> FloatTensor<B> {
    let channels = packed.shape()[1];
    let rows = [Slice::from(index..index + 1), Slice::from(0..channels)];
    B::float_reshape(
        B::float_slice(packed.clone(), &rows),
        Shape::new([channels]),
    )
}

/// Tensors of `[channels]` as the rows of one.
pub fn pack<B: Backend>(rows: Vec<FloatTensor<B>>) -> FloatTensor<B> {
    let rows = rows.into_iter().map(|row| {
        let channels = row.shape().num_elements();
        B::float_reshape(row, Shape::new([1, channels]))
    });
    B::float_cat(rows.collect(), 0)
}

pub fn inv_std<B: Backend>(variance: FloatTensor<B>, epsilon: f64) -> FloatTensor<B> {
    B::float_recip(B::float_sqrt(B::float_add_scalar(variance, epsilon.into())))
}

/// The input as `[outer, channels, inner]` in the type that it is computed in.
fn wide<B: Backend>(x: FloatTensor<B>, view: View) -> FloatTensor<B> {
    let dtype = compute_dtype(x.dtype());
    let shape = Shape::new([view.outer, view.channels, view.inner]);
    B::float_reshape(cast::<B>(x, dtype), shape)
}

/// A tensor of `[channels]` as `[1, channels, 1]`.
fn spread<B: Backend>(vector: FloatTensor<B>) -> FloatTensor<B> {
    let channels = vector.shape().num_elements();
    B::float_reshape(vector, Shape::new([1, channels, 1]))
}

/// Sums over everything but the channels: `[1, channels, 1]`.
pub fn sum<B: Backend>(tensor: FloatTensor<B>) -> FloatTensor<B> {
    B::float_sum_dims(tensor, &[0, 2])
}

/// As [`BatchNormOps::moments`](super::BatchNormOps::moments).
pub fn moments<B: Backend>(x: FloatTensor<B>, view: View) -> FloatTensor<B> {
    if view.is_empty() {
        return zeros::<B>(&x, Shape::new([3, view.channels]));
    }
    let x = wide::<B>(x, view);
    let n = (view.outer * view.inner) as f64;
    let average = |tensor| B::float_div_scalar(sum::<B>(tensor), n.into());
    let first = B::float_slice(
        B::float_detach(x.clone()),
        &[
            Slice::from(0..1),
            Slice::from(0..view.channels),
            Slice::from(0..1),
        ],
    );
    let shifted = B::float_sub(x, first.clone());
    let about = average(shifted.clone());
    let centred = B::float_sub(shifted, about.clone());
    let rest = average(centred.clone());
    let about = B::float_add(about, rest.clone());
    let centred = B::float_sub(centred, rest);
    let variance = average(B::float_mul(centred.clone(), centred));

    let mean = B::float_add(first.clone(), about.clone());
    // No variable of its own: the gradient of the mean is that of the first row.
    let low = B::float_sub(about, B::float_sub(mean.clone(), first));
    pack::<B>(vec![mean, B::float_detach(low), variance])
}

/// As [`moments`], of weighted positions, with the sum of the weights as a fourth row: `[4, channels]`.
/// `weights` are `[outer, 1 or channels, inner]`.
pub fn weighted_moments<B: Backend>(
    x: FloatTensor<B>,
    weights: FloatTensor<B>,
    view: View,
) -> FloatTensor<B> {
    if view.is_empty() {
        return zeros::<B>(&x, Shape::new([4, view.channels]));
    }
    let x = wide::<B>(x, view);
    let weighed = Weighed::<B>::new(weights, view, x.dtype());
    let sums = B::float_reshape(weighed.sums.clone(), Shape::new([1, view.channels]));
    B::float_cat(vec![weighed.moments(x), sums], 0)
}

/// The input less its mean, and the inverse standard deviation.
fn centred<B: Backend>(
    x: FloatTensor<B>,
    moments: Moments<B>,
    epsilon: f64,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let (mean, low, inv_std) = match moments {
        Moments::Batch(all) => (
            row::<B>(&all, 0),
            Some(row::<B>(&all, 1)),
            row::<B>(&all, 3),
        ),
        Moments::Center(center) => (
            row::<B>(&center, 0),
            Some(row::<B>(&center, 1)),
            inv_std::<B>(row::<B>(&center, 2), epsilon),
        ),
        Moments::Running(mean, variance) => (mean, None, inv_std::<B>(variance, epsilon)),
    };
    let x = B::float_sub(x, spread::<B>(mean));
    let x = match low {
        Some(low) => B::float_sub(x, spread::<B>(low)),
        None => x,
    };
    (x, spread::<B>(inv_std))
}

/// The normalized input, and what the activation is applied to, wide.
struct Normalized<B: Backend> {
    xhat: FloatTensor<B>,
    z: FloatTensor<B>,
    inv_std: FloatTensor<B>,
}

fn normalized<B: Backend>(
    x: FloatTensor<B>,
    moments: Moments<B>,
    gamma: FloatTensor<B>,
    beta: FloatTensor<B>,
    residual: Maybe<B>,
    absent: Option<&Absent<B>>,
    pass: Pass,
) -> Normalized<B> {
    let (mut x, mut residual) = match residual {
        Maybe::Present(residual) => (x, Some(wide::<B>(residual, pass.view))),
        Maybe::Absent => (x, None),
    };
    x = wide::<B>(x, pass.view);
    if let Some(absent) = absent {
        let mean = match &moments {
            Moments::Batch(all) | Moments::Center(all) => row::<B>(all, 0),
            Moments::Running(mean, _) => mean.clone(),
        };
        x = absent.finite(x, spread::<B>(mean.clone()));
        let none = || spread::<B>(zeros::<B>(&mean, mean.shape()));
        residual = residual.map(|residual| absent.finite(residual, none()));
    }
    let (centred, inv_std) = centred::<B>(x, moments, pass.epsilon);
    let xhat = B::float_mul(centred, inv_std.clone());
    let z = B::float_mul(xhat.clone(), spread::<B>(gamma));
    let z = B::float_add(z, spread::<B>(beta));
    let z = match residual {
        Some(residual) => B::float_add(z, residual),
        None => z,
    };
    Normalized { xhat, z, inv_std }
}

/// A tensor with 0 where there is no weight and it is not finite.
#[cfg(feature = "cube")]
pub fn counted<B: Backend>(
    tensor: FloatTensor<B>,
    weights: FloatTensor<B>,
    view: View,
) -> FloatTensor<B> {
    let (shape, dtype) = (tensor.shape(), tensor.dtype());
    let tensor = wide::<B>(tensor, view);
    let none = zeros::<B>(&tensor, Shape::new([1, 1, 1]));
    let tensor = Absent::<B>::new(weights, view).finite(tensor, none);
    cast::<B>(B::float_reshape(tensor, shape), dtype)
}

fn weighed<B: Backend>(weights: Maybe<B>, x: &FloatTensor<B>, view: View) -> Option<Weighed<B>> {
    match weights {
        Maybe::Absent => None,
        Maybe::Present(_) if view.is_empty() => None,
        Maybe::Present(weights) => Some(Weighed::<B>::new(weights, view, compute_dtype(x.dtype()))),
    }
}

/// As [`BatchNormOps::normalize`](super::BatchNormOps::normalize).
pub fn normalize<B: Backend>(
    x: FloatTensor<B>,
    moments: Moments<B>,
    gamma: FloatTensor<B>,
    beta: FloatTensor<B>,
    residual: Maybe<B>,
    weights: Maybe<B>,
    pass: Pass,
) -> FloatTensor<B> {
    let absent = match weights {
        Maybe::Present(weights) if !pass.view.is_empty() => {
            Some(Absent::<B>::new(weights, pass.view))
        }
        _ => None,
    };
    output::<B>(x, moments, gamma, beta, residual, absent.as_ref(), pass)
}

fn output<B: Backend>(
    x: FloatTensor<B>,
    moments: Moments<B>,
    gamma: FloatTensor<B>,
    beta: FloatTensor<B>,
    residual: Maybe<B>,
    absent: Option<&Absent<B>>,
    pass: Pass,
) -> FloatTensor<B> {
    let (shape, dtype) = (x.shape(), x.dtype());
    let Normalized { z, .. } = normalized::<B>(x, moments, gamma, beta, residual, absent, pass);
    let y = activate::<B>(z, pass.activation);
    cast::<B>(B::float_reshape(y, shape), dtype)
}

/// As [`BatchNormOps::train`](super::BatchNormOps::train).
#[allow(clippy::too_many_arguments)]
pub fn train<B: Backend>(
    x: FloatTensor<B>,
    gamma: FloatTensor<B>,
    beta: FloatTensor<B>,
    residual: Maybe<B>,
    weights: Maybe<B>,
    running: Running<B>,
    pass: Pass,
    update: Update,
) -> Four<B> {
    if pass.view.is_empty() {
        let rows = match weights {
            Maybe::Absent => 4,
            Maybe::Present(_) => 5,
        };
        let (mean, variance) = match running {
            Running::Untracked => (gamma.clone(), gamma.clone()),
            Running::Tracked(mean, variance) => (mean, variance),
        };
        let moments = zeros::<B>(&gamma, Shape::new([rows, pass.view.channels]));
        return (x, moments, mean, variance);
    }
    let weighed = weighed::<B>(weights, &x, pass.view);
    let center = match &weighed {
        None => moments::<B>(x.clone(), pass.view),
        Some(weighed) => weighed.moments(wide::<B>(x.clone(), pass.view)),
    };
    let (mean, variance) = (row::<B>(&center, 0), row::<B>(&center, 2));
    let (new_mean, new_variance) = match running {
        Running::Untracked => (gamma.clone(), gamma.clone()),
        Running::Tracked(old_mean, old_variance) => (
            blend::<B>(old_mean, mean.clone(), update.keep, update.add_mean),
            blend::<B>(
                old_variance,
                variance.clone(),
                update.keep,
                update.add_variance,
            ),
        ),
    };
    let inv_std = inv_std::<B>(variance.clone(), pass.epsilon);
    let mut rows = vec![mean, row::<B>(&center, 1), variance, inv_std];
    rows.extend(weighed.as_ref().map(|weighed| weighed.sums.clone()));
    let all = pack::<B>(rows);
    let center = Moments::Center(center);
    let absent = weighed.as_ref().map(|weighed| &weighed.absent);
    let y = output::<B>(x, center, gamma, beta, residual, absent, pass);
    (y, all, new_mean, new_variance)
}

/// `keep * old + add * new`, where a factor of 0 takes nothing, not even a NaN.
pub fn blend<B: Backend>(
    old: FloatTensor<B>,
    new: FloatTensor<B>,
    keep: f64,
    add: f64,
) -> FloatTensor<B> {
    if add == 0.0 {
        return old;
    }
    let added = B::float_mul_scalar(new, add.into());
    match keep == 0.0 {
        true => added,
        false => B::float_add(B::float_mul_scalar(old, keep.into()), added),
    }
}

/// As [`BatchNormOps::backward`](super::BatchNormOps::backward).
#[allow(clippy::too_many_arguments)]
pub fn backward<B: Backend>(
    x: FloatTensor<B>,
    y_grad: FloatTensor<B>,
    moments: Moments<B>,
    gamma: FloatTensor<B>,
    beta: FloatTensor<B>,
    residual: Maybe<B>,
    weights: Maybe<B>,
    pass: Pass,
    _wanted: Wanted,
) -> Four<B> {
    let (shape, dtype) = (x.shape(), x.dtype());
    let view = pass.view;
    let of_batch = matches!(moments, Moments::Batch(_));
    let weighed = weighed::<B>(weights, &x, view);
    let factor = gamma.clone();
    let absent = weighed.as_ref().map(|weighed| &weighed.absent);
    let Normalized { xhat, z, inv_std } =
        normalized::<B>(x, moments, factor, beta, residual, absent, pass);
    let g = activate::gradient::<B>(z, wide::<B>(y_grad, view), pass.activation);
    let beta_grad = sum::<B>(g.clone());
    let gamma_grad = sum::<B>(B::float_mul(g.clone(), xhat.clone()));

    let scale = B::float_mul(spread::<B>(gamma), inv_std);
    let residual_grad = g.clone();
    let g = match (of_batch, weighed) {
        (false, _) => g,
        (true, Some(weighed)) => {
            let through = B::float_add(B::float_mul(xhat, gamma_grad.clone()), beta_grad.clone());
            B::float_sub(g, weighed.share(through))
        }
        (true, None) => {
            let n = (view.outer * view.inner) as f64;
            let share = |sum: &FloatTensor<B>| B::float_div_scalar(sum.clone(), n.into());
            let g = B::float_sub(g, share(&beta_grad));
            B::float_sub(g, B::float_mul(xhat, share(&gamma_grad)))
        }
    };
    let x_grad = B::float_mul(g, scale);
    let as_input = |tensor| cast::<B>(B::float_reshape(tensor, shape.clone()), dtype);
    let per_channel = |tensor| B::float_reshape(tensor, Shape::new([view.channels]));
    (
        as_input(x_grad),
        per_channel(gamma_grad),
        per_channel(beta_grad),
        as_input(residual_grad),
    )
}

/// The input less its mean, from the output of a training pass `activation(x_hat * gamma + beta)`, and the
/// moments that go with it. (Not the input: next to a mean that is large, it could not hold the digits.)
#[cfg(all(feature = "autodiff", any(feature = "host", feature = "cube")))]
pub fn centred_of_output<B: super::BatchNormOps>(
    y: FloatTensor<B>,
    moments: &FloatTensor<B>,
    gamma: FloatTensor<B>,
    beta: FloatTensor<B>,
    pass: Pass,
) -> (FloatTensor<B>, Moments<B>) {
    let z = match pass.activation {
        // Of a positive slope, the inverse is one of its kind.
        crate::Activation::LeakyRelu(slope) => B::leaky_relu(y, (1.0 / slope).into()),
        _ => y,
    };
    let inv_std = row::<B>(moments, 3);
    let scale = B::float_recip(B::float_mul(gamma, inv_std.clone()));
    let none = zeros::<B>(&inv_std, inv_std.shape());
    let centred = B::affine(z, beta, scale, none.clone(), pass.view);
    let rows = vec![none.clone(), none, row::<B>(moments, 2), inv_std];
    (centred, Moments::Batch(pack::<B>(rows)))
}

/// As [`BatchNormOps::affine`](super::BatchNormOps::affine).
pub fn affine<B: Backend>(
    x: FloatTensor<B>,
    mean: FloatTensor<B>,
    scale: FloatTensor<B>,
    shift: FloatTensor<B>,
    view: View,
) -> FloatTensor<B> {
    let (shape, dtype) = (x.shape(), x.dtype());
    let centred = B::float_sub(wide::<B>(x, view), spread::<B>(mean));
    let scaled = B::float_mul(centred, spread::<B>(scale));
    let y = B::float_add(scaled, spread::<B>(shift));
    cast::<B>(B::float_reshape(y, shape), dtype)
}
