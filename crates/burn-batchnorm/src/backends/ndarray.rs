use burn::backend::{NdArray, TensorMetadata};
use burn::tensor::{Shape, TensorData};
use burn_ndarray::NdArrayTensor;
use bytemuck::{cast_slice, cast_slice_mut};

use super::host::{self, HostElementBase, HostTensor};
use crate::ops::{BatchNormOps, Maybe, Moments, Pass, Running, Wanted, composed};
use crate::statistics::Update;
use crate::view::View;

fn unsupported(tensor: &NdArrayTensor) -> ! {
    let dtype = tensor.dtype();
    panic!("batch norm expects contiguous F32 or F64 values, got {dtype:?}")
}

impl HostTensor for NdArrayTensor {
    fn into_contiguous(self) -> Self {
        match self {
            Self::F32(storage) if !storage.view().is_standard_layout() => Self::from(
                storage
                    .view()
                    .as_standard_layout()
                    .into_owned()
                    .into_shared(),
            ),
            Self::F64(storage) if !storage.view().is_standard_layout() => Self::from(
                storage
                    .view()
                    .as_standard_layout()
                    .into_owned()
                    .into_shared(),
            ),
            tensor => tensor,
        }
    }

    fn values<E: HostElementBase>(&self) -> &[E] {
        let values = match self {
            Self::F32(storage) => storage.view().to_slice().map(cast_slice),
            Self::F64(storage) => storage.view().to_slice().map(cast_slice),
            _ => None,
        };
        match values {
            Some(values) if self.dtype() == E::dtype() => values,
            _ => unsupported(self),
        }
    }

    fn values_mut<E: HostElementBase>(&mut self) -> Option<&mut [E]> {
        if self.dtype() != E::dtype() {
            unsupported(self);
        }
        match self {
            Self::F32(storage) if storage.is_unique() => {
                storage.ensure_owned().as_slice_mut().map(cast_slice_mut)
            }
            Self::F64(storage) if storage.is_unique() => {
                storage.ensure_owned().as_slice_mut().map(cast_slice_mut)
            }
            _ => None,
        }
    }

    fn from_values<E: HostElementBase>(values: Vec<E>, shape: Shape) -> Self {
        NdArrayTensor::from_data(TensorData::new(values, shape))
    }
}

super::implement::implement!(NdArray, NdArrayTensor);
