//! The two loops that drive every pass.
//!
//! [`along_rows`] works on one channel: its runs of memory are long, the channel's parameters are constants and the accumulators stay in
//! registers. [`across_columns`] works on neighbouring columns of different channels: parameters and accumulators are arrays with one value per
//! column, and up to four rows are taken together so that they are loaded less often.
//!
//! Rows need not be a multiple of the register. Their last register then ends with the row and overlaps the one before it:
//!
//! ```text
//!   row of 22, register of 8     |0......7|8.....15|  16..21
//!   last register                               |14.....21|     lanes 14 and 15 are not counted twice
//! ```
//!
//! It is loaded before anything of the row is stored, so that this also holds where the output overwrites the input: the overlap is written
//! twice, with the same values. Only a run shorter than one register is copied through a buffer.
//!
//! Stores past the caches (`PAST`, for passes without accumulators) must be aligned, and a line that is written past the caches should be
//! written in no other way (an overlap there made `[32, 512, 28, 28]` slower by 40 %). So the lanes before the first aligned address and those
//! behind the last whole register are stored one by one.

use macerator::{Scalar, Simd};

use super::passes::{Pass, Reg};
use super::{Lane, MAX_LANES};
use crate::{Accum, Element};

/// Registers in flight along a row: enough to hide the latency of an addition.
const ROW_UNROLL: usize = 4;
/// Rows taken together across columns.
const COLUMN_UNROLL: usize = 4;
/// Rows from this size on are taken together only in so far as few places of memory are touched at once ([`Pass::WIDE_ROWS`]): 4 read, or 1
/// read and written. Places that are a power of two apart contend for the same lines of the first-level cache, and registers that cross lines
/// take two each (at `[4096, 1024]` inference is 1.6 times as fast row by row). Of shorter rows several are in one place.
const WIDE_ROW_BYTES: usize = 1 << 10;

/// The hardware recognises a run only after some cache lines, and begins anew on each memory page. For runs of up to two pages it pays to ask for
/// the next one while working on this one: measured 5 to 20 % on `[8, 256, 28, 28]` and `[32, 512, 28, 28]`, nothing on longer runs.
const PREFETCHED_ROW_BYTES: usize = 8 << 10;

/// `rows` runs of `len` elements, `stride` apart: the accumulators' totals.
///
/// # Safety
///
/// `o` must be valid at `row * stride + i` for all `row < rows` and `i < len`.
#[inline(always)]
pub(crate) unsafe fn along_rows<
    S: Simd,
    E: Element,
    K: Pass<E, P, A>,
    const P: usize,
    const A: usize,
    const PAST: bool,
