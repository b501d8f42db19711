//! The facts of a tensor that a kernel depends on: its layout and its type.

use cubecl::ir::{ElemType, FloatKind};

use crate::{Error, Layout, Strategy};

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

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Element::F32 => "f32",
            Element::F16 => "f16",
            Element::Bf16 => "bf16",
            Element::F64 => "f64",
        }
    }
}

impl TryFrom<ElemType> for Element {
    type Error = Error;

    /// The types that the kernels know; `Flex32` is none of them, for its size in memory is the device's choice.
    fn try_from(elem: ElemType) -> Result<Self, Error> {
        let known = [Element::F32, Element::F16, Element::Bf16, Element::F64];
        let found = known.into_iter().find(|known| known.elem_type() == elem);
        found.ok_or_else(|| Error::Type {
            got: format!("{elem:?}"),
        })
    }
}

/// A tensor as far as a kernel's choice depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Problem {
    /// Shape and strides.
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

    /// Bytes of a buffer of the tensor.
    pub(crate) fn span_bytes(&self) -> u64 {
        (self.layout.span() * self.element.size()) as u64
    }

    /// Bytes of the tensor's values.
    pub(crate) fn tensor_bytes(&self) -> u64 {
        (self.layout.len() * self.element.size()) as u64
    }

    /// Bytes of weights of all positions, which channels share, or of those of all values in memory.
    pub(crate) fn weight_bytes(&self, own: bool) -> u64 {
        let values = match own {
            true => self.layout.span(),
            false => self.layout.samples_per_channel(),
        };
        (values * self.element.accumulator().size()) as u64
    }

    /// Bytes of a vector of one value per channel.
    pub(crate) fn channel_bytes(&self) -> u64 {
        (self.layout.channels * self.element.accumulator().size()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_that_are_known() {
        let bf16 = ElemType::Float(FloatKind::BF16);
        assert_eq!(Element::try_from(bf16), Ok(Element::Bf16));
        let flex = Element::try_from(ElemType::Float(FloatKind::Flex32));
        assert!(matches!(flex, Err(Error::Type { .. })));
    }
}
