//! Copies of a state, and how what they observe finds its way back.
//!
//! Burn's multi-device training makes, for every step and worker, a clone of a clone of the model and
//! forks it onto the worker's device, where it runs forward and backward and is dropped. No call says
//! "this is a worker"; but nobody else forks a clone, leaves it unchanged, trains it and throws it
//! away. So:
//!
//! - An unchanged clone remembers its *origin*: the state that it, or what it was cloned from, is an
//!   unchanged clone of. A fork of it is a **worker** of that origin.
//! - A worker composes its updates and hands them over as one report when it is dropped.
//! - It is a model of its own, and reports nothing, once somebody changes it (an optimizer, a record,
//!   any mapper), once workers report to it, and if a clone of it outlives it. So a fold of a
//!   cross-validation, or a training loop over `model.clone().fork(..)`, leaves its source alone.
//!   (What remains ambiguous, since the calls are the same: a fork that is trained forward only and
//!   dropped while its source lives. It is taken for a worker.)
//!
//! Reports only move tensors; they are merged when the origin is next looked at, in the order in which
//! the workers were cloned, so that the result does not depend on which of them finishes first:
//!
//! | the origin, since the worker was cloned          | merge                                     |
//! |--------------------------------------------------|-------------------------------------------|
//! | is unchanged                                     | takes over the worker's values            |
//! | has changed by reports of the same version alone | their mean, weighted by numbers of values |
//! | has changed otherwise                            | `keep * value + (worker - keep * base)`   |
//!
//! Workers of one version count as one: as many batches as the most diligent of them saw. All three
//! merges are convex blends.

use std::sync::{Arc, PoisonError, Weak};

use burn::tensor::Tensor;

use super::{Shared, State, Update, Values};

/// What a state is to others.
#[derive(Debug)]
pub(super) enum Role {
    /// A model of its own.
    Own,
    /// An unchanged clone.
    Clone(Origin),
    /// A fork of an unchanged clone.
    Worker(Box<Worker>),
}

/// Where a clone came from.
#[derive(Debug)]
pub(super) struct Origin {
    shared: Weak<Shared>,
    version: u64,
    /// Among the clones of one state.
    order: u64,
}

/// A worker, and the composition of what it did.
#[derive(Debug)]
pub(super) struct Worker {
    origin: Origin,
    base: Values,
    keep: f64,
    batches: u64,
    /// Values per channel, over all batches.
    weight: f64,
}

/// What a worker hands over.
#[derive(Debug)]
pub(super) struct Report {
    worker: Worker,
    values: Values,
}

/// Reports that started from one version, `base`, and made it `version`.
#[derive(Debug)]
pub(super) struct Group {
    base: u64,
    version: u64,
    weight: f64,
    batches: u64,
}

impl Role {
    /// The role after a batch has entered by `update`.
    pub(super) fn observing(self, update: Update, values: usize) -> Self {
        match self {
            Self::Worker(mut worker) => {
                worker.keep *= update.keep;
                worker.batches += 1;
                worker.weight += values as f64;
                Self::Worker(worker)
            }
            Self::Own | Self::Clone(_) => Self::Own,
        }
    }
}

impl Shared {
    /// A state of the same values: `Module::clone`.
    pub(crate) fn cloned(self: &Arc<Self>) -> Arc<Self> {
        let mut state = self.settled();
        let order = state.clones;
        state.clones += 1;
        let origin = match &state.role {
            Role::Clone(origin) => Origin {
                shared: origin.shared.clone(),
                version: origin.version,
                order,
            },
            Role::Own | Role::Worker(_) => Origin {
                shared: Arc::downgrade(self),
                version: state.version,
                order,
            },
        };
        let values = state.values.clone();
        Self::with_role(values, Role::Clone(origin), Some(state.alive.clone()))
    }

    /// Makes an unchanged clone a worker: `Module::fork`.
    pub(crate) fn forked(&self) {
        let mut state = self.settled();
        state.role = match std::mem::replace(&mut state.role, Role::Own) {
            Role::Clone(origin) => Role::Worker(Box::new(Worker {
                origin,
                base: state.values.clone(),
                keep: 1.0,
                batches: 0,
                weight: 0.0,
            })),
            role => role,
        };
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        let Role::Worker(worker) = std::mem::replace(&mut state.role, Role::Own) else {
            return;
        };
        let has_clone = Arc::strong_count(&state.alive) > 1;
        let has_workers = !state.reports.is_empty();
        // A panic makes a step void: what part of it was observed is not worth having.
        if worker.batches == 0 || has_clone || has_workers || std::thread::panicking() {
            return;
        }
        if let Some(origin) = worker.origin.shared.upgrade() {
            let values = state.values.clone();
            let report = Report {
                worker: *worker,
                values,
            };
            let mut origin = origin.state.lock().unwrap_or_else(PoisonError::into_inner);
            origin.reports.push(report);
        }
    }
}

impl State {
    /// Merges what workers have reported.
    pub(super) fn settle(&mut self) {
        if self.reports.is_empty() {
            return;
        }
        let mut reports = std::mem::take(&mut self.reports);
        reports.sort_by_key(|Report { worker, .. }| (worker.origin.version, worker.origin.order));
        for report in reports {
            self.merge(report);
        }
        self.role = Role::Own;
    }

    fn merge(&mut self, Report { worker, values }: Report) {
        let base = worker.origin.version;
        let device = self.values.mean.device();
        let here = |tensor: Tensor<1>| tensor.to_device(&device);
        let (mean, variance) = (here(values.mean), here(values.variance));
        let old = &self.values;

        let (mean, variance, weight, batches, new) = match &self.group {
            _ if base == self.version => (
                mean,
                variance,
                worker.weight,
                worker.batches,
                worker.batches,
            ),
            Some(group) if base == group.base && self.version == group.version => {
                let weight = group.weight + worker.weight;
                let share = worker.weight / weight;
                let average = |old: &Tensor<1>, new| old.clone() * (1.0 - share) + new * share;
                (
                    average(&old.mean, mean),
                    average(&old.variance, variance),
                    weight,
                    group.batches.max(worker.batches),
                    worker.batches.saturating_sub(group.batches),
                )
            }
            _ => {
                let keep = worker.keep;
                let added = |new: Tensor<1>, base: Tensor<1>| new - here(base) * keep;
                let mean = old.mean.clone() * keep + added(mean, worker.base.mean);
                // Not negative but for rounding.
                let variance = added(variance, worker.base.variance).clamp_min(0.0);
                let variance = old.variance.clone() * keep + variance;
                self.values = Values {
                    mean,
                    variance,
                    batches: old.batches.saturating_add(worker.batches),
                };
                self.version += 1;
                self.group = None;
                return;
            }
        };
        self.values = Values {
            mean,
            variance,
            batches: old.batches.saturating_add(new),
        };
        self.version += 1;
        self.group = Some(Group {
            base,
            version: self.version,
            weight,
            batches,
        });
    }
}
