//! The command `compare`: with and without batch normalization, over seeds and learning rates or batch
//! sizes, measured.

mod method;
mod table;

pub use method::Method;

use std::fmt::Display;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use burn::train::Interrupter;
use serde::Serialize;

use crate::cli::CompareArgs;
use crate::config::RunConfig;
use crate::data::{Dataset, EMBEDDED, Samples};
use crate::eval::evaluate;
use crate::folder::{Folder, is_of, save_json, write_atomically};
use crate::history::{EpochRow, History};
use crate::metrics::Scores;
use crate::model::NormKind;
use crate::recalibrate::recalibrated;
use crate::report::{percent, rate};
use crate::training::{Session, Trained, TrainingData, train};
use crate::{Interrupted, device, note, plots};
use table::{mean, median, spread};

/// What tells a `compare.json` of this program from those of others.
const PROGRAM: &str = "burn-batchnorm/examples/mnist compare";

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Setup {
    pub norm: Method,
    pub learning_rate: f64,
    pub batch_size: usize,
}

impl Setup {
    /// The learning rate as it is printed.
    pub fn rate(&self) -> String {
        rate(self.learning_rate)
    }
}

/// One training run.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    #[serde(flatten)]
    pub setup: Setup,
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

impl Run {
    fn new(
        norm: Method,
        config: &RunConfig,
        history: &History,
        train_images: usize,
        test: Scores,
        target: f64,
    ) -> Self {
        let (training, rows) = (&config.training, &history.rows);
        let shares = rows.iter().filter_map(|row| row.valid_accuracy);
        let mut until = shares.clone();
        let steps = train_images as f64 / training.batch_size as f64;
        let per_step = |row: &EpochRow| 1e6 * row.train_seconds / steps;
        Self {
            setup: Setup {
                norm,
                learning_rate: training.learning_rate,
                batch_size: training.batch_size,
            },
            seed: training.seed,
            validation_accuracy: shares.collect(),
            epochs_to_target: until.position(|share| share >= target).map(|at| at + 1),
            test_accuracy: test.accuracy(),
            test_loss: test.loss(),
            microseconds_per_step: median(rows.iter().map(per_step)),
        }
    }
}

/// The runs of one setup.
#[derive(Clone, Debug, Serialize)]
pub struct Group {
    #[serde(flatten)]
    pub setup: Setup,
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

/// `compare.json` or `batch-sizes.json`.
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
    /// Where batch sizes are compared: what else is to be known of the runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub settings: Option<String>,
    /// Results by learning rate, batch size and normalization.
    pub groups: Vec<Group>,
    pub runs: Vec<Run>,
    /// Where all this is written.
    #[serde(skip)]
    pub folder: PathBuf,
}

impl Comparison {
    /// Names of the picture, the table and the JSON file.
    fn files(by_batch_size: bool) -> [&'static str; 3] {
        match by_batch_size {
            true => ["batch-sizes.png", "batch-sizes.txt", "batch-sizes.json"],
            false => ["compare.png", "compare.txt", "compare.json"],
        }
    }

    /// Whether batch sizes are compared, and not learning rates.
    pub fn by_batch_size(&self) -> bool {
        self.settings.is_some()
    }
}

/// Trains everything. The kinds of normalization alternate innermost, so that a machine that gets
/// slower or faster meanwhile does so for all of them.
pub fn run(args: &CompareArgs, interrupter: &Interrupter) -> Result<Comparison> {
    let by_batch_size = !args.batch_sizes.is_empty();
    let methods: &[Method] = match (args.norms.is_empty(), by_batch_size) {
        (false, _) => &args.norms,
        (true, true) => &Method::AGAINST_SMALL_BATCHES,
        (true, false) => &[Method::Batch, Method::None],
    };
    distinct("--lrs", &args.lrs)?;
    distinct("--batch-sizes", &args.batch_sizes)?;
    distinct("--norms", methods)?;
    ensure!(
        args.network.validation != Some(0.0),
        "compare watches the validation accuracy: --validation must be above 0"
    );
    let folder = Folder::new(&args.out);
    let files = Comparison::files(by_batch_size);
    check_ours(&folder, files)?;
    let device = device::resolve(args.network.device.as_deref().unwrap_or("auto"))?;
    let data = Dataset::load(args.network.data.as_deref().unwrap_or(EMBEDDED))?;
    let base = RunConfig::new(&args.network, NormKind::None, &device, &data);
    let train_images = TrainingData::new(&base, &data.train)?.train.count();
    // Before the work, not after it.
    let _lock = folder.lock()?;

    let test = Samples::new(&data.test, base.model.input, base.scale);
    let jobs = jobs(args, &base, train_images, methods);
    let widths = methods.iter().map(|method| method.to_string().len());
    let width = widths.fold(5, usize::max);
    let mut runs: Vec<Run> = Vec::with_capacity(jobs.len());
    let mut before: Option<(RunConfig, Trained)> = None;
    for (method, config) in &jobs {
        let (images, on) = (TrainingData::new(config, &data.train)?, device.device());
        // Recalibration is of the network that plain batch norm has trained, if that is at hand.
        let trained = match before.take() {
            Some((same, trained)) if same == *config => trained,
            _ => {
                let session = Session {
                    interrupter: interrupter.clone(),
                    ..Session::default()
                };
                train(config, &images, &on, session)?
            }
        };
        ensure!(
            trained.history.is_complete(&config.training),
            Interrupted(
                "interrupted: a comparison is written when all its runs are done".to_string()
            )
        );
        let model = trained.model.clone();
        let model = match method {
            Method::Recalibrated => recalibrated(model, &images.train, &on, |_| ()),
            _ => model,
        };
        let scores = evaluate(&model, &test, &on)?;
        let run = Run::new(
            *method,
            config,
            &trained.history,
            train_images,
            scores,
            args.target,
        );
        note(&format!(
            "{:>3}/{}  norm {method:<width$}  {}  seed {:<4}  test {}",
            runs.len() + 1,
            jobs.len(),
            match by_batch_size {
                true => format!("batch size {:<4}", run.setup.batch_size),
                false => format!("lr {:<7}", run.setup.rate()),
            },
            run.seed,
            percent(run.test_accuracy)
        ));
        runs.push(run);
        before = Some((config.clone(), trained));
    }
    let comparison = Comparison {
        program: PROGRAM,
        device: device.name,
        data: data.name,
        train_images,
        epochs: base.training.epochs,
        target: args.target,
        seeds: args.seeds,
        settings: by_batch_size.then(method::settings),
        groups: groups(&runs),
        runs,
        folder: args.out.clone(),
    };
    let [picture, table, json] = files.map(|name| folder.file(name));
    save_json(&json, &comparison)?;
    write_atomically(&table, table::table(&comparison).as_bytes())?;
    plots::comparison(&picture, &comparison)?;
    Ok(comparison)
}

