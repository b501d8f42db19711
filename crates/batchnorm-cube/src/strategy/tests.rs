//! Cuts of all kinds of shapes, for both kinds of devices.

use super::*;
use crate::device::CPU_CUBES;
use crate::tuning::Tuning;
use crate::{Element, Layout};

fn device(software: bool) -> Device {
    Device {
        software,
        units: if software { 8 } else { 256 },
        plane: if software { 1 } else { 32 },
        cubes: if software {
            CPU_CUBES
        } else {
            132 * Tuning::CHOSEN.cubes
        },
        bindings: 31,
        shared: 32 << 10,
        buffer: u64::MAX,
        grid: [65_535; 3],
        vector: 4,
        pairs: software,
        tuning: Tuning::CHOSEN,
    }
}

fn problem(outer: usize, channels: usize, inner: usize) -> Problem {
    Problem::new(Layout::new(outer, channels, inner), Element::F32)
}

fn cuts(problem: &Problem, device: &Device) -> [Cut; 2] {
    [
        Cut::reduction(problem, device),
        Cut::element_wise(problem, device),
    ]
}

/// The tiles and the splits cover every vector once.
#[test]
fn cuts_cover_the_tensor() {
    for software in [false, true] {
        let device = device(software);
        for outer in [1, 2, 7, 64, 1000] {
            for channels in [1, 3, 4, 50, 512] {
                for inner in [1, 2, 5, 49, 64, 3136] {
                    let problem = problem(outer, channels, inner);
                    for cut in cuts(&problem, &device) {
                        let len = cut.len * cut.channels * cut.vector;
                        assert_eq!(len, problem.layout.len(), "{cut:?}");
                        assert!(cut.shape.units <= device.units, "{cut:?}");
                        assert!(cut.share * cut.splits() >= cut.len, "{cut:?}");
                        assert!(cut.share.is_multiple_of(cut.lanes()), "{cut:?}");
                        assert!(cut.tiles() * cut.shape.units_c >= cut.channels, "{cut:?}");
                    }
                }
            }
        }
    }
}

/// Mesa's limit on the iterations of a unit, in all loops of a kernel.
#[test]
fn no_walk_is_long() {
    for software in [false, true] {
        for units in [8, 32, 256] {
            let device = Device {
                units,
                plane: 1,
                ..device(software)
            };
            for (outer, channels, inner) in [
                (30_000, 100, 1),
                (41_943, 100, 1),
                (65_535, 100, 1),
                (40_000, 400, 1),
                (147_000, 64, 1),
                (147_000, 100, 1),
                (1, 1, 20_000_000),
                (1, 1, u32::MAX as usize),
                (u32::MAX as usize, 1, 1),
                (1 << 20, 4095, 1),
                (1 << 20, 1, 4095),
                (1, 1 << 20, 4095),
                (3, 65_537, 21_845),
                (10_000, 1_000, 7),
            ] {
                let problem = problem(outer, channels, inner);
                for cut in cuts(&problem, &device) {
                    let steps = cut.steps();
                    assert!(steps <= MOST_STEPS, "{problem:?}: {steps} of {cut:?}");
                    let blocks = steps.div_ceil(64);
                    assert!(3 * (steps + blocks) + device.tuning.few_splits < 65_535 / 2);
                    let finish = Cut::finish(cut.splits(), channels, &device);
                    assert!(finish.steps() < 65_535 / 2, "{problem:?}: {finish:?}");
                }
            }
        }
    }
}

#[test]
fn many_channels_are_whole_and_few_are_split() {
    let gpu = device(false);
    assert_eq!(Cut::reduction(&problem(32, 512, 784), &gpu).splits(), 1);
    let cut = Cut::reduction(&problem(32, 64, 3136), &gpu);
    assert!(cut.cubes() >= gpu.cubes / 2, "{cut:?}");
    let cut = Cut::reduction(&problem(1024, 512, 1), &gpu);
    assert!(cut.shape.columns && cut.splits() > 1, "{cut:?}");
    assert_eq!(Cut::reduction(&problem(32, 50, 1), &gpu).splits(), 1);

    let cpu = device(true);
    assert_eq!(Cut::reduction(&problem(32, 64, 3136), &cpu).splits(), 1);
    assert!(Cut::reduction(&problem(1, 1, 100_000), &cpu).splits() > 1);
}

/// Rows that are shorter than a sector of memory share a cube, on a GPU; a longer one has it for itself.
#[test]
fn short_rows_stand_side_by_side() {
    let beside = |inner, device| {
        Cut::reduction(&problem(64, 32, inner), device)
            .shape
            .units_c
    };
    let gpu = device(false);
    assert_eq!([1, 2, 3, 4].map(|n| beside(n, &gpu)), [8, 16, 8, 8]);
    assert_eq!([7, 16, 49, 784].map(|n| beside(n, &gpu)), [4, 2, 1, 1]);
    let cpu = device(true);
    assert_eq!([1, 3, 4, 49].map(|n| beside(n, &cpu)), [4, 1, 1, 1]);
}

/// A pitch that vectors do not divide makes them narrower, one that they divide does not.
#[test]
fn vectors_fit_the_strides() {
    let vector = |layout| {
        let problem = Problem::new(layout, Element::F32);
        Cut::reduction(&problem, &device(false)).vector
    };
    assert_eq!(vector(Layout::new(32, 96, 1).with_pitch(128)), 4);
    assert_eq!(vector(Layout::new(32, 96, 1).with_pitch(97)), 1);
    assert_eq!(vector(Layout::new(32, 6, 8).with_pitch(50)), 2);
    assert_eq!(vector(Layout::new(1, 96, 1).with_pitch(97)), 4);
}

#[test]
fn a_cube_fits_into_shared_memory() {
    let device = Device {
        plane: 1,
        shared: 4 << 10,
        ..device(false)
    };
    let cut = Cut::reduction(&problem(4096, 64, 1), &device);
    assert_eq!((cut.shape.units, cut.parameter_vector()), (64, 4));
}

#[test]
fn a_small_finish_is_one_cube() {
    let cut = Cut::finish(7, 3, &device(false));
    assert_eq!((cut.cubes(), cut.splits(), cut.vector), (1, 1, 1));
}
