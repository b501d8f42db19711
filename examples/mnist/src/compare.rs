//! The command `compare`: with and without batch normalization, over seeds and learning rates, measured.

use std::path::Path;

use anyhow::{Result, ensure};
use burn::train::Interrupter;
use serde::Serialize;

use crate::cli::CompareArgs;
use crate::config::RunConfig;
use crate::data::{Samples, Source};
use crate::eval::evaluate;
use crate::folder::{Folder, save_json, write_atomically};
use crate::history::EpochRow;
use crate::model::NormKind;
use crate::report::{percent, plural, rate};
use crate::training::{Session, TrainingData, train};
use crate::{Interrupted, device, note, plots};

const JSON: &str = "compare.json";
const TABLE: &str = "compare.txt";
const PICTURE: &str = "compare.png";
/// What tells a `compare.json` of this program from those of others.
const PROGRAM: &str = "burn-batchnorm/examples/mnist compare";

/// One training run.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    pub norm: NormKind,
    pub learning_rate: f64,
    pub seed: u64,
    /// After each epoch.
    pub validation_accuracy: Vec<f64>,
    /// The first epoch with the target accuracy, if there is one.
    pub epochs_to_target: Option<usize>,
    pub test_accuracy: f64,
    /// `null` if it is not a number.
    pub test_loss: f64,
    /// Median over the epochs.
    pub microseconds_per_step: f64,
}

/// The runs of one normalization at one learning rate.
#[derive(Clone, Debug, Serialize)]
pub struct Group {
    pub norm: NormKind,
    pub learning_rate: f64,
    /// Runs that reached the target.
    pub reached: usize,
    /// Mean of the first epoch with the target accuracy over the runs that reached it.
    pub epochs_to_target: Option<f64>,
    /// Mean over the seeds.
    pub test_accuracy: f64,
    /// Standard deviation of the test accuracy over the seeds (n - 1); none for one seed.
    pub test_accuracy_spread: Option<f64>,
    /// Mean by epoch.
    pub validation_accuracy: Vec<f64>,
    /// Median over the seeds.
    pub microseconds_per_step: f64,
}

/// `compare.json`.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    pub program: &'static str,
    pub device: String,
    pub data: String,
    /// Images trained on in each epoch.
    pub train_images: usize,
    pub epochs: usize,
    /// The validation accuracy of `epochs_to_target`.
    pub target: f64,
    pub seeds: usize,
    /// Results by learning rate and normalization.
    pub groups: Vec<Group>,
    pub runs: Vec<Run>,
}

/// Trains everything. The kinds of normalization alternate innermost, so that a machine that gets
/// slower or faster meanwhile does so for all of them.
pub fn run(args: &CompareArgs, interrupter: &Interrupter) -> Result<Comparison> {
    let distinct = |at: usize, rate: &f64| !args.lrs[..at].contains(rate);
    ensure!(
        args.lrs
            .iter()
            .enumerate()
            .all(|(at, rate)| distinct(at, rate)),
        "--lrs holds a learning rate twice"
    );
    let distinct = |at: usize, norm: &NormKind| !args.norms[..at].contains(norm);
    ensure!(
        args.norms
            .iter()
            .enumerate()
            .all(|(at, norm)| distinct(at, norm)),
        "--norms holds a kind twice"
    );
    ensure!(
        args.network.validation != Some(0.0),
        "compare watches the validation accuracy: --validation must be above 0"
    );
    let folder = Folder::new(&args.out);
    check_ours(&folder)?;
    let device = device::resolve(args.network.device.as_deref().unwrap_or("auto"))?;
    let source = Source::from(args.network.data.as_deref().unwrap_or("embedded"));
    let (name, data) = (source.name()?, source.load()?);
    let base = RunConfig::new(&args.network, NormKind::None, &name, &device, &data);
    TrainingData::new(&base, &data.train)?;
    // Before the work, not after it.
    let _lock = folder.lock()?;

    let test = Samples::new(&data.test, base.model.input, base.scale);
    let total = args.lrs.len() * args.seeds * args.norms.len();
    let mut runs: Vec<Run> = Vec::with_capacity(total);
    let mut train_images = 0;
    for learning_rate in &args.lrs {
        for seed in (0..args.seeds).map(|offset| base.training.seed.wrapping_add(offset as u64)) {
            for norm in &args.norms {
                let mut config = base.clone();
                config.model.norm = *norm;
                config.training.learning_rate = *learning_rate;
                config.training.seed = seed;
                let images = TrainingData::new(&config, &data.train)?;
                train_images = images.train_len();
                let run = one(
                    args.target,
                    &config,
                    &images,
                    &test,
                    &device.device(),
                    interrupter,
                )?;
                note(&format!(
                    "{:>3}/{total}  norm {norm:<5}  lr {:<7}  seed {seed:<4}  test {}",
                    runs.len() + 1,
                    rate(*learning_rate),
                    percent(run.test_accuracy)
                ));
                runs.push(run);
            }
        }
    }
    let comparison = Comparison {
        program: PROGRAM,
        device: device.name,
        data: name,
        train_images,
        epochs: base.training.epochs,
        target: args.target,
        seeds: args.seeds,
        groups: groups(args, &runs),
        runs,
    };
    save_json(&folder.file(JSON), &comparison)?;
    write_atomically(&folder.file(TABLE), table(&comparison).as_bytes())?;
    plots::comparison(&folder.file(PICTURE), &comparison)?;
    Ok(comparison)
}

