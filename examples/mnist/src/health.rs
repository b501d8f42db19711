//! The command `health`: what is wrong with the batch normalization of a saved network.

use std::fmt::{Display, Formatter};

use anyhow::Result;
use burn::data::dataloader::DataLoader;
use burn::tensor::Tensor;
use burn_batchnorm::{Health, Recalibration};
use serde::Serialize;

use crate::cli::EvalArgs;
use crate::data::{Batch, Dataset, Samples};
use crate::eval::{EVAL_BATCH, SavedRun};
use crate::folder::HEALTH;
use crate::model::Classifier;
use crate::plots;

/// What `health` prints as JSON.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Where the images come from.
    pub data: String,
    /// The device.
    pub device: String,
    /// Images that the layer was examined on.
    pub test_images: usize,
    /// Whether the layer's report finds nothing.
    pub healthy: bool,
    /// The layer's report.
    #[serde(flatten)]
    pub health: Health,
    /// The layer channel by channel: what the picture shows.
    pub channels: Channels,
    /// The picture.
    pub picture: std::path::PathBuf,
}

/// A value for each channel of the layer.
#[derive(Debug, Serialize)]
pub struct Channels {
    /// Mean that inference normalizes by.
    pub running_mean: Vec<f32>,
    /// Variance that inference normalizes by.
    pub running_var: Vec<f32>,
    /// Mean over the test images.
    pub test_mean: Vec<f32>,
    /// Variance over the test images, as the running one is estimated.
    pub test_var: Vec<f32>,
    /// How far `test_mean` is from `running_mean`, in deviations that inference divides by.
    pub mean_drift: Vec<f32>,
    /// `ln(test_var / running_var)`, epsilon added to both.
    pub variance_drift: Vec<f32>,
    /// Factor after the normalization.
    pub gamma: Vec<f32>,
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let verdict = match self.healthy {
            true => "healthy",
            false => "not healthy: see the layers with an arrow",
        };
        let (images, health, picture) = (self.test_images, &self.health, self.picture.display());
        write!(
            f,
            "{images} test images\n{health}{verdict}\nwritten: {picture}\n"
        )
    }
}

/// Examines a saved network on test images, and draws the picture into its folder.
pub fn run(args: &EvalArgs) -> Result<Report> {
    let SavedRun {
        folder,
        config,
        device,
        model,
    } = SavedRun::open(&args.model)?;
    let layer = model.batch_norm()?;
    let data = Dataset::load(args.data.as_deref().unwrap_or(&config.data))?;
    let samples = Samples::new(&data.test, config.model.input, config.scale);
    let loader = samples.batches(EVAL_BATCH, &device.device());
    let batches = || loader.iter().flatten();
    let pass = |model: &Classifier, batch: Batch| {
        model.forward(batch.inputs);
    };
    let health = burn_batchnorm::health(&model, batches(), pass);
    let population = Recalibration::Population;
    let of_test = burn_batchnorm::recalibrate(model.clone(), population, batches(), pass);
    let of_test = of_test.batch_norm()?;
    let values = |tensor: &Tensor<1>| tensor.to_data().iter::<f32>().collect();
    let (mean, test_mean) = (layer.running_mean.value(), of_test.running_mean.value());
    let (variance, test_variance) = (layer.running_var.value(), of_test.running_var.value());
    let divisor = variance.clone() + layer.epsilon;
    let ratio = (test_variance.clone() + layer.epsilon) / divisor.clone();
    let channels = Channels {
        running_mean: values(&mean),
        running_var: values(&variance),
        test_mean: values(&test_mean),
        test_var: values(&test_variance),
        mean_drift: values(&((test_mean - mean) / divisor.sqrt())),
        variance_drift: values(&ratio.log()),
        gamma: values(&layer.gamma.val()),
    };
    let picture = folder.file(HEALTH);
    plots::health(&picture, &health.layers[0], &channels)?;
    Ok(Report {
        data: data.name,
        device: device.name,
        test_images: samples.count(),
        healthy: health.is_healthy(),
        health,
        channels,
        picture,
    })
}
