//! [`BatchNorm`] as a Burn module.
//!
//! Written by hand, since `#[derive(Module)]` knows only fields that are always part of the module and
//! independent of each other. Here the configuration decides which of them visitors see (records,
//! optimizers, PyTorch import), while the fields stay in place so that code written for burn-nn's
//! layer finds them; and the running statistics are one state that three fields show.

use std::sync::Arc;

use burn::module::{
    Content, DisplaySettings, Flag, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper,
    ModuleVisitor, Param, ParamId,
};
use burn::tensor::{DType, Device, Int, Shape, Tensor, TensorData};

use crate::checks::to_device;
use crate::options::snapshot;
use crate::statistics::fields::show;
use crate::statistics::{Renormed, Shared, Values, stored};
use crate::{BatchNorm, BatchNormConfig};

/// The name that burn-store's PyTorch adapter knows batch norm by.
pub(crate) const CONTAINER: &str = "Struct:BatchNorm";

/// Those that batch renormalization with a reference of its own adds.
const RENORM: [&str; 3] = ["renorm_mean", "renorm_stddev", "moving_stddev"];

/// What visitors and mappers see, by name.
struct Seen {
    gamma: bool,
    beta: bool,
    statistics: bool,
    /// The count decides something only where every batch weighs the same, or a bound moves with it.
    counter: bool,
}

impl BatchNorm {
    fn seen(&self) -> Seen {
        let config = &self.config;
        Seen {
            gamma: config.scale,
            beta: config.shift,
            statistics: config.running_stats,
            counter: config.running_stats && config.counts(),
        }
    }

    /// The same layer with other running statistics.
    fn showing(self, statistics: &Arc<Shared>, ids: [ParamId; 3]) -> Self {
        let (running_mean, running_var, num_batches_tracked) = show(statistics, ids);
        Self {
            running_mean,
            running_var,
            num_batches_tracked,
            ..self
        }
    }

    /// A layer of its own with the same parameters and statistics but other ids, which reports to nobody.
    pub(crate) fn copied(&self) -> Self {
        let mut values = self.statistics().values();
        if let Some(renorm) = &mut values.renorm {
            renorm.ids = [(); 3].map(|()| ParamId::new());
        }
        let parameters = [&self.gamma, &self.beta].map(renewed);
        // `valid()` disables the flag, and remembers what it was.
        let trains = Param::from_bool(self.training.clone().train().is_enabled());
        let training = match self.training.is_enabled() {
            true => trains,
            false => trains.valid(),
        };
        let copy = self.copy(parameters, training, &Shared::new(values));
        let ids = [(); 3].map(|()| ParamId::new());
        let statistics = copy.statistics().shared();
        copy.showing(&statistics, ids)
    }

    /// A copy with these fields and running statistics.
    fn copy(
        &self,
        [gamma, beta]: [Param<Tensor<1>>; 2],
        training: Param<Flag>,
        statistics: &Arc<Shared>,
    ) -> Self {
        let (running_mean, running_var, num_batches_tracked) =
            show(statistics, self.statistics().ids());
        Self {
            gamma,
            beta,
            training,
            running_mean,
            running_var,
            num_batches_tracked,
            momentum: self.momentum,
            epsilon: self.epsilon,
            config: self.config.clone(),
        }
    }
}

/// The same parameter, trainable or not as it was configured, under an id of its own.
pub(crate) fn renewed(param: &Param<Tensor<1>>) -> Param<Tensor<1>> {
    let (_, value, mapper) = param.clone().consume();
    Param::from_mapped_value(ParamId::new(), value.detach(), mapper)
}

fn visit<V: ModuleVisitor>(seen: bool, name: &str, visitor: &mut V, visit: impl FnOnce(&mut V)) {
    if seen {
        visitor.enter_module(name, CONTAINER);
        visit(visitor);
        visitor.exit_module(name, CONTAINER);
    }
}

fn map<M: ModuleMapper, T>(
    seen: bool,
    name: &str,
    mapper: &mut M,
    value: T,
    map: impl FnOnce(&mut M, T) -> T,
) -> T {
    if !seen {
        return value;
    }
    mapper.enter_module(name, CONTAINER);
    let value = map(mapper, value);
    mapper.exit_module(name, CONTAINER);
    value
}

