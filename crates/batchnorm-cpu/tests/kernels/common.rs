//! A problem in some element type, its solution by the kernels, and the comparison with the reference.

use batchnorm_cpu::reference::{Problem, gradient};
use batchnorm_cpu::{
    Accum, Activation, Affine, Element, Epilogue, Given, Gradients, InOut, Layout, Output, Saved,
    Statistics, affine, backward, moments, normalize, train,
};

/// Every kind of epilogue: nothing, an activation, a residual, both.
pub const EPILOGUES: [(Activation, bool); 14] = [
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
    (
        Activation::Clamp {
            min: f64::NEG_INFINITY,
            max: 0.5,
        },
        false,
    ),
    (Activation::Silu, false),
    (Activation::Gelu, true),
    (Activation::GeluTanh, false),
    (Activation::HardSwish, true),
    (Activation::Sigmoid, true),
    (Activation::Tanh, false),
];

/// An element type and how far its results may be from the reference.
pub trait Tested: Element {
    /// Relative to the larger of 1 and the value, for tensors of this type. For the halves this is their rounding: 8 and 11 bits.
    const TENSOR: f64;
    /// The same for the gradients of the input, which cancel more.
    const GRADIENT: f64;
    /// For channel vectors, relative to the sum of what was added up. The portable instruction set, two lanes wide, has the longest sums and
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
            let slope = |z: f64| gradient(activation, z, 1.0);
            let kink = |by: f64| (slope(z - by) - slope(z + by)).abs() > 1e-2;
            if kink(1e-4) {
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

    pub fn affine(&self) -> Affine<'_, E::Accum> {
        Affine {
            gamma: &self.gamma,
            beta: &self.beta,
        }
    }

    fn channels(&self) -> Vec<E::Accum> {
        vec![E::Accum::from_f64(f64::NAN); self.layout().channels()]
    }

    /// The statistics, `[4, channels]`.
    pub fn train(&self, x: InOut<'_, E>) -> Vec<E::Accum> {
        let mut saved = vec![E::Accum::from_f64(f64::NAN); 4 * self.layout().channels()];
        let out = Statistics::split_mut(&mut saved, self.layout().channels()).expect("four");
        train(
            self.layout(),
            x,
            self.affine(),
            self.problem.epsilon,
            self.epilogue(),
            out,
        )
        .expect("valid");
        saved
    }

