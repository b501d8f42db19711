//! Training with Burn's `SupervisedTraining`.

use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::{Result, anyhow, bail, ensure};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::optim::decay::WeightDecayConfig;
use burn::optim::{AdamConfig, ModuleOptimizer};
use burn::tensor::{Device, Tensor};
use burn::train::{
    InferenceStep, Interrupter, Learner, SupervisedTraining, TrainOutput, TrainStep,
};

use crate::config::RunConfig;
use crate::data::{Batch, Images, Samples};
use crate::eval::EVAL_BATCH;
use crate::folder::Folder;
use crate::history::History;
use crate::metrics::{ScoreMetric, Scores, StepOutput};
use crate::model::Classifier;
use crate::progress::{Progress, clear_below};
use crate::quiet::catch;
use crate::recorder::{FinalValues, Recorder};
use crate::{Interrupted, note};

impl TrainStep for Classifier {
    type Input = Batch;
    type Output = StepOutput;

    fn step(&self, batch: Batch) -> TrainOutput<StepOutput> {
        let logits = self.forward(batch.inputs);
        let loss = CrossEntropyLossConfig::new().init(&logits.device());
        let grads = loss.forward(logits.clone(), batch.targets).backward();
        TrainOutput::new(self, grads, step_output(logits, batch.labels))
    }
}

impl InferenceStep for Classifier {
    type Input = Batch;
    type Output = StepOutput;

    fn step(&self, batch: Batch) -> StepOutput {
        step_output(self.forward(batch.inputs), batch.labels)
    }
}

