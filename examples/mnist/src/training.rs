//! Training with Burn's `SupervisedTraining`, and the bare loop it is measured against.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use burn::data::dataloader::DataLoader;
use burn::nn::loss::CrossEntropyLossConfig;
use burn::optim::{AdamConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::Device;
use burn::train::metric::store::{Aggregate, Direction, EventStoreClient, Split};
use burn::train::{
    EarlyStoppingStrategy, InferenceStep, Interrupter, Learner, SupervisedTraining, TrainOutput,
    TrainStep,
};

use crate::artifacts::Artifacts;
use crate::checkpoint::KeepLastAndBest;
use crate::config::RunConfig;
use crate::data::{Batch, BatchLoader, EpochClock, EpochTime, Images, Samples, split};
use crate::error::{Error, Result};
use crate::evaluation::{Evaluation, evaluate};
use crate::history::{History, HistoryLogger, SharedHistory};
use crate::metrics::{LOSS, ScoreMetric, StepOutput};
use crate::model::Classifier;
use crate::progress::Progress;
use crate::quiet::catch;

/// Images per validation or test step: large, since no gradients are kept.
pub const EVAL_BATCH: usize = 500;

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

/// Adam with PyTorch's defaults; Burn's own epsilon is 1e-5.
pub fn optimizer() -> ModuleOptimizer {
    AdamConfig::new().with_epsilon(1e-8).init()
}

/// Training images, prepared and split as a [`RunConfig`] says.
pub struct TrainingData {
    samples: Samples,
    train: Vec<u32>,
    valid: Vec<u32>,
}

impl TrainingData {
    /// Fails if the split or the batch size leaves too little to train with.
    pub fn new(config: &RunConfig, images: &Images) -> Result<Self> {
        let training = &config.training;
        let (train, valid) = split(images.len(), training.validation, training.seed);
        if train.len() < 2 {
            return Err(Error::Setting(format!(
                "{} training images are too few: batch normalization needs at least 2",
                train.len()
            )));
        }
        Ok(Self {
            samples: Samples::new(images, config.model.input),
            train,
            valid,
        })
    }

    /// Images to train with.
    pub fn train_len(&self) -> usize {
        self.train.len()
    }

    /// Images held out.
    pub fn valid_len(&self) -> usize {
        self.valid.len()
    }

    /// The batches of training, from `epoch` on.
    pub fn train_loader(&self, config: &RunConfig, epoch: usize, device: &Device) -> BatchLoader {
        BatchLoader::fixed(
            &self.samples,
            &self.train,
            config.training.batch_size,
            device,
        )
        .shuffled(config.training.seed, epoch as u64)
    }

    /// Loss and accuracy of a finished network on the images it was trained with.
    pub fn evaluate_train(&self, model: &Classifier, device: &Device) -> Result<Evaluation> {
        evaluate(model, &self.samples, &self.train, device)
    }

    /// Loss and accuracy on the held out images.
    pub fn evaluate_valid(&self, model: &Classifier, device: &Device) -> Result<Evaluation> {
        evaluate(model, &self.samples, &self.valid, device)
    }

    fn valid_loader(&self, device: &Device) -> BatchLoader {
        BatchLoader::fixed(&self.samples, &self.valid, EVAL_BATCH, device)
    }
}

/// What a training session does besides training.
pub struct Session {
    /// Where checkpoints and `metrics.csv` go; none for runs that are only measured.
    pub artifacts: Option<Artifacts>,
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
            artifacts: None,
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
    /// The epochs of this session.
    pub times: Vec<EpochTime>,
    /// Whether the user stopped it before its last epoch.
    pub interrupted: bool,
}

/// Trains as `config` says. A session with artifacts keeps checkpoints there, and with a `resume`
/// history continues from the checkpoint of its last epoch.
pub fn train(
    config: &RunConfig,
    data: &TrainingData,
    device: &Device,
    session: Session,
) -> Result<Trained> {
    let training = &config.training;
    let done = session.resume.rows.len();
    let clock = EpochClock::default();
    let history = SharedHistory::new(session.resume);
    let completed = Arc::new(AtomicUsize::new(done));
    let stopped_early = Arc::new(AtomicUsize::new(0));

    let autodiff = device.clone().autodiff();
    let train_loader = data.train_loader(config, done + 1, &autodiff).timed(&clock);
    let renderer =
        session
            .progress
            .renderer(&session.interrupter, (done > 0).then_some(done), &clock);
    let folder = session
        .artifacts
        .as_ref()
        .map_or(std::path::Path::new(""), Artifacts::folder);
    let mut runner: SupervisedTraining<Classifier> = SupervisedTraining::new(
        folder,
        Arc::new(train_loader),
        Arc::new(data.valid_loader(device)),
    )
    .metric_train_numeric(ScoreMetric::loss())
    .metric_train_numeric(ScoreMetric::accuracy())
    .metric_valid_numeric(ScoreMetric::loss())
    .metric_valid_numeric(ScoreMetric::accuracy())
    .with_metric_logger(HistoryLogger::new(history.clone(), clock.clone(), done + 1))
    // Burn's file log has a line per batch and installs a panic hook.
    .with_application_logger(None)
    .with_interrupter(session.interrupter.clone())
    .renderer(renderer)
    .num_epochs(training.epochs);
    let keeps_checkpoints = session.artifacts.is_some();
    if let Some(artifacts) = session.artifacts {
        runner = runner
            .with_default_checkpointers()
            .with_checkpointing_strategy(KeepLastAndBest::new(
                artifacts,
                history.clone(),
                completed.clone(),
            ));
    }
    if done > 0 {
        runner = runner.checkpoint(done);
    }
    if let Some(patience) = training.early_stopping {
        runner = runner.early_stopping(Patience {
            epochs: patience,
            stopped: stopped_early.clone(),
        });
    }

    let model = config.model.init(training.seed, &autodiff);
    let learner = Learner::new(model, optimizer(), training.learning_rate);
    let result = catch(|| runner.launch(learner)).map_err(stopped_or_failed)?;
    if let Some(error) = &result.error {
        return Err(Error::Training(error.to_string()));
    }
    // The renderer holds the terminal until it is dropped.
    drop(result.renderer);

    // Burn's dashboard forgets an interruption when it closes, so complete epochs are counted. A
    // session without checkpoints has no such count, and its caller throws it away as a whole.
    let mut history = history.lock().clone();
    let completed = completed.load(Ordering::Relaxed);
    let interrupted = match keeps_checkpoints {
        true => stopped_early.load(Ordering::Relaxed) == 0 && completed < training.epochs,
        false => result.interrupted.is_some(),
    };
    if interrupted {
        history.rows.truncate(completed);
    }
    Ok(Trained {
        model: result.model,
        history,
        times: clock.times(),
        interrupted,
    })
}

/// "Kill" in Burn's dashboard is a panic with this text.
fn stopped_or_failed(message: String) -> Error {
    match message.contains("Killing training from user input") {
        true => Error::Interrupted {
            message: "stopped; --resume continues after the last complete epoch".to_string(),
        },
        false => Error::Training(message),
    }
}

/// Stops when the validation loss has not improved for some epochs. Unlike Burn's own strategy it
/// keeps no state, so a resumed run counts the epochs of all its sessions.
#[derive(Clone)]
struct Patience {
    epochs: usize,
    stopped: Arc<AtomicUsize>,
}

impl EarlyStoppingStrategy for Patience {
    fn should_stop(&mut self, epoch: usize, store: &EventStoreClient) -> bool {
        let best = store.find_epoch(LOSS, Aggregate::Mean, Direction::Lowest, &Split::Valid);
        let stop = best.is_some_and(|best| epoch - best >= self.epochs);
        if stop {
            self.stopped.store(epoch, Ordering::Relaxed);
        }
        stop
    }
}

/// The same training without the Learner: batches, forward, backward, Adam and nothing else. The
/// benchmark compares [`train`] with it. Returns the time of each epoch, measured the same way.
pub fn bare_loop(config: &RunConfig, data: &TrainingData, device: &Device) -> Vec<EpochTime> {
    let autodiff = device.clone().autodiff();
    let loader = data.train_loader(config, 1, &autodiff);
    let mut model = config.model.init(config.training.seed, &autodiff);
    let mut optimizer = optimizer();
    let loss = CrossEntropyLossConfig::new().init(&autodiff);
    let mut times = Vec::with_capacity(config.training.epochs);
    for _ in 0..config.training.epochs {
        let start = Instant::now();
        for batch in loader.iter().flatten() {
            let logits = model.forward(batch.inputs);
            let grads = loss.forward(logits, batch.targets).backward();
            let grads = GradientsParams::from_grads(grads, &model);
            model = optimizer.step(config.training.learning_rate, model, grads);
        }
        // As in the timed loader: a failure here would show at any read.
        let _ = device.sync();
        times.push(EpochTime {
            images: data.train_len(),
            time: start.elapsed(),
        });
    }
    times
}
