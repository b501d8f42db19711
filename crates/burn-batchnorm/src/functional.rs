//! Batch normalization on tensors, without the state of a layer.
//!
//! # One view
//!
//! A tensor with a channel axis is `(outer, channels, inner)`: `[N, C, H, W]` with axis 1 is
//! `(N, C, H * W)`, channels last is `(N * H * W, C, 1)`. Every operation works on that view, a
//! reshape, so that every axis costs the same and none is transposed.
//!
//! # Numbers
//!
//! - Computed in the type of the input, but at least in f32: half inputs are widened, and the output
//!   narrowed. Statistics stay wide.
//! - The variance is that of centred values, never `E[x^2] - E[x]^2`.
//! - Where [`is_fused`] a kernel of this crate does it; elsewhere Burn's operations are composed. The
//!   numbers are the same to rounding.
//! - Composed, training first shifts the values by the first value of their channel. Statistics of
//!   shifted values lose nothing where the mean is large against the spread (mean 1e4, std 1), and
//!   a constant channel becomes exactly 0, its output exactly `beta`, which sums of the values
//!   themselves do not give. The output does not depend on the shift. The kernels merge blocks of
//!   (count, mean, sum of squared deviations) to the same end.
//! - Inference computes `(x - mean) * scale + shift`. `x * scale + (shift - mean * scale)` would
//!   lose digits where the mean is large.

use burn::tensor::{DType, Device, Tensor};

#[cfg(feature = "cpu")]
use burn::backend::{Dispatch, DispatchDevice};

use crate::view::View;

/// Whether this crate has a fused kernel for the device: a matter of the crate's features. Where it
/// has none, Burn's own operations are composed, with the same results.
pub fn is_fused(device: &Device) -> bool {
    if device.is_autodiff() && cfg!(not(feature = "autodiff")) {
        return false;
    }
    #[cfg(feature = "cpu")]
    match device.clone().inner().as_dispatch() {
        #[cfg(feature = "flex")]
        DispatchDevice::Flex(_) => return true,
        #[cfg(feature = "ndarray")]
        DispatchDevice::NdArray(_) => return true,
        #[allow(
            unreachable_patterns,
            reason = "which devices exist is up to Burn's features"
        )]
        _ => {}
    }
    false
}

/// What [`batch_norm_train`] returns.
#[derive(Debug, Clone)]
pub struct BatchNormTrain<const D: usize> {
    /// The normalized input: shape and type of the input.
    pub output: Tensor<D>,
    /// Mean of the batch, shape `[channels]`, at least f32, not tracked by autodiff.
    pub mean: Tensor<1>,
    /// Biased variance of the batch without epsilon, shape `[channels]`, at least f32, not tracked
    /// by autodiff.
    pub variance: Tensor<1>,
}

/// Normalizes by the statistics of the batch itself:
/// `(x - mean) / sqrt(variance + epsilon) * gamma + beta` per channel, with the biased variance.
///
/// Differentiable in `input`, `gamma` and `beta`; the gradient takes account of the statistics'
/// dependence on the input. Running statistics are the caller's.
///
/// # Shapes
///
/// - `input`, `output`: any rank from 2, `channels` on axis `channel_axis`, counted from the front
/// - `gamma`, `beta`: `[channels]`
///
/// # Panics
///
/// Panics if the axis is out of range or a shape does not match.
///
/// Source: [Ioffe and Szegedy 2015](https://arxiv.org/abs/1502.03167), Algorithm 1.
pub fn batch_norm_train<const D: usize>(
    input: Tensor<D>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    epsilon: f64,
    channel_axis: usize,
) -> BatchNormTrain<D> {
    train(input, gamma, beta, epsilon, channel_axis, None).0
}

/// The running statistics that a batch is blended into, and how:
/// `(1 - factor) * running + factor * batch`, the batch variance multiplied by `correction` first.
#[derive(Debug, Clone)]
pub(crate) struct Running {
    /// Shape `[channels]`, not tracked by autodiff.
    pub(crate) mean: Tensor<1>,
    /// Shape `[channels]`, not tracked by autodiff.
    pub(crate) var: Tensor<1>,
    pub(crate) factor: f64,
    pub(crate) correction: f64,
}

/// [`batch_norm_train`], and the new running mean and variance where there are old ones.
pub(crate) fn train<const D: usize>(
    input: Tensor<D>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    epsilon: f64,
    channel_axis: usize,
    running: Option<Running>,
) -> (BatchNormTrain<D>, Option<(Tensor<1>, Tensor<1>)>) {
    #[cfg(feature = "cpu")]
    if is_fused(&input.device()) {
        return train_fused(input, gamma, beta, epsilon, channel_axis, running);
    }
    let result = train_composed(input, gamma, beta, epsilon, channel_axis);
    let running = running.map(|running| {
        let Running {
            mean,
            var,
            factor,
            correction,
        } = running;
        (
            blend(mean, result.mean.clone(), factor, 1.0),
            blend(var, result.variance.clone(), factor, correction),
        )
    });
    (result, running)
}