>(
    o: K::Operands,
    (rows, stride, len): (usize, usize, usize),
    params: [E::Accum; P],
) -> [f64; A] {
    let lanes = E::Accum::lanes::<S>();
    let zero = E::Accum::default().splat::<S>();
    let mut splats = [zero; P];
    for i in 0..P {
        splats[i] = params[i].splat();
    }
    let mut acc = [[zero; A]; ROW_UNROLL];

    // The lanes of the last register that no other has counted.
    let (last, new) = if len < lanes {
        (0, 0..len)
    } else {
        (len - lanes, lanes - len % lanes..lanes)
    };
    // SAFETY: `POSITIONS` is as long as the longest register.
    let positions = unsafe { E::Accum::vload_unaligned::<S>(E::Accum::POSITIONS.as_ptr()) };
    let bound = |n: usize| E::Accum::from_f64(n as f64).splat::<S>();
    let (from, to) = (bound(new.start), bound(new.end));

    // A pass that writes asks for its output alone, which needs no reading where it goes past the caches.
    let prefetch = !PAST && rows > 1 && len * size_of::<E>() <= PREFETCHED_ROW_BYTES;
    for row in 0..rows {
        let start = row * stride;
        let head = head::<S, E, K, P, A, PAST>(o, start).min(len);
        let whole = len - (len - head) % lanes;
        // SAFETY: every position below is at most `start + len - lanes`, or `start` with `len` lanes where the run is shorter than a register.
        // Those of the loops are multiples of a register behind the head.
        unsafe {
            let tail = match (len == whole, PAST, len < lanes) {
                (true, ..) => None,
                (_, true, _) => Some(K::load::<S, false>(o, start + whole, len - whole)),
                (.., true) => Some(K::load::<S, false>(o, start, len)),
                (.., false) => Some(K::load::<S, true>(o, start + last, lanes)),
            };
            if head > 0 {
                let loaded = K::load::<S, false>(o, start, head);
                K::finish::<S, false>(o, start, head, loaded, &splats, &mut acc[0]);
            }
            let mut i = head;
            while i + ROW_UNROLL * lanes <= whole {
                if prefetch {
                    for u in 0..ROW_UNROLL {
                        K::prefetch(o, start + stride + i + u * lanes);
                    }
                }
                let mut loaded = [K::load::<S, true>(o, start + i, lanes); ROW_UNROLL];
                for (u, loaded) in loaded.iter_mut().enumerate().skip(1) {
                    *loaded = K::load::<S, true>(o, start + i + u * lanes, lanes);
                }
                for u in 0..ROW_UNROLL {
                    let at = start + i + u * lanes;
                    match PAST {
                        true => K::finish_aligned::<S>(o, at, loaded[u], &splats, &mut acc[u]),
                        false => {
                            K::finish::<S, true>(o, at, lanes, loaded[u], &splats, &mut acc[u])
                        }
                    }
                }
                i += ROW_UNROLL * lanes;
            }
            while i < whole {
                let loaded = K::load::<S, true>(o, start + i, lanes);
                match PAST {
                    true => K::finish_aligned::<S>(o, start + i, loaded, &splats, &mut acc[0]),
                    false => {
                        K::finish::<S, true>(o, start + i, lanes, loaded, &splats, &mut acc[0])
                    }
                }
                i += lanes;
            }
            if let Some(loaded) = tail {
                let mut extra = [zero; A];
                if PAST {
                    let (at, n) = (start + whole, len - whole);
                    K::finish::<S, false>(o, at, n, loaded, &splats, &mut extra);
                } else if len < lanes {
                    K::finish::<S, false>(o, start, len, loaded, &splats, &mut extra);
                } else {
                    K::finish::<S, true>(o, start + last, lanes, loaded, &splats, &mut extra);
                }
                for a in 0..A {
                    let counted = positions.ge(from).and(positions.lt(to));
                    acc[1][a] += counted.select(extra[a], zero);
                }
            }
        }
    }
    let mut totals = [0.0; A];
    for a in 0..A {
        totals[a] = ((acc[0][a] + acc[1][a]) + (acc[2][a] + acc[3][a]))
            .reduce_add()
            .to_f64();
    }
    totals
}

/// The number of elements from position `at` to the first that may be stored past the caches, less than a register's.
#[inline(always)]
fn head<S: Simd, E: Element, K: Pass<E, P, A>, const P: usize, const A: usize, const PAST: bool>(
    o: K::Operands,
    at: usize,
) -> usize {
    match K::past_caches(o) {
        Some(address) if PAST => {
            let past = (address + at * size_of::<E>()) % size_of::<Reg<S, E>>();
            (size_of::<Reg<S, E>>() - past) % size_of::<Reg<S, E>>() / size_of::<E>()
        }
        _ => 0,
    }
}

/// `rows` runs of `cols` columns, `stride` apart, each column with parameters and accumulators of its own: adds to `acc[..][..cols]`.
///
/// Each of `acc` needs [`padded`]`(cols)` values, those behind `cols` are scratch.
///
/// # Safety
///
/// `o` must be valid at `row * stride + i` for all `row < rows` and `i < cols`.
#[inline(always)]
pub(crate) unsafe fn across_columns<
    S: Simd,
    E: Element,
    K: Pass<E, P, A>,
    const P: usize,
    const A: usize,
    const PAST: bool,
