//! Pointers with the rectangle that they are valid for.
//!
//! A tensor is a matrix of `outer` rows and `channels * inner` columns. A task works on a rectangle of it: some rows, or the columns of some
//! channels. [`Region`] holds the operands of a pass (input, gradient, output, ..) as pointers to the same rectangle of each tensor, and is
//! the proof that they are valid there: its fields are private, it starts from slices whose lengths are checked, and afterwards can only
//! shrink. Splitting consumes a region and returns disjoint parts, which is what slices cannot express (the columns of a channel are not
//! contiguous) and what makes it sound to give the parts to different threads.
//!
//! An input may be the same memory as an output, if both are the whole of the same slice ([`Stream::in_place`](crate::Stream::in_place)): a
//! pass reads a register of every operand before it writes the results to the same positions.

use std::marker::PhantomData;
use std::ops::Range;

use crate::Layout;

/// The operands of a pass: pointers that move together.
pub(crate) trait Operands: Copy {
    /// Moves all pointers by `n` elements.
    fn offset(self, n: usize) -> Self;
}

/// Operands that are only read, so that regions of them may be copied and overlap.
pub(crate) trait ReadOnly: Operands {}

/// Operands of which some are `R`, to be read.
///
/// # Safety
///
/// `reading` must return pointers of its argument only, moved nowhere.
pub(crate) unsafe trait Reads<R: ReadOnly>: Operands {
    fn reading(self) -> R;
}

/// A rectangle of a matrix: `rows` runs of `cols` elements that start `stride` elements apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Grid {
    pub rows: usize,
    pub cols: usize,
    pub stride: usize,
}

pub(crate) struct Region<'a, O> {
    operands: O,
    grid: Grid,
    _memory: PhantomData<&'a mut ()>,
}

impl<O: ReadOnly> Clone for Region<'_, O> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<O: ReadOnly> Copy for Region<'_, O> {}

// SAFETY: a region is a set of shared and exclusive slices (`Region::new`), of element types that are `Send` and `Sync`.
unsafe impl<O> Send for Region<'_, O> {}
// SAFETY: as above; through a shared region nothing is written.
unsafe impl<O> Sync for Region<'_, O> {}

impl<'a, O: Operands> Region<'a, O> {
    /// The region of a whole tensor.
    ///
    /// # Safety
    ///
    /// For the lifetime `'a` each pointer of `operands` must be valid for `layout.elements()` elements, those that a pass writes exclusively,
    /// except that an operand that is read may point to the same start as one that is written.
    pub(crate) unsafe fn new(operands: O, layout: &Layout) -> Self {
        let cols = layout.channels() * layout.inner();
        let grid = Grid {
            rows: layout.outer(),
            cols,
            stride: cols,
        };
        Self {
            operands,
            grid,
            _memory: PhantomData,
        }
    }

    pub(crate) fn grid(&self) -> Grid {
        self.grid
    }

    /// The pointers; valid at `row * stride + col` for every row and column of the grid.
    pub(crate) fn operands(&self) -> O {
        self.operands
    }

    /// Cuts at row `at`.
    pub(crate) fn split_rows(self, at: usize) -> (Self, Self) {
        let Grid { rows, cols, stride } = self.grid;
        assert!(at <= rows);
        (
            self.part(0, at, cols),
            self.part(at * stride, rows - at, cols),
        )
    }

    /// Cuts at column `at`.
    pub(crate) fn split_cols(self, at: usize) -> (Self, Self) {
        let Grid { rows, cols, .. } = self.grid;
        assert!(at <= cols);
        (self.part(0, rows, at), self.part(at, rows, cols - at))
    }

    /// A part of this region, borrowed from it.
    pub(crate) fn window(&mut self, rows: Range<usize>, cols: Range<usize>) -> Region<'_, O> {
        let start = self.checked_start(&rows, &cols);
        self.part(start, rows.len(), cols.len())
    }

    /// What this region reads. Nothing can be written to the region while that is in use.
    pub(crate) fn reading<R: ReadOnly>(&self) -> Region<'_, R>
    where
        O: Reads<R>,
    {
        Region {
            operands: self.operands.reading(),
            grid: self.grid,
            _memory: PhantomData,
        }
    }

    fn checked_start(&self, rows: &Range<usize>, cols: &Range<usize>) -> usize {
        assert!(rows.start <= rows.end && rows.end <= self.grid.rows);
        assert!(cols.start <= cols.end && cols.end <= self.grid.cols);
        rows.start * self.grid.stride + cols.start
    }

    fn part<'b>(&self, start: usize, rows: usize, cols: usize) -> Region<'b, O> {
        let grid = Grid {
            rows,
            cols,
            stride: self.grid.stride,
        };
        Region {
            operands: self.operands.offset(start),
            grid,
            _memory: PhantomData,
        }
    }
}

impl<'a, O: ReadOnly> Region<'a, O> {
    /// A part of this region.
    pub(crate) fn view(&self, rows: Range<usize>, cols: Range<usize>) -> Region<'a, O> {
        let start = self.checked_start(&rows, &cols);
        self.part(start, rows.len(), cols.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Positions instead of pointers: what a region would touch.
    #[derive(Clone, Copy)]
    struct At(usize);
    impl Operands for At {
        fn offset(self, n: usize) -> Self {
            At(self.0 + n)
        }
    }
    impl ReadOnly for At {}

    fn positions(region: &Region<'_, At>) -> Vec<usize> {
        let Grid { rows, cols, stride } = region.grid();
        (0..rows)
            .flat_map(|r| (0..cols).map(move |c| region.operands().0 + r * stride + c))
            .collect()
    }

    fn whole(layout: &Layout) -> Region<'static, At> {
        // SAFETY: nothing is dereferenced.
        unsafe { Region::new(At(0), layout) }
    }

    #[test]
    fn splits_are_disjoint_and_complete() {
        let layout = Layout::new(4, 3, 5).expect("small");
        for row in 0..=4 {
            for col in 0..=15 {
                let (top, bottom) = whole(&layout).split_rows(row);
                let (a, b) = top.split_cols(col);
                let mut all = [positions(&a), positions(&b), positions(&bottom)].concat();
                all.sort_unstable();
                assert_eq!(all, (0..60).collect::<Vec<_>>(), "at {row}, {col}");
            }
        }
    }

    #[test]
    fn a_window_is_where_it_says() {
        let layout = Layout::new(4, 3, 5).expect("small");
        let mut region = whole(&layout);
        assert_eq!(positions(&region.view(1..3, 5..7)), [20, 21, 35, 36]);
        assert_eq!(positions(&region.window(3..4, 14..15)), [59]);
    }

    #[test]
    #[should_panic(expected = "rows.end <= self.grid.rows")]
    fn a_window_cannot_grow() {
        whole(&Layout::new(4, 3, 5).expect("small")).view(3..5, 0..1);
    }
}
