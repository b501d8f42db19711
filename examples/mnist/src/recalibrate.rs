//! The command `recalibrate`: the running statistics of a saved network, computed anew.
//!
//! Training leaves an average over its last batches, of a network that was still changing. One pass over
//! all training images gives the mean and variance that the finished network really has there.

use std::fmt::{Display, Formatter};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use burn::data::dataloader::DataLoader;
use burn::tensor::Device;
use burn_batchnorm::{LayerHealth, Recalibration};
use serde::Serialize;

use crate::cli::RecalibrateArgs;
use crate::data::{Dataset, Samples};
use crate::eval::{self, EVAL_BATCH, SavedRun};
use crate::folder::{self, Folder, METRICS, SUMMARY};
use crate::history::History;
use crate::model::Classifier;
use crate::progress::Progress;
use crate::report::{HEAD, Summary, row};
use crate::train::{Run, write};
use crate::training::TrainingData;

/// What `recalibrate` prints as JSON.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The network in words.
    pub network: String,
    /// Folder of the new network.
    pub written_to: PathBuf,
    /// Training images that the statistics are of.
    pub train_images: usize,
    /// Largest distance of an old running mean from the new one, in old running standard deviations.
    pub mean_drift: Option<f64>,
    /// Largest `ln(new / old)` of a running variance, by magnitude.
    pub variance_drift: Option<f64>,
    /// Images of the test.
    pub test_images: usize,
    /// Mean cross-entropy with the old statistics.
    pub test_loss_before: f64,
    /// Accuracy with the old statistics.
    pub test_accuracy_before: f64,
    /// Mean cross-entropy with the new statistics.
    pub test_loss: f64,
    /// Accuracy with the new statistics.
    pub test_accuracy: f64,
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let line = |name, loss, accuracy| row(name, self.test_images, Some((loss, accuracy)));
        write!(
            f,
            "{}\nstatistics of {} training images; largest drift: mean {:.3} deviations, ln variance {:.3}\n\
             {HEAD}{}{}\nwritten to {}\n",
            self.network,
            self.train_images,
            self.mean_drift.unwrap_or(f64::NAN),
            self.variance_drift.unwrap_or(f64::NAN),
            line(
                "test before",
                self.test_loss_before,
                self.test_accuracy_before
            ),
            line("test after", self.test_loss, self.test_accuracy),
            self.written_to.display()
        )
    }
}

/// The network with the statistics of all its training images. `seen` hears the size of each batch.
pub fn recalibrated(
    model: Classifier,
    images: &Samples,
    device: &Device,
    mut seen: impl FnMut(usize),
) -> Classifier {
    let loader = images.batches(EVAL_BATCH, device);
    let (mode, batches) = (Recalibration::Population, loader.iter().flatten());
    burn_batchnorm::recalibrate(model, mode, batches, |model, batch| {
        model.forward(batch.inputs);
        seen(batch.labels.len());
    })
}

/// Recalibrates a saved network, and writes it as a finished run: into a new folder, or over the old one
/// if that is asked for.
pub fn run(args: &RecalibrateArgs) -> Result<Report> {
    let SavedRun {
        folder: from,
        mut config,
        device,
        model,
    } = SavedRun::open(&args.model)?;
    model.batch_norm()?;
    let to = target(args)?;
    let check = || {
        ensure!(
            args.in_place || to.is_empty()?,
            "{} is not empty: choose another folder with --out, or replace the network in {} with --in-place",
            to.path().display(),
            from.path().display()
        );
        Ok(())
    };
    check()?;
    let data = Dataset::load(&config.data)?;
    let images = TrainingData::new(&config, &data.train)?;
    let history = History::load(&from.file(METRICS))?;
    let old: Summary = folder::load_json(&from.file(SUMMARY))?;
    let epochs = history.rows.len();
    ensure!(
        epochs == old.epochs,
        "{METRICS} of {} holds {epochs} epochs, {SUMMARY} {}: one of them is damaged",
        from.path().display(),
        old.epochs
    );
    let lock = to.lock()?;
    // Again: somebody may have been faster.
    check()?;

    let on = device.device();
    let loader = images.train.batches(EVAL_BATCH, &on);
    let health = burn_batchnorm::health(&model, loader.iter().flatten(), |model, batch| {
        model.forward(batch.inputs);
    });
    let before = eval::test(&model, &config, &data.test, &on)?;
    let bar = Progress::Auto.bar();
    bar.set_length(images.train.count() as u64);
    bar.set_prefix("recalibrate");
    let model = recalibrated(model, &images.train, &on, |count| bar.inc(count as u64));
    bar.finish_and_clear();
    config.device.clone_from(&device.name);
    let run = Run {
        config,
        device,
        data,
        images,
        history,
        _lock: lock,
    };
    let new = write(&run, &model, old.model_epoch, &to)?;
    let worst = |drift: fn(&LayerHealth) -> Option<f64>| {
        health.layers.iter().filter_map(drift).reduce(f64::max)
    };
    Ok(Report {
        network: new.model,
        written_to: new.folder,
        train_images: new.train_images,
        mean_drift: worst(|layer| layer.mean_drift),
        variance_drift: worst(|layer| layer.variance_drift),
        test_images: new.test_images,
        test_loss_before: before.loss(),
        test_accuracy_before: before.accuracy(),
        test_loss: new.test_loss,
        test_accuracy: new.test_accuracy,
    })
}

/// Where the new network goes.
fn target(args: &RecalibrateArgs) -> Result<Folder> {
    let old = &args.model.model;
    let beside = || {
        let mut name = old.file_name()?.to_os_string();
        name.push("-recalibrated");
        Some(old.with_file_name(name))
    };
    let path = match args.in_place {
        true => Some(old.clone()),
        false => args.out.clone().or_else(beside),
    };
    let path = path.context("name a folder for the new network with --out, or use --in-place")?;
    Ok(Folder::new(path))
}
