//! The test: one code path for `train`, `eval` and `compare`, so that they give the same numbers.

use std::path::Path;

use burn::data::dataloader::DataLoader;
use burn::tensor::Device;
use serde::Serialize;

use crate::artifacts::Artifacts;
use crate::config::RunConfig;
use crate::data::{BatchLoader, CLASSES, Samples, Source};
use crate::device;
use crate::error::{Error, Result};
use crate::metrics::Scores;
use crate::model::Classifier;
use crate::training::EVAL_BATCH;

/// What is taken for what: `confusion[class][prediction]` counts images.
pub type Confusion = [[usize; CLASSES]; CLASSES];

/// Loss, accuracy and confusion over a set of images.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// The sums over all images.
    pub scores: Scores,
    /// Counts by class and prediction.
    pub confusion: Confusion,
}

impl Evaluation {
    /// Images of a class, and how many of them are predicted right.
    pub fn class(&self, class: usize) -> (usize, usize) {
        (
            self.confusion[class].iter().sum(),
            self.confusion[class][class],
        )
    }
}

/// Runs the network over the samples at `indices`, in order, without gradients.
pub fn evaluate(
    model: &Classifier,
    samples: &Samples,
    indices: &[u32],
    device: &Device,
) -> Result<Evaluation> {
    let mut evaluation = Evaluation {
        scores: Scores::default(),
        confusion: [[0; CLASSES]; CLASSES],
    };
    let loader = BatchLoader::fixed(samples, indices, EVAL_BATCH, device);
    for batch in loader.iter() {
        let batch = batch.map_err(|error| Error::Evaluation(error.to_string()))?;
        let logits = read(model, batch.inputs)?;
        let scores = Scores::of(&logits, &batch.labels, |class, predicted| {
            evaluation.confusion[usize::from(class)][predicted] += 1;
        });
        evaluation.scores.add(scores);
    }
    Ok(evaluation)
}

/// All of `samples`.
pub fn evaluate_all(model: &Classifier, samples: &Samples, device: &Device) -> Result<Evaluation> {
    let all: Vec<u32> = (0..samples.len() as u32).collect();
    evaluate(model, samples, &all, device)
}

/// Logits on the host.
pub fn read(model: &Classifier, inputs: burn::tensor::Tensor<2>) -> Result<Vec<f32>> {
    let failed = |reason: String| Error::Evaluation(reason);
    let data = model
        .forward(inputs)
        .try_into_data()
        .map_err(|error| failed(error.to_string()))?;
    data.try_into_vec::<f32>()
        .map_err(|error| failed(format!("{error:?}")))
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
#[derive(Clone, Debug, Serialize, serde::Deserialize)]
pub struct ClassReport {
    /// Its name.
    pub name: String,
    /// Test images of it.
    pub images: usize,
    /// Those predicted right.
    pub correct: usize,
    /// Their share.
    pub accuracy: f64,
}

/// Class by class, with names.
pub fn by_class(evaluation: &Evaluation, names: &[String]) -> Vec<ClassReport> {
    let classes = names.iter().enumerate().map(|(class, name)| {
        let (images, correct) = evaluation.class(class);
        ClassReport {
            name: name.clone(),
            images,
            correct,
            accuracy: correct as f64 / images as f64,
        }
    });
    classes.collect()
}

/// The command: loads what `train` saved and repeats its test. Data and device are those of the
/// training unless told otherwise; the same device gives the same digits.
pub fn run(
    model: &Path,
    data: Option<Source>,
    device: Option<&str>,
) -> Result<(EvalReport, RunConfig)> {
    let artifacts = Artifacts::new(model);
    let config = artifacts.load_config()?;
    let device = device::resolve(device.unwrap_or(&config.device))?;
    let (config, model) = artifacts.load_model(&device.device())?;
    let source = match data {
        Some(source) => source.absolute()?,
        None => config.source(),
    };
    let images = source.load()?.test;
    let samples = Samples::new(&images, config.model.input);
    let evaluation = evaluate_all(&model, &samples, &device.device())?;
    let report = EvalReport {
        data: source.to_string(),
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
    use crate::data::Images;
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
        };
        let device = Device::flex();
        let samples = Samples::new(&images, 100);
        let evaluation =
            evaluate_all(&config.init(1, &device), &samples, &device).expect("evaluated");
        assert_eq!(evaluation.scores.count, 1203);
        assert_eq!(evaluation.class(0).0, 121);
        assert_eq!(evaluation.class(9).0, 120);
        let correct: usize = (0..CLASSES).map(|class| evaluation.class(class).1).sum();
        assert_eq!(correct, evaluation.scores.correct);
        assert!(
            (evaluation.scores.loss() - 10f64.ln()).abs() < 0.5,
            "untrained: about ln 10"
        );
    }
}
