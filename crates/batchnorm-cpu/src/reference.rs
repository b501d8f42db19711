//! The naive forward and backward pass in `f64`: what tests and benches compare with.
//!
//! One value after the other, textbook formulas, no blocks and no fusion. It shares no code with the kernels, activations included, and is itself
//! checked by finite differences (below).

use std::f64::consts::PI;

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

/// The value of an activation at `v`, by its definition.
pub fn value(activation: Activation, v: f64) -> f64 {
    if v.is_nan() {
        return v;
    }
    match activation {
        Activation::None => v,
        Activation::Relu => v.max(0.0),
        Activation::LeakyRelu(slope) if v < 0.0 => slope * v,
        Activation::LeakyRelu(_) => v,
        Activation::Relu6 => v.clamp(0.0, 6.0),
        Activation::Clamp { min, max } => v.clamp(min, max),
        // 0 at negative infinity, where the formulas have infinity times 0.
        Activation::Silu | Activation::Gelu | Activation::GeluTanh | Activation::HardSwish
            if v == f64::NEG_INFINITY =>
        {
            0.0
        }
        Activation::Silu => v * logistic(v),
        Activation::Gelu => v * normal(v),
        Activation::GeluTanh => v * logistic(2.0 * inner(v)),
        Activation::HardSwish => v * ((v + 3.0).clamp(0.0, 6.0) / 6.0),
        Activation::Sigmoid => logistic(v),
        Activation::Tanh => v.tanh(),
    }
}

fn logistic(v: f64) -> f64 {
    match v < 0.0 {
        true => v.exp() / (1.0 + v.exp()),
        false => 1.0 / (1.0 + (-v).exp()),
    }
}

/// The argument of GELU's tanh.
fn inner(v: f64) -> f64 {
    (2.0 / PI).sqrt() * (v + 0.044715 * v.powi(3))
}

/// The density of the standard normal.
fn density(v: f64) -> f64 {
    (-v * v / 2.0).exp() / (2.0 * PI).sqrt()
}

/// Its distribution function: near 0 by its series, further out by the continued fraction of the tail (Abramowitz and Stegun 26.2.11 and 26.2.14).
fn normal(v: f64) -> f64 {
    if v.abs() < 2.5 {
        let (mut term, mut sum) = (v, v);
        for n in 1..60 {
            term *= v * v / f64::from(2 * n + 1);
            sum += term;
        }
        return 0.5 + density(v) * sum;
    }
    let fraction = (1..200)
        .rev()
        .fold(v.abs(), |tail, n| v.abs() + f64::from(n) / tail);
    let tail = density(v) / fraction;
    if v < 0.0 { tail } else { 1.0 - tail }
}

/// The derivative of a smooth activation at a finite `v`.
fn slope(activation: Activation, v: f64) -> f64 {
    let bell = |v: f64| logistic(v) * logistic(-v);
    match activation {
        Activation::Silu => logistic(v) + v * bell(v),
        Activation::Gelu => normal(v) + v * density(v),
        Activation::GeluTanh => {
            let steep = 2.0 * (2.0 / PI).sqrt() * (1.0 + 3.0 * 0.044715 * v * v);
            logistic(2.0 * inner(v)) + v * steep * bell(2.0 * inner(v))
        }
        Activation::HardSwish if v <= -3.0 => 0.0,
        Activation::HardSwish if v >= 3.0 => 1.0,
        Activation::HardSwish => v / 3.0 + 0.5,
        Activation::Sigmoid => bell(v),
        Activation::Tanh => 4.0 * bell(2.0 * v),
        other => panic!("{other:?} is piecewise linear"),
    }
}

