//! A whole training run: settings, data, training, test, files.

use burn::train::Interrupter;

use crate::artifacts::Artifacts;
use crate::cli::TrainArgs;
use crate::commands::config;
use crate::config::RunConfig;
use crate::data::{Dataset, Samples, Source};
use crate::device::{self, NamedDevice};
use crate::error::{Error, Result};
use crate::evaluation::evaluate_all;
use crate::history::History;
use crate::model::NormKind;
use crate::report::{Results, Summary};
use crate::training::{Session, Trained, TrainingData, train as fit};
use crate::{checkpoint, plots};

/// All that is known before training starts. Nothing is written until it is complete.
struct Prepared {
    config: RunConfig,
    device: NamedDevice,
    data: Dataset,
    images: TrainingData,
    resume: History,
}

/// The command `train`. Returns what it wrote to `summary.json`.
pub fn train(args: &TrainArgs, interrupter: &Interrupter) -> Result<Summary> {
    let artifacts = Artifacts::new(&args.out);
    artifacts.check_ours()?;
    let prepared = match args.resume {
        true => resumed(args, &artifacts)?,
        false => fresh(args)?,
    };
    match args.resume {
        true => prepared.resume.save(&artifacts.path(Artifacts::METRICS))?,
        false => artifacts.start_over()?,
    }
    artifacts.save_json(Artifacts::CONFIG, &prepared.config)?;

    let session = Session {
        artifacts: Some(artifacts.clone()),
        resume: prepared.resume.clone(),
        progress: args.progress,
        interrupter: interrupter.clone(),
    };
    let trained = fit(
        &prepared.config,
        &prepared.images,
        &prepared.device.device(),
        session,
    )?;
    trained.history.save(&artifacts.path(Artifacts::METRICS))?;
    if trained.interrupted {
        return Err(interrupted(&artifacts, trained.history.rows.len()));
    }
    finish(&prepared, trained, &artifacts)
}

fn fresh(args: &TrainArgs) -> Result<Prepared> {
    let device = device::resolve(args.network.device.as_deref().unwrap_or("auto"))?;
    let source = Source::from(args.network.data.as_deref().unwrap_or("embedded")).absolute()?;
    let data = source.load()?;
    let norm = args.norm.unwrap_or(NormKind::Batch);
    let mut config = config(&args.network, norm, &source, &device, &data.class_names);
    config.training.early_stopping = args.early_stopping;
    config.training.learning_rate = args.lr.unwrap_or(config.training.learning_rate);
    check_early_stopping(&config)?;
    Ok(Prepared {
        images: TrainingData::new(&config, &data.train)?,
        config,
        device,
        data,
        resume: History::default(),
    })
}

/// The saved settings, with more epochs or another device if asked for; all else must agree.
fn resumed(args: &TrainArgs, artifacts: &Artifacts) -> Result<Prepared> {
    let nothing = |reason| Error::NothingToResume {
        path: args.out.clone(),
        reason,
    };
    if !artifacts.path(Artifacts::CONFIG).is_file() {
        return Err(nothing("there is no config.json"));
    }
    let mut config = artifacts.load_config()?;
    check_agreement(args, &config)?;
    config.training.epochs = args.network.epochs.unwrap_or(config.training.epochs);
    config.training.early_stopping = args.early_stopping.or(config.training.early_stopping);
    check_early_stopping(&config)?;

    let mut resume = match artifacts.path(Artifacts::METRICS) {
        path if path.is_file() => History::load(&path)?,
        _ => return Err(nothing("no epoch was completed")),
    };
    // The file may be one epoch ahead of the checkpoints if the program was killed in between.
    let checkpoints = checkpoint::complete(&artifacts.path(Artifacts::CHECKPOINTS));
    let last = checkpoints
        .into_iter()
        .rev()
        .find(|epoch| *epoch <= resume.rows.len());
    let done = last.ok_or_else(|| nothing("there is no complete checkpoint"))?;
    resume.rows.truncate(done);
    if done >= config.training.epochs {
        return Err(Error::AlreadyFinished {
            path: args.out.clone(),
            done,
        });
    }

    let device = device::resolve(args.network.device.as_deref().unwrap_or(&config.device))?;
    config.device = device.name.clone();
    let data = config.source().load()?;
    Ok(Prepared {
        images: TrainingData::new(&config, &data.train)?,
        config,
        device,
        data,
        resume,
    })
}

