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
        std::ptr::copy_nonoverlapping(ptr, lanes.as_mut_ptr(), n);
        E::load_register(lanes.as_ptr())
    }
}

/// Stores the first `n` lanes; with a streaming store, which goes past the caches, if `streaming` and the instruction set has one.
///
/// # Safety
///
/// `ptr` must be valid for writing `n` elements, and `n` at most the number of lanes. If `streaming`, `n` must be the number of lanes and `ptr`
/// a multiple of the size of so many elements.
#[inline(always)]
pub(super) unsafe fn store<S: Simd, E: Element>(
    ptr: *mut E,
    n: usize,
    value: Reg<S, E::Accum>,
    streaming: bool,
) {
    debug_assert!(n <= E::Accum::lanes::<S>());
    // SAFETY: as in `load`. The caller vouches for the alignment of streaming stores, and `lanes` has room for any register.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::*;
            use std::mem::transmute_copy;
            let bytes = size_of::<Reg<S, E::Accum>>() / size_of::<E::Accum>() * size_of::<E>();
            if streaming && bytes >= 16 {
                debug_assert!(ptr.addr().is_multiple_of(bytes));
                let mut lanes = [E::default(); MAX_LANES];
                E::store_register(lanes.as_mut_ptr(), value);
                return match bytes {
                    64 => _mm512_stream_ps(ptr.cast(), _mm512_loadu_ps(lanes.as_ptr().cast())),
                    32 => _mm256_stream_ps(ptr.cast(), _mm256_loadu_ps(lanes.as_ptr().cast())),
                    _ => _mm_stream_ps(ptr.cast(), _mm_loadu_ps(lanes.as_ptr().cast())),
                };
            }
            if n < E::Accum::lanes::<S>() {
                match (size_of::<E>(), size_of::<Reg<S, E::Accum>>()) {
                    (4, 64) => {
                        let mask = low_bits(n);
                        return _mm512_mask_storeu_ps(ptr.cast(), mask, transmute_copy(&value));
                    }
                    (8, 64) => {
                        let mask = low_bits(n) as u8;
                        return _mm512_mask_storeu_pd(ptr.cast(), mask, transmute_copy(&value));
                    }
                    (4, 32) => {
                        let mask = _mm256_loadu_si256(LANES_32[8 - n..].as_ptr().cast());
                        return _mm256_maskstore_ps(ptr.cast(), mask, transmute_copy(&value));
                    }
                    (8, 32) => {
                        let mask = _mm256_loadu_si256(LANES_64[4 - n..].as_ptr().cast());
                        return _mm256_maskstore_pd(ptr.cast(), mask, transmute_copy(&value));
                    }
                    _ => {}
                }
            }
        }
        if n == E::Accum::lanes::<S>() {
            return E::store_register(ptr, value);
        }
        let mut lanes = [E::default(); MAX_LANES];
        E::store_register(lanes.as_mut_ptr(), value);
        std::ptr::copy_nonoverlapping(lanes.as_ptr(), ptr, n);
    }
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
