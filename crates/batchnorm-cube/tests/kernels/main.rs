//! The kernels against a naive f64 oracle, on the software Vulkan adapter or on the device that `BATCHNORM_DEVICE` names.

mod arguments;
mod case;
mod device;
mod extremes;
mod long;
mod numbers;
mod planes;
mod positions;
mod primitives;
mod reference;
mod runtime;
mod strides;
mod support;
mod training;
mod weights;

use batchnorm_cube::{Activation, Element, Layout, Operation, Problem, Strategy, supports};
use case::{Case, check_train};
use cubecl::prelude::*;
use device::{client, is_software};
use positions::Positions;
use training::{SHAPES, Training};

/// One shape per line of the suite, the large ones scaled down in their outer dimension.
#[test]
fn shapes_of_networks() {
    let Some(client) = client() else { return };
    let shapes = [
        (2, 64, 56 * 56),
        (2, 256, 28 * 28),
        (1024, 512, 1),
        (512, 1024, 1),
        (8, 128, 256),
        (4, 512, 7 * 7),
        (1, 64, 112 * 112),
        (32, 50, 1),
        (128, 512, 1),
        (4, 32, 16 * 14 * 14),
    ];
    for (outer, channels, inner) in shapes {
        check_train(&client, Case::new(outer, channels, inner));
    }
}

/// Lengths around vectors, planes, blocks and cuts, in every dimension.
#[test]
fn odd_shapes() {
    let Some(client) = client() else { return };
    let inner = [
        1, 2, 3, 4, 5, 7, 8, 9, 16, 31, 32, 33, 49, 63, 64, 65, 127, 257,
    ];
    check_odd_shapes(&client, Strategy::Auto, &inner);
}

/// Fewer of them, for kernels that take long to compile on the CPU.
const ODD: [usize; 7] = [1, 2, 3, 8, 33, 49, 257];

fn check_odd_shapes(client: &Client, strategy: Strategy, inner: &[usize]) {
    for &inner in inner {
        for (outer, channels) in [(1, 5), (3, 1), (4, 4), (17, 13), (67, 3)] {
            let case = Case::new(outer, channels, inner);
            check_train(client, Case { strategy, ..case });
        }
    }
}

/// Few channels with much data are split over the grid: rows, a single long row, and columns.
#[test]
fn few_channels_are_split() {
    let Some(client) = client() else { return };
    for (outer, channels, inner) in [
        (256, 1, 257),
        (1, 1, 100_003),
        (1, 2, 65_536),
        (50_000, 1, 1),
        (30_011, 3, 1),
        (20_000, 4, 1),
        (9_973, 2, 5),
        (40, 3, 1_024),
    ] {
        let launches = check_train(&client, Case::new(outer, channels, inner));
        if is_software(&client) {
            assert_eq!(launches, (2, 2), "{outer} x {channels} x {inner}");
        }
    }
}

#[test]
fn one_channel_with_ten_million_values() {
    let Some(client) = client() else { return };
    let launches = check_train(&client, Case::new(1, 1, 10_000_000));
    if is_software(&client) {
        assert_eq!(launches, (3, 3));
    }
}

/// More cubes than a grid has in one dimension, and more rows too.
#[test]
fn more_than_a_grid_dimension() {
    let Some(client) = client() else { return };
    check_train(&client, Case::new(2, 100_000, 1));
    check_train(&client, Case::new(2, 70_001, 2));
    check_train(&client, Case::new(1, 300_007, 3));
    check_train(&client, Case::new(70_001, 2, 2));
    check_train(&client, Case::new(70_001, 3, 1));
}

#[test]
fn large_means_keep_their_digits() {
    let Some(client) = client() else { return };
    for (outer, channels, inner) in [(8, 16, 784), (512, 64, 1), (1, 1, 100_000), (64, 1, 999)] {
        for mean in [1e4, -1e4] {
            let case = Case::new(outer, channels, inner);
            check_train(&client, Case { mean, ..case });
        }
    }
}

/// Every activation, with and without a residual, in one launch and in three, apart and in place.
#[test]
fn activations_residuals_and_in_place() {
    let Some(client) = client() else { return };
    let activations = [
        Activation::None,
        Activation::Relu,
        Activation::LeakyRelu(0.1),
        Activation::Relu6,
        Activation::Clamp {
            min: -0.7,
            max: 0.9,
        },
    ];
    // Their kernels differ from these in a function of one value, so two of the four will do.
    let curves = [
        Activation::Silu,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::HardSwish,
        Activation::Sigmoid,
        Activation::Tanh,
    ];
    let curves = curves.map(|curve| (curve, vec![0, 3]));
    let pieces = activations.map(|activation| (activation, vec![0, 1, 2, 3]));
    for (activation, all_flags) in pieces.into_iter().chain(curves) {
        for (outer, channels, inner) in [(3, 7, 10), (9, 12, 1), (2_500, 2, 7), (12_000, 3, 1)] {
            for &flags in &all_flags {
                let case = Case {
                    activation,
                    residual: flags & 1 != 0,
                    in_place: flags & 2 != 0,
                    ..Case::new(outer, channels, inner)
                };
                check_train(&client, case);
            }
        }
    }
}

