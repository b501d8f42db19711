//! Weighted positions, against the reference.

use batchnorm_cpu::reference::{Problem, Used, gradient};
use batchnorm_cpu::{
    Accum, Activation, Epilogue, Error, Given, Gradients, InOut, Isa, Layout, Output, Saved,
    Statistics, Weights, backward_weighted, normalize_weighted, train_weighted,
};
use half::{bf16, f16};
use proptest::prelude::*;

use crate::common::{Case, EPILOGUES, Random, Tested, compare, layout, narrow, wide};

/// A case with weights, and what is found at the positions that have none.
struct Weighted<E: Tested> {
    case: Case<E>,
    /// `[outer, inner]` or `[outer, channels, inner]`.
    weights: Vec<E::Accum>,
    own: bool,
}

impl<E: Tested> Weighted<E> {
    /// A third of the positions is absent; there, x is `missing`. The weights of the others are 1, or fractions.
    fn random(mut case: Case<E>, own: bool, fractions: bool, missing: f64, seed: u64) -> Self {
        let layout = case.layout();
        let mut random = Random(seed);
        let n = if own {
            layout.elements()
        } else {
            layout.samples_per_channel()
        };
        let weights: Vec<f64> = (0..n)
            .map(|_| match (random.value() < -0.33, fractions) {
                (true, _) => 0.0,
                (false, false) => 1.0,
                (false, true) => 0.1 + random.value().abs(),
            })
            .collect();
        let weights: Vec<E::Accum> = narrow(&weights);
        let full = full(layout, &wide(&weights), own);
        for (i, weight) in full.iter().enumerate() {
            if *weight == 0.0 && (!missing.is_nan() || i % 3 != 0) {
                case.x[i] = narrow(&[missing])[0];
                case.problem.x[i] = missing;
            }
        }
        let used = case.problem.weighted(&full);
        case.dy = without_kinks(&case.problem, &used, case.dy);
        Self { case, weights, own }
    }

