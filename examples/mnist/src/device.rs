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

use anyhow::{Context, Result, anyhow, bail, ensure};
use burn::tensor::Device;
use serde::Serialize;

use crate::quiet::catch;

/// Name of the adapter that computes on the CPU.
const SOFTWARE: &str = "wgpu:cpu";

/// Kind of the devices that need not be opened.
const CPU: &str = "CPU";

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
    fn open(mut self) -> Result<Self> {
        if self.kind != CPU {
            let identity = catch(|| self.device.identity()).map_err(|reason| {
                let reason = reason.lines().next().unwrap_or_default();
                let name = &self.name;
                anyhow!("cannot open the device `{name}`: {reason}. {}", available())
            })?;
            self.adapter = identity.map_or("unnamed".to_string(), |identity| identity.name);
        }
        Ok(self)
    }

    /// Neither a CPU nor software on it.
    fn is_gpu(&self) -> bool {
        self.kind != CPU && self.name != SOFTWARE
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
    let (compiled, devices, missing) = match runtime {
        "auto" if index.is_none() => {
            let gpus = cards().into_iter().chain(adapters());
            let mut devices = gpus.filter(NamedDevice::is_gpu).chain(cpus());
            let first = devices.next().context("no backend is compiled in")?;
            return first.open();
        }
        "flex" if index.is_none() => (cfg!(feature = "flex"), cpus(), ""),
        "ndarray" if index.is_none() => (cfg!(feature = "ndarray"), cpus(), ""),
        "wgpu" if indexed || wanted == SOFTWARE => (
            cfg!(feature = "wgpu"),
            adapters(),
            ": there is no graphics adapter (no Vulkan, Metal, DirectX or OpenGL driver)",
        ),
        "cuda" if indexed => (
            cfg!(feature = "cuda"),
            cards(),
            ": there is no NVIDIA card, or its driver is missing",
        ),
        _ => bail!("unknown device `{name}`. {}", available()),
    };
    ensure!(
        compiled,
        "`{name}` is not compiled in: build with `--features {runtime}`. {}",
        available()
    );
    let missing = match devices.is_empty() {
        true => missing,
        false => "",
    };
    // GPUs come first, the best of them before the others.
    let first = matches!(wanted.as_str(), "wgpu" | "cuda");
    let found = devices.into_iter().find(|of| first || of.name == wanted);
    let found = found.with_context(|| format!("no device `{name}`{missing}. {}", available()));
    found?.open()
}

/// What `devices` prints.
#[derive(Serialize)]
#[serde(transparent)]
pub struct Devices(Vec<NamedDevice>);

/// All devices of this machine that this program can use, with the names of the adapters.
pub fn list() -> Devices {
    let devices = all().into_iter();
    Devices(devices.filter_map(|device| device.open().ok()).collect())
}

impl Display for Devices {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        for NamedDevice {
            name,
            kind,
            adapter,
            ..
        } in &self.0
        {
            writeln!(f, "{name:<10} {kind:<20} {adapter}")?;
        }
        match resolve("auto") {
            Ok(device) => writeln!(f, "auto is {}", device.name),
            Err(error) => writeln!(f, "auto is {error}"),
        }
    }
}

/// The names for error messages. Opens nothing.
fn available() -> String {
    let all = all();
    let names = all.iter().map(|of| format!("{} ({})", of.name, of.kind));
    let names: Vec<String> = names.collect();
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
            kind: CPU,
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
    let cards = enumerate(burn::tensor::DeviceType::Cuda).into_iter();
    let named = cards.enumerate().map(|(at, device)| NamedDevice {
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
    use burn::tensor::DeviceKind::{self, DiscreteGpu, IntegratedGpu, VirtualGpu};
    const KINDS: [&str; 5] = [
        "discrete GPU",
        "integrated GPU",
        "virtual GPU",
        "other GPU",
        "software on the CPU",
    ];
    /// A device does not tell its kind, but can be compared with those that have one.
    const MANY: usize = 16;
    let kind = |device: &Device| {
        let is = |kind: DeviceKind| *device == Device::wgpu(kind);
        let of: [fn(usize) -> DeviceKind; 3] = [DiscreteGpu, IntegratedGpu, VirtualGpu];
        let gpu = of.iter().position(|of| (0..MANY).any(|at| is(of(at))));
        match is(DeviceKind::Cpu) {
            true => 4,
            false => gpu.unwrap_or(3),
        }
    };
    let mut found = enumerate(burn::tensor::DeviceType::Wgpu);
    found.sort_by_key(kind);
    let named = found.into_iter().enumerate().map(|(at, device)| {
        let kind = kind(&device);
        NamedDevice {
            name: match kind {
                4 => SOFTWARE.to_string(),
                _ => format!("wgpu:{at}"),
            },
            kind: KINDS[kind],
            adapter: String::new(),
            device,
        }
    });
    named.collect()
}

#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn enumerate(runtime: burn::tensor::DeviceType) -> Vec<Device> {
    catch(|| Device::enumerate(runtime).into_vec()).unwrap_or_default()
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
        let gpu = adapters().iter().any(NamedDevice::is_gpu);
        let expected = match (cards().is_empty(), gpu) {
            (false, _) => "cuda:0",
            (true, true) => "wgpu:0",
            (true, false) => "flex",
        };
        assert_eq!(device.name, expected);
    }
}
