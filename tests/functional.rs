//! The primitives: `normalize(x, moments(x))` against `train`, and both against finite differences.

use batchnorm_tests::devices;
use burn::tensor::{DType, Device, Tensor, TensorData};
use burn_batchnorm::functional::{self, Epilogue};
use burn_batchnorm::{Activation, BatchNormError};

use crate::common::{ACTIVATIONS, assert_close, random, values, vector};

const EPSILON: f64 = 1e-3;

/// Output and gradients of `sum(y * dy)` for x, gamma, beta and the residual.
fn results<const D: usize>(
    shape: [usize; D],
    axis: usize,
    with_residual: bool,
    device: &Device,
    forward: impl Fn(Tensor<D>, [Tensor<1>; 2], Option<Tensor<D>>) -> Tensor<D>,
) -> Vec<(&'static str, TensorData)> {
    let channels = shape[axis];
    let x = (random(shape, 1, device) * 3.0 + 1.0).require_grad();
    let gamma = (random([channels], 2, device) * 4.0).require_grad();
    let beta = random([channels], 3, device).require_grad();
    let residual = with_residual.then(|| random(shape, 4, device).require_grad());
    let y = forward(x.clone(), [gamma.clone(), beta.clone()], residual.clone());
    let gradients = (y.clone() * random(shape, 5, device)).sum().backward();
    let mut results = vec![
        ("y", y.into_data()),
        ("dx", x.grad(&gradients).expect("dx").into_data()),
        (
            "dgamma",
            gamma.grad(&gradients).expect("dgamma").into_data(),
        ),
        ("dbeta", beta.grad(&gradients).expect("dbeta").into_data()),
    ];
    results.extend(residual.map(|residual| {
        let gradient = residual.grad(&gradients).expect("dresidual");
        ("dresidual", gradient.into_data())
    }));
    results
}

fn both_agree<const D: usize>(shape: [usize; D], axis: usize) {
    for (name, device) in devices::all() {
        let device = device.autodiff();
        for activation in ACTIVATIONS {
            for with_residual in [false, true] {
                let epilogue = |residual| Epilogue {
                    activation,
                    residual,
                };
                let expected = results(
                    shape,
                    axis,
                    with_residual,
                    &device,
                    |x, [gamma, beta], residual| {
                        functional::train(x, gamma, beta, EPSILON, axis, epilogue(residual))
                            .expect("a batch")
                            .output
                    },
                );
                let got = results(
                    shape,
                    axis,
                    with_residual,
                    &device,
                    |x, [gamma, beta], residual| {
                        let center = functional::moments(x.clone(), axis, None).expect("a batch");
                        assert_eq!(center.dims(), [3, shape[axis]]);
                        let epilogue = epilogue(residual);
                        functional::normalize(x, center, gamma, beta, EPSILON, axis, epilogue)
                            .expect("a batch")
                    },
                );
                for ((what, got), (_, expected)) in got.iter().zip(&expected) {
                    let what = format!("{what} of {activation:?} on {name} at {shape:?}");
                    assert_close(
                        &what,
                        got,
                        expected,
                        if what.starts_with('y') { 1e-5 } else { 1e-4 },
                    );
                }
            }
        }
    }
}

#[test]
fn normalizing_by_the_moments_is_training_in_rows() {
    both_agree([3, 4, 9, 9], 1);
}

#[test]
fn normalizing_by_the_moments_is_training_in_columns() {
    both_agree([37, 19], 1);
}

#[test]
fn normalizing_by_the_moments_is_training_in_short_rows() {
    both_agree([5, 6, 7], 1);
}

#[test]
fn normalizing_by_the_moments_is_training_on_any_axis() {
    both_agree([5, 7, 3], 2);
    both_agree([4, 3, 11], 0);
}

