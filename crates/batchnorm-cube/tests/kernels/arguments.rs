//! What is refused, and what is done with nothing.

use batchnorm_cube::*;

use crate::device::{client, client_without_f16, download, empty, upload};

const F32: Element = Element::F32;
const PROBLEM: Problem = Problem {
    layout: Layout {
        outer: 2,
        channels: 3,
        inner: 4,
    },
    element: F32,
    strategy: Strategy::Auto,
};
const PARAMS: TrainParams = TrainParams {
    epsilon: 1e-5,
    factor: 0.1,
    correction: 1.0,
};

/// A forward whose tensors have `len` elements and whose vectors have `channels`.
fn forward(
    problem: Problem,
    len: usize,
    channels: usize,
    params: TrainParams,
    activation: Activation,
) -> Option<Result<Launches, Error>> {
    let client = client()?;
    let [x, y] = [(); 2].map(|()| empty(&client, F32, len));
    let [gamma, beta, variance] = [(); 3].map(|()| empty(&client, F32, channels));
    let saved = empty(&client, F32, 3 * channels);
    let affine = Affine {
        scale: &gamma,
        shift: &beta,
    };
    let epilogue = Epilogue {
        activation,
        residual: None,
    };
    let out = TrainOutputs {
        y: Target::To(&y),
        mean: None,
        variance: &variance,
        saved: &saved,
    };
    Some(train(
        &client, problem, &x, affine, None, params, epilogue, out,
    ))
}

#[test]
fn wrong_lengths_are_refused() {
    let Some(result) = forward(PROBLEM, 24, 3, PARAMS, Activation::None) else {
        return;
    };
    assert_eq!(result.unwrap().count(), 1);

    let short = forward(PROBLEM, 23, 3, PARAMS, Activation::None).unwrap();
    assert_eq!(
        short,
        Err(Error::Length {
            name: "x",
            expected: 96,
            got: 92
        })
    );
    let short = forward(PROBLEM, 24, 2, PARAMS, Activation::None).unwrap();
    assert_eq!(
        short,
        Err(Error::Length {
            name: "gamma",
            expected: 12,
            got: 8
        })
    );
}

#[test]
fn senseless_numbers_are_refused() {
    let cases = [
        (
            "epsilon",
            TrainParams {
                epsilon: -1.0,
                ..PARAMS
            },
            Activation::None,
        ),
        (
            "factor",
            TrainParams {
                factor: f64::NAN,
                ..PARAMS
            },
            Activation::None,
        ),
        (
            "correction",
            TrainParams {
                correction: f64::INFINITY,
                ..PARAMS
            },
            Activation::None,
        ),
        (
            "activation",
            PARAMS,
            Activation::Clamp { min: 1.0, max: 0.0 },
        ),
    ];
    for (expected, params, activation) in cases {
        let Some(result) = forward(PROBLEM, 24, 3, params, activation) else {
            return;
        };
        assert!(
            matches!(result, Err(Error::Value { name, .. }) if name == expected),
            "{expected}"
        );
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let layout = Layout {
        outer: 1 << 20,
        channels: 1 << 10,
        inner: 1 << 10,
    };
    let Some(result) = forward(Problem::new(layout, F32), 1, 1, PARAMS, Activation::None) else {
        return;
    };
    assert!(matches!(result, Err(Error::TooLarge { .. })));
    assert_eq!(
        Layout::from_shape(&[2, 3], 2),
        Err(Error::Axis { axis: 2, rank: 2 })
    );
    assert_eq!(
        Layout::from_shape(&[2, 3, 4, 5], 1),
        Ok(Layout {
            outer: 2,
            channels: 3,
            inner: 20
        })
    );
}

#[test]
fn types_that_the_device_lacks_are_named() {
    for (client, element, name) in [
        (client(), Element::Bf16, "bf16"),
        (client_without_f16(), Element::F16, "f16"),
    ] {
        let Some(client) = client else { return };
        let device = &client.properties().identity.name;
        if client.properties().supports_type(element.elem_type()) {
            println!("skipped: {device} has {name}");
            continue;
        }
        let problem = Problem { element, ..PROBLEM };
        let vector = empty(&client, F32, 3);
        let error = moments(&client, problem, &vector, &vector, &vector).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "{device} does not support {name}: cast the tensor to f32, or use a device that has the type"
            )
        );
    }
}

#[test]
fn empty_tensors_launch_nothing() {
    let Some(client) = client() else { return };
    for (outer, channels, inner) in [(0, 3, 4), (2, 0, 4), (2, 3, 0)] {
        let layout = Layout {
            outer,
            channels,
            inner,
        };
        let problem = Problem::new(layout, F32);
        assert_eq!(
            forward(problem, 1, 3, PARAMS, Activation::None)
                .unwrap()
                .unwrap()
                .count(),
            0
        );
        let vector = upload(&client, F32, &[1.0, 2.0, 3.0]);
        let launches = moments(&client, problem, &vector, &vector, &vector).unwrap();
        assert_eq!(launches.count(), 0);
        assert_eq!(download(&client, F32, &vector), [1.0, 2.0, 3.0]);
    }
}
