//! The kernels where units of a plane exchange values directly, on an adapter that can do that.

use batchnorm_cube::*;
use cubecl::prelude::*;

use crate::device::{Random, client, client_with_planes, download, upload};
use crate::training::Training;
use crate::{ODD, check_cuts, check_odd_shapes};

const F32: Element = Element::F32;

/// Wide cubes, whose planes meet in shared memory.
#[test]
fn planes_of_a_gpu() {
    let Some(client) = client_with_planes() else {
        return;
    };
    check_cuts(&client, Strategy::Gpu);
    check_odd_shapes(&client, Strategy::Gpu, &ODD);
}

/// Cubes of one plane, which need no shared memory at all.
#[test]
fn cubes_of_one_plane() {
    let Some(client) = client_with_planes() else {
        return;
    };
    check_cuts(&client, Strategy::Software);
    check_odd_shapes(&client, Strategy::Software, &ODD);
}

/// All units of a cube hold the same statistics, to the last bit: equal inputs of a channel give equal outputs.
#[test]
fn units_agree() {
    for client in [client(), client_with_planes()].into_iter().flatten() {
        for strategy in [Strategy::Gpu, Strategy::Software] {
            for (outer, channels, inner) in [(64, 3, 49), (40, 9, 3), (200, 24, 1), (3, 2, 1_001)] {
                let layout = Layout::new(outer, channels, inner);
                let problem = Problem {
                    strategy,
                    ..Problem::new(layout, F32)
                };
                agree(&client, problem);
            }
        }
    }
}

fn agree(client: &Client, problem: Problem) {
    let layout = problem.layout;
    let len = layout.len();
    let mut random = Random(59);
    // One number of seven per element, so that every unit meets most of them.
    let [x_values, dy_values] = [(); 2].map(|()| random.normal(7, 0.5, 1.0));
    let choice: Vec<usize> = random
        .normal(len, 0.0, 1e3)
        .into_iter()
        .map(|v| v.abs() as usize % 7)
        .collect();
    let [x, dy] = [&x_values, &dy_values].map(|values| {
        let chosen: Vec<f64> = choice.iter().map(|k| values[*k]).collect();
        upload(client, F32, &chosen)
    });
    let step = Training::new(client, problem, &x, &dy);
    step.forward();
    step.backward();
    for (name, result) in [("y", &step.y), ("dx", &step.dx)] {
        let mut seen = vec![[None; 7]; layout.channels];
        for (i, got) in download(client, F32, result).into_iter().enumerate() {
            let channel = i / layout.inner % layout.channels;
            let first = *seen[channel][choice[i]].get_or_insert(got);
            assert_eq!(got, first, "{problem:?}: {name}[{i}]");
        }
    }
}
