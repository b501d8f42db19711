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

use anyhow::{Result, anyhow, bail};
use burn::tensor::Device;
use serde::Serialize;

use crate::quiet::catch;

/// Name of the adapter that computes on the CPU.
const SOFTWARE: &str = "wgpu:cpu";

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
    fn open(self) -> Result<Self> {
        if self.kind == "CPU" {
            return Ok(self);
        }
        match catch(|| self.device.identity()) {
            Ok(identity) => {
                let adapter = identity.map_or("unnamed".to_string(), |identity| identity.name);
                Ok(Self { adapter, ..self })
            }
            Err(reason) => {
                let reason = reason.lines().next().unwrap_or_default();
                Err(anyhow!(
                    "cannot open the device `{}`: {reason}. {}",
                    self.name,
                    available()
                ))
            }
        }
    }
}

/// Finds the device called `name` and opens it.
pub fn resolve(name: &str) -> Result<NamedDevice> {
    let wanted = name.to_ascii_lowercase();
    let (runtime, index) = match wanted.split_once(':') {
        Some((runtime, index)) => (runtime, Some(index)),
        None => (wanted.as_str(), None),
    };
    let indexed = index.is_none_or(|index| index.parse::<usize>().is_ok());
    let compiled = match runtime {
        "auto" if index.is_none() => {
            let gpus = cards().into_iter().chain(adapters());
            let first = gpus.chain(cpus()).find(|device| device.name != SOFTWARE);
            return first
                .ok_or_else(|| anyhow!("no backend is compiled in"))?
                .open();
        }
        "flex" if index.is_none() => cfg!(feature = "flex"),
        "ndarray" if index.is_none() => cfg!(feature = "ndarray"),
        "wgpu" if indexed || wanted == SOFTWARE => cfg!(feature = "wgpu"),
        "cuda" if indexed => cfg!(feature = "cuda"),
        _ => bail!("unknown device `{name}`. {}", available()),
    };
    if !compiled {
        bail!(
            "`{name}` is not compiled in: build with `--features {runtime}`. {}",
            available()
        );
    }
    let devices = match runtime {
        "wgpu" => adapters(),
        "cuda" => cards(),
        _ => cpus(),
    };
    let gpus = devices.iter().filter(|device| device.name != SOFTWARE);
    let reason = match (runtime, devices.len(), gpus.count()) {
        ("cuda", 0, _) => "there is no NVIDIA card, or its driver is missing".to_string(),
        (_, 0, _) => {
            "there is no graphics adapter (no Vulkan, Metal, DirectX or OpenGL driver)".into()
        }
        (_, _, 0) => "there is no hardware GPU".to_string(),
        _ if wanted == SOFTWARE => "no adapter computes on the CPU".to_string(),
        (_, _, gpus) => format!("the GPUs are numbered 0 to {}", gpus - 1),
    };
    // GPUs come first, the best of them before the others.
    let first = matches!(wanted.as_str(), "wgpu" | "cuda");
    let found = devices
        .into_iter()
        .find(|device| first || device.name == wanted);
    found
        .ok_or_else(|| anyhow!("no device `{name}`: {reason}. {}", available()))?
        .open()
}

/// All devices of this machine that this program can use, with the names of the adapters.
pub fn list() -> Vec<NamedDevice> {
    all()
        .into_iter()
        .filter_map(|device| device.open().ok())
        .collect()
}

/// The devices for people.
pub(crate) fn table(devices: &[NamedDevice]) -> String {
    let lines = devices.iter().map(|device| {
        format!(
            "{:<10} {:<20} {}\n",
            device.name, device.kind, device.adapter
        )
    });
    let auto = resolve("auto").map_or_else(|error| error.to_string(), |device| device.name);
    lines.collect::<String>() + &format!("auto is {auto}\n")
}

/// The names for error messages. Opens nothing.
fn available() -> String {
    let names: Vec<String> = all()
        .iter()
        .map(|device| format!("{} ({})", device.name, device.kind))
        .collect();
    format!("This machine has: {}", names.join(", "))
}

