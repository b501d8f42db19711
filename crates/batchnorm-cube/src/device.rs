//! What of a device decides who works on what.
//!
//! A GPU hides the latency of memory with many units: cubes of up to 256, some cubes per multiprocessor, several vectors per unit of a
//! reduction. A software device (CubeCL's CPU runtime, or Vulkan on the CPU, which shows by a plane of at most 16 units and no plane
//! operations) runs a cube's units one plane after the other on one core: there barriers cost and width gains nothing, so a cube is one plane
//! and a handful of cubes is enough.
//!
//! Plane operations are used where the device has them and all of its planes have one size: AMD's cards under Vulkan have planes of 32 or 64
//! units and Intel's of 8 to 32, as the driver's compiler likes, and a kernel that is cut for one size would be wrong with another.

use cubecl::features::Plane;
use cubecl::ir::UIntKind;
use cubecl::prelude::*;

use crate::problem::{Element, Problem};
use crate::strategy::{Strategy, floor_power};

/// Multiprocessors of a GPU that does not tell.
const GPU_PROCESSORS: usize = 64;
/// Cubes per multiprocessor.
pub(crate) const GPU_CUBES: usize = 4;
/// Cubes that keep the cores of a software device busy.
pub(crate) const CPU_CUBES: usize = 8;
/// The widest vector in memory.
const WIDEST: usize = 4;

/// What of a device the cut depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Device {
    /// Whether units run on a CPU.
    pub software: bool,
    /// The most units of a cube; a power of two.
    pub units: usize,
    /// Neighbouring units that can exchange values; a power of two, 1 where there are no plane operations.
    pub plane: usize,
    /// Cubes that keep it busy.
    pub cubes: usize,
    /// Storage buffers of a kernel.
    pub bindings: usize,
    /// The widest vector in memory.
    pub vector: usize,
    /// Whether tensors of the type are better read as pairs of values.
    pub pairs: bool,
}

impl Device {
    /// The properties of a client's device.
    pub fn of(client: &Client, problem: &Problem) -> Self {
        let element = problem.element;
        let properties = client.properties();
        let hardware = &properties.hardware;
        let plane = hardware.plane_size_max.max(1) as usize;
        let plane_operations = properties.features.plane.contains(Plane::Ops);
        let fixed = hardware.plane_size_min == hardware.plane_size_max && plane.is_power_of_two();
        let software = match problem.strategy {
            Strategy::Auto => {
                hardware.num_cpu_cores.is_some() || (plane <= 16 && !plane_operations)
            }
            Strategy::Gpu => false,
            Strategy::Software => true,
        };
        let most = (hardware.max_units_per_cube as usize).min(hardware.max_cube_dim.0 as usize);
        let units = match software {
            true => plane.min(most),
            false => most.min(256),
        };
        let processors = hardware
            .num_streaming_multiprocessors
            .map_or(GPU_PROCESSORS, |n| n as usize);
        Self {
            software,
            units: floor_power(units),
            plane: match plane_operations && fixed {
                true => plane,
                false => 1,
            },
            cubes: match software {
                true => CPU_CUBES,
                false => processors * GPU_CUBES,
            },
            bindings: hardware.max_bindings as usize,
            vector: client
                .io_optimized_vector_sizes(element.size())
                .filter(|size| *size <= WIDEST)
                .max()
                .unwrap_or(1),
            pairs: software
                && hardware.num_cpu_cores.is_none()
                && element == Element::F32
                && properties.supports_type(ElemType::UInt(UIntKind::U64)),
        }
    }
}
