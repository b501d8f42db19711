//! The checks of tensors: what goes together, and where it can be computed.

#[cfg(any(feature = "host", feature = "cube"))]
use burn::backend::DispatchDevice;
use burn::tensor::{DType, Device, Shape, Tensor};

#[cfg(feature = "cube")]
use crate::backends::{has_wide_exponential, largest_tensor};
#[cfg(feature = "cube")]
use crate::ops::composed::compute_dtype;
use crate::view::View;
use crate::{Activation, BatchNormError};

pub(crate) fn view(shape: &Shape, channel_axis: usize) -> Result<View, BatchNormError> {
    let rank = shape.num_dims();
    match (rank, channel_axis) {
        (0 | 1, _) => Err(BatchNormError::Rank { rank }),
        (rank, axis) if axis >= rank => Err(BatchNormError::ChannelAxis {
            axis: axis as isize,
            rank,
        }),
        (_, axis) => Ok(View::new(shape, axis)),
    }
}

/// Whether this crate has fused kernels for the device: a matter of the crate's features.
pub fn is_fused(device: &Device) -> bool {
    has_kernels(device, device.is_autodiff())
}

/// Whether this build has kernels for the backend of a device, under autodiff where it is asked for.
#[allow(
    unreachable_patterns,
    reason = "which devices exist is up to Burn's features"
)]
#[allow(clippy::match_single_binding, reason = "without any kernels")]
pub(crate) fn has_kernels(device: &Device, autodiff: bool) -> bool {
    if autodiff && cfg!(not(feature = "autodiff")) {
        return false;
    }
    match device.clone().inner().as_dispatch() {
        #[cfg(feature = "flex")]
        DispatchDevice::Flex(_) => true,
        #[cfg(feature = "ndarray")]
        DispatchDevice::NdArray(_) => true,
        #[cfg(feature = "cube")]
        DispatchDevice::Cube(_) => true,
        _ => false,
    }
}

/// The input in a type that its device computes with, if it is not too large for it.
pub(crate) fn supported<const D: usize>(input: Tensor<D>) -> Result<Tensor<D>, BatchNormError> {
    let input = float(input);
    let dtype = input.dtype();
    #[cfg(feature = "cube")]
    {
        // A half type may have to be computed wide.
        let bytes = (input.shape().num_elements() * compute_dtype(dtype).size()) as u64;
        // WebGPU guarantees 128 MiB, so most inputs need not ask.
        if bytes > 1 << 27
            && let Some(limit) = largest_tensor(&input.device())
            && bytes > limit
        {
            return Err(BatchNormError::TooLarge {
                bytes,
                limit,
                device: format!("{:?}", input.device().inner()),
            });
        }
    }
    if dtype != DType::F32 && !input.device().supports_dtype(dtype) {
        return Err(BatchNormError::Unsupported {
            dtype,
            device: format!("{:?}", input.device().inner()),
        });
    }
    Ok(input)
}

/// Whether an activation can be computed on the device of an input.
pub(crate) fn computable(
    activation: Activation,
    dtype: DType,
    device: &Device,
) -> Result<(), BatchNormError> {
    #[cfg(feature = "cube")]
    if dtype == DType::F64 && activation.has_exponential() && !has_wide_exponential(device) {
        return Err(BatchNormError::Unsupported {
            dtype,
            device: format!("{:?} with {activation:?}", device.clone().inner()),
        });
    }
    let _ = (activation, dtype, device);
    Ok(())
}

/// Burn takes devices for equal whatever their autodiff; two strategies of gradient checkpointing meet
/// in no operation.
pub(crate) fn same_device(
    name: &'static str,
    got: &Device,
    expected: &Device,
) -> Result<(), BatchNormError> {
    #[cfg(feature = "autodiff")]
    let meet = {
        let strategies = [got, expected].map(Device::gradient_checkpointing_strategy);
        !matches!(strategies, [Some(got), Some(expected)] if got != expected)
    };
    #[cfg(not(feature = "autodiff"))]
    let meet = true;
    match got == expected && meet {
        true => Ok(()),
        false => Err(BatchNormError::Device {
            name,
            expected: format!("{expected:?}"),
            got: format!("{got:?}"),
        }),
    }
}

/// A tensor of plain floating-point values: quantized ones are dequantized, and Flex32, which is f32
/// that may be computed with less precision, is taken for f32.
pub(crate) fn float<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    match tensor.dtype() {
        DType::QFloat(_) => tensor.dequantize(),
        DType::Flex32 => tensor.cast(DType::F32),
        _ => tensor,
    }
}

pub(crate) fn output_dtype(dtype: DType) -> DType {
    match dtype {
        DType::QFloat(_) => DType::F32,
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

/// A plain tensor under the autodiff of a device, with its strategy of gradient checkpointing, if it has any.
/// (`Tensor::from_inner` knows one strategy.)
pub(crate) fn under<const D: usize>(value: Tensor<D>, device: &Device) -> Tensor<D> {
    match device.is_autodiff() {
        true => Tensor::zeros(value.shape(), (device, value.dtype())) + value,
        false => value,
    }
}

pub(crate) fn to_device(tensor: Tensor<1>, device: &Device) -> Tensor<1> {
    match &tensor.device() == device {
        true => tensor,
        false => tensor.to_device(&device.clone().inner()),
    }
}