/// Refuses to overwrite files that this command did not write.
fn check_ours(folder: &Folder) -> Result<()> {
    let there = [JSON, TABLE, PICTURE]
        .iter()
        .any(|name| folder.file(name).exists());
    let text = std::fs::read_to_string(folder.file(JSON)).unwrap_or_default();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    ensure!(
        !there || value["program"] == PROGRAM,
        "{} holds a {JSON}, {TABLE} or {PICTURE} of something else: choose another folder with --out",
        folder.path().display()
    );
    Ok(())
}

fn one(
    target: f64,
    config: &RunConfig,
    images: &TrainingData,
    test: &Samples,
    device: &burn::tensor::Device,
    interrupter: &Interrupter,
) -> Result<Run> {
    let session = Session {
        interrupter: interrupter.clone(),
        ..Session::silent()
    };
    let trained = train(config, images, device, session)?;
    if trained.interrupted {
        let text = "interrupted: a comparison is written when all its runs are done";
        return Err(Interrupted(text.to_string()).into());
    }
    let test = evaluate(&trained.model, test, &test.all(), device)?;
    let rows = &trained.history.rows;
    let validation_accuracy: Vec<f64> = rows.iter().filter_map(|row| row.valid_accuracy).collect();
    let steps = images.train_len() as f64 / config.training.batch_size as f64;
    let per_step = |row: &EpochRow| 1e6 * row.train_seconds / steps;
    Ok(Run {
        norm: config.model.norm,
        learning_rate: config.training.learning_rate,
        seed: config.training.seed,
        epochs_to_target: validation_accuracy
            .iter()
            .position(|share| *share >= target)
            .map(|at| at + 1),
        validation_accuracy,
        test_accuracy: test.scores.accuracy(),
        test_loss: test.scores.loss(),
        microseconds_per_step: median(rows.iter().map(per_step)),
    })
}

fn groups(args: &CompareArgs, runs: &[Run]) -> Vec<Group> {
    let group = |learning_rate: f64, norm: NormKind| {
        let of = || {
            runs.iter()
                .filter(move |run| run.norm == norm && run.learning_rate == learning_rate)
        };
        let accuracies: Vec<f64> = of().map(|run| run.test_accuracy).collect();
        let reached: Vec<f64> = of()
            .filter_map(|run| Some(run.epochs_to_target? as f64))
            .collect();
        let epochs = of().next().map_or(0, |run| run.validation_accuracy.len());
        let at = |epoch: usize| {
            of().map(|run| run.validation_accuracy[epoch])
                .collect::<Vec<_>>()
        };
        Group {
            norm,
            learning_rate,
            reached: reached.len(),
            epochs_to_target: (!reached.is_empty()).then(|| mean(&reached)),
            test_accuracy: mean(&accuracies),
            test_accuracy_spread: spread(&accuracies),
            validation_accuracy: (0..epochs).map(|epoch| mean(&at(epoch))).collect(),
            microseconds_per_step: median(of().map(|run| run.microseconds_per_step)),
        }
    };
    let rates = args.lrs.iter();
    rates
        .flat_map(|rate| args.norms.iter().map(move |norm| group(*rate, *norm)))
        .collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn spread(values: &[f64]) -> Option<f64> {
    let centre = mean(values);
    let squares: f64 = values.iter().map(|value| (value - centre).powi(2)).sum();
    (values.len() > 1).then(|| (squares / (values.len() - 1) as f64).sqrt())
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn table(comparison: &Comparison) -> String {
    let Comparison {
        train_images,
        device,
        ..
    } = comparison;
    let mut text = format!(
        "{}, {} of {train_images} images on {device}; epochs until {} of the validation images are right\n\n\
         learning rate  norm   epochs to target   test accuracy       time per step\n",
        plural(comparison.seeds, "seed"),
        plural(comparison.epochs, "epoch"),
        percent(comparison.target)
    );
    let mut previous = f64::NAN;
    for group in &comparison.groups {
        let same = std::mem::replace(&mut previous, group.learning_rate) == group.learning_rate;
        let shown = if same {
            String::new()
        } else {
            rate(group.learning_rate)
        };
        let reached = match group.epochs_to_target {
            Some(epochs) if group.reached == comparison.seeds => format!("{epochs:.1}"),
            Some(epochs) => format!("{epochs:.1} ({} of {})", group.reached, comparison.seeds),
            None => "never".to_string(),
        };
        let spread = group
            .test_accuracy_spread
            .map(|spread| format!(" ± {:.2}", 100.0 * spread));
        let accuracy = format!(
            "{:.2}%{}",
            100.0 * group.test_accuracy,
            spread.unwrap_or_default()
        );
        text += &format!(
            "{shown:<13}  {:<5}  {reached:<17}  {accuracy:<18}  {:.0} us\n",
            group.norm.to_string(),
            group.microseconds_per_step
        );
    }
    text
}

/// The comparison for people.
pub fn text(comparison: &Comparison, out: &Path) -> String {
    format!(
        "{}\nwritten to {}: {PICTURE}, {TABLE}, {JSON}\n",
        table(comparison),
        out.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_by_hand() {
        assert_eq!(mean(&[1.0, 2.0, 6.0]), 3.0);
        assert_eq!(median([5.0, 1.0, 3.0].into_iter()), 3.0);
        assert_eq!(spread(&[1.0, 2.0, 3.0]), Some(1.0));
        assert_eq!(spread(&[1.0]), None);
    }

    #[test]
    fn files_of_others_are_left_alone() {
        let temporary = tempfile::tempdir().expect("temporary folder");
        let folder = Folder::new(temporary.path());
        check_ours(&folder).expect("empty");
        std::fs::write(folder.file(JSON), "{\"groups\": []}").expect("written");
        assert!(check_ours(&folder).is_err());
        std::fs::write(folder.file(JSON), format!("{{\"program\": \"{PROGRAM}\"}}"))
            .expect("written");
        check_ours(&folder).expect("ours");
    }
}
