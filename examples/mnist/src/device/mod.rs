//! Devices by name: `auto`, `flex`, `ndarray`, `wgpu`, `wgpu:INDEX`, `wgpu:cpu`.
//!
//! | name         | device |
//! |--------------|--------|
//! | `flex`       | CPU, Burn's fast pure Rust backend |
//! | `ndarray`    | CPU, Burn's older pure Rust backend |
//! | `wgpu:0`, .. | the hardware GPUs in the order of `mnist devices`: discrete, integrated, virtual, other |
//! | `wgpu:cpu`   | an adapter that computes on the CPU (lavapipe, WARP), for tests without a GPU |
//! | `wgpu`       | `wgpu:0` if there is a GPU, else `wgpu:cpu` |
//! | `auto`       | `wgpu:0` if there is a GPU, else `flex`: never an adapter that computes on the CPU |

mod cpu;
#[cfg(feature = "wgpu")]
mod wgpu;
#[cfg(not(feature = "wgpu"))]
#[path = "no_wgpu.rs"]
mod wgpu;

use burn::tensor::Device;
use serde::Serialize;

use crate::quiet::catch;

/// A device that exists, with its names.
#[derive(Clone, Debug, Serialize)]
pub struct NamedDevice {
    /// What `--device` takes.
    pub name: String,
    /// CPU, discrete GPU and so on.
    pub kind: &'static str,
    /// What the driver or Burn calls it.
    pub adapter: String,
    #[serde(skip)]
    device: Device,
}

impl NamedDevice {
    /// The device for tensors that need no gradients.
    pub fn device(&self) -> Device {
        self.device.clone()
    }
}

/// Why a device cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// No device has this name.
    #[error("unknown device `{name}`. This machine has: {available}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// What exists.
        available: String,
    },

    /// The name is right but there is no such adapter.
    #[error("no device `{name}`: {reason}. This machine has: {available}")]
    Missing {
        /// What was asked for.
        name: String,
        /// Why there is none.
        reason: String,
        /// What exists.
        available: String,
    },

    /// The backend is not part of this program.
    #[error(
        "`{name}` is not compiled in: build with `--features {feature}`. This machine has: {available}"
    )]
    NotCompiled {
        /// What was asked for.
        name: String,
        /// The Cargo feature that is off.
        feature: &'static str,
        /// What exists.
        available: String,
    },

    /// The adapter refuses to work.
    #[error("cannot open the device `{name}`: {reason}. This machine has: {available}")]
    Open {
        /// What was asked for.
        name: String,
        /// What the driver said.
        reason: String,
        /// What exists.
        available: String,
    },
}

/// A name, understood but not looked up yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    Auto,
    Flex,
    NdArray,
    Wgpu(Adapter),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Adapter {
    Best,
    Gpu(usize),
    Cpu,
}

fn parse(name: &str) -> Option<Choice> {
    Some(match name.to_ascii_lowercase().as_str() {
        "auto" => Choice::Auto,
        "flex" => Choice::Flex,
        "ndarray" => Choice::NdArray,
        "wgpu" => Choice::Wgpu(Adapter::Best),
        "wgpu:cpu" => Choice::Wgpu(Adapter::Cpu),
        other => Choice::Wgpu(Adapter::Gpu(other.strip_prefix("wgpu:")?.parse().ok()?)),
    })
}

/// Finds the device called `name` and opens it.
pub fn resolve(name: &str) -> Result<NamedDevice, DeviceError> {
    let choice = parse(name).ok_or_else(|| DeviceError::Unknown {
        name: name.to_string(),
        available: available(),
    })?;
    match choice {
        Choice::Flex => cpu::flex(),
        Choice::NdArray => cpu::ndarray(),
        Choice::Auto => match wgpu::hardware().into_iter().next() {
            Some(gpu) => wgpu::open(gpu),
            None => cpu::flex().or_else(|_| cpu::ndarray()),
        },
        Choice::Wgpu(adapter) => wgpu::find(name, adapter).and_then(wgpu::open),
    }
}

/// All devices of this machine that this program can use, with the names of the adapters.
pub fn list() -> Vec<NamedDevice> {
    let cpus = [cpu::flex(), cpu::ndarray()].into_iter().flatten();
    cpus.chain(
        wgpu::adapters()
            .into_iter()
            .filter_map(|adapter| wgpu::open(adapter).ok()),
    )
    .collect()
}

/// The names for error messages. Opens nothing.
fn available() -> String {
    let cpus = [cpu::flex(), cpu::ndarray()].into_iter().flatten();
    let names: Vec<String> = cpus
        .chain(wgpu::adapters())
        .map(|device| format!("{} ({})", device.name, device.kind))
        .collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_understood() {
        for (name, choice) in [
            ("auto", Choice::Auto),
            ("flex", Choice::Flex),
            ("NdArray", Choice::NdArray),
            ("wgpu", Choice::Wgpu(Adapter::Best)),
            ("wgpu:cpu", Choice::Wgpu(Adapter::Cpu)),
            ("wgpu:12", Choice::Wgpu(Adapter::Gpu(12))),
        ] {
            assert_eq!(parse(name), Some(choice), "{name}");
        }
        for name in [
            "", "cuda", "wgpu:", "wgpu:-1", "wgpu:one", "flex:0", "wgpu:0:1",
        ] {
            assert_eq!(parse(name), None, "{name}");
        }
    }

    #[test]
    #[cfg(feature = "flex")]
    fn unknown_names_say_what_exists() {
        let text = resolve("cuda").expect_err("not a device here").to_string();
        assert!(
            text.contains("`cuda`") && text.contains("flex (CPU)"),
            "{text}"
        );
    }

    #[test]
    #[cfg(feature = "wgpu")]
    fn a_gpu_beyond_the_last_says_how_many_there_are() {
        let text = resolve("wgpu:99").expect_err("no hundred GPUs").to_string();
        assert!(
            text.contains("`wgpu:99`") && text.contains("This machine has"),
            "{text}"
        );
    }

    #[test]
    #[cfg(feature = "flex")]
    fn auto_never_takes_a_software_adapter() {
        let device = resolve("auto").expect("flex at least");
        assert_ne!(device.name, "wgpu:cpu");
        assert!(
            wgpu::hardware().is_empty() == (device.name == "flex"),
            "{}",
            device.name
        );
    }
}
