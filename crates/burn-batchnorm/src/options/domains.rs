//! Several sets of running statistics in one layer.

use burn::config::{Config, config_to_json};
use burn::module::{Content, Module, ModuleDisplay, Param};
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::checks::float;
use crate::module::renewed;
use crate::operands::Parameter;
use crate::pass::With;
use crate::{BatchNorm, BatchNormConfig, BatchNormError};

/// Configuration of [`DomainBatchNorm`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DomainBatchNormConfig {
    /// Of each domain's layer.
    pub norm: BatchNormConfig,
    /// The number of domains. Must be greater than zero.
    pub domains: usize,
    /// Whether all domains share one `gamma` and one `beta`. Default: true
    #[serde(default = "shared")]
    pub shared_affine: bool,
}

fn shared() -> bool {
    true
}

// As of `BatchNormConfig`: what `#[derive(Config)]` would add, and files may lack what has a default.
impl Config for DomainBatchNormConfig {}

impl core::fmt::Display for DomainBatchNormConfig {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(&config_to_json(self))
    }
}

/// Batch norm with a set of running statistics for each domain, chosen call by call.
///
/// For data of several sources that pass one network: adversarial and clean images
/// ([AdvProp](https://arxiv.org/abs/1911.09665), timm's `SplitBatchNorm2d` with affine parameters of their own),
/// domains to adapt between ([AdaBN](https://arxiv.org/abs/1603.04779)), resolutions (detectron2's
/// `CycleBatchNormList`, whose affine parameters are shared).
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct DomainBatchNorm {
    /// Of all domains, shape `[channels]`, where they share it and the configuration has a scale.
    pub gamma: Option<Param<Tensor<1>>>,
    /// Of all domains, shape `[channels]`, where they share it and the configuration has a shift.
    pub beta: Option<Param<Tensor<1>>>,
    /// One a domain. Where affine parameters are shared, their own are 1 and 0: to fold or freeze them, take
    /// [`into_layers`](Self::into_layers).
    pub domains: Vec<BatchNorm>,
    /// What shared affine parameters have started at: `gamma`, `beta`.
    #[module(skip)]
    initial: [f64; 2],
}

impl ModuleDisplay for DomainBatchNorm {
    fn custom_content(&self, content: Content) -> Option<Content> {
        content
            .add("gamma", &self.gamma)
            .add("beta", &self.beta)
            .add("domains", &self.domains)
            .optional()
    }
}

impl DomainBatchNormConfig {
    /// `domains` sets of statistics, with shared affine parameters.
    pub fn new(norm: BatchNormConfig, domains: usize) -> Self {
        Self {
            norm,
            domains,
            shared_affine: true,
        }
    }

    /// Sets [`shared_affine`](Self::shared_affine).
    pub fn with_shared_affine(mut self, shared_affine: bool) -> Self {
        self.shared_affine = shared_affine;
        self
    }

    /// Initializes the layer.
    ///
    /// # Panics
    ///
    /// Panics where [`try_init`](Self::try_init) fails.
    pub fn init(&self, device: &Device) -> DomainBatchNorm {
        self.try_init(device)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`init`](Self::init), with an error instead of a panic.
    ///
    /// # Errors
    ///
    /// As for [`BatchNormConfig::try_init`], and if there is no domain.
    pub fn try_init(&self, device: &Device) -> Result<DomainBatchNorm, BatchNormError> {
        let layer = self.norm.try_init(device)?;
        match self.shared_affine {
            true => DomainBatchNorm::sharing(layer, self.domains),
            false => {
                let layers = (0..self.domains).map(|_| self.norm.try_init(device));
                DomainBatchNorm::from_layers(layers.collect::<Result<_, _>>()?)
            }
        }
    }
}