    fn weights(&self) -> Weights<'_, E::Accum> {
        match self.own {
            true => Weights::Own(&self.weights),
            false => Weights::Shared(&self.weights),
        }
    }

    /// `[5, channels]`: the statistics and the sums of the weights.
    fn train(&self, x: InOut<'_, E>) -> Vec<E::Accum> {
        let case = &self.case;
        let channels = case.layout().channels();
        let mut saved = vec![E::Accum::from_f64(f64::NAN); 5 * channels];
        let (statistics, sums) = saved.split_at_mut(4 * channels);
        let out = Statistics::split_mut(statistics, channels).expect("four");
        let (affine, epsilon) = (case.affine(), case.problem.epsilon);
        train_weighted(
            case.layout(),
            x,
            self.weights(),
            affine,
            epsilon,
            case.epilogue(),
            out,
            sums,
        )
        .expect("valid");
        saved
    }

    fn backward(&self, saved: &[E::Accum], dy: InOut<'_, E>, out: Gradients<'_, E>) {
        let case = &self.case;
        let (statistics, sums) = saved.split_at(4 * case.layout().channels());
        backward_weighted(
            case.layout(),
            &case.x,
            self.weights(),
            dy,
            Saved::Batch(case.batch(statistics)),
            sums,
            case.affine(),
            case.epilogue(),
            out,
        )
        .expect("valid");
    }

    /// With statistics that are not those of the batch, and are constants.
    fn check_given(&self, what: &str) {
        let (case, layout) = (&self.case, self.case.layout());
        let of_channel = |f: fn(f64) -> f64| -> Vec<E::Accum> {
            let values = (0..layout.channels()).map(|c| E::Accum::from_f64(f(c as f64)));
            values.collect()
        };
        let (mean, variance) = (of_channel(|c| 0.3 * c - 0.5), of_channel(|c| 0.5 + c));
        let given = Given {
            mean: &mean,
            mean_lo: None,
            variance: &variance,
            epsilon: case.problem.epsilon,
        };
        let inv_std = |v: &E::Accum| 1.0 / (v.to_f64() + given.epsilon).sqrt();
        let used = Used {
            mean: wide(&mean),
            inv_std: variance.iter().map(inv_std).collect(),
        };
        let weights = full(layout, &wide(&self.weights), self.own);
        let (mut problem, mut residual) = (case.problem.clone(), case.residual.clone());
        for i in (0..weights.len()).filter(|i| weights[*i] == 0.0) {
            let c = i / layout.inner() % layout.channels();
            if !problem.x[i].is_finite() {
                problem.x[i] = used.mean[c];
            }
            // A residual that is not finite is taken for 0.
            if let (Some(residual), Some(expected)) = (&mut residual, &mut problem.residual)
                && i % 2 == 0
            {
                residual[i] = narrow(&[f64::NAN])[0];
                expected[i] = 0.0;
            }
        }
        let epilogue = Epilogue {
            residual: residual.as_deref(),
            activation: problem.activation,
        };
        let dy: Vec<E> = without_kinks(&problem, &used, case.dy.clone());
        let mut y: Vec<E> = narrow(&vec![f64::NAN; case.x.len()]);
        let affine = case.affine();
        let x = InOut::new(&case.x, &mut y);
        normalize_weighted(layout, x, self.weights(), given, affine, epilogue).expect("valid");
        let expected = problem.forward(&used);
        compare(&y, &expected, E::GRADIENT, &format!("y, given, {what}"));

        let expected = problem.inference_backward(&used, &wide(&dy));
        let mut x_grad: Vec<E> = narrow(&vec![f64::NAN; case.x.len()]);
        let [mut gamma, mut beta] = [(); 2].map(|()| of_channel(|_| f64::NAN));
        let out = Gradients {
            residual: None,
            gamma: Some(&mut gamma),
            beta: Some(&mut beta),
        };
        let (weights, saved) = (self.weights(), Saved::Given(given));
        let (x, given_dy) = (&case.x, &dy);
        let dy = InOut::new(given_dy, &mut x_grad);
        backward_weighted(layout, x, weights, dy, saved, &[], affine, epilogue, out)
            .expect("valid");
        let many = (layout.samples_per_channel() as f64).sqrt().max(1.0);
        let digits = 8.0 * E::VECTOR * many;
        compare(
            &gamma,
            &expected.gamma,
            digits,
            &format!("gamma_grad, given, {what}"),
        );
        compare(
            &beta,
            &expected.beta,
            digits,
            &format!("beta_grad, given, {what}"),
        );
        compare(
            &x_grad,
            &expected.x,
            E::GRADIENT,
            &format!("x_grad, given, {what}"),
        );
        let mut alone: Vec<E> = narrow(&vec![f64::NAN; case.x.len()]);
        let dy = InOut::new(given_dy, &mut alone);
        let none = Gradients::default();
        backward_weighted(layout, x, weights, dy, saved, &[], affine, epilogue, none)
            .expect("valid");
        assert!(wide(&alone) == wide(&x_grad), "x_grad alone, given, {what}");
    }

    fn check(&self, what: &str) {
        let (case, problem) = (&self.case, &self.case.problem);
        let layout = case.layout();
        let what = format!(
            "{what}: {layout:?} {:?}, own {}",
            problem.activation, self.own
        );
        self.check_given(&what);
        let weights = full(layout, &wide(&self.weights), self.own);
        let used = problem.weighted(&weights);
        let [mean, variance, sums] = problem.weighted_statistics(&weights);
        let nan: Vec<E> = narrow(&vec![f64::NAN; case.x.len()]);

        let mut y = nan.clone();
        let saved = self.train(InOut::new(&case.x, &mut y));
        let rows: Vec<&[E::Accum]> = saved.chunks(layout.channels().max(1)).collect();
        if layout.channels() > 0 {
            compare(rows[0], &mean, 4.0 * E::VECTOR, &format!("mean {what}"));
            compare(
                rows[2],
                &variance,
                8.0 * E::VECTOR,
                &format!("variance {what}"),
            );
            compare(rows[4], &sums, 4.0 * E::VECTOR, &format!("sums {what}"));
        }
        let expected = problem.forward(&used);
        let mut steep = 1.0f64;
        used.inv_std.iter().for_each(|s| steep = steep.max(*s));
        for (i, (got, expected)) in wide(&y).into_iter().zip(&expected).enumerate() {
            let close = (got - expected).abs() <= 4.0 * E::TENSOR * steep * expected.abs().max(1.0);
            // What is not finite at an absent position is its own affair.
            let either = weights[i] == 0.0 && !problem.x[i].is_finite();
            assert!(
                close || either,
                "y {what} at {i}: got {got}, expected {expected}"
            );
        }

        let mut in_place = case.x.clone();
        let again = self.train(InOut::in_place(&mut in_place));
        assert_eq!(again, saved, "in place, {what}");

        let expected = problem.weighted_backward(&used, &wide(&case.dy), &weights);
        let (mut x_grad, mut residual_grad) = (nan.clone(), nan.clone());
        let mut gamma = vec![E::Accum::from_f64(f64::NAN); layout.channels()];
        let mut beta = gamma.clone();
        let out = Gradients {
            residual: case
                .residual
                .is_some()
                .then(|| Output::from(&mut residual_grad)),
            gamma: Some(&mut gamma),
            beta: Some(&mut beta),
        };
        self.backward(&saved, InOut::new(&case.dy, &mut x_grad), out);
        let many = (layout.samples_per_channel() as f64).sqrt().max(1.0);
        compare(
            &gamma,
            &expected.gamma,
            8.0 * E::VECTOR * many * steep,
            &format!("gamma_grad {what}"),
        );
        compare(
            &beta,
            &expected.beta,
            4.0 * E::VECTOR * many,
            &format!("beta_grad {what}"),
        );
        compare(
            &x_grad,
            &expected.x,
            E::GRADIENT * steep * steep,
            &format!("x_grad {what}"),
        );
        if case.residual.is_some() {
            compare(
                &residual_grad,
                &expected.residual,
                E::GRADIENT * steep,
                &format!("residual_grad {what}"),
            );
            let mut alone = nan.clone();
            let out = Gradients {
                residual: Some(Output::from(&mut alone)),
                ..Gradients::default()
            };
            self.backward(&saved, InOut::only(&case.dy), out);
            assert!(
                wide(&alone) == wide(&residual_grad),
                "residual_grad alone, {what}"
            );
        }
    }
}