/// A running statistic as mappers see it: a parameter that requires no gradient.
fn map_statistic<M: ModuleMapper>(
    mapper: &mut M,
    (id, value): (ParamId, Tensor<1>),
) -> (ParamId, Tensor<1>) {
    let (id, value, _) = mapper.map_float(Param::initialized(id, value)).consume();
    (id, stored(value))
}

/// The count as a parameter: shape `[1]`, since Burn has no tensors of rank 0. Its tensor is made only
/// if somebody looks: an optimizer maps every parameter at every step.
///
/// Batches that every channel left out do not count.
fn count_param(id: ParamId, values: &Values, device: &Device) -> Param<Tensor<1, Int>> {
    let values = values.clone();
    let make = move |device: &Device, _| {
        let count = values.entered();
        let data = TensorData::from([i64::try_from(count).unwrap_or(i64::MAX)]);
        match device.supports_dtype(DType::I64) {
            true => Tensor::from_data(data, (device, DType::I64)),
            false => Tensor::from_data(data, device),
        }
    };
    Param::uninitialized(id, make, device.clone(), false, Shape::new([1]))
}

/// The count after a mapper that has looked at it, of which no channel has left out anything.
fn map_count<M: ModuleMapper>(
    mapper: &mut M,
    id: ParamId,
    values: &Values,
    device: &Device,
) -> Option<(ParamId, u64, Option<Tensor<1>>)> {
    let param = mapper.map_int(count_param(id, values, device));
    let id = param.id;
    if !param.is_initialized() {
        return None;
    }
    let count = param.into_value().into_data().iter::<i64>().next();
    let count = count.map_or(0, |count| u64::try_from(count).unwrap_or(0));
    Some((id, count, None))
}

impl Clone for BatchNorm {
    fn clone(&self) -> Self {
        let statistics = self.statistics().shared().cloned();
        let parameters = [&self.gamma, &self.beta].map(Clone::clone);
        self.copy(parameters, self.training.clone(), &statistics)
    }
}

