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

#[cfg(any(feature = "cpu", feature = "cube"))]
use burn::backend::{Dispatch, DispatchDevice, tensor::FloatTensor};

use crate::Activation;
#[cfg(any(feature = "cpu", feature = "cube"))]
use crate::extension::Pass;
use crate::view::View;

/// Whether this crate has a fused kernel for the device: a matter of the crate's features. Where it
/// has none, Burn's own operations are composed, with the same results.
pub fn is_fused(device: &Device) -> bool {
    if device.is_autodiff() && cfg!(not(feature = "autodiff")) {
        return false;
    }
    #[cfg(any(feature = "cpu", feature = "cube"))]
    match device.clone().inner().as_dispatch() {
        #[cfg(feature = "flex")]
        DispatchDevice::Flex(_) => return true,
        #[cfg(feature = "ndarray")]
        DispatchDevice::NdArray(_) => return true,
        #[cfg(feature = "cube")]
        DispatchDevice::Cube(_) => return true,
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
    let training = Training {
        gamma,
        beta,
        epsilon,
        channel_axis,
        epilogue: Epilogue::default(),
        running: None,
    };
    train(input, training).0
}

/// What a training pass needs besides its input.
#[derive(Debug, Clone)]
pub(crate) struct Training<const D: usize> {
    /// Shape `[channels]`.
    pub(crate) gamma: Tensor<1>,
    /// Shape `[channels]`.
    pub(crate) beta: Tensor<1>,
    pub(crate) epsilon: f64,
    /// Counted from the front.
    pub(crate) channel_axis: usize,
    pub(crate) epilogue: Epilogue<D>,
    pub(crate) running: Option<Running>,
}

/// What follows the normalization: `activation(normalized + residual)`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Epilogue<const D: usize> {
    pub(crate) activation: Activation,
    /// Shape and type of the input.
    pub(crate) residual: Option<Tensor<D>>,
}

impl<const D: usize> Epilogue<D> {
    /// With Burn's operations.
    fn apply(self, normalized: Tensor<D>) -> Tensor<D> {
        self.activation.apply(match self.residual {
            Some(residual) => normalized + residual,
            None => normalized,
        })
    }

