//! The reference against finite differences, and against known values.

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
