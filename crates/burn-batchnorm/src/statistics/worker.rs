//! Copies of a state, and how what they observe finds its way back.
//!
//! Burn's multi-device training makes, for every step and worker, a clone of a clone of the model and
//! forks it onto the worker's device, where it runs forward and backward and is dropped. No call says
//! "this is a worker"; but nobody else forks a clone, leaves it unchanged, trains it and throws it
//! away. So:
//!
//! - A fork of an unchanged clone is a **worker** of the state that the clone was made of, its *origin*.
//! - A worker composes its updates and hands them over as one report when it is dropped. If its origin
//!   is gone, or is itself an unchanged clone that is dropped without anybody having looked at what it
//!   was handed, the report goes on to what that was cloned from: so it passes through the temporaries
//!   that burn-train makes, and stops at the model.
//! - A worker is a model of its own, and reports nothing, once somebody changes it (an optimizer, a
//!   record, any mapper), once workers report to it, and if a clone of it outlives it. So a fold of a
//!   cross-validation, or a training loop over `model.clone().fork(..)`, leaves its source alone.
//!   (What remains ambiguous, since the calls are the same: a fork that is trained forward only and
//!   dropped while its source lives. It is taken for a worker.)
//!
//! Reports only move tensors: dropping does no work on a device. They are merged when the origin is next
//! looked at, in the order in which the workers were cloned, so that the result does not depend on
//! which of them finishes first:
//!
//! | the origin, since the worker was cloned          | merge                                     |
//! |--------------------------------------------------|-------------------------------------------|
//! | is unchanged                                     | takes over the worker's values            |
//! | has changed by reports of the same version alone | their mean, weighted by numbers of values |
//! | has changed otherwise                            | `keep * value + (worker - keep * base)`   |
//!
//! Workers of one version count as one: as many batches as the most diligent of them saw. All three
//! merges are convex blends.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use burn::tensor::Tensor;

use super::{Shared, State, Update, Values, lock};
use crate::checks::{cast, to_device};

/// What a state is to others.
#[derive(Debug)]
pub(super) enum Role {
    /// A model of its own.
    Own,
    /// An unchanged clone.
    Clone(Box<Origin>),
    /// A fork of an unchanged clone.
    Worker(Box<Worker>),
}

/// Where an unchanged clone came from.
#[derive(Debug, Clone)]
pub(super) struct Origin {
    /// What it was cloned from, what that was an unchanged clone of, and so on, each at its version.
    lineage: VecDeque<(Weak<Shared>, u64)>,
    /// Among the clones of one state.
    order: u64,
    /// The values that it started from, made where the original lives.
    base: Values,
}

/// A worker, and the composition of what it did.
#[derive(Debug, Clone)]
pub(super) struct Worker {
    origin: Box<Origin>,
    keep: f64,
    batches: u64,
    /// Values per channel, over all batches.
    weight: f64,
}

/// What a worker hands over.
#[derive(Debug, Clone)]
pub(super) struct Report {
    worker: Worker,
    /// The version of the receiver that the worker started from.
    version: u64,
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
        let mut state = lock(&self.state);
        let mut lineage = VecDeque::from([(Arc::downgrade(self), state.version)]);
        let mut sources = vec![state.alive.clone()];
        let mut reports = Vec::new();
        match &state.role {
            // What an unchanged clone was handed is not its own yet: workers that are cloned from it
            // start from where it did, while a clone that becomes a model takes it along.
            Role::Clone(origin) => {
                lineage.extend(origin.lineage.iter().cloned());
                sources.extend(state.sources.iter().cloned());
                reports.clone_from(&state.reports);
            }
            Role::Own | Role::Worker(_) => {
                state.settle();
                lineage[0].1 = state.version;
            }
        }
        let values = state.values().clone();
        let origin = Origin {
            lineage,
            order: state.clones,
            base: values.clone(),
        };
        state.clones += 1;
        let clone = Self::with_role(values, Role::Clone(Box::new(origin)), sources);
        lock(&clone.state).reports = reports;
        clone
    }

    /// Makes an unchanged clone a worker: `Module::fork`.
    pub(crate) fn forked(&self) {
        let mut state = lock(&self.state);
        state.role = match std::mem::replace(&mut state.role, Role::Own) {
            Role::Clone(origin) => {
                state.reports.clear();
                Role::Worker(Box::new(Worker {
                    origin,
                    keep: 1.0,
                    batches: 0,
                    weight: 0.0,
                }))
            }
            role => role,
        };
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // A panic makes a step void: what part of it was observed is not worth having.
        if std::thread::panicking() {
            return;
        }
        let (role, values, reports, has_clone) = {
            let mut state = lock(&self.state);
            (
                std::mem::replace(&mut state.role, Role::Own),
                state.values.take(),
                std::mem::take(&mut state.reports),
                Arc::strong_count(&state.alive) > 1,
            )
        };
        match (role, values) {
            // Nobody has looked at what it was handed.
            (Role::Clone(_), _) if !has_clone => reports
                .into_iter()
                .for_each(|Report { worker, values, .. }| hand_over(worker, values)),
            (Role::Worker(worker), Some(values))
                if worker.batches > 0 && reports.is_empty() && !has_clone =>
            {
                hand_over(*worker, values);
            }
            _ => {}
        }
    }
}

