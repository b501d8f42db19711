//! Parts of a tile are where they say, disjoint, and never outside of it.

use super::*;

/// The positions that a tile would touch, as its first input shows them.
fn positions(tile: &Tile<'_, f32>, start: *const f32) -> Vec<usize> {
    let Grid { rows, cols, stride } = tile.grid;
    let first = (tile.inputs[0].addr() - start.addr()) / size_of::<f32>();
    (0..rows)
        .flat_map(|r| (0..cols).map(move |c| first + r * stride + c))
        .collect()
}

#[test]
fn splits_are_disjoint_and_complete() {
    let layout = Layout::new(4, 3, 5).expect("small");
    let x = [0.0f32; 60];
    for row in 0..=4 {
        for col in 0..=15 {
            let (top, bottom) = Tile::new(&layout).read(&x).split_rows(row);
            let (a, b) = top.split_cols(col);
            let mut all = [a, b, bottom].map(|t| positions(&t, x.as_ptr())).concat();
            all.sort_unstable();
            assert_eq!(all, (0..60).collect::<Vec<_>>(), "at {row}, {col}");
        }
    }
}

#[test]
fn a_window_is_where_it_says() {
    let layout = Layout::new(4, 3, 5).expect("small");
    let x = [0.0f32; 60];
    let mut tile = Tile::new(&layout).read(&x);
    let view = tile.view(1..3, 5..7);
    assert_eq!(positions(&view, x.as_ptr()), [20, 21, 35, 36]);
    let window = tile.window(3..4, 14..15);
    assert_eq!(positions(&window, x.as_ptr()), [59]);
}

#[test]
#[should_panic(expected = "rows.end <= self.grid.rows")]
fn a_window_cannot_grow() {
    let layout = Layout::new(4, 3, 5).expect("small");
    let _ = Tile::new(&layout).read(&[0.0f32; 60]).view(3..5, 0..1);
}

#[test]
#[should_panic(expected = "assertion")]
fn a_tensor_of_another_size_is_no_part_of_a_tile() {
    let layout = Layout::new(4, 3, 5).expect("small");
    let _ = Tile::new(&layout).read(&[0.0f32; 59]);
}
