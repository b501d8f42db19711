//! Loading and storing the element types as registers of their accumulation type.

use std::mem::MaybeUninit;

use half::{bf16, f16};
use macerator::{Scalar, Simd, Vector};

use super::{Lane, MAX_LANES};
use crate::Element;
use crate::element::convert;

/// Asks for a cache line that will be read. Any address is allowed.
#[inline(always)]
pub(super) fn prefetch_to_read<E>(_ptr: *const E) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch is part of the baseline of x86-64 and never faults.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(_ptr.cast());
    }
}

/// Asks for a cache line that will be written. Any address is allowed.
#[inline(always)]
pub(super) fn prefetch_to_write<E>(_ptr: *const E) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as above; processors without a prefetch for writing take it as no operation.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_ET0>(_ptr.cast());
    }
}

macro_rules! impl_lane {
    ($($ty: ty),*) => {
        $(impl Lane for $ty {
            const POSITIONS: [Self; MAX_LANES] = [0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.];
            const LOWEST: Self = <$ty>::MIN;
        })*
    };
}

impl_lane!(f32, f64);

/// # Safety
///
/// As for [`Element::store_past_caches`].
#[inline(always)]
unsafe fn store_past_caches<S: Simd, A: Lane>(ptr: *mut A, value: Vector<S, A>) {
    debug_assert!(ptr.addr().is_multiple_of(size_of::<Vector<S, A>>()));
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller vouches for `ptr` and its alignment. A register of this size is a register of the instruction set that the code
    // around this call is compiled for and the processor has, so the processor has the instruction too; its bits do not depend on the type.
    unsafe {
        use std::arch::x86_64::{_mm_stream_ps, _mm256_stream_ps, _mm512_stream_ps};
        use std::mem::transmute_copy;
        match size_of::<Vector<S, A>>() {
            64 => return _mm512_stream_ps(ptr.cast(), transmute_copy(&value)),
            32 => return _mm256_stream_ps(ptr.cast(), transmute_copy(&value)),
            16 => return _mm_stream_ps(ptr.cast(), transmute_copy(&value)),
            _ => {}
        }
    }
    // SAFETY: the caller vouches for `ptr`.
    unsafe { A::vstore_unaligned(ptr, value) }
}

/// Orders what was stored past the caches before all that follows. Other stores need no such thing.
#[inline(always)]
pub(super) fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the instruction is part of the baseline of x86-64.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

macro_rules! impl_element {
    ($ty: ty, $accum: ty, $widen: expr, $narrow: expr, $full_load: expr, $full_store: expr, $past_caches: expr) => {
        impl Element for $ty {
            type Accum = $accum;

            const PAST_CACHES: bool =
                cfg!(target_arch = "x86_64") && size_of::<$ty>() == size_of::<$accum>();

            #[inline(always)]
            unsafe fn store_past_caches<S: Simd>(ptr: *mut Self, value: Vector<S, $accum>) {
                // SAFETY: the caller vouches for `ptr`.
                unsafe { $past_caches(ptr, value) }
            }

            #[inline(always)]
            fn to_accum(self) -> $accum {
                $widen(self)
            }

            #[inline(always)]
            fn from_accum(value: $accum) -> Self {
                $narrow(value)
            }

            #[inline(always)]
            unsafe fn load<S: Simd, const FULL: bool>(
                ptr: *const Self,
                n: usize,
            ) -> Vector<S, $accum> {
                debug_assert!(n <= <$accum>::lanes::<S>());
                if FULL {
                    // SAFETY: the caller says that all lanes may be read.
                    return unsafe { $full_load(ptr) };
                }
                let mut lanes = [0.0; MAX_LANES];
                for (i, lane) in lanes.iter_mut().enumerate().take(n) {
                    // SAFETY: the caller says that `n` elements may be read.
                    *lane = $widen(unsafe { ptr.add(i).read() });
                }
                // SAFETY: `lanes` is as long as the longest register.
                unsafe { <$accum>::vload_unaligned(lanes.as_ptr()) }
            }

            #[inline(always)]
            unsafe fn store<S: Simd, const FULL: bool>(
                ptr: *mut Self,
                n: usize,
                value: Vector<S, $accum>,
            ) {
                debug_assert!(n <= <$accum>::lanes::<S>());
                if FULL {
                    // SAFETY: the caller says that all lanes may be written.
                    return unsafe { $full_store(ptr, value) };
                }
                let mut lanes = [0.0; MAX_LANES];
                // SAFETY: `lanes` is as long as the longest register.
                unsafe { <$accum>::vstore_unaligned(lanes.as_mut_ptr(), value) };
                for (i, &lane) in lanes.iter().enumerate().take(n) {
                    // SAFETY: the caller says that `n` elements may be written.
                    unsafe { ptr.add(i).write($narrow(lane)) };
                }
            }
        }
    };
}

macro_rules! impl_native {
    ($ty: ty) => {
        impl_element!(
            $ty,
            $ty,
            std::convert::identity,
            std::convert::identity,
            <$ty>::vload_unaligned,
            <$ty>::vstore_unaligned,
            store_past_caches::<S, $ty>
        );
    };
}

impl_native!(f32);
impl_native!(f64);

/// # Safety
///
/// `ptr` must be valid for reading all lanes.
#[inline(always)]
unsafe fn widen<S: Simd, E: Copy>(ptr: *const E, convert: impl Fn(E) -> f32) -> Vector<S, f32> {
    let mut lanes = [MaybeUninit::<f32>::uninit(); MAX_LANES];
    // The length is a constant after inlining, so this becomes a vector conversion and the array a register.
    for (i, lane) in lanes.iter_mut().enumerate().take(f32::lanes::<S>()) {
        // SAFETY: the caller says that all lanes may be read.
        lane.write(convert(unsafe { ptr.add(i).read() }));
    }
    // SAFETY: the loop has initialised as many values as a register has.
    unsafe { f32::vload_unaligned(lanes.as_ptr().cast()) }
}

/// # Safety
///
/// `ptr` must be valid for writing all lanes.
#[inline(always)]
unsafe fn narrow<S: Simd, E: Copy>(ptr: *mut E, value: Vector<S, f32>, convert: impl Fn(f32) -> E) {
    let mut lanes = [0.0; MAX_LANES];
    // SAFETY: `lanes` is as long as the longest register.
    unsafe { f32::vstore_unaligned(lanes.as_mut_ptr(), value) };
    for (i, &lane) in lanes.iter().enumerate().take(f32::lanes::<S>()) {
        // SAFETY: the caller says that all lanes may be written.
        unsafe { ptr.add(i).write(convert(lane)) };
    }
}

macro_rules! impl_half {
    ($ty: ty, $to: path, $from: path) => {
        impl_element!(
            $ty,
            f32,
            $to,
            $from,
            |ptr| widen::<S, $ty>(ptr, $to),
            |ptr, value| narrow::<S, $ty>(ptr, value, $from),
            |ptr, value| narrow::<S, $ty>(ptr, value, $from)
        );
    };
}

impl_half!(f16, convert::f16_to_f32, convert::f32_to_f16);
impl_half!(bf16, convert::bf16_to_f32, convert::f32_to_bf16);
