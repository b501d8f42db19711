//! The command `train`: settings, data, training, test, files.

use anyhow::{Context, Result, bail, ensure};
use burn::train::Interrupter;

use crate::cli::TrainArgs;
use crate::config::RunConfig;
use crate::data::{CLASSES, Dataset, Source};
use crate::device::{self, NamedDevice};
use crate::folder::{self, CONFIG, CONFUSION, CURVES, Folder, HEALTH, METRICS, SUMMARY};
use crate::history::History;
use crate::model::{Classifier, NormKind};
use crate::report::Summary;
use crate::training::{Session, Trained, TrainingData, out_of_patience, train};
use crate::{Interrupted, RUN, checkpoint, eval, plots};

/// All that is known before training starts. Nothing is written until it is complete.
pub(crate) struct Prepared {
    pub config: RunConfig,
    pub device: NamedDevice,
    pub data: Dataset,
    pub images: TrainingData,
    pub history: History,
}

/// Trains, or goes on. Returns what it wrote to `summary.json`.
pub fn run(args: &TrainArgs, interrupter: &Interrupter) -> Result<Summary> {
    args.progress.check(args.json)?;
    let folder = Folder::new(&args.out);
    folder.check_ours()?;
    let (run, _lock) = if args.resume {
        resumed(args, &folder)?
    } else {
        let run = fresh(args)?;
        let lock = folder.lock()?;
        // Again: somebody may have been faster.
        folder.check_ours()?;
        folder.clear_state()?;
        std::fs::create_dir_all(folder.state(""))
            .with_context(|| format!("cannot create the folder {}", folder.state("").display()))?;
        (run, lock)
    };
    folder::save_json(&folder.state(CONFIG), &run.config)?;

    let trained = if is_complete(&run.config, &run.history) {
        // Killed between its last checkpoint and its results.
        let path = checkpoint::model_path(&folder, run.history.rows.len());
        let model = folder::load_record(&path, &run.config, &run.device.device())?;
        Trained {
            model,
            history: run.history.clone(),
            interrupted: false,
        }
    } else {
        let session = Session {
            folder: Some(folder.clone()),
            resume: run.history.clone(),
            progress: args.progress,
            interrupter: interrupter.clone(),
        };
        train(&run.config, &run.images, &run.device.device(), session)?
    };
    trained.history.save(&folder.state(METRICS))?;
    if trained.interrupted {
        return Err(interrupted(&folder, trained.history.rows.len()).into());
    }
    finish(&run, trained, &folder)
}

fn fresh(args: &TrainArgs) -> Result<Prepared> {
    let device = device::resolve(args.network.device.as_deref().unwrap_or("auto"))?;
    let source = Source::from(args.network.data.as_deref().unwrap_or("embedded"));
    let (name, data) = (source.name()?, source.load()?);
    let norm = args.norm.unwrap_or(NormKind::Batch);
    let mut config = RunConfig::new(&args.network, norm, &name, &device, &data);
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
    Ok(Prepared {
        images,
        config,
        device,
        data,
        history: History::default(),
    })
}

/// The saved settings, with more epochs or another device if asked for; all else must agree.
fn resumed(args: &TrainArgs, folder: &Folder) -> Result<(Prepared, std::fs::File)> {
    let shown = folder.path().display();
    let nothing = || format!("nothing to resume in {shown}. Start it without --resume");
    let path = folder.state(CONFIG);
    ensure!(path.is_file(), "{}", nothing());
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
    ensure!(metrics.is_file(), "{}", nothing());
    let mut history = History::load(&metrics)?;
    let recorded = std::fs::read(&metrics).ok();
    // The file may be an epoch ahead of the checkpoints if the program was killed in between.
    let rows = history.rows.len();
    let done =
        checkpoint::last_good(folder, rows, &config, &device.device()).with_context(nothing)?;
    history.rows.truncate(done);
    // The results are those of this run if their epochs are, times and all.
    let finished =
        folder.file(SUMMARY).is_file() && std::fs::read(folder.file(METRICS)).ok() == recorded;
    if finished && is_complete(&config, &history) {
        let more = if done < config.training.epochs {
            "stopped early after"
        } else {
            "has finished"
        };
        bail!(
            "the run in {shown} {more} {done} epochs: ask for more than that with --epochs \
             (or --early-stopping)"
        );
    }
    let data = Source::from(config.data.as_str()).load()?;
    let images = TrainingData::new(&config, &data.train)?;
    Ok((
        Prepared {
            images,
            config,
            device,
            data,
            history,
        },
        lock,
    ))
}

/// Whether nothing is left to train.
fn is_complete(config: &RunConfig, history: &History) -> bool {
    let patience = config.training.early_stopping;
    history.rows.len() >= config.training.epochs
        || patience.is_some_and(|patience| out_of_patience(history, patience))
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
    let data = network
        .data
        .as_deref()
        .map(|data| Source::from(data).name())
        .transpose()?;
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

/// With early stopping the model of the best epoch is taken, else the last.
fn finish(run: &Prepared, trained: Trained, folder: &Folder) -> Result<Summary> {
    let config = &run.config;
    let last = trained.history.rows.len();
    let best = trained.history.best_epoch().unwrap_or(last);
    let (model, model_epoch) = match config.training.early_stopping {
        Some(_) if best != last => {
            let path = checkpoint::model_path(folder, best);
            let model = folder::load_record(&path, config, &run.device.device())?;
            (model, best)
        }
        _ => (trained.model, last),
    };
    write(run, &trained.history, &model, model_epoch, folder)
}

/// Tests a network and writes all files of a finished run.
pub(crate) fn write(
    run: &Prepared,
    history: &History,
    model: &Classifier,
    model_epoch: usize,
    folder: &Folder,
) -> Result<Summary> {
    let (config, device) = (&run.config, run.device.device());
    let test = eval::test(model, config, &run.data.test, &device)?;
    let train = run.images.evaluate_train(model, &device)?;
    let valid = run.images.evaluate_valid(model, &device)?;
    let evaluations = [&train, &valid, &test];
    let summary = Summary::new(config, &run.device, history, model_epoch, evaluations);
    // First and last: what is between them belongs together where this file is.
    folder::remove(&folder.file(SUMMARY))?;
    // Of the network that was there before.
    folder::remove(&folder.file(HEALTH))?;
    folder.save_model(model)?;
    folder::save_json(&folder.file(CONFIG), config)?;
    history.save(&folder.file(METRICS))?;
    plots::learning_curves(
        &folder.file(CURVES),
        history,
        (test.scores.loss(), test.scores.accuracy()),
    )?;
    plots::confusion_matrix(&folder.file(CONFUSION), &test, &config.class_names)?;
    folder::save_json(&folder.file(SUMMARY), &summary)?;
    Ok(summary)
}