/// Gives a report to the nearest of a worker's origins that lives.
fn hand_over(mut worker: Worker, values: Values) {
    while let Some((origin, version)) = worker.origin.lineage.pop_front() {
        if let Some(origin) = origin.upgrade() {
            lock(&origin.state).reports.push(Report {
                worker,
                version,
                values,
            });
            return;
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
        reports.sort_by_key(|report| (report.version, report.worker.origin.order));
        for report in reports {
            // Another length: somebody has replaced the statistics by those of another layer.
            if report.values.mean.shape() == self.values().mean.shape() {
                self.merge(report);
            }
        }
        self.role = Role::Own;
    }

    fn merge(&mut self, report: Report) {
        let Report {
            worker,
            version: base,
            values,
        } = report;
        let old = self.values().clone();
        let (device, dtype) = (old.mean.device(), old.mean.dtype());
        let here = |tensor: &Tensor<1>| cast(to_device(tensor.clone(), &device), dtype);
        let values = values.map(here);
        let start = worker.origin.base.map(here);

        let of_the_same_step = |group: &Group| group.base == base && group.version == self.version;
        let (merged, batches, group) = match self.group.take().filter(of_the_same_step) {
            None if base == self.version => {
                let (weight, batches) = (worker.weight, worker.batches);
                (values.clone(), batches, Some((weight, batches)))
            }
            Some(group) => {
                let weight = group.weight + worker.weight;
                let share = worker.weight / weight;
                let average = |old: &Tensor<1>, new: &Tensor<1>| {
                    old.clone() * (1.0 - share) + new.clone() * share
                };
                let more = worker.batches.saturating_sub(group.batches);
                let batches = Some((weight, group.batches + more));
                (old.zip(&values, average), more, batches)
            }
            // Not `0 * old`, which would keep a NaN.
            None if worker.keep == 0.0 => (values.clone(), worker.batches, None),
            None => {
                let keep = worker.keep;
                let added = values.zip(&start, |new, start| new.clone() - start.clone() * keep);
                let mut merged = old.zip(&added, |old, added| old.clone() * keep + added.clone());
                // Not negative but for rounding.
                merged.variance = merged.variance.clamp_min(0.0);
                (merged, worker.batches, None)
            }
        };
        self.values = Some(Values {
            batches: old.batches.saturating_add(batches),
            skipped: skipped(&old, &values, &start),
            ..merged
        });
        self.version += 1;
        self.group = group.map(|(weight, batches)| Group {
            base,
            version: self.version,
            weight,
            batches,
        });
    }
}

/// What was left out by both: the worker's count began as that of `start`.
fn skipped(old: &Values, worker: &Values, start: &Values) -> Option<Tensor<1>> {
    let worker = worker.skipped.clone()?;
    let more = match &start.skipped {
        Some(start) => worker - start.clone(),
        None => worker,
    };
    Some(match &old.skipped {
        Some(old) => old.clone() + more,
        None => more,
    })
}
