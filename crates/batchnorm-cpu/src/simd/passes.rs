//! The passes over memory, as what happens to one register of each operand.
//!
//! | pass | reads | parameters of the channel | accumulates | writes |
//! |---|---|---|---|---|
//! | [`Shifted`] | x | pilot | `x - pilot`, `(x - pilot)^2` | |
//! | [`Squared`] | x | mean | `(x - mean)^2` | |
//! | [`Sums`] | x, dy, (residual) | mean, scale, shift | `g`, `g * (x - mean)` | |
//! | [`Forward`] | x, (residual) | mean, scale, shift | | y |
//! | [`Gradient`] | x, dy, (residual) | mean, scale, shift, a, b, c | | dx, (dresidual) |
//!
//! where `z = (x - mean) * scale + shift (+ residual)`, `y = act(z)`, `g = dy * act'(z)` and `dx = a * g + b * (x - mean) + c`. What follows
//! the normalization, `act` and the residual, is a [`Tail`].

use std::marker::PhantomData;

use macerator::{Scalar, Simd, Vector};

use super::lanes::{prefetch_to_read, prefetch_to_write};
use super::operands::{Read, ReadPair, ReadPairWrite, ReadWrite};
use super::region::{Operands, Reads};
use super::tail::Tail;
use crate::Element;

/// A register of the arithmetic's type.
pub(crate) type Reg<S, E> = Vector<S, <E as Element>::Accum>;

/// What a leaf loop does at each position, with `P` parameters per channel and `A` accumulators.
pub(crate) trait Pass<E: Element, const P: usize, const A: usize> {
    /// The tensors that it works on.
    type Operands: Operands;
    /// One register of each tensor that it reads.
    type Loaded<S: Simd>: Copy;

    /// How many wide rows of a matrix are taken together ([`across_columns`](super::leaf::across_columns)).
    const WIDE_ROWS: usize;

    /// Reads at position `at`: a whole register if `FULL`, else `n` lanes.
    ///
    /// # Safety
    ///
    /// `at..at + n` must be valid for the operands; `n` must be the number of lanes if `FULL`, else at most that.
    unsafe fn load<S: Simd, const FULL: bool>(
        o: Self::Operands,
        at: usize,
        n: usize,
    ) -> Self::Loaded<S>;

    /// Asks for the memory at `at`, which need not be valid, if it is likely not to be in the cache yet. What is read for a pass that
    /// writes was read for the statistics just now, so such a pass asks for its output alone.
    #[inline(always)]
    fn prefetch(_o: Self::Operands, _at: usize) {}

    /// Computes, and writes at the position where `loaded` comes from.
    ///
    /// # Safety
    ///
    /// As for `load`.
    unsafe fn finish<S: Simd, const FULL: bool>(
        o: Self::Operands,
        at: usize,
        n: usize,
        loaded: Self::Loaded<S>,
        params: &[Reg<S, E>; P],
        acc: &mut [Reg<S, E>; A],
    );

    /// The address of the output at position 0, if it is better written past the caches: by [`finish_aligned`](Self::finish_aligned).
    #[inline(always)]
    fn past_caches(_o: Self::Operands) -> Option<usize> {
        None
    }

    /// `finish` of a whole register, past the caches if the pass can.
    ///
    /// # Safety
    ///
    /// As for `finish`; where [`past_caches`](Self::past_caches) has an address, that of position `at` must be a multiple of a register's size.
    #[inline(always)]
    unsafe fn finish_aligned<S: Simd>(
        o: Self::Operands,
        at: usize,
        loaded: Self::Loaded<S>,
        params: &[Reg<S, E>; P],
        acc: &mut [Reg<S, E>; A],
    ) {
        // SAFETY: the caller vouches for a whole register at `at`.
        unsafe { Self::finish::<S, true>(o, at, E::Accum::lanes::<S>(), loaded, params, acc) }
    }
}

/// Sums of the differences from a value near the mean and of their squares.
pub(crate) struct Shifted;

impl<E: Element> Pass<E, 1, 2> for Shifted {
    type Operands = Read<E>;
    type Loaded<S: Simd> = Reg<S, E>;
    const WIDE_ROWS: usize = 4;

    #[inline(always)]
    fn prefetch(o: Read<E>, at: usize) {
        prefetch_to_read(o.x.wrapping_add(at));
    }

    #[inline(always)]
    unsafe fn load<S: Simd, const FULL: bool>(o: Read<E>, at: usize, n: usize) -> Reg<S, E> {
        // SAFETY: the caller vouches for `at`.
        unsafe { E::load::<S, FULL>(o.x.add(at), n) }
    }