fn distinct<T: PartialEq + Display>(flag: &str, values: &[T]) -> Result<()> {
    for (at, value) in values.iter().enumerate() {
        ensure!(!values[..at].contains(value), "{flag} holds {value} twice");
    }
    Ok(())
}

/// Refuses to overwrite files that this command did not write.
fn check_ours(folder: &Folder, files: [&str; 3]) -> Result<()> {
    let there = files.iter().any(|name| folder.file(name).exists());
    ensure!(
        !there || is_of(PROGRAM, &folder.file(files[2])),
        "{} holds a {} of something else: choose another folder with --out",
        folder.path().display(),
        files.join(" or ")
    );
    Ok(())
}

/// What is trained, in its order.
fn jobs(
    args: &CompareArgs,
    base: &RunConfig,
    train_images: usize,
    methods: &[Method],
) -> Vec<(Method, RunConfig)> {
    let (rates, sizes) = (args.lrs.iter(), args.batch_sizes.iter());
    let by_size = sizes.map(|size| (method::learning_rate(*size), *size));
    let settings: Vec<(f64, usize)> = match args.batch_sizes.is_empty() {
        true => rates
            .map(|rate| (*rate, base.training.batch_size))
            .collect(),
        false => by_size.collect(),
    };
    let mut jobs = Vec::new();
    for (learning_rate, batch_size) in settings {
        let steps = (base.training.epochs * train_images) as f64 / batch_size as f64;
        for offset in 0..args.seeds {
            for method in methods.iter().filter(|method| method.suits(batch_size)) {
                let mut config = base.clone();
                config.model.norm = method.norm();
                config.model.statistics = method.statistics(steps);
                config.training.learning_rate = learning_rate;
                config.training.batch_size = batch_size;
                config.training.seed = base.training.seed.wrapping_add(offset as u64);
                jobs.push((*method, config));
            }
        }
    }
    jobs
}

/// The runs by setup, in the order of the runs.
fn groups(runs: &[Run]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for Run { setup, .. } in runs {
        if groups.iter().any(|group| group.setup == *setup) {
            continue;
        }
        let of = || runs.iter().filter(|run| run.setup == *setup);
        let accuracies: Vec<f64> = of().map(|run| run.test_accuracy).collect();
        let reached = of().filter_map(|run| Some(run.epochs_to_target? as f64));
        let reached: Vec<f64> = reached.collect();
        let epochs = of().map(|run| run.validation_accuracy.len()).min();
        let at = |epoch: usize| {
            let shares: Vec<f64> = of().map(|run| run.validation_accuracy[epoch]).collect();
            mean(&shares)
        };
        groups.push(Group {
            setup: *setup,
            reached: reached.len(),
            epochs_to_target: (!reached.is_empty()).then(|| mean(&reached)),
            test_accuracy: mean(&accuracies),
            test_accuracy_spread: spread(&accuracies),
            validation_accuracy: (0..epochs.unwrap_or(0)).map(at).collect(),
            microseconds_per_step: median(of().map(|run| run.microseconds_per_step)),
        });
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_others_are_left_alone() {
        let temporary = tempfile::tempdir().expect("temporary folder");
        let folder = Folder::new(temporary.path());
        for files in [true, false].map(Comparison::files) {
            check_ours(&folder, files).expect("nothing yet");
            let json = folder.file(files[2]);
            std::fs::write(&json, "{\"groups\": []}").expect("written");
            assert!(check_ours(&folder, files).is_err());
            let ours = format!("{{\"program\": \"{PROGRAM}\"}}");
            std::fs::write(&json, ours).expect("written");
            check_ours(&folder, files).expect("ours");
        }
    }
}
