//! The command `eval`, and the test itself: one code path for all commands, so that they give the same
//! numbers.

use std::fmt::{Display, Formatter};

use anyhow::{Context, Result, anyhow};
use burn::data::dataloader::DataLoader;
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::cli::{EvalArgs, ModelArgs};
use crate::config::RunConfig;
use crate::data::{Dataset, Images, Samples};
use crate::device::{self, NamedDevice};
use crate::folder::{Folder, MODEL, load_record};
use crate::metrics::Scores;
use crate::model::Classifier;
use crate::report::{HEAD, class_table, row};

/// Images per validation or test step: large, since no gradients are kept.
pub const EVAL_BATCH: usize = 500;

/// A finished run, read.
pub struct SavedRun {
    /// Where it is.
    pub folder: Folder,
    /// Its settings.
    pub config: RunConfig,
    /// That of the training, or another that was asked for.
    pub device: NamedDevice,
    /// The network, for inference.
    pub model: Classifier,
}

impl SavedRun {
    /// The one that `args` name.
    pub fn open(args: &ModelArgs) -> Result<Self> {
        let folder = Folder::new(&args.model);
        let config = folder.load_config()?;
        let device = device::resolve(args.device.as_deref().unwrap_or(&config.device))?;
        let model = load_record(&folder.file(MODEL), &config, &device.device())?;
        Ok(Self {
            folder,
            config,
            device,
            model,
        })
    }
}

/// Tests a network on `images`.
pub fn test(
    model: &Classifier,
    config: &RunConfig,
    images: &Images,
    device: &Device,
) -> Result<Scores> {
    let samples = Samples::new(images, config.model.input, config.scale);
    evaluate(model, &samples, device)
}

/// Runs the network over the samples, in order, without gradients.
pub fn evaluate(model: &Classifier, samples: &Samples, device: &Device) -> Result<Scores> {
    let mut scores = Scores::default();
    for batch in samples.batches(EVAL_BATCH, device).iter().flatten() {
        scores.add(Scores::of(&read(model, batch.inputs)?, &batch.labels));
    }
    Ok(scores)
}

/// Logits on the host.
pub fn read(model: &Classifier, inputs: Tensor<2>) -> Result<Vec<f32>> {
    let data = model
        .forward(inputs)
        .try_into_data()
        .context("the device failed")?;
    data.try_into_vec()
        .map_err(|error| anyhow!("the logits are not f32: {error:?}"))
}

/// What `eval` prints as JSON.
#[derive(Debug, Serialize)]
pub struct EvalReport {
    /// Where the images come from.
    pub data: String,
    /// The device.
    pub device: String,
    /// Images in the test.
    pub test_images: usize,
    /// Mean cross-entropy.
    pub test_loss: f64,
    /// Share of correct predictions.
    pub test_accuracy: f64,
    /// Class by class.
    pub classes: Vec<ClassReport>,
    /// The network in words.
    #[serde(skip)]
    pub network: String,
}

impl Display for EvalReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let scores = Some((self.test_loss, self.test_accuracy));
        let row = row("test", self.test_images, scores);
        let classes = class_table(&self.classes);
        write!(f, "{}\n{HEAD}{row}\n{classes}", self.network)
    }
}

/// A class in a report.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClassReport {
    /// Its name.
    pub name: String,
    /// Test images of it.
    pub images: usize,
    /// Those predicted right.
    pub correct: usize,
    /// Their share, if there are images.
    pub accuracy: Option<f64>,
}

/// Class by class, with names.
pub fn by_class(scores: &Scores, names: &[String]) -> Vec<ClassReport> {
    let classes = names.iter().zip(&scores.confusion).enumerate();
    classes
        .map(|(class, (name, row))| {
            let (images, correct) = (row.iter().sum(), row[class]);
            let accuracy = (images > 0).then(|| correct as f64 / images as f64);
            ClassReport {
                name: name.clone(),
                images,
                correct,
                accuracy,
            }
        })
        .collect()
}

/// Loads what `train` saved and repeats its test. Data and device are those of the training unless
/// told otherwise; the same device gives the same digits.
pub fn run(args: &EvalArgs) -> Result<EvalReport> {
    let saved = SavedRun::open(&args.model)?;
    let config = &saved.config;
    let data = Dataset::load(args.data.as_deref().unwrap_or(&config.data))?;
    let scores = test(&saved.model, config, &data.test, &saved.device.device())?;
    Ok(EvalReport {
        data: data.name,
        test_images: scores.count(),
        test_loss: scores.loss(),
        test_accuracy: scores.accuracy(),
        classes: by_class(&scores, &config.class_names),
        network: config.model.describe(),
        device: saved.device.name,
    })
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::data::{CLASSES, Scale};
    use crate::model::{ModelConfig, NormKind};

    #[test]
    fn counts_add_up() {
        let images = Images {
            pixels: (0..1203 * 784).map(|at| (at % 251) as u8).collect(),
            labels: (0..1203).map(|at| (at % 10) as u8).collect(),
        };
        let config = ModelConfig {
            input: 100,
            hidden: 8,
            norm: NormKind::Batch,
            bn_before_activation: false,
            statistics: Default::default(),
        };
        let device = Device::flex();
        let samples = Samples::new(&images, 100, Scale::of(&images));
        let model = config.init(1, &device);
        let scores = evaluate(&model, &samples, &device).expect("evaluated");
        let names: Vec<String> = (0..CLASSES).map(|class| class.to_string()).collect();
        let classes = by_class(&scores, &names);
        assert_eq!(
            (scores.count(), classes[0].images, classes[9].images),
            (1203, 121, 120)
        );
        let correct: usize = classes.iter().map(|class| class.correct).sum();
        assert_eq!(correct, scores.correct());
        let chance = (scores.loss() - 10f64.ln()).abs();
        assert!(chance < 0.5, "untrained: about ln 10, not {chance} from it");
        assert_eq!(by_class(&Scores::default(), &names)[3].accuracy, None);
    }
}
