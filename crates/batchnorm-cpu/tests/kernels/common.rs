//! A problem in some element type, its solution by the kernels, and the comparison with the reference.

use batchnorm_cpu::reference::{Problem, Used};
use batchnorm_cpu::{
    Accum, Activation, Affine, BatchStatistics, Coefficients, Element, Epilogue, Gradients, Layout,
    Normalization, Output, Saved, Statistics, Stream, backward, backward_sums, input_grad, moments,
    normalize, train_forward,
};

/// Every kind of tail: nothing, an activation, a residual, both.
pub const TAILS: [(Activation, bool); 7] = [
    (Activation::None, false),
    (Activation::Relu, false),
    (Activation::LeakyRelu(0.1), false),
    (Activation::Relu6, false),
    (Activation::None, true),
    (Activation::Relu, true),
    (
        Activation::Clamp {
            min: -0.5,
            max: 0.75,
        },
        true,
    ),
];

/// An element type and how far its results may be from the reference.
pub trait Tested: Element {
    /// Relative to the larger of 1 and the value, for tensors of this type. For the halves this is their rounding: 8 and 11 bits.
    const TENSOR: f64;
    /// The same for the gradients of the input, which cancel more.
    const GRADIENT: f64;
    /// For channel vectors, relative to the sum of what was added up. The portable instruction set, one lane wide, has the longest sums and
    /// the largest errors.
    const VECTOR: f64;
}

impl Tested for f32 {
    const TENSOR: f64 = 1e-5;
    const GRADIENT: f64 = 2e-5;
    const VECTOR: f64 = 4e-6;
}

impl Tested for f64 {
    const TENSOR: f64 = 1e-13;
    const GRADIENT: f64 = 1e-13;
    const VECTOR: f64 = 1e-14;
}

impl Tested for half::f16 {
    const TENSOR: f64 = 6e-4;
    const GRADIENT: f64 = 6e-4;
    const VECTOR: f64 = 4e-6;
}

impl Tested for half::bf16 {
    const TENSOR: f64 = 5e-3;
    const GRADIENT: f64 = 5e-3;
    const VECTOR: f64 = 4e-6;
}

pub fn wide<E: Element>(v: &[E]) -> Vec<f64> {
    v.iter().map(|&x| x.to_accum().to_f64()).collect()
}

pub fn narrow<E: Element>(v: &[f64]) -> Vec<E> {
    v.iter()
        .map(|&x| E::from_accum(E::Accum::from_f64(x)))
        .collect()
}

/// A small generator, so that a failure is reproduced by its seed.
pub struct Random(pub u64);

impl Random {
    /// In `-1..1`.
    pub fn value(&mut self) -> f64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    pub fn values(&mut self, n: usize, centre: f64, spread: f64) -> Vec<f64> {
        (0..n).map(|_| centre + spread * self.value()).collect()
    }
}

/// Inputs in type `E` with the same values in the reference.
pub struct Case<E: Element> {
    pub problem: Problem,
    pub x: Vec<E>,
    pub dy: Vec<E>,
    pub residual: Option<Vec<E>>,
    pub gamma: Vec<E::Accum>,
    pub beta: Vec<E::Accum>,
}

impl<E: Tested> Case<E> {
    /// Random values, gradients and parameters.
    pub fn random(layout: Layout, activation: Activation, with_residual: bool, seed: u64) -> Self {
        let mut random = Random(seed);
        let (n, channels) = (layout.elements(), layout.channels());
        let x: Vec<E> = narrow(&random.values(n, 0.4, 1.5));
        let residual: Option<Vec<E>> = with_residual.then(|| narrow(&random.values(n, 0.0, 1.0)));
        let gamma: Vec<E::Accum> = narrow(&random.values(channels, 0.3, 1.2));
        let beta: Vec<E::Accum> = narrow(&random.values(channels, 0.1, 0.5));
        let problem = Problem {
            layout,
            x: wide(&x),
            residual: residual.as_deref().map(wide),
            gamma: wide(&gamma),
            beta: wide(&beta),
            epsilon: 1e-3,
            activation,
        };
        let mut dy: Vec<E> = narrow(&random.values(n, 0.1, 1.0));
        // A value at a kink may fall on either side of it. Without a gradient it does not matter.
        let linear = Problem {
            activation: Activation::None,
            ..problem.clone()
        };
        for (dy, z) in dy.iter_mut().zip(linear.forward(&problem.batch())) {
            let apart = |by: f64| activation.derivative(z - by) == activation.derivative(z + by);
            if !apart(1e-4) {
                *dy = narrow(&[0.0])[0];
            }
        }
        Self {
            problem,
            x,
            dy,
            residual,
            gamma,
            beta,
        }
    }

