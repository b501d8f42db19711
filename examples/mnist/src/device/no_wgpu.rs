//! Stands in for `wgpu.rs` where the backend is not compiled in.

use super::{Adapter, DeviceError, NamedDevice, available};

pub(super) fn adapters() -> Vec<NamedDevice> {
    Vec::new()
}

pub(super) fn hardware() -> Vec<NamedDevice> {
    Vec::new()
}

pub(super) fn find(name: &str, _: Adapter) -> Result<NamedDevice, DeviceError> {
    Err(DeviceError::NotCompiled {
        name: name.to_string(),
        feature: "wgpu",
        available: available(),
    })
}

pub(super) fn open(adapter: NamedDevice) -> Result<NamedDevice, DeviceError> {
    Ok(adapter)
}
