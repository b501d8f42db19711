//! The element types and what they accumulate in.
//!
//! Half precision is a storage format here: values are widened when they are loaded, all arithmetic is in `f32`, and results are rounded once
//! when they are stored. `f32` and `f64` accumulate in themselves within a block and in `f64` between blocks (see `moments.rs`).

use half::{bf16, f16};
use macerator::{Simd, Vector};

use crate::simd::Lane;

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}

/// A type that tensors are made of: `f32`, `f64`, [`struct@f16`] or [`bf16`].
pub trait Element: sealed::Sealed + Copy + Send + Sync + 'static {
    /// The type of the arithmetic and of every `[channels]` vector: `f64` for `f64`, otherwise `f32`.
    type Accum: Accum;

    /// Widens; exact.
    fn to_accum(self) -> Self::Accum;

    /// Rounds to the nearest value, ties to even; what is too large becomes infinite.
    fn from_accum(value: Self::Accum) -> Self;

    /// Loads a register of widened values: all lanes if `FULL`, otherwise the first `n` with zeros behind them.
    ///
    /// # Safety
    ///
    /// `ptr` must be valid for reading `n` elements, and `n` must be the number of lanes if `FULL`, else at most that.
    #[doc(hidden)]
    unsafe fn load<S: Simd, const FULL: bool>(ptr: *const Self, n: usize)
    -> Vector<S, Self::Accum>;

    /// Rounds and stores a register: all lanes if `FULL`, otherwise the first `n`.
    ///
    /// # Safety
    ///
    /// As for `load`, with writing for reading. The memory need not be initialised.
    #[doc(hidden)]
    unsafe fn store<S: Simd, const FULL: bool>(
        ptr: *mut Self,
        n: usize,
        value: Vector<S, Self::Accum>,
    );

    /// Whether `store_past_caches` does what it says.
    #[doc(hidden)]
    const PAST_CACHES: bool;

    /// Stores a whole register past the caches where the instruction set can; [`fence`](crate::simd::fence) makes it visible to others.
    ///
    /// # Safety
    ///
    /// `ptr` must be valid for writing a register and a multiple of its size.
    #[doc(hidden)]
    unsafe fn store_past_caches<S: Simd>(ptr: *mut Self, value: Vector<S, Self::Accum>);
}

/// A type to accumulate in: `f32` or `f64`.
pub trait Accum: Element<Accum = Self> + Lane + std::fmt::Debug + PartialOrd {
    /// Widens; exact.
    fn to_f64(self) -> f64;

    /// Rounds to the nearest value.
    fn from_f64(value: f64) -> Self;

    /// The product, in this type's own precision.
    fn times(self, other: Self) -> Self;

    /// `self - low * scale`, rounded once; exactly `self` where `low` is 0, whatever the scale.
    #[doc(hidden)]
    fn minus(self, low: Self, scale: Self) -> Self {
        match low.to_f64() {
            0.0 => self,
            low => Self::from_f64(self.to_f64() - low * scale.to_f64()),
        }
    }
}

macro_rules! impl_accum {
    ($($ty: ty),*) => {
        $(impl Accum for $ty {
            #[inline(always)]
            fn to_f64(self) -> f64 {
                self.into()
            }
            #[inline(always)]
            fn from_f64(value: f64) -> Self {
                value as $ty
            }
            #[inline(always)]
            fn times(self, other: Self) -> Self {
                self * other
            }
        })*
    };
}

impl_accum!(f32, f64);

/// Conversions of the two half types, on bits and without branches so that the compiler turns loops over them into vector code: the
/// hardware instructions that `half` calls one by one are many times slower, and older processors lack them.
pub(crate) mod convert {
    use super::{bf16, f16};

    const F32_INFINITY: u32 = 0x7f80_0000;

