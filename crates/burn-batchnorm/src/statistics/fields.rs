//! The layer's public fields: views of its state, named and used as burn-nn's are.

use std::sync::Arc;

use burn::module::ParamId;
use burn::tensor::Tensor;

use super::{Begun, Observation, Renormed, Rule, Shared, Values, stored};

/// Which of a state's tensors a field shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Row {
    Mean,
    Variance,
}

impl Values {
    fn row(&self, row: Row) -> &Tensor<1> {
        match row {
            Row::Mean => &self.mean,
            Row::Variance => &self.variance,
        }
    }

    fn with_row(self, row: Row, value: Tensor<1>) -> Self {
        match row {
            Row::Mean => Self {
                mean: value,
                ..self
            },
            Row::Variance => self.with_variance(value),
        }
    }
}

/// A running statistic of a layer: shape `[channels]`, never tracked by autodiff, at least f32.
///
/// The counterpart of `burn::module::RunningState`, but always current: a training pass that has
/// returned is in it.
#[derive(Debug)]
pub struct RunningState {
    pub(crate) id: ParamId,
    shared: Arc<Shared>,
    row: Row,
}

impl RunningState {
    /// A running statistic that starts at `value`, shape `[channels]`.
    pub fn new(value: Tensor<1>) -> Self {
        Self::with_id(ParamId::new(), value)
    }

    /// As [`new`](Self::new), with the id that optimizers and records know it by.
    pub fn with_id(id: ParamId, value: Tensor<1>) -> Self {
        let value = stored(value);
        Self {
            id,
            shared: Shared::new(Values::fresh(value.clone(), value)),
            row: Row::Mean,
        }
    }

    /// The present value, shape `[channels]`.
    pub fn value(&self) -> Tensor<1> {
        self.shared.look(|values| values.row(self.row).clone())
    }

    /// The same as [`value`](Self::value), which is always current: kept for programs written for
    /// `burn::module::RunningState`.
    pub fn value_sync(&self) -> Tensor<1> {
        self.value()
    }

    /// Replaces the value, shape `[channels]`.
    pub fn update(&self, value: Tensor<1>) {
        let value = stored(value);
        self.shared
            .change(|values| *values = values.clone().with_row(self.row, value));
    }
}

/// A value of its own, whatever becomes of the layer.
impl Clone for RunningState {
    fn clone(&self) -> Self {
        Self::with_id(self.id, self.value())
    }
}

/// The number of batches that entered the running statistics.
///
/// Kept on the host, so that a training step neither waits for the device nor launches anything for
/// it.
#[derive(Debug)]
pub struct BatchCounter {
    pub(crate) id: ParamId,
    shared: Arc<Shared>,
}

impl BatchCounter {
    /// The present count. Batches that every channel left out are not in it; where a mask or a policy
    /// could have done that, this waits for the device.
    pub fn value(&self) -> u64 {
        self.shared.values().entered()
    }

    /// Replaces the count.
    pub fn set(&self, count: u64) {
        self.shared.change(|values| {
            values.batches = count;
            values.skipped = None;
        });
    }
}

/// A value of its own, whatever becomes of the layer.
impl Clone for BatchCounter {
    fn clone(&self) -> Self {
        Self {
            id: self.id,
            shared: Shared::new(self.shared.values()),
        }
    }
}

/// The three fields of a layer.
#[derive(Debug)]
pub(crate) struct Fields<'a> {
    pub(crate) mean: &'a RunningState,
    pub(crate) variance: &'a RunningState,
    pub(crate) counter: &'a BatchCounter,
}

/// The fields that show `shared`, with the ids by which optimizers and records know them.
pub(crate) fn show(
    shared: &Arc<Shared>,
    ids: [ParamId; 3],
) -> (RunningState, RunningState, BatchCounter) {
    let view = |id, row| RunningState {
        id,
        shared: shared.clone(),
        row,
    };
    let [mean, variance, counter] = ids;
    (
        view(mean, Row::Mean),
        view(variance, Row::Variance),
        BatchCounter {
            id: counter,
            shared: shared.clone(),
        },
    )
}