    /// For the kernels: the residual, or `unread` where there is none.
    #[cfg(any(feature = "cpu", feature = "cube"))]
    fn into_pass(self, view: View, unread: Tensor<1>) -> (FloatTensor<Dispatch>, Pass) {
        let pass = Pass {
            view,
            activation: self.activation,
            residual: self.residual.is_some(),
        };
        let residual = self.residual.map(Tensor::into_dispatch);
        (residual.unwrap_or_else(|| unread.into_dispatch()), pass)
    }
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

impl Running {
    /// The new running mean and variance.
    fn blend<const D: usize>(self, batch: &BatchNormTrain<D>) -> (Tensor<1>, Tensor<1>) {
        let (mean, variance) = (batch.mean.clone(), batch.variance.clone());
        (
            blend(self.mean, mean, self.factor, 1.0),
            blend(self.var, variance, self.factor, self.correction),
        )
    }
}

/// [`batch_norm_train`] and what follows it, and the new running mean and variance where there are
/// old ones.
pub(crate) fn train<const D: usize>(
    input: Tensor<D>,
    training: Training<D>,
) -> (BatchNormTrain<D>, Option<(Tensor<1>, Tensor<1>)>) {
    #[cfg(any(feature = "cpu", feature = "cube"))]
    if is_fused(&input.device()) {
        return train_fused(input, training);
    }
    train_composed(input, training)
}

#[cfg(any(feature = "cpu", feature = "cube"))]
fn train_fused<const D: usize>(
    input: Tensor<D>,
    training: Training<D>,
) -> (BatchNormTrain<D>, Option<(Tensor<1>, Tensor<1>)>) {
    use crate::extension::{BatchNormOps, TrainParams};

    let dtype = compute_dtype(input.dtype());
    let per_channel = |tensor: Tensor<1>| cast(tensor, dtype).into_dispatch();
    // The kernel blends in the type that it computes in; statistics of another type are blended here.
    let (inside, outside) = match training.running {
        Some(running) if running.mean.dtype() == dtype && running.var.dtype() == dtype => {
            (Some(running), None)
        }
        running => (None, running),
    };
    let blended = inside.is_some();
    let running = inside.unwrap_or_else(|| {
        let unused = training.gamma.clone().without_autodiff();
        Running {
            mean: unused.clone(),
            var: unused,
            factor: 0.0,
            correction: 1.0,
        }
    });
    let view = View::new(&input.shape(), training.channel_axis);
    let (residual, pass) = training.epilogue.into_pass(view, running.mean.clone());
    let (output, mean, variance, _, new_mean, new_var) = Dispatch::train(
        input.into_dispatch(),
        per_channel(training.gamma),
        per_channel(training.beta),
        residual,
        per_channel(running.mean),
        per_channel(running.var),
        pass,
        TrainParams {
            epsilon: training.epsilon,
            factor: running.factor,
            correction: running.correction,
        },
    );
    let statistic = |tensor| Tensor::<1>::from_dispatch(tensor).without_autodiff();
    let result = BatchNormTrain {
        output: Tensor::from_dispatch(output),
        mean: statistic(mean),
        variance: statistic(variance),
    };
    let running = match blended {
        true => Some((statistic(new_mean), statistic(new_var))),
        false => outside.map(|running| running.blend(&result)),
    };
    (result, running)
}

fn train_composed<const D: usize>(
    input: Tensor<D>,
    training: Training<D>,
) -> (BatchNormTrain<D>, Option<(Tensor<1>, Tensor<1>)>) {
    let (shape, dtype) = (input.shape(), input.dtype());
    let x = widen(channels_in_the_middle(input, training.channel_axis));
    let first = x.clone().detach().slice_dim(0, 0..1).slice_dim(2, 0..1);

    let result = burn::tensor::module::batch_norm_train(
        x - first.clone(),
        widen(training.gamma),
        widen(training.beta),
        training.epsilon,
    );

    let channels = shape[training.channel_axis];
    let output = cast(result.output, dtype).reshape(shape);
    let result = BatchNormTrain {
        output: training.epilogue.apply(output),
        mean: (result.mean + first.reshape([channels])).without_autodiff(),
        variance: result.variance.without_autodiff(),
    };
    let running = training.running.map(|running| running.blend(&result));
    (result, running)
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
    let epilogue = Epilogue::default();
    normalize_then(input, mean, scale, shift, channel_axis, epilogue)
}

/// [`normalize`] and what follows it.
pub(crate) fn normalize_then<const D: usize>(
    input: Tensor<D>,
    mean: Tensor<1>,
    scale: Tensor<1>,
    shift: Tensor<1>,
    channel_axis: usize,
    epilogue: Epilogue<D>,
) -> Tensor<D> {
    let (shape, dtype) = (input.shape(), input.dtype());
    let mean = mean.without_autodiff();

    #[cfg(any(feature = "cpu", feature = "cube"))]
    if is_fused(&input.device()) {
        use crate::extension::BatchNormOps;

        let per_channel = |tensor: Tensor<1>| cast(tensor, compute_dtype(dtype)).into_dispatch();
        let view = View::new(&shape, channel_axis);
        let (residual, pass) = epilogue.into_pass(view, mean.clone());
        return Tensor::from_dispatch(Dispatch::normalize(
            input.into_dispatch(),
            per_channel(scale),
            per_channel(shift),
            residual,
            per_channel(mean),
            pass,
        ));
    }

    let x = widen(channels_in_the_middle(input, channel_axis));
    let [_, channels, _] = x.dims();
    let per_channel = |tensor: Tensor<1>| cast(tensor, x.dtype()).reshape([1, channels, 1]);
    let (mean, scale, shift) = (per_channel(mean), per_channel(scale), per_channel(shift));

    epilogue.apply(cast((x - mean) * scale + shift, dtype).reshape(shape))
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
