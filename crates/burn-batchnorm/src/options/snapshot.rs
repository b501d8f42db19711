//! The running statistics of a model, put aside and put back.

use std::cell::RefCell;
use std::collections::HashMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, ParamId};

use crate::statistics::{Shared, Values};

/// The running statistics of every batch norm layer of a model at one moment, without its weights: means,
/// variances, the number of batches, and what each channel has skipped of them.
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
    /// By the id of the running mean.
    pub(crate) layers: HashMap<ParamId, Values>,
}

thread_local! {
    /// What the layers of a model that is visited or mapped on this thread put their statistics into, or take
    /// them from: not all that a layer knows is in its parameters.
    static EXCHANGE: RefCell<Exchange> = const { RefCell::new(Exchange::None) };
}

enum Exchange {
    None,
    Put(Snapshot),
    Take(Snapshot),
}

impl Snapshot {
    /// Of `model`: any module with layers of this crate.
    pub fn of<M: Module>(model: &M) -> Self {
        let filled = exchange(Exchange::Put(Self::default()), || {
            model.visit(&mut Nothing);
        });
        match filled.1 {
            Exchange::Put(snapshot) => snapshot,
            _ => Self::default(),
        }
    }

    /// The model with these statistics. Layers are known by the ids of their parameters, which clones,
    /// moves, `valid()` and records keep.
    pub fn restore<M: Module>(&self, model: M) -> M {
        exchange(Exchange::Take(self.clone()), || model.map(&mut Nothing)).0
    }
}

/// Runs `walk` over the layers of a model. Returns also what they left.
fn exchange<R>(with: Exchange, walk: impl FnOnce() -> R) -> (R, Exchange) {
    /// Nothing may stay behind where `walk` panics.
    struct Emptied;
    impl Drop for Emptied {
        fn drop(&mut self) {
            EXCHANGE.set(Exchange::None);
        }
    }
    let _emptied = Emptied;
    EXCHANGE.set(with);
    let result = walk();
    (result, EXCHANGE.replace(Exchange::None))
}

/// A layer is visited, whose running mean has this id.
pub(crate) fn visited(id: ParamId, values: &Values) {
    EXCHANGE.with_borrow_mut(|exchange| {
        if let Exchange::Put(snapshot) = exchange {
            snapshot.layers.insert(id, values.clone());
        }
    });
}

/// A layer is mapped, whose running mean has this id.
pub(crate) fn mapped(id: ParamId, statistics: &Shared) {
    let values = EXCHANGE.with_borrow(|exchange| match exchange {
        Exchange::Take(snapshot) => snapshot.layers.get(&id).cloned(),
        _ => None,
    });
    if let Some(values) = values {
        let device = statistics.values().mean.device();
        statistics.replace(values);
        statistics.relocate(&device);
    }
}

/// Looks at nothing and changes nothing.
struct Nothing;

impl ModuleVisitor for Nothing {}

impl ModuleMapper for Nothing {}