/// A gradient of 0 where a value is at a kink and may fall on either side of it.
fn without_kinks<E: Tested>(problem: &Problem, used: &Used, mut dy: Vec<E>) -> Vec<E> {
    let linear = Problem {
        activation: Activation::None,
        ..problem.clone()
    };
    for (dy, z) in dy.iter_mut().zip(linear.forward(used)) {
        let slope = |z: f64| gradient(problem.activation, z, 1.0);
        if (slope(z - 1e-4) - slope(z + 1e-4)).abs() > 1e-2 {
            *dy = narrow(&[0.0])[0];
        }
    }
    dy
}

/// A weight for every value.
fn full(layout: Layout, weights: &[f64], own: bool) -> Vec<f64> {
    let (channels, inner) = (layout.channels(), layout.inner());
    (0..layout.elements())
        .map(|i| match own {
            true => weights[i],
            false => weights[i / inner / channels * inner + i % inner],
        })
        .collect()
}

fn check<E: Tested>(
    layout: Layout,
    epilogue: (Activation, bool),
    kind: u64,
    seed: u64,
    what: &str,
) {
    let (activation, residual) = epilogue;
    let case = Case::<E>::random(layout, activation, residual, seed);
    let missing = [0.25, f64::NAN, f64::INFINITY][(kind / 4 % 3) as usize];
    let weighted = Weighted::random(case, kind & 1 == 1, kind & 2 == 2, missing, seed + 1);
    weighted.check(what);
}

