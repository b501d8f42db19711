//! The command `eval`, and the test itself: one code path for all commands, so that they give the same
//! numbers.

use anyhow::{Context, Result, anyhow};
use burn::data::dataloader::DataLoader;
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::cli::{EvalArgs, ModelArgs};
use crate::config::RunConfig;
use crate::data::{BatchLoader, CLASSES, Images, Samples, Source};
use crate::device::{self, NamedDevice};
use crate::folder::Folder;
use crate::metrics::Scores;
use crate::model::Classifier;

/// Images per validation or test step: large, since no gradients are kept.
pub const EVAL_BATCH: usize = 500;

/// Loss, accuracy and confusion over a set of images.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evaluation {
    /// The sums over all images.
    pub scores: Scores,
    /// What is taken for what: `confusion[class][prediction]` counts images.
    pub confusion: [[usize; CLASSES]; CLASSES],
}

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
        let model = folder.load_model(&config, &device.device())?;
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
) -> Result<Evaluation> {
    let samples = Samples::new(images, config.model.input, config.scale);
    evaluate(model, &samples, &samples.all(), device)
}

/// Runs the network over the samples at `indices`, in order, without gradients.
pub fn evaluate(
    model: &Classifier,
    samples: &Samples,
    indices: &[u32],
    device: &Device,
) -> Result<Evaluation> {
    let mut evaluation = Evaluation::default();
    let loader = BatchLoader::fixed(samples, indices, EVAL_BATCH, device);
    for batch in loader.iter() {
        let batch = batch.map_err(|error| anyhow!("{error}"))?;
        let logits = read(model, batch.inputs)?;
        let scores = Scores::of(&logits, &batch.labels, |class, predicted| {
            evaluation.confusion[usize::from(class)][predicted] += 1;
        });
        evaluation.scores.add(scores);
    }
    Ok(evaluation)
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
pub fn by_class(evaluation: &Evaluation, names: &[String]) -> Vec<ClassReport> {
    let classes = names.iter().zip(&evaluation.confusion).enumerate();
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
pub fn run(args: &EvalArgs) -> Result<(EvalReport, RunConfig)> {
    let SavedRun {
        config,
        device,
        model,
        ..
    } = SavedRun::open(&args.model)?;
    let source = Source::from(args.data.as_deref().unwrap_or(&config.data));
    let (data, images) = (source.name()?, source.load()?.test);
    let evaluation = test(&model, &config, &images, &device.device())?;
    let report = EvalReport {
        data,
        device: device.name,
        test_images: evaluation.scores.count,
        test_loss: evaluation.scores.loss(),
        test_accuracy: evaluation.scores.accuracy(),
        classes: by_class(&evaluation, &config.class_names),
    };
    Ok((report, config))
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::data::Scale;
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
        let evaluation = evaluate(&model, &samples, &samples.all(), &device).expect("evaluated");
        let names: Vec<String> = (0..CLASSES).map(|class| class.to_string()).collect();
        let classes = by_class(&evaluation, &names);
        assert_eq!(
            (
                evaluation.scores.count,
                classes[0].images,
                classes[9].images
            ),
            (1203, 121, 120)
        );
        let correct: usize = classes.iter().map(|class| class.correct).sum();
        assert_eq!(correct, evaluation.scores.correct);
        let chance = (evaluation.scores.loss() - 10f64.ln()).abs();
        assert!(chance < 0.5, "untrained: about ln 10, not {chance} from it");
        assert_eq!(by_class(&Evaluation::default(), &names)[3].accuracy, None);
    }
}