/// `dy` times the derivative of an activation at `v`: 0 where the activation is flat, whatever `dy` is.
pub fn gradient(activation: Activation, v: f64, dy: f64) -> f64 {
    let inside = |min: f64, max: f64| if v <= min || v >= max { 0.0 } else { dy };
    match activation {
        Activation::None => dy,
        Activation::Relu if v <= 0.0 => 0.0,
        Activation::Relu => dy,
        Activation::LeakyRelu(0.0) if v <= 0.0 => 0.0,
        Activation::LeakyRelu(slope) if v <= 0.0 => slope * dy,
        Activation::LeakyRelu(_) => dy,
        Activation::Relu6 => inside(0.0, 6.0),
        Activation::Clamp { min, max } => inside(min, max),
        // At an infinity the derivative is its limit.
        _ => match slope(activation, v.clamp(-1e9, 1e9)) {
            0.0 => 0.0,
            slope => dy * slope,
        },
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    const ACTIVATIONS: [Activation; 10] = [
        Activation::None,
        Activation::Relu,
        Activation::LeakyRelu(0.2),
        Activation::Clamp {
            min: -0.7,
            max: 0.9,
        },
        Activation::Silu,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::HardSwish,
        Activation::Sigmoid,
        Activation::Tanh,
    ];

    type Loss<'a> = &'a dyn Fn(&Problem) -> f64;

    fn waves(n: usize, phase: f64) -> Vec<f64> {
        (0..n)
            .map(|i| (i as f64 * 1.7 + phase).sin() + 0.3 * (i as f64 * 0.31 + phase).cos())
            .collect()
    }

    fn problem(activation: Activation) -> Problem {
        let layout = Layout::new(3, 2, 4).expect("small");
        let n = layout.elements();
        Problem {
            layout,
            x: waves(n, 0.1),
            residual: Some(waves(n, 2.0)),
            gamma: vec![1.3, -0.6],
            beta: vec![0.2, 0.5],
            epsilon: 1e-3,
            activation,
        }
    }

    /// The gradient of `loss` with respect to a vector of the problem, by central differences.
    fn differences(
        problem: &Problem,
        select: fn(&mut Problem) -> &mut Vec<f64>,
        loss: impl Fn(&Problem) -> f64,
    ) -> Vec<f64> {
        const STEP: f64 = 1e-6;
        let mut moved = problem.clone();
        (0..select(&mut moved).len())
            .map(|i| {
                let mut at = |delta: f64| {
                    select(&mut moved)[i] += delta;
                    let value = loss(&moved);
                    select(&mut moved)[i] -= delta;
                    value
                };
                (at(STEP) - at(-STEP)) / (2.0 * STEP)
            })
            .collect()
    }

    fn assert_close(got: &[f64], expected: &[f64], what: &str) {
        assert!(
            got.iter().any(|g| g.abs() > 1e-3),
            "{what}: a gradient of zeros shows nothing"
        );
        for (g, e) in got.iter().zip(expected) {
            assert!((g - e).abs() < 1e-7, "{what}: {g} {e}");
        }
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        for activation in ACTIVATIONS {
            let problem = problem(activation);
            let dy = waves(problem.x.len(), 5.0);
            let dot = |y: Vec<f64>| y.iter().zip(&dy).map(|(y, dy)| y * dy).sum::<f64>();
            let fixed = Used {
                mean: vec![0.3, -0.2],
                inv_std: vec![1.5, 0.4],
            };
            let weights: Vec<f64> = (0..dy.len())
                .map(|i| [0.0, 1.0, 0.3, 2.0, 1.0][i % 5])
                .collect();
            let train = |p: &Problem| dot(p.forward(&p.batch()));
            let weighted = |p: &Problem| dot(p.forward(&p.weighted(&weights)));
            let infer = |p: &Problem| dot(p.forward(&fixed));
            let used = problem.weighted(&weights);
            let checks: [(&Gradients, Loss<'_>); 3] = [
                (&problem.weighted_backward(&used, &dy, &weights), &weighted),
                (&problem.train_backward(&problem.batch(), &dy), &train),
                (&problem.inference_backward(&fixed, &dy), &infer),
            ];
            for (gradients, loss) in checks {
                assert_close(
                    &gradients.x,
                    &differences(&problem, |p| &mut p.x, loss),
                    "x",
                );
                assert_close(
                    &gradients.gamma,
                    &differences(&problem, |p| &mut p.gamma, loss),
                    "gamma",
                );
                assert_close(
                    &gradients.beta,
                    &differences(&problem, |p| &mut p.beta, loss),
                    "beta",
                );
                let by_residual =
                    differences(&problem, |p| p.residual.as_mut().expect("has one"), loss);
                assert_close(&gradients.residual, &by_residual, "residual");
            }
        }
    }

    #[test]
    fn activations_follow_their_definitions() {
        let clamp = Activation::Clamp {
            min: -1.0,
            max: 2.0,
        };
        let cases = [
            (Activation::None, -3.0, -3.0, 1.0),
            (Activation::Relu, -3.0, 0.0, 0.0),
            (Activation::Relu, 0.0, 0.0, 0.0),
            (Activation::Relu, 3.0, 3.0, 1.0),
            (Activation::Relu, f64::NEG_INFINITY, 0.0, 0.0),
            (Activation::LeakyRelu(0.1), -2.0, -0.2, 0.1),
            (Activation::LeakyRelu(0.1), 2.0, 2.0, 1.0),
            (Activation::Relu6, 5.0, 5.0, 1.0),
            (Activation::Relu6, 6.0, 6.0, 0.0),
            (Activation::Relu6, 7.0, 6.0, 0.0),
            (clamp, -1.5, -1.0, 0.0),
            (clamp, 1.5, 1.5, 1.0),
            (clamp, 2.5, 2.0, 0.0),
        ];
        for (act, v, expected, derivative) in cases {
            assert_eq!(
                (value(act, v), gradient(act, v, 1.0)),
                (expected, derivative),
                "{act:?} at {v}"
            );
        }
        assert!(value(Activation::Relu, f64::NAN).is_nan());
        assert_eq!(gradient(Activation::Relu, -1.0, f64::INFINITY), 0.0);
    }

    /// Computed with mpmath 1.3, 40 digits.
    #[test]
    fn curves_have_the_values_of_their_definitions() {
        let cases = [
            (
                Activation::Silu,
                -9.0,
                -0.0011105511838760856,
                -0.000_987_019_571_897_408_4,
            ),
            (
                Activation::Silu,
                0.75,
                0.509_384_024_381_544_7,
                0.842_599_944_496_753_5,
            ),
            (
                Activation::Gelu,
                -9.0,
                -1.0157295653584566e-18,
                -9.138_937_373_906_64e-18,
            ),
            (
                Activation::Gelu,
                -2.5,
                -0.015524163314440338,
                -0.037_611_085_908_145_21,
            ),
            (
                Activation::Gelu,
                0.75,
                0.580_029_485_717_348_9,
                0.999_225_721_739_235_1,
            ),
            (
                Activation::Gelu,
                4.0,
                3.999_873_315_032_667_5,
                1.000_503_649_661_226_4,
            ),
            (
                Activation::GeluTanh,
                -2.5,
                -0.015084266089998582,
                -0.037951576212666183,
            ),
            (
                Activation::GeluTanh,
                0.75,
                0.579_960_555_165_620_3,
                0.998_938_256_137_414_3,
            ),
            (
                Activation::Sigmoid,
                -9.0,
                0.000_123_394_575_986_231_73,
                0.000_123_379_349_764_848_9,
            ),
            (
                Activation::Sigmoid,
                4.0,
                0.982_013_790_037_908_4,
                0.017662706213291116,
            ),
            (
                Activation::Tanh,
                -9.0,
                -0.999_999_969_540_041,
                6.091_991_712_323_229e-8,
            ),
            (
                Activation::Tanh,
                0.75,
                0.635_148_952_387_287_3,
                0.596_585_808_281_331_4,
            ),
        ];
        for (act, v, expected, derivative) in cases {
            let close = |got: f64, expected: f64| (got / expected - 1.0).abs() < 1e-14;
            assert!(
                close(value(act, v), expected),
                "{act:?} at {v}: {}",
                value(act, v)
            );
            let got = gradient(act, v, 1.0);
            assert!(close(got, derivative), "{act:?} at {v}: {got}");
        }
        for act in [Activation::Silu, Activation::HardSwish, Activation::Gelu] {
            assert_eq!((value(act, f64::NEG_INFINITY), value(act, 1e9)), (0.0, 1e9));
        }
    }

    #[test]
    fn statistics_of_a_known_example() {
        let mut problem = problem(Activation::None);
        problem.layout = Layout::new(2, 1, 2).expect("small");
        problem.x = vec![1.0, 3.0, 5.0, 9.0];
        assert_eq!(problem.statistics(), [vec![4.5], vec![8.75]]);
    }
}
