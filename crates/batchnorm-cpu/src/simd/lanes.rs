//! Moving some elements between memory and one register.

use macerator::{Scalar, Simd, Vector};

use super::MAX_LANES;
use crate::{Accum, Element};

/// A register of the arithmetic's type.
pub(crate) type Reg<S, A> = Vector<S, A>;

/// Asks for the cache line at an address, which need not be valid.
#[inline(always)]
pub(super) fn prefetch<E>(_ptr: *const E) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch is part of the baseline of x86-64 and never faults.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(_ptr.cast());
    }
}

/// Orders streaming stores before all that follows. Other stores need no such thing.
#[inline(always)]
pub(super) fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the instruction is part of the baseline of x86-64.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

/// The lanes below `n`.
#[inline(always)]
pub(super) fn first_lanes<S: Simd, A: Accum>(n: usize) -> macerator::Mask<S, A> {
    // SAFETY: `POSITIONS` is as long as the longest register.
    let positions = unsafe { A::vload_unaligned::<S>(A::POSITIONS.as_ptr()) };
    positions.lt(A::from_f64(n as f64).splat())
}

/// Loads `n` elements into the first lanes, and zeros behind them. Where `n` is a constant after inlining, so is the choice.
///
/// # Safety
///
/// `ptr` must be valid for reading `n` elements, and `n` at most the number of lanes.
#[inline(always)]
pub(super) unsafe fn load<S: Simd, E: Element>(ptr: *const E, n: usize) -> Reg<S, E::Accum> {
    debug_assert!(n <= E::Accum::lanes::<S>());
    // SAFETY: the caller vouches for `n` elements at `ptr`: all lanes, or those that a mask or the copy selects. Registers of 32 and 64 bytes are
    // those of instruction sets that have these instructions, and the code around this call only runs on processors that have them (`Isa`).
    // Masked lanes are not accessed, and become zero. Source and target of a transmutation have the same size.
    unsafe {
        if n == E::Accum::lanes::<S>() {
            return E::load_register(ptr);
        }
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::*;
            use std::mem::transmute_copy;
            match (size_of::<E>(), size_of::<Reg<S, E::Accum>>()) {
                (4, 64) => return transmute_copy(&_mm512_maskz_loadu_ps(low_bits(n), ptr.cast())),
                (8, 64) => {
                    let mask = low_bits(n) as u8;
                    return transmute_copy(&_mm512_maskz_loadu_pd(mask, ptr.cast()));
                }
                (4, 32) => {
                    let mask = _mm256_loadu_si256(LANES_32[8 - n..].as_ptr().cast());
                    return transmute_copy(&_mm256_maskload_ps(ptr.cast(), mask));
                }
                (8, 32) => {
                    let mask = _mm256_loadu_si256(LANES_64[4 - n..].as_ptr().cast());
                    return transmute_copy(&_mm256_maskload_pd(ptr.cast(), mask));
                }
                _ => {}
            }
        }
        let mut lanes = [E::default(); MAX_LANES];
        copy(ptr, lanes.as_mut_ptr(), n);
        E::load_register(lanes.as_ptr())
    }
}

/// Stores the first `n` lanes; with a streaming store, which goes past the caches, if `streaming` and the instruction set has one.
///
/// A partial register is stored piece by piece: a masked store that reaches into a line that was streamed reads it back (measured: half the speed).
///
/// # Safety
///
/// `ptr` must be valid for writing `n` elements, and `n` at most the number of lanes. If `streaming` and `n` is the number of lanes, `ptr` must be a
/// multiple of the size of so many elements.
#[inline(always)]
pub(super) unsafe fn store<S: Simd, E: Element>(
    ptr: *mut E,
    n: usize,
    value: Reg<S, E::Accum>,
    streaming: bool,
) {
    debug_assert!(n <= E::Accum::lanes::<S>());
    let mut lanes = [E::default(); MAX_LANES];
    // SAFETY: the caller vouches for `n` elements at `ptr`, and for the alignment of streaming stores; `lanes` has room for any register. Registers
    // of 32 and 64 bytes are those of instruction sets that have such stores, and the code around this call only runs on processors that have them.
    unsafe {
        if n == E::Accum::lanes::<S>() {
            #[cfg(target_arch = "x86_64")]
            if streaming {
                use std::arch::x86_64::*;
                let bytes = n * size_of::<E>();
                debug_assert!(bytes < 16 || ptr.addr().is_multiple_of(bytes));
                E::store_register(lanes.as_mut_ptr(), value);
                let from = lanes.as_ptr();
                match bytes {
                    64 => return _mm512_stream_ps(ptr.cast(), _mm512_loadu_ps(from.cast())),
                    32 => return _mm256_stream_ps(ptr.cast(), _mm256_loadu_ps(from.cast())),
                    16 => return _mm_stream_ps(ptr.cast(), _mm_loadu_ps(from.cast())),
                    _ => {}
                }
            }
            return E::store_register(ptr, value);
        }
        E::store_register(lanes.as_mut_ptr(), value);
        copy(lanes.as_ptr(), ptr, n);
    }
}

/// Copies fewer elements than the longest register has lanes, in pieces whose sizes the compiler knows.
///
/// # Safety
///
/// `from` must be valid for reading and `to` for writing `n` elements, `n` less than [`MAX_LANES`].
#[inline(always)]
unsafe fn copy<E: Copy>(from: *const E, to: *mut E, n: usize) {
    debug_assert!(n < MAX_LANES);
    let mut at = 0;
    macro_rules! piece {
        ($($size: literal),*) => {
            $(if n & $size != 0 {
                // SAFETY: the pieces that are taken add up to `n`.
                unsafe { std::ptr::copy_nonoverlapping(from.add(at), to.add(at), $size) };
                at += $size;
            })*
        };
    }
    piece!(8, 4, 2, 1);
    debug_assert!(at == n);
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn low_bits(n: usize) -> u16 {
    ((1u32 << n) - 1) as u16
}

/// From position `8 - n` on, `n` lanes are set; likewise in `LANES_64` from `4 - n` on.
#[cfg(target_arch = "x86_64")]
static LANES_32: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
#[cfg(target_arch = "x86_64")]
static LANES_64: [i64; 8] = [-1, -1, -1, -1, 0, 0, 0, 0];
