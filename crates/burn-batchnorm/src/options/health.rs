//! What is wrong with the batch norm layers of a model.

use std::collections::HashMap;
use std::fmt;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::scope::{self, Scope, Seen};
use crate::module::CONTAINER;
use crate::statistics::Values;

/// The batch norm layers of a model, examined on data: [`health`].
///
/// `Display` writes a table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// In the order of the model.
    pub layers: Vec<LayerHealth>,
}

/// One layer, examined. Lists hold channels, counted from 0.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct LayerHealth {
    /// Where it is in the model: names of fields, with dots.
    pub path: String,
    /// The number of channels.
    pub channels: usize,
    /// Whose running variance is at most [`VANISHING`](Self::VANISHING) times the median of the layer's, or
    /// [`NOTHING`](Self::NOTHING): they amplify noise, or their input is constant.
    pub vanishing: Vec<usize>,
    /// Of which a parameter or a statistic is NaN or infinite, or the running variance negative.
    pub non_finite: Vec<usize>,
    /// Whose gamma is at most [`DEAD`](Self::DEAD) times the largest of the layer's by magnitude, or a
    /// millionth: they can be pruned.
    pub dead: Vec<usize>,
    /// How far the running means are from those of the data, in running standard deviations: the largest
    /// of any channel. None where no batch has reached the layer.
    #[serde(with = "any_number")]
    pub mean_drift: Option<f64>,
    /// How far the running variances are from those of the data, as `ln(data / running)`: the largest of
    /// any channel, by magnitude.
    #[serde(with = "any_number")]
    pub variance_drift: Option<f64>,
    /// The largest difference of any output between normalizing by the batch, as training does, and by the
    /// running statistics.
    #[serde(with = "any_number")]
    pub output_gap: Option<f64>,
    /// The updates that the most affected channel has skipped (`NonFinite::Skip`, masks): no fault by itself.
    pub skipped: u64,
}

/// Numbers that may be NaN or infinite, which JSON has none of: those are written as text.
mod any_number {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Written {
        Number(f64),
        Text(String),
    }

    pub fn serialize<S: Serializer>(value: &Option<f64>, to: S) -> Result<S::Ok, S::Error> {
        let written = value.map(|value| match value.is_finite() {
            true => Written::Number(value),
            false => Written::Text(value.to_string()),
        });
        written.serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<f64>, D::Error> {
        match Option::<Written>::deserialize(from)? {
            None => Ok(None),
            Some(Written::Number(value)) => Ok(Some(value)),
            Some(Written::Text(text)) => text.parse().map(Some).map_err(D::Error::custom),
        }
    }
}

/// Examines the batch norm layers of a model, on batches that inference would get. The model stays as it is.
///
/// `forward` gets the model as [`valid()`](Module::valid) makes it and a batch on the plain device. Layers run by
/// their running statistics, whatever their `inference` says, and what they see is compared with those. Without
/// batches, and of layers that `forward` runs on another thread, only what the parameters tell is known. Waits
/// for the device.
///
/// ```
/// # use burn::tensor::{Device, Distribution, Tensor};
/// use burn_batchnorm::{BatchNormConfig, health};
///
/// # let device = Device::default();
/// let model = BatchNormConfig::new(2).init(&device.clone().autodiff());
/// let batch = Tensor::<2>::random([64, 2], Distribution::Normal(5.0, 1.0), &device);
/// let report = health(&model, [batch], |model, batch| model.forward(batch));
/// assert!(report.layers[0].mean_drift > Some(4.0)); // it has never been trained
/// println!("{report}");
/// ```
pub fn health<M: Module, B, R>(
    model: &M,
    batches: impl IntoIterator<Item = B>,
    mut forward: impl FnMut(&M, B) -> R,
) -> Health {
    let valid = model.valid();
    let ((), seen) = scope::open(Scope::Examine, || {
        batches
            .into_iter()
            .for_each(|batch| drop(forward(&valid, batch)));
    });
    let mut reader = Reader {
        path: Vec::new(),
        layers: Vec::new(),
    };
    valid.visit(&mut reader);
    let seen: HashMap<ParamId, Seen> = seen
        .into_iter()
        .map(|seen| (seen.statistics.fields().ids()[0], seen))
        .collect();
    let examined = |found: &Found| found.examined(found.id.and_then(|id| seen.get(&id)));
    Health {
        layers: reader.layers.iter().map(examined).collect(),
    }
}

/// A layer as visitors see it.
#[derive(Default)]
struct Found {
    path: String,
    /// Of its running mean.
    id: Option<ParamId>,
    gamma: Option<Vec<f64>>,
    beta: Option<Vec<f64>>,
    mean: Option<Vec<f64>>,
    variance: Option<Vec<f64>>,
}

struct Reader {
    path: Vec<(String, bool)>,
    layers: Vec<Found>,
}

impl ModuleVisitor for Reader {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.push((name.to_string(), container == CONTAINER));
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(((field, true), above)) = self.path.split_last() else {
            return;
        };
        let names: Vec<&str> = above.iter().map(|(name, _)| name.as_str()).collect();
        let path = names.join(".");
        if self.layers.last().is_none_or(|layer| layer.path != path) {
            self.layers.push(Found {
                path,
                ..Found::default()
            });
        }
        let layer = self.layers.last_mut().expect("pushed above");
        let values = Some(param.val().into_data().iter::<f64>().collect());
        match field.as_str() {
            "gamma" => layer.gamma = values,
            "beta" => layer.beta = values,
            "running_mean" => {
                layer.id = Some(param.id);
                layer.mean = values;
            }
            "running_var" => layer.variance = values,
            _ => {}
        }
    }
}

