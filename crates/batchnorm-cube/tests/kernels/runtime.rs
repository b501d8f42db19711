//! The device that is tested or timed, by its name.
//!
//! | name             | device |
//! |------------------|--------|
//! | `wgpu:cpu`       | an adapter that computes on the CPU, such as Mesa's software Vulkan, with shaders in WGSL |
//! | `wgpu`           | the best adapter of whatever graphics API there is, with shaders in WGSL |
//! | `vulkan`         | the best adapter of Vulkan, with shaders in SPIR-V |
//! | `cuda`, `cuda:1` | an NVIDIA card, by its number |
//!
//! CubeCL alone would take SPIR-V wherever it is compiled in. Mesa's software driver crashes with it.

use std::fmt;
use std::str::FromStr;

use cubecl::Device;
use cubecl::device::{DeviceUnavailable, WgpuDeviceKind};
use cubecl::prelude::*;
use cubecl::wgpu::{WgpuRuntime, WgslCompiler};
use cubecl_runtime::runtime::Runtime;

/// A device's name, whether or not there is such a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceName {
    Software,
    Wgpu,
    Vulkan,
    Cuda(usize),
}

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let index = name.strip_prefix("cuda:").map(str::parse);
        match (name, index) {
            ("wgpu:cpu", _) => Ok(Self::Software),
            ("wgpu", _) => Ok(Self::Wgpu),
            ("vulkan", _) => Ok(Self::Vulkan),
            ("cuda", _) => Ok(Self::Cuda(0)),
            (_, Some(Ok(index))) => Ok(Self::Cuda(index)),
            _ => Err(format!(
                "there is no device `{name}`: expected wgpu, wgpu:cpu, vulkan, cuda or cuda:NUMBER"
            )),
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Software => f.write_str("wgpu:cpu"),
            Self::Wgpu => f.write_str("wgpu"),
            Self::Vulkan => f.write_str("vulkan"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl DeviceName {
    /// Opens the device.
    ///
    /// # Errors
    ///
    /// A sentence, where this machine has no such device, or this program was built without its runtime.
    pub fn client(self) -> Result<Client, String> {
        let device = match self {
            Self::Software => Device::wgpu(WgpuDeviceKind::Cpu),
            Self::Wgpu => Device::wgpu(WgpuDeviceKind::DefaultDevice),
            Self::Vulkan => Device::vulkan(WgpuDeviceKind::DefaultDevice),
            Self::Cuda(index) => Device::cuda(index),
        };
        let device = device.map_err(|error| match error {
            DeviceUnavailable::NotLinked(_) => {
                format!("`{self}` is not compiled in: build with `--features cubecl/cuda`")
            }
            DeviceUnavailable::NoSuchDevice { available, .. } => format!(
                "there is no device `{self}` on this machine, which has {available} of that kind"
            ),
        })?;
        let client = match (self, &device) {
            (Self::Software | Self::Wgpu, Device::Wgpu(device)) => {
                WgpuRuntime::<WgslCompiler>::client(device)
            }
            _ => device.client(),
        };
        match self == Self::Vulkan && client.name() != "wgpu<spirv>" {
            true => Err(format!(
                "`{self}` is not compiled in, or the driver takes no SPIR-V of CubeCL's: \
                 build with `--features cubecl/vulkan`, or use `wgpu`"
            )),
            false => Ok(client),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for name in ["wgpu", "wgpu:cpu", "vulkan", "cuda:0", "cuda:12"] {
            assert_eq!(name.parse::<DeviceName>().unwrap().to_string(), name);
        }
        assert_eq!("cuda".parse(), Ok(DeviceName::Cuda(0)));
    }

    #[test]
    fn other_names_are_refused() {
        for name in ["", "gpu", "cuda:", "cuda:-1", "cuda:one", "wgpu:0", "Cuda"] {
            let error = name.parse::<DeviceName>().unwrap_err();
            assert!(error.contains(&format!("no device `{name}`")), "{error}");
        }
    }

    /// A card that no machine has is an error, with and without the runtime.
    #[test]
    fn what_is_not_there_says_so() {
        let error = DeviceName::Cuda(99)
            .client()
            .err()
            .expect("no hundred cards");
        let expected = ["--features cubecl/cuda", "no device `cuda:99`"];
        assert!(expected.iter().any(|part| error.contains(part)), "{error}");
    }
}
