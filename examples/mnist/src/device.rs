//! Devices by name: `auto`, `flex`, `ndarray`, `wgpu`, `wgpu:INDEX`, `wgpu:cpu`, `cuda`, `cuda:INDEX`.
//!
//! | name         | device |
//! |--------------|--------|
//! | `flex`       | CPU, Burn's fast pure Rust backend |
//! | `ndarray`    | CPU, Burn's older pure Rust backend |
//! | `wgpu:0`, .. | the hardware GPUs in the order of `devices`: discrete, integrated, virtual, other |
//! | `wgpu:cpu`   | an adapter that computes on the CPU (lavapipe, WARP), for tests without a GPU |
//! | `wgpu`       | `wgpu:0` if there is a GPU, else `wgpu:cpu` |
//! | `cuda:0`, .. | NVIDIA cards through CUDA, where the feature `cuda` is compiled in (`docs/cuda.md`) |
//! | `cuda`       | `cuda:0` |
//! | `auto`       | `cuda:0`, else `wgpu:0` if there is a GPU, else `flex`: never an adapter that computes on the CPU |

use std::fmt::{Display, Formatter};

#[cfg(any(feature = "wgpu", feature = "cuda"))]
use anyhow::anyhow;
use anyhow::{Context, Result};
use burn::tensor::Device;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
use burn::tensor::DeviceType;
use serde::Serialize;

#[cfg(any(feature = "wgpu", feature = "cuda"))]
use crate::quiet::catch;

/// Name of the adapter that computes on the CPU.
const SOFTWARE: &str = "wgpu:cpu";

/// The runtimes, whether they are compiled in, and what they need.
const RUNTIMES: [(&str, bool, &str); 4] = [
    ("flex", cfg!(feature = "flex"), ""),
    ("ndarray", cfg!(feature = "ndarray"), ""),
    (
        "wgpu",
        cfg!(feature = "wgpu"),
        ", which takes a driver of Vulkan, Metal, DirectX or OpenGL",
    ),
    (
        "cuda",
        cfg!(feature = "cuda"),
        ", which takes an NVIDIA card and its driver",
    ),
];

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

    /// Brings a GPU up and asks its name.
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    fn open(mut self) -> Result<Self> {
        if self.adapter.is_empty() {
            let identity = catch(|| self.device.identity()).map_err(|reason| {
                let reason = reason.lines().next().unwrap_or_default();
                let name = &self.name;
                anyhow!("cannot open the device `{name}`: {reason}. {}", available())
            })?;
            self.adapter = identity.map_or("unnamed".to_string(), |identity| identity.name);
        }
        Ok(self)
    }

    /// CPUs need no opening.
    #[cfg(not(any(feature = "wgpu", feature = "cuda")))]
    fn open(self) -> Result<Self> {
        Ok(self)
    }
}

/// Finds the device called `name` and opens it.
pub fn resolve(name: &str) -> Result<NamedDevice> {
    let wanted = name.to_ascii_lowercase();
    let (runtime, _) = wanted.split_once(':').unwrap_or((&wanted, ""));
    let runtimes = match runtime {
        "auto" => vec!["cuda", "wgpu", "flex", "ndarray"],
        runtime => vec![runtime],
    };
    let found = runtimes.into_iter().flat_map(devices).find(|of| {
        match wanted.as_str() {
            "auto" => of.name != SOFTWARE,
            // The best come first.
            "wgpu" | "cuda" => true,
            wanted => of.name == wanted,
        }
    });
    let reason = || {
        let reason = match RUNTIMES.iter().find(|(known, ..)| *known == runtime) {
            Some((_, false, _)) => {
                format!("`{name}` is not compiled in: build with `--features {runtime}`")
            }
            Some((_, true, needs)) => format!("no device `{name}`{needs}"),
            None => format!("unknown device `{name}`"),
        };
        format!("{reason}. {}", available())
    };
    found.with_context(reason)?.open()
}

/// What `devices` prints.
#[derive(Serialize)]
#[serde(transparent)]
pub struct Devices(Vec<NamedDevice>);

/// All devices of this machine that this program can use, with the names of the adapters.
pub fn list() -> Devices {
    Devices(all().filter_map(|device| device.open().ok()).collect())
}

impl Display for Devices {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        for of in &self.0 {
            writeln!(f, "{:<10} {:<20} {}", of.name, of.kind, of.adapter)?;
        }
        match resolve("auto") {
            Ok(device) => writeln!(f, "auto is {}", device.name),
            Err(error) => writeln!(f, "auto is {error}"),
        }
    }
}

/// The names for error messages. Opens nothing.
fn available() -> String {
    let names: Vec<String> = all()
        .map(|of| format!("{} ({})", of.name, of.kind))
        .collect();
    format!("This machine has: {}", names.join(", "))
}

/// Without opening them.
fn all() -> impl Iterator<Item = NamedDevice> {
    RUNTIMES.iter().flat_map(|(runtime, ..)| devices(runtime))
}