#[test]
fn half_inputs_have_half_gradients_of_wide_statistics() {
    let device = Device::flex().autodiff();
    let run = |dtype: DType| {
        let x = random([64, 3], 1, &device) * 2.0 + 1.0;
        // What f16 holds exactly.
        let x = x.cast(DType::F16).cast(dtype).detach().require_grad();
        let [gamma, beta] = [2, 3].map(|seed| random([3], seed, &device));
        let center = functional::moments(x.clone(), 1, None).expect("a batch");
        assert_eq!(center.dtype(), DType::F32);
        let y = functional::normalize(
            x.clone(),
            center,
            gamma,
            beta,
            EPSILON,
            1,
            Epilogue::default(),
        );
        let y = y.expect("a batch");
        assert_eq!(y.dtype(), dtype);
        let gradients = (y * random([64, 3], 4, &device).cast(dtype))
            .sum()
            .backward();
        let gradient = x.grad(&gradients).expect("a gradient");
        assert_eq!(gradient.dtype(), dtype);
        gradient.cast(DType::F32).into_data()
    };
    assert_close("f16", &run(DType::F16), &run(DType::F32), 4e-3);
}

/// Finite differences of a scalar function of x, in f64, against its gradient.
fn check_gradient(what: &str, f: impl Fn(Tensor<3>) -> Tensor<1>) {
    let device = Device::flex().autodiff();
    let shape = [3, 2, 4];
    let x = (random(shape, 1, &device).cast(DType::F64) * 2.0 + 0.5).detach();
    let at = x.clone().require_grad();
    let gradients = f(at.clone()).backward();
    let got = values(&at.grad(&gradients).expect("a gradient").into_data());
    let x = values(&x.into_data());
    let value = |x: Vec<f64>| {
        let data = TensorData::new(x, shape);
        vector(f(Tensor::from_data(data, (&device, DType::F64))))[0]
    };
    for (index, got) in got.into_iter().enumerate() {
        let step = 1e-5;
        let moved = |by: f64| {
            let mut x = x.clone();
            x[index] += by;
            value(x)
        };
        let expected = (moved(step) - moved(-step)) / (2.0 * step);
        let error = (got - expected).abs() / (1.0 + expected.abs());
        assert!(error < 1e-7, "{what}, {index}: {got}, expected {expected}");
    }
}

fn wide<const D: usize>(shape: [usize; D], seed: u64) -> Tensor<D> {
    random(shape, seed, &Device::flex().autodiff()).cast(DType::F64)
}

fn normalized(x: Tensor<3>, center: Tensor<2>, gamma: Tensor<1>, beta: Tensor<1>) -> Tensor<3> {
    let epilogue = Epilogue {
        activation: Activation::LeakyRelu(0.3),
        residual: None,
    };
    functional::normalize(x, center, gamma, beta, EPSILON, 1, epilogue).expect("a batch")
}

#[test]
fn the_gradient_of_the_statistics_themselves() {
    check_gradient("a loss on mean and variance", |x| {
        let center = functional::moments(x, 1, None).expect("a batch");
        // Row 1 is a constant.
        let weights = Tensor::from_data(
            TensorData::from([[0.3, -0.8], [0.0, 0.0], [1.1, 0.6]]),
            (&center.device(), DType::F64),
        );
        (center.clone() * center * weights).sum()
    });
}

#[test]
fn the_gradient_through_a_blend_with_running_statistics() {
    check_gradient("a blend", |x| {
        let device = x.device();
        let center = functional::moments(x.clone(), 1, None).expect("a batch");
        let running = TensorData::from([[0.2, -0.1], [0.0, 0.0], [1.5, 0.7]]);
        let running = Tensor::from_data(running, (&device, DType::F64));
        let y = normalized(x, center * 0.3 + running * 0.7, wide([2], 2), wide([2], 3));
        (y * wide([3, 2, 4], 4)).sum()
    });
}

#[test]
fn the_gradient_through_batch_renormalization() {
    // Ioffe 2017: r = std / running std, d = (mean - running mean) / running std, constants both.
    check_gradient("batch renormalization", |x| {
        let center = functional::moments(x.clone(), 1, None).expect("a batch");
        let (r, d) = (wide([2], 5) + 1.5, wide([2], 6));
        let (gamma, beta) = (wide([2], 2), wide([2], 3));
        let y = normalized(x, center, gamma.clone() * r, beta + gamma * d);
        (y * wide([3, 2, 4], 4)).sum()
    });
}

