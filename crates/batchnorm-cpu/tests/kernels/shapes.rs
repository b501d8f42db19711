//! All shapes around the widths of registers and around every cut, on every instruction set, in every type.

use batchnorm_cpu::{Activation, InOut, Isa, Layout, Saved};
use half::{bf16, f16};
use proptest::prelude::*;

use crate::common::{Case, EPILOGUES, Tested, layout};

fn check_all<E: Tested>(layouts: impl Iterator<Item = Layout>, what: &str) {
    for (i, layout) in layouts.enumerate() {
        // One epilogue per layout, all of them in turn: neighbouring layouts take the same path through the loops.
        let (activation, residual) = EPILOGUES[i % EPILOGUES.len()];
        let case = Case::<E>::random(layout, activation, residual, i as u64);
        for isa in Isa::available() {
            isa.force(|| case.check(&format!("{what} on {isa:?}")));
        }
    }
}

/// Runs of one channel: registers have 1 to 16 lanes, four of them are taken together, and long rows begin at 16 or 24.
#[test]
fn run_lengths_around_registers() {
    let inners = || (1..=36).chain(47..=50).chain(60..=70).chain(127..=130);
    let layouts = || inners().flat_map(|inner| [layout(1, 2, inner), layout(5, 3, inner)]);
    check_all::<f32>(layouts(), "f32");
    check_all::<f64>(layouts(), "f64");
    check_all::<f16>(layouts(), "f16");
    check_all::<bf16>(layouts(), "bf16");
}

/// Columns: registers, narrow matrices whose rows are fused by 16, rows taken together by 4.
#[test]
fn channel_counts_around_registers() {
    let channels = || (1..=20).chain(30..=35).chain(47..=49).chain(63..=65);
    let layouts = || channels().flat_map(|c| [layout(1, c, 1), layout(7, c, 1), layout(33, c, 1)]);
    check_all::<f32>(layouts(), "f32");
    check_all::<f64>(layouts(), "f64");
    check_all::<bf16>(layouts(), "bf16");
}

#[test]
fn outer_sizes_around_row_groups() {
    let layouts = || {
        (1..=36).flat_map(|outer| {
            [
                layout(outer, 3, 2),
                layout(outer, 37, 1),
                layout(outer, 2, 65),
            ]
        })
    };
    check_all::<f32>(layouts(), "f32");
    check_all::<f16>(layouts(), "f16");
}

/// A block of a row has 16 KiB (4096 `f32`), longer rows are cut into pieces; a partial has 64 Ki elements.
#[test]
fn long_runs_around_blocks_and_partials() {
    let inners = [4095, 4096, 4097, 8191, 8193, 12289, 65537, 140_000];
    check_all::<f32>(inners.into_iter().map(|inner| layout(1, 2, inner)), "f32");
    check_all::<f64>(
        inners.into_iter().take(6).map(|inner| layout(2, 1, inner)),
        "f64",
    );
    check_all::<f32>(
        [1300, 2047, 2049, 3136]
            .into_iter()
            .map(|inner| layout(7, 2, inner)),
        "rows per block",
    );
}

/// A group of columns is at most 1024 wide, its blocks have 128 KiB and at least 128 rows, its partials 256 KiB.
#[test]
fn columns_around_groups_blocks_and_partials() {
    check_all::<f32>(
        [1023, 1024, 1025, 1040, 2049]
            .into_iter()
            .map(|c| layout(3, c, 1)),
        "groups",
    );
    check_all::<f32>(
        [
            (3, 341, 3),
            (3, 342, 3),
            (2, 25, 49),
            (5, 130, 49),
            (2, 75, 15),
            (5, 130, 23),
        ]
        .into_iter()
        .map(|(o, c, i)| layout(o, c, i)),
        "groups of small inner",
    );
    check_all::<f32>(
        [511, 512, 513, 1025, 3000]
            .into_iter()
            .map(|outer| layout(outer, 64, 1)),
        "blocks",
    );
    check_all::<f32>(
        [127, 128, 129, 257]
            .into_iter()
            .map(|outer| layout(outer, 300, 1)),
        "blocks of wide rows",
    );
    check_all::<f32>(
        [(20_000, 3, 1), (9001, 2, 7), (70_001, 1, 1)]
            .into_iter()
            .map(|(o, c, i)| layout(o, c, i)),
        "narrow",
    );
}

