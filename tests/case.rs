//! One case of batch normalization as a safetensors file: tensors by name, and the metadata key
//! `case` with what the layer is configured as. An outside program can write such a file, have
//! `case-runner` run it, and read the results from another.
//!
//! | tensor                                           |                                            |
//! |--------------------------------------------------|--------------------------------------------|
//! | `x`, then `x2`, `x3`, ..                         | the batches, fed in this order             |
//! | `gamma`, `beta`, `running_mean`, `running_var`   | `[channels]`, optional                     |
//! | `dy`                                             | shape of `x`, optional: gradient of `y`    |
//! | `residual`                                       | shape of `x`, optional: added to its output |
//! | `mask` or `weights`, then `mask2`, `mask3`, ..   | which positions count, of `x`, `x2`, ..; optional: |
//! |                                                  | shape of the batch, or without its channel axis |
//!
//! A batch without a mask of its own takes that of `x` where it has the shape of `x`. Everything else that
//! the layer can do is said by its configuration, whose fields serde names (`statistics`, `inference`,
//! `update_statistics`, `train_affine`, `non_finite`, `masked_output`, ..).
//!
//! Results: `y`, `y2`, ..; `running_mean`, `running_var`, `num_batches_tracked` as they are after
//! the last batch; `dx`, `dgamma`, `dbeta`, `dresidual` of `sum(y * dy)` where there is a `dy`.
//!
//! Parameters that a case does not give take the type of `x`, f32 for a half type.

use std::collections::{BTreeMap, HashMap};

use burn::module::Param;
use burn::tensor::{DType, Device, Shape, Tensor, TensorData};
use burn_batchnorm::{BatchNorm, BatchNormConfig, BatchNormError, Mask, RunningState, With};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Tensors by name.
pub type Tensors = BTreeMap<String, TensorData>;

/// The metadata key `case`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The layer.
    pub config: BatchNormConfig,
    /// Whether it trains. If not it normalizes by the running statistics and updates nothing, while
    /// gradients are still computed: PyTorch's `eval()`.
    #[serde(default)]
    pub training: bool,
    /// The device, by the names of [`devices`](crate::devices).
    #[serde(default = "default_device")]
    pub device: String,
    /// Whether gradient checkpointing is on.
    #[serde(default)]
    pub checkpointing: bool,
    /// The number of batches that the running statistics hold at the start.
    #[serde(default)]
    pub num_batches_tracked: u64,
}

fn default_device() -> String {
    "flex".into()
}

/// A case: what to run and on what.
#[derive(Debug, Clone)]
pub struct Case {
    /// How to run it.
    pub settings: Settings,
    /// Its tensors.
    pub tensors: Tensors,
}

/// Why a case did not run.
#[derive(Debug, Error)]
pub enum CaseError {
    /// The layer refused it.
    #[error("{}: {_0}", _0.name())]
    Refused(#[from] BatchNormError),
    /// The case asks for something that this version has not.
    #[error("Unsupported: {0}")]
    Unsupported(String),
    /// The file is not a case.
    #[error("Malformed: {0}")]
    Malformed(String),
}

fn malformed(message: impl ToString) -> CaseError {
    CaseError::Malformed(message.to_string())
}

impl Case {
    /// Reads a case from the bytes of its file.
    ///
    /// # Errors
    ///
    /// [`CaseError::Malformed`] if they are no safetensors, lack `x` or `case`, or a type is unknown.
    pub fn parse(bytes: &[u8]) -> Result<Self, CaseError> {
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(malformed)?;
        let settings = metadata
            .metadata()
            .as_ref()
            .and_then(|metadata| metadata.get("case"))
            .ok_or_else(|| malformed("the file has no metadata key `case`"))?;
        let settings = serde_json::from_str(settings)
            .map_err(|error| malformed(format!("metadata key `case`: {error}")))?;
        let tensors = parse_tensors(bytes)?;
        if !tensors.contains_key("x") {
            return Err(malformed("the file has no tensor `x`"));
        }
        Ok(Self { settings, tensors })
    }

    /// Runs the case and returns its results by name.
    ///
    /// # Errors
    ///
    /// If the layer refuses it, the device is not there, or a tensor has the wrong shape.
    pub fn run(&self) -> Result<Tensors, CaseError> {
        match self.tensors["x"].shape().num_dims() {
            1 => self.run_rank::<1>(),
            2 => self.run_rank::<2>(),
            3 => self.run_rank::<3>(),
            4 => self.run_rank::<4>(),
            5 => self.run_rank::<5>(),
            6 => self.run_rank::<6>(),
            rank => Err(CaseError::Unsupported(format!(
                "rank {rank}, expected 1 to 6"
            ))),
        }
    }

