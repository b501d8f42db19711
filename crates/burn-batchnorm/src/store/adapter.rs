use burn::tensor::{DType, Shape, TensorData};
use burn_store::burn_pack::Tensor as Stored;
use burn_store::{
    BurnToPyTorchAdapter, ModuleAdapter, ModuleContext, PyTorchToBurnAdapter, bridge,
};

use super::Framework;
use super::names::{BATCH_NORM, COUNTER, permute, permuted, spatial_first, spatial_last, split};

/// Between a framework's tensors and Burn's, for burn-store: names, kernel layouts, and the batch
/// counter, which PyTorch keeps as an int64 of shape `[]` and Burn, which has no such shape, as `[1]`.
///
/// Made by [`Framework::import`] and [`Framework::export`].
#[derive(Debug, Clone, Copy)]
pub struct FrameworkAdapter {
    framework: Framework,
    import: bool,
}

impl Framework {
    /// The adapter for reading, for a store's `with_from_adapter`.
    ///
    /// [`load`](Self::load) does more: it checks every tensor before it changes any.
    pub fn import(self) -> FrameworkAdapter {
        FrameworkAdapter {
            framework: self,
            import: true,
        }
    }

    /// The adapter for writing, for a store's `with_to_adapter`.
    pub fn export(self) -> FrameworkAdapter {
        FrameworkAdapter {
            framework: self,
            import: false,
        }
    }
}

impl ModuleAdapter for FrameworkAdapter {
    fn adapt(&self, tensor: Stored, context: ModuleContext<'_>) -> Stored {
        let Some(module) = context.module_type() else {
            return tensor;
        };
        let (_, name) = split(&tensor.name);
        if module == BATCH_NORM && name == COUNTER {
            return match self.import {
                true => imported_count(tensor),
                false => exported_count(self.framework.key(module, &tensor.name), tensor),
            };
        }
        match (self.framework, self.import) {
            (Framework::PyTorch, true) => PyTorchToBurnAdapter.adapt(tensor, context),
            (Framework::PyTorch, false) => BurnToPyTorchAdapter.adapt(tensor, context),
            (framework, import) => {
                let convolution = framework.spatial_first(module, name) && tensor.shape.len() > 2;
                let mut tensor = tensor;
                if !import {
                    tensor.name = framework.key(module, &tensor.name);
                }
                match convolution {
                    true => transposed(tensor, import),
                    false => tensor,
                }
            }
        }
    }

    fn get_alternative_param_name(&self, name: &str, module: &str) -> Option<String> {
        match (self.framework, self.import) {
            (Framework::PyTorch, true) => {
                PyTorchToBurnAdapter.get_alternative_param_name(name, module)
            }
            (Framework::PyTorch, false) => {
                BurnToPyTorchAdapter.get_alternative_param_name(name, module)
            }
            (framework, _) => framework.name(module, name).map(str::to_string),
        }
    }

    fn clone_box(&self) -> Box<dyn ModuleAdapter> {
        Box::new(*self)
    }
}

/// A kernel with its axes in the order of the other side.
fn transposed(tensor: Stored, import: bool) -> Stored {
    let rank = tensor.shape.len();
    let axes = match import {
        true => spatial_last(rank),
        false => spatial_first(rank),
    };
    let (name, dtype) = (tensor.name.clone(), tensor.dtype);
    let shape = permuted(&tensor.shape, &axes);
    bridge::map_data(tensor, name, dtype, shape, move |data| permute(data, &axes))
}

fn reshaped(data: TensorData, shape: Shape) -> TensorData {
    let (bytes, _, dtype) = data.into_parts();
    TensorData::from_bytes(bytes, shape, dtype)
}

/// A count of shape `[1]`. In i32 where it fits: not every device has an i64, and the layer keeps 64
/// bits whatever the file has.
fn imported_count(tensor: Stored) -> Stored {
    let scalar = tensor.shape.num_elements() == 1 && tensor.shape.len() < 2;
    if !scalar || tensor.dtype != DType::I64 {
        return tensor;
    }
    let Ok(count) = bridge::to_data(&tensor) else {
        return tensor;
    };
    let fits = count
        .iter::<i64>()
        .all(|count| i32::try_from(count).is_ok());
    let count = match fits {
        true => count.convert_dtype(DType::I32),
        false => count,
    };
    bridge::from_data(
        reshaped(count, Shape::new([1])),
        tensor.name,
        tensor.param_id,
    )
}

fn exported_count(name: String, tensor: Stored) -> Stored {
    bridge::map_data(tensor, name, DType::I64, Shape::new([]), |data| {
        reshaped(data.convert_dtype(DType::I64), Shape::new([]))
    })
}
