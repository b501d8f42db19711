//! Which column belongs to which channel.

use super::*;
use crate::Layout;

#[test]
fn strips_cover_every_row_once_and_a_column_keeps_its_channel() {
    let x = [0.0f32; 70 * 37];
    for rows in 1..70 {
        for cols in [1, 2, 3, 12, 31, 32, 33] {
            for wider in [0, 4] {
                let layout = Layout::new(rows, cols + wider, 1).expect("small");
                let tile = Tile::new(&layout).read(&x[..layout.elements()]);
                let mut covered = 0;
                for (tile, columns) in strips(tile.view(0..rows, 0..cols), cols)
                    .into_iter()
                    .flatten()
                {
                    assert_eq!(columns.channels * columns.repeat, tile.grid().cols);
                    assert!(wider == 0 || columns.repeat == 1);
                    covered += tile.grid().rows * columns.repeat;
                }
                assert_eq!(covered, rows);
            }
        }
    }
}

#[test]
fn expanding_and_folding_agree_on_who_owns_a_column() {
    let columns = Columns {
        channels: 3,
        inner: 2,
        repeat: 2,
    };
    let mut expanded = [0.0f32; 12];
    columns.expand(&[1.0, 2.0, 3.0], &mut expanded);
    assert_eq!(expanded, [1., 1., 2., 2., 3., 3., 1., 1., 2., 2., 3., 3.]);
    let mut sums = [0.0; 3];
    columns.fold(&expanded, &mut sums);
    assert_eq!(sums, [4.0, 8.0, 12.0]);
}
