//! Training with Burn's `SupervisedTraining`, and the bare loop it is measured against.

mod bare;
mod patience;

pub use bare::bare_loop;
pub(crate) use patience::out_of_patience;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Result, anyhow, bail, ensure};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::optim::decay::WeightDecayConfig;
use burn::optim::{AdamConfig, ModuleOptimizer};
use burn::tensor::Device;
use burn::train::{
    InferenceStep, Interrupter, Learner, SupervisedTraining, TrainOutput, TrainStep,
};

use crate::checkpoint::KeepLastAndBest;
use crate::config::RunConfig;
use crate::data::{Batch, BatchLoader, EpochClock, Images, Samples, split};
use crate::eval::{EVAL_BATCH, Evaluation, evaluate};
use crate::folder::Folder;
use crate::history::{History, HistoryLogger, SharedHistory};
use crate::metrics::{ScoreMetric, StepOutput};
use crate::model::Classifier;
use crate::progress::{Progress, clear_below};
use crate::quiet::catch;
use crate::{Interrupted, note};
use patience::Patience;

impl TrainStep for Classifier {
    type Input = Batch;
    type Output = StepOutput;

    fn step(&self, batch: Batch) -> TrainOutput<StepOutput> {
        let logits = self.forward(batch.inputs);
        let loss = CrossEntropyLossConfig::new().init(&logits.device());
        let grads = loss.forward(logits.clone(), batch.targets).backward();
        TrainOutput::new(self, grads, StepOutput::new(logits, batch.labels))
    }
}

impl InferenceStep for Classifier {
    type Input = Batch;
    type Output = StepOutput;

    fn step(&self, batch: Batch) -> StepOutput {
        StepOutput::new(self.forward(batch.inputs), batch.labels)
    }
}

/// A weight decay that changes no result, and keeps Adam fast: a weight whose gradient stays
/// exactly zero, behind a unit that never fires, would have a first moment that decays to denormals
/// within a thousand steps, and arithmetic with those is many times slower on most processors.
/// With it the moment stays near 1e-14; such a weight moves by 1e-9 in a step, the others not at all.
const KEEP_MOMENTS_NORMAL: f32 = 1e-12;

/// Adam with PyTorch's defaults; Burn's own epsilon is 1e-5.
pub fn optimizer() -> ModuleOptimizer {
    let decay = WeightDecayConfig::new(KEEP_MOMENTS_NORMAL);
    AdamConfig::new()
        .with_epsilon(1e-8)
        .with_weight_decay(Some(decay))
        .init()
}

/// Training images, prepared and split as a [`RunConfig`] says.
pub struct TrainingData {
    samples: Samples,
    train: Vec<u32>,
    valid: Vec<u32>,
}

impl TrainingData {
    /// Fails if the split leaves too little to train or validate with.
    pub fn new(config: &RunConfig, images: &Images) -> Result<Self> {
        let (training, count) = (&config.training, images.labels.len());
        let (train, valid) = split(count, training.validation, training.seed);
        let left = train.len();
        ensure!(
            left >= 2,
            "{left} training images are too few: batch normalization needs at least 2"
        );
        ensure!(
            training.validation == 0.0 || !valid.is_empty(),
            "--validation {} of {count} images is no image: take more, or 0 for none",
            training.validation
        );
        let samples = Samples::new(images, config.model.input, config.scale);
        Ok(Self {
            samples,
            train,
            valid,
        })
    }

    /// Images to train with.
    pub fn train_len(&self) -> usize {
        self.train.len()
    }

    /// The batches of training, from `epoch` on.
    pub(crate) fn train_loader(
        &self,
        config: &RunConfig,
        epoch: usize,
        device: &Device,
    ) -> BatchLoader {
        let training = &config.training;
        BatchLoader::fixed(&self.samples, &self.train, training.batch_size, device)
            .shuffled(training.seed, epoch as u64)
    }

    /// The images of training, in order and in few batches.
    pub(crate) fn train_batches(&self, device: &Device) -> BatchLoader {
        BatchLoader::fixed(&self.samples, &self.train, EVAL_BATCH, device)
    }

    /// Loss and accuracy of a finished network on the images it was trained with.
    pub(crate) fn evaluate_train(&self, model: &Classifier, device: &Device) -> Result<Evaluation> {
        evaluate(model, &self.samples, &self.train, device)
    }

    /// Loss and accuracy on the held out images.
    pub(crate) fn evaluate_valid(&self, model: &Classifier, device: &Device) -> Result<Evaluation> {
        evaluate(model, &self.samples, &self.valid, device)
    }
}

/// What a training session does besides training.
pub struct Session {
    /// Where checkpoints and the epochs go; none for runs that are only measured.
    pub folder: Option<Folder>,
    /// Epochs done in an earlier session.
    pub resume: History,
    /// How progress is shown.
    pub progress: Progress,
    /// Stops the session from outside.
    pub interrupter: Interrupter,
}

impl Session {
    /// A session that writes nothing and shows nothing.
    pub fn silent() -> Self {
        Self {
            folder: None,
            resume: History::default(),
            progress: Progress::None,
            interrupter: Interrupter::new(),
        }
    }
}

/// The end of a session.
pub struct Trained {
    /// The network after the last step, for inference.
    pub model: Classifier,
    /// All complete epochs, earlier sessions included.
    pub history: History,
    /// Whether the user stopped it before its last epoch.
    pub interrupted: bool,
}

