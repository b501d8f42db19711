//! Training without the Learner, to measure it against and to look into the optimizer.

use std::time::Instant;

use burn::data::dataloader::DataLoader;
use burn::nn::loss::CrossEntropyLossConfig;
use burn::optim::{GradientsParams, ModuleOptimizer};
use burn::tensor::Device;

use super::{TrainingData, optimizer};
use crate::config::RunConfig;
use crate::data::EpochTime;

/// The same training without the Learner: batches, forward, backward, Adam and nothing else. The
/// benchmark compares [`train`](super::train) with it. Returns the time of each epoch, measured the same way.
pub fn bare_loop(config: &RunConfig, data: &TrainingData, device: &Device) -> Vec<EpochTime> {
    bare_loop_with(optimizer(), config, data, device).0
}

fn bare_loop_with(
    mut optimizer: ModuleOptimizer,
    config: &RunConfig,
    data: &TrainingData,
    device: &Device,
) -> (Vec<EpochTime>, ModuleOptimizer) {
    let autodiff = device.clone().autodiff();
    let loader = data.train_loader(config, 1, &autodiff);
    let mut model = config.model.init(config.training.seed, &autodiff);
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
    (times, optimizer)
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::data::{Images, Scale};
    use crate::model::NormKind;
    use crate::training::tests::config;
    use burn::optim::AdamConfig;
    use burn_store::burn_pack::Reader;

    /// Denormal numbers in what Adam remembers after training with `config`.
    fn denormals(optimizer: ModuleOptimizer, config: &RunConfig, images: &Images) -> usize {
        let data = TrainingData::new(config, images).expect("enough images");
        let (_, optimizer) = bare_loop_with(optimizer, config, &data, &Device::flex());
        let bytes = optimizer.into_bytes().expect("a record");
        let tensors = Reader::from_bytes(bytes)
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
