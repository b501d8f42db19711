//! The naive forward and backward pass in `f64`: what tests and benches compare with.
//!
//! One value after the other, textbook formulas, no blocks and no fusion. It shares no code with the kernels, activations included, and is itself
//! checked by finite differences (below).

mod activation;
#[cfg(test)]
mod tests;

pub use activation::{gradient, value};

use crate::{Activation, Layout};

/// The inputs of a forward pass.
#[derive(Debug, Clone)]
pub struct Problem {
    /// The shape.
    pub layout: Layout,
    /// The input, `[outer, channels, inner]`.
    pub x: Vec<f64>,
    /// Added before the activation.
    pub residual: Option<Vec<f64>>,
    /// The factor per channel.
    pub gamma: Vec<f64>,
    /// The shift per channel.
    pub beta: Vec<f64>,
    /// Added to the variance.
    pub epsilon: f64,
    /// Applied last.
    pub activation: Activation,
}

/// Mean and `1 / sqrt(variance + epsilon)` per channel, as a pass uses them.
#[derive(Debug, Clone)]
pub struct Used {
    /// The mean.
    pub mean: Vec<f64>,
    /// The reciprocal standard deviation.
    pub inv_std: Vec<f64>,
}

/// The gradients of a pass.
#[derive(Debug, Clone)]
pub struct Gradients {
    /// Of the input.
    pub x: Vec<f64>,
    /// Of the residual: the gradient before the activation.
    pub residual: Vec<f64>,
    /// Of gamma.
    pub gamma: Vec<f64>,
    /// Of beta.
    pub beta: Vec<f64>,
}

impl Problem {
    fn channel(&self, index: usize) -> usize {
        index / self.layout.inner() % self.layout.channels()
    }

    /// Sums `f(index)` over the elements of each channel.
    fn sum(&self, f: impl Fn(usize) -> f64) -> Vec<f64> {
        let mut sums = vec![0.0; self.layout.channels()];
        (0..self.x.len()).for_each(|i| sums[self.channel(i)] += f(i));
        sums
    }

    /// The mean and the biased variance of each channel; zero without samples.
    pub fn statistics(&self) -> [Vec<f64>; 2] {
        let n = self.layout.samples_per_channel().max(1) as f64;
        let mean = self.sum(|i| self.x[i] / n);
        let variance = self.sum(|i| (self.x[i] - mean[self.channel(i)]).powi(2) / n);
        [mean, variance]
    }

    /// What training normalizes with.
    pub fn batch(&self) -> Used {
        let [mean, variance] = self.statistics();
        let inv_std = variance
            .iter()
            .map(|v| 1.0 / (v + self.epsilon).sqrt())
            .collect();
        Used { mean, inv_std }
    }

    /// Mean, biased variance and sum of weights of each channel, of positions with these weights. Those of weight 0 are left out.
    pub fn weighted_statistics(&self, weights: &[f64]) -> [Vec<f64>; 3] {
        let present = |i: usize, value: f64| if weights[i] == 0.0 { 0.0 } else { value };
        let sums = self.sum(|i| weights[i]);
        let share = |i: usize| weights[i] / sums[self.channel(i)];
        let mean = self.sum(|i| present(i, share(i) * self.x[i]));
        let mut variance = self.sum(|i| {
            let d = self.x[i] - mean[self.channel(i)];
            present(i, share(i) * d * d)
        });
        let nothing = |(_, sum): &(&mut f64, &f64)| **sum == 0.0;
        let unknown = variance.iter_mut().zip(&sums).filter(nothing);
        unknown.for_each(|(variance, _)| *variance = 1.0);
        [mean, variance, sums]
    }

    /// What training with weighted positions normalizes with.
    pub fn weighted(&self, weights: &[f64]) -> Used {
        let [mean, variance, _] = self.weighted_statistics(weights);
        let inv_std = |v: &f64| 1.0 / (v + self.epsilon).sqrt();
        Used {
            inv_std: variance.iter().map(inv_std).collect(),
            mean,
        }
    }

    /// The gradients, where `used` are the statistics of weighted positions. Where x is not finite and has no weight, its mean takes its place.
    pub fn weighted_backward(&self, used: &Used, dy: &[f64], weights: &[f64]) -> Gradients {
        let mut problem = self.clone();
        for (i, x) in problem.x.iter_mut().enumerate() {
            if weights[i] == 0.0 && !x.is_finite() {
                *x = used.mean[self.channel(i)];
            }
        }
        let [_, _, sums] = problem.weighted_statistics(weights);
        let mut gradients = problem.inference_backward(used, dy);
        for (i, dx) in gradients.x.iter_mut().enumerate() {
            let c = self.channel(i);
            if weights[i] > 0.0 {
                let normalized = (problem.x[i] - used.mean[c]) * used.inv_std[c];
                let through = gradients.beta[c] + normalized * gradients.gamma[c];
                *dx -= self.gamma[c] * used.inv_std[c] * weights[i] / sums[c] * through;
            }
        }
        gradients
    }

    fn pre_activation(&self, used: &Used, i: usize) -> f64 {
        let c = self.channel(i);
        let normalized = (self.x[i] - used.mean[c]) * used.inv_std[c];
        normalized * self.gamma[c] + self.beta[c] + self.residual.as_ref().map_or(0.0, |r| r[i])
    }

    /// The output.
    pub fn forward(&self, used: &Used) -> Vec<f64> {
        (0..self.x.len())
            .map(|i| value(self.activation, self.pre_activation(used, i)))
            .collect()
    }

    /// The gradients, where `used` are constants: inference.
    pub fn inference_backward(&self, used: &Used, dy: &[f64]) -> Gradients {
        let residual: Vec<f64> = (0..self.x.len())
            .map(|i| gradient(self.activation, self.pre_activation(used, i), dy[i]))
            .collect();
        let normalized =
            |i: usize| (self.x[i] - used.mean[self.channel(i)]) * used.inv_std[self.channel(i)];
        let scaled =
            |i: usize| residual[i] * self.gamma[self.channel(i)] * used.inv_std[self.channel(i)];
        Gradients {
            x: (0..self.x.len()).map(scaled).collect(),
            gamma: self.sum(|i| residual[i] * normalized(i)),
            beta: self.sum(|i| residual[i]),
            residual,
        }
    }

    /// The gradients, where `used` are the statistics of the batch: training.
    pub fn train_backward(&self, used: &Used, dy: &[f64]) -> Gradients {
        let n = self.layout.samples_per_channel().max(1) as f64;
        let mut gradients = self.inference_backward(used, dy);
        for (i, dx) in gradients.x.iter_mut().enumerate() {
            let c = self.channel(i);
            let (scale, normalized) = (
                self.gamma[c] * used.inv_std[c],
                (self.x[i] - used.mean[c]) * used.inv_std[c],
            );
            *dx -= scale * (gradients.beta[c] + normalized * gradients.gamma[c]) / n;
        }
        gradients
    }
}
