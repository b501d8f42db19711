//! Passes of a whole model, looked at from outside.
//!
//! A module's layers cannot be reached one by one from outside, but they can be heard: while a scope is open
//! on a thread, the layers that run on that thread hand what they saw to the scope instead of entering it
//! into their running statistics. [`hold`](super::hold), [`recalibrate`](super::recalibrate) and
//! [`health`](super::health) are built on that.

use std::cell::{Cell, RefCell};

use burn::module::Module;
use burn::tensor::Tensor;

use crate::config::Averaging;
use crate::options::mask::absent;
use crate::statistics::fields::Views;
use crate::statistics::{Observation, Rule, Values};
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
    pub(crate) statistics: Views,
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

/// While a model is examined: what training would have given, where `weights` admit anything.
pub(crate) fn compare<const D: usize>(
    layer: &BatchNorm,
    by_running: &Tensor<D>,
    by_batch: Tensor<D>,
    weights: Option<&Tensor<3>>,
    batch: Observation,
) {
    let shape = by_running.shape();
    let gap = (by_batch - by_running.clone()).abs().without_autodiff();
    let gap = match weights {
        None => gap.max(),
        Some(weights) => {
            let [outer, _, inner] = weights.dims();
            let full = [outer, shape.num_elements() / (outer * inner), inner];
            let absent = absent(weights.clone()).expand(full);
            gap.reshape(full).mask_fill(absent, 0.0).max()
        }
    };
    keep(layer, layer.rule(), batch, Some(gap));
}

impl Seen {
    /// Whether both are of one layer. To a scope that looks at a model from outside, clones are the model.
    fn same(&self, other: &Views) -> bool {
        match current() {
            Scope::Closed | Scope::Hold => self.statistics.same(other),
            Scope::Recalibrate(_) | Scope::Examine => {
                self.statistics.fields().ids() == other.fields().ids()
            }
        }
    }

    /// Two passes, or series of passes, of one layer.
    pub(crate) fn and(&mut self, more: Self) {
        self.average = match (self.average.take(), &more.average) {
            (Some(average), Some(_)) => Some(averaged(&self.rule, &average, &more.pooled)),
            (average, _) => average,
        };
        self.pooled = self.pooled.clone().pooled(more.pooled);
        self.batches += more.batches;
        self.gap = match (self.gap.take(), more.gap) {
            (Some(gap), Some(more)) => Some(gap.max_pair(more)),
            (gap, more) => gap.or(more),
        };
    }
}

/// The plain average over batches, with one more.
fn averaged(rule: &Rule, old: &Values, batch: &Observation) -> Values {
    let rule = Rule {
        averaging: Averaging::Cumulative,
        renorm: None,
        ..*rule
    };
    rule.after(old, batch).0
}

fn keep(layer: &BatchNorm, rule: Rule, batch: Observation, gap: Option<Tensor<1>>) {
    let fields = layer.statistics();
    let average = (current() == Scope::Recalibrate(Recalibration::Average)).then(|| {
        // The first batch replaces what it starts from, in every channel that it tells anything of.
        let Values { mean, variance, .. } = fields.values();
        averaged(&rule, &Values::fresh(mean, variance), &batch)
    });
    add(Seen {
        statistics: fields.views(),
        average,
        pooled: batch.admitted(&rule),
        rule,
        batches: 1,
        gap,
    });
}

/// To what is open.
pub(crate) fn add(new: Seen) {
    SEEN.with_borrow_mut(
        |all| match all.iter_mut().find(|seen| seen.same(&new.statistics)) {
            Some(seen) => seen.and(new),
            None => all.push(new),
        },
    );
}
