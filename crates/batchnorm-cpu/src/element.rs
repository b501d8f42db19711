//! The element types, and what they accumulate in.
//!
//! Half precision is a storage format: values are widened when they are loaded, all arithmetic is in `f32`, and results are rounded once when
//! they are stored. `f32` and `f64` compute in themselves within a block and in `f64` between blocks (`simd/moments.rs`).

use half::{bf16, f16};
use macerator::{
    ReduceAdd, Scalar, Simd, VAdd, VDiv, VEq, VMul, VMulAdd, VOrd, VSelect, VSub, Vector,
};

use crate::compiled::Compiled;
use crate::simd::MAX_LANES;

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}

/// A type that tensors are made of: `f32`, `f64`, [`struct@f16`] or [`bf16`].
///
/// Its kernels are compiled in this crate, once; calling them for a type costs a user's build next to nothing.
pub trait Element: sealed::Sealed + Copy + Default + Send + Sync + 'static {
    /// The type of the arithmetic and of every `[channels]` vector: `f64` for `f64`, otherwise `f32`.
    type Accum: Accum;

    /// Widens; exact.
    fn to_accum(self) -> Self::Accum;

    /// Rounds to the nearest value, ties to even; what is too large becomes infinite.
    fn from_accum(value: Self::Accum) -> Self;

    /// The kernels of this type.
    #[doc(hidden)]
    fn compiled() -> &'static Compiled<Self>;

    /// Loads a whole register of widened values.
    ///
    /// # Safety
    ///
    /// `ptr` must be valid for reading as many elements as `Vector<S, Self::Accum>` has lanes.
    #[doc(hidden)]
    unsafe fn load_register<S: Simd>(ptr: *const Self) -> Vector<S, Self::Accum>;

    /// Rounds and stores a whole register.
    ///
    /// # Safety
    ///
    /// `ptr` must be valid for writing as many elements as the register has lanes. They need not be initialised.
    #[doc(hidden)]
    unsafe fn store_register<S: Simd>(ptr: *mut Self, value: Vector<S, Self::Accum>);
}

/// A type to accumulate in: `f32` or `f64`.
pub trait Accum:
    Element<Accum = Self>
    + Scalar
    + VAdd
    + VSub
    + VMul
    + VDiv
    + VMulAdd
    + VEq
    + VOrd
    + VSelect
    + ReduceAdd
    + PartialOrd
    + std::fmt::Debug
{
    /// The positions of the lanes, to make masks from.
    #[doc(hidden)]
    const POSITIONS: [Self; MAX_LANES];
    /// The largest finite value.
    #[doc(hidden)]
    const LARGEST: Self;
    /// Whether `f64` is wider, so that squares that leave this type's range can be computed after scaling (`simd/moments.rs`).
    #[doc(hidden)]
    const NARROW: bool;

    /// Widens; exact.
    fn to_f64(self) -> f64;

    /// Rounds to the nearest value.
    fn from_f64(value: f64) -> Self;
}

macro_rules! impl_accum {
    ($ty: ty, $narrow: literal) => {
        impl Accum for $ty {
            const POSITIONS: [Self; MAX_LANES] = [
                0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.,
            ];
            const LARGEST: Self = <$ty>::MAX;
            const NARROW: bool = $narrow;

            #[inline(always)]
            fn to_f64(self) -> f64 {
                self.into()
            }

            #[inline(always)]
            fn from_f64(value: f64) -> Self {
                value as $ty
            }
        }
    };
}

impl_accum!(f32, true);
impl_accum!(f64, false);

macro_rules! impl_element {
    ($ty: ident, $accum: ty, $widen: path, $narrow: path, $load: path, $store: path) => {
        impl Element for $ty {
            type Accum = $accum;

            #[inline(always)]
            fn to_accum(self) -> $accum {
                $widen(self)
            }

            #[inline(always)]
            fn from_accum(value: $accum) -> Self {
                $narrow(value)
            }

            fn compiled() -> &'static Compiled<Self> {
                static KERNELS: Compiled<$ty> = Compiled::new();
                &KERNELS
            }

            #[inline(always)]
            unsafe fn load_register<S: Simd>(ptr: *const Self) -> Vector<S, $accum> {
                // SAFETY: the caller vouches for a whole register at `ptr`.
                unsafe { $load(ptr) }
            }

            #[inline(always)]
            unsafe fn store_register<S: Simd>(ptr: *mut Self, value: Vector<S, $accum>) {
                // SAFETY: as above.
                unsafe { $store(ptr, value) }
            }
        }
    };
}

use crate::simd::half::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
use crate::simd::half::{load_bf16, load_f16, store_bf16, store_f16};
use std::convert::identity;

impl_element!(
    f32,
    f32,
    identity,
    identity,
    f32::vload_unaligned,
    f32::vstore_unaligned
);
impl_element!(
    f64,
    f64,
    identity,
    identity,
    f64::vload_unaligned,
    f64::vstore_unaligned
);
impl_element!(f16, f32, f16_to_f32, f32_to_f16, load_f16, store_f16);
impl_element!(bf16, f32, bf16_to_f32, f32_to_bf16, load_bf16, store_bf16);
