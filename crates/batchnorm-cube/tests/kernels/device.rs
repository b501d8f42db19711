//! The device under test, and data on it.

use std::sync::{Mutex, OnceLock, PoisonError};

use batchnorm_cube::{Element, Layout};
use cubecl::Device;
use cubecl::features::Plane;
use cubecl::prelude::*;
use cubecl::server::Handle;
use cubecl::wgpu::wgpu::hal::{Instance as _, api::Vulkan};
use cubecl::wgpu::wgpu::{self, AdapterInfo, DeviceType, Features, Limits};
use cubecl::wgpu::{RuntimeOptions, WgpuSetup, init_device};
use half::{bf16, f16};

use crate::runtime::DeviceName;

/// The device that the environment asks for, by the names in `runtime.rs`.
fn asked() -> Option<String> {
    std::env::var("BATCHNORM_DEVICE").ok()
}

/// The device of `BATCHNORM_DEVICE`; where it is not set, the software adapter, or none.
///
/// # Panics
///
/// Panics where the device that was asked for is not there.
pub fn client() -> Option<Client> {
    static CLIENT: OnceLock<Option<Client>> = OnceLock::new();
    CLIENT
        .get_or_init(|| {
            if let Some(name) = asked() {
                let client = name.parse::<DeviceName>().and_then(DeviceName::client);
                return Some(client.unwrap_or_else(|error| panic!("BATCHNORM_DEVICE: {error}")));
            }
            let client = DeviceName::Software.client().ok();
            if client.is_none() {
                let required = std::env::var("BATCHNORM_REQUIRE_GPU").is_ok_and(|v| v == "1");
                assert!(
                    !required,
                    "BATCHNORM_REQUIRE_GPU=1, but there is no adapter"
                );
                eprintln!("skipped: no adapter");
            }
            client
        })
        .clone()
}

/// Whether the device computes on the CPU: how often its kernels launch is known.
pub fn is_software(client: &Client) -> bool {
    client.properties().identity.physical.is_none()
}

/// The device with plane operations, or none.
///
/// Mesa's has them, but CubeCL leaves them out where an adapter says that it is a CPU.
pub fn client_with_planes() -> Option<Client> {
    static CLIENT: OnceLock<Option<Client>> = OnceLock::new();
    CLIENT
        .get_or_init(|| {
            let client = match asked() {
                Some(_) => client(),
                None => altered(|info, _, _| info.device_type = DeviceType::Other),
            };
            let client =
                client.filter(|client| client.properties().features.plane.contains(Plane::Ops));
            if client.is_none() {
                eprintln!("skipped: the adapter has no subgroups");
            }
            client
        })
        .clone()
}

/// The software adapter without f16, or none.
pub fn client_without_f16() -> Option<Client> {
    altered(|_, features, _| features.remove(Features::SHADER_F16))
}

/// The software adapter with so many storage buffers of a kernel, or none.
pub fn client_with_bindings(bindings: u32) -> Option<Client> {
    altered(|_, _, limits| limits.max_storage_buffers_per_shader_stage = bindings)
}

/// The software adapter, with something changed of what it says about itself; none where another device was asked for.
fn altered(change: impl FnOnce(&mut AdapterInfo, &mut Features, &mut Limits)) -> Option<Client> {
    if let Some(name) = asked() {
        eprintln!("skipped: {name} is taken as it is");
        return None;
    }
    // Vulkan's loader does not like instances that come at the same time: CubeCL's first, then one of these after the other.
    client()?;
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);

    let backend = wgpu::Backend::Vulkan;
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: backend.into(),
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    // SAFETY: the instance outlives the borrow, and nothing is done with it but to list its adapters.
    let adapters = unsafe { instance.as_hal::<Vulkan>()?.enumerate_adapters(None) };
    let mut exposed = adapters
        .into_iter()
        .find(|adapter| adapter.info.device_type == DeviceType::Cpu)?;
    exposed.features &=
        Features::SUBGROUP | Features::SHADER_F16 | Features::SHADER_F64 | Features::SHADER_INT64;
    change(
        &mut exposed.info,
        &mut exposed.features,
        &mut exposed.capabilities.limits,
    );
    // SAFETY: the adapter has been listed by this instance.
    let adapter = unsafe { instance.create_adapter_from_hal(exposed) };
    let descriptor = wgpu::DeviceDescriptor {
        required_features: adapter.features(),
        required_limits: adapter.limits(),
        ..Default::default()
    };
    let (device, queue) = cubecl::future::block_on(adapter.request_device(&descriptor))
        .expect("the adapter has what it says");
    let setup = WgpuSetup {
        instance,
        adapter,
        device,
        queue,
        backend,
    };
    let device = init_device(setup, RuntimeOptions::default());
    Some(Device::Wgpu(device).client())
}

