//! The two statistics of a block of channels: its moments, and the two sums of the backward pass.

use std::marker::PhantomData;
use std::ops::Range;

use macerator::Simd;

use super::Op;
use super::columns::{Columns, Scratch, strips};
use super::leaf::{across_columns, along_rows};
use super::operands::{Read, ReadPair};
use super::passes::{Shifted, Squared, Sums};
use super::region::{Grid, Operands, ReadOnly, Region};
use super::tail::Tail;
use crate::plan::{Plan, Regime};
use crate::{Accum, Element, moments};

/// Values of a run that give a first idea of the mean.
const SAMPLE: usize = 64;
/// Values of a channel that do so across columns, where each of them is a row.
const COLUMN_SAMPLE: usize = 8;

/// A pair of numbers per channel that can be computed block by block.
pub(crate) trait Statistic<E: Element> {
    /// What it reads.
    type Operands: ReadOnly;

    /// The statistic of `n_a + n_b` values from those of two parts.
    fn merge(n_a: f64, a: [f64; 2], n_b: f64, b: [f64; 2]) -> [f64; 2];

    /// The statistic of one channel: `rows` runs of `len` values. `before` is the first number of the
    /// statistic of other values of the channel, if there are any.
    ///
    /// # Safety
    ///
    /// As for [`along_rows`]; there must be at least one value.
    unsafe fn of_rows<S: Simd>(
        o: Self::Operands,
        shape: (usize, usize, usize),
        params: [E::Accum; 3],
        before: Option<f64>,
    ) -> [f64; 2];

    /// The statistics of the channels of some columns, into `out`; `before` as for `of_rows`.
    ///
    /// # Safety
    ///
    /// As for [`across_columns`]; there must be at least one row.
    unsafe fn of_columns<S: Simd>(
        o: Self::Operands,
        grid: Grid,
        columns: Columns,
        params: [&[E::Accum]; 3],
        before: Option<&[f64]>,
        scratch: &mut Scratch<E::Accum>,
        out: [&mut [f64]; 2],
    );
}

/// `[mean, m2]`; takes no parameters.
pub(crate) struct MomentsOf;

/// `[sum of g, sum of g * (x - mean)]`; the parameters are mean, scale and shift.
pub(crate) struct SumsOf<T>(PhantomData<T>);

impl<E: Element> Statistic<E> for MomentsOf {
    type Operands = Read<E>;

    #[inline(always)]
    fn merge(n_a: f64, a: [f64; 2], n_b: f64, b: [f64; 2]) -> [f64; 2] {
        moments::merge(n_a, a, n_b, b)
    }

    #[inline(always)]
    unsafe fn of_rows<S: Simd>(
        o: Read<E>,
        shape: (usize, usize, usize),
        _params: [E::Accum; 3],
        before: Option<f64>,
    ) -> [f64; 2] {
        let (rows, stride, len) = shape;
        let n = (rows * len) as f64;
        let pilot = before.unwrap_or_else(|| {
            let sample = len.min(SAMPLE);
            // SAFETY: the caller vouches for a first run of `len` values, at least one.
            let (first, [sum, _]) = unsafe {
                let first = (*o.x).to_accum();
                let shape = (1, stride, sample);
                (
                    first,
                    along_rows::<S, E, Shifted, 1, 2, false>(o, shape, [first]),
                )
            };
            first.to_f64() + sum / sample as f64
        });
        let pilot = E::Accum::from_f64(pilot);
        // SAFETY: the caller vouches for `o`.
        let [sum, squares] = unsafe { along_rows::<S, E, Shifted, 1, 2, false>(o, shape, [pilot]) };
        let d = sum / n;
        let mean = pilot.to_f64() + d;
        if let Some(m2) = moments::about_pilot(squares, n, d) {
            return [mean, m2];
        }
        let rounded = E::Accum::from_f64(mean);
        // SAFETY: as above.
        let [m2] = unsafe { along_rows::<S, E, Squared, 1, 1, false>(o, shape, [rounded]) };
        if !m2.is_finite() {
            // SAFETY: as above.
            return unsafe { in_f64(o, rows, |row| row * stride..row * stride + len) };
        }
        [
            mean,
            moments::without_rounding(m2, n, mean, rounded.to_f64()),
        ]
    }