/// Without opening them.
fn all() -> Vec<NamedDevice> {
    let gpus = adapters().into_iter().chain(cards());
    cpus().into_iter().chain(gpus).collect()
}

// Burn 0.22 marks ndarray deprecated; it is here to be compared with.
#[allow(deprecated)]
fn cpus() -> Vec<NamedDevice> {
    #[allow(dead_code)]
    fn cpu(name: &str, device: Device) -> NamedDevice {
        NamedDevice {
            name: name.into(),
            kind: "CPU",
            adapter: format!("burn-{name}"),
            device,
        }
    }
    vec![
        #[cfg(feature = "flex")]
        cpu("flex", Device::flex()),
        #[cfg(feature = "ndarray")]
        cpu("ndarray", Device::ndarray()),
    ]
}

#[cfg(not(feature = "cuda"))]
fn cards() -> Vec<NamedDevice> {
    Vec::new()
}

/// NVIDIA cards as CUDA numbers them. Asking is safe without a driver: the answer is empty.
#[cfg(feature = "cuda")]
fn cards() -> Vec<NamedDevice> {
    use burn::tensor::DeviceType;
    let found = catch(|| Device::enumerate(DeviceType::Cuda).into_vec()).unwrap_or_default();
    let named = found
        .into_iter()
        .enumerate()
        .map(|(at, device)| NamedDevice {
            name: format!("cuda:{at}"),
            kind: "NVIDIA card",
            adapter: String::new(),
            device,
        });
    named.collect()
}

#[cfg(not(feature = "wgpu"))]
fn adapters() -> Vec<NamedDevice> {
    Vec::new()
}

/// Adapters of the graphics drivers, GPUs first by kind. Asking is safe without a driver: the
/// answer is empty.
#[cfg(feature = "wgpu")]
fn adapters() -> Vec<NamedDevice> {
    use burn::tensor::{DeviceKind, DeviceType};
    /// A device does not tell its kind, but can be compared with those that have one.
    const MANY: usize = 16;
    let kind = |device: &Device| {
        let is =
            |kind: fn(usize) -> DeviceKind| (0..MANY).any(|at| *device == Device::wgpu(kind(at)));
        if *device == Device::wgpu(DeviceKind::Cpu) {
            (4, "software on the CPU")
        } else if is(DeviceKind::DiscreteGpu) {
            (0, "discrete GPU")
        } else if is(DeviceKind::IntegratedGpu) {
            (1, "integrated GPU")
        } else if is(DeviceKind::VirtualGpu) {
            (2, "virtual GPU")
        } else {
            (3, "other GPU")
        }
    };
    let found = catch(|| Device::enumerate(DeviceType::Wgpu).into_vec()).unwrap_or_default();
    let mut adapters: Vec<_> = found
        .into_iter()
        .map(|device| (kind(&device), device))
        .collect();
    adapters.sort_by_key(|((rank, _), _)| *rank);
    let named = adapters
        .into_iter()
        .enumerate()
        .map(|(at, ((rank, kind), device))| NamedDevice {
            name: if rank == 4 {
                SOFTWARE.to_string()
            } else {
                format!("wgpu:{at}")
            },
            kind,
            adapter: String::new(),
            device,
        });
    named.collect()
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
        for name in [
            "", "gpu", "wgpu:", "wgpu:-1", "wgpu:one", "flex:0", "auto:0", "wgpu:0:1", "cuda:",
            "cuda:x", "cuda:cpu",
        ] {
            let text = resolve(name).expect_err("not a device here").to_string();
            assert!(text.contains(&format!("unknown device `{name}`")), "{text}");
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
        for name in ["cuda", "cuda:1", "CUDA:0"] {
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
        let gpu = adapters().iter().any(|adapter| adapter.name != SOFTWARE);
        let expected = match (cards().is_empty(), gpu) {
            (false, _) => "cuda:0",
            (true, true) => "wgpu:0",
            (true, false) => "flex",
        };
        assert_eq!(device.name, expected);
    }
}
