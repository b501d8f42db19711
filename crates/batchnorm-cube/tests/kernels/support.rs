//! What a device can do is known before anything is launched, and what it can do works.

use batchnorm_cube::*;
use cubecl::features::{Features, TypeUsage};
use cubecl::ir::{
    DeviceIdentity, DeviceProperties, ElemType, FloatKind, HardwareProperties,
    MemoryDeviceProperties, PhysicalDevice,
};
use cubecl::profile::TimingMethod;

use crate::case::{Case, check_train};
use crate::device::{client, client_with_bindings};
use crate::positions::Positions;

/// A card with so many bindings and buffers of so many bytes.
fn card(bindings: u32, buffer: u64) -> DeviceProperties {
    let hardware = HardwareProperties {
        load_width: 128,
        vector_register_count: None,
        plane_size_min: 4,
        plane_size_max: 16,
        max_bindings: bindings,
        max_shared_memory_size: 16 << 10,
        max_cube_count: (65_535, 65_535, 65_535),
        max_units_per_cube: 256,
        max_cube_dim: (256, 256, 64),
        num_streaming_multiprocessors: None,
        num_cpu_cores: None,
        last_level_cache_size: None,
        num_tensor_cores: None,
        min_tensor_cores_dim: None,
        max_vector_size: 4,
        cube_mma_reserved_shared_memory: 0,
    };
    let identity = DeviceIdentity {
        name: "card".into(),
        fingerprint: "card".into(),
        physical: Some(PhysicalDevice::default()),
    };
    let memory = MemoryDeviceProperties::new(buffer, 256);
    let features = Features::default();
    let timing = TimingMethod::System;
    let mut properties = DeviceProperties::new(features, memory, hardware, timing, identity);
    properties.register_type_usage(ElemType::Float(FloatKind::F32), TypeUsage::all());
    properties
}

fn operations(residual: bool) -> [Operation; 9] {
    let weights = [false, true];
    let [train, train_weighted] = weights.map(|weights| Operation::Train { residual, weights });
    let [backward, backward_weighted] =
        weights.map(|weights| Operation::TrainBackward { residual, weights });
    let [normalize, normalize_weighted] =
        weights.map(|weights| Operation::Normalize { residual, weights });
    [
        train,
        backward,
        train_weighted,
        backward_weighted,
        Operation::Moments,
        normalize,
        normalize_weighted,
        Operation::NormalizeBackward { residual },
        Operation::Affine,
    ]
}

fn problem(outer: usize, channels: usize, inner: usize, element: Element) -> Problem {
    Problem::new(Layout::new(outer, channels, inner), element)
}

/// WebGPU promises 8 storage buffers, of which one is CubeCL's.
#[test]
fn few_bindings() {
    for layout in [(32, 64, 49), (1, 1, 100_000), (1 << 20, 3, 1)] {
        let problem = problem(layout.0, layout.1, layout.2, Element::F32);
        for operation in operations(false) {
            let result = supports(&card(7, 1 << 30), &problem, operation);
            let refused = matches!(result, Err(Error::Bindings { got: 7, .. }));
            // With statistics in two buffers everything that a backward reads and writes is one too many.
            let expected = operation == Operation::NormalizeBackward { residual: false };
            assert_eq!(refused, expected, "{operation:?}: {result:?}");
        }
        for operation in operations(true) {
            assert_eq!(supports(&card(31, 1 << 30), &problem, operation), Ok(()));
            assert!(supports(&card(1, 1 << 30), &problem, operation).is_err());
        }
        for training in &operations(true)[..4] {
            let training = *training;
            assert_eq!(supports(&card(7, 1 << 30), &problem, training), Ok(()));
        }
    }
}

#[test]
fn large_tensors() {
    let [train, ..] = operations(false);
    let mebibytes = |n: u64| card(31, n << 20);
    for (outer, channels, inner) in [(4, 64, 512 * 512), (1, 1, 40_000_000)] {
        let problem = problem(outer, channels, inner, Element::F32);
        assert_eq!(supports(&mebibytes(512), &problem, train), Ok(()));
        let error = supports(&mebibytes(128), &problem, train).unwrap_err();
        assert!(matches!(error, Error::Buffer { limit, .. } if limit == 128 << 20));
    }
    // Gaps count; so do the statistics.
    let pitched = Layout::new(1 << 10, 3, 1).with_pitch(1 << 16);
    let pitched = Problem::new(pitched, Element::F32);
    assert!(supports(&mebibytes(128), &pitched, train).is_err());
    let channels = problem(1, 10 << 20, 1, Element::F32);
    assert!(supports(&mebibytes(128), &channels, train).is_err());

    let many = problem(1 << 16, 1 << 10, 1 << 7, Element::F32);
    let error = supports(&mebibytes(1 << 40), &many, train).unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }));
}

#[test]
fn types() {
    let [train, ..] = operations(false);
    let bf16 = ElemType::Float(FloatKind::BF16);
    let mut card = card(31, 1 << 30);
    let problem = problem(2, 3, 4, Element::Bf16);
    assert!(matches!(
        supports(&card, &problem, train),
        Err(Error::Element { .. })
    ));
    // Conversion alone is not enough to read a tensor; it is with buffers, for all arithmetic is in f32.
    card.register_type_usage(bf16, TypeUsage::Conversion);
    assert!(supports(&card, &problem, train).is_err());
    card.register_type_usage(bf16, TypeUsage::Conversion | TypeUsage::Buffer);
    assert_eq!(supports(&card, &problem, train), Ok(()));
}

/// Training has a plan for the fewest bindings that WebGPU promises.
#[test]
fn what_is_supported_runs() {
    for bindings in [7, 11] {
        let Some(client) = client_with_bindings(bindings + 1) else {
            return;
        };
        let properties = client.properties();
        assert_eq!(properties.hardware.max_bindings, bindings);
        for (outer, channels, inner) in [(4, 6, 5), (500, 3, 50), (140_000, 3, 1), (9, 16, 1)] {
            for residual in [false, true] {
                let case = Case {
                    activation: Activation::Relu,
                    residual,
                    ..Case::new(outer, channels, inner)
                };
                let problem = Problem::new(case.layout, case.element);
                let ask = |operation: &Operation| supports(properties, &problem, *operation);
                let training = &operations(residual)[..4];
                assert!(training.iter().all(|op| ask(op).is_ok()), "{bindings}");
                for positions in [Positions::Even, Positions::Shared] {
                    check_train(&client, Case { positions, ..case });
                }
            }
        }
    }
}

#[test]
fn the_software_adapter() {
    let Some(client) = client() else { return };
    assert!(client.properties().identity.physical.is_none());
    for residual in [false, true] {
        for operation in operations(residual) {
            let problem = problem(32, 64, 49, Element::F32);
            let result = supports(client.properties(), &problem, operation);
            assert_eq!(result, Ok(()), "{operation:?}");
        }
    }
}
