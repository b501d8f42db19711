//! With and without batch normalization, over several seeds and learning rates, measured.

use burn::train::Interrupter;
use serde::Serialize;

use crate::artifacts::Artifacts;
use crate::config::RunConfig;
use crate::data::{Dataset, Samples};
use crate::device::NamedDevice;
use crate::error::{Error, Result};
use crate::evaluation::evaluate_all;
use crate::model::NormKind;
use crate::plots;
use crate::report::{line, percent};
use crate::training::{Session, TrainingData, train};

/// Names of the files that `compare` writes.
pub const JSON: &str = "compare.json";
/// The table.
pub const TABLE: &str = "compare.txt";
/// The picture.
pub const PICTURE: &str = "compare.png";

/// What is compared.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Everything that is the same in all runs.
    pub base: RunConfig,
    /// The kinds of normalization.
    pub norms: Vec<NormKind>,
    /// Learning rates.
    pub learning_rates: Vec<f64>,
    /// Number of seeds, from the base seed upwards.
    pub seeds: u64,
    /// The validation accuracy whose first epoch is noted.
    pub target: f64,
}

impl Plan {
    /// Refuses what could only fail or mislead later.
    pub fn check(&self) -> Result<()> {
        let refuse = |reason: &str| Err(Error::Setting(reason.to_string()));
        if self.base.training.validation == 0.0 {
            return refuse("compare watches the validation accuracy: --validation must be above 0");
        }
        let twice = |at: usize, rate: &f64| self.learning_rates[..at].contains(rate);
        if self
            .learning_rates
            .iter()
            .enumerate()
            .any(|(at, rate)| twice(at, rate))
        {
            return refuse("--lrs holds a learning rate twice");
        }
        let twice = |at: usize, norm: &NormKind| self.norms[..at].contains(norm);
        if self
            .norms
            .iter()
            .enumerate()
            .any(|(at, norm)| twice(at, norm))
        {
            return refuse("--norms holds a kind twice");
        }
        Ok(())
    }
}

/// One training.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// Its normalization.
    pub norm: NormKind,
    /// Its learning rate.
    pub learning_rate: f64,
    /// Its seed.
    pub seed: u64,
    /// First epoch with the target accuracy on the validation images, if any.
    pub epochs_to_target: Option<usize>,
    /// Validation accuracy after each epoch.
    pub validation_accuracy: Vec<f64>,
    /// Test accuracy after the last epoch.
    pub test_accuracy: f64,
    /// Test loss after the last epoch.
    pub test_loss: f64,
    /// Time of a training step, the median epoch's mean.
    pub microseconds_per_step: f64,
}

/// All runs of one normalization and learning rate.
#[derive(Clone, Debug, Serialize)]
pub struct Group {
    /// Normalization.
    pub norm: NormKind,
    /// Learning rate.
    pub learning_rate: f64,
    /// Runs that reached the target.
    pub reached: usize,
    /// Mean of the first epoch with the target accuracy over the runs that reached it.
    pub epochs_to_target: Option<f64>,
    /// Mean test accuracy.
    pub test_accuracy: f64,
    /// Standard deviation of the test accuracy over the seeds (n - 1); none for one seed.
    pub test_accuracy_spread: Option<f64>,
    /// Mean validation accuracy by epoch.
    pub validation_accuracy: Vec<f64>,
    /// Median time of a training step.
    pub microseconds_per_step: f64,
}

/// `compare.json`.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// The device.
    pub device: String,
    /// Where the images come from.
    pub data: String,
    /// Images trained on in each epoch.
    pub train_images: usize,
    /// Epochs of each run.
    pub epochs: usize,
    /// The accuracy of `epochs_to_target`.
    pub target: f64,
    /// Seeds of each group.
    pub seeds: u64,
    /// Results by learning rate and normalization.
    pub groups: Vec<Group>,
    /// The single runs.
    pub runs: Vec<Run>,
}

/// Trains everything. The kinds of normalization alternate innermost, so that a machine that gets
/// slower or faster meanwhile does so for all of them.
pub fn compare(
    plan: &Plan,
    data: &Dataset,
    device: &NamedDevice,
    interrupter: &Interrupter,
    note: impl Fn(&str),
) -> Result<Comparison> {
    let test = Samples::new(&data.test, plan.base.model.input);
    let total = plan.learning_rates.len() * plan.seeds as usize * plan.norms.len();
    let mut runs: Vec<Run> = Vec::with_capacity(total);
    let mut train_images = 0;
    for learning_rate in &plan.learning_rates {
        for seed in (0..plan.seeds).map(|offset| plan.base.training.seed.wrapping_add(offset)) {
            for norm in &plan.norms {
                let mut config = plan.base.clone();
                config.model.norm = *norm;
                config.training.learning_rate = *learning_rate;
                config.training.seed = seed;
                let images = TrainingData::new(&config, &data.train)?;
                train_images = images.train_len();
                let run = one(plan, &config, &images, &test, device, interrupter)?;
                runs.push(run);
                if let Some(run) = runs.last() {
                    note(&format!(
                        "{:>3}/{total}  norm {:<5}  lr {:<7}  seed {:<4}  test {}",
                        runs.len(),
                        norm.to_string(),
                        learning_rate,
                        seed,
                        percent(run.test_accuracy)
                    ));
                }
            }
        }
    }
    Ok(Comparison {
        device: device.name.clone(),
        data: plan.base.data.clone(),
        train_images,
        epochs: plan.base.training.epochs,
        target: plan.target,
        seeds: plan.seeds,
        groups: groups(plan, &runs),
        runs,
    })
}

