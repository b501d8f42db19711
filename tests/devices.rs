//! The devices of the build. Every test body runs on each of them.

use std::sync::LazyLock;

use burn::tensor::{Device, DeviceKind, DeviceType};

/// Set to `1` where a GPU test without an adapter must fail and not be skipped, as in CI.
pub const REQUIRE_GPU: &str = "BATCHNORM_REQUIRE_GPU";

/// Every device by the name that a case file gives it.
///
/// # Panics
///
/// Panics if there is no wgpu adapter and [`REQUIRE_GPU`] is set.
pub fn all() -> Vec<(&'static str, Device)> {
    ["flex", "ndarray", "wgpu"]
        .into_iter()
        .filter_map(|name| Some((name, by_name(name)?)))
        .collect()
}

/// The device of that name, or `None` where it is unknown or this machine has no adapter for it.
///
/// # Panics
///
/// As [`all`].
pub fn by_name(name: &str) -> Option<Device> {
    match name {
        "flex" => Some(Device::flex()),
        #[allow(deprecated, reason = "burn deprecates NdArray, this crate supports it")]
        "ndarray" => Some(Device::ndarray()),
        "wgpu" => wgpu(),
        _ => None,
    }
}

fn wgpu() -> Option<Device> {
    // Looking for adapters loads the driver each time: 25 ms, more than most tests take.
    static FOUND: LazyLock<bool> =
        LazyLock::new(|| !Device::enumerate(DeviceType::Wgpu).into_vec().is_empty());
    if !*FOUND {
        let required = std::env::var(REQUIRE_GPU).is_ok_and(|value| value == "1");
        assert!(
            !required,
            "{REQUIRE_GPU}=1 but wgpu finds no adapter: install a Vulkan driver"
        );
        eprintln!("skipped: no adapter");
        return None;
    }
    Some(Device::wgpu(DeviceKind::DefaultDevice))
}
