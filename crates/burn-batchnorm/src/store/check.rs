//! Whether a file goes with a model, before anything changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use burn::module::Module;
use burn::tensor::{DType, Device, Shape};
use burn_store::burn_pack::Tensor as Stored;
use burn_store::{ModuleAdapter, ModuleContext, ModuleSnapshot, bridge};

use super::names::{BATCH_NORM, COUNTER, split};
use super::{Framework, Reason, Refusal};

/// The tensors of a file by their paths in Burn, each with its key in the file.
pub(super) type Source = BTreeMap<String, (String, Stored)>;

/// A parameter of the model.
pub(super) struct Expected {
    path: String,
    module: String,
    shape: Shape,
    dtype: DType,
}

/// Notes what a model consists of: an adapter, since burn-store tells nobody else which layer a tensor
/// belongs to.
#[derive(Clone)]
struct Notes(Arc<Mutex<Vec<Expected>>>);

impl ModuleAdapter for Notes {
    fn adapt(&self, tensor: Stored, context: ModuleContext<'_>) -> Stored {
        let mut notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        notes.push(Expected {
            path: tensor.name.clone(),
            module: context.module_type().unwrap_or_default().to_string(),
            shape: tensor.shape.clone(),
            dtype: tensor.dtype,
        });
        tensor
    }

    fn clone_box(&self) -> Box<dyn ModuleAdapter> {
        Box::new(self.clone())
    }
}

pub(super) fn parameters<M: Module>(model: &M) -> Vec<Expected> {
    let notes = Notes(Arc::default());
    model.collect(None, Some(Box::new(notes.clone())), true);
    let mut notes = notes.0.lock().unwrap_or_else(PoisonError::into_inner);
    std::mem::take(&mut notes)
}

/// The tensors of a file, by the paths that they have in the model.
///
/// A root that the model does not have is left out: `sequential/` of Keras, `module.` of PyTorch's
/// `DataParallel`.
pub(super) fn source(
    tensors: &BTreeMap<String, Stored>,
    parameters: &[Expected],
    framework: Framework,
) -> Source {
    let paths = || tensors.keys().map(|key| framework.path(key));
    let root = |path: &str| path.split_once('.').map(|(root, _)| format!("{root}."));
    let common = paths()
        .next()
        .and_then(|path| root(&path))
        .filter(|root| paths().all(|path| path.starts_with(root)))
        .filter(|root| !parameters.iter().any(|p| p.path.starts_with(root)))
        .unwrap_or_default();
    tensors
        .iter()
        .map(|(key, tensor)| {
            let mut tensor = tensor.clone();
            tensor.name = framework.path(key).split_off(common.len());
            (tensor.name.clone(), (key.clone(), tensor))
        })
        .collect()
}

/// Every tensor that is missing, unknown, of another shape or type, or has values that no trained model
/// has; ordered by key.
pub(super) fn refusals(
    parameters: Vec<Expected>,
    source: &Source,
    devices: &[Device],
    framework: Framework,
) -> Vec<Refusal> {
    let mut used = BTreeSet::new();
    let mut refusals = Vec::new();
    for expected in parameters {
        let (parent, name) = split(&expected.path);
        let other = framework
            .name(&expected.module, name)
            .map(|name| format!("{parent}{name}"));
        let found = source
            .get_key_value(&expected.path)
            .or_else(|| source.get_key_value(&other?));
        let Some((path, (key, tensor))) = found else {
            refusals.push(Refusal {
                key: framework.key(&expected.module, &expected.path),
                reason: Reason::Missing {
                    expected: expected.shape,
                },
            });
            continue;
        };
        used.insert(path.clone());
        let tensor = adapted(tensor, &expected, framework);
        if let Err(reason) = fits(tensor, &expected, devices) {
            refusals.push(Refusal {
                key: key.clone(),
                reason,
            });
        }
    }
    let extra = source
        .iter()
        .filter(|(path, _)| !used.contains(*path) && !is_spare_count(path, &used))
        .map(|(_, (key, _))| Refusal {
            key: key.clone(),
            reason: Reason::Extra,
        });
    refusals.extend(extra);
    refusals.sort_by(|left, right| left.key.cmp(&right.key));
    refusals
}

/// PyTorch counts batches in every layer; one with an exponential average has no use for the count.
fn is_spare_count(path: &str, used: &BTreeSet<String>) -> bool {
    let (parent, name) = split(path);
    name == COUNTER && used.contains(&format!("{parent}running_mean"))
}

fn adapted(tensor: &Stored, expected: &Expected, framework: Framework) -> Stored {
    let mut tensor = tensor.clone();
    tensor.name.clone_from(&expected.path);
    let containers = [expected.module.clone()];
    framework
        .import()
        .adapt(tensor, ModuleContext::new(&containers))
}

fn fits(tensor: Stored, expected: &Expected, devices: &[Device]) -> Result<(), Reason> {
    let got = tensor.dtype;
    if tensor.shape != expected.shape {
        return Err(Reason::Shape {
            expected: expected.shape.clone(),
            got: tensor.shape,
        });
    }
    let kind = |dtype: DType| (dtype.is_float(), dtype.is_bool());
    let supported = devices.iter().all(|device| device.supports_dtype(got));
    if kind(got) != kind(expected.dtype) || !supported {
        return Err(Reason::DType {
            expected: expected.dtype,
            got,
        });
    }
    let values =
        bridge::into_data(tensor).map_err(|error| Reason::Unreadable(error.to_string()))?;
    if got.is_float() {
        let of = values.num_elements();
        let count = values.iter::<f64>().filter(|value| !value.is_finite());
        match count.count() {
            0 => (),
            count => return Err(Reason::NonFinite { count, of }),
        }
    }
    let (_, name) = split(&expected.path);
    if expected.module == BATCH_NORM && ["running_var", COUNTER].contains(&name) {
        let smallest = values.iter::<f64>().fold(0.0, f64::min);
        if smallest < 0.0 {
            return Err(Reason::Negative { smallest });
        }
    }
    Ok(())
}