    fn device(&self) -> Result<Device, CaseError> {
        let name = &self.settings.device;
        let device = crate::devices::by_name(name).ok_or_else(|| {
            CaseError::Unsupported(format!(
                "device `{name}`, expected flex, ndarray or wgpu with an adapter"
            ))
        })?;
        let dtype = self.tensors["x"].dtype();
        if !device.supports_dtype(dtype) {
            return Err(CaseError::Unsupported(format!(
                "type {dtype:?} on device `{name}`"
            )));
        }
        let device = device.autodiff();
        Ok(match self.settings.checkpointing {
            true => device.gradient_checkpointing(),
            false => device,
        })
    }

    /// The layer with the given parameters put in.
    fn layer(&self, device: &Device) -> Result<BatchNorm, CaseError> {
        let mut layer = self.settings.config.try_init(device)?;
        let wide = match self.tensors["x"].dtype() {
            DType::F16 | DType::BF16 => DType::F32,
            dtype => dtype,
        };
        let given = |name: &str, default: Tensor<1>| match self.tensors.get(name) {
            None => Ok(default.cast(wide)),
            Some(data) if data.shape().num_dims() == 1 => {
                Ok(Tensor::from_data(data.clone(), (device, data.dtype())))
            }
            Some(data) => Err(malformed(format!(
                "`{name}` has shape {:?}, expected [channels]",
                data.shape()
            ))),
        };
        let learnable = |param: Param<Tensor<1>>, name: &str| {
            let require_grad = param.is_require_grad();
            let value = given(name, param.val().detach())?;
            Ok::<_, CaseError>(Param::from_tensor(value).set_require_grad(require_grad))
        };
        // A parameter that is off has no value to be given.
        if self.settings.config.scale {
            layer.gamma = learnable(layer.gamma, "gamma")?;
        }
        if self.settings.config.shift {
            layer.beta = learnable(layer.beta, "beta")?;
        }
        layer.running_mean = RunningState::new(given("running_mean", layer.running_mean.value())?);
        layer.running_var = RunningState::new(given("running_var", layer.running_var.value())?);
        layer
            .num_batches_tracked
            .set(self.settings.num_batches_tracked);
        layer.training = layer.training.with_value(self.settings.training);
        Ok(layer)
    }

    /// The mask of batch `x{index}`, if there is one.
    fn mask<const D: usize>(
        &self,
        index: &str,
        shape: [usize; D],
        device: &Device,
    ) -> Result<Option<Mask>, CaseError> {
        let of = |index: &str| {
            let [mask, weights] =
                ["mask", "weights"].map(|name| self.tensors.get(&format!("{name}{index}")));
            match (mask, weights) {
                (Some(_), Some(_)) => {
                    Err(malformed("both `mask` and `weights`, expected one of them"))
                }
                (mask, weights) => Ok(mask.or(weights)),
            }
        };
        let like_the_first = self.tensors["x"].shape().to_vec() == shape;
        let data = match of(index)? {
            None if like_the_first => of("")?,
            data => data,
        };
        let Some(data) = data else {
            return Ok(None);
        };
        // Weights in their own type; a mask of bytes or booleans in any that is computed with.
        let data = match data.dtype().is_float() {
            true => data.clone(),
            false => data.clone().convert::<f32>(),
        };
        Ok(Some(match data.shape().num_dims() {
            1 => Mask::from_weights(Tensor::<1>::from_data(data, device)),
            2 => Mask::from_weights(Tensor::<2>::from_data(data, device)),
            3 => Mask::from_weights(Tensor::<3>::from_data(data, device)),
            4 => Mask::from_weights(Tensor::<4>::from_data(data, device)),
            5 => Mask::from_weights(Tensor::<5>::from_data(data, device)),
            6 => Mask::from_weights(Tensor::<6>::from_data(data, device)),
            rank => {
                return Err(malformed(format!("a mask of rank {rank}, expected 1 to 6")));
            }
        }))
    }