    pub fn layout(&self) -> Layout {
        self.problem.layout
    }

    pub fn epilogue(&self) -> Epilogue<'_, E> {
        Epilogue {
            residual: self.residual.as_deref(),
            activation: self.problem.activation,
        }
    }

    fn channels(&self) -> Vec<E::Accum> {
        vec![E::Accum::from_f64(f64::NAN); self.layout().channels()]
    }

    pub fn train_forward(&self, stream: Stream<'_, E>) -> [Vec<E::Accum>; 3] {
        let [mut mean, mut variance, mut inv_std] = std::array::from_fn(|_| self.channels());
        let out = BatchStatistics {
            mean: &mut mean,
            mean_low: None,
            variance: &mut variance,
            inv_std: &mut inv_std,
        };
        let affine = Affine {
            gamma: &self.gamma,
            beta: &self.beta,
        };
        train_forward(
            self.layout(),
            stream,
            affine,
            self.problem.epsilon,
            self.epilogue(),
            out,
        )
        .expect("valid");
        [mean, variance, inv_std]
    }

    pub fn saved<'a>(&'a self, [mean, _, inv_std]: &'a [Vec<E::Accum>; 3]) -> Saved<'a, E::Accum> {
        Saved {
            gamma: &self.gamma,
            beta: &self.beta,
            mean,
            mean_low: None,
            inv_std,
            statistics: Statistics::OfBatch,
        }
    }

    /// `[dgamma, dbeta]`.
    pub fn backward(
        &self,
        train: bool,
        stream: Stream<'_, E>,
        stats: &[Vec<E::Accum>; 3],
        residual: Option<Output<'_, E>>,
    ) -> [Vec<E::Accum>; 2] {
        let (mut dgamma, mut dbeta) = (self.channels(), self.channels());
        let out = Gradients {
            residual,
            gamma: Some(&mut dgamma),
            beta: Some(&mut dbeta),
        };
        let statistics = match train {
            true => Statistics::OfBatch,
            false => Statistics::Constant,
        };
        let saved = Saved {
            statistics,
            ..self.saved(stats)
        };
        backward(self.layout(), &self.x, stream, saved, self.epilogue(), out).expect("valid");
        [dgamma, dbeta]
    }

    /// Runs every kernel and compares.
    pub fn check(&self, what: &str) {
        let (layout, problem) = (self.layout(), &self.problem);
        let what = format!("{what}: {layout:?} {:?}", problem.activation);
        let n = self.x.len();
        let nan: Vec<E> = narrow(&vec![f64::NAN; n]);

        let mut y = nan.clone();
        let stats = self.train_forward(Stream::new(&self.x, &mut y));
        let [mean, variance] = problem.statistics();
        // Rounding errors of a mean are those of the values that were added up.
        let used = problem.batch();
        let spread = variance.iter().fold(1.0f64, |a, v| a.max(v.sqrt()));
        compare(
            &stats[0],
            &mean,
            E::VECTOR * spread,
            &format!("mean {what}"),
        );
        compare(
            &stats[1],
            &variance,
            4.0 * E::VECTOR,
            &format!("variance {what}"),
        );
        compare(
            &stats[2],
            &used.inv_std,
            40.0 * E::VECTOR,
            &format!("inv_std {what}"),
        );
        compare(
            &y,
            &problem.forward(&used),
            E::TENSOR * 4.0,
            &format!("y {what}"),
        );

        for train in [true, false] {
            let mut dx = nan.clone();
            let mut dresidual = self.residual.as_ref().map(|_| nan.clone());
            let [dgamma, dbeta] = self.backward(
                train,
                Stream::new(&self.dy, &mut dx),
                &stats,
                dresidual.as_mut().map(Output::from),
            );
            let dy = wide(&self.dy);
            let expected = if train {
                problem.train_backward(&used, &dy)
            } else {
                problem.inference_backward(&used, &dy)
            };
            let what = format!("train {train} {what}");
            let many = (layout.samples_per_channel() as f64).sqrt().max(1.0);
            compare(
                &dgamma,
                &expected.gamma,
                8.0 * E::VECTOR * many,
                &format!("dgamma {what}"),
            );
            compare(
                &dbeta,
                &expected.beta,
                4.0 * E::VECTOR * many,
                &format!("dbeta {what}"),
            );
            let steep = used.inv_std.iter().fold(1.0, |a: f64, &b| a.max(b));
            compare(&dx, &expected.x, E::GRADIENT * steep, &format!("dx {what}"));
            if let Some(dresidual) = dresidual {
                compare(
                    &dresidual,
                    &expected.residual,
                    E::GRADIENT,
                    &format!("dresidual {what}"),
                );
            }
        }
        self.check_primitives(&used, &what);
    }

    /// The four kernels that fused ones are made of, put together by hand.
    fn check_primitives(&self, used: &Used, what: &str) {
        let (layout, problem) = (self.layout(), &self.problem);
        let samples = layout.samples_per_channel().max(1) as f64;
        let [mut mean, mut m2, mut sum, mut product] = std::array::from_fn(|_| self.channels());
        moments(layout, &self.x, &mut mean, &mut m2).expect("valid");
        let variance: Vec<f64> = m2.iter().map(|m| m.to_f64() / samples).collect();
        let [expected_mean, expected_variance] = problem.statistics();
        let spread = expected_variance
            .iter()
            .fold(1.0f64, |a, v| a.max(v.sqrt()));
        compare(
            &mean,
            &expected_mean,
            E::VECTOR * spread,
            &format!("mean {what}"),
        );
        compare(
            &narrow::<E::Accum>(&variance),
            &expected_variance,
            4.0 * E::VECTOR,
            &format!("m2 {what}"),
        );

        let mean: Vec<E::Accum> = narrow(&used.mean);
        let scale: Vec<E::Accum> = narrow(
            &problem
                .gamma
                .iter()
                .zip(&used.inv_std)
                .map(|(g, s)| g * s)
                .collect::<Vec<_>>(),
        );
        let params = Normalization {
            mean: &mean,
            scale: &scale,
            shift: &self.beta,
        };
        let mut y: Vec<E> = narrow(&vec![f64::NAN; self.x.len()]);
        normalize(
            layout,
            Stream::new(&self.x, &mut y),
            params,
            self.epilogue(),
        )
        .expect("valid");
        compare(
            &y,
            &problem.forward(used),
            E::TENSOR * 4.0,
            &format!("normalize {what}"),
        );

        backward_sums(
            layout,
            &self.x,
            &self.dy,
            params,
            self.epilogue(),
            &mut sum,
            &mut product,
        )
        .expect("valid");
        let expected = problem.inference_backward(used, &wide(&self.dy));
        let many = samples.sqrt();
        compare(
            &sum,
            &expected.beta,
            4.0 * E::VECTOR * many,
            &format!("sum {what}"),
        );
        let centred: Vec<f64> = expected
            .gamma
            .iter()
            .zip(&used.inv_std)
            .map(|(g, s)| g / s)
            .collect();
        compare(
            &product,
            &centred,
            4.0 * E::VECTOR * many,
            &format!("sum_centred {what}"),
        );

        let mut random = Random(7);
        let [a, b, c] = std::array::from_fn(|_| {
            narrow::<E::Accum>(&random.values(layout.channels(), 0.0, 1.0))
        });
        let mut dx: Vec<E> = narrow(&vec![f64::NAN; self.x.len()]);
        let coefficients = Coefficients {
            a: &a,
            b: &b,
            c: &c,
        };
        input_grad(
            layout,
            &self.x,
            Stream::new(&self.dy, &mut dx),
            params,
            coefficients,
            self.epilogue(),
            None,
        )
        .expect("valid");
        let channel = |i: usize| i / layout.inner() % layout.channels();
        let by_hand: Vec<f64> = (0..self.x.len())
            .map(|i| {
                let [a, b, c] = [&a, &b, &c].map(|v| v[channel(i)].to_f64());
                a * expected.residual[i] + b * (problem.x[i] - used.mean[channel(i)]) + c
            })
            .collect();
        compare(&dx, &by_hand, E::GRADIENT, &format!("input_grad {what}"));
    }
}

/// Compares relative to the larger of 1 and the expected value.
pub fn compare<E: Element>(got: &[E], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (got, &expected)) in wide(got).into_iter().zip(expected).enumerate() {
        let error = (got - expected).abs() / expected.abs().max(1.0);
        assert!(
            error <= tolerance,
            "{what} at {i}: got {got:e}, expected {expected:e}, error {error:e} > {tolerance:e}"
        );
    }
}

pub fn layout(outer: usize, channels: usize, inner: usize) -> Layout {
    Layout::new(outer, channels, inner).expect("small")
}