/// `f16`, `bf16` and `f64`, cut as for software and as for a GPU: by rows and by columns, in one launch and in three, an odd shape.
#[test]
fn f16() {
    check_type(Element::F16);
}

#[test]
fn bf16() {
    check_type(Element::Bf16);
}

#[test]
fn f64() {
    check_type(Element::F64);
}

/// Where the device has the type.
fn check_type(element: Element) {
    let Some(client) = client() else { return };
    let properties = client.properties();
    for strategy in [Strategy::Software, Strategy::Gpu] {
        for (outer, channels, inner) in [(8, 16, 196), (64, 24, 1), (1, 1, 50_000), (3, 5, 7)] {
            let case = Case {
                element,
                strategy,
                ..Case::new(outer, channels, inner)
            };
            let problem = Problem::new(case.layout, element);
            let operation = Operation::Train {
                residual: true,
                weights: false,
            };
            if let Err(error) = supports(properties, &problem, operation) {
                eprintln!("skipped: {error}");
                return;
            }
            check_train(&client, case);
            check_train(
                &client,
                Case {
                    activation: Activation::Relu,
                    residual: true,
                    in_place: true,
                    ..case
                },
            );
            for positions in [Positions::Shared, Positions::Own] {
                check_train(&client, Case { positions, ..case });
            }
        }
    }
}

/// A channel that is one cube's takes one launch, one that a few share two, one that many share three.
#[test]
fn launches_are_counted() {
    let Some(client) = client().filter(is_software) else {
        return;
    };
    assert_eq!(check_train(&client, Case::new(4, 64, 49)), (1, 1));
    assert_eq!(check_train(&client, Case::new(256, 64, 1)), (1, 1));
    assert_eq!(check_train(&client, Case::new(64, 1, 1024)), (2, 2));
    assert_eq!(check_train(&client, Case::new(150_000, 8, 1)), (3, 3));
}

/// The suite's shapes move the bytes of the passes, in however many launches.
#[test]
fn bytes_are_those_of_the_passes() {
    let Some(client) = client() else { return };
    for (name, shape) in SHAPES {
        let layout = Layout::from_shape(shape, 1).unwrap();
        let [x, dy, residual] = [(); 3].map(|()| client.empty(4 * layout.len()));
        let follows = match layout.len() < 1 << 20 {
            true => vec![
                (Activation::None, None),
                (Activation::Relu, Some(&residual)),
            ],
            false => vec![(Activation::None, None)],
        };
        for (strategy, (activation, residual)) in [Strategy::Gpu, Strategy::Software]
            .into_iter()
            .flat_map(|strategy| follows.iter().map(move |follows| (strategy, *follows)))
        {
            let problem = Problem {
                strategy,
                ..Problem::new(layout, Element::F32)
            };
            let step = Training::new(&client, problem, &x, &dy).followed_by(activation, residual);
            let launches = [step.forward(), step.backward(), step.inference()];
            for (launches, passes) in launches.iter().zip(step.passes()) {
                let ratio = launches.bytes() as f64 / passes as f64;
                assert!((1.0..=1.1).contains(&ratio), "{name}: {ratio} {launches:?}");
            }
        }
    }
}

/// The cuts for a GPU are right on every device: wide cubes, deep merges, splits over both dimensions, many rows of units.
#[test]
fn cuts_for_a_gpu() {
    let Some(client) = client() else { return };
    check_cuts(&client, Strategy::Gpu);
    check_odd_shapes(&client, Strategy::Gpu, &ODD);
}

fn check_cuts(client: &Client, strategy: Strategy) {
    for (outer, channels, inner) in [
        (2, 300, 49),
        (5, 2, 3),
        (64, 9, 56),
        (3, 5, 1_000),
        (1, 1, 200_001),
        (8_192, 24, 1),
        (301, 7, 1),
        (40_000, 2, 1),
        (1_000, 4, 6),
        (600, 40, 3),
        (50, 33, 4),
        (9, 130, 2),
        (1, 700, 64),
    ] {
        for in_place in [false, true] {
            let case = Case::new(outer, channels, inner);
            check_train(
                client,
                Case {
                    strategy,
                    in_place,
                    ..case
                },
            );
        }
        let case = Case {
            mean: 1e4,
            activation: Activation::LeakyRelu(0.1),
            residual: true,
            strategy,
            ..Case::new(outer, channels, inner)
        };
        for positions in Positions::ALL {
            check_train(client, Case { positions, ..case });
        }
    }
}
