//! Adapters of the graphics drivers.

use burn::tensor::{Device, DeviceKind, DeviceType};

use super::{Adapter, DeviceError, NamedDevice, available, catch};

/// Every adapter, GPUs first by kind. Asking is safe without a driver: the answer is empty.
pub(super) fn adapters() -> Vec<NamedDevice> {
    let found = catch(|| Device::enumerate(DeviceType::Wgpu).into_vec()).unwrap_or_default();
    let mut adapters: Vec<(usize, &'static str, Device)> = found
        .into_iter()
        .map(|device| {
            let (rank, kind) = kind(&device);
            (rank, kind, device)
        })
        .collect();
    adapters.sort_by_key(|(rank, ..)| *rank);
    let named = adapters
        .into_iter()
        .enumerate()
        .map(|(at, (rank, kind, device))| NamedDevice {
            name: if rank == SOFTWARE {
                "wgpu:cpu".to_string()
            } else {
                format!("wgpu:{at}")
            },
            kind,
            adapter: String::new(),
            device,
        });
    named.collect()
}

/// Sorts behind everything else.
const SOFTWARE: usize = usize::MAX;

fn kind(device: &Device) -> (usize, &'static str) {
    const MANY: usize = 16;
    let is = |kind: fn(usize) -> DeviceKind| (0..MANY).any(|at| *device == Device::wgpu(kind(at)));
    if *device == Device::wgpu(DeviceKind::Cpu) {
        (SOFTWARE, "software on the CPU")
    } else if is(DeviceKind::DiscreteGpu) {
        (0, "discrete GPU")
    } else if is(DeviceKind::IntegratedGpu) {
        (1, "integrated GPU")
    } else if is(DeviceKind::VirtualGpu) {
        (2, "virtual GPU")
    } else {
        (3, "other GPU")
    }
}

/// The adapters that are not software.
pub(super) fn hardware() -> Vec<NamedDevice> {
    adapters()
        .into_iter()
        .filter(|adapter| adapter.name != "wgpu:cpu")
        .collect()
}

pub(super) fn find(name: &str, wanted: Adapter) -> Result<NamedDevice, DeviceError> {
    let adapters = adapters();
    let gpus = adapters
        .iter()
        .filter(|adapter| adapter.name != "wgpu:cpu")
        .count();
    let missing = |reason: String| DeviceError::Missing {
        name: name.to_string(),
        reason,
        available: available(),
    };
    if adapters.is_empty() {
        return Err(missing(
            "there is no graphics adapter (no Vulkan, Metal, DirectX or OpenGL driver)".to_string(),
        ));
    }
    let found = match wanted {
        Adapter::Best => adapters.into_iter().next(),
        Adapter::Cpu => adapters
            .into_iter()
            .find(|adapter| adapter.name == "wgpu:cpu"),
        Adapter::Gpu(index) => adapters.into_iter().take(gpus).nth(index),
    };
    found.ok_or_else(|| match wanted {
        Adapter::Cpu => missing("no adapter computes on the CPU".to_string()),
        _ if gpus == 0 => missing("there is no hardware GPU".to_string()),
        _ => missing(format!("the GPUs are numbered 0 to {}", gpus - 1)),
    })
}

/// Brings the device up and asks its name.
pub(super) fn open(adapter: NamedDevice) -> Result<NamedDevice, DeviceError> {
    match catch(|| adapter.device.identity()) {
        Ok(identity) => Ok(NamedDevice {
            adapter: identity.map_or_else(|| "unnamed".to_string(), |identity| identity.name),
            ..adapter
        }),
        Err(reason) => Err(DeviceError::Open {
            name: adapter.name,
            reason: reason.lines().next().unwrap_or_default().to_string(),
            available: available(),
        }),
    }
}