    #[inline(always)]
    unsafe fn finish<S: Simd, const FULL: bool>(
        _o: Read<E>,
        _at: usize,
        _n: usize,
        x: Reg<S, E>,
        [pilot]: &[Reg<S, E>; 1],
        [sum, squares]: &mut [Reg<S, E>; 2],
    ) {
        let d = x - *pilot;
        *sum += d;
        *squares = d.mul_add(d, *squares);
    }
}

/// Sum of the squared differences from the mean.
pub(crate) struct Squared;

impl<E: Element> Pass<E, 1, 1> for Squared {
    type Operands = Read<E>;
    type Loaded<S: Simd> = Reg<S, E>;
    const WIDE_ROWS: usize = 4;

    #[inline(always)]
    unsafe fn load<S: Simd, const FULL: bool>(o: Read<E>, at: usize, n: usize) -> Reg<S, E> {
        // SAFETY: the caller vouches for `at`.
        unsafe { E::load::<S, FULL>(o.x.add(at), n) }
    }

    #[inline(always)]
    unsafe fn finish<S: Simd, const FULL: bool>(
        _o: Read<E>,
        _at: usize,
        _n: usize,
        x: Reg<S, E>,
        [mean]: &[Reg<S, E>; 1],
        [sum]: &mut [Reg<S, E>; 1],
    ) {
        let d = x - *mean;
        *sum = d.mul_add(d, *sum);
    }
}

/// A register of x, of dy, and of what the tail reads.
pub(crate) type Pair<S, E, T> = (Reg<S, E>, Reg<S, E>, <T as Tail<E>>::Loaded<S>);

/// # Safety
///
/// As for [`Pass::load`].
#[inline(always)]
unsafe fn load_pair<S: Simd, E: Element, T: Tail<E>, const FULL: bool>(
    o: ReadPair<E, T>,
    at: usize,
    n: usize,
) -> Pair<S, E, T> {
    // SAFETY: the caller vouches for `at`.
    unsafe {
        let (x, dy) = (
            E::load::<S, FULL>(o.x.add(at), n),
            E::load::<S, FULL>(o.dy.add(at), n),
        );
        (x, dy, o.tail.load::<S, FULL>(at, n))
    }
}

/// `x - mean` and `g`.
#[inline(always)]
fn gradient<S: Simd, E: Element, T: Tail<E>>(
    tail: T,
    (x, dy, rest): Pair<S, E, T>,
    [mean, scale, shift]: [Reg<S, E>; 3],
) -> (Reg<S, E>, Reg<S, E>) {
    let centred = x - mean;
    let g = tail.backward::<S>(
        #[inline(always)]
        || centred.mul_add(scale, shift),
        rest,
        dy,
    );
    (centred, g)
}

/// The two sums of the backward pass.
pub(crate) struct Sums<T>(PhantomData<T>);

impl<E: Element, T: Tail<E>> Pass<E, 3, 2> for Sums<T> {
    type Operands = ReadPair<E, T>;
    type Loaded<S: Simd> = Pair<S, E, T>;
    const WIDE_ROWS: usize = 2;

    #[inline(always)]
    fn prefetch(o: Self::Operands, at: usize) {
        prefetch_to_read(o.x.wrapping_add(at));
        prefetch_to_read(o.dy.wrapping_add(at));
    }

    #[inline(always)]
    unsafe fn load<S: Simd, const FULL: bool>(
        o: Self::Operands,
        at: usize,
        n: usize,
    ) -> Self::Loaded<S> {
        // SAFETY: the caller vouches for `at`.
        unsafe { load_pair::<S, E, T, FULL>(o, at, n) }
    }

    #[inline(always)]
    unsafe fn finish<S: Simd, const FULL: bool>(
        o: Self::Operands,
        _at: usize,
        _n: usize,
        loaded: Self::Loaded<S>,
        [mean, scale, shift]: &[Reg<S, E>; 3],
        [sum, product]: &mut [Reg<S, E>; 2],
    ) {
        let (centred, g) = gradient::<S, E, T>(o.tail, loaded, [*mean, *scale, *shift]);
        *sum += g;
        *product = g.mul_add(centred, *product);
    }
}

/// `y`.
#[inline(always)]
fn normalized<S: Simd, E: Element, T: Tail<E>>(
    tail: T,
    (x, rest): (Reg<S, E>, T::Loaded<S>),
    [mean, scale, shift]: &[Reg<S, E>; 3],
) -> Reg<S, E> {
    tail.forward::<S>((x - *mean).mul_add(*scale, *shift), rest)
}

/// Normalizes.
pub(crate) struct Forward<T>(PhantomData<T>);

impl<E: Element, T: Tail<E>> Pass<E, 3, 0> for Forward<T> {
    type Operands = ReadWrite<E, T>;
    type Loaded<S: Simd> = (Reg<S, E>, T::Loaded<S>);
    const WIDE_ROWS: usize = 1;

