use burn::module::{Param, ParamId};
use burn::tensor::{DType, Device, Tensor};

use super::FoldError;
use crate::checks::{cast, float, output_dtype, same_device, under};
use crate::ops::composed::compute_dtype;
use crate::{BatchNorm, BatchNormError, Inference};

/// What batch norm is in inference: `y = x * scale + shift` per channel, tensors of shape `[channels]`, at
/// least f32, not tracked by autodiff.
#[derive(Debug, Clone)]
pub struct Affine {
    pub(super) scale: Tensor<1>,
    pub(super) shift: Tensor<1>,
}

impl Affine {
    /// That of `norm`, for a neighbour with `channels` on `axis` of tensors of rank `rank`, whose
    /// parameters have type `dtype`.
    ///
    /// `scale = gamma / sqrt(running_var + epsilon)`, `shift = beta - running_mean * scale`.
    pub(super) fn new(
        norm: &BatchNorm,
        channels: usize,
        axis: usize,
        rank: usize,
        (device, dtype): (&Device, DType),
    ) -> Result<Self, FoldError> {
        let config = norm.config();
        if !config.running_stats {
            return Err(FoldError::NoStatistics);
        }
        if config.inference != Inference::Running {
            return Err(FoldError::Inference(config.inference));
        }
        if norm.training.is_enabled() && norm.gamma.device().is_autodiff() {
            return Err(FoldError::Training);
        }
        let got = config.channel_axis;
        if got != axis as isize && got != axis as isize - rank as isize {
            return Err(FoldError::ChannelAxis {
                expected: axis,
                got,
                rank,
            });
        }
        let got = config.num_features;
        if got != channels {
            return Err(FoldError::Channels {
                expected: channels,
                got,
            });
        }
        let device = device.clone().inner();
        same_device("gamma", &norm.gamma.device().inner(), &device)?;
        let dtype = compute_dtype(dtype);
        let values = [
            ("gamma", norm.gamma.val()),
            ("beta", norm.beta.val()),
            ("running_mean", norm.running_mean.value()),
            ("running_var", norm.running_var.value()),
        ];
        for (name, value) in &values {
            let [got] = value.dims();
            if got != channels {
                let expected = channels;
                return Err(BatchNormError::Parameter {
                    name,
                    expected,
                    got,
                }
                .into());
            }
        }
        let [gamma, beta, mean, variance] = values.map(|(_, value)| plain(value, dtype));
        let scale = gamma / (variance + norm.epsilon).sqrt();
        let shift = beta - mean * scale.clone();
        Ok(Self { scale, shift })
    }
}

/// The values, not tracked by autodiff, of a type to compute with.
pub(super) fn plain<const D: usize>(tensor: Tensor<D>, dtype: DType) -> Tensor<D> {
    cast(float(tensor.without_autodiff()), dtype)
}

/// A bias, of zeros where there is none, not tracked by autodiff.
pub(super) fn bias(bias: Option<&Param<Tensor<1>>>, like: &Tensor<1>) -> Tensor<1> {
    match bias {
        Some(bias) => plain(bias.val(), like.dtype()),
        None => like.zeros_like(),
    }
}

/// A parameter in the place of `old`: of its type and on its device, trained if it is, and recorded as it is.
pub(super) fn parameter<const D: usize>(
    value: Tensor<D>,
    old: &Param<Tensor<D>>,
) -> Param<Tensor<D>> {
    let (_, old, mapper) = old.clone().consume();
    let device = old.device();
    let value = match old.dtype() {
        // Burn has no sums of quantized values.
        DType::QFloat(_) if device.is_autodiff() => Tensor::from_inner(value),
        DType::QFloat(_) => value,
        dtype => under(cast(value, dtype), &device),
    };
    let value = value.set_require_grad(old.is_require_grad());
    Param::from_mapped_value(ParamId::new(), value, mapper)
}

/// A bias in the place of `old`; where there was none, one that goes with `weight`.
pub(super) fn bias_parameter<const D: usize>(
    value: Tensor<1>,
    old: Option<&Param<Tensor<1>>>,
    weight: &Param<Tensor<D>>,
) -> Param<Tensor<1>> {
    match old {
        Some(old) => parameter(value, old),
        None => beside(value, weight),
    }
}

/// A new parameter of the type of another and on its device, trained if that is.
pub(super) fn beside<const D: usize, const O: usize>(
    value: Tensor<D>,
    other: &Param<Tensor<O>>,
) -> Param<Tensor<D>> {
    let (device, dtype) = (other.device(), output_dtype(other.dtype()));
    let param = Param::from_tensor(under(cast(value, dtype), &device));
    // On a plain device nothing trains, and what is to train on an autodiff device Burn does not tell.
    match device.is_autodiff() {
        true => param.set_require_grad(other.is_require_grad()),
        false => param,
    }
}
