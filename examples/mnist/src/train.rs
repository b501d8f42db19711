//! The command `train`: settings, data, training, test, files.

use std::fs::{self, File};

use anyhow::{Context, Result, bail, ensure};
use burn::train::Interrupter;

use crate::cli::TrainArgs;
use crate::config::RunConfig;
use crate::data::{self, CLASSES, Dataset, EMBEDDED};
use crate::device::{self, NamedDevice};
use crate::eval::evaluate;
use crate::folder::{self, CONFIG, CONFUSION, CURVES, Folder, HEALTH, METRICS, SUMMARY};
use crate::history::History;
use crate::model::{Classifier, NormKind};
use crate::report::Summary;
use crate::training::{Session, TrainingData, train};
use crate::{Interrupted, RUN, checkpoint, eval, plots};

/// A run and all that belongs to it. Nothing is written until it is complete.
pub(crate) struct Run {
    pub config: RunConfig,
    pub device: NamedDevice,
    pub data: Dataset,
    pub images: TrainingData,
    /// The epochs done.
    pub history: History,
    /// On the folder.
    pub _lock: File,
}

/// Trains, or goes on. Returns what it wrote to `summary.json`.
pub fn run(args: &TrainArgs, interrupter: &Interrupter) -> Result<Summary> {
    let folder = Folder::new(&args.out);
    folder.check_ours()?;
    let mut run = match args.resume {
        true => resumed(args, &folder)?,
        false => fresh(args, &folder)?,
    };
    folder::save_json(&folder.state(CONFIG), &run.config)?;

    let (training, device) = (&run.config.training, run.device.device());
    let mut last = None;
    // Else it was killed between its last checkpoint and its results.
    if !run.history.is_complete(training) {
        let session = Session {
            folder: Some(folder.clone()),
            resume: run.history,
            progress: args.progress,
            interrupter: interrupter.clone(),
        };
        let trained = train(&run.config, &run.images, &device, session)?;
        trained.history.save(&folder.state(METRICS))?;
        ensure!(
            trained.history.is_complete(training),
            interrupted(&folder, trained.history.rows.len())
        );
        (run.history, last) = (trained.history, Some(trained.model));
    }
    // With early stopping the model of the best epoch is taken.
    let done = run.history.rows.len();
    let best = training.early_stopping.and(run.history.best_epoch());
    let epoch = best.unwrap_or(done);
    let model = match last.filter(|_| epoch == done) {
        Some(model) => model,
        None => folder::load_record(
            &checkpoint::model_path(&folder, epoch),
            &run.config,
            &device,
        )?,
    };
    write(&run, &model, epoch, &folder)
}

/// The settings of the flags, in a folder that is taken and cleared.
fn fresh(args: &TrainArgs, folder: &Folder) -> Result<Run> {
    let device = device::resolve(args.network.device.as_deref().unwrap_or("auto"))?;
    let data = Dataset::load(args.network.data.as_deref().unwrap_or(EMBEDDED))?;
    let norm = args.norm.unwrap_or(NormKind::Batch);
    let mut config = RunConfig::new(&args.network, norm, &device, &data);
    config.training.early_stopping = args.early_stopping;
    config.training.learning_rate = args.lr.unwrap_or(config.training.learning_rate);
    if let Some(classes) = &args.classes {
        let count = classes.len();
        ensure!(
            count == CLASSES,
            "--classes takes {CLASSES} names, {count} were given"
        );
        config.class_names.clone_from(classes);
    }
    config.check()?;
    let images = TrainingData::new(&config, &data.train)?;
    let lock = folder.lock()?;
    // Again: somebody may have been faster.
    folder.check_ours()?;
    folder.clear_state()?;
    let state = folder.state("");
    fs::create_dir_all(&state)
        .with_context(|| format!("cannot create the folder {}", state.display()))?;
    Ok(Run {
        config,
        device,
        data,
        images,
        history: History::default(),
        _lock: lock,
    })
}

