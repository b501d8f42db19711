//! Tensors with gaps and in other orders of memory are read and written in place; nothing is written between their values.

use batchnorm_cube::*;

use crate::case::{Case, check_train};
use crate::device::client;
use crate::positions::Positions;

fn check(layout: Layout) {
    let Some(client) = client() else { return };
    for strategy in [Strategy::Software, Strategy::Gpu] {
        let case = Case {
            layout,
            strategy,
            ..Case::new(1, 1, 1)
        };
        let activated = Case {
            activation: Activation::Relu,
            residual: true,
            in_place: true,
            ..case
        };
        check_train(&client, activated);
        for positions in Positions::ALL {
            check_train(&client, Case { positions, ..case });
        }
    }
}

/// As CUDA allocates them: a row of 50, 96 or 7 values takes 64, 128 or 8.
#[test]
fn rows_with_a_pitch() {
    check(Layout::new(32, 50, 1).with_pitch(64));
    check(Layout::new(2 * 7 * 7, 96, 1).with_pitch(128));
    check(Layout::new(20_000, 3, 1).with_pitch(4));
    check(Layout::new(140_000, 3, 1).with_pitch(4));
    check(Layout::new(64, 5, 7).with_pitch(40));
    check(Layout::new(9, 33, 1).with_pitch(101));
    check(Layout::new(6, 1, 12).with_pitch(16));
    check(Layout::new(70_000, 1, 1).with_pitch(3));
}

/// `[8, 6, 50]` whose last dimension takes 64, and a slice of every dimension of `[9, 8, 60]`.
#[test]
fn gaps_between_channels() {
    for (shape, strides) in [
        ([8, 6, 50], [6 * 64, 64, 1]),
        ([5, 6, 44], [8 * 60, 60, 1]),
        ([700, 3, 101], [5 * 128, 128, 1]),
        ([40, 6, 1], [16, 2, 1]),
    ] {
        check(Layout::from_strides(&shape, &strides, 1).unwrap());
    }
}

/// Permuted views of dense memory: batches of pictures as N, H, W, C, as C, N, H, W and as W, N, C, H.
#[test]
fn orders_of_memory() {
    let [n, c, h, w] = [4, 12, 5, 6];
    for strides in [
        [h * w * c, 1, w * c, c],
        [h * w, n * h * w, w, 1],
        [c * h, h, 1, n * c * h],
    ] {
        check(Layout::from_strides(&[n, c, h, w], &strides, 1).unwrap());
    }
}
