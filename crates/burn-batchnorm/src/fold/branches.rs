//! Sums of parallel convolutions.
//!
//! Two convolutions of the same stride see the same positions if one's taps, seen from where its padding
//! ends, lie on the other's: a kernel of 1 without padding is the middle tap of a kernel of 3 with
//! padding 1. The smaller kernel then is the larger one with zeros around, and kernels add up.

use burn::module::Param;
use burn::nn::conv::{Conv1d, Conv1dConfig, Conv2d, Conv2dConfig, Conv3d, Conv3dConfig};
use burn::nn::{PaddingConfig1d, PaddingConfig2d, PaddingConfig3d};
use burn::tensor::{Tensor, s};

use super::affine::{Affine, beside, bias, bias_parameter, parameter, plain};
use super::{FoldError, Folded, Previous, largest_difference};
use crate::checks::cast;
use crate::ops::composed::compute_dtype;
use crate::{Activation, BatchNorm};

/// `Conv1d` to `Conv3d`.
pub trait Convolution<const D: usize>: Previous<D> + Clone {
    #[doc(hidden)]
    fn geometry(&self) -> Geometry;
    #[doc(hidden)]
    fn weight(&self) -> &Param<Tensor<D>>;
    #[doc(hidden)]
    fn bias(&self) -> Option<&Param<Tensor<1>>>;
    #[doc(hidden)]
    fn with_parameters(&self, weight: Param<Tensor<D>>, bias: Param<Tensor<1>>) -> Self;
    /// One tap, stride 1, no padding; the parameters are to be replaced.
    #[doc(hidden)]
    fn pointwise(norm: &BatchNorm, channels: usize, groups: usize) -> Self;
}

/// Where a convolution's taps are, per spatial axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Geometry {
    axes: Vec<Axis>,
    groups: usize,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Axis {
    taps: usize,
    stride: usize,
    dilation: usize,
    /// Before and after; None where it depends on the input's size.
    padding: Option<(usize, usize)>,
}

impl Axis {
    /// How many of `self`'s taps come before the first one of `other`, if all of `other`'s lie on
    /// `self`'s and both have outputs of the same size.
    fn offset(&self, other: &Self) -> Option<usize> {
        if self.stride != other.stride {
            return None;
        }
        // A single tap has no distance to others.
        if other.taps > 1 && self.dilation != other.dilation {
            return None;
        }
        let (Some(own), Some(others)) = (self.padding, other.padding) else {
            return (self == other).then_some(0);
        };
        let before = own.0.checked_sub(others.0)?;
        let offset = before / self.dilation;
        let after = self.taps.checked_sub(offset + other.taps)? * self.dilation;
        let aligned = before % self.dilation == 0 && own.1 == others.1 + after;
        aligned.then_some(offset)
    }
}

/// Padding that keeps the size, as Burn computes it. It depends on the input's size for strides over 1.
fn same(taps: usize, stride: usize) -> Option<(usize, usize)> {
    let total = taps - 1;
    (stride == 1 || taps == 1).then_some((total / 2, total - total / 2))
}

/// A batch norm as a convolution of one tap, for [`sum`]: the branch of RepVGG that has nothing else.
///
/// `groups` is that of the other branches.
///
/// # Errors
///
/// If `norm` trains, has no running statistics, an activation, or its channels elsewhere than on axis 1,
/// or if the groups do not divide its channels.
pub fn identity<const D: usize, L: Convolution<D>>(
    norm: &BatchNorm,
    groups: usize,
) -> Result<L, FoldError> {
    let config = norm.config();
    if config.activation != Activation::None {
        return Err(FoldError::Activation(config.activation));
    }
    let channels = config.num_features;
    if groups == 0 || !channels.is_multiple_of(groups) {
        return Err(FoldError::Groups { channels, groups });
    }
    let (device, dtype) = (norm.gamma.device(), norm.gamma.dtype());
    let Affine { scale, shift } = Affine::new(norm, channels, 1, D, (&device, dtype))?;
    let inputs = channels / groups;
    let one = Tensor::<2>::eye(inputs, &scale.device()).repeat_dim(0, groups);
    let weight = cast(one, scale.dtype()) * scale.unsqueeze_dim(1);
    let mut shape = [1; D];
    shape[..2].copy_from_slice(&[channels, inputs]);
    let layer = L::pointwise(norm, channels, groups);
    Ok(layer.with_parameters(
        beside(weight.reshape(shape), &norm.gamma),
        beside(shift, &norm.beta),
    ))
}