/// The saved settings, with more epochs or another device if asked for; all else must agree.
fn resumed(args: &TrainArgs, folder: &Folder) -> Result<Run> {
    let shown = folder.path().display();
    let nothing = || format!("nothing to resume in {shown}. Start it without --resume");
    let path = folder.state(CONFIG);
    ensure!(path.is_file(), nothing());
    let lock = folder.lock()?;
    folder.clear_unfinished()?;
    let mut config = folder::load_config(&path)?;
    check_agreement(args, &config)?;
    let training = &mut config.training;
    training.epochs = args.network.epochs.unwrap_or(training.epochs);
    training.early_stopping = args.early_stopping.or(training.early_stopping);
    config.check()?;
    let device = device::resolve(args.network.device.as_deref().unwrap_or(&config.device))?;
    config.device = device.name.clone();

    let metrics = folder.state(METRICS);
    ensure!(metrics.is_file(), nothing());
    let mut history = History::load(&metrics)?;
    // The results are those of this run if their epochs are, times and all.
    let results = History::load(&folder.file(METRICS));
    let finished = folder.file(SUMMARY).is_file() && results.is_ok_and(|of| of == history);
    // The file may be an epoch ahead of the checkpoints if the program was killed in between.
    let rows = history.rows.len();
    let done = checkpoint::last_good(folder, rows, &config, &device.device());
    let done = done.with_context(nothing)?;
    history.rows.truncate(done);
    if finished && history.is_complete(&config.training) {
        let more = match done < config.training.epochs {
            true => "stopped early after",
            false => "has finished",
        };
        bail!(
            "the run in {shown} {more} {done} epochs: ask for more than that with --epochs \
             (or --early-stopping)"
        );
    }
    let data = Dataset::load(&config.data)?;
    Ok(Run {
        images: TrainingData::new(&config, &data.train)?,
        config,
        device,
        data,
        history,
        _lock: lock,
    })
}

/// A flag that is given and differs from the saved run is refused, not ignored.
fn check_agreement(args: &TrainArgs, saved: &RunConfig) -> Result<()> {
    fn same<T: PartialEq + std::fmt::Display>(
        field: &str,
        saved: T,
        asked: Option<T>,
    ) -> Result<()> {
        match asked {
            Some(asked) if asked != saved => bail!(
                "--resume continues a run with {field} {saved}, but {asked} was asked for: leave \
                 the flag out, or start a new run in another folder with --out"
            ),
            _ => Ok(()),
        }
    }
    let (model, training, network) = (&saved.model, &saved.training, &args.network);
    let before = network.bn_before_activation.then_some(true);
    let data = network.data.as_deref().map(data::name).transpose()?;
    let classes = args.classes.as_ref().map(|names| names.join(","));
    same("--input", model.input, network.input)?;
    same("--hidden", model.hidden, network.hidden)?;
    same("--norm", model.norm, args.norm)?;
    same("--bn-before-activation", model.bn_before_activation, before)?;
    same("--batch-size", training.batch_size, network.batch_size)?;
    same("--lr", training.learning_rate, args.lr)?;
    same("--seed", training.seed, network.seed)?;
    same("--validation", training.validation, network.validation)?;
    same("--classes", saved.class_names.join(","), classes)?;
    same("--data", saved.data.clone(), data)
}

fn interrupted(folder: &Folder, done: usize) -> Interrupted {
    let shown = folder.path().display();
    let mut text = match done {
        0 => "interrupted before the first epoch was complete: nothing to resume".to_string(),
        done => format!(
            "interrupted; the checkpoint after epoch {done} is in {shown}. Continue with \
             `{RUN} train --resume --out {shown}`"
        ),
    };
    if folder.file(SUMMARY).is_file() {
        text += &format!(". The results of the run before it are still in {shown}");
    }
    Interrupted(text)
}

/// Tests the network of epoch `model_epoch` and writes all files of a finished run.
pub(crate) fn write(
    run: &Run,
    model: &Classifier,
    model_epoch: usize,
    folder: &Folder,
) -> Result<Summary> {
    let (config, device) = (&run.config, run.device.device());
    let test = eval::test(model, config, &run.data.test, &device)?;
    let train = evaluate(model, &run.images.train, &device)?;
    let valid = evaluate(model, &run.images.valid, &device)?;
    let summary = Summary::new(run, model_epoch, [&train, &valid, &test], folder);
    // First and last: what is between them belongs together where this file is.
    folder::remove(&folder.file(SUMMARY))?;
    // Of the network that was there before.
    folder::remove(&folder.file(HEALTH))?;
    folder.save_model(model)?;
    folder::save_json(&folder.file(CONFIG), config)?;
    run.history.save(&folder.file(METRICS))?;
    let scores = (test.loss(), test.accuracy());
    plots::learning_curves(&folder.file(CURVES), &run.history, scores)?;
    plots::confusion_matrix(&folder.file(CONFUSION), &test, &config.class_names)?;
    folder::save_json(&folder.file(SUMMARY), &summary)?;
    Ok(summary)
}
