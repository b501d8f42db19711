//! The forward and the backward of a training step, on buffers of their own: what the example times and the tests count.

use batchnorm_cube::*;
use cubecl::prelude::*;
use cubecl::server::Handle;

/// The shapes of the suite.
pub const SHAPES: [(&str, &[usize]); 12] = [
    ("n32_c64_hw56x56", &[32, 64, 56, 56]),
    ("n32_c256_hw56x56", &[32, 256, 56, 56]),
    ("n1024_c512", &[1024, 512]),
    ("n4096_c1024", &[4096, 1024]),
    ("n64_c128_l256", &[64, 128, 256]),
    ("n32_c2048_hw7x7", &[32, 2048, 7, 7]),
    ("n8_c256_hw28x28", &[8, 256, 28, 28]),
    ("n1_c64_hw224x224", &[1, 64, 224, 224]),
    ("n32_c50", &[32, 50]),
    ("n128_c512", &[128, 512]),
    ("n32_c512_hw28x28", &[32, 512, 28, 28]),
    ("n4_c32_dhw16x28x28", &[4, 32, 16, 28, 28]),
];

/// A training step of `f32` tensors, with running statistics and all gradients.
pub struct Training<'a> {
    client: &'a Client,
    problem: Problem,
    x: &'a Handle,
    dy: &'a Handle,
    /// The output.
    pub y: Handle,
    /// The input's gradient.
    pub dx: Handle,
    channels: [Handle; 8],
    statistics: Handle,
    weights: Option<Weights<'a>>,
}

impl<'a> Training<'a> {
    /// A step on `x`, with the upstream gradient `dy`; parameters and running statistics are 1.
    pub fn new(client: &'a Client, problem: Problem, x: &'a Handle, dy: &'a Handle) -> Self {
        let Layout { channels, .. } = problem.layout;
        let ones = 1f32.to_ne_bytes().repeat(channels);
        let [y, dx] = [(); 2].map(|()| client.empty(4 * problem.layout.len()));
        Self {
            client,
            problem,
            x,
            dy,
            y,
            dx,
            channels: [(); 8].map(|()| client.create_from_slice(&ones)),
            statistics: client.empty(20 * channels),
            weights: None,
        }
    }

    /// Of weighted positions.
    pub fn with_weights(self, weights: Option<Weights<'a>>) -> Self {
        Self { weights, ..self }
    }

    /// Launches the forward.
    pub fn forward(&self) -> Launches {
        let [gamma, beta, mean, variance, new_mean, new_variance, ..] = &self.channels;
        let running = Running {
            mean,
            variance,
            new_mean,
            new_variance,
            keep: 0.9,
            add_mean: 0.1,
            add_variance: 0.1,
        };
        let out = TrainOutputs {
            y: Target::To(&self.y),
            statistics: &self.statistics,
        };
        let (client, problem, x) = (self.client, self.problem, self.x);
        let (affine, running) = (Affine { gamma, beta }, Some(running));
        let epilogue = Epilogue::default();
        match self.weights {
            None => train(client, problem, x, affine, running, 1e-5, epilogue, out),
            Some(weights) => train_weighted(
                client, problem, x, weights, affine, running, 1e-5, epilogue, out,
            ),
        }
        .expect("the arguments are right")
    }

    /// Launches the backward.
    pub fn backward(&self) -> Launches {
        let [gamma, beta, .., gamma_grad, beta_grad] = &self.channels;
        let out = Gradients {
            input: Some(Target::To(&self.dx)),
            gamma: Some(gamma_grad),
            beta: Some(beta_grad),
            residual: None,
        };
        let (client, problem, x, dy) = (self.client, self.problem, self.x, self.dy);
        let (affine, statistics) = (Affine { gamma, beta }, &self.statistics);
        let epilogue = Epilogue::default();
        match self.weights {
            None => train_backward(client, problem, x, dy, affine, statistics, epilogue, out),
            Some(weights) => train_weighted_backward(
                client, problem, x, weights, dy, affine, statistics, epilogue, out,
            ),
        }
        .expect("the arguments are right")
    }

    /// The bytes that the forward and the backward move in theory.
    ///
    /// A forward reads x twice and writes y, a backward reads x and dy twice and writes dx: 3 and 5 passes over the tensor. The vectors of
    /// one value per channel come on top, once each: gamma, beta, 4 of running statistics and the 4 rows of the batch's; in the backward those
    /// 4, gamma and its gradient and beta's.
    pub fn passes(&self) -> [u64; 2] {
        let Layout { channels, .. } = self.problem.layout;
        let len = self.problem.layout.len();
        [3 * len + 10 * channels, 5 * len + 7 * channels].map(|values| 4 * values as u64)
    }
}
