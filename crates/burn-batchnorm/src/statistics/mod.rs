//! The running statistics of a layer: one state under one lock.
//!
//! A layer is trained through a shared reference, possibly by several threads at once, so mean,
//! variance and count live together behind one lock ([`Shared`]); the layer's fields are views of it
//! ([`fields`]). Three rules make copies predictable:
//!
//! - **Always current.** An update is visible at once to `value()`, `valid()`, records and clones,
//!   and what is read together belongs together. Nothing here reads a tensor's values back.
//! - **A clone is a value.** Nothing done to a clone (training it, loading into it, averaging it)
//!   reaches its source, nor the other way round.
//! - **A fork of a clone is a worker.** It hands what it observed to the model that it was cloned
//!   from, when it is dropped ([`worker`] tells how reports are merged).
//!
//! A training pass begins by reading the state ([`Shared::begin`]) and ends by handing back what its
//! kernel made of it ([`Shared::finish`]). If another pass came in between, the version has changed:
//! then the batch's own statistics are blended in again, under the lock and with the count of that
//! moment. So no update is lost, and none is entered twice.

mod amount;
pub(crate) mod fields;
mod observation;
mod update;
mod values;
mod worker;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::tensor::{Device, Tensor};

pub(crate) use amount::like;
pub(crate) use observation::packed;
use update::Taken;
pub use update::Update;
pub(crate) use update::{Observation, Rule};
pub(crate) use values::{Renormed, Values};
use worker::{Group, Report, Role};

use crate::checks::{cast, to_device};
use crate::ops::composed::compute_dtype;

/// A statistic as it is kept: not tracked by autodiff, not quantized, at least f32, since in a half
/// type a small update would round to none.
pub(crate) fn stored(value: Tensor<1>) -> Tensor<1> {
    let value = value.without_autodiff().dequantize();
    let dtype = compute_dtype(value.dtype());
    cast(value, dtype)
}

/// Mean and variance, `[channels]` each, of the packed statistics of an input.
pub(crate) fn rows(moments: Tensor<2>) -> [Tensor<1>; 2] {
    let [_, channels] = moments.dims();
    let row = |index| {
        let row = moments.clone().slice([index..index + 1, 0..channels]);
        row.reshape([channels])
    };
    [row(0), row(2)]
}

/// The state of one layer, whoever shows it. Dropped, it may have something to report.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// None only once the state is being dropped.
    values: Option<Values>,
    /// Counts the changes of `values`.
    version: u64,
    role: Role,
    /// What workers have handed over and nobody has looked at yet.
    reports: Vec<Report>,
    /// The workers' reports that entered last, while more of the same may come.
    group: Option<Group>,
    /// How many clones were made: their order, which does not depend on threads.
    clones: u64,
    /// Held by every clone of this state, to tell whether one of them lives.
    alive: Arc<()>,
    /// The tokens of the states that this one is a clone of.
    sources: Vec<Arc<()>>,
}

/// A training pass under way.
#[derive(Debug)]
pub(crate) struct Begun {
    pub(crate) values: Values,
    pub(crate) update: Update,
    version: u64,
}

impl Shared {
    /// A state that reports to nobody.
    pub(crate) fn new(values: Values) -> Arc<Self> {
        Self::with_role(values, Role::Own, Vec::new())
    }

    fn with_role(values: Values, role: Role, sources: Vec<Arc<()>>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                values: Some(values),
                version: 0,
                role,
                reports: Vec::new(),
                group: None,
                clones: 0,
                alive: Arc::new(()),
                sources,
            }),
        })
    }

    /// The state, after everything that workers have reported.
    fn settled(&self) -> MutexGuard<'_, State> {
        let mut state = lock(&self.state);
        state.settle();
        state
    }

    /// One consistent set.
    pub(crate) fn values(&self) -> Values {
        self.settled().values().clone()
    }

    /// Looks at the values under the lock; `look` must not wait for a device.
    pub(crate) fn look<R>(&self, look: impl FnOnce(&Values) -> R) -> R {
        look(self.settled().values())
    }

    /// Changes a part of the values from outside. From now on this is a model of its own.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Values)) {
        let mut state = self.settled();
        let mut values = state.values().clone();
        change(&mut values);
        state.enter(values, Role::Own);
    }

    /// Replaces all values from outside: loading, mapping. From now on this is a model of its own. What
    /// workers have reported since the old ones were read blends into the new ones.
    pub(crate) fn replace(&self, values: Values) {
        lock(&self.state).enter(values, Role::Own);
    }

    /// Moves the values without changing them: a worker stays one.
    pub(crate) fn relocate(&self, device: &Device) {
        let mut state = self.settled();
        let here = |tensor: &Tensor<1>| to_device(tensor.clone(), device);
        state.values = Some(state.values().map(here));
    }

    /// Starts a training pass, of a batch with `values` per channel.
    pub(crate) fn begin(&self, rule: &Rule, values: usize) -> Begun {
        let state = self.settled();
        Begun {
            update: rule.update(state.values().batches, values as f64),
            values: state.values().clone(),
            version: state.version,
        }
    }

    /// Ends a training pass, of which a kernel has blended the running mean and variance already.
    pub(crate) fn finish(
        &self,
        begun: Begun,
        [mean, variance]: [Tensor<1>; 2],
        rule: &Rule,
        batch: &Observation,
    ) {
        let mut state = self.settled();
        match state.version == begun.version {
            true => {
                let values = Values {
                    mean,
                    variance,
                    batches: begun.values.batches.saturating_add(1),
                    ..begun.values
                };
                state.observe(values, begun.update.taken(batch.values));
            }
            false => state.observe_batch(rule, batch),
        }
    }

    /// Enters a batch.
    pub(crate) fn enter(&self, rule: &Rule, batch: &Observation) {
        self.settled().observe_batch(rule, batch);
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // The values are replaced whole, so a panic elsewhere cannot leave them half written.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn values(&self) -> &Values {
        self.values.as_ref().expect("a state that is alive")
    }

    fn observe_batch(&mut self, rule: &Rule, batch: &Observation) {
        let (values, taken) = rule.after(self.values(), batch);
        self.observe(values, taken);
    }

    /// A batch has entered.
    fn observe(&mut self, values: Values, taken: Taken) {
        let role = std::mem::replace(&mut self.role, Role::Own);
        self.enter(values, role.observing(&taken));
    }

    fn enter(&mut self, values: Values, role: Role) {
        self.values = Some(values);
        self.role = role;
        self.version += 1;
        self.group = None;
    }
}
