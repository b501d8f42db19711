//! Running statistics: what inference normalizes with.
//!
//! ```text
//! running = (1 - weight) * running + weight * batch
//! ```
//!
//! `weight` is the weight of the *new* batch (PyTorch and Burn call it momentum; Keras and Flax call `1 - weight` so). The output of training
//! is always normalized with the biased variance `m2 / n`; which one goes into the running variance is a matter of convention: the unbiased
//! `m2 / (n - 1)` in the paper and PyTorch, the biased one in Keras and Flax.

use crate::layout::expect_length;
use crate::{Accum, Error};

/// How much a batch counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Averaging {
    /// The batch has this weight, the past the rest; in `0..=1`. At 0 nothing changes, at 1 the past is forgotten, even if it was NaN.
    Exponential(f64),
    /// All batches so far count the same; `batches` is their number including this one, at least 1.
    Cumulative {
        /// Number of batches, including this one.
        batches: u64,
    },
}

/// Which variance is averaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Estimator {
    /// `m2 / (n - 1)`. A single value has no unbiased variance: for `n = 1` the biased one (0) is taken.
    #[default]
    Unbiased,
    /// `m2 / n`.
    Biased,
}

/// How running statistics follow the statistics of a batch.
///
/// ```
/// use batchnorm_cpu::{Averaging, Estimator, RunningUpdate};
/// let update = RunningUpdate { averaging: Averaging::Exponential(0.1), estimator: Estimator::Unbiased };
/// let (mut mean, mut variance) = ([0.0f32], [1.0f32]);
/// update.apply(2, &[2.0], &[1.0], &mut mean, &mut variance)?;
/// assert_eq!((mean, variance), ([0.2], [1.1])); // 0.9 * 1 + 0.1 * (1 * 2/1)
/// # Ok::<(), batchnorm_cpu::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RunningUpdate {
    /// The weight of the batch.
    pub averaging: Averaging,
    /// The variance that is averaged.
    pub estimator: Estimator,
}

impl RunningUpdate {
    /// Updates `running_mean` and `running_variance` with the `mean` and biased `variance` of a batch of `samples` values per channel.
    ///
    /// Without samples nothing changes.
    ///
    /// # Errors
    ///
    /// [`Error::Length`] unless all slices have the same length, [`Error::Value`] for a weight outside of its range.
    pub fn apply<A: Accum>(
        &self,
        samples: usize,
        mean: &[A],
        variance: &[A],
        running_mean: &mut [A],
        running_variance: &mut [A],
    ) -> Result<(), Error> {
        let channels = mean.len();
        for (name, len) in [
            ("variance", variance.len()),
            ("running_mean", running_mean.len()),
            ("running_variance", running_variance.len()),
        ] {
            expect_length(name, channels, "channels", len)?;
        }
        let weight = self.weight()?;
        if samples == 0 {
            return Ok(());
        }
        let correction = self.correction(samples);
        for (running, batch, factor) in [
            (running_mean, mean, 1.0),
            (running_variance, variance, correction),
        ] {
            for (running, batch) in running.iter_mut().zip(batch) {
                *running = A::from_f64(blend(running.to_f64(), batch.to_f64() * factor, weight));
            }
        }
        Ok(())
    }

    /// The weight of the new batch.
    ///
    /// # Errors
    ///
    /// [`Error::Value`] if it is outside of its range.
    pub fn weight(&self) -> Result<f64, Error> {
        let refuse = |name, expected, got: String| {
            Err(Error::Value {
                name,
                expected,
                got,
            })
        };
        match self.averaging {
            Averaging::Exponential(weight) if (0.0..=1.0).contains(&weight) => Ok(weight),
            Averaging::Exponential(weight) => {
                refuse("momentum", "between 0 and 1", weight.to_string())
            }
            Averaging::Cumulative { batches: 0 } => refuse("batches", "at least 1", "0".into()),
            Averaging::Cumulative { batches } => Ok(1.0 / batches as f64),
        }
    }

    /// What the biased variance of `samples` values is multiplied with.
    pub fn correction(&self, samples: usize) -> f64 {
        match (self.estimator, samples) {
            (Estimator::Biased, _) | (_, 0 | 1) => 1.0,
            (Estimator::Unbiased, n) => n as f64 / (n - 1) as f64,
        }
    }
}