/// The three fields of a layer, seen from elsewhere: what is done to them reaches the layer.
#[derive(Debug)]
pub(crate) struct Views(RunningState, RunningState, BatchCounter);

impl Views {
    pub(crate) fn fields(&self) -> Fields<'_> {
        Fields {
            mean: &self.0,
            variance: &self.1,
            counter: &self.2,
        }
    }

    /// Whether both see the same layer's state.
    pub(crate) fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0.shared, &other.0.shared)
    }
}

impl Fields<'_> {
    pub(crate) fn views(&self) -> Views {
        let view = |field: &RunningState| RunningState {
            id: field.id,
            shared: field.shared.clone(),
            row: field.row,
        };
        let counter = BatchCounter {
            id: self.counter.id,
            shared: self.counter.shared.clone(),
        };
        Views(view(self.mean), view(self.variance), counter)
    }

    pub(crate) fn ids(&self) -> [ParamId; 3] {
        [self.mean.id, self.variance.id, self.counter.id]
    }

    /// The state that all three show. None where somebody has put another into a field: each field is
    /// then read and updated for itself, and workers have nobody to report to, until the next mapping
    /// or move joins them again.
    fn joined(&self) -> Option<&Arc<Shared>> {
        let shared = &self.counter.shared;
        let shows =
            |field: &RunningState, row| Arc::ptr_eq(&field.shared, shared) && field.row == row;
        (shows(self.mean, Row::Mean) && shows(self.variance, Row::Variance)).then_some(shared)
    }

    /// The state of the fields, a new one where they have none together.
    pub(crate) fn shared(&self) -> Arc<Shared> {
        match self.joined() {
            Some(shared) => shared.clone(),
            None => Shared::new(self.values()),
        }
    }

    /// One consistent set.
    pub(crate) fn values(&self) -> Values {
        match self.joined() {
            Some(shared) => shared.values(),
            None => Values {
                mean: self.mean.value(),
                ..self.counter.shared.values()
            }
            .with_variance(self.variance.value()),
        }
    }

    pub(crate) fn begin(&self, rule: &Rule, values: usize) -> Begun {
        match self.joined() {
            Some(shared) => shared.begin(rule, values),
            None => {
                let statistics = self.values();
                Begun {
                    update: rule.update(statistics.batches, values as f64),
                    values: statistics,
                    version: 0,
                }
            }
        }
    }

    pub(crate) fn finish(
        &self,
        begun: Begun,
        blended: [Tensor<1>; 2],
        rule: &Rule,
        batch: &Observation,
    ) {
        match self.joined() {
            Some(shared) => shared.finish(begun, blended, rule, batch),
            None => self.enter(rule, batch),
        }
    }

    /// As a new layer's.
    pub(crate) fn reset(&self) {
        let fresh = |values: &Values| Values {
            renorm: values
                .renorm
                .as_ref()
                .map(|renorm| Box::new(Renormed::fresh(renorm.ids, &renorm.renorm_mean))),
            ..Values::fresh(values.mean.zeros_like(), values.variance.ones_like())
        };
        if let Some(shared) = self.joined() {
            return shared.change(|values| *values = fresh(values));
        }
        let new = fresh(&self.values());
        self.mean.update(new.mean.clone());
        self.variance.update(new.variance.clone());
        self.counter.shared.change(|values| *values = new);
    }

    pub(crate) fn enter(&self, rule: &Rule, batch: &Observation) {
        if let Some(shared) = self.joined() {
            return shared.enter(rule, batch);
        }
        let (new, _) = rule.after(&self.values(), batch);
        self.mean.update(new.mean.clone());
        self.variance.update(new.variance.clone());
        self.counter.shared.change(|values| *values = new);
    }
}
