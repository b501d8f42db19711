//! What a device can do, known before anything is launched.
//!
//! [`supports`] and the operations themselves ask the same functions, so that an operation that is supported does not fail later.

use cubecl::features::TypeUsage;
use cubecl::ir::DeviceProperties;

use crate::device::Device;
use crate::strategy::Cut;
use crate::{Error, Problem};

/// What [`supports`] is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// [`train`](crate::train), with running statistics.
    Train {
        /// Whether there is a residual.
        residual: bool,
        /// Whether positions have weights, of channels of their own or not.
        weights: bool,
    },
    /// [`train_backward`](crate::train_backward), with all gradients.
    TrainBackward {
        /// Whether there is a residual.
        residual: bool,
        /// Whether positions have weights, of channels of their own or not.
        weights: bool,
    },
    /// [`moments`](crate::moments).
    Moments,
    /// [`normalize`](crate::normalize).
    Normalize {
        /// Whether there is a residual.
        residual: bool,
        /// Whether positions have weights, of channels of their own or not.
        weights: bool,
    },
    /// [`normalize_backward`](crate::normalize_backward), with all gradients. Weights make no difference.
    NormalizeBackward {
        /// Whether there is a residual.
        residual: bool,
    },
    /// [`affine`](crate::affine).
    Affine,
}

/// Whether a device can do an operation on a tensor: its type, its size, and the buffers that a kernel has to bind.
///
/// Costs next to nothing and launches nothing. What it accepts will be launched, in place or not, with any activation and any choice of
/// gradients; wrong lengths and senseless numbers are still errors.
pub fn supports(
    properties: &DeviceProperties,
    problem: &Problem,
    operation: Operation,
) -> Result<(), Error> {
    let device = check(properties, problem)?;
    if problem.layout.is_empty() {
        return Ok(());
    }
    let splits = Cut::reduction(problem, &device).splits();
    let name = &properties.identity.name;
    if let Operation::Train { weights: true, .. }
    | Operation::TrainBackward { weights: true, .. }
    | Operation::Normalize { weights: true, .. } = operation
    {
        buffer(&device, problem.weight_bytes(true), name)?;
    }
    match operation {
        Operation::Train { residual, weights } => {
            let needs = train_needs(1 + usize::from(residual), weights, true);
            route(&device, splits, needs, name).map(|_| ())
        }
        Operation::TrainBackward { residual, weights } => {
            let residual = usize::from(residual);
            let needs = train_backward_needs(residual, weights, true, 1 + residual);
            route(&device, splits, needs, name).map(|_| ())
        }
        Operation::NormalizeBackward { residual } => {
            let tensors = 1 + 2 * usize::from(residual);
            let needs = normalize_backward_needs(tensors, 2, true);
            route(&device, splits, needs, name).map(|_| ())
        }
        Operation::Moments => route(&device, splits, MOMENTS_NEEDS, name).map(|_| ()),
        Operation::Normalize { residual, weights } => {
            let needs = normalize_needs(1 + usize::from(residual), weights, 2);
            bindings(&device, needs, name)
        }
        Operation::Affine => bindings(&device, normalize_needs(1, false, 1), name),
    }
}

/// Checks what does not depend on the operation.
pub(crate) fn check(properties: &DeviceProperties, problem: &Problem) -> Result<Device, Error> {
    let layout = problem.layout;
    let device = Device::of(properties, problem);
    let name = || properties.identity.name.clone();
    // Kernels index with 32 bits.
    let limit = u32::MAX as usize;
    if layout.checked_span().is_none_or(|span| span > limit) {
        return Err(Error::TooLarge { limit, layout });
    }
    if !layout.is_empty() && !layout.is_disjoint() {
        return Err(Error::Overlap { layout });
    }
    let stored = TypeUsage::Conversion | TypeUsage::Buffer;
    let accumulator = problem.element.accumulator();
    for (element, uses) in [
        (problem.element, stored),
        (accumulator, stored | TypeUsage::Arithmetic),
    ] {
        if !properties.type_usage(element.elem_type()).is_superset(uses) {
            return Err(Error::Element {
                element: element.name(),
                device: name(),
            });
        }
    }
    if layout.is_empty() {
        return Ok(device);
    }

    let cut = Cut::reduction(problem, &device);
    let finish = Cut::finish(cut.splits(), layout.channels, &device);
    // The most rows of one value per channel: partial results of moments, and what a backward prepares.
    let rows = (4 * cut.splits()).max(6) as u64;
    let expected = problem.span_bytes().max(rows * problem.channel_bytes());
    buffer(&device, expected, &properties.identity.name)?;
    for cut in [cut, finish, Cut::element_wise(problem, &device)] {
        if grid(cut.cubes(), device.grid).is_none() {
            return Err(Error::Grid {
                expected: cut.cubes(),
                device: name(),
            });
        }
    }
    Ok(device)
}