    pub fn batch<'a>(&self, saved: &'a [E::Accum]) -> Statistics<&'a [E::Accum]> {
        Statistics::split(saved, self.layout().channels()).expect("four")
    }

    /// The statistics as constants.
    pub fn given<'a>(&self, saved: &'a [E::Accum]) -> Given<'a, E::Accum> {
        let statistics = self.batch(saved);
        Given {
            mean: statistics.mean,
            mean_lo: Some(statistics.mean_lo),
            variance: statistics.variance,
            epsilon: self.problem.epsilon,
        }
    }

    /// `[gamma_grad, beta_grad]`.
    pub fn backward(
        &self,
        saved: Saved<'_, E::Accum>,
        y_grad: InOut<'_, E>,
        residual: Option<Output<'_, E>>,
    ) -> [Vec<E::Accum>; 2] {
        let (mut gamma_grad, mut beta_grad) = (self.channels(), self.channels());
        let out = Gradients {
            residual,
            gamma: Some(&mut gamma_grad),
            beta: Some(&mut beta_grad),
        };
        self.gradients(saved, y_grad, out);
        [gamma_grad, beta_grad]
    }

    pub fn gradients(
        &self,
        saved: Saved<'_, E::Accum>,
        y_grad: InOut<'_, E>,
        out: Gradients<'_, E>,
    ) {
        let (layout, epilogue) = (self.layout(), self.epilogue());
        backward(layout, &self.x, y_grad, saved, self.affine(), epilogue, out).expect("valid");
    }

    /// Runs every kernel and compares.
    pub fn check(&self, what: &str) {
        let (layout, problem) = (self.layout(), &self.problem);
        let what = format!("{what}: {layout:?} {:?}", problem.activation);
        let n = self.x.len();
        let nan: Vec<E> = narrow(&vec![f64::NAN; n]);

        let mut y = nan.clone();
        let saved = self.train(InOut::new(&self.x, &mut y));
        let used = problem.batch();
        self.check_statistics(self.batch(&saved), &what);
        let inv_std = self.batch(&saved).inv_std;
        compare(
            inv_std,
            &used.inv_std,
            40.0 * E::VECTOR,
            &format!("inv_std {what}"),
        );
        let expected = problem.forward(&used);
        compare(&y, &expected, E::TENSOR * 4.0, &format!("y {what}"));

        let mut y = nan.clone();
        let x = InOut::new(&self.x, &mut y);
        normalize(
            layout,
            x,
            self.given(&saved),
            self.affine(),
            self.epilogue(),
        )
        .expect("valid");
        compare(
            &y,
            &expected,
            E::TENSOR * 4.0,
            &format!("normalized {what}"),
        );

        let [mut mean, mut mean_lo, mut variance] = std::array::from_fn(|_| self.channels());
        moments(layout, &self.x, &mut mean, &mut mean_lo, &mut variance).expect("valid");
        let statistics = Statistics {
            mean: &mean[..],
            mean_lo: &mean_lo,
            variance: &variance,
            inv_std,
        };
        assert!(
            statistics == self.batch(&saved),
            "moments are those of train: {what}"
        );

        for train in [true, false] {
            self.check_backward(train, &saved, &what);
        }
        self.check_affine(&what);
    }

    fn check_statistics(&self, statistics: Statistics<&[E::Accum]>, what: &str) {
        let [mean, variance] = self.problem.statistics();
        // Rounding errors of a mean are those of the values that were added up.
        let spread = variance.iter().fold(1.0f64, |a, v| a.max(v.sqrt()));
        let tolerance = E::VECTOR * spread;
        compare(statistics.mean, &mean, tolerance, &format!("mean {what}"));
        let low = statistics.mean.iter().zip(statistics.mean_lo);
        for ((mean, low), expected) in low.zip(&mean) {
            let both = mean.to_f64() + low.to_f64();
            let error = (both - expected).abs() / expected.abs().max(1.0);
            assert!(error <= tolerance, "mean_lo {what}: {both} {expected}");
            let half_unit = mean.to_f64().abs().max(1e-30) * 6e-8;
            assert!(low.to_f64().abs() <= half_unit, "mean_lo {what}: {low:?}");
        }
        compare(
            statistics.variance,
            &variance,
            4.0 * E::VECTOR,
            &format!("variance {what}"),
        );
    }

    fn check_backward(&self, train: bool, saved: &[E::Accum], what: &str) {
        let (layout, problem) = (self.layout(), &self.problem);
        let (used, dy) = (problem.batch(), wide(&self.dy));
        let nan: Vec<E> = narrow(&vec![f64::NAN; self.x.len()]);
        let (saved, expected) = if train {
            let expected = problem.train_backward(&used, &dy);
            (Saved::Batch(self.batch(saved)), expected)
        } else {
            let expected = problem.inference_backward(&used, &dy);
            (Saved::Given(self.given(saved)), expected)
        };
        let mut x_grad = nan.clone();
        let mut residual_grad = self.residual.as_ref().map(|_| nan.clone());
        let [gamma_grad, beta_grad] = self.backward(
            saved,
            InOut::new(&self.dy, &mut x_grad),
            residual_grad.as_mut().map(Output::from),
        );
        let what = format!("train {train} {what}");
        let many = (layout.samples_per_channel() as f64).sqrt().max(1.0);
        let vector = E::VECTOR * many;
        let steep = used.inv_std.iter().fold(1.0, |a: f64, &b| a.max(b));
        compare(
            &gamma_grad,
            &expected.gamma,
            8.0 * vector,
            &format!("gamma_grad {what}"),
        );
        compare(
            &beta_grad,
            &expected.beta,
            4.0 * vector,
            &format!("beta_grad {what}"),
        );
        compare(
            &x_grad,
            &expected.x,
            E::GRADIENT * steep,
            &format!("x_grad {what}"),
        );
        if let Some(residual_grad) = &residual_grad {
            compare(
                residual_grad,
                &expected.residual,
                E::GRADIENT,
                &format!("residual_grad {what}"),
            );
        }

        // Whatever is left out, the rest stays as it is.
        for wanted in 0..16 {
            let wants = |bit: usize| wanted >> bit & 1 == 1;
            let (mut x, mut r) = (nan.clone(), residual_grad.as_ref().map(|_| nan.clone()));
            let [mut gamma, mut beta] = [self.channels(), self.channels()];
            let out = Gradients {
                residual: r.as_mut().filter(|_| wants(1)).map(Output::from),
                gamma: wants(2).then_some(&mut gamma[..]),
                beta: wants(3).then_some(&mut beta[..]),
            };
            let dy = if wants(0) {
                InOut::new(&self.dy, &mut x)
            } else {
                InOut::only(&self.dy)
            };
            self.gradients(saved, dy, out);
            let what = format!("{wanted:#b} of the gradients, {what}");
            if wants(0) {
                // Without the sums, a kernel that reads less may take its place.
                compare(&x, &wide(&x_grad), 1e-6, &what);
            }
            if let (true, Some(r), Some(expected)) = (wants(1), &r, &residual_grad) {
                assert!(wide(r) == wide(expected), "{what}");
            }
            assert!(!wants(2) || gamma == gamma_grad, "{what}");
            assert!(!wants(3) || beta == beta_grad, "{what}");
        }
    }

    fn check_affine(&self, what: &str) {
        let mut random = Random(7);
        let layout = self.layout();
        let [mean, scale, shift] = std::array::from_fn(|_| {
            narrow::<E::Accum>(&random.values(layout.channels(), 0.0, 1.0))
        });
        let mut y: Vec<E> = narrow(&vec![f64::NAN; self.x.len()]);
        affine(layout, InOut::new(&self.x, &mut y), &mean, &scale, &shift).expect("valid");
        let by_hand: Vec<f64> = (0..self.x.len())
            .map(|i| {
                let channel = i / layout.inner() % layout.channels();
                let [m, s, t] = [&mean, &scale, &shift].map(|v| v[channel].to_f64());
                (self.problem.x[i] - m) * s + t
            })
            .collect();
        compare(&y, &by_hand, E::TENSOR, &format!("affine {what}"));
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