    #[inline(always)]
    pub(crate) fn f16_to_f32(value: f16) -> f32 {
        let bits = u32::from(value.to_bits());
        let (sign, magnitude) = ((bits & 0x8000) << 16, (bits & 0x7fff) << 13);
        // The exponent's bias differs by 112. Multiplying by 2^112 is exact, for subnormal numbers too.
        let scaled = (f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23)).to_bits();
        let finite = magnitude < 0x7c00 << 13;
        f32::from_bits(
            sign | if finite {
                scaled
            } else {
                magnitude | F32_INFINITY
            },
        )
    }

    #[inline(always)]
    pub(crate) fn f32_to_f16(value: f32) -> f16 {
        let bits = value.to_bits();
        let sign = bits & 0x8000_0000;
        let magnitude = bits ^ sign;
        // Normal results: move the bias, add half a unit (less one where the last kept bit is even), cut.
        let odd = (magnitude >> 13) & 1;
        let normal =
            magnitude.wrapping_add((15u32.wrapping_sub(127) << 23).wrapping_add(0xfff + odd)) >> 13;
        // Subnormal results: adding 0.5 makes the hardware round at the bit whose weight is 2^-24.
        let subnormal = (f32::from_bits(magnitude) + 0.5)
            .to_bits()
            .wrapping_sub(0.5f32.to_bits());
        let special = if magnitude > F32_INFINITY {
            0x7e00
        } else {
            0x7c00
        };
        let rounded = if magnitude < (127 - 14) << 23 {
            subnormal
        } else {
            normal
        };
        let result = if magnitude >= (127 + 16) << 23 {
            special
        } else {
            rounded
        };
        f16::from_bits((result | sign >> 16) as u16)
    }

    #[inline(always)]
    pub(crate) fn bf16_to_f32(value: bf16) -> f32 {
        f32::from_bits(u32::from(value.to_bits()) << 16)
    }

    #[inline(always)]
    pub(crate) fn f32_to_bf16(value: f32) -> bf16 {
        let bits = value.to_bits();
        let odd = (bits >> 16) & 1;
        let rounded = bits.wrapping_add(0x7fff + odd) >> 16;
        // A NaN whose payload lies in the low bits alone must not become infinite.
        let nan = bits >> 16 | 0x40;
        let result = if bits & 0x7fff_ffff > F32_INFINITY {
            nan
        } else {
            rounded
        };
        bf16::from_bits(result as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::convert::*;
    use super::*;

    /// All halves, their midpoints and the neighbours of those, as `f32`.
    fn interesting_floats() -> impl Iterator<Item = f32> {
        (0..=u16::MAX).flat_map(|bits| {
            let half = f16::from_bits(bits).to_f32().to_bits();
            let brain = u32::from(bits) << 16;
            [half, brain].into_iter().flat_map(|b| {
                [0, 1, 0x7fff, 0x8000, 0x8001, 0xfff, 0x1000, 0x1001, 0x3000]
                    .map(|d| f32::from_bits(b ^ d))
            })
        })
    }

    #[test]
    fn widening_agrees_with_the_half_crate_on_every_value() {
        for bits in 0..=u16::MAX {
            let (h, b) = (f16::from_bits(bits), bf16::from_bits(bits));
            for (ours, theirs) in [(f16_to_f32(h), h.to_f32()), (bf16_to_f32(b), b.to_f32())] {
                assert!(
                    ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()),
                    "{bits:#x}: {ours} {theirs}"
                );
            }
        }
    }

    #[test]
    fn narrowing_agrees_with_the_half_crate_around_every_value() {
        for x in interesting_floats() {
            let (ours, theirs) = (f32_to_f16(x), f16::from_f32(x));
            assert!(
                ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()),
                "f16 of {x:e}: {ours} {theirs}"
            );
            let (ours, theirs) = (f32_to_bf16(x), bf16::from_f32(x));
            assert!(
                ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()),
                "bf16 of {x:e}: {ours} {theirs}"
            );
        }
    }
}
