//! Networks from files and to files, in torchvision's format.

use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use burn::tensor::Device;
use burn_batchnorm::store::Framework;
use burn_store::{ModuleStore, PytorchStore, SafetensorsStore};

use crate::model::{ResNet, ResNetConfig};

/// The network of a file, which says by its shapes how wide it is, how many classes it has and whether it
/// is folded.
///
/// # Errors
///
/// If the file cannot be read or is not one of a ResNet-18.
pub fn load(path: &Path, device: &Device) -> Result<(ResNet, ResNetConfig)> {
    let context = || format!("cannot load {}", path.display());
    ensure!(path.is_file(), "{} is not a file", path.display());
    let config = config(path).with_context(context)?;
    let mut model = config.init(device);
    Framework::PyTorch
        .load(&mut model, path)
        .with_context(context)?;
    Ok((model, config))
}

/// Writes a network for torchvision and for this program, replacing what is there.
///
/// # Errors
///
/// If the file cannot be written.
pub fn save(model: &ResNet, path: &Path) -> Result<()> {
    Framework::PyTorch
        .save(model, path)
        .with_context(|| format!("cannot save {}", path.display()))
}

fn config(path: &Path) -> Result<ResNetConfig> {
    match path.extension().is_some_and(|end| end == "safetensors") {
        true => config_of(&mut SafetensorsStore::from_file(path)),
        false => config_of(&mut PytorchStore::from_file(path)),
    }
}

fn config_of(store: &mut impl ModuleStore) -> Result<ResNetConfig> {
    let tensors = store
        .get_all_tensors()
        .map_err(|error| anyhow!("{error}"))?;
    let shape = |name: &str| {
        let tensor = tensors.get(name);
        let tensor = tensor.with_context(|| format!("it is no ResNet: it has no `{name}`"))?;
        Ok::<_, anyhow::Error>(tensor.shape.to_vec())
    };
    let (stem, head) = (shape("conv1.weight")?, shape("fc.weight")?);
    let ([width, inputs, 7, 7], [classes, features]) = (&stem[..], &head[..]) else {
        return Err(anyhow!(
            "it is no ResNet-18: expected a first convolution of 7x7 and a dense head, got {stem:?} and \
             {head:?}"
        ));
    };
    ensure!(
        *features == 8 * width,
        "it is no ResNet-18: {width} channels in the first stage make {} in the last, got {features}",
        8 * width
    );
    Ok(ResNetConfig {
        width: *width,
        inputs: *inputs,
        classes: *classes,
        folded: !tensors.contains_key("bn1.weight"),
        ..ResNetConfig::default()
    })
}