    #[inline(always)]
    fn prefetch(o: Self::Operands, at: usize) {
        prefetch_to_write(o.y.wrapping_add(at));
    }

    #[inline(always)]
    unsafe fn load<S: Simd, const FULL: bool>(
        o: Self::Operands,
        at: usize,
        n: usize,
    ) -> Self::Loaded<S> {
        // SAFETY: the caller vouches for `at`.
        unsafe {
            (
                E::load::<S, FULL>(o.x.add(at), n),
                o.tail.load::<S, FULL>(at, n),
            )
        }
    }

    #[inline(always)]
    unsafe fn finish<S: Simd, const FULL: bool>(
        o: Self::Operands,
        at: usize,
        n: usize,
        loaded: Self::Loaded<S>,
        params: &[Reg<S, E>; 3],
        _acc: &mut [Reg<S, E>; 0],
    ) {
        let y = normalized::<S, E, T>(o.tail, loaded, params);
        // SAFETY: the caller vouches for `at`.
        unsafe { E::store::<S, FULL>(o.y.add(at), n, y) }
    }

    #[inline(always)]
    fn past_caches(o: Self::Operands) -> Option<usize> {
        o.past_caches.then_some(o.y.addr())
    }

    #[inline(always)]
    unsafe fn finish_aligned<S: Simd>(
        o: Self::Operands,
        at: usize,
        loaded: Self::Loaded<S>,
        params: &[Reg<S, E>; 3],
        _acc: &mut [Reg<S, E>; 0],
    ) {
        let y = normalized::<S, E, T>(o.tail, loaded, params);
        // SAFETY: the caller vouches for a whole register at `at`, and for its alignment.
        unsafe { E::store_past_caches::<S>(o.y.add(at), y) }
    }
}

/// `dx` and `g`.
#[inline(always)]
fn input_gradient<S: Simd, E: Element, T: Tail<E>>(
    tail: T,
    loaded: Pair<S, E, T>,
    [mean, scale, shift, a, b, c]: &[Reg<S, E>; 6],
) -> (Reg<S, E>, Reg<S, E>) {
    let (centred, g) = gradient::<S, E, T>(tail, loaded, [*mean, *scale, *shift]);
    (g.mul_add(*a, centred.mul_add(*b, *c)), g)
}

/// The gradients of the input and of the residual.
pub(crate) struct Gradient<T>(PhantomData<T>);

impl<E: Element, T: Tail<E>> Pass<E, 6, 0> for Gradient<T> {
    type Operands = ReadPairWrite<E, T>;
    type Loaded<S: Simd> = Pair<S, E, T>;
    const WIDE_ROWS: usize = 1;

    #[inline(always)]
    fn prefetch(o: Self::Operands, at: usize) {
        prefetch_to_write(o.dx.wrapping_add(at));
    }

    #[inline(always)]
    unsafe fn load<S: Simd, const FULL: bool>(
        o: Self::Operands,
        at: usize,
        n: usize,
    ) -> Self::Loaded<S> {
        // SAFETY: the caller vouches for `at`.
        unsafe { load_pair::<S, E, T, FULL>(o.reading(), at, n) }
    }

    #[inline(always)]
    unsafe fn finish<S: Simd, const FULL: bool>(
        o: Self::Operands,
        at: usize,
        n: usize,
        loaded: Self::Loaded<S>,
        params: &[Reg<S, E>; 6],
        _acc: &mut [Reg<S, E>; 0],
    ) {
        let (dx, g) = input_gradient::<S, E, T>(o.tail, loaded, params);
        // SAFETY: the caller vouches for `at`, and a pointer that is not null is valid like the others.
        unsafe {
            E::store::<S, FULL>(o.dx.add(at), n, dx);
            if !o.dresidual.is_null() {
                E::store::<S, FULL>(o.dresidual.add(at), n, g);
            }
        }
    }

    #[inline(always)]
    fn past_caches(o: Self::Operands) -> Option<usize> {
        o.past_caches.then_some(o.dx.addr())
    }

    #[inline(always)]
    unsafe fn finish_aligned<S: Simd>(
        o: Self::Operands,
        at: usize,
        loaded: Self::Loaded<S>,
        params: &[Reg<S, E>; 6],
        _acc: &mut [Reg<S, E>; 0],
    ) {
        let (dx, g) = input_gradient::<S, E, T>(o.tail, loaded, params);
        // SAFETY: as for `finish`; the caller vouches for the alignment of dx.
        unsafe {
            E::store_past_caches::<S>(o.dx.add(at), dx);
            if !o.dresidual.is_null() {
                E::store::<S, true>(o.dresidual.add(at), E::Accum::lanes::<S>(), g);
            }
        }
    }
}
