//! Weighted positions in Burn's own operations: the part of [`composed`](super::composed) that has to do
//! with weights.

use burn::backend::tensor::{BoolTensor, FloatTensor};
use burn::backend::{Backend, TensorMetadata, get_or_init_device_settings};
use burn::tensor::{DType, Shape};

use super::composed::{cast, pack, sum};
use crate::view::View;

/// Positions without a weight.
pub struct Absent<B: Backend>(BoolTensor<B>);

impl<B: Backend> Absent<B> {
    /// Of weights `[outer, 1 or channels, inner]`, as wide as the input.
    pub fn new(weights: FloatTensor<B>, view: View) -> Self {
        let full = Shape::new([view.outer, view.channels, view.inner]);
        let weights = B::float_expand(weights, full);
        let mask = get_or_init_device_settings::<B>(&weights.device()).bool_dtype;
        // Not `weights <= 0`: a NaN is no weight either.
        let present = B::float_greater_elem(weights, 0.0.into(), mask);
        Self(B::bool_not(present))
    }

    /// The tensor, with what takes its place where there is no weight and it is not finite.
    pub fn finite(&self, tensor: FloatTensor<B>, instead: FloatTensor<B>) -> FloatTensor<B> {
        let instead = B::float_expand(B::float_detach(instead), tensor.shape());
        let mask = get_or_init_device_settings::<B>(&tensor.device()).bool_dtype;
        // Not `x - x == 0`, which a shader's compiler takes for true.
        let lost = B::bool_or(
            B::float_is_nan(tensor.clone(), mask),
            B::float_is_inf(tensor.clone(), mask),
        );
        B::float_mask_where(tensor, B::bool_and(lost, self.0.clone()), instead)
    }

    fn emptied(&self, tensor: FloatTensor<B>) -> FloatTensor<B> {
        B::float_mask_fill(tensor, self.0.clone(), 0.0.into())
    }
}

/// Weights of positions, as wide as the input.
pub struct Weighed<B: Backend> {
    pub absent: Absent<B>,
    weights: FloatTensor<B>,
    /// `[1, channels, 1]`; at least the smallest number where they divide.
    pub sums: FloatTensor<B>,
    divisor: FloatTensor<B>,
}

impl<B: Backend> Weighed<B> {
    pub fn new(weights: FloatTensor<B>, view: View, dtype: DType) -> Self {
        let weights = cast::<B>(weights, dtype);
        let absent = Absent::<B>::new(weights.clone(), view);
        let full = Shape::new([view.outer, view.channels, view.inner]);
        let weights = absent.emptied(B::float_expand(weights, full));
        let sums = sum::<B>(weights.clone());
        Self {
            absent,
            weights,
            divisor: B::float_clamp_min(sums.clone(), f32::MIN_POSITIVE.into()),
            sums,
        }
    }

    /// Mean, what rounding took from it, and variance: `[3, channels]`. Without any weight mean 0 and variance
    /// 1, as of a new layer.
    pub fn moments(&self, x: FloatTensor<B>) -> FloatTensor<B> {
        let average = |tensor| {
            let sum = sum::<B>(B::float_mul(tensor, self.weights.clone()));
            B::float_div(sum, self.divisor.clone())
        };
        let x = self.absent.emptied(x);
        let about = average(B::float_detach(x.clone()));
        let centred = self.absent.emptied(B::float_sub(x, about.clone()));
        let rest = average(centred.clone());
        let centred = B::float_sub(centred, rest.clone());
        let variance = average(B::float_mul(centred.clone(), centred));
        // Not 0: what is there would be divided by the root of epsilon.
        let mask = get_or_init_device_settings::<B>(&variance.device()).bool_dtype;
        let nothing = B::float_equal_elem(self.sums.clone(), 0.0.into(), mask);
        let variance = B::float_mask_fill(variance, nothing, 1.0.into());
        let mean = B::float_add(about.clone(), rest.clone());
        let low = B::float_sub(rest, B::float_sub(mean.clone(), about));
        pack::<B>(vec![mean, B::float_detach(low), variance])
    }

    /// The share of each position, by its weight, in what goes through the statistics.
    pub fn share(&self, through: FloatTensor<B>) -> FloatTensor<B> {
        let share = B::float_div(self.weights.clone(), self.divisor.clone());
        self.absent.emptied(B::float_mul(through, share))
    }
}