    fn run_rank<const D: usize>(&self) -> Result<Tensors, CaseError> {
        let device = self.device()?;
        let layer = self.layer(&device)?;
        let batch = |name: &str, data: &TensorData| match data.shape().num_dims() {
            rank if rank == D => Ok(Tensor::<D>::from_data(
                data.clone(),
                (&device, data.dtype()),
            )),
            rank => Err(malformed(format!(
                "`{name}` has rank {rank}, expected that of `x`, {D}"
            ))),
        };

        let mut results = Tensors::new();
        let x = batch("x", &self.tensors["x"])?.require_grad();
        let residual = match self.tensors.get("residual") {
            Some(data) => Some(batch("residual", data)?.require_grad()),
            None => None,
        };
        let with = With {
            residual: residual.clone(),
            mask: self.mask("", x.dims(), &device)?,
        };
        let y = layer.try_forward_with(x.clone(), with)?;
        results.insert("y".into(), read(y.clone()));

        for index in 2.. {
            let Some(data) = self.tensors.get(&format!("x{index}")) else {
                break;
            };
            let x = batch(&format!("x{index}"), data)?;
            let mask = self.mask(&index.to_string(), x.dims(), &device)?;
            let residual = None;
            let y = layer.try_forward_with(x, With { residual, mask })?;
            results.insert(format!("y{index}"), read(y));
        }

        if let Some(data) = self.tensors.get("dy") {
            let dy = batch("dy", data)?;
            if dy.shape() != y.shape() {
                return Err(malformed("`dy` has another shape than `x`"));
            }
            let gradients = (y * dy).sum().backward();
            let mut insert = |name: &str, gradient: Option<TensorData>| {
                results.extend(gradient.map(|gradient| (name.to_string(), gradient)));
            };
            insert("dx", x.grad(&gradients).map(read));
            let residual_grad = residual.and_then(|residual| residual.grad(&gradients));
            insert("dresidual", residual_grad.map(read));
            insert("dgamma", layer.gamma.grad(&gradients).map(read));
            insert("dbeta", layer.beta.grad(&gradients).map(read));
        }

        if layer.config().running_stats {
            let count = layer.num_batches_tracked.value() as i64;
            results.extend([
                ("running_mean".into(), read(layer.running_mean.value())),
                ("running_var".into(), read(layer.running_var.value())),
                (
                    "num_batches_tracked".into(),
                    TensorData::new(vec![count], Shape::new([])),
                ),
            ]);
        }
        Ok(results)
    }
}

/// Reads a tensor back, copying it.
///
/// On wgpu the bytes that `into_data` returns are fetched when first looked at: by then a later
/// operation may have reused the tensor's buffer (seen with Burn 0.22.1 on software Vulkan).
fn read<const D: usize>(tensor: Tensor<D>) -> TensorData {
    let data = tensor.into_data();
    TensorData::from_bytes_vec(data.as_bytes().to_vec(), data.shape().clone(), data.dtype())
}

/// Every tensor of a safetensors file.
///
/// # Errors
///
/// [`CaseError::Malformed`] if the bytes are none, or a type is unknown.
pub fn parse_tensors(bytes: &[u8]) -> Result<Tensors, CaseError> {
    let file = SafeTensors::deserialize(bytes).map_err(malformed)?;
    file.iter()
        .map(|(name, view)| {
            let dtype = dtype(view.dtype())
                .ok_or_else(|| malformed(format!("`{name}` has type {:?}", view.dtype())))?;
            let shape = Shape::from(view.shape().to_vec());
            let data = TensorData::from_bytes_vec(view.data().to_vec(), shape, dtype);
            Ok((name.to_string(), data))
        })
        .collect()
}

/// The bytes of a safetensors file with these tensors.
///
/// # Errors
///
/// [`CaseError::Malformed`] if a tensor has a type that safetensors lacks.
pub fn serialize(
    tensors: &Tensors,
    metadata: Option<HashMap<String, String>>,
) -> Result<Vec<u8>, CaseError> {
    let views = tensors
        .iter()
        .map(|(name, data)| {
            let dtype = DTYPES
                .iter()
                .find(|(_, dtype)| *dtype == data.dtype())
                .map(|(dtype, _)| *dtype)
                .ok_or_else(|| malformed(format!("`{name}` has type {:?}", data.dtype())))?;
            let view = TensorView::new(dtype, data.shape().to_vec(), data.as_bytes());
            Ok((name.as_str(), view.map_err(malformed)?))
        })
        .collect::<Result<Vec<_>, CaseError>>()?;
    safetensors::serialize(views, metadata).map_err(malformed)
}

const DTYPES: [(Dtype, DType); 10] = [
    (Dtype::F64, DType::F64),
    (Dtype::F32, DType::F32),
    (Dtype::F16, DType::F16),
    (Dtype::BF16, DType::BF16),
    (Dtype::I64, DType::I64),
    (Dtype::I32, DType::I32),
    (Dtype::I16, DType::I16),
    (Dtype::I8, DType::I8),
    (Dtype::U8, DType::U8),
    // Bytes that are 0 or 1.
    (Dtype::BOOL, DType::U8),
];

fn dtype(dtype: Dtype) -> Option<DType> {
    DTYPES
        .iter()
        .find(|(from, _)| *from == dtype)
        .map(|(_, to)| *to)
}
