//! Results as text tables and as `summary.json`.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use crate::config::RunConfig;
use crate::data::EpochTime;
use crate::device::NamedDevice;
use crate::evaluation::{ClassReport, EvalReport, Evaluation, by_class};

/// `summary.json`: the results of a run. Losses are mean cross-entropies, accuracies shares from 0
/// to 1, all of the saved model.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Summary {
    /// The device, as given to `--device`.
    pub device: String,
    /// What the driver calls it.
    pub adapter: String,
    /// The network in words.
    pub model: String,
    /// Where the images come from.
    pub data: String,
    /// Epochs trained, earlier sessions included.
    pub epochs: usize,
    /// The epoch whose model is saved: the last, with early stopping the best.
    pub model_epoch: usize,
    /// Seed of the run.
    pub seed: u64,
    /// Images trained on in each epoch.
    pub train_images: usize,
    /// Loss on them.
    pub train_loss: f64,
    /// Accuracy on them.
    pub train_accuracy: f64,
    /// Images held out for validation.
    pub validation_images: usize,
    /// Loss on them, if there are any.
    pub validation_loss: Option<f64>,
    /// Accuracy on them, if there are any.
    pub validation_accuracy: Option<f64>,
    /// Images of the test.
    pub test_images: usize,
    /// Loss on them.
    pub test_loss: f64,
    /// Accuracy on them.
    pub test_accuracy: f64,
    /// Time spent in the training epochs of this session: batches, forward, backward, optimizer
    /// and waiting for the metrics thread; not validation, checkpoints, test and pictures.
    pub train_seconds: f64,
    /// Images trained on in this session over `train_seconds`.
    pub train_images_per_second: f64,
    /// Test accuracy class by class.
    pub classes: Vec<ClassReport>,
}

/// The parts of a [`Summary`].
pub struct Results<'a> {
    /// Settings.
    pub config: &'a RunConfig,
    /// Where it ran.
    pub device: &'a NamedDevice,
    /// Epochs of this session.
    pub times: &'a [EpochTime],
    /// Epochs of all sessions.
    pub epochs: usize,
    /// The epoch of the model that was evaluated.
    pub model_epoch: usize,
    /// On the training images.
    pub train: &'a Evaluation,
    /// On the validation images.
    pub valid: &'a Evaluation,
    /// On the test images.
    pub test: &'a Evaluation,
}

impl Results<'_> {
    /// As it is saved.
    pub fn summary(&self) -> Summary {
        let images: usize = self.times.iter().map(|time| time.images).sum();
        let seconds: f64 = self.times.iter().map(|time| time.time.as_secs_f64()).sum();
        let validated = self.valid.scores.count > 0;
        Summary {
            device: self.device.name.clone(),
            adapter: self.device.adapter.clone(),
            model: self.config.model.describe(),
            data: self.config.data.clone(),
            epochs: self.epochs,
            model_epoch: self.model_epoch,
            seed: self.config.training.seed,
            train_images: self.train.scores.count,
            train_loss: self.train.scores.loss(),
            train_accuracy: self.train.scores.accuracy(),
            validation_images: self.valid.scores.count,
            validation_loss: validated.then(|| self.valid.scores.loss()),
            validation_accuracy: validated.then(|| self.valid.scores.accuracy()),
            test_images: self.test.scores.count,
            test_loss: self.test.scores.loss(),
            test_accuracy: self.test.scores.accuracy(),
            train_seconds: seconds,
            train_images_per_second: images as f64 / seconds,
            classes: by_class(self.test, &self.config.class_names),
        }
    }
}

/// Results of `train` for people.
pub fn training_table(summary: &Summary) -> String {
    let rows = [
        (
            "train",
            summary.train_images,
            Some(summary.train_loss),
            Some(summary.train_accuracy),
        ),
        (
            "validation",
            summary.validation_images,
            summary.validation_loss,
            summary.validation_accuracy,
        ),
        (
            "test",
            summary.test_images,
            Some(summary.test_loss),
            Some(summary.test_accuracy),
        ),
    ];
    let mut text = String::from("              images      loss   accuracy\n");
    for (name, images, loss, accuracy) in rows {
        let loss = loss.map_or_else(|| "-".to_string(), |loss| format!("{loss:.4}"));
        let accuracy = accuracy.map_or_else(|| "-".to_string(), percent);
        line(
            &mut text,
            format_args!("{name:<12}{images:>8}{loss:>10}{accuracy:>11}"),
        );
    }
    text.push('\n');
    text.push_str(&class_table(&summary.classes));
    line(&mut text, format_args!(""));
    line(
        &mut text,
        format_args!(
            "{} epochs on {} ({}): {:.2} s of training, {:.0} images/s",
            summary.epochs,
            summary.device,
            summary.adapter,
            summary.train_seconds,
            summary.train_images_per_second
        ),
    );
    text
}

/// Results of `eval` for people.
pub fn eval_table(report: &EvalReport) -> String {
    let mut text = String::from("              images      loss   accuracy\n");
    let accuracy = percent(report.test_accuracy);
    line(
        &mut text,
        format_args!(
            "{:<12}{:>8}{:>10.4}{accuracy:>11}",
            "test", report.test_images, report.test_loss
        ),
    );
    text.push('\n');
    text.push_str(&class_table(&report.classes));
    text
}

fn class_table(classes: &[ClassReport]) -> String {
    let mut text = String::from("test accuracy by class\n");
    for class in classes {
        let filled = (20.0 * class.accuracy).round() as usize;
        let bar = format!("{}{}", "#".repeat(filled), ".".repeat(20 - filled.min(20)));
        let accuracy = percent(class.accuracy);
        line(
            &mut text,
            format_args!("{:<12}{:>8}  {bar}{accuracy:>9}", class.name, class.images),
        );
    }
    text
}

/// A share as percent.
pub fn percent(share: f64) -> String {
    format!("{:.2}%", 100.0 * share)
}

/// Writing to a string cannot fail.
pub(crate) fn line(text: &mut String, content: std::fmt::Arguments<'_>) {
    let _ = text.write_fmt(content);
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(name: &str, correct: usize) -> ClassReport {
        ClassReport {
            name: name.to_string(),
            images: 10,
            correct,
            accuracy: correct as f64 / 10.0,
        }
    }

    #[test]
    fn tables_hold_the_numbers() {
        let text = eval_table(&EvalReport {
            data: "embedded".into(),
            device: "flex".into(),
            test_images: 20,
            test_loss: 0.12345,
            test_accuracy: 0.85,
            classes: vec![class("Bag", 10), class("Shirt", 7)],
        });
        for part in [
            "0.1235",
            "85.00%",
            "Bag",
            "100.00%",
            "Shirt",
            "70.00%",
            "##############......",
        ] {
            assert!(text.contains(part), "`{part}` is not in\n{text}");
        }
    }

    #[test]
    fn a_class_without_images_does_not_break_the_table() {
        let empty = ClassReport {
            images: 0,
            accuracy: f64::NAN,
            ..class("none", 0)
        };
        assert!(class_table(&[empty]).contains("NaN%"));
    }
}
