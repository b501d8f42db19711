//! Passes of a whole model, looked at from outside.
//!
//! A module's layers cannot be reached one by one from outside, but they can be heard: while a scope is open
//! on a thread, the layers that run on that thread hand what they saw to the scope instead of entering it
//! into their running statistics. [`hold`](super::hold), [`recalibrate`](super::recalibrate) and
//! [`health`](super::health) are built on that.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use burn::module::{Module, ParamId};
use burn::tensor::Tensor;

use crate::config::Averaging;
use crate::operands::Operands;
use crate::statistics::{Observation, Rule, Shared, Values};
use crate::{BatchNorm, Recalibration};

/// What is open on this thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    Closed,
    /// Layers run as ever; what would enter is kept.
    Hold,
    /// Layers that can train do, wherever their input is.
    Recalibrate(Recalibration),
    /// Layers infer, and compare that with what training would give.
    Examine,
}

/// What one layer saw while a scope was open.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) statistics: Arc<Shared>,
    /// Of the running mean, the running variance and the counter.
    pub(crate) ids: [ParamId; 3],
    pub(crate) rule: Rule,
    /// All batches as one.
    pub(crate) pooled: Observation,
    /// The average over batches, where it is asked for.
    pub(crate) average: Option<Values>,
    pub(crate) batches: u64,
    /// The largest difference between outputs by batch and by running statistics, shape `[1]`.
    pub(crate) gap: Option<Tensor<1>>,
}

thread_local! {
    static SCOPE: Cell<Scope> = const { Cell::new(Scope::Closed) };
    static SEEN: RefCell<Vec<Seen>> = const { RefCell::new(Vec::new()) };
}

pub(crate) fn current() -> Scope {
    SCOPE.get()
}

/// Opens a scope for the time of `passes`, within another if there is one.
pub(crate) fn open<R>(scope: Scope, passes: impl FnOnce() -> R) -> (R, Vec<Seen>) {
    /// What was open before, opened again also where `passes` panics.
    struct Before(Scope, Vec<Seen>);
    impl Drop for Before {
        fn drop(&mut self) {
            SCOPE.set(self.0);
            SEEN.set(std::mem::take(&mut self.1));
        }
    }
    let before = Before(SCOPE.replace(scope), SEEN.take());
    let result = passes();
    let seen = SEEN.take();
    drop(before);
    (result, seen)
}

impl Scope {
    /// Whether a layer trains while this is open.
    pub(crate) fn trains(self, layer: &BatchNorm, on_autodiff: bool) -> bool {
        match self {
            Self::Closed | Self::Hold => on_autodiff && layer.training.is_enabled(),
            // `valid()` has disabled the flag, and remembers what it was.
            Self::Recalibrate(_) => {
                layer.config.update_statistics && layer.training.clone().train().is_enabled()
            }
            Self::Examine => false,
        }
    }
}

/// A batch enters the running statistics of a layer, or what is open.
pub(crate) fn enter(layer: &BatchNorm, batch: Observation) {
    let rule = layer.rule();
    match current() {
        Scope::Closed => layer.statistics().enter(&rule, &batch),
        _ => keep(layer, rule, batch, None),
    }
}

/// While a model is examined: what training would have given.
pub(crate) fn compare<const D: usize>(
    layer: &BatchNorm,
    operands: &Operands<D>,
    center: &Tensor<2>,
    running: &Values,
    seen: &Observation,
) {
    if current() != Scope::Examine {
        return;
    }
    let by_batch = operands.clone().normalize_by_center(center.clone());
    let by_running = operands.clone().normalize_by(running);
    let gap = (by_batch - by_running).abs().max().without_autodiff();
    keep(layer, layer.rule(), seen.clone(), Some(gap));
}

fn keep(layer: &BatchNorm, rule: Rule, batch: Observation, gap: Option<Tensor<1>>) {
    let fields = layer.statistics();
    let statistics = fields.shared();
    let averaged = current() == Scope::Recalibrate(Recalibration::Average);
    let average = |old: &Values, batch: &Observation| {
        let rule = Rule {
            averaging: Averaging::Cumulative,
            renorm: None,
            ..rule
        };
        rule.after(old, batch)
    };
    SEEN.with_borrow_mut(|all| {
        let known = all
            .iter_mut()
            .find(|seen| Arc::ptr_eq(&seen.statistics, &statistics));
        match known {
            Some(seen) => {
                seen.average = seen.average.as_ref().map(|old| average(old, &batch));
                seen.pooled = seen.pooled.clone().pooled(batch.admitted(&rule));
                seen.batches += 1;
                seen.gap = match (seen.gap.take(), gap) {
                    (Some(gap), Some(more)) => Some(gap.max_pair(more)),
                    (gap, more) => gap.or(more),
                };
            }
            None => {
                let Values { mean, variance, .. } = statistics.values();
                let start =
                    averaged.then(|| Values::fresh(mean.zeros_like(), variance.ones_like()));
                all.push(Seen {
                    ids: fields.ids(),
                    average: start.map(|start| average(&start, &batch)),
                    pooled: batch.admitted(&rule),
                    statistics,
                    rule,
                    batches: 1,
                    gap,
                });
            }
        }
    });
}