fn one(
    plan: &Plan,
    config: &RunConfig,
    images: &TrainingData,
    test: &Samples,
    device: &NamedDevice,
    interrupter: &Interrupter,
) -> Result<Run> {
    let session = Session {
        interrupter: interrupter.clone(),
        ..Session::silent()
    };
    let trained = train(config, images, &device.device(), session)?;
    if trained.interrupted {
        return Err(Error::Interrupted {
            message: "interrupted: a comparison is written when all its runs are done".to_string(),
        });
    }
    let evaluation = evaluate_all(&trained.model, test, &device.device())?;
    let validation_accuracy: Vec<f64> = trained
        .history
        .rows
        .iter()
        .filter_map(|row| row.valid_accuracy)
        .collect();
    let steps = images.train_len() as f64 / config.training.batch_size as f64;
    let mut times: Vec<f64> = trained
        .times
        .iter()
        .map(|time| time.time.as_secs_f64())
        .collect();
    Ok(Run {
        norm: config.model.norm,
        learning_rate: config.training.learning_rate,
        seed: config.training.seed,
        epochs_to_target: validation_accuracy
            .iter()
            .position(|share| *share >= plan.target)
            .map(|at| at + 1),
        validation_accuracy,
        test_accuracy: evaluation.scores.accuracy(),
        test_loss: evaluation.scores.loss(),
        microseconds_per_step: 1e6 * median(&mut times) / steps,
    })
}

fn groups(plan: &Plan, runs: &[Run]) -> Vec<Group> {
    let mut groups = Vec::new();
    for learning_rate in &plan.learning_rates {
        for norm in &plan.norms {
            let of: Vec<&Run> = runs
                .iter()
                .filter(|run| run.norm == *norm && run.learning_rate == *learning_rate)
                .collect();
            let accuracies: Vec<f64> = of.iter().map(|run| run.test_accuracy).collect();
            let reached: Vec<f64> = of
                .iter()
                .filter_map(|run| Some(run.epochs_to_target? as f64))
                .collect();
            let epochs = of.first().map_or(0, |run| run.validation_accuracy.len());
            let mut times: Vec<f64> = of.iter().map(|run| run.microseconds_per_step).collect();
            groups.push(Group {
                norm: *norm,
                learning_rate: *learning_rate,
                reached: reached.len(),
                epochs_to_target: (!reached.is_empty()).then(|| mean(&reached)),
                test_accuracy: mean(&accuracies),
                test_accuracy_spread: spread(&accuracies),
                validation_accuracy: (0..epochs)
                    .map(|epoch| {
                        mean(
                            &of.iter()
                                .map(|run| run.validation_accuracy[epoch])
                                .collect::<Vec<_>>(),
                        )
                    })
                    .collect(),
                microseconds_per_step: median(&mut times),
            });
        }
    }
    groups
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn spread(values: &[f64]) -> Option<f64> {
    let centre = mean(values);
    let squares: f64 = values.iter().map(|value| (value - centre).powi(2)).sum();
    (values.len() > 1).then(|| (squares / (values.len() - 1) as f64).sqrt())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

impl Comparison {
    /// The results for people.
    pub fn table(&self) -> String {
        let mut text = String::new();
        line(
            &mut text,
            format_args!(
                "{} seeds, {} epochs of {} images on {}; epochs until {} of the validation images are right",
                self.seeds,
                self.epochs,
                self.train_images,
                self.device,
                percent(self.target)
            ),
        );
        text.push('\n');
        line(
            &mut text,
            format_args!(
                "learning rate  norm   epochs to target   test accuracy       time per step"
            ),
        );
        let mut previous = f64::NAN;
        for group in &self.groups {
            let rate = if group.learning_rate == previous {
                String::new()
            } else {
                group.learning_rate.to_string()
            };
            previous = group.learning_rate;
            let reached = match group.epochs_to_target {
                Some(epochs) if group.reached as u64 == self.seeds => format!("{epochs:.1}"),
                Some(epochs) => format!("{epochs:.1} ({} of {})", group.reached, self.seeds),
                None => "never".to_string(),
            };
            let spread = group
                .test_accuracy_spread
                .map_or_else(String::new, |spread| format!(" ± {:.2}", 100.0 * spread));
            line(
                &mut text,
                format_args!(
                    "{rate:<13}  {:<5}  {reached:<17}  {:<18}  {:.0} us",
                    group.norm.to_string(),
                    format!("{:.2}%{spread}", 100.0 * group.test_accuracy),
                    group.microseconds_per_step
                ),
            );
        }
        text
    }

    /// Writes table, picture and JSON.
    pub fn save(&self, artifacts: &Artifacts) -> Result<()> {
        let folder = artifacts.folder();
        std::fs::create_dir_all(folder).map_err(Error::io("create the folder", folder))?;
        artifacts.save_json(JSON, self)?;
        crate::artifacts::write_atomically(&artifacts.path(TABLE), self.table().as_bytes())?;
        plots::comparison(&artifacts.path(PICTURE), self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_by_hand() {
        assert_eq!(mean(&[1.0, 2.0, 6.0]), 3.0);
        assert_eq!(median(&mut [5.0, 1.0, 3.0]), 3.0);
        assert_eq!(spread(&[1.0, 2.0, 3.0]), Some(1.0));
        assert_eq!(spread(&[1.0]), None);
    }
}