    #[inline(always)]
    unsafe fn of_columns<S: Simd>(
        o: Read<E>,
        grid: Grid,
        columns: Columns,
        _params: [&[E::Accum]; 3],
        before: Option<&[f64]>,
        scratch: &mut Scratch<E::Accum>,
        [means, m2s]: [&mut [f64]; 2],
    ) {
        let Grid { rows, cols, stride } = grid;
        let Columns {
            channels,
            inner,
            repeat,
        } = columns;
        let (channel_sums, [pilots, sums, squares]) = scratch.arrays::<3>(channels, cols);
        let per_row = inner * repeat;

        match before {
            Some(before) => means.copy_from_slice(before),
            None => {
                for (c, first) in means.iter_mut().enumerate() {
                    // SAFETY: the caller vouches for a first row, in which each channel has a column.
                    *first = unsafe { *o.x.add(c * inner) }.to_accum().to_f64();
                }
                columns.expand(means, pilots);
                let sample = rows.min(COLUMN_SAMPLE.div_ceil(per_row));
                sums.fill(E::Accum::default());
                squares.fill(E::Accum::default());
                // SAFETY: the caller vouches for `o`.
                unsafe {
                    let accumulators = [&mut *sums, &mut *squares];
                    across_columns::<S, E, Shifted, 1, 2, false>(
                        o,
                        (sample, stride, cols),
                        [pilots],
                        accumulators,
                    )
                };
                columns.fold(sums, channel_sums);
                for (pilot, sum) in means.iter_mut().zip(&*channel_sums) {
                    *pilot += sum / (sample * per_row) as f64;
                }
            }
        }
        for pilot in &mut *means {
            *pilot = E::Accum::from_f64(*pilot).to_f64();
        }
        columns.expand(means, pilots);
        sums.fill(E::Accum::default());
        squares.fill(E::Accum::default());
        // SAFETY: as above.
        unsafe {
            let accumulators = [&mut *sums, &mut *squares];
            across_columns::<S, E, Shifted, 1, 2, false>(
                o,
                (rows, stride, cols),
                [pilots],
                accumulators,
            )
        };
        columns.fold(sums, channel_sums);
        columns.fold(squares, m2s);
        let n = (rows * per_row) as f64;
        let mut inaccurate = false;
        for ((mean, m2), sum) in means.iter_mut().zip(&mut *m2s).zip(&*channel_sums) {
            let d = sum / n;
            *mean += d;
            *m2 = moments::about_pilot(*m2, n, d).unwrap_or(f64::NAN);
            inaccurate |= m2.is_nan();
        }
        if !inaccurate {
            return;
        }

        columns.expand(means, pilots);
        squares.fill(E::Accum::default());
        // SAFETY: as above.
        unsafe {
            across_columns::<S, E, Squared, 1, 1, false>(
                o,
                (rows, stride, cols),
                [pilots],
                [&mut *squares],
            )
        };
        columns.fold(squares, channel_sums);
        for (c, (mean, m2)) in means.iter_mut().zip(&mut *m2s).enumerate() {
            // What becomes of a channel is not to depend on its neighbours.
            if !m2.is_nan() {
                continue;
            }
            let rounded = E::Accum::from_f64(*mean).to_f64();
            *m2 = moments::without_rounding(channel_sums[c], n, *mean, rounded);
            if !m2.is_finite() {
                let run = |i: usize| {
                    let start = i / repeat * stride + (i % repeat * channels + c) * inner;
                    start..start + inner
                };
                // SAFETY: these are the columns of channel `c`, in all rows.
                [*mean, *m2] = unsafe { in_f64(o, rows * repeat, run) };
            }
        }
    }
}

/// The moments of `runs` runs, one value after the other in `f64`: for what overflows otherwise, and for channels that are not finite.
///
/// # Safety
///
/// `o` must be valid at the positions of all runs; there must be at least one.
#[cold]
#[inline(never)]
unsafe fn in_f64<E: Element>(
    o: Read<E>,
    runs: usize,
    run: impl Fn(usize) -> Range<usize>,
) -> [f64; 2] {
    let values = || {
        (0..runs)
            .flat_map(&run)
            // SAFETY: the caller vouches for the positions.
            .map(|at| unsafe { *o.x.add(at) }.to_accum().to_f64())
    };
    let n = (0..runs).map(|i| run(i).len()).sum::<usize>() as f64;
    let mean = values().map(|x| x / n).sum::<f64>();
    if !mean.is_finite() {
        return [mean, f64::NAN];
    }
    [mean, values().map(|x| (x - mean) * (x - mean)).sum()]
}

impl<E: Element, T: Tail<E>> Statistic<E> for SumsOf<T> {
    type Operands = ReadPair<E, T>;