/// A flag that is given and differs from the saved run is refused, not ignored.
fn check_agreement(args: &TrainArgs, saved: &RunConfig) -> Result<()> {
    fn same<T: PartialEq + std::fmt::Display>(
        field: &'static str,
        saved: T,
        asked: Option<T>,
    ) -> Result<()> {
        match asked {
            Some(asked) if asked != saved => Err(Error::ResumeMismatch {
                field,
                saved: saved.to_string(),
                asked: asked.to_string(),
            }),
            _ => Ok(()),
        }
    }
    let (model, training, network) = (&saved.model, &saved.training, &args.network);
    same("--input", model.input, network.input)?;
    same("--hidden", model.hidden, network.hidden)?;
    same("--norm", model.norm, args.norm)?;
    same(
        "--bn-before-activation",
        model.bn_before_activation,
        network.bn_before_activation.then_some(true),
    )?;
    same("--batch-size", training.batch_size, network.batch_size)?;
    same("--lr", training.learning_rate, args.lr)?;
    same("--seed", training.seed, network.seed)?;
    same("--validation", training.validation, network.validation)?;
    let data = network
        .data
        .as_deref()
        .map(|data| Source::from(data).absolute())
        .transpose()?;
    same(
        "--data",
        saved.data.clone(),
        data.map(|data| data.to_string()),
    )
}

fn check_early_stopping(config: &RunConfig) -> Result<()> {
    let training = &config.training;
    match training.early_stopping.is_some() && training.validation == 0.0 {
        true => Err(Error::Setting(
            "--early-stopping watches the validation loss: --validation must be above 0"
                .to_string(),
        )),
        false => Ok(()),
    }
}

fn interrupted(artifacts: &Artifacts, done: usize) -> Error {
    let folder = artifacts.folder().display();
    Error::Interrupted {
        message: match done {
            0 => "interrupted before the first epoch was complete: nothing to resume".to_string(),
            done => format!(
                "interrupted; the checkpoint after epoch {done} is in {folder}. Continue with \
                 `mnist train --resume --out {folder}`"
            ),
        },
    }
}

/// Test and files. With early stopping the model of the best epoch is taken, else the last.
fn finish(prepared: &Prepared, trained: Trained, artifacts: &Artifacts) -> Result<Summary> {
    let config = &prepared.config;
    let device = prepared.device.device();
    let last = trained.history.rows.len();
    let best = trained.history.best_epoch().unwrap_or(last);
    let (model, model_epoch) = match config.training.early_stopping {
        Some(_) if best != last => {
            let path = checkpoint::model_path(&artifacts.path(Artifacts::CHECKPOINTS), best);
            (artifacts.load_record(&path, config, &device)?, best)
        }
        _ => (trained.model, last),
    };
    let test = evaluate_all(
        &model,
        &Samples::new(&prepared.data.test, config.model.input),
        &device,
    )?;
    let summary = Results {
        config,
        device: &prepared.device,
        times: &trained.times,
        epochs: last,
        model_epoch,
        train: &prepared.images.evaluate_train(&model, &device)?,
        valid: &prepared.images.evaluate_valid(&model, &device)?,
        test: &test,
    }
    .summary();
    artifacts.save_model(&model)?;
    let scores = (test.scores.loss(), test.scores.accuracy());
    plots::learning_curves(&artifacts.path(Artifacts::CURVES), &trained.history, scores)?;
    plots::confusion_matrix(
        &artifacts.path(Artifacts::CONFUSION),
        &test,
        &config.class_names,
    )?;
    // Last: where this file is, all others are.
    artifacts.save_json(Artifacts::SUMMARY, &summary)?;
    Ok(summary)
}
