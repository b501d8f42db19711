//! The two CPU backends.

use super::{DeviceError, NamedDevice};

#[cfg(any(not(feature = "flex"), not(feature = "ndarray")))]
fn not_compiled(name: &'static str) -> Result<NamedDevice, DeviceError> {
    Err(DeviceError::NotCompiled {
        name: name.to_string(),
        feature: name,
        available: String::from("see `mnist devices`"),
    })
}

#[cfg(feature = "flex")]
pub(super) fn flex() -> Result<NamedDevice, DeviceError> {
    Ok(NamedDevice {
        name: "flex".to_string(),
        kind: "CPU",
        adapter: "burn-flex".to_string(),
        device: burn::tensor::Device::flex(),
    })
}

#[cfg(not(feature = "flex"))]
pub(super) fn flex() -> Result<NamedDevice, DeviceError> {
    not_compiled("flex")
}

// Burn 0.22 marks the backend deprecated; it is here to be compared with.
#[cfg(feature = "ndarray")]
#[allow(deprecated)]
pub(super) fn ndarray() -> Result<NamedDevice, DeviceError> {
    Ok(NamedDevice {
        name: "ndarray".to_string(),
        kind: "CPU",
        adapter: "burn-ndarray".to_string(),
        device: burn::tensor::Device::ndarray(),
    })
}

#[cfg(not(feature = "ndarray"))]
pub(super) fn ndarray() -> Result<NamedDevice, DeviceError> {
    not_compiled("ndarray")
}