/// Trains as `config` says. A session with a folder keeps checkpoints there, and with a `resume`
/// history continues from the checkpoint of its last epoch.
pub fn train(
    config: &RunConfig,
    data: &TrainingData,
    device: &Device,
    session: Session,
) -> Result<Trained> {
    let training = &config.training;
    let (epochs, progress) = (training.epochs, session.progress);
    let done = session.resume.rows.len();
    let clock = EpochClock::default();
    let history = SharedHistory::new(session.resume);
    let completed = Arc::new(AtomicUsize::new(done));
    let stopped_early = Arc::new(AtomicUsize::new(0));
    let bar = progress.bar();

    let autodiff = device.clone().autodiff();
    let train_loader = data.train_loader(config, done + 1, &autodiff).timed(&clock);
    let valid_loader = BatchLoader::fixed(&data.samples, &data.valid, EVAL_BATCH, device);
    let renderer = progress.renderer(&bar, &session.interrupter, (done > 0).then_some(done));
    let lines = matches!(progress, Progress::Auto | Progress::Plain);
    let above = bar.clone();
    let logger = HistoryLogger {
        history: history.clone(),
        clock,
        first_epoch: done + 1,
        validates: !data.valid.is_empty(),
        show: Box::new(move |row| {
            if lines {
                above.suspend(|| note(&row.line(epochs)));
            }
        }),
        names: HashMap::new(),
    };
    let folder = session.folder.as_ref().map_or(Path::new(""), Folder::path);
    let mut runner: SupervisedTraining<Classifier> =
        SupervisedTraining::new(folder, Arc::new(train_loader), Arc::new(valid_loader))
            .metric_train_numeric(ScoreMetric::loss())
            .metric_train_numeric(ScoreMetric::accuracy())
            .metric_valid_numeric(ScoreMetric::loss())
            .metric_valid_numeric(ScoreMetric::accuracy())
            .with_metric_logger(logger)
            // Burn's file log has a line per batch and installs a panic hook.
            .with_application_logger(None)
            .with_interrupter(session.interrupter.clone())
            .renderer(renderer)
            .num_epochs(epochs);
    let keeps_checkpoints = session.folder.is_some();
    if let Some(folder) = session.folder {
        let strategy = KeepLastAndBest {
            folder,
            history: history.clone(),
            completed: completed.clone(),
            interrupter: session.interrupter.clone(),
        };
        runner = runner
            .with_default_checkpointers()
            .with_checkpointing_strategy(strategy);
    }
    if done > 0 {
        runner = runner.checkpoint(done);
    }
    if let Some(patience) = training.early_stopping {
        let (history, stopped) = (history.clone(), stopped_early.clone());
        runner = runner.early_stopping(Patience {
            epochs: patience,
            history,
            stopped,
        });
    }

    let model = config.model.init(training.seed, &autodiff);
    let learner = Learner::new(model, optimizer(), training.learning_rate);
    let result = catch(|| runner.launch(learner));
    bar.finish_and_clear();
    let result = result.map_err(stopped_or_failed)?;
    if let Some(error) = &result.error {
        bail!("training failed: {error}");
    }
    // The dashboard has the terminal until it is dropped, and leaves nothing on it.
    drop(result.renderer);
    let mut history = history.lock().clone();
    if progress == Progress::Dashboard {
        history
            .rows
            .iter()
            .skip(done)
            .for_each(|row| note(&row.line(epochs)));
    }

    // The dashboard forgets an interruption when it closes, so complete epochs are counted. A
    // session without checkpoints has no such count, and its caller throws it away as a whole.
    let completed = completed.load(Ordering::Relaxed);
    let interrupted = if keeps_checkpoints {
        if let Some(row) = history.rows.get(completed).filter(|row| !row.is_finite()) {
            bail!(
                "training diverged: the loss of epoch {} is not a number. The last good checkpoint \
                 is that of epoch {completed}; start again with a smaller --lr",
                row.epoch
            );
        }
        stopped_early.load(Ordering::Relaxed) == 0 && completed < epochs
    } else {
        result.interrupted.is_some()
    };
    if interrupted {
        history.rows.truncate(completed);
    }
    Ok(Trained {
        model: result.model,
        history,
        interrupted,
    })
}

/// "Kill" in Burn's dashboard is a panic with this text.
fn stopped_or_failed(message: String) -> anyhow::Error {
    if message.contains("Killing training from user input") {
        clear_below();
        let text = "stopped; --resume continues after the last complete epoch";
        return Interrupted(text.to_string()).into();
    }
    anyhow!("training failed: {message}")
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::cli::NetworkArgs;
    use crate::data::Source;
    use crate::model::NormKind;

    pub fn config(epochs: usize, norm: NormKind) -> (RunConfig, Images) {
        let device = crate::device::resolve("flex").expect("flex");
        let data = Source::Embedded.load().expect("embedded");
        let args = NetworkArgs {
            epochs: Some(epochs),
            ..NetworkArgs::default()
        };
        (
            RunConfig::new(&args, norm, "embedded", &device, &data),
            data.train,
        )
    }

    #[test]
    fn a_loss_that_is_not_a_number_is_an_error_and_not_saved() {
        let temporary = tempfile::tempdir().expect("temporary folder");
        let folder = Folder::new(temporary.path());
        let (mut config, images) = config(3, NormKind::Batch);
        config.training.learning_rate = f64::NAN;
        let data = TrainingData::new(&config, &images).expect("enough images");
        let session = Session {
            folder: Some(folder.clone()),
            ..Session::silent()
        };
        let result = train(&config, &data, &Device::flex(), session);
        let text = result.err().expect("it diverges").to_string();
        assert!(
            text.contains("the loss of epoch 1 is not a number"),
            "{text}"
        );
        assert!(text.contains("smaller --lr"), "{text}");
        assert!(!folder.state("model-1.bpk").exists());
    }
}
