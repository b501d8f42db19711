//! The running statistics of a model, put aside and put back.

use std::collections::HashMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::{Int, Tensor, TensorData};

use crate::module::{CONTAINER, STATISTICS};

/// The running statistics of every batch norm layer of a model at one moment, without its weights.
///
/// ```
/// # use burn::tensor::{Device, Tensor};
/// use burn_batchnorm::{BatchNormConfig, Snapshot};
///
/// # let device = Device::default().autodiff();
/// let layer = BatchNormConfig::new(2).init(&device);
/// let before = Snapshot::of(&layer);
/// layer.forward(Tensor::<2>::ones([8, 2], &device));
/// let layer = before.restore(layer);
/// assert_eq!(layer.running_mean.value().into_data().to_vec::<f32>().unwrap(), [0.0, 0.0]);
/// ```
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    pub(crate) values: HashMap<ParamId, Tensor<1>>,
    pub(crate) counts: HashMap<ParamId, i64>,
}

impl Snapshot {
    /// Of `model`: any module with layers of this crate.
    pub fn of<M: Module>(model: &M) -> Self {
        let mut reader = Reader {
            field: None,
            snapshot: Self::default(),
        };
        model.visit(&mut reader);
        reader.snapshot
    }

    /// The model with these statistics. Layers are known by the ids of their parameters, which clones,
    /// moves, `valid()` and records keep.
    pub fn restore<M: Module>(&self, model: M) -> M {
        model.map(&mut Writer { snapshot: self })
    }
}

struct Reader {
    /// The field of a batch norm that is being visited.
    field: Option<&'static str>,
    snapshot: Snapshot,
}

impl ModuleVisitor for Reader {
    fn enter_module(&mut self, name: &str, container: &str) {
        let known = STATISTICS.iter().find(|field| **field == name).copied();
        self.field = known.filter(|_| container == CONTAINER);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.field = None;
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if self.field.is_some() {
            let value = param.val().flatten(0, D - 1);
            self.snapshot.values.insert(param.id, value);
        }
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        if self.field.is_some() {
            let count = param.val().into_data().iter::<i64>().next();
            self.snapshot.counts.insert(param.id, count.unwrap_or(0));
        }
    }
}

struct Writer<'a> {
    snapshot: &'a Snapshot,
}

impl ModuleMapper for Writer<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(value) = self.snapshot.values.get(&param.id) else {
            return param;
        };
        param.map(|old| value.clone().to_device(&old.device()).reshape(old.shape()))
    }

    fn map_int<const D: usize>(&mut self, param: Param<Tensor<D, Int>>) -> Param<Tensor<D, Int>> {
        let Some(count) = self.snapshot.counts.get(&param.id) else {
            return param;
        };
        param.map(|old| {
            let data = TensorData::new(vec![*count], old.shape());
            Tensor::from_data(data, (&old.device(), old.dtype()))
        })
    }
}
