//! State that a training forward pass changes behind `&self`.
//!
//! A layer is trained through a shared reference, possibly by several workers at once, so its
//! running statistics live behind a lock. Three rules make copies predictable, and each is tested:
//!
//! - **Always current.** An update is visible at once to `value()`, `valid()`, records and clones.
//!   burn-nn parks updates per thread, so a record taken right after a step misses that step.
//! - **A clone is a value.** Nothing done to a clone (training it, loading into it, averaging it)
//!   reaches its source, nor the other way round. `to_device`, `valid` and `train` keep that.
//! - **A fork is a worker.** Burn's multi-device training clones the model for every step and forks
//!   the clone onto the worker's device. What such a fork observes in training is reported to the
//!   module the clone was made from. Reports that started from one value, the workers of one step,
//!   are averaged, weighted by their number of values, and count as one batch; so the result does
//!   not depend on which worker finishes first. Later reports of the same fork add their change.
//!
//! An update is therefore a *report*: the value it started from (and that value's version), the
//! value it arrived at, and a weight. The owner of the value decides how to merge it:
//!
//! | the report started from        | merge                                                       |
//! |--------------------------------|-------------------------------------------------------------|
//! | the present version            | take over the new value, open a group                       |
//! | the version the group opened at| weighted mean of the group: `v += (after - v) * w / sum(w)` |
//! | anything older                 | add the change: `v += after - before`                       |
//!
//! The values are tensors; all of this enqueues work on their device and never reads them back.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use burn::module::{
    Content, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor, Param,
    ParamId,
};
use burn::tensor::{DType, Device, Int, Shape, Tensor, TensorData};

/// A value that reports can be merged into.
trait Merge: Clone {
    /// The weighted mean of `self` and `other`, of which `other` has the share `weight`.
    fn average(self, other: Self, weight: f64) -> Self;
    /// `self + (after - before)`.
    fn add_change(self, before: Self, after: Self) -> Self;
}

impl Merge for Tensor<1> {
    fn average(self, other: Self, weight: f64) -> Self {
        let other = other.to_device(&self.device());
        self.clone() + (other - self) * weight
    }

    fn add_change(self, before: Self, after: Self) -> Self {
        let device = self.device();
        self + (after.to_device(&device) - before.to_device(&device))
    }
}

impl Merge for u64 {
    fn average(self, _other: Self, _weight: f64) -> Self {
        self
    }

    fn add_change(self, before: Self, after: Self) -> Self {
        self.saturating_add(after.saturating_sub(before))
    }
}

#[derive(Debug)]
struct State<T> {
    value: T,
    version: u64,
    /// Version that the open group started from, and the weight collected so far.
    group: Option<(u64, f64)>,
}

/// One value, the version it has, and whom a fork of it reports to.
#[derive(Debug)]
struct Shared<T> {
    state: Arc<Mutex<State<T>>>,
    /// What this value was cloned from, at which version: what a fork of it reports to.
    source: Option<(Weak<Mutex<State<T>>>, u64)>,
    /// Whether updates go to `source` too. The version is used up by the first of them.
    report: Option<Arc<Mutex<Option<u64>>>>,
}

/// A value as read by a forward pass, to be handed back with what became of it.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot<T> {
    pub(crate) value: T,
    version: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The guarded values are replaced whole, so a panic elsewhere cannot leave them half written.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T: Merge> State<T> {
    fn merge(&mut self, started_from: Option<u64>, before: T, after: T, weight: f64) {
        match (started_from, self.group) {
            (Some(version), _) if version == self.version => {
                self.value = after;
                self.version += 1;
                self.group = Some((version, weight));
            }
            (Some(version), Some((group, sum))) if version == group => {
                let sum = sum + weight;
                self.value = self.value.clone().average(after, weight / sum);
                self.group = Some((group, sum));
            }
            _ => {
                self.value = self.value.clone().add_change(before, after);
                self.version += 1;
                self.group = None;
            }
        }
    }
}