#[cfg(feature = "cpu")]
fn train_fused<const D: usize>(
    input: Tensor<D>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    epsilon: f64,
    channel_axis: usize,
    running: Option<Running>,
) -> (BatchNormTrain<D>, Option<(Tensor<1>, Tensor<1>)>) {
    use crate::extension::{BatchNormOps, TrainParams};

    let dtype = compute_dtype(input.dtype());
    let per_channel = |tensor: Tensor<1>| cast(tensor, dtype).into_dispatch();
    // The kernel blends in the type that it computes in; statistics of another type are blended here.
    let (inside, outside) = match running {
        Some(running) if running.mean.dtype() == dtype && running.var.dtype() == dtype => {
            (Some(running), None)
        }
        running => (None, running),
    };
    let (mean, var, factor, correction) = match inside.clone() {
        Some(running) => (
            running.mean,
            running.var,
            running.factor,
            running.correction,
        ),
        None => {
            let unused = gamma.clone().without_autodiff();
            (unused.clone(), unused, 0.0, 1.0)
        }
    };
    let params = TrainParams {
        view: View::new(&input.shape(), channel_axis),
        epsilon,
        factor,
        correction,
    };
    let (output, mean, variance, _, new_mean, new_var) = Dispatch::train(
        input.into_dispatch(),
        per_channel(gamma),
        per_channel(beta),
        per_channel(mean),
        per_channel(var),
        params,
    );
    let statistic = |tensor| Tensor::<1>::from_dispatch(tensor).without_autodiff();
    let result = BatchNormTrain {
        output: Tensor::from_dispatch(output),
        mean: statistic(mean),
        variance: statistic(variance),
    };
    let running = match (inside, outside) {
        (Some(_), _) => Some((statistic(new_mean), statistic(new_var))),
        (None, Some(running)) => Some((
            blend(running.mean, result.mean.clone(), running.factor, 1.0),
            blend(
                running.var,
                result.variance.clone(),
                running.factor,
                running.correction,
            ),
        )),
        (None, None) => None,
    };
    (result, running)
}

fn train_composed<const D: usize>(
    input: Tensor<D>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    epsilon: f64,
    channel_axis: usize,
) -> BatchNormTrain<D> {
    let (shape, dtype) = (input.shape(), input.dtype());
    let x = widen(channels_in_the_middle(input, channel_axis));
    let first = x.clone().detach().slice_dim(0, 0..1).slice_dim(2, 0..1);

    let result = burn::tensor::module::batch_norm_train(
        x - first.clone(),
        widen(gamma),
        widen(beta),
        epsilon,
    );

    let channels = shape[channel_axis];
    BatchNormTrain {
        output: cast(result.output, dtype).reshape(shape),
        mean: (result.mean + first.reshape([channels])).without_autodiff(),
        variance: result.variance.without_autodiff(),
    }
}

/// `(1 - factor) * running + factor * correction * batch`, in the type of the running statistic.
fn blend(running: Tensor<1>, batch: Tensor<1>, factor: f64, correction: f64) -> Tensor<1> {
    let batch = cast(batch, running.dtype());
    if factor == 0.0 {
        return running;
    }
    // Without `0 * running`, a factor of 1 also replaces a NaN.
    if factor == 1.0 {
        return batch * correction;
    }
    running * (1.0 - factor) + batch * (factor * correction)
}

/// Normalizes by given statistics: `(x - mean) * scale + shift` per channel.
///
/// Inference is `scale = gamma / sqrt(running_var + epsilon)`, `shift = beta`. Differentiable in
/// `input`, `scale` and `shift`; the mean is a constant.
///
/// # Shapes
///
/// - `input`, output: any rank from 2, `channels` on axis `channel_axis`, counted from the front
/// - `mean`, `scale`, `shift`: `[channels]`
///
/// # Panics
///
/// Panics if the axis is out of range or a shape does not match.
pub fn normalize<const D: usize>(
    input: Tensor<D>,
    mean: Tensor<1>,
    scale: Tensor<1>,
    shift: Tensor<1>,
    channel_axis: usize,
) -> Tensor<D> {
    let (shape, dtype) = (input.shape(), input.dtype());
    let mean = mean.without_autodiff();

    #[cfg(feature = "cpu")]
    if is_fused(&input.device()) {
        use crate::extension::BatchNormOps;

        let per_channel = |tensor: Tensor<1>| cast(tensor, compute_dtype(dtype)).into_dispatch();
        return Tensor::from_dispatch(Dispatch::normalize(
            input.into_dispatch(),
            per_channel(mean),
            per_channel(scale),
            per_channel(shift),
            View::new(&shape, channel_axis),
        ));
    }

    let x = widen(channels_in_the_middle(input, channel_axis));
    let [_, channels, _] = x.dims();
    let per_channel = |tensor: Tensor<1>| cast(tensor, x.dtype()).reshape([1, channels, 1]);
    let (mean, scale, shift) = (per_channel(mean), per_channel(scale), per_channel(shift));

    cast((x - mean) * scale + shift, dtype).reshape(shape)
}

/// The type that an input of type `dtype` is computed in: itself, but f32 for the half types.
pub(crate) fn compute_dtype(dtype: DType) -> DType {
    match dtype {
        DType::F16 | DType::BF16 => DType::F32,
        dtype => dtype,
    }
}

/// `cast`, but nothing at all where the type is the same.
pub(crate) fn cast<const D: usize>(tensor: Tensor<D>, dtype: DType) -> Tensor<D> {
    match tensor.dtype() == dtype {
        true => tensor,
        false => tensor.cast(dtype),
    }
}

fn widen<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    let dtype = compute_dtype(tensor.dtype());
    cast(tensor, dtype)
}

fn channels_in_the_middle<const D: usize>(input: Tensor<D>, channel_axis: usize) -> Tensor<3> {
    let View {
        outer,
        channels,
        inner,
    } = View::new(&input.shape(), channel_axis);
    input.reshape([outer, channels, inner])
}
