//! How the tensors of an operation lie in memory, and what the kernels can do with that.

use batchnorm_cube::{Element, Layout, Operation, Problem, Weights, supports};
use burn::tensor::{DType, Device, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::ops::{permute, reshape};
use burn_cubecl::tensor::CubeTensor;
use cubecl::RuntimeId;

use crate::ops::{Maybe, composed};
use crate::view::View;

/// The largest tensor, in bytes, that kernels of the device can bind; None where it is no CubeCL device.
pub(crate) fn largest_tensor(device: &Device) -> Option<u64> {
    match device.clone().inner().as_dispatch() {
        burn::backend::DispatchDevice::Cube(device) => {
            Some(device.client().properties().memory.max_page_size)
        }
        #[allow(unreachable_patterns, reason = "which devices exist is up to features")]
        _ => None,
    }
}

/// Whether a device has the exponential function of f64. Vulkan's and WebGPU's shaders have that of f32 alone,
/// and some drivers return garbage for the other.
pub(crate) fn has_wide_exponential(device: &Device) -> bool {
    match device.clone().inner().as_dispatch() {
        burn::backend::DispatchDevice::Cube(device) => device.runtime() != RuntimeId::Wgpu,
        #[allow(unreachable_patterns, reason = "which devices exist is up to features")]
        _ => true,
    }
}

/// What the kernels can do with a tensor; None where they cannot do `operation` with it.
pub(super) fn supported(x: &CubeTensor, view: View, operation: Operation) -> Option<Problem> {
    let element = match x.dtype {
        DType::F32 => Element::F32,
        DType::F64 => Element::F64,
        DType::F16 => Element::F16,
        DType::BF16 => Element::Bf16,
        _ => return None,
    };
    let problem = Problem::new(layout(x, view)?, element);
    let supported = supports(x.client.properties(), &problem, operation).is_ok();
    (supported && !view.is_empty()).then_some(problem)
}

/// What the kernels walk over; None if they cannot.
fn layout(x: &CubeTensor, view: View) -> Option<Layout> {
    Layout::from_strides(x.meta.shape(), x.meta.strides(), view.axis)
}

/// The tensors of one operation in one memory order: that of `x` where the kernels can walk over it,
/// row-major order otherwise.
pub(super) fn in_one_order<const N: usize>(
    x: CubeTensor,
    others: [Option<CubeTensor>; N],
    view: View,
) -> (CubeTensor, [Option<CubeTensor>; N]) {
    let same = |other: &CubeTensor| {
        let strides = other.meta.strides().iter().zip(x.meta.strides().iter());
        x.meta
            .shape()
            .iter()
            .zip(strides)
            .all(|(size, (a, b))| *size == 1 || a == b)
    };
    if layout(&x, view).is_some() {
        let ordered = others.map(|other| {
            other.map(|other| match same(&other) {
                true => other,
                false => reordered(other, &x),
            })
        });
        if ordered.iter().flatten().all(same) {
            return (x, ordered);
        }
        let others = ordered.map(|other| other.map(into_contiguous));
        return (into_contiguous(x), others);
    }
    let others = others.map(|other| other.map(into_contiguous));
    (into_contiguous(x), others)
}

/// Weights of positions as the kernels read them, in the type that is computed in. At most one of both.
#[derive(Default)]
pub(super) struct Weighted {
    /// Of the input's shape.
    pub own: Option<CubeTensor>,
    /// The same for all channels.
    pub shared: Option<CubeTensor>,
}

impl Weighted {
    /// From `[outer, 1 or channels, inner]`.
    pub fn new(weights: &Maybe<CubeBackend>, x: &CubeTensor, view: View) -> Self {
        let Maybe::Present(weights) = weights else {
            return Self::default();
        };
        let channels = weights.meta.shape()[1];
        let dtype = composed::compute_dtype(x.dtype);
        let weights = Some(composed::cast::<CubeBackend>(weights.clone(), dtype));
        match channels == view.channels {
            true => Self {
                own: weights.map(|weights| reshape(weights, x.meta.shape().clone())),
                shared: None,
            },
            false => Self {
                own: None,
                shared: weights,
            },
        }
    }

    /// With those that channels share in the order in which the positions of `x` lie in memory.
    pub fn in_order_of(self, x: &CubeTensor, view: View) -> Self {
        let shared = self.shared.map(|weights| {
            let mut shape = x.meta.shape().to_vec();
            shape.remove(view.axis);
            let order: Vec<usize> = outermost_first(x)
                .into_iter()
                .filter(|dim| *dim != view.axis)
                .map(|dim| dim - usize::from(dim > view.axis))
                .collect();
            into_contiguous(permute(reshape(weights, Shape::from(shape)), &order))
        });
        Self { shared, ..self }
    }

    pub fn handles(&self) -> Option<Weights<'_>> {
        let own = self.own.as_ref().map(|own| Weights::Own(&own.handle));
        let shared = self.shared.as_ref();
        own.or(shared.map(|shared| Weights::Shared(&shared.handle)))
    }
}

/// The dimensions of a tensor as they lie in memory.
fn outermost_first(x: &CubeTensor) -> Vec<usize> {
    let mut dims: Vec<usize> = (0..x.meta.strides().len()).collect();
    dims.sort_by_key(|dim| std::cmp::Reverse(x.meta.strides()[*dim]));
    dims
}

/// A copy whose dimensions lie in memory in the order of those of `x`.
fn reordered(tensor: CubeTensor, x: &CubeTensor) -> CubeTensor {
    let outermost_first = outermost_first(x);
    let mut back = vec![0; outermost_first.len()];
    for (place, dim) in outermost_first.iter().enumerate() {
        back[*dim] = place;
    }
    permute(into_contiguous(permute(tensor, &outermost_first)), &back)
}

/// A tensor of the same shape, type and memory order, with whatever its buffer held.
pub(super) fn like(tensor: &CubeTensor) -> CubeTensor {
    let dims = tensor.meta.shape().iter().zip(tensor.meta.strides().iter());
    let span = 1 + dims
        .map(|(size, stride)| (size - 1) * stride)
        .sum::<usize>();
    CubeTensor::new(
        tensor.client.clone(),
        tensor.client.empty(span * tensor.dtype.size()),
        *tensor.meta.clone(),
        tensor.device.clone(),
        tensor.dtype,
    )
}

/// A contiguous buffer of the type and on the device of `vector`, with whatever it held.
pub(super) fn empty(vector: &CubeTensor, shape: Shape) -> CubeTensor {
    let (client, device) = (vector.client.clone(), vector.device.clone());
    empty_device_contiguous_dtype(client, device, shape, vector.dtype)
}