>(
    o: K::Operands,
    (rows, stride, cols): (usize, usize, usize),
    params: [&[E::Accum]; P],
    mut acc: [&mut [E::Accum]; A],
) {
    assert!(params.iter().all(|p| p.len() >= cols) && acc.iter().all(|a| a.len() >= padded(cols)));
    let mut param_ptrs = [std::ptr::null(); P];
    for i in 0..P {
        param_ptrs[i] = params[i].as_ptr();
    }
    let mut acc_ptrs = [std::ptr::null_mut(); A];
    for a in 0..A {
        acc_ptrs[a] = acc[a].as_mut_ptr();
    }
    // The rows of a sweep are aligned alike.
    assert!(!PAST || (stride * size_of::<E>()).is_multiple_of(size_of::<Reg<S, E>>()));
    let wide = !PAST && cols * size_of::<E>() >= WIDE_ROW_BYTES;
    let together = if wide { K::WIDE_ROWS } else { COLUMN_UNROLL };
    let mut row = 0;
    macro_rules! sweeps {
        ($unroll: expr) => {
            while rows - row >= $unroll {
                // SAFETY: the rows are below `rows`, and the assertion is what `sweep` asks of the arrays.
                unsafe {
                    sweep::<S, E, K, P, A, { $unroll }, PAST>(
                        o,
                        row * stride,
                        stride,
                        cols,
                        param_ptrs,
                        acc_ptrs,
                    )
                };
                row += $unroll;
            }
        };
    }
    match together {
        1 => {}
        2 => sweeps!(2),
        _ => sweeps!(COLUMN_UNROLL),
    }
    sweeps!(1);
    // The overlapping last register has accumulated behind the others: its new lanes belong right after those.
    let lanes = E::Accum::lanes::<S>();
    let rest = cols % lanes;
    if rest > 0 && cols > lanes {
        for acc in &mut acc {
            let whole = cols - rest;
            acc.copy_within(whole + lanes - rest..whole + lanes, whole);
        }
    }
}

/// The length of an array of column accumulators.
#[inline(always)]
pub(crate) fn padded(cols: usize) -> usize {
    cols + MAX_LANES
}

/// Takes `U` rows together across all columns.
///
/// # Safety
///
/// `o` must be valid at `start + u * stride + i` for all `u < U` and `i < cols`, `params` for reading `cols` values and `acc` for reading
/// and writing `padded(cols)`.
#[inline(always)]
unsafe fn sweep<
    S: Simd,
    E: Element,
    K: Pass<E, P, A>,
    const P: usize,
    const A: usize,
    const U: usize,
    const PAST: bool,
>(
    o: K::Operands,
    start: usize,
    stride: usize,
    cols: usize,
    params: [*const E::Accum; P],
    acc: [*mut E::Accum; A],
) {
    let lanes = E::Accum::lanes::<S>();
    let head = head::<S, E, K, P, A, PAST>(o, start).min(cols);
    let whole = cols - (cols - head) % lanes;
    // SAFETY: whole registers end at most at `cols`; the last one either begins at `cols - lanes`, or there is but one, of `cols` lanes. Its
    // accumulators lie at `whole..whole + lanes`, below `padded(cols)`. Those of the loop are multiples of a register behind the head, in
    // every row (`across_columns` has seen to the stride).
    unsafe {
        let (narrow, last) = (cols < lanes, cols.saturating_sub(lanes));
        let tail = if cols == whole {
            None
        } else if PAST {
            let at = start + whole;
            Some(load_rows::<S, E, K, P, A, U, false>(
                o,
                at,
                stride,
                cols - whole,
            ))
        } else if narrow {
            Some(load_rows::<S, E, K, P, A, U, false>(o, start, stride, cols))
        } else {
            Some(load_rows::<S, E, K, P, A, U, true>(
                o,
                start + last,
                stride,
                lanes,
            ))
        };
        if head > 0 {
            let loaded = load_rows::<S, E, K, P, A, U, false>(o, start, stride, head);
            let p = load_params::<S, E, P, false>(params, 0, head);
            let at = (start, stride, head);
            finish_rows::<S, E, K, P, A, U, false, false>(o, at, loaded, &p, acc, 0);
        }
        let mut i = head;
        while i < whole {
            let loaded = load_rows::<S, E, K, P, A, U, true>(o, start + i, stride, lanes);
            let p = load_params::<S, E, P, true>(params, i, lanes);
            let at = (start + i, stride, lanes);
            finish_rows::<S, E, K, P, A, U, true, PAST>(o, at, loaded, &p, acc, i);
            i += lanes;
        }
        if let Some(loaded) = tail {
            if PAST {
                let p = load_params::<S, E, P, false>(params, whole, cols - whole);
                let at = (start + whole, stride, cols - whole);
                finish_rows::<S, E, K, P, A, U, false, false>(o, at, loaded, &p, acc, whole);
            } else if narrow {
                let p = load_params::<S, E, P, false>(params, 0, cols);
                finish_rows::<S, E, K, P, A, U, false, false>(
                    o,
                    (start, stride, cols),
                    loaded,
                    &p,
                    acc,
                    0,
                );
            } else {
                let p = load_params::<S, E, P, true>(params, last, lanes);
                finish_rows::<S, E, K, P, A, U, true, false>(
                    o,
                    (start + last, stride, lanes),
                    loaded,
                    &p,
                    acc,
                    whole,
                );
            }
        }
    }
}