/// Groups of several channels, each of few values.
#[test]
fn many_channels_of_little_data() {
    check_all::<f32>(
        [(1, 3000, 16), (1, 2500, 64), (2, 1500, 70), (1, 5000, 2)]
            .into_iter()
            .map(|(o, c, i)| layout(o, c, i)),
        "f32",
    );
}

#[test]
fn every_epilogue_in_both_directions() {
    for (activation, residual) in EPILOGUES {
        for layout in [
            layout(6, 5, 100),
            layout(37, 40, 1),
            layout(9, 5, 7),
            layout(300, 3, 1),
        ] {
            for isa in Isa::available() {
                isa.force(|| {
                    Case::<f32>::random(layout, activation, residual, 1).check(&format!("{isa:?}"));
                    Case::<bf16>::random(layout, activation, residual, 2)
                        .check(&format!("{isa:?}"));
                });
            }
        }
    }
}

#[test]
fn tensors_without_elements_have_statistics_of_zero() {
    for layout in [
        layout(0, 3, 5),
        layout(2, 3, 0),
        layout(0, 1, 4),
        layout(2, 0, 5),
        layout(0, 40, 1),
    ] {
        for (activation, residual) in EPILOGUES {
            let case = Case::<f32>::random(layout, activation, residual, 0);
            case.check("empty");
            let saved = case.train(InOut::in_place(&mut []));
            let statistics = case.batch(&saved);
            assert!(
                statistics
                    .mean
                    .iter()
                    .chain(statistics.variance)
                    .all(|&v| v == 0.0)
            );
            let expected = 1e-3f32.powf(-0.5);
            assert!(
                statistics
                    .inv_std
                    .iter()
                    .all(|s| (s - expected).abs() < 1e-4)
            );
        }
    }
}

#[test]
fn one_value_per_channel_gives_beta_and_no_gradient() {
    for layout in [layout(1, 40, 1), layout(1, 3, 1), layout(1, 1, 1)] {
        let case = Case::<f32>::random(layout, Activation::None, false, 3);
        let mut y = vec![f32::NAN; layout.elements()];
        let saved = case.train(InOut::new(&case.x, &mut y));
        let statistics = case.batch(&saved);
        assert_eq!((&y, statistics.mean), (&case.beta, &case.x[..]));
        assert!(statistics.variance.iter().all(|&v| v == 0.0));
        let mut x_grad = vec![f32::NAN; layout.elements()];
        let dy = InOut::new(&case.dy, &mut x_grad);
        case.backward(Saved::Batch(statistics), dy, None);
        assert!(x_grad.iter().all(|d| d.abs() < 1e-5), "{x_grad:?}");
        case.check("single");
    }
}

fn random_layout() -> impl Strategy<Value = Layout> {
    let small = (1usize..40, 1usize..40, 1usize..40);
    let long = (1usize..4, 1usize..5, 1usize..6000);
    let tall = (1usize..3000, 1usize..9, 1usize..4);
    let wide = (1usize..4, 1usize..3000, 1usize..5);
    prop_oneof![small, long, tall, wide].prop_map(|(o, c, i)| layout(o, c, i))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_problems_agree_with_the_reference(
        layout in random_layout(),
        epilogue in proptest::sample::select(&EPILOGUES[..]),
        isa in proptest::sample::select(Isa::available()),
        ty in 0..4,
        seed in any::<u64>(),
    ) {
        let (activation, residual) = epilogue;
        isa.force(|| match ty {
            0 => Case::<f32>::random(layout, activation, residual, seed).check("f32"),
            1 => Case::<f64>::random(layout, activation, residual, seed).check("f64"),
            2 => Case::<f16>::random(layout, activation, residual, seed).check("f16"),
            _ => Case::<bf16>::random(layout, activation, residual, seed).check("bf16"),
        });
    }
}