/// Checks that there are buffers of the size.
fn buffer(device: &Device, expected: u64, name: &str) -> Result<(), Error> {
    match expected <= device.buffer {
        true => Ok(()),
        false => Err(Error::Buffer {
            expected,
            limit: device.buffer,
            device: name.to_string(),
        }),
    }
}

/// A grid of `cubes` cubes, spread over as many dimensions as the limits ask for. It can be a little larger.
pub(crate) fn grid(cubes: usize, [x, y, z]: [usize; 3]) -> Option<[u32; 3]> {
    let width = cubes.min(x).max(1);
    let height = cubes.div_ceil(width).min(y).max(1);
    let depth = cubes.div_ceil(width * height);
    (depth <= z).then_some([width, height, depth].map(|n| n as u32))
}

/// How an operation that reduces is launched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    /// In one kernel.
    Whole,
    /// A kernel for every split, and one that merges their results and goes on.
    Few,
    /// A kernel for every split, one that merges their results, and one that goes on.
    Many,
}

/// The storage buffers that the routes bind at once; none where there is no such route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Needs {
    whole: usize,
    few: Option<usize>,
    many: usize,
}

/// The fewest launches that the cut and the device allow.
pub(crate) fn route(
    device: &Device,
    splits: usize,
    needs: Needs,
    name: &str,
) -> Result<Route, Error> {
    if splits == 1 && needs.whole <= device.bindings {
        return Ok(Route::Whole);
    }
    match needs.few {
        Some(few) if splits <= device.tuning.few_splits && few <= device.bindings => Ok(Route::Few),
        _ => bindings(device, needs.many, name).map(|()| Route::Many),
    }
}

/// Checks that a kernel can have as many buffers.
pub(crate) fn bindings(device: &Device, expected: usize, name: &str) -> Result<(), Error> {
    match expected <= device.bindings {
        true => Ok(()),
        false => Err(Error::Bindings {
            expected,
            got: device.bindings,
            device: name.to_string(),
        }),
    }
}

/// Of `moments`: x and the center, or the partial results in between.
pub(crate) const MOMENTS_NEEDS: Needs = Needs {
    whole: 2,
    few: None,
    many: 2,
};

/// Of `train`: `tensors` besides x; whether there are weights.
pub(crate) fn train_needs(tensors: usize, weights: bool, running: bool) -> Needs {
    let (weights, running) = (usize::from(weights), 4 * usize::from(running));
    // x, gamma, beta and the statistics.
    let whole = 4 + tensors + running;
    Needs {
        whole: whole + weights,
        // Only the kernel that the splits begin with reads weights: never the most buffers.
        few: Some(whole + 1),
        many: (2 + running).max(4 + tensors),
    }
}

/// Of `normalize` and `affine`: `tensors` besides x; whether there are weights; the buffers of the statistics.
pub(crate) fn normalize_needs(tensors: usize, weights: bool, center: usize) -> usize {
    3 + tensors + usize::from(weights) + center
}

/// Of `train_backward`: a residual, if it is read; whether there are weights; beta like the residual; tensors that are written apart.
pub(crate) fn train_backward_needs(
    residual: usize,
    weights: bool,
    shift: bool,
    written: usize,
) -> Needs {
    let (weights, shift) = (usize::from(weights), usize::from(shift));
    // x, the output gradient, the statistics, gamma, and the gradients of gamma and beta.
    let whole = 6 + residual + weights + shift + written;
    Needs {
        whole,
        few: Some(whole + 1),
        // The sums of the splits; their merge; the tensors' gradients with all parameters in one buffer.
        many: (5 + residual + shift)
            .max(6 + shift)
            .max(3 + residual + weights + written),
    }
}

/// Of `normalize_backward`: tensors besides x and the output gradient; buffers of the statistics; whether beta is read.
pub(crate) fn normalize_backward_needs(tensors: usize, center: usize, shift: bool) -> Needs {
    // x, the output gradient and gamma.
    let sweep = 3 + usize::from(shift) + tensors + center;
    Needs {
        whole: sweep + 2,
        few: None,
        many: (sweep + 1).max(5 + center),
    }
}