impl DomainBatchNorm {
    /// `domains` copies of the layer's statistics, which share its `gamma` and `beta`.
    ///
    /// # Errors
    ///
    /// If `domains` is 0.
    pub fn sharing(layer: BatchNorm, domains: usize) -> Result<Self, BatchNormError> {
        if domains == 0 {
            return Err(BatchNormError::Domains { expected: None });
        }
        let (scale, shift) = (layer.config.scale, layer.config.shift);
        let initial = [layer.config.initial_gamma, layer.config.initial_beta];
        let one = |_| {
            let mut one = layer.copied();
            (one.config.scale, one.config.shift) = (false, false);
            let constant = |value| Param::from_tensor(value).set_require_grad(false);
            (one.config.initial_gamma, one.config.initial_beta) = (1.0, 0.0);
            one.gamma = constant(float(layer.gamma.val().detach()).ones_like());
            one.beta = constant(float(layer.beta.val().detach()).zeros_like());
            one
        };
        Ok(Self {
            domains: (0..domains).map(one).collect(),
            gamma: scale.then(|| layer.gamma.clone()),
            beta: shift.then(|| layer.beta.clone()),
            initial,
        })
    }

    /// One domain a layer, each with its own affine parameters. Clones get ids of their own, by which
    /// optimizers and records tell them apart.
    ///
    /// # Errors
    ///
    /// If there is no layer, or their numbers of channels differ.
    pub fn from_layers(layers: Vec<BatchNorm>) -> Result<Self, BatchNormError> {
        let first = layers
            .first()
            .ok_or(BatchNormError::Domains { expected: None })?;
        let expected = first.config.num_features;
        let differs = |layer: &&BatchNorm| layer.config.num_features != expected;
        match layers.iter().find(differs) {
            Some(layer) => Err(BatchNormError::Parameter {
                name: "num_features",
                expected,
                got: layer.config.num_features,
            }),
            None => {
                let mut known = Vec::new();
                let own = |layer: BatchNorm| {
                    let id = layer.running_mean.id;
                    match known.contains(&id) {
                        true => layer.copied(),
                        false => {
                            known.push(id);
                            layer
                        }
                    }
                };
                Ok(Self {
                    gamma: None,
                    beta: None,
                    domains: layers.into_iter().map(own).collect(),
                    initial: [1.0, 0.0],
                })
            }
        }
    }

    /// One plain layer a domain. Shared affine parameters go into each.
    pub fn into_layers(self) -> Vec<BatchNorm> {
        let Self {
            gamma,
            beta,
            domains,
            initial,
        } = self;
        let own = |mut layer: BatchNorm| {
            if let Some(gamma) = &gamma {
                layer.gamma = renewed(gamma);
                (layer.config.scale, layer.config.initial_gamma) = (true, initial[0]);
            }
            if let Some(beta) = &beta {
                layer.beta = renewed(beta);
                (layer.config.shift, layer.config.initial_beta) = (true, initial[1]);
            }
            layer
        };
        domains.into_iter().map(own).collect()
    }

    /// Applies the layer with the statistics of `domain`, counted from 0.
    ///
    /// # Shapes
    ///
    /// As for [`BatchNorm::forward`].
    ///
    /// # Panics
    ///
    /// Panics where [`try_forward`](Self::try_forward) fails.
    pub fn forward<const D: usize>(&self, input: Tensor<D>, domain: usize) -> Tensor<D> {
        self.try_forward(input, domain)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`forward`](Self::forward), with an error instead of a panic.
    ///
    /// # Errors
    ///
    /// As for [`BatchNorm::try_forward`], and if there is no such domain.
    pub fn try_forward<const D: usize>(
        &self,
        input: Tensor<D>,
        domain: usize,
    ) -> Result<Tensor<D>, BatchNormError> {
        self.try_forward_with(input, domain, With::default())
    }

    /// As [`try_forward`](Self::try_forward), with a residual or a mask.
    ///
    /// # Errors
    ///
    /// As for [`BatchNorm::try_forward_with`], and if there is no such domain.
    pub fn try_forward_with<const D: usize>(
        &self,
        input: Tensor<D>,
        domain: usize,
        with: With<D>,
    ) -> Result<Tensor<D>, BatchNormError> {
        let layer = self.domains.get(domain).ok_or(BatchNormError::Domains {
            expected: Some((domain, self.domains.len())),
        })?;
        let [gamma, beta] = layer.parameters();
        let shared = |param: &Option<Param<Tensor<1>>>, own| match param {
            Some(param) if layer.config.train_affine => Parameter::Learned(param.val()),
            Some(param) => Parameter::Learned(param.val().detach()),
            None => own,
        };
        let parameters = [shared(&self.gamma, gamma), shared(&self.beta, beta)];
        layer.run(input, parameters, with)
    }
}