/// Rows, columns, narrow columns whose rows are fused, columns of several positions, one channel, and no values.
fn layouts() -> [Layout; 12] {
    [
        layout(5, 3, 100),
        layout(2, 2, 9000),
        layout(1, 4, 17),
        layout(90, 40, 1),
        layout(300, 700, 1),
        layout(100, 3, 1),
        layout(37, 3, 2),
        layout(40, 30, 7),
        layout(9, 1, 50),
        layout(3, 64, 5),
        layout(0, 3, 4),
        layout(4, 0, 4),
    ]
}

#[test]
fn every_layout_and_kind_of_weights() {
    for isa in Isa::available() {
        isa.force(|| {
            for (i, layout) in layouts().into_iter().enumerate() {
                for kind in 0..12 {
                    let epilogue = EPILOGUES[(i + kind as usize) % EPILOGUES.len()];
                    check::<f32>(layout, epilogue, kind, i as u64, &format!("f32 {isa:?}"));
                }
                let epilogue = EPILOGUES[i % EPILOGUES.len()];
                check::<f64>(layout, epilogue, i as u64, 3, &format!("f64 {isa:?}"));
                check::<f16>(layout, epilogue, i as u64, 4, &format!("f16 {isa:?}"));
                check::<bf16>(layout, epilogue, i as u64, 5, &format!("bf16 {isa:?}"));
            }
        });
    }
}

/// Weights of 1 are no weights; but without any values there is no weight either.
#[test]
fn ones_are_the_plain_passes() {
    for layout in layouts().into_iter().filter(|layout| layout.elements() > 0) {
        let case = Case::<f64>::random(layout, Activation::Relu, true, 9);
        let mut y = case.x.clone();
        let plain = case.train(InOut::new(&case.x, &mut y));
        let weights = vec![1.0; layout.samples_per_channel()];
        let weighted = Weighted {
            case,
            weights,
            own: false,
        };
        let mut weighted_y = y.clone();
        let saved = weighted.train(InOut::new(&weighted.case.x, &mut weighted_y));
        compare(&weighted_y, &y, 1e-12, "y");
        compare(&saved[..plain.len()], &plain, 1e-12, "statistics");
    }
}

/// Nothing of the channel is present: its mean is 0, its variance 1, and its gradient goes through x alone.
#[test]
fn a_channel_without_any_weight() {
    for layout in [layout(20, 3, 1), layout(4, 3, 60)] {
        let case = Case::<f32>::random(layout, Activation::None, false, 2);
        let n = layout.elements();
        let channel = |i: usize| i / layout.inner() % 3;
        let weights = (0..n)
            .map(|i| if channel(i) == 1 { 0.0 } else { 1.0 })
            .collect();
        let mut weighted = Weighted {
            case,
            weights,
            own: true,
        };
        for (i, x) in weighted.case.x.iter_mut().enumerate() {
            if channel(i) == 1 {
                *x = f32::NAN;
            }
        }
        let (mut y, mut x_grad) = (vec![0.0; n], vec![0.0; n]);
        let saved = weighted.train(InOut::new(&weighted.case.x, &mut y));
        assert_eq!(
            [saved[1], saved[4], saved[7], saved[13]],
            [0.0, 0.0, 1.0, 0.0]
        );
        let dy = InOut::new(&weighted.case.dy, &mut x_grad);
        weighted.backward(&saved, dy, Gradients::default());
        let scale = saved[10] * weighted.case.gamma[1];
        for i in 0..n {
            assert!(y[i].is_finite() || channel(i) == 1);
            if channel(i) == 1 {
                let expected = scale * weighted.case.dy[i];
                assert!((x_grad[i] / expected - 1.0).abs() < 1e-6);
            } else {
                assert!(x_grad[i].is_finite());
            }
        }
    }
}