impl Found {
    fn examined(&self, seen: Option<&Seen>) -> LayerHealth {
        let all = [&self.gamma, &self.beta, &self.mean, &self.variance];
        let channels = all
            .iter()
            .flat_map(|values| values.as_ref())
            .map(Vec::len)
            .max();
        let channels = channels.unwrap_or(0);
        let at = |values: &Option<Vec<f64>>, channel: usize| {
            values
                .as_ref()
                .and_then(|values| values.get(channel).copied())
        };
        let which = |wrong: &dyn Fn(usize) -> bool| (0..channels).filter(|c| wrong(*c)).collect();

        let mut variances = self.variance.clone().unwrap_or_default();
        variances.retain(|variance| variance.is_finite());
        variances.sort_by(f64::total_cmp);
        let median = variances.get(variances.len() / 2).copied().unwrap_or(0.0);
        let largest = self
            .gamma
            .iter()
            .flatten()
            .fold(0.0, |most: f64, g| most.max(g.abs()));
        let dead = (largest * LayerHealth::DEAD).max(1e-6);
        let vanishing = (median * LayerHealth::VANISHING).max(LayerHealth::NOTHING);

        let mut health = LayerHealth {
            path: self.path.clone(),
            channels,
            vanishing: which(&|c| at(&self.variance, c).is_some_and(|v| v <= vanishing)),
            non_finite: which(&|c| {
                let bad =
                    |values: &&Option<Vec<f64>>| at(values, c).is_some_and(|v| !v.is_finite());
                all.iter().any(bad) || at(&self.variance, c).is_some_and(|v| v < 0.0)
            }),
            dead: which(&|c| at(&self.gamma, c).is_some_and(|g| g.abs() <= dead)),
            ..LayerHealth::default()
        };
        let Some(seen) = seen else {
            return health;
        };
        let numbers = |tensor: Tensor<1>| tensor.into_data().iter::<f64>().collect::<Vec<_>>();
        let now: Values = seen.statistics.fields().values();
        let [mean, variance] = seen.population(&now).map(numbers);
        let drift = |of: &dyn Fn(usize) -> Option<f64>| {
            // A NaN is the largest drift there is.
            let worse = |worst: f64, this: f64| match worst.is_nan() || this <= worst {
                true => worst,
                false => this,
            };
            (0..channels).filter_map(of).reduce(worse)
        };
        health.mean_drift = drift(&|c| {
            let stddev = (at(&self.variance, c)? + seen.rule.epsilon).sqrt();
            Some(((mean[c] - at(&self.mean, c)?) / stddev).abs())
        });
        health.variance_drift = drift(&|c| {
            let ratio =
                (variance[c] + seen.rule.epsilon) / (at(&self.variance, c)? + seen.rule.epsilon);
            Some(ratio.ln().abs())
        });
        health.output_gap = seen
            .gap
            .clone()
            .and_then(|gap| numbers(gap).first().copied());
        let skipped = now.skipped.map(numbers).unwrap_or_default();
        health.skipped = skipped.into_iter().fold(0.0, f64::max) as u64;
        health
    }
}

impl LayerHealth {
    /// See [`vanishing`](Self::vanishing).
    pub const VANISHING: f64 = 1e-6;
    /// See [`vanishing`](Self::vanishing): a standard deviation that the usual epsilon of 1e-5 all but removes.
    pub const NOTHING: f64 = 1e-10;
    /// See [`dead`](Self::dead).
    pub const DEAD: f64 = 1e-3;
    /// A drift above which [`is_healthy`](Self::is_healthy) says no: a standard deviation of the mean, or a
    /// factor of e in the variance.
    pub const DRIFT: f64 = 1.0;

    /// Whether nothing is listed, nothing has drifted by more than [`DRIFT`](Self::DRIFT).
    pub fn is_healthy(&self) -> bool {
        let small = |drift: Option<f64>| drift.is_none_or(|drift| drift <= Self::DRIFT);
        self.vanishing.is_empty()
            && self.non_finite.is_empty()
            && self.dead.is_empty()
            && small(self.mean_drift)
            && small(self.variance_drift)
    }
}

impl Health {
    /// Whether every layer is healthy.
    pub fn is_healthy(&self) -> bool {
        self.layers.iter().all(LayerHealth::is_healthy)
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |layer: &LayerHealth| match layer.path.as_str() {
            "" => "(the layer)".to_string(),
            path => path.to_string(),
        };
        let width = self
            .layers
            .iter()
            .map(|layer| name(layer).len())
            .max()
            .unwrap_or(0)
            .max(5);
        writeln!(
            f,
            "{:width$}  {:>8} {:>9} {:>10} {:>5} {:>10} {:>9} {:>10} {:>7}",
            "layer",
            "channels",
            "vanishing",
            "non-finite",
            "dead",
            "mean drift",
            "var drift",
            "output gap",
            "skipped"
        )?;
        for layer in &self.layers {
            let number =
                |value: Option<f64>| value.map_or("-".to_string(), |value| format!("{value:.3}"));
            writeln!(
                f,
                "{:width$}  {:>8} {:>9} {:>10} {:>5} {:>10} {:>9} {:>10} {:>7}{}",
                name(layer),
                layer.channels,
                layer.vanishing.len(),
                layer.non_finite.len(),
                layer.dead.len(),
                number(layer.mean_drift),
                number(layer.variance_drift),
                number(layer.output_gap),
                layer.skipped,
                match layer.is_healthy() {
                    true => "",
                    false => "  <-",
                }
            )?;
        }
        Ok(())
    }
}
