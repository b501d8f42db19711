//! [`BatchNorm`] as a Burn module.
//!
//! Written by hand, since `#[derive(Module)]` knows only fields that are always part of the module:
//! here the configuration decides whether `gamma`, `beta` and the running statistics are parameters
//! that visitors see (records, optimizers, PyTorch import), while the fields stay in place so that
//! code written for burn-nn's layer finds them.

use burn::module::{
    Content, DisplaySettings, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper,
    ModuleVisitor,
};
use burn::tensor::Device;

use crate::{BatchNorm, BatchNormConfig};

/// The name that burn-store's PyTorch adapter knows batch norm by.
const CONTAINER: &str = "Struct:BatchNorm";
/// The key of the counter in records. [`BatchCounter`](crate::BatchCounter) says why it is not the
/// field's name.
const COUNTER: &str = "batches_tracked";

fn visit<M: Module, V: ModuleVisitor>(seen: bool, name: &str, module: &M, visitor: &mut V) {
    if seen {
        visitor.enter_module(name, CONTAINER);
        module.visit(visitor);
        visitor.exit_module(name, CONTAINER);
    }
}

fn map<M: Module, F: ModuleMapper>(seen: bool, name: &str, module: M, mapper: &mut F) -> M {
    if !seen {
        return module;
    }
    mapper.enter_module(name, CONTAINER);
    let module = module.map(mapper);
    mapper.exit_module(name, CONTAINER);
    module
}

impl Module for BatchNorm {
    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        let BatchNormConfig {
            scale,
            shift,
            running_stats,
            ..
        } = self.config;
        visit(scale, "gamma", &self.gamma, visitor);
        visit(shift, "beta", &self.beta, visitor);
        visit(true, "training", &self.training, visitor);
        visit(running_stats, "running_mean", &self.running_mean, visitor);
        visit(running_stats, "running_var", &self.running_var, visitor);
        visit(running_stats, COUNTER, &self.num_batches_tracked, visitor);
    }

    fn map<F: ModuleMapper>(self, mapper: &mut F) -> Self {
        let BatchNormConfig {
            scale,
            shift,
            running_stats,
            ..
        } = self.config;
        Self {
            gamma: map(scale, "gamma", self.gamma, mapper),
            beta: map(shift, "beta", self.beta, mapper),
            training: map(true, "training", self.training, mapper),
            running_mean: map(running_stats, "running_mean", self.running_mean, mapper),
            running_var: map(running_stats, "running_var", self.running_var, mapper),
            num_batches_tracked: map(running_stats, COUNTER, self.num_batches_tracked, mapper),
            ..self
        }
    }

    fn to_device(self, device: &Device) -> Self {
        Self {
            gamma: self.gamma.to_device(device),
            beta: self.beta.to_device(device),
            running_mean: self.running_mean.to_device(device),
            running_var: self.running_var.to_device(device),
            num_batches_tracked: self.num_batches_tracked.to_device(device),
            ..self
        }
    }

    fn fork(self, device: &Device) -> Self {
        Self {
            gamma: self.gamma.fork(device),
            beta: self.beta.fork(device),
            running_mean: self.running_mean.fork(device),
            running_var: self.running_var.fork(device),
            num_batches_tracked: self.num_batches_tracked.fork(device),
            ..self
        }
    }

    fn collect_devices(&self, devices: Vec<Device>) -> Vec<Device> {
        let devices = self.gamma.collect_devices(devices);
        let devices = self.beta.collect_devices(devices);
        let devices = self.running_mean.collect_devices(devices);
        self.running_var.collect_devices(devices)
    }

    fn materialize(self) -> Self {
        Self {
            gamma: self.gamma.materialize(),
            beta: self.beta.materialize(),
            ..self
        }
    }

    fn valid(&self) -> Self {
        Self {
            gamma: self.gamma.valid(),
            beta: self.beta.valid(),
            training: self.training.valid(),
            running_mean: self.running_mean.valid(),
            running_var: self.running_var.valid(),
            num_batches_tracked: self.num_batches_tracked.valid(),
            momentum: self.momentum,
            epsilon: self.epsilon,
            config: self.config.clone(),
        }
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

impl ModuleDisplay for BatchNorm {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new()
            .with_new_line_after_attribute(false)
            .optional()
    }

    /// What burn-nn's layer shows, and every option that is not at its default.
    fn custom_content(&self, content: Content) -> Option<Content> {
        let config = &self.config;
        let default = BatchNormConfig::new(config.num_features);
        let mut content = content
            .add("num_features", &config.num_features)
            .add("momentum", &self.momentum)
            .add("epsilon", &self.epsilon);
        if config.averaging != default.averaging {
            content = content.add_debug_attribute("averaging", &config.averaging);
        }
        if config.variance != default.variance {
            content = content.add_debug_attribute("variance", &config.variance);
        }
        for (name, value, default) in [
            ("scale", config.scale, default.scale),
            ("shift", config.shift, default.shift),
            ("running_stats", config.running_stats, default.running_stats),
        ] {
            if value != default {
                content = content.add(name, &value);
            }
        }
        if config.channel_axis != default.channel_axis {
            content = content.add("channel_axis", &config.channel_axis);
        }
        if config.activation != default.activation {
            content = content.add_debug_attribute("activation", &config.activation);
        }
        if config.single_value != default.single_value {
            content = content.add_debug_attribute("single_value", &config.single_value);
        }
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
