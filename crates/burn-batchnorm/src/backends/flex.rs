use burn::backend::Flex;
use burn::tensor::{Shape, TensorData};
use burn_flex::FlexTensor;

use super::host::{self, HostElementBase, HostTensor};
use crate::ops::{BatchNormOps, Maybe, Moments, Pass, Running, Wanted, composed};
use crate::statistics::Update;
use crate::view::View;

impl HostTensor for FlexTensor {
    fn into_contiguous(self) -> Self {
        match self.is_contiguous() {
            true => self,
            false => self.to_contiguous(),
        }
    }

    fn values<E: HostElementBase>(&self) -> &[E] {
        self.as_slice().unwrap_or_else(|| {
            let (expected, got) = (E::dtype(), self.dtype());
            panic!("batch norm expects contiguous {expected:?} values, got {got:?}")
        })
    }

    fn values_mut<E: HostElementBase>(&mut self) -> Option<&mut [E]> {
        let (start, end) = self.layout().contiguous_offsets()?;
        Some(&mut self.try_storage_mut()?[start..end])
    }

    fn from_values<E: HostElementBase>(values: Vec<E>, shape: Shape) -> Self {
        FlexTensor::from_data(TensorData::new(values, shape))
    }
}

super::implement::implement!(Flex, FlexTensor);