#[test]
fn the_gradient_of_training() {
    check_gradient("train", |x| {
        let epilogue = Epilogue {
            activation: Activation::LeakyRelu(0.3),
            residual: Some(x.clone() * 0.5),
        };
        let y = functional::train(x, wide([2], 2), wide([2], 3), EPSILON, 1, epilogue);
        (y.expect("a batch").output * wide([3, 2, 4], 4)).sum()
    });
}

#[test]
fn the_gradient_through_weighted_statistics() {
    check_gradient("weights", |x| {
        let weights = wide([3, 1, 4], 7)
            .abs()
            .mask_fill(wide([3, 1, 4], 8).lower_elem(-0.2), 0.0);
        let center = functional::moments(x.clone(), 1, Some(weights)).expect("a batch");
        let y = normalized(x, center, wide([2], 2), wide([2], 3));
        (y * wide([3, 2, 4], 4)).sum()
    });
}

#[test]
fn a_position_without_weight_reaches_nothing() {
    for (name, device) in devices::all() {
        let device = device.autodiff();
        for absent in [f32::NAN, f32::INFINITY, f32::MAX] {
            let x = Tensor::<2>::from_floats([[1.0], [absent], [3.0], [8.0]], &device);
            let x = x.require_grad();
            let weights = Tensor::<2>::from_floats([[1.0], [0.0], [2.0], [1.0]], &device);
            let center = functional::moments(x.clone(), 1, Some(weights)).expect("a batch");
            let gradients = center.clone().slice([2..3, 0..1]).sum().backward();
            let got = vector(center);
            // (1 + 3 + 3 + 8) / 4, (7.5625 + 2 * 0.5625 + 18.0625) / 4
            assert_eq!(got, [3.75, 0.0, 6.6875, 4.0], "{name}");
            let gradient = vector(x.grad(&gradients).expect("a gradient"));
            // 2 w (x - mean) / sum(w)
            assert_eq!(gradient, [-1.375, 0.0, -0.75, 2.125], "{name}");
        }
        let x = Tensor::<2>::full([4, 1], f32::NAN, &device);
        let none = Tensor::<2>::zeros([4, 1], &device);
        let center = functional::moments(x, 1, Some(none)).expect("a batch");
        // As of a new layer.
        assert_eq!(vector(center), [0.0, 0.0, 1.0, 0.0], "{name}");
    }
}

/// Fault G2, and the rest of what a call can get wrong.
#[test]
fn what_does_not_fit_is_refused() {
    for (name, device) in devices::all() {
        let x = || random([4, 3], 1, &device);
        let vector = |n: usize| random([n], 2, &device);
        let none = Epilogue::default;
        let refusals: Vec<(&str, BatchNormError)> = vec![
            (
                "Parameter",
                functional::train(x(), vector(4), vector(3), EPSILON, 1, none()).unwrap_err(),
            ),
            (
                "Parameter",
                functional::train(x(), vector(3), vector(2), EPSILON, 1, none()).unwrap_err(),
            ),
            (
                "ChannelAxis",
                functional::train(x(), vector(3), vector(3), EPSILON, 2, none()).unwrap_err(),
            ),
            (
                "Epsilon",
                functional::train(x(), vector(3), vector(3), 1e-80, 1, none()).unwrap_err(),
            ),
            (
                "ChannelAxis",
                functional::moments(x(), 7, None).unwrap_err(),
            ),
            ("Rank", functional::moments(vector(3), 0, None).unwrap_err()),
            (
                "Weights",
                functional::moments(x(), 1, Some(random([4, 2], 1, &device))).unwrap_err(),
            ),
            (
                "Center",
                functional::normalize(
                    x(),
                    random([2, 3], 1, &device),
                    vector(3),
                    vector(3),
                    EPSILON,
                    1,
                    none(),
                )
                .unwrap_err(),
            ),
            (
                "Residual",
                functional::train(
                    x(),
                    vector(3),
                    vector(3),
                    EPSILON,
                    1,
                    Epilogue {
                        activation: Activation::None,
                        residual: Some(random([4, 1], 1, &device)),
                    },
                )
                .unwrap_err(),
            ),
        ];
        for (expected, error) in refusals {
            assert_eq!(error.name(), expected, "{name}: {error}");
        }
    }
}
