//! Conversions of the two half types.
//!
//! Where the processor converts `f16` in hardware (every one with AVX2) that is used: it is one instruction a register, and subnormal halves,
//! which gradients are full of, cost it nothing. A `bf16` is the upper half of an `f32`, some integer instructions a register. Everything else is
//! integer arithmetic without branches, value by value.

use half::{bf16, f16};
use macerator::{Scalar, Simd, Vector};

use super::MAX_LANES;

const F32_INFINITY: u32 = 0x7f80_0000;

#[inline(always)]
pub(crate) fn f16_to_f32(value: f16) -> f32 {
    let bits = u32::from(value.to_bits());
    let (sign, magnitude) = ((bits & 0x8000) << 16, (bits & 0x7fff) << 13);
    // The exponent's bias differs by 112.
    let normal = f32::from_bits(magnitude.wrapping_add(112 << 23));
    // A subnormal half is a whole number of 2^-24. As the fraction of 0.5 it counts those, and subtracting 0.5 normalizes it.
    let subnormal = f32::from_bits((magnitude >> 13) | 0.5f32.to_bits()) - 0.5;
    let finite = if magnitude < 1 << 23 {
        subnormal
    } else {
        normal
    };
    let special = magnitude >= 0x7c00 << 13;
    f32::from_bits(
        sign | if special {
            magnitude | F32_INFINITY
        } else {
            finite.to_bits()
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

/// # Safety
///
/// `ptr` must be valid for reading a register's lanes: [`Element::load_register`](crate::Element), which is this, asks its caller for it.
#[inline(always)]
pub(crate) unsafe fn load_f16<S: Simd>(ptr: *const f16) -> Vector<S, f32> {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller vouches for `ptr`. Registers of 32 and 64 bytes are those of instruction sets that contain this conversion, and the code
    // around this call runs only on processors that have them (`Isa`). Source and target of a transmutation have the same size.
    unsafe {
        use std::arch::x86_64::{
            _mm_loadu_si128, _mm256_cvtph_ps, _mm256_loadu_si256, _mm512_cvtph_ps,
        };
        use std::mem::transmute_copy;
        match size_of::<Vector<S, f32>>() {
            64 => return transmute_copy(&_mm512_cvtph_ps(_mm256_loadu_si256(ptr.cast()))),
            32 => return transmute_copy(&_mm256_cvtph_ps(_mm_loadu_si128(ptr.cast()))),
            _ => {}
        }
    }
    // SAFETY: the caller vouches for a register's lanes.
    unsafe { load_with(ptr, f16_to_f32) }
}

/// # Safety
///
/// As for [`load_f16`], with writing for reading.
#[inline(always)]
pub(crate) unsafe fn store_f16<S: Simd>(ptr: *mut f16, value: Vector<S, f32>) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as in `load_f16`.
    unsafe {
        use std::arch::x86_64::{
            _MM_FROUND_TO_NEAREST_INT, _mm_storeu_si128, _mm256_cvtps_ph, _mm256_storeu_si256,
            _mm512_cvtps_ph,
        };
        use std::mem::transmute_copy;
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT;
        match size_of::<Vector<S, f32>>() {
            64 => {
                let halves = _mm512_cvtps_ph::<NEAREST>(transmute_copy(&value));
                return _mm256_storeu_si256(ptr.cast(), halves);
            }
            32 => {
                let halves = _mm256_cvtps_ph::<NEAREST>(transmute_copy(&value));
                return _mm_storeu_si128(ptr.cast(), halves);
            }
            _ => {}
        }
    }
    // SAFETY: the caller vouches for a register's lanes.
    unsafe { store_with(ptr, value, f32_to_f16) }
}

/// # Safety
///
/// As for [`load_f16`].
#[inline(always)]
pub(crate) unsafe fn load_bf16<S: Simd>(ptr: *const bf16) -> Vector<S, f32> {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as in `load_f16`.
    unsafe {
        use std::arch::x86_64::*;
        use std::mem::transmute_copy;
        match size_of::<Vector<S, f32>>() {
            64 => {
                let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(ptr.cast()));
                return transmute_copy(&_mm512_slli_epi32::<16>(halves));
            }
            32 => {
                let halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(ptr.cast()));
                return transmute_copy(&_mm256_slli_epi32::<16>(halves));
            }
            _ => {}
        }
    }
    // SAFETY: the caller vouches for a register's lanes.
    unsafe { load_with(ptr, bf16_to_f32) }
}

