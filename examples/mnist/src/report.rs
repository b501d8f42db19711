//! Results as text tables and as `summary.json`.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::config::RunConfig;
use crate::device::NamedDevice;
use crate::eval::{ClassReport, EvalReport, Evaluation, by_class};
use crate::folder::{CONFIG, CONFUSION, CURVES, METRICS, MODEL, SAFETENSORS, SUMMARY};
use crate::history::History;

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
    /// Time spent in the training epochs, earlier sessions included: batches, forward, backward,
    /// optimizer and waiting for the metrics thread; not validation, checkpoints, test and pictures.
    pub train_seconds: f64,
    /// Images trained on over `train_seconds`.
    pub train_images_per_second: f64,
    /// Test accuracy class by class.
    pub classes: Vec<ClassReport>,
}

impl Summary {
    /// Of the network of `model_epoch`, by what it makes of training, validation and test images.
    pub fn new(
        config: &RunConfig,
        device: &NamedDevice,
        history: &History,
        model_epoch: usize,
        [train, valid, test]: [&Evaluation; 3],
    ) -> Self {
        let rows = &history.rows;
        let seconds: f64 = rows.iter().map(|row| row.train_seconds).sum();
        let images = rows.len() * train.scores.count;
        let validated = valid.scores.count > 0;
        Self {
            device: device.name.clone(),
            adapter: device.adapter.clone(),
            model: config.model.describe(),
            data: config.data.clone(),
            epochs: rows.len(),
            model_epoch,
            seed: config.training.seed,
            train_images: train.scores.count,
            train_loss: train.scores.loss(),
            train_accuracy: train.scores.accuracy(),
            validation_images: valid.scores.count,
            validation_loss: validated.then(|| valid.scores.loss()),
            validation_accuracy: validated.then(|| valid.scores.accuracy()),
            test_images: test.scores.count,
            test_loss: test.scores.loss(),
            test_accuracy: test.scores.accuracy(),
            train_seconds: seconds,
            train_images_per_second: images as f64 / seconds,
            classes: by_class(test, &config.class_names),
        }
    }
}

/// Above the lines that [`row`] makes.
pub const HEAD: &str = "              images      loss   accuracy\n";

/// Results of `train` for people.
pub fn training(summary: &Summary, out: &Path) -> String {
    let valid = summary.validation_loss.zip(summary.validation_accuracy);
    let mut text = format!("{}\n{HEAD}", summary.model);
    for (name, images, scores) in [
        (
            "train",
            summary.train_images,
            Some((summary.train_loss, summary.train_accuracy)),
        ),
        ("validation", summary.validation_images, valid),
        (
            "test",
            summary.test_images,
            Some((summary.test_loss, summary.test_accuracy)),
        ),
    ] {
        text += &row(name, images, scores);
    }
    let Summary {
        device,
        adapter,
        train_seconds,
        train_images_per_second,
        ..
    } = summary;
    text + &format!(
        "\n{}\n{} on {device} ({adapter}): {train_seconds:.2} s of training, \
         {train_images_per_second:.0} images/s\n\nwritten to {}: {MODEL}, {SAFETENSORS}, {CONFIG}, \
         {SUMMARY}, {METRICS},\n  {CURVES}, {CONFUSION}\n",
        class_table(&summary.classes),
        plural(summary.epochs, "epoch"),
        out.display(),
    )
}

/// Results of `eval` for people.
pub fn eval(report: &EvalReport, config: &RunConfig) -> String {
    let test = row(
        "test",
        report.test_images,
        Some((report.test_loss, report.test_accuracy)),
    );
    format!(
        "{}\n{HEAD}{test}\n{}",
        config.model.describe(),
        class_table(&report.classes)
    )
}

/// A line of a table of images.
pub fn row(name: &str, images: usize, scores: Option<(f64, f64)>) -> String {
    let (loss, accuracy) = scores.map_or(("-".to_string(), "-".to_string()), |(loss, accuracy)| {
        (format!("{loss:.4}"), percent(accuracy))
    });
    format!("{name:<12}{images:>8}{loss:>10}{accuracy:>11}\n")
}

fn class_table(classes: &[ClassReport]) -> String {
    let width = classes
        .iter()
        .map(|class| class.name.chars().count())
        .max()
        .unwrap_or(0)
        .max(12);
    let mut text = String::from("test accuracy by class\n");
    for class in classes {
        let share = class.accuracy.unwrap_or(0.0);
        let filled = (20.0 * share).round() as usize;
        let bar = format!("{}{}", "#".repeat(filled), ".".repeat(20 - filled));
        let accuracy = class.accuracy.map_or("-".to_string(), percent);
        text += &format!(
            "{:<width$}{:>8}  {bar}{accuracy:>9}\n",
            class.name, class.images
        );
    }
    text
}

/// A share as percent.
pub fn percent(share: f64) -> String {
    format!("{:.2}%", 100.0 * share)
}

/// A number with its noun.
pub fn plural(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// A learning rate, which may be tiny, in few letters.
pub fn rate(rate: f64) -> String {
    if (1e-4..1e4).contains(&rate) {
        rate.to_string()
    } else {
        format!("{rate:e}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn class_tables_hold_the_numbers() {
        let class = |name: &str, accuracy| ClassReport {
            name: name.to_string(),
            images: 10,
            correct: 0,
            accuracy,
        };
        let text = class_table(&[
            class("Bag", Some(1.0)),
            class("Shirt", Some(0.7)),
            class("?", None),
        ]);
        assert!(
            text.contains("Bag               10  ####################  100.00%"),
            "{text}"
        );
        assert!(
            text.contains("Shirt             10  ##############......   70.00%"),
            "{text}"
        );
        assert!(text.contains("....................        -"), "{text}");
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(
            (plural(1, "seed"), plural(2, "seed")),
            ("1 seed".into(), "2 seeds".into())
        );
        assert_eq!(
            ["0.0001", "0.1", "1e-300", "10"],
            [1e-4, 0.1, 1e-300, 10.0]
                .map(rate)
                .each_ref()
                .map(String::as_str)
        );
    }
}
