//! A number that all channels share, or one a channel.

use burn::tensor::Tensor;

use crate::checks::{cast, to_device};

/// Kept on the host where it is the same for all channels, which it is unless masks or guards tell them
/// apart.
#[derive(Debug, Clone)]
pub(crate) enum Amount {
    Same(f64),
    /// Shape `[channels]`.
    Each(Box<Tensor<1>>),
}

impl Amount {
    /// Of shape `[channels]`.
    pub(crate) fn each(each: Tensor<1>) -> Self {
        Self::Each(Box::new(each))
    }

    pub(crate) fn plus(&self, other: &Self) -> Self {
        match (self, other) {
            (Self::Same(a), Self::Same(b)) => Self::Same(a + b),
            (Self::Each(a), Self::Each(b)) => Self::each(a.as_ref().clone() + like(b, a)),
            (Self::Each(each), Self::Same(same)) | (Self::Same(same), Self::Each(each)) => {
                Self::each(each.as_ref().clone() + *same)
            }
        }
    }

    pub(crate) fn times(&self, other: &Self) -> Self {
        match (self, other) {
            (Self::Same(a), Self::Same(b)) => Self::Same(a * b),
            (Self::Each(a), Self::Each(b)) => Self::each(a.as_ref().clone() * like(b, a)),
            (Self::Each(each), Self::Same(same)) | (Self::Same(same), Self::Each(each)) => {
                Self::each(each.as_ref().clone() * *same)
            }
        }
    }

    /// What it is of a `total` that is not less; 0 of nothing.
    pub(crate) fn share_of(&self, total: &Self) -> Self {
        match (self, total) {
            (Self::Same(part), Self::Same(total)) => {
                Self::Same(part / total.max(f64::MIN_POSITIVE))
            }
            (part, Self::Same(total)) => {
                part.times(&Self::Same(1.0 / total.max(f64::MIN_POSITIVE)))
            }
            (part, Self::Each(total)) => {
                let total = total.as_ref().clone().clamp_min(f32::MIN_POSITIVE);
                part.times(&Self::each(total.recip()))
            }
        }
    }

    /// 1 less it.
    pub(crate) fn rest(&self) -> Self {
        match self {
            Self::Same(same) => Self::Same(1.0 - same),
            Self::Each(each) => Self::each(each.as_ref().clone().neg() + 1.0),
        }
    }

    /// A statistic times it: nothing of a NaN where it is 0 by channel.
    pub(crate) fn of(&self, statistic: &Tensor<1>) -> Tensor<1> {
        match self {
            Self::Same(same) => statistic.clone() * *same,
            Self::Each(each) => {
                let each = like(each, statistic);
                let nothing = each.clone().equal_elem(0.0);
                (statistic.clone() * each).mask_fill(nothing, 0.0)
            }
        }
    }
}

/// At the place and in the type of another.
pub(crate) fn like(tensor: &Tensor<1>, other: &Tensor<1>) -> Tensor<1> {
    cast(to_device(tensor.clone(), &other.device()), other.dtype())
}
