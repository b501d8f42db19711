//! Matrices whose columns belong to different channels: arrays per column, and how they relate to channels.

use super::leaf::padded;
use super::region::Grid;
use crate::Accum;

/// Narrower matrices are read as if 16 of their rows were one, because registers would be mostly empty.
const NARROW: usize = 32;
const ROWS_FUSED: usize = 16;

/// Arrays of a task, kept from block to block.
pub(crate) struct Scratch<A> {
    channels: Vec<f64>,
    columns: Vec<A>,
}

impl<A: Accum> Scratch<A> {
    pub(crate) fn new() -> Self {
        Self {
            channels: Vec::new(),
            columns: Vec::new(),
        }
    }

    /// An array of `channels` values and `N` arrays of `padded(cols)`, with whatever they held.
    #[inline(always)]
    pub(super) fn arrays<const N: usize>(
        &mut self,
        channels: usize,
        cols: usize,
    ) -> (&mut [f64], [&mut [A]; N]) {
        let len = padded(cols);
        if self.columns.len() < N * len {
            self.columns.resize(N * len, A::default());
        }
        if self.channels.len() < channels {
            self.channels.resize(channels, 0.0);
        }
        let mut arrays = self.columns.chunks_exact_mut(len);
        (
            &mut self.channels[..channels],
            std::array::from_fn(|_| arrays.next().expect("resized to N arrays")),
        )
    }
}

/// How the columns of a matrix belong to channels: `repeat` times all channels in turn, `inner` columns each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Columns {
    pub channels: usize,
    pub inner: usize,
    pub repeat: usize,
}

impl Columns {
    /// Whether there is one column per channel.
    #[inline(always)]
    pub(super) fn are_channels(&self) -> bool {
        self.inner == 1 && self.repeat == 1
    }

    /// Copies a value per channel, rounded to the type of the columns, to all of its columns.
    #[inline(always)]
    pub(super) fn expand<V: Accum, A: Accum>(&self, values: &[V], columns: &mut [A]) {
        let once = self.channels * self.inner;
        match self.inner {
            1 => runs::<V, A, 1>(values, &mut columns[..once]),
            2 => runs::<V, A, 2>(values, &mut columns[..once]),
            3 => runs::<V, A, 3>(values, &mut columns[..once]),
            4 => runs::<V, A, 4>(values, &mut columns[..once]),
            inner => {
                for (run, value) in columns[..once].chunks_exact_mut(inner).zip(values) {
                    run.fill(A::from_f64(value.to_f64()));
                }
            }
        }
        for copy in 1..self.repeat {
            columns.copy_within(..once, copy * once);
        }
    }

    /// Sets `sums` to the sum of the columns of each channel.
    #[inline(always)]
    pub(super) fn fold<A: Accum>(&self, columns: &[A], sums: &mut [f64]) {
        if self.are_channels() {
            for (sum, column) in sums.iter_mut().zip(columns) {
                *sum = column.to_f64();
            }
            return;
        }
        sums.fill(0.0);
        let once = self.channels * self.inner;
        for copy in columns[..once * self.repeat].chunks_exact(once) {
            for (sum, run) in sums.iter_mut().zip(copy.chunks_exact(self.inner)) {
                *sum += total(run);
            }
        }
    }
}

/// Runs of a known length, which take no loop each.
#[inline(always)]
fn runs<V: Accum, A: Accum, const N: usize>(values: &[V], columns: &mut [A]) {
    for (run, value) in columns.as_chunks_mut::<N>().0.iter_mut().zip(values) {
        *run = [A::from_f64(value.to_f64()); N];
    }
}

/// The sum of a short run: in eight parts, for one after the other would wait for each addition.
#[inline(always)]
fn total<A: Accum>(run: &[A]) -> f64 {
    if run.len() < 16 {
        return run.iter().map(|v| v.to_f64()).sum();
    }
    let (eights, rest) = run.as_chunks::<8>();
    let mut parts = [0.0; 8];
    for eight in eights {
        for (part, value) in parts.iter_mut().zip(eight) {
            *part += value.to_f64();
        }
    }
    for (part, value) in parts.iter_mut().zip(rest) {
        *part += value.to_f64();
    }
    let [a, b, c, d, e, f, g, h] = parts;
    ((a + b) + (c + d)) + ((e + f) + (g + h))
}

/// Some rows of the columns of `channels` channels, as at most two matrices that are wide enough to fill registers: each with the offset of
/// its first element.
#[inline(always)]
pub(super) fn strips(grid: Grid, channels: usize) -> [Option<(usize, Grid, Columns)>; 2] {
    let Grid { rows, cols, stride } = grid;
    let inner = cols / channels;
    if cols >= NARROW || stride != cols || rows < 2 {
        return [
            Some((
                0,
                grid,
                Columns {
                    channels,
                    inner,
                    repeat: 1,
                },
            )),
            None,
        ];
    }
    let matrix = |offset: usize, rows: usize, repeat: usize| {
        let wide = Grid {
            rows,
            cols: repeat * cols,
            stride: repeat * cols,
        };
        (rows * repeat > 0).then_some((
            offset,
            wide,
            Columns {
                channels,
                inner,
                repeat,
            },
        ))
    };
    let (fused, rest) = (rows / ROWS_FUSED, rows % ROWS_FUSED);
    [
        matrix(0, fused, ROWS_FUSED),
        matrix(fused * ROWS_FUSED * cols, 1, rest),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strips_cover_every_element_once() {
        for rows in 1..70 {
            for cols in [1, 2, 3, 12, 31, 32, 33] {
                for stride in [cols, cols + 5] {
                    let mut seen = vec![0; rows * stride];
                    for (offset, grid, columns) in strips(Grid { rows, cols, stride }, cols)
                        .into_iter()
                        .flatten()
                    {
                        assert_eq!(
                            (columns.channels * columns.repeat, columns.inner),
                            (grid.cols, 1)
                        );
                        for row in 0..grid.rows {
                            for col in 0..grid.cols {
                                let at = offset + row * grid.stride + col;
                                assert_eq!(at % stride, col % cols, "the column keeps its channel");
                                seen[at] += 1;
                            }
                        }
                    }
                    for (at, &count) in seen.iter().enumerate() {
                        assert_eq!(
                            count,
                            usize::from(at % stride < cols),
                            "{rows} x {cols}, stride {stride}, at {at}"
                        );
                    }
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
}