/// The devices of a runtime, not opened. Asking is safe without a driver: the answer is empty.
// Burn 0.22 marks ndarray deprecated; it is here to be compared with.
#[allow(deprecated)]
fn devices(runtime: &str) -> Vec<NamedDevice> {
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    let enumerate = |of: DeviceType| catch(|| Device::enumerate(of).into_vec()).unwrap_or_default();
    let mut found: Vec<Device> = match runtime {
        #[cfg(feature = "flex")]
        "flex" => vec![Device::flex()],
        #[cfg(feature = "ndarray")]
        "ndarray" => vec![Device::ndarray()],
        #[cfg(feature = "wgpu")]
        "wgpu" => enumerate(DeviceType::Wgpu),
        #[cfg(feature = "cuda")]
        "cuda" => enumerate(DeviceType::Cuda),
        _ => Vec::new(),
    };
    found.sort_by_key(|device| kind(runtime, device));
    let named = found.into_iter().enumerate().map(|(at, device)| {
        let (_, kind) = kind(runtime, &device);
        let (name, adapter) = match kind {
            "CPU" => (runtime.to_string(), format!("burn-{runtime}")),
            "software on the CPU" => (SOFTWARE.to_string(), String::new()),
            _ => (format!("{runtime}:{at}"), String::new()),
        };
        NamedDevice {
            name,
            kind,
            adapter,
            device,
        }
    });
    named.collect()
}

/// A device's rank among those of its runtime, the best first, and its kind.
#[cfg_attr(not(feature = "wgpu"), allow(unused_variables))]
fn kind(runtime: &str, device: &Device) -> (u8, &'static str) {
    match runtime {
        "flex" | "ndarray" => return (0, "CPU"),
        "cuda" => return (0, "NVIDIA card"),
        _ => {}
    }
    #[cfg(feature = "wgpu")]
    {
        use burn::tensor::DeviceKind;
        // A device does not tell its kind, but can be compared with those that have one.
        let is =
            |kind: fn(usize) -> DeviceKind| (0..16).any(|at| *device == Device::wgpu(kind(at)));
        if *device == Device::wgpu(DeviceKind::Cpu) {
            return (4, "software on the CPU");
        } else if is(DeviceKind::DiscreteGpu) {
            return (0, "discrete GPU");
        } else if is(DeviceKind::IntegratedGpu) {
            return (1, "integrated GPU");
        } else if is(DeviceKind::VirtualGpu) {
            return (2, "virtual GPU");
        }
    }
    (3, "other GPU")
}

/// Looking for GPUs also asks for a Wayland display, whose library prints an alarming line where
/// `XDG_RUNTIME_DIR` is not set, as on most servers. These programs open no windows.
///
/// # Safety
///
/// No other thread may run yet: this sets an environment variable.
pub unsafe fn quiet_display_probe() {
    const NAME: &str = "XDG_RUNTIME_DIR";
    if cfg!(target_os = "linux") && std::env::var_os(NAME).is_none() {
        // SAFETY: the caller's.
        unsafe { std::env::set_var(NAME, std::env::temp_dir()) };
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;

    #[test]
    fn names_are_understood_or_refused() {
        for name in ["flex", "FLEX"] {
            assert_eq!(resolve(name).expect("flex").name, "flex");
        }
        let names = "|gpu|wgpu:|wgpu:-1|wgpu:one|flex:0|auto:0|wgpu:0:1|flexible";
        for name in names.split('|') {
            let text = resolve(name).expect_err("not a device here").to_string();
            assert!(text.contains(&format!("device `{name}`")), "{text}");
            assert!(text.contains("This machine has: flex (CPU)"), "{text}");
        }
    }

    #[test]
    #[cfg(feature = "wgpu")]
    fn a_gpu_beyond_the_last_says_how_many_there_are() {
        let text = resolve("wgpu:99").expect_err("no hundred GPUs").to_string();
        assert!(
            text.contains("no device `wgpu:99`") && text.contains("This machine has"),
            "{text}"
        );
    }

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn what_is_not_compiled_in_says_how_to_build_it() {
        for name in ["cuda", "cuda:1", "CUDA:0", "cuda:x"] {
            let text = resolve(name).expect_err("no CUDA here").to_string();
            assert!(
                text.contains(&format!("`{name}` is not compiled in")),
                "{text}"
            );
            assert!(text.contains("--features cuda"), "{text}");
        }
    }

    #[test]
    #[cfg(feature = "cuda")]
    fn a_card_beyond_the_last_is_refused() {
        let text = resolve("cuda:99")
            .expect_err("no hundred cards")
            .to_string();
        assert!(text.contains("no device `cuda:99`"), "{text}");
    }

    #[test]
    fn auto_never_takes_a_software_adapter() {
        let device = resolve("auto").expect("flex at least");
        let gpu = devices("wgpu").iter().any(|of| of.name != SOFTWARE);
        let expected = match (devices("cuda").is_empty(), gpu) {
            (false, _) => "cuda:0",
            (true, true) => "wgpu:0",
            (true, false) => "flex",
        };
        assert_eq!(device.name, expected);
    }
}
