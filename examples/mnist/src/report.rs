//! Results as text tables and as `summary.json`.

use std::fmt::{Display, Formatter};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::eval::{ClassReport, by_class};
use crate::folder::{CONFIG, CONFUSION, CURVES, Folder, METRICS, MODEL, SAFETENSORS, SUMMARY};
use crate::metrics::Scores;
use crate::train::Run;

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
    /// Where all this is written.
    #[serde(skip)]
    pub folder: PathBuf,
}

impl Summary {
    /// Of the network of `model_epoch`, by what it makes of training, validation and test images.
    pub(crate) fn new(
        run: &Run,
        model_epoch: usize,
        [train, valid, test]: [&Scores; 3],
        folder: &Folder,
    ) -> Self {
        let (config, rows) = (&run.config, &run.history.rows);
        let seconds: f64 = rows.iter().map(|row| row.train_seconds).sum();
        let validated = valid.count() > 0;
        Self {
            device: run.device.name.clone(),
            adapter: run.device.adapter.clone(),
            model: config.model.describe(),
            data: config.data.clone(),
            epochs: rows.len(),
            model_epoch,
            seed: config.training.seed,
            train_images: train.count(),
            train_loss: train.loss(),
            train_accuracy: train.accuracy(),
            validation_images: valid.count(),
            validation_loss: validated.then(|| valid.loss()),
            validation_accuracy: validated.then(|| valid.accuracy()),
            test_images: test.count(),
            test_loss: test.loss(),
            test_accuracy: test.accuracy(),
            train_seconds: seconds,
            train_images_per_second: (rows.len() * train.count()) as f64 / seconds,
            classes: by_class(test, &config.class_names),
            folder: folder.path().to_path_buf(),
        }
    }
}

impl Display for Summary {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let train = Some((self.train_loss, self.train_accuracy));
        let valid = self.validation_loss.zip(self.validation_accuracy);
        let test = Some((self.test_loss, self.test_accuracy));
        writeln!(
            f,
            "{}\n{HEAD}{}{}{}\n{}",
            self.model,
            row("train", self.train_images, train),
            row("validation", self.validation_images, valid),
            row("test", self.test_images, test),
            class_table(&self.classes)
        )?;
        writeln!(
            f,
            "{} on {} ({}): {:.2} s of training, {:.0} images/s\n\n\
             written to {}: {MODEL}, {SAFETENSORS}, {CONFIG}, {SUMMARY}, {METRICS},\n  {CURVES}, {CONFUSION}",
            plural(self.epochs, "epoch"),
            self.device,
            self.adapter,
            self.train_seconds,
            self.train_images_per_second,
            self.folder.display(),
        )
    }
}

/// Above the lines that [`row`] makes.
pub const HEAD: &str = "              images      loss   accuracy\n";

/// A line of a table of images.
pub fn row(name: &str, images: usize, scores: Option<(f64, f64)>) -> String {
    let (loss, accuracy) = scores.map_or(("-".to_string(), "-".to_string()), |(loss, accuracy)| {
        (format!("{loss:.4}"), percent(accuracy))
    });
    format!("{name:<12}{images:>8}{loss:>10}{accuracy:>11}\n")
}

/// Test accuracy class by class, with bars.
pub fn class_table(classes: &[ClassReport]) -> String {
    let widths = classes.iter().map(|class| class.name.chars().count());
    let width = widths.fold(12, usize::max);
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
    let ending = match count {
        1 => "",
        _ => "s",
    };
    format!("{count} {noun}{ending}")
}

/// A learning rate, which may be tiny, in few letters.
pub fn rate(rate: f64) -> String {
    match (1e-4..1e4).contains(&rate) {
        true => rate.to_string(),
        false => format!("{rate:e}"),
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