fn step_output(logits: Tensor<2>, labels: Arc<[u8]>) -> StepOutput {
    StepOutput {
        logits,
        labels,
        scores: Scores::default(),
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
    /// Images to train with.
    pub train: Samples,
    /// Images held out, which may be none.
    pub valid: Samples,
}

impl TrainingData {
    /// Fails if the split leaves too little to train or validate with.
    pub fn new(config: &RunConfig, images: &Images) -> Result<Self> {
        let (training, count) = (&config.training, images.labels.len());
        let samples = Samples::new(images, config.model.input, config.scale);
        let (train, valid) = samples.split(training.validation, training.seed);
        let left = train.count();
        ensure!(
            left >= 2,
            "{left} training images are too few: batch normalization needs at least 2"
        );
        ensure!(
            training.validation == 0.0 || valid.count() > 0,
            "--validation {} of {count} images is no image: take more, or 0 for none",
            training.validation
        );
        Ok(Self { train, valid })
    }
}

/// What a training session does besides training.
#[derive(Default)]
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

/// The end of a session.
pub struct Trained {
    /// The network after the last step, for inference.
    pub model: Classifier,
    /// All complete epochs, earlier sessions included; too few if the user stopped it.
    pub history: History,
}

/// Trains as `config` says. A session with a folder keeps checkpoints there, and with a `resume`
/// history continues from the checkpoint of its last epoch.
pub fn train(
    config: &RunConfig,
    data: &TrainingData,
    device: &Device,
    session: Session,
) -> Result<Trained> {
    train_with(optimizer(), config, data, device, session)
}

fn train_with(
    optimizer: ModuleOptimizer,
    config: &RunConfig,
    data: &TrainingData,
    device: &Device,
    session: Session,
) -> Result<Trained> {
    let (training, progress) = (&config.training, session.progress);
    let done = session.resume.rows.len();
    let autodiff = device.clone().autodiff();
    let train_loader = data.train.batches(training.batch_size, &autodiff);
    let train_loader = train_loader.shuffled(training.seed, done + 1);
    let valid_loader = data.valid.batches(EVAL_BATCH, device);
    let bar = progress.bar();
    let recorder = Recorder {
        training: training.clone(),
        history: Arc::new(Mutex::new(session.resume)),
        clock: Arc::new(train_loader.clock()),
        train_images: data.train.count(),
        validates: data.valid.count() > 0,
        folder: session.folder.clone(),
        lines: matches!(progress, Progress::Auto | Progress::Plain).then(|| bar.clone()),
    };
    let folder = session.folder.as_ref().map_or(Path::new(""), Folder::path);
    let mut runner: SupervisedTraining<Classifier> =
        SupervisedTraining::new(folder, Arc::new(train_loader), Arc::new(valid_loader))
            .metrics((ScoreMetric::loss(), ScoreMetric::accuracy()))
            .with_metric_logger(FinalValues::default())
            // Burn's file log has a line per batch and installs a panic hook.
            .with_application_logger(None)
            .early_stopping(recorder.clone())
            .renderer(progress.renderer(&bar, &session.interrupter, done))
            .with_interrupter(session.interrupter)
            .num_epochs(training.epochs);
    if session.folder.is_some() {
        runner = runner
            .with_default_checkpointers()
            .with_checkpointing_strategy(recorder.clone());
    }
    if done > 0 {
        runner = runner.checkpoint(done);
    }

    let model = config.model.init(training.seed, &autodiff);
    let learner = Learner::new(model, optimizer, training.learning_rate);
    let result = catch(|| runner.launch(learner));
    bar.finish_and_clear();
    let result = result.map_err(stopped_or_failed)?;
    if let Some(error) = &result.error {
        bail!("training failed: {error}");
    }
    // The dashboard has the terminal until it is dropped, and leaves nothing on it.
    drop(result.renderer);
    let history = recorder.lock().clone();
    if progress == Progress::Dashboard {
        let rows = history.rows.iter().skip(done);
        rows.for_each(|row| note(&row.line(training.epochs)));
    }
    if session.folder.is_some() && history.has_diverged() {
        let epoch = history.rows.len();
        bail!(
            "training diverged: the loss of epoch {epoch} is not a number. The last good checkpoint \
             is that of epoch {}; start again with a smaller --lr",
            epoch - 1
        );
    }
    Ok(Trained {
        model: result.model,
        history,
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
    use crate::data::{Dataset, EMBEDDED, Scale};
    use crate::model::NormKind;
    use burn_store::burn_pack::Reader;

    fn config(epochs: usize, norm: NormKind) -> (RunConfig, Images) {
        let device = crate::device::resolve("flex").expect("flex");
        let data = Dataset::load(EMBEDDED).expect("embedded");
        let args = NetworkArgs {
            epochs: Some(epochs),
            ..NetworkArgs::default()
        };
        (RunConfig::new(&args, norm, &device, &data), data.train)
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
            ..Session::default()
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

    /// Denormal numbers in what Adam remembers after training with `config`.
    fn denormals(optimizer: ModuleOptimizer, config: &RunConfig, images: &Images) -> usize {
        let temporary = tempfile::tempdir().expect("temporary folder");
        let folder = Folder::new(temporary.path());
        let data = TrainingData::new(config, images).expect("enough images");
        let session = Session {
            folder: Some(folder.clone()),
            ..Session::default()
        };
        train_with(optimizer, config, &data, &Device::flex(), session).expect("trained");
        let path = folder.state(&format!("optim-{}.bpk", config.training.epochs));
        let tensors = Reader::from_file(path)
            .and_then(Reader::into_tensors)
            .expect("a record");
        assert!(tensors.len() >= 8, "two moments of each parameter");
        let values = tensors.into_iter().flat_map(|tensor| {
            let bytes = tensor.into_bytes().expect("its values").to_vec();
            let floats = bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            floats.collect::<Vec<_>>()
        });
        values.filter(|value| value.is_subnormal()).count()
    }

    #[test]
    fn adams_moments_never_become_denormal() {
        for norm in [NormKind::Batch, NormKind::None] {
            let (config, images) = config(6, norm);
            assert_eq!(denormals(optimizer(), &config, &images), 0, "{norm}");
        }
        // The test sees them where nothing is done about them.
        let (mut config, images) = config(6, NormKind::Batch);
        config.scale = Scale {
            mean: 0.0,
            deviation: 1.0,
        };
        let plain = AdamConfig::new().with_epsilon(1e-8).init();
        let count = denormals(plain, &config, &images);
        assert!(count > 500, "{count} denormals");
        assert_eq!(
            denormals(optimizer(), &config, &images),
            0,
            "with the pixels as they are"
        );
    }
}