/// The end points are exact: zero times a NaN of the side that does not count must not come through.
fn blend(old: f64, new: f64, weight: f64) -> f64 {
    match weight {
        0.0 => old,
        1.0 => new,
        _ => (1.0 - weight) * old + weight * new,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn updated(
        averaging: Averaging,
        estimator: Estimator,
        samples: usize,
        start: [f64; 2],
    ) -> [f64; 2] {
        let ([mut mean], [mut variance]) = ([start[0]], [start[1]]);
        let update = RunningUpdate {
            averaging,
            estimator,
        };
        let (m, v) = (
            std::slice::from_mut(&mut mean),
            std::slice::from_mut(&mut variance),
        );
        update.apply(samples, &[5.0], &[8.0], m, v).expect("valid");
        [mean, variance]
    }

    #[test]
    fn the_weight_belongs_to_the_new_batch() {
        assert_eq!(
            updated(
                Averaging::Exponential(0.25),
                Estimator::Biased,
                4,
                [1.0, 4.0]
            ),
            [2.0, 5.0]
        );
    }

    #[test]
    fn the_unbiased_variance_is_larger_by_n_over_n_minus_1() {
        assert_eq!(
            updated(
                Averaging::Exponential(1.0),
                Estimator::Unbiased,
                5,
                [0.0, 1.0]
            ),
            [5.0, 10.0]
        );
        assert_eq!(
            updated(
                Averaging::Exponential(1.0),
                Estimator::Unbiased,
                1,
                [0.0, 1.0]
            ),
            [5.0, 8.0]
        );
    }

    #[test]
    fn cumulative_averages_weigh_all_batches_alike() {
        let update = |batches, value: f64, running: &mut f64| {
            let averaging = Averaging::Cumulative { batches };
            let update = RunningUpdate {
                averaging,
                estimator: Estimator::Biased,
            };
            update
                .apply(
                    2,
                    &[value],
                    &[0.0],
                    std::slice::from_mut(running),
                    &mut [0.0],
                )
                .expect("valid");
        };
        let mut running = f64::NAN;
        update(1, 2.0, &mut running);
        update(2, 7.0, &mut running);
        update(3, 6.0, &mut running);
        assert!((running - 5.0).abs() < 1e-15);
    }

    #[test]
    fn the_ends_of_the_range_are_exact_and_heal_nan() {
        assert_eq!(
            updated(
                Averaging::Exponential(0.0),
                Estimator::Biased,
                4,
                [1.5, 2.5]
            ),
            [1.5, 2.5]
        );
        assert_eq!(
            updated(
                Averaging::Exponential(1.0),
                Estimator::Biased,
                4,
                [f64::NAN; 2]
            ),
            [5.0, 8.0]
        );
    }

    #[test]
    fn without_samples_nothing_changes() {
        assert_eq!(
            updated(
                Averaging::Exponential(0.5),
                Estimator::Unbiased,
                0,
                [1.5, 2.5]
            ),
            [1.5, 2.5]
        );
    }

    #[test]
    fn wrong_weights_and_lengths_are_refused() {
        for averaging in [
            Averaging::Exponential(-0.1),
            Averaging::Exponential(1.1),
            Averaging::Exponential(f64::NAN),
            Averaging::Cumulative { batches: 0 },
        ] {
            let update = RunningUpdate {
                averaging,
                estimator: Estimator::Biased,
            };
            assert!(matches!(
                update.apply(2, &[0.0], &[0.0], &mut [0.0], &mut [0.0]),
                Err(Error::Value { .. })
            ));
        }
        let update = RunningUpdate {
            averaging: Averaging::Exponential(0.1),
            estimator: Estimator::Biased,
        };
        assert!(
            update
                .apply(2, &[0.0], &[0.0; 2], &mut [0.0], &mut [0.0])
                .is_err()
        );
        assert!(
            update
                .apply(2, &[0.0], &[0.0], &mut [0.0; 2], &mut [0.0])
                .is_err()
        );
        assert!(
            update
                .apply(2, &[0.0], &[0.0], &mut [0.0], &mut [])
                .is_err()
        );
    }
}