    #[inline(always)]
    fn merge(_n_a: f64, a: [f64; 2], _n_b: f64, b: [f64; 2]) -> [f64; 2] {
        [a[0] + b[0], a[1] + b[1]]
    }

    #[inline(always)]
    unsafe fn of_rows<S: Simd>(
        o: Self::Operands,
        shape: (usize, usize, usize),
        params: [E::Accum; 3],
        _before: Option<f64>,
    ) -> [f64; 2] {
        // SAFETY: the caller vouches for `o`.
        unsafe { along_rows::<S, E, Sums<T>, 3, 2, false>(o, shape, params) }
    }

    #[inline(always)]
    unsafe fn of_columns<S: Simd>(
        o: Self::Operands,
        grid: Grid,
        columns: Columns,
        params: [&[E::Accum]; 3],
        _before: Option<&[f64]>,
        scratch: &mut Scratch<E::Accum>,
        out: [&mut [f64]; 2],
    ) {
        let Grid { rows, cols, stride } = grid;
        let (_, [sums, products, expanded @ ..]) = scratch.arrays::<5>(columns.channels, cols);
        sums.fill(E::Accum::default());
        products.fill(E::Accum::default());
        let mut arrays = params;
        if !columns.are_channels() {
            for (array, expanded) in arrays.iter_mut().zip(expanded) {
                columns.expand(array, expanded);
                *array = expanded;
            }
        }
        // SAFETY: the caller vouches for `o`.
        unsafe {
            across_columns::<S, E, Sums<T>, 3, 2, false>(
                o,
                (rows, stride, cols),
                arrays,
                [&mut *sums, &mut *products],
            )
        };
        for (out, sums) in out.into_iter().zip([sums, products]) {
            columns.fold(sums, out);
        }
    }
}

/// One chunk of the statistics of a region that consists of `out[0].len()` channels, all rows of them.
pub(crate) struct Reduce<'a, E: Element, St: Statistic<E>> {
    pub region: Region<'a, St::Operands>,
    pub plan: &'a Plan,
    pub chunk: usize,
    pub params: [&'a [E::Accum]; 3],
    pub scratch: &'a mut Scratch<E::Accum>,
    pub out: [&'a mut [f64]; 2],
}

impl<E: Element, St: Statistic<E>> Op for Reduce<'_, E, St> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self {
            region,
            plan,
            chunk,
            params,
            scratch,
            out: [first, second],
        } = self;
        let channels = first.len();
        assert!(second.len() == channels && params.iter().all(|p| p.len() == channels));
        let inner = plan.inner();
        assert_eq!(region.grid().cols, channels * inner);
        if channels == 0 {
            return;
        }
        match plan.regime() {
            Regime::Rows => {
                for c in 0..channels {
                    let params = [params[0][c], params[1][c], params[2][c]];
                    let mut count = 0.0;
                    for block in plan.blocks(chunk) {
                        let (rows, cols) = plan.block(block);
                        let part = region.view(rows, c * inner + cols.start..c * inner + cols.end);
                        let Grid { rows, cols, stride } = part.grid();
                        // SAFETY: a region's operands are valid in its grid, and blocks are not empty.
                        let block = unsafe {
                            let before = (count > 0.0).then_some(first[c]);
                            St::of_rows::<S>(part.operands(), (rows, stride, cols), params, before)
                        };
                        let n = (rows * cols) as f64;
                        [first[c], second[c]] = St::merge(count, [first[c], second[c]], n, block);
                        count += n;
                    }
                }
            }
            Regime::Columns => {
                let mut part = [vec![0.0; channels], vec![0.0; channels]];
                let mut count = 0.0;
                for block in plan.blocks(chunk) {
                    let (rows, _) = plan.block(block);
                    let view = region.view(rows, 0..channels * inner);
                    for (offset, grid, columns) in
                        strips(view.grid(), channels).into_iter().flatten()
                    {
                        let [a, b] = &mut part;
                        // SAFETY: strips are parts of the grid that they are made from, and not empty.
                        unsafe {
                            St::of_columns::<S>(
                                view.operands().offset(offset),
                                grid,
                                columns,
                                params,
                                (count > 0.0).then_some(&*first),
                                scratch,
                                [a, b],
                            )
                        };
                        let n = (grid.rows * columns.inner * columns.repeat) as f64;
                        let totals = first.iter_mut().zip(second.iter_mut());
                        for ((first, second), (a, b)) in totals.zip(part[0].iter().zip(&part[1])) {
                            [*first, *second] = St::merge(count, [*first, *second], n, [*a, *b]);
                        }
                        count += n;
                    }
                }
            }
        }
    }
}
