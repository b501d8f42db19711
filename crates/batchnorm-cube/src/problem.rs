//! The facts of a tensor that a kernel depends on: its shape and its type.

use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;

use crate::{Error, Strategy};

/// A contiguous tensor with a channel axis, seen as `(outer, channels, inner)`.
///
/// Element `[o, c, i]` lies at `(o * channels + c) * inner + i`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layout {
    /// Product of the dimensions before the channel axis.
    pub outer: usize,
    /// Size of the channel axis.
    pub channels: usize,
    /// Product of the dimensions after the channel axis.
    pub inner: usize,
}

impl Layout {
    /// The layout of a contiguous tensor of `shape` whose channels are dimension `axis`.
    pub fn from_shape(shape: &[usize], axis: usize) -> Result<Self, Error> {
        let rank = shape.len();
        if axis >= rank {
            return Err(Error::Axis { axis, rank });
        }
        Ok(Self {
            outer: shape[..axis].iter().product(),
            channels: shape[axis],
            inner: shape[axis + 1..].iter().product(),
        })
    }

    /// Elements of the tensor.
    pub fn len(&self) -> usize {
        self.outer * self.channels * self.inner
    }

    /// Whether the tensor has no element.
    pub fn is_empty(&self) -> bool {
        self.outer == 0 || self.channels == 0 || self.inner == 0
    }

    /// Values of one channel.
    pub fn samples_per_channel(&self) -> usize {
        self.outer * self.inner
    }
}

/// The type of a tensor. Statistics and parameters are `f64` for `F64` and `f32` for all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Element {
    /// 32 bits.
    F32,
    /// 16 bits.
    F16,
    /// 16 bits with the exponent of `f32`.
    Bf16,
    /// 64 bits.
    F64,
}

impl Element {
    /// The type as CubeCL knows it.
    pub fn elem_type(&self) -> ElemType {
        ElemType::Float(match self {
            Element::F32 => FloatKind::F32,
            Element::F16 => FloatKind::F16,
            Element::Bf16 => FloatKind::BF16,
            Element::F64 => FloatKind::F64,
        })
    }

    /// The type of statistics, parameters and arithmetic.
    pub fn accumulator(&self) -> Element {
        match self {
            Element::F64 => Element::F64,
            _ => Element::F32,
        }
    }

    /// Bytes of a value.
    pub fn size(&self) -> usize {
        self.elem_type().size()
    }

    fn name(&self) -> &'static str {
        match self {
            Element::F32 => "f32",
            Element::F16 => "f16",
            Element::Bf16 => "bf16",
            Element::F64 => "f64",
        }
    }
}

/// A tensor as far as a kernel's choice depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Problem {
    /// The shape.
    pub layout: Layout,
    /// The type of the values.
    pub element: Element,
    /// For which kind of device the work is cut.
    pub strategy: Strategy,
}

impl Problem {
    /// The problem, cut for the device that it is solved on.
    pub fn new(layout: Layout, element: Element) -> Self {
        Self {
            layout,
            element,
            strategy: Strategy::Auto,
        }
    }

    /// Kernels index with 32 bits.
    const MAX_LEN: usize = u32::MAX as usize;

    pub(crate) fn validate(&self, client: &Client) -> Result<(), Error> {
        let Layout {
            outer,
            channels,
            inner,
        } = self.layout;
        let len = outer
            .checked_mul(channels)
            .and_then(|len| len.checked_mul(inner));
        if len.is_none_or(|len| len > Self::MAX_LEN) {
            return Err(Error::TooLarge {
                limit: Self::MAX_LEN,
                outer,
                channels,
                inner,
            });
        }
        for element in [self.element, self.element.accumulator()] {
            if !client.properties().supports_type(element.elem_type()) {
                return Err(Error::Element {
                    element: element.name(),
                    device: client.properties().identity.name.clone(),
                });
            }
        }
        Ok(())
    }

    /// Bytes of the tensor.
    pub(crate) fn tensor_bytes(&self) -> u64 {
        (self.layout.len() * self.element.size()) as u64
    }

    /// Bytes of a vector of one value per channel.
    pub(crate) fn channel_bytes(&self) -> u64 {
        (self.layout.channels * self.element.accumulator().size()) as u64
    }
}