/// As [`f32_to_bf16`], lane by lane. Not the instruction for it, which takes subnormal numbers for 0.
///
/// # Safety
///
/// As for [`store_f16`].
#[inline(always)]
pub(crate) unsafe fn store_bf16<S: Simd>(ptr: *mut bf16, value: Vector<S, f32>) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as in `load_f16`.
    unsafe {
        use std::arch::x86_64::*;
        use std::mem::transmute_copy;
        match size_of::<Vector<S, f32>>() {
            64 => {
                let (floats, bits) = (transmute_copy(&value), transmute_copy(&value));
                let high = _mm512_srli_epi32::<16>(bits);
                let odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
                let half_unit = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
                let rounded = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, half_unit));
                let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(floats, floats);
                let result = _mm512_mask_or_epi32(rounded, nan, high, _mm512_set1_epi32(0x40));
                return _mm256_storeu_si256(ptr.cast(), _mm512_cvtepi32_epi16(result));
            }
            32 => {
                let (floats, bits) = (transmute_copy(&value), transmute_copy(&value));
                let high = _mm256_srli_epi32::<16>(bits);
                let odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
                let half_unit = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
                let rounded = _mm256_srli_epi32::<16>(_mm256_add_epi32(bits, half_unit));
                let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(floats, floats));
                let quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
                let result = _mm256_blendv_epi8(rounded, quiet, nan);
                // Packing takes the two halves of a register apart.
                let packed = _mm256_packus_epi32(result, result);
                let packed = _mm256_permute4x64_epi64::<0b10_00>(packed);
                return _mm_storeu_si128(ptr.cast(), _mm256_castsi256_si128(packed));
            }
            _ => {}
        }
    }
    // SAFETY: the caller vouches for a register's lanes.
    unsafe { store_with(ptr, value, f32_to_bf16) }
}

/// # Safety
///
/// As for [`load_f16`].
#[inline(always)]
unsafe fn load_with<S: Simd, E: Copy>(ptr: *const E, widen: impl Fn(E) -> f32) -> Vector<S, f32> {
    let mut lanes = [0.0; MAX_LANES];
    // The length is a constant after inlining, so this becomes a vector conversion and the array a register.
    for (i, lane) in lanes.iter_mut().enumerate().take(f32::lanes::<S>()) {
        // SAFETY: the caller says that all lanes may be read.
        *lane = widen(unsafe { ptr.add(i).read() });
    }
    // SAFETY: `lanes` is as long as the longest register.
    unsafe { f32::vload_unaligned(lanes.as_ptr()) }
}

/// # Safety
///
/// As for [`store_f16`].
#[inline(always)]
unsafe fn store_with<S: Simd, E>(ptr: *mut E, value: Vector<S, f32>, narrow: impl Fn(f32) -> E) {
    let mut lanes = [0.0; MAX_LANES];
    // SAFETY: `lanes` is as long as the longest register.
    unsafe { f32::vstore_unaligned(lanes.as_mut_ptr(), value) };
    for (i, &lane) in lanes.iter().enumerate().take(f32::lanes::<S>()) {
        // SAFETY: the caller says that all lanes may be written.
        unsafe { ptr.add(i).write(narrow(lane)) };
    }
}

#[cfg(test)]
mod tests {
    use macerator::WithSimd;

    use super::*;
    use crate::{Element, Isa};

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

    /// The lanes of a register after storing it as halves, and those of halves after loading them.
    struct Convert<E: Element<Accum = f32>> {
        floats: [f32; MAX_LANES],
        halves: [E; MAX_LANES],
    }

    impl<E: Element<Accum = f32>> WithSimd for Convert<E> {
        type Output = ([E; MAX_LANES], [f32; MAX_LANES], usize);

        #[inline(always)]
        fn with_simd<S: Simd>(self) -> Self::Output {
            let (mut halves, mut floats) = ([E::default(); MAX_LANES], [0.0; MAX_LANES]);
            // SAFETY: all arrays are as long as the longest register.
            unsafe {
                let register = f32::vload_unaligned::<S>(self.floats.as_ptr());
                E::store_register(halves.as_mut_ptr(), register);
                let register = E::load_register::<S>(self.halves.as_ptr());
                f32::vstore_unaligned(floats.as_mut_ptr(), register);
            }
            (halves, floats, f32::lanes::<S>())
        }
    }

    fn registers_convert_as_values_do<E: Element<Accum = f32>>(
        half: fn(u16) -> E,
        bits: fn(E) -> u16,
    ) {
        let floats: Vec<f32> = interesting_floats().collect();
        for isa in Isa::available() {
            for (index, floats) in floats.as_chunks::<MAX_LANES>().0.iter().enumerate() {
                let halves = std::array::from_fn(|lane| half((index * MAX_LANES + lane) as u16));
                let floats = *floats;
                let (stored, loaded, lanes) = isa.run(Convert { floats, halves });
                for lane in 0..lanes {
                    let (got, expected) = (bits(stored[lane]), bits(E::from_accum(floats[lane])));
                    let nan = floats[lane].is_nan() && stored[lane].to_accum().is_nan();
                    assert!(
                        got == expected || nan,
                        "{:e} on {isa:?}: {got:#x}",
                        floats[lane]
                    );
                    let (got, expected) = (loaded[lane], halves[lane].to_accum());
                    let nan = got.is_nan() && expected.is_nan();
                    assert!(
                        got.to_bits() == expected.to_bits() || nan,
                        "{expected:e} on {isa:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn registers_of_halves_hold_what_halves_do() {
        registers_convert_as_values_do::<f16>(f16::from_bits, f16::to_bits);
        registers_convert_as_values_do::<bf16>(bf16::from_bits, bf16::to_bits);
    }
}