impl<T: Merge> Shared<T> {
    fn new(value: T) -> Self {
        Self {
            state: Arc::new(Mutex::new(State {
                value,
                version: 0,
                group: None,
            })),
            source: None,
            report: None,
        }
    }

    fn snapshot(&self) -> Snapshot<T> {
        let state = lock(&self.state);
        Snapshot {
            value: state.value.clone(),
            version: state.version,
        }
    }

    fn value(&self) -> T {
        lock(&self.state).value.clone()
    }

    /// Replaces the value: loading, moving, mapping. Never reported.
    fn set(&self, value: T) {
        let mut state = lock(&self.state);
        state.value = value;
        state.version += 1;
        state.group = None;
    }

    /// What a training forward pass made of `before`, from `weight` values per channel.
    fn update(&self, before: Snapshot<T>, after: T, weight: f64, on_source: impl Fn(T, &T) -> T) {
        if let (Some((source, _)), Some(version)) = (&self.source, &self.report)
            && let Some(source) = source.upgrade()
        {
            let started_from = lock(version).take();
            let mut state = lock(&source);
            let before = on_source(before.value.clone(), &state.value);
            let after = on_source(after.clone(), &state.value);
            state.merge(started_from, before, after, weight);
        }
        let mut state = lock(&self.state);
        state.merge(Some(before.version), before.value, after, weight);
        // Only reports of several workers are averaged; passes over one layer follow each other.
        state.group = None;
    }

    /// The same value as a worker's: its updates are reported to what this was cloned from.
    fn fork(self) -> Self {
        let version = self.source.as_ref().map(|(_, version)| *version);
        Self {
            report: version.map(|version| Arc::new(Mutex::new(Some(version)))),
            ..self
        }
    }
}

impl<T: Merge> Clone for Shared<T> {
    fn clone(&self) -> Self {
        let Snapshot { value, version } = self.snapshot();
        Self {
            source: Some((Arc::downgrade(&self.state), version)),
            ..Self::new(value)
        }
    }
}

/// A running statistic of a layer: shape `[channels]`, never tracked by autodiff.
///
/// The counterpart of `burn::module::RunningState`, with the semantics of copies that the source of
/// this module tells: always current, a clone is a value, a fork is a worker.
#[derive(Debug, Clone)]
pub struct RunningState {
    id: ParamId,
    shared: Shared<Tensor<1>>,
}

impl RunningState {
    /// A running statistic that starts at `value`, shape `[channels]`.
    pub fn new(value: Tensor<1>) -> Self {
        Self::with_id(ParamId::new(), value)
    }

    /// As [`new`](Self::new), with the id that optimizers and records know it by.
    pub fn with_id(id: ParamId, value: Tensor<1>) -> Self {
        Self {
            id,
            shared: Shared::new(value.without_autodiff()),
        }
    }

    /// The present value, shape `[channels]`.
    pub fn value(&self) -> Tensor<1> {
        self.shared.value()
    }

    /// The same as [`value`](Self::value), which is always current: kept for programs written for
    /// `burn::module::RunningState`.
    pub fn value_sync(&self) -> Tensor<1> {
        self.value()
    }

    /// Replaces the value, shape `[channels]`.
    pub fn update(&self, value: Tensor<1>) {
        self.shared.set(value.without_autodiff());
    }

    pub(crate) fn snapshot(&self) -> Snapshot<Tensor<1>> {
        self.shared.snapshot()
    }

    pub(crate) fn observe(&self, before: Snapshot<Tensor<1>>, after: Tensor<1>, weight: f64) {
        self.shared.update(before, after, weight, |value, on| {
            value.to_device(&on.device())
        });
    }
}