impl Module for BatchNorm {
    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        let seen = self.seen();
        visit(seen.gamma, "gamma", visitor, |v| self.gamma.visit(v));
        visit(seen.beta, "beta", visitor, |v| self.beta.visit(v));
        visit(true, "training", visitor, |v| self.training.visit(v));
        if !seen.statistics {
            return;
        }
        let [mean, variance, counter] = self.statistics().ids();
        let values = self.statistics().values();
        snapshot::visited(mean, &values);
        let device = values.mean.device();
        visit(true, "running_mean", visitor, |v| {
            v.visit_float(&Param::initialized(mean, values.mean.clone()));
        });
        visit(true, "running_var", visitor, |v| {
            v.visit_float(&Param::initialized(variance, values.variance.clone()));
        });
        visit(seen.counter, "num_batches_tracked", visitor, |v| {
            v.visit_int(&count_param(counter, &values, &device));
        });
        if let Some(renorm) = values.renorm {
            for ((name, id), value) in RENORM.into_iter().zip(renorm.ids).zip(renorm.tensors()) {
                visit(true, name, visitor, |v| {
                    v.visit_float(&Param::initialized(id, value));
                });
            }
        }
    }

    fn map<M: ModuleMapper>(self, mapper: &mut M) -> Self {
        let seen = self.seen();
        let layer = Self {
            gamma: map(seen.gamma, "gamma", mapper, self.gamma, |m, p| {
                Module::map(p, m)
            }),
            beta: map(seen.beta, "beta", mapper, self.beta, |m, p| {
                Module::map(p, m)
            }),
            training: map(true, "training", mapper, self.training, |m, p| {
                Module::map(p, m)
            }),
            ..self
        };
        if !seen.statistics {
            return layer;
        }
        let statistics = layer.statistics().shared();
        let ids = layer.statistics().ids();
        let values = statistics.values();
        let device = values.mean.device();
        let mean = (ids[0], values.mean.clone());
        let variance = (ids[1], values.variance.clone());
        let (mean_id, mean) = map(true, "running_mean", mapper, mean, map_statistic);
        let (variance_id, variance) = map(true, "running_var", mapper, variance, map_statistic);
        let name = "num_batches_tracked";
        let count = (ids[2], values.batches, values.skipped.clone());
        let (counter_id, batches, skipped) = map(
            seen.counter,
            name,
            mapper,
            count,
            |mapper, (id, batches, skipped)| {
                map_count(mapper, id, &values, &device).unwrap_or((id, batches, skipped))
            },
        );
        let renorm = values.renorm.clone().map(|renorm| {
            let (ids, stddev) = (renorm.ids, renorm.moving_stddev.clone());
            let mut tensors = renorm.tensors().into_iter();
            let renorm = Renormed::of(std::array::from_fn(|at| {
                let tensor = tensors.next().expect("three");
                map(true, RENORM[at], mapper, (ids[at], tensor), map_statistic)
            }));
            Box::new(renorm.following(&stddev, &values.variance, &variance))
        });
        // Which no mapper sees.
        let skipped = skipped.map(|skipped| to_device(skipped, &mean.device()));
        statistics.replace(Values {
            mean,
            variance,
            batches,
            skipped,
            renorm,
        });
        snapshot::mapped(ids[0], &statistics);
        layer.showing(&statistics, [mean_id, variance_id, counter_id])
    }

    fn to_device(self, device: &Device) -> Self {
        let statistics = self.statistics().shared();
        statistics.relocate(device);
        let ids = self.statistics().ids();
        let layer = self.showing(&statistics, ids);
        Self {
            gamma: layer.gamma.to_device(device),
            beta: layer.beta.to_device(device),
            ..layer
        }
    }

    fn fork(self, device: &Device) -> Self {
        let statistics = self.statistics().shared();
        statistics.forked();
        statistics.relocate(device);
        let ids = self.statistics().ids();
        let layer = self.showing(&statistics, ids);
        Self {
            gamma: layer.gamma.fork(device),
            beta: layer.beta.fork(device),
            ..layer
        }
    }

    fn collect_devices(&self, devices: Vec<Device>) -> Vec<Device> {
        let devices = self.gamma.collect_devices(devices);
        let mut devices = self.beta.collect_devices(devices);
        let Values { mean, variance, .. } = self.statistics().values();
        for device in [mean.device(), variance.device()] {
            if !devices.contains(&device) {
                devices.push(device);
            }
        }
        devices
    }

    fn materialize(self) -> Self {
        Self {
            gamma: self.gamma.materialize(),
            beta: self.beta.materialize(),
            ..self
        }
    }

    fn valid(&self) -> Self {
        let statistics = Shared::new(self.statistics().values());
        let parameters = [&self.gamma, &self.beta].map(Module::valid);
        self.copy(parameters, self.training.valid(), &statistics)
    }

    fn train(self) -> Self {
        Self {
            gamma: self.gamma.train(),
            beta: self.beta.train(),
            training: self.training.train(),
            ..self
        }
    }
}

impl ModuleDisplayDefault for BatchNorm {
    fn content(&self, content: Content) -> Option<Content> {
        content.set_top_level_type("BatchNorm").optional()
    }

    fn num_params(&self) -> usize {
        Module::num_params(self)
    }
}

/// Adds the options that are not at their default.
macro_rules! differing {
    ($content:ident, $config:expr, $default:expr, $($option:ident),+) => {
        $(if $config.$option != $default.$option {
            $content = $content.add_debug_attribute(stringify!($option), &$config.$option);
        })+
    };
}

impl ModuleDisplay for BatchNorm {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new()
            .with_new_line_after_attribute(false)
            .optional()
    }

    /// What burn-nn's layer shows, and every option that is not at its default.
    #[rustfmt::skip]
    fn custom_content(&self, content: Content) -> Option<Content> {
        let config = &self.config;
        let default = BatchNormConfig::new(config.num_features);
        let mut content = content
            .add("num_features", &config.num_features)
            .add("momentum", &self.momentum)
            .add("epsilon", &self.epsilon);
        differing!(
            content, config, default,
            averaging, variance, scale, shift, initial_gamma, initial_beta, running_stats, channel_axis, activation, single_value,
            statistics, inference, update_statistics, train_affine, non_finite, masked_output, memory
        );
        match self.training.is_enabled() {
            true => content.optional(),
            false => content.add("training", &self.training).optional(),
        }
    }
}

impl core::fmt::Display for BatchNorm {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(&ModuleDisplay::format(self, Default::default()))
    }
}
