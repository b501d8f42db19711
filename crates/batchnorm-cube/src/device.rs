//! What of a device decides who works on what.
//!
//! A GPU hides the latency of memory with many units: cubes of up to 256, some cubes per multiprocessor, several vectors per unit of a
//! reduction. A software device (CubeCL's CPU runtime, or a Vulkan driver that computes on the CPU) runs a cube's units one plane after the
//! other on one core: there barriers cost and width gains nothing, so a cube is one plane and a handful of cubes is enough. Which of both it
//! is, the runtime says: a device without a card behind it is software.
//!
//! Plane operations are used where the device has them and all of its planes have one size: AMD's cards under Vulkan have planes of 32 or 64
//! units and Intel's of 8 to 32, as the driver's compiler likes, and a kernel that is cut for one size would be wrong with another.

use cubecl::features::Plane;
use cubecl::ir::{DeviceProperties, ElemType, UIntKind};

use crate::problem::{Element, Problem};
use crate::strategy::{Strategy, floor_power};
use crate::tuning::Tuning;

/// Multiprocessors of a GPU that does not tell. Too many costs a small GPU little, too few leave a large one idle. Not measured on a GPU.
const GPU_PROCESSORS: usize = 144;
/// Cubes that keep the cores of a software device busy; measured with Mesa's Vulkan on two cores.
pub(crate) const CPU_CUBES: usize = 8;
/// Bytes of the widest vector in memory.
const WIDEST: usize = 16;

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
    /// Bytes of a cube's shared memory.
    pub shared: usize,
    /// Bytes of the largest buffer.
    pub buffer: u64,
    /// Cubes of the largest grid, by dimension.
    pub grid: [usize; 3],
    /// The widest vector in memory.
    pub vector: usize,
    /// Whether tensors of the type are better read as pairs of values.
    pub pairs: bool,
    /// How work is cut, unless units run on a CPU.
    pub tuning: Tuning,
}

impl Device {
    /// What the properties of a device say.
    pub fn of(properties: &DeviceProperties, problem: &Problem) -> Self {
        let element = problem.element;
        let hardware = &properties.hardware;
        let tuning = Tuning::current();
        let plane = hardware.plane_size_max.max(1) as usize;
        let plane_operations = properties.features.plane.contains(Plane::Ops);
        let fixed = hardware.plane_size_min == hardware.plane_size_max && plane.is_power_of_two();
        let software = match problem.strategy {
            Strategy::Auto => {
                hardware.num_cpu_cores.is_some() || properties.identity.physical.is_none()
            }
            Strategy::Gpu => false,
            Strategy::Software => true,
        };
        let most = (hardware.max_units_per_cube as usize).min(hardware.max_cube_dim.0 as usize);
        let units = match software {
            true => plane.min(most),
            false => most.min(tuning.units),
        };
        let processors = hardware
            .num_streaming_multiprocessors
            .map_or(GPU_PROCESSORS, |n| n as usize);
        let (x, y, z) = hardware.max_cube_count;
        Self {
            software,
            units: floor_power(units),
            plane: match plane_operations && fixed {
                true => plane,
                false => 1,
            },
            cubes: match software {
                true => CPU_CUBES,
                false => processors * tuning.cubes,
            },
            bindings: hardware.max_bindings as usize,
            shared: hardware.max_shared_memory_size,
            buffer: properties.memory.max_page_size,
            grid: [x, y, z].map(|limit| limit as usize),
            vector: properties
                .io_optimized_vector_sizes(element.size())
                .filter(|size| size * element.size() <= WIDEST)
                .max()
                .unwrap_or(1),
            pairs: software
                && hardware.num_cpu_cores.is_none()
                && element == Element::F32
                && properties.supports_type(ElemType::UInt(UIntKind::U64)),
            tuning,
        }
    }

    /// Vectors that a unit loads before it computes with them. Software has no latency to hide.
    pub fn at_once(&self) -> usize {
        match self.software {
            true => 1,
            false => self.tuning.at_once,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Layout;
    use cubecl::features::Features;
    use cubecl::ir::{DeviceIdentity, HardwareProperties, MemoryDeviceProperties, PhysicalDevice};
    use cubecl::profile::TimingMethod;

    fn properties(physical: Option<PhysicalDevice>) -> DeviceProperties {
        let hardware = HardwareProperties {
            load_width: 128,
            vector_register_count: None,
            plane_size_min: 4,
            plane_size_max: 16,
            max_bindings: 7,
            max_shared_memory_size: 16 << 10,
            max_cube_count: (65_535, 65_535, 65_535),
            max_units_per_cube: 256,
            max_cube_dim: (256, 256, 64),
            num_streaming_multiprocessors: None,
            num_cpu_cores: None,
            last_level_cache_size: None,
            num_tensor_cores: None,
            min_tensor_cores_dim: None,
            max_vector_size: 4,
            cube_mma_reserved_shared_memory: 0,
        };
        let identity = DeviceIdentity {
            name: "phone".into(),
            fingerprint: "phone".into(),
            physical,
        };
        DeviceProperties::new(
            Features::default(),
            MemoryDeviceProperties::new(1 << 30, 256),
            hardware,
            TimingMethod::System,
            identity,
        )
    }

    /// A phone's GPU has narrow planes and no plane operations, as software has: it is still a card.
    #[test]
    fn a_card_is_no_software() {
        let problem = Problem::new(Layout::new(8, 8, 8), Element::F32);
        let card = Device::of(&properties(Some(PhysicalDevice::default())), &problem);
        assert_eq!((card.software, card.units, card.plane), (false, 256, 1));
        let software = Device::of(&properties(None), &problem);
        assert_eq!((software.software, software.units), (true, 16));
    }

    /// 16 bytes a load, where the device has vectors as wide.
    #[test]
    fn vectors_are_counted_in_bytes() {
        let layout = Layout::new(8, 8, 8);
        let mut properties = properties(Some(PhysicalDevice::default()));
        properties.hardware.max_vector_size = 16;
        let widest = |element| Device::of(&properties, &Problem::new(layout, element)).vector;
        assert_eq!(
            [Element::F64, Element::F32, Element::F16].map(widest),
            [2, 4, 8]
        );
    }
}
