//! Weights of PyTorch, Keras and Flax, in and out, for a whole model at once.
//!
//! ```no_run
//! use burn_batchnorm::store::Framework;
//! # use burn::{module::Module, nn::{Linear, LinearConfig}, tensor::Device};
//! # use burn_batchnorm::{BatchNorm, BatchNormConfig};
//! # #[derive(Module, Debug)] struct Model { hidden: Linear, norm: BatchNorm }
//! # fn main() -> Result<(), burn_batchnorm::store::WeightsError> {
//! # let device = Device::default();
//! # let mut model = Model {
//! #     hidden: LinearConfig::new(4, 3).init(&device),
//! #     norm: BatchNormConfig::new(3).init(&device),
//! # };
//! Framework::PyTorch.load(&mut model, "model.pth")?;
//! Framework::PyTorch.save(&model, "model.safetensors")?;
//! # Ok(())
//! # }
//! ```
//!
//! The fields of the model are named as the layers of the file; a root that all keys have and the model
//! has not (`sequential/`, `module.`) is left out. The names of tensors inside a layer, the
//! layout of kernels and the batch counter are translated:
//!
//! | here | PyTorch | Keras | Flax |
//! |---|---|---|---|
//! | `gamma` | `weight` | `gamma` | `scale` |
//! | `beta` | `bias` | `beta` | `bias` |
//! | `running_mean` | `running_mean` | `moving_mean` | `mean` |
//! | `running_var` | `running_var` | `moving_variance` | `var` |
//! | `num_batches_tracked`, `[1]` | `num_batches_tracked`, `[]` | | |
//! | `Linear` `weight`, `[in, out]` | `weight`, `[out, in]` | `kernel`, `[in, out]` | as Keras |
//! | `Conv*` `weight`, `[out, in, ..]` | `weight`, the same | `kernel`, `[.., in, out]` | as Keras |
//! | `ConvTranspose*` `weight`, `[in, out, ..]` | `weight`, the same | `kernel`, `[.., out, in]` | |
//! | `Embedding` `weight` | `weight` | `embeddings` | `embedding` |
//!
//! A layer with an exponential average records no counter. It accepts a file that has one, and PyTorch
//! accepts, strictly, a file that has none.
//!
//! # Bits
//!
//! Values are copied, never computed with: what is loaded and saved again has the same bits. Only
//! running statistics of a half type are kept in f32, and saved so.

mod adapter;
mod check;
mod error;
mod names;

use std::fs::{self, Permissions};
use std::io;
use std::path::Path;

use burn::module::Module;
use burn_store::{ModuleSnapshot, ModuleStore, PytorchStore, SafetensorsStore};

pub use adapter::FrameworkAdapter;
pub use error::{Reason, Refusal, WeightsError};

/// Whose names and memory layouts a file of weights has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framework {
    /// A state dict: `.pt` and `.pth`, or safetensors as `safetensors.torch.save_file` writes them.
    PyTorch,
    /// Keras 3, safetensors with the variables' paths as keys: `conv/kernel`, `norm/moving_mean`.
    Keras,
    /// Flax, safetensors with the flattened tree as keys, joined by a dot or a slash. NNX's state
    /// (`norm.mean`) and Linen's collections (`batch_stats.norm.mean`) are read; NNX's are written.
    Flax,
}

impl Framework {
    /// Loads a file into a model: all of it, or nothing.
    ///
    /// A path that ends in `.safetensors` is read as such, any other as PyTorch's pickle.
    ///
    /// # Errors
    ///
    /// [`WeightsError::Store`] if the file cannot be read. [`WeightsError::Refused`] with every tensor
    /// that the model lacks or the file lacks, whose shape or type differs, that has a value that is
    /// not finite, or a variance or count below 0. The model then is as it was.
    pub fn load<M: Module>(
        self,
        model: &mut M,
        path: impl AsRef<Path>,
    ) -> Result<(), WeightsError> {
        let path = path.as_ref();
        match is_safetensors(path) {
            true => self.load_from(model, &mut SafetensorsStore::from_file(path)),
            false => self.load_from(model, &mut PytorchStore::from_file(path)),
        }
    }

    /// As [`load`](Self::load), from a store: bytes in memory, or with keys that the store renames.
    ///
    /// The store's adapter and filter are not used.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    pub fn load_from<M: Module, S: ModuleStore>(
        self,
        model: &mut M,
        store: &mut S,
    ) -> Result<(), WeightsError> {
        let tensors = store.get_all_tensors().map_err(|error| read(&error))?;
        let parameters = check::parameters(model);
        let source = check::source(tensors, &parameters, self);
        let refused = check::refusals(parameters, &source, &model.devices(), self);
        if !refused.is_empty() {
            return Err(WeightsError::Refused(refused));
        }
        let tensors = source.into_values().map(|(_, tensor)| tensor).collect();
        let applied = model.apply(tensors, None, Some(Box::new(self.import())), true);
        // Checked before: only a file that changes meanwhile gets here.
        match applied.errors.is_empty() && applied.missing.is_empty() {
            true => Ok(()),
            false => Err(read(&applied)),
        }
    }

    /// Writes a model as a safetensors file, replacing what is there once all is written. The file has the permissions
    /// of the one that it replaces, or of any new file.
    ///
    /// # Errors
    ///
    /// [`WeightsError::Store`] if the path does not end in `.safetensors`, by which [`load`](Self::load) and
    /// others know the format, or if the file cannot be written.
    pub fn save<M: Module>(self, model: &M, path: impl AsRef<Path>) -> Result<(), WeightsError> {
        let path = path.as_ref();
        if !is_safetensors(path) {
            return Err(WeightsError::Store {
                action: "write",
                message: format!(
                    "expected a path that ends in .safetensors, the only format written, got {}",
                    path.display()
                ),
            });
        }
        let format = match self {
            Self::PyTorch => "pt",
            Self::Keras => "tf",
            Self::Flax => "flax",
        };
        let mut store = SafetensorsStore::from_file(path)
            .overwrite(true)
            .skip_enum_variants(true)
            .metadata("format", format)
            .with_to_adapter(self.export());
        let written = |message| WeightsError::Store {
            action: "write",
            message,
        };
        let file = |error: io::Error| written(format!("{}: {error}", path.display()));
        let permissions = permissions(path).map_err(file)?;
        let saved = model.save_into(&mut store);
        saved.map_err(|error| written(error.to_string()))?;
        fs::set_permissions(path, permissions).map_err(file)
    }
}

fn is_safetensors(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "safetensors")
}

/// The permissions of the file at a path, or those that a new one there would have. (safetensors makes every file private.)
fn permissions(path: &Path) -> io::Result<Permissions> {
    if let Ok(old) = path.metadata() {
        return Ok(old.permissions());
    }
    let mut new = tempfile::Builder::new();
    #[cfg(unix)]
    new.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let new = new.tempfile_in(folder.unwrap_or(Path::new(".")))?;
    Ok(new.as_file().metadata()?.permissions())
}

fn read(error: &impl std::fmt::Display) -> WeightsError {
    WeightsError::Store {
        action: "read",
        message: error.to_string(),
    }
}
