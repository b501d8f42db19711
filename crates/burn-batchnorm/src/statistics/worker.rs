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

use super::amount::{Amount, like};
use super::{Shared, State, Taken, Values, lock};

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
    /// Over all batches: what is left of the values that it started from, and how much it has taken.
    taken: Taken,
    batches: u64,
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
    weight: Amount,
    batches: u64,
    /// The updates that each channel has left out with every worker so far, if any could be.
    left_out: Option<Tensor<1>>,
}

impl Role {
    /// The role after a batch has entered by `update`.
    pub(super) fn observing(self, taken: &Taken) -> Self {
        match self {
            Self::Worker(mut worker) => {
                let all = &worker.taken;
                worker.taken = Taken {
                    keep: all.keep.times(&taken.keep),
                    keep_renorm: all.keep_renorm.times(&taken.keep_renorm),
                    weight: all.weight.plus(&taken.weight),
                };
                worker.batches += 1;
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
                    taken: Taken {
                        keep: Amount::Same(1.0),
                        keep_renorm: Amount::Same(1.0),
                        weight: Amount::Same(0.0),
                    },
                    batches: 0,
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
        let here = |tensor: &Tensor<1>| like(tensor, &old.mean);
        let values = values.map(here);
        let start = worker.origin.base.map(here);
        let weight = worker.taken.weight.clone();
        // Its count of what was left out began as that of `start`.
        let left_out = match (&values.skipped, &start.skipped) {
            (Some(skipped), Some(start)) => Some(skipped.clone() - start.clone()),
            (skipped, _) => skipped.clone(),
        };

        let of_the_same_step = |group: &Group| group.base == base && group.version == self.version;
        let (merged, batches, group) = match self.group.take().filter(of_the_same_step) {
            None if base == self.version => {
                let group = (weight, worker.batches, left_out.clone());
                (values.clone(), worker.batches, Some(group))
            }
            Some(group) => {
                let total = group.weight.plus(&weight);
                let share = weight.share_of(&total);
                let rest = share.rest();
                let average = |old: &Tensor<1>, new: &Tensor<1>| rest.of(old) + share.of(new);
                let more = worker.batches.saturating_sub(group.batches);
                // A step that one worker has taken is none that was left out.
                let left_out = group.left_out.zip(left_out.clone());
                let left_out = left_out.map(|(all, this)| all.min_pair(this));
                let merged = old.zip(&values, average, average);
                (merged, more, Some((total, group.batches + more, left_out)))
            }
            // Not `0 * old`, which would keep a NaN.
            None if matches!(worker.taken.keep, Amount::Same(0.0)) => {
                (values.clone(), worker.batches, None)
            }
            None => {
                let moved = |keep: &Amount| {
                    let keep = keep.clone();
                    move |new: &Tensor<1>, start: &Tensor<1>| new.clone() - keep.of(start)
                };
                let kept = |keep: &Amount| {
                    let keep = keep.clone();
                    move |old: &Tensor<1>, moved: &Tensor<1>| keep.of(old) + moved.clone()
                };
                let (keep, keep_renorm) = (&worker.taken.keep, &worker.taken.keep_renorm);
                let added = values.zip(&start, moved(keep), moved(keep_renorm));
                let mut merged = old.zip(&added, kept(keep), kept(keep_renorm));
                // Not negative but for rounding.
                merged.variance = merged.variance.clamp_min(0.0);
                (merged, worker.batches, None)
            }
        };
        // Of a step, what all of its workers left out; else what each did.
        let (before, left_out) = match &group {
            Some((_, _, left_out)) => (&start.skipped, left_out.clone()),
            None => (&old.skipped, left_out),
        };
        let skipped = match (before, left_out) {
            (Some(before), Some(more)) => Some(before.clone() + more),
            (before, more) => before.clone().or(more),
        };
        self.values = Some(Values {
            batches: old.batches.saturating_add(batches),
            skipped,
            ..merged
        });
        self.version += 1;
        self.group = group.map(|(weight, batches, left_out)| Group {
            base,
            version: self.version,
            weight,
            batches,
            left_out,
        });
    }
}