/// One convolution for the sum of several: `conv1(x) + conv2(x) + ..`. Fold the batch norm of each branch
/// [into it](super::into_previous) first, and make a branch of only a batch norm an [`identity`].
///
/// The result has the largest kernel, with the smaller ones in their place within it.
///
/// # Shapes
///
/// - `input`: an input of the branches
///
/// # Errors
///
/// If there is no branch, or one has other channels, groups, strides, dilations or device, or a kernel
/// and padding that do not fit into the largest.
pub fn sum<const D: usize, L: Convolution<D>>(
    branches: &[L],
    input: Option<Tensor<D>>,
) -> Result<Folded<L>, FoldError> {
    let taps = |layer: &L| layer.weight().shape()[2..].iter().product::<usize>();
    // The first of the largest.
    let largest = branches.iter().rev().max_by_key(|layer| taps(layer));
    let largest = largest.ok_or(FoldError::NoBranches)?;
    let (device, dtype) = largest.place();
    let wide = compute_dtype(dtype);
    let geometry = largest.geometry();
    let shape = largest.weight().shape();

    let plain_device = device.clone().inner();
    let mut weight = Tensor::<D>::zeros(shape.clone(), (&plain_device, wide));
    let mut shift = Tensor::<1>::zeros([shape[0]], (&plain_device, wide));
    for (branch, layer) in branches.iter().enumerate() {
        let (other, own) = (layer.geometry(), layer.weight().shape());
        let offsets = geometry.axes.iter().zip(&other.axes);
        let offsets = offsets.map(|(large, small)| large.offset(small));
        let offsets: Option<Vec<usize>> = offsets.collect();
        let fits = (own[0], own[1], other.groups) == (shape[0], shape[1], geometry.groups)
            && layer.place().0 == device;
        let Some(offsets) = offsets.filter(|_| fits) else {
            let describe = |shape: &[usize], geometry: &Geometry| {
                format!("a weight of shape {shape:?} with {geometry:?}")
            };
            return Err(FoldError::Branch {
                branch,
                expected: format!("taps within {}", describe(&shape, &geometry)),
                got: describe(&own, &other),
            });
        };
        let mut place = [s![..]; D];
        for (axis, offset) in offsets.into_iter().enumerate() {
            place[axis + 2] = s![offset..offset + own[axis + 2]];
        }
        let values = plain(layer.weight().val(), wide);
        let sum = weight.clone().slice(place) + values;
        weight = weight.slice_assign(place, sum);
        shift = shift.clone() + bias(layer.bias(), &shift);
    }
    let layer = largest.with_parameters(
        parameter(weight, largest.weight()),
        bias_parameter(shift, largest.bias(), largest.weight()),
    );
    let difference = input.map(|input| {
        let outputs = branches.iter().map(|branch| branch.run(input.clone()));
        let expected = outputs.reduce(|sum, output| sum + output);
        largest_difference(layer.run(input.clone()), expected.expect("a branch"))
    });
    Ok(Folded {
        layer,
        activation: Activation::None,
        difference,
    })
}

macro_rules! convolution {
    ($convolution:ident, $rank:literal, $axes:expr, $pointwise:expr) => {
        impl Convolution<$rank> for $convolution {
            fn geometry(&self) -> Geometry {
                Geometry {
                    axes: $axes(self),
                    groups: self.groups,
                }
            }

            fn weight(&self) -> &Param<Tensor<$rank>> {
                &self.weight
            }

            fn bias(&self) -> Option<&Param<Tensor<1>>> {
                self.bias.as_ref()
            }

            fn with_parameters(
                &self,
                weight: Param<Tensor<$rank>>,
                bias: Param<Tensor<1>>,
            ) -> Self {
                Self {
                    weight,
                    bias: Some(bias),
                    ..self.clone()
                }
            }

            fn pointwise(norm: &BatchNorm, channels: usize, groups: usize) -> Self {
                $pointwise(channels)
                    .with_groups(groups)
                    .init(&norm.gamma.device())
            }
        }
    };
}

fn axes<const S: usize>(
    [taps, stride, dilation]: [[usize; S]; 3],
    padding: [Option<(usize, usize)>; S],
) -> Vec<Axis> {
    (0..S)
        .map(|axis| Axis {
            taps: taps[axis],
            stride: stride[axis],
            dilation: dilation[axis],
            padding: padding[axis],
        })
        .collect()
}

convolution!(
    Conv1d,
    3,
    |conv: &Conv1d| {
        let padding = match conv.padding {
            PaddingConfig1d::Valid => Some((0, 0)),
            PaddingConfig1d::Explicit(before, after) => Some((before, after)),
            PaddingConfig1d::Same => same(conv.kernel_size, conv.stride),
        };
        axes(
            [[conv.kernel_size], [conv.stride], [conv.dilation]],
            [padding],
        )
    },
    |channels| Conv1dConfig::new(channels, channels, 1)
);
convolution!(
    Conv2d,
    4,
    |conv: &Conv2d| {
        let padding = match conv.padding {
            PaddingConfig2d::Valid => [Some((0, 0)); 2],
            PaddingConfig2d::Explicit(top, left, bottom, right) => {
                [Some((top, bottom)), Some((left, right))]
            }
            PaddingConfig2d::Same => [0, 1].map(|i| same(conv.kernel_size[i], conv.stride[i])),
        };
        axes([conv.kernel_size, conv.stride, conv.dilation], padding)
    },
    |channels| Conv2dConfig::new([channels; 2], [1; 2])
);
convolution!(
    Conv3d,
    5,
    |conv: &Conv3d| {
        let padding = match conv.padding {
            PaddingConfig3d::Valid => [Some((0, 0)); 3],
            PaddingConfig3d::Explicit(depth, height, width) => {
                [depth, height, width].map(|size| Some((size, size)))
            }
            PaddingConfig3d::Same => [0, 1, 2].map(|i| same(conv.kernel_size[i], conv.stride[i])),
        };
        axes([conv.kernel_size, conv.stride, conv.dilation], padding)
    },
    |channels| Conv3dConfig::new([channels; 2], [1; 3])
);