/// Values for a buffer of the type.
pub fn upload(client: &Client, element: Element, values: &[f64]) -> Handle {
    let bytes: Vec<u8> = match element {
        Element::F32 => values
            .iter()
            .flat_map(|v| (*v as f32).to_ne_bytes())
            .collect(),
        Element::F16 => values
            .iter()
            .flat_map(|v| f16::from_f64(*v).to_ne_bytes())
            .collect(),
        Element::Bf16 => values
            .iter()
            .flat_map(|v| bf16::from_f64(*v).to_ne_bytes())
            .collect(),
        Element::F64 => values.iter().flat_map(|v| v.to_ne_bytes()).collect(),
    };
    client.create_from_slice(&bytes)
}

/// The values of a buffer.
pub fn download(client: &Client, element: Element, handle: &Handle) -> Vec<f64> {
    let bytes = client
        .read_one(handle.clone())
        .expect("the kernels have run");
    match element {
        Element::F32 => bytes
            .chunks_exact(4)
            .map(|b| f32::from_ne_bytes(b.try_into().unwrap()).into())
            .collect(),
        Element::F16 => bytes
            .chunks_exact(2)
            .map(|b| f16::from_ne_bytes(b.try_into().unwrap()).into())
            .collect(),
        Element::Bf16 => bytes
            .chunks_exact(2)
            .map(|b| bf16::from_ne_bytes(b.try_into().unwrap()).into())
            .collect(),
        Element::F64 => bytes
            .chunks_exact(8)
            .map(|b| f64::from_ne_bytes(b.try_into().unwrap()))
            .collect(),
    }
}

/// A tensor with the values in their places; what lies between is NaN.
pub fn upload_tensor(client: &Client, element: Element, layout: Layout, values: &[f64]) -> Handle {
    let mut memory = vec![f64::NAN; layout.span()];
    for (i, value) in values.iter().enumerate() {
        memory[place(layout, i)] = *value;
    }
    upload(client, element, &memory)
}

/// An uninitialised tensor.
pub fn empty_tensor(client: &Client, element: Element, layout: Layout) -> Handle {
    empty(client, element, layout.span())
}

/// The values of a tensor; nothing may have been written between them.
pub fn download_tensor(
    client: &Client,
    element: Element,
    layout: Layout,
    handle: &Handle,
) -> Vec<f64> {
    let mut memory = download(client, element, handle);
    let values = (0..layout.len())
        .map(|i| std::mem::replace(&mut memory[place(layout, i)], f64::NAN))
        .collect();
    assert!(memory.iter().all(|v| v.is_nan()), "{layout:?}: gaps");
    values
}

fn place(layout: Layout, i: usize) -> usize {
    let row = i / layout.inner;
    row / layout.channels * layout.outer_stride
        + row % layout.channels * layout.channel_stride
        + i % layout.inner
}

/// What the type makes of the values.
pub fn rounded(element: Element, values: Vec<f64>) -> Vec<f64> {
    let round = |v: f64| match element {
        Element::F16 => f16::from_f64(v).to_f64(),
        Element::Bf16 => bf16::from_f64(v).to_f64(),
        Element::F64 => v,
        Element::F32 => v as f32 as f64,
    };
    values.into_iter().map(round).collect()
}

/// Uninitialised memory: filled with NaN, so that what a kernel forgets shows.
pub fn empty(client: &Client, element: Element, len: usize) -> Handle {
    upload(client, element, &vec![f64::NAN; len])
}

/// Numbers that are the same in every run; roughly normal.
pub struct Random(pub u64);

impl Random {
    /// From 0 to 1.
    pub fn uniform(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    /// `len` of them.
    pub fn normal(&mut self, len: usize, mean: f64, deviation: f64) -> Vec<f64> {
        (0..len)
            .map(|_| {
                let sum: f64 = (0..6).map(|_| self.uniform()).sum();
                mean + deviation * (sum - 3.0) * std::f64::consts::SQRT_2
            })
            .collect()
    }
}
