//! What `compare` compares: a normalization, or a remedy for what small batches do to it.
//!
//! Plain batch norm trains by the mean and variance of a batch, and infers by averages over many. The
//! fewer values a batch has, the less the two agree: the statistics of a batch of two are noise, and the
//! network learns to live with noise that it does not meet again. The remedies bring the two together,
//! in training (`Renorm`, `Blend`) or after it (`Recalibrated`). `Ghost` does the opposite: large batches
//! get the noise of smaller ones, which regularizes.

use burn_batchnorm::{Bound, Ghost, Reference, Renorm, Statistics};
use serde::Serialize;

use crate::model::NormKind;

/// The most images of a ghost batch.
const GHOST: usize = 8;
/// Weight of the batch in a blend with the running statistics.
const BLEND: f64 = 0.5;
/// The learning rate at [`BATCH_SIZE`] images; Adam's rate goes with the square root of the batch size
/// (<https://arxiv.org/abs/2205.10287>).
const RATE: f64 = 1e-3;
/// See [`RATE`].
const BATCH_SIZE: f64 = 32.0;
/// Shares of the steps of a run: the bounds of renormalization begin to open at the first, `d_max` is
/// open at the second, `r_max` at the third.
const RAMP: [f64; 3] = [0.05, 0.2, 0.3];

/// A kind of training that is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// This project's layer.
    Batch,
    /// The layer of burn-nn.
    Burn,
    /// No normalization.
    None,
    /// As `Batch`, with running statistics computed anew from the training images afterwards.
    Recalibrated,
    /// Normalized by half the batch's statistics and half the running ones.
    Blend,
    /// Batch renormalization.
    Renorm,
    /// Ghost batches of 8 images.
    Ghost,
}

impl Method {
    /// Those of `--batch-sizes` unless others are asked for.
    pub const AGAINST_SMALL_BATCHES: [Self; 6] = [
        Self::None,
        Self::Batch,
        Self::Recalibrated,
        Self::Blend,
        Self::Renorm,
        Self::Ghost,
    ];

    /// The layer.
    pub fn norm(self) -> NormKind {
        match self {
            Self::None => NormKind::None,
            Self::Burn => NormKind::Burn,
            _ => NormKind::Batch,
        }
    }

    /// What the layer normalizes by in a training run of this many steps.
    pub fn statistics(self, steps: f64) -> Statistics {
        match self {
            Self::Batch | Self::Burn | Self::None | Self::Recalibrated => Statistics::Batch,
            Self::Blend => Statistics::Blend { batch: BLEND },
            Self::Renorm => {
                let [from, d_until, r_until] = RAMP.map(|share| (share * steps) as u64);
                let ramp = |start, end, until| Bound::Ramp {
                    start,
                    end,
                    from,
                    until,
                };
                Statistics::Renorm(Renorm {
                    r_min: None,
                    r_max: ramp(1.0, 3.0, r_until),
                    d_max: ramp(0.0, 5.0, d_until),
                    reference: Reference::Running,
                })
            }
            Self::Ghost => Statistics::Ghost(Ghost::new(GHOST)),
        }
    }

    /// Whether it differs from plain batch norm at this batch size.
    pub fn suits(self, batch_size: usize) -> bool {
        self != Self::Ghost || batch_size > GHOST
    }
}

impl std::fmt::Display for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&format!("{self:?}").to_lowercase())
    }
}

/// The learning rate for batches of this many images.
pub fn learning_rate(batch_size: usize) -> f64 {
    RATE * (batch_size as f64 / BATCH_SIZE).sqrt()
}

/// What is the same, and what is not, in runs with different batch sizes.
pub fn settings() -> String {
    let [from, d_until, r_until] = RAMP.map(|share| 100.0 * share);
    format!(
        "Of a seed, every run sees the same images in the same order. Adam's rate is {RATE} * sqrt(batch size / {BATCH_SIZE}).\n\
         The layer has its defaults (momentum 0.1), but\n\
         recalibrated  is batch, tested with running statistics of all training images, computed afterwards\n\
         blend         normalizes by {BLEND} * the batch's statistics + {} * the running ones\n\
         renorm        is batch renormalization: over {from}% to {r_until}% of the steps r_max goes from 1 to 3, over {from}% \
         to {d_until}% d_max from 0 to 5\n\
         ghost         normalizes parts of {GHOST} images; at {GHOST} and below it would be batch\n",
        1.0 - BLEND
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renormalization_opens_within_the_run() {
        let Statistics::Renorm(renorm) = Method::Renorm.statistics(1000.0) else {
            panic!("renorm")
        };
        let ramp = |start, end, until| Bound::Ramp {
            start,
            end,
            from: 50,
            until,
        };
        assert_eq!(
            (renorm.r_max, renorm.d_max),
            (ramp(1.0, 3.0, 300), ramp(0.0, 5.0, 200))
        );
    }

    #[test]
    fn rates_go_with_the_root_of_the_batch() {
        assert_eq!([2, 32, 128].map(learning_rate), [0.00025, 0.001, 0.002]);
    }
}