/// A constant channel gives beta exactly, and neither a large mean nor an outlier in front costs digits.
#[test]
fn weighted_statistics_keep_their_digits() {
    for layout in [layout(4000, 3, 1), layout(8, 3, 900)] {
        let n = layout.elements();
        let mut case = Case::<f32>::random(layout, Activation::None, false, 2);
        let weights: Vec<f32> = (0..layout.samples_per_channel())
            .map(|i| (i % 4) as f32)
            .collect();
        let full = full(layout, &wide(&weights), false);
        for (mean, spread, outlier) in [(1e4, 1.0, 0.0), (3.0, 0.0, 0.0), (0.0, 1.0, 1e4)] {
            let values = Random(5).values(n, mean, spread);
            case.x = narrow(&values);
            let second = layout.channels() * layout.inner();
            case.x[..second]
                .iter_mut()
                .for_each(|x| *x += outlier as f32);
            case.problem.x = wide(&case.x);
            let weighted = Weighted {
                case,
                weights: weights.clone(),
                own: false,
            };
            let mut y = vec![0.0; n];
            let saved = weighted.train(InOut::new(&weighted.case.x, &mut y));
            let problem: &Problem = &weighted.case.problem;
            let [_, variance, _] = problem.weighted_statistics(&full);
            for c in 0..3 {
                let got = f64::from(saved[6 + c]);
                assert!(
                    (got - variance[c]).abs() <= 1e-4 * variance[c] + 1e-20,
                    "{mean} {got} {variance:?}"
                );
            }
            if spread == 0.0 {
                let beta = |i: usize| weighted.case.beta[i / layout.inner() % 3];
                assert!((0..n).all(|i| y[i] == beta(i)));
            }
            let expected = problem.forward(&problem.weighted(&full));
            compare(&y, &expected, 1e-3, &format!("y at {mean}"));
            case = weighted.case;
        }
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    for (layout, own) in [(layout(64, 8, 3000), false), (layout(3000, 300, 1), true)] {
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.expect("a pool").install(|| {
                let case = Case::<f32>::random(layout, Activation::Silu, false, 7);
                let weighted = Weighted::random(case, own, true, f64::NAN, 8);
                let mut y = weighted.case.x.clone();
                let saved = weighted.train(InOut::new(&weighted.case.x, &mut y));
                let mut x_grad = y.clone();
                let dy = InOut::new(&weighted.case.dy, &mut x_grad);
                weighted.backward(&saved, dy, Gradients::default());
                [saved, x_grad]
                    .concat()
                    .into_iter()
                    .map(f32::to_bits)
                    .collect::<Vec<_>>()
            })
        };
        assert!(run(1) == run(2) && run(2) == run(5));
    }
}

#[test]
fn weights_of_another_length_are_refused() {
    let case = Case::<f32>::random(layout(4, 3, 2), Activation::None, false, 1);
    let ones = [1.0f32; 24];
    for weights in [
        Weights::Shared(&ones[..7]),
        Weights::Shared(&ones[..9]),
        Weights::Own(&ones[..8]),
    ] {
        let (mut y, mut saved, mut sums) = ([7.0f32; 24], [7.0f32; 12], [7.0f32; 3]);
        let out = Statistics::split_mut(&mut saved, 3).expect("four");
        let refused = train_weighted(
            case.layout(),
            InOut::new(&case.x, &mut y[..]),
            weights,
            case.affine(),
            1e-5,
            case.epilogue(),
            out,
            &mut sums,
        );
        let Err(Error::Length { name, .. }) = refused else {
            panic!("expected a refusal, got {refused:?}");
        };
        assert_eq!(name, "weights");
        assert!(y.iter().chain(&saved).chain(&sums).all(|&v| v == 7.0));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_weights_agree_with_the_reference(
        (outer, channels, inner) in (1usize..40, 1usize..40, 1usize..60),
        epilogue in proptest::sample::select(&EPILOGUES[..]),
        isa in proptest::sample::select(Isa::available()),
        kind in 0u64..12,
        seed in any::<u32>(),
    ) {
        let layout = layout(outer, channels, inner);
        isa.force(|| match seed % 3 {
            0 => check::<f32>(layout, epilogue, kind, seed.into(), "f32"),
            1 => check::<f64>(layout, epilogue, kind, seed.into(), "f64"),
            _ => check::<f16>(layout, epilogue, kind, seed.into(), "f16"),
        });
    }
}