/// # Safety
///
/// As for [`Pass::load`], at `U` positions.
#[inline(always)]
unsafe fn load_rows<
    S: Simd,
    E: Element,
    K: Pass<E, P, A>,
    const P: usize,
    const A: usize,
    const U: usize,
    const FULL: bool,
>(
    o: K::Operands,
    at: usize,
    stride: usize,
    n: usize,
) -> [K::Loaded<S>; U] {
    // SAFETY: the caller vouches for all positions.
    unsafe {
        let mut loaded = [K::load::<S, FULL>(o, at, n); U];
        for (u, loaded) in loaded.iter_mut().enumerate().skip(1) {
            *loaded = K::load::<S, FULL>(o, at + u * stride, n);
        }
        loaded
    }
}

/// # Safety
///
/// `params` must be valid for reading `n` values from `col`.
#[inline(always)]
unsafe fn load_params<S: Simd, E: Element, const P: usize, const FULL: bool>(
    params: [*const E::Accum; P],
    col: usize,
    n: usize,
) -> [Reg<S, E>; P] {
    let mut loaded = [E::Accum::default().splat::<S>(); P];
    for i in 0..P {
        // SAFETY: the caller vouches for `col`.
        loaded[i] = unsafe { E::Accum::load::<S, FULL>(params[i].add(col), n) };
    }
    loaded
}

/// # Safety
///
/// As for [`Pass::finish`], or [`Pass::finish_aligned`] if `PAST`, at `U` positions; `acc` must be valid for a register at `slot`.
#[inline(always)]
unsafe fn finish_rows<
    S: Simd,
    E: Element,
    K: Pass<E, P, A>,
    const P: usize,
    const A: usize,
    const U: usize,
    const FULL: bool,
    const PAST: bool,
>(
    o: K::Operands,
    (at, stride, n): (usize, usize, usize),
    loaded: [K::Loaded<S>; U],
    params: &[Reg<S, E>; P],
    acc: [*mut E::Accum; A],
    slot: usize,
) {
    // SAFETY: the caller vouches for the positions and for `slot`.
    unsafe {
        let mut sums = [E::Accum::default().splat::<S>(); A];
        for a in 0..A {
            sums[a] = E::Accum::vload_unaligned(acc[a].add(slot));
        }
        for (u, loaded) in loaded.into_iter().enumerate() {
            match PAST {
                true => K::finish_aligned::<S>(o, at + u * stride, loaded, params, &mut sums),
                false => K::finish::<S, FULL>(o, at + u * stride, n, loaded, params, &mut sums),
            }
        }
        for a in 0..A {
            E::Accum::vstore_unaligned(acc[a].add(slot), sums[a]);
        }
    }
}