impl Module for RunningState {
    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        visitor.visit_float(&Param::initialized(self.id, self.value()));
    }

    fn map<M: ModuleMapper>(self, mapper: &mut M) -> Self {
        let (id, value, _) = mapper
            .map_float(Param::initialized(self.id, self.value()))
            .consume();
        self.update(value);
        Self { id, ..self }
    }

    fn to_device(self, device: &Device) -> Self {
        self.update(self.value().to_device(device));
        self
    }

    fn fork(self, device: &Device) -> Self {
        let Self { id, shared } = self.to_device(device);
        Self {
            id,
            shared: shared.fork(),
        }
    }

    fn collect_devices(&self, mut devices: Vec<Device>) -> Vec<Device> {
        let device = self.value().device();
        if !devices.contains(&device) {
            devices.push(device);
        }
        devices
    }

    fn materialize(self) -> Self {
        self
    }

    fn valid(&self) -> Self {
        Self::with_id(self.id, self.value())
    }

    fn train(self) -> Self {
        self
    }
}

impl ModuleDisplayDefault for RunningState {
    fn content(&self, content: Content) -> Option<Content> {
        content.add_formatted(&"RunningState").optional()
    }
}

impl ModuleDisplay for RunningState {}

/// The number of batches that entered the running statistics.
///
/// Kept on the host, so that a training step neither waits for the device nor launches anything for
/// it. Records hold it as an integer tensor of shape `[1]`, since Burn has no tensors of rank 0, and
/// under a name of its own, since burn-store would refuse PyTorch's `num_batches_tracked` (shape
/// `[]`) as a mismatch.
#[derive(Debug, Clone)]
pub struct BatchCounter {
    id: ParamId,
    device: Device,
    shared: Shared<u64>,
}

impl BatchCounter {
    pub(crate) fn new(device: &Device) -> Self {
        Self {
            id: ParamId::new(),
            device: device.clone().without_autodiff(),
            shared: Shared::new(0),
        }
    }

    /// The present count.
    pub fn value(&self) -> u64 {
        self.shared.value()
    }

    /// Replaces the count.
    pub fn set(&self, count: u64) {
        self.shared.set(count);
    }

    pub(crate) fn snapshot(&self) -> Snapshot<u64> {
        self.shared.snapshot()
    }

    pub(crate) fn observe(&self, before: Snapshot<u64>, weight: f64) {
        let after = before.value.saturating_add(1);
        self.shared.update(before, after, weight, |count, _| count);
    }

    /// The count as a parameter whose tensor is made only if somebody looks: an optimizer maps every
    /// parameter at every step.
    fn param(&self) -> Param<Tensor<1, Int>> {
        let count = i64::try_from(self.value()).unwrap_or(i64::MAX);
        let make = move |device: &Device, _| count_tensor(count, device);
        Param::uninitialized(self.id, make, self.device.clone(), false, Shape::new([1]))
    }
}

fn count_tensor(count: i64, device: &Device) -> Tensor<1, Int> {
    let data = TensorData::from([count]);
    match device.supports_dtype(DType::I64) {
        true => Tensor::from_data(data, (device, DType::I64)),
        false => Tensor::from_data(data, device),
    }
}

impl Module for BatchCounter {
    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        visitor.visit_int(&self.param());
    }

    fn map<M: ModuleMapper>(self, mapper: &mut M) -> Self {
        let param = mapper.map_int(self.param());
        if !param.is_initialized() {
            return self;
        }
        let id = param.id;
        let count = param.into_value().into_data().iter::<i64>().next();
        self.set(count.map_or(0, |count| u64::try_from(count).unwrap_or(0)));
        Self { id, ..self }
    }

    fn to_device(self, device: &Device) -> Self {
        Self {
            device: device.clone().without_autodiff(),
            ..self
        }
    }

    fn fork(self, device: &Device) -> Self {
        let Self { id, device, shared } = self.to_device(device);
        Self {
            id,
            device,
            shared: shared.fork(),
        }
    }

    fn collect_devices(&self, devices: Vec<Device>) -> Vec<Device> {
        devices
    }

    fn materialize(self) -> Self {
        self
    }

    fn valid(&self) -> Self {
        Self {
            id: self.id,
            device: self.device.clone(),
            shared: Shared::new(self.value()),
        }
    }

    fn train(self) -> Self {
        self
    }
}

impl ModuleDisplayDefault for BatchCounter {
    fn content(&self, content: Content) -> Option<Content> {
        content.add_formatted(&self.value()).optional()
    }
}

impl ModuleDisplay for BatchCounter {}
