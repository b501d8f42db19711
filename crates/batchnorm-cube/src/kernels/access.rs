//! Tensors in memory and in arithmetic.
//!
//! A tensor is read and written in vectors of `M` values of `E`; arithmetic is on vectors of `N` values of `A`. Mostly `E` is the tensor's
//! type and `M == N`. A packed tensor is `f32` seen as `u64`, two values in one: a software device loads lane by lane, at the same price for
//! 4 and 8 bytes, and halving the number of loads nearly halves the time of a kernel.

use cubecl::prelude::*;

use crate::blueprint::CubeShape;

/// A vector of the tensor.
#[cube]
pub(crate) fn read<E: Numeric, A: Float, M: Size, N: Size>(
    tensor: &[Vector<E, M>],
    index: usize,
    #[comptime] shape: CubeShape,
) -> Vector<A, N> {
    if comptime!(shape.packed) {
        let words = Vector::<u64, M>::cast_from(tensor[index]);
        let mut values = Vector::<A, N>::empty();
        #[unroll]
        for k in 0..M::value() {
            let word = words.extract(k);
            let low = f32::reinterpret(u32::cast_from(word));
            let high = f32::reinterpret(u32::cast_from(word >> 32u64));
            values.insert(comptime!(2 * k), A::cast_from(low));
            values.insert(comptime!(2 * k + 1), A::cast_from(high));
        }
        values
    } else {
        Vector::cast_from(tensor[index])
    }
}

/// Writes a vector of the tensor.
#[cube]
pub(crate) fn write<E: Numeric, A: Float, M: Size, N: Size>(
    tensor: &mut [Vector<E, M>],
    index: usize,
    values: Vector<A, N>,
    #[comptime] shape: CubeShape,
) {
    if comptime!(shape.packed) {
        let mut words = Vector::<u64, M>::empty();
        #[unroll]
        for k in 0..M::value() {
            let low = f32::cast_from(values.extract(comptime!(2 * k)));
            let high = f32::cast_from(values.extract(comptime!(2 * k + 1)));
            let low = u64::cast_from(u32::reinterpret(low));
            let high = u64::cast_from(u32::reinterpret(high));
            words.insert(k, low | (high << 32u64));
        }
        tensor[index] = Vector::cast_from(words);
    } else {
        tensor[index] = Vector::cast_from(values);
    }
}
