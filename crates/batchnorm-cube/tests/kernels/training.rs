//! The three passes of a layer, on buffers of their own: what the example times and the tests count.

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

/// A layer of `f32` parameters on a tensor, with running statistics and all gradients.
pub struct Training<'a> {
    client: &'a Client,
    problem: Problem,
    x: Handle,
    dy: Handle,
    activation: Activation,
    /// What is added, and its gradient.
    residual: Option<[Handle; 2]>,
    /// The output.
    pub y: Handle,
    /// The input's gradient.
    pub dx: Handle,
    channels: [Handle; 6],
    /// Those of gamma and of beta.
    pub gradients: [Handle; 2],
    /// The four rows of a forward; five of a weighted one.
    pub statistics: Handle,
    weights: Option<Weights<'a>>,
}

impl<'a> Training<'a> {
    /// A step on `x`, with the upstream gradient `dy`; parameters and running statistics are 1, results by channel are NaN until they are
    /// written.
    pub fn new(client: &'a Client, problem: Problem, x: &Handle, dy: &Handle) -> Self {
        let Layout { channels, .. } = problem.layout;
        let filled = |value: f32, rows| {
            client.create_from_slice(&value.to_ne_bytes().repeat(rows * channels))
        };
        let [y, dx] = [(); 2].map(|()| tensor(client, problem));
        Self {
            client,
            problem,
            x: x.clone(),
            dy: dy.clone(),
            activation: Activation::None,
            residual: None,
            y,
            dx,
            channels: [(); 6].map(|()| filled(1.0, 1)),
            gradients: [(); 2].map(|()| filled(f32::NAN, 1)),
            statistics: filled(f32::NAN, 4),
            weights: None,
        }
    }

    /// The same, followed by an activation of its sum with a residual.
    pub fn followed_by(self, activation: Activation, residual: Option<&Handle>) -> Self {
        let gradient = || tensor(self.client, self.problem);
        let residual = residual.map(|residual| [residual.clone(), gradient()]);
        Self {
            activation,
            residual,
            ..self
        }
    }

    fn affine(&self) -> Affine<'_> {
        let [gamma, beta, ..] = &self.channels;
        Affine { gamma, beta }
    }

    fn epilogue(&self) -> Epilogue<'_> {
        Epilogue {
            activation: self.activation,
            residual: self.residual.as_ref().map(|[residual, _]| residual),
        }
    }

    /// Of weighted positions.
    pub fn with_weights(self, weights: Option<Weights<'a>>) -> Self {
        let rows = 4 + usize::from(weights.is_some());
        let channels = self.problem.layout.channels;
        let statistics = f32::NAN.to_ne_bytes().repeat(rows * channels);
        Self {
            weights,
            statistics: self.client.create_from_slice(&statistics),
            ..self
        }
    }

    /// Launches the forward.
    pub fn forward(&self) -> Launches {
        let [_, _, mean, variance, new_mean, new_variance] = &self.channels;
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
        let (client, problem, x) = (self.client, self.problem, &self.x);
        let (affine, running, epilogue) = (self.affine(), Some(running), self.epilogue());
        let weights = self.weights;
        train(
            client, problem, x, weights, affine, running, 1e-5, epilogue, out,
        )
        .expect("the arguments are right")
    }

    /// Launches the backward.
    pub fn backward(&self) -> Launches {
        let [gamma, beta] = &self.gradients;
        let out = Gradients {
            input: Some(Target::To(&self.dx)),
            gamma: Some(gamma),
            beta: Some(beta),
            residual: self.residual.as_ref().map(|[_, gradient]| gradient),
        };
        let (client, problem, x, dy) = (self.client, self.problem, &self.x, &self.dy);
        let (affine, statistics) = (self.affine(), &self.statistics);
        let (epilogue, weights) = (self.epilogue(), self.weights);
        train_backward(
            client, problem, x, weights, dy, affine, statistics, epilogue, out,
        )
        .expect("the arguments are right")
    }

    /// Launches the forward of inference.
    pub fn inference(&self) -> Launches {
        let [_, _, mean, variance, ..] = &self.channels;
        normalize(
            self.client,
            self.problem,
            &self.x,
            None,
            Center::Apart { mean, variance },
            self.affine(),
            1e-5,
            self.epilogue(),
            Target::To(&self.y),
        )
        .expect("the arguments are right")
    }

    /// The bytes that the forward, the backward and the inference move in theory, where nothing stays on the chip.
    ///
    /// A forward reads x twice and writes y, a backward reads x and dy twice and writes dx: 3 and 5 passes over the tensor. A residual is read
    /// once more in the forward, and in the backward twice, with the activation whose argument it belongs to; its gradient is written. The
    /// vectors of one value per channel come on top, once each: gamma, beta, 4 of running statistics and the 4 rows of the batch's; in the
    /// backward those 4, gamma and its gradient and beta's, and beta where it belongs to an activation's argument; in inference 4.
    pub fn passes(&self) -> [u64; 3] {
        let Layout { channels, .. } = self.problem.layout;
        let tensor = (self.problem.layout.len() * self.problem.element.size()) as u64;
        let residual = u64::from(self.residual.is_some());
        let argument = u64::from(self.activation != Activation::None);
        let vector = 4 * channels as u64;
        [
            (3 + residual) * tensor + 10 * vector,
            (5 + (1 + 2 * argument) * residual) * tensor + (7 + argument) * vector,
            (2 + residual) * tensor + 4 * vector,
        ]
    }
}

fn tensor(client: &Client, problem: Problem) -> Handle {
    client.empty(problem.layout.span() * problem.element.size())
}
