//! What is refused, and what is done with nothing.

use batchnorm_cube::*;

use crate::device::{client, client_without_f16, download, empty, upload};

const F32: Element = Element::F32;

fn problem() -> Problem {
    Problem::new(Layout::new(2, 3, 4), F32)
}

/// The numbers of a forward.
#[derive(Clone, Copy)]
struct Given {
    epsilon: f64,
    keep: f64,
    add_variance: f64,
    activation: Activation,
}

const GIVEN: Given = Given {
    epsilon: 1e-5,
    keep: 0.9,
    add_variance: 0.1,
    activation: Activation::None,
};

/// A forward whose tensors have `len` elements and whose vectors have `channels`.
fn forward(
    problem: Problem,
    len: usize,
    channels: usize,
    given: Given,
) -> Option<Result<Launches, Error>> {
    let client = client()?;
    let [x, y] = [(); 2].map(|()| empty(&client, F32, len));
    let [gamma, beta, old, new_mean, new_variance] =
        [(); 5].map(|()| empty(&client, F32, channels));
    let statistics = empty(&client, F32, 4 * channels);
    let affine = Affine {
        gamma: &gamma,
        beta: &beta,
    };
    let running = Running {
        mean: &old,
        variance: &old,
        new_mean: &new_mean,
        new_variance: &new_variance,
        keep: given.keep,
        add_mean: 0.1,
        add_variance: given.add_variance,
    };
    let epilogue = Epilogue {
        activation: given.activation,
        residual: None,
    };
    let out = TrainOutputs {
        y: Target::To(&y),
        statistics: &statistics,
    };
    Some(train(
        &client,
        problem,
        &x,
        None,
        affine,
        Some(running),
        given.epsilon,
        epilogue,
        out,
    ))
}

#[test]
fn wrong_lengths_are_refused() {
    let Some(result) = forward(problem(), 24, 3, GIVEN) else {
        return;
    };
    assert_eq!(result.unwrap().count(), 1);

    let short = forward(problem(), 23, 3, GIVEN).unwrap();
    assert_eq!(
        short,
        Err(Error::Length {
            name: "x",
            expected: 96,
            got: 92
        })
    );
    let short = forward(problem(), 24, 2, GIVEN).unwrap();
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
    let clamp = |min, max| Activation::Clamp { min, max };
    let cases = [
        (
            "epsilon",
            Given {
                epsilon: -1.0,
                ..GIVEN
            },
        ),
        (
            "keep",
            Given {
                keep: f64::NAN,
                ..GIVEN
            },
        ),
        (
            "add_variance",
            Given {
                add_variance: f64::INFINITY,
                ..GIVEN
            },
        ),
        (
            "activation",
            Given {
                activation: clamp(1.0, 0.0),
                ..GIVEN
            },
        ),
        (
            "activation",
            Given {
                activation: clamp(f64::NAN, 0.0),
                ..GIVEN
            },
        ),
    ];
    for (expected, given) in cases {
        let Some(result) = forward(problem(), 24, 3, given) else {
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
    for (layout, expected) in [
        (Layout::new(1 << 20, 1 << 10, 1 << 10), "too large"),
        (Layout::new(usize::MAX, 2, 3), "too large"),
        (Layout::new(2, 3, 4).with_pitch(11), "share memory"),
        (
            Layout::new(1, 1, 40_000_000),
            "buffers of at most 134217728",
        ),
    ] {
        let Some(result) = forward(Problem::new(layout, F32), 1, 1, GIVEN) else {
            return;
        };
        let error = result.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    assert_eq!(
        Layout::from_shape(&[2, 3], 2),
        Err(Error::Axis { axis: 2, rank: 2 })
    );
    assert_eq!(
        Layout::from_shape(&[2, 3, 4, 5], 1),
        Ok(Layout::new(2, 3, 20))
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
        let problem = Problem {
            element,
            ..problem()
        };
        let vector = empty(&client, F32, 3);
        let error = moments(&client, problem, &vector, &vector).unwrap_err();
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
        let problem = Problem::new(Layout::new(outer, channels, inner), F32);
        assert_eq!(forward(problem, 1, 3, GIVEN).unwrap().unwrap().count(), 0);
        let center = upload(&client, F32, &[1.0; 9]);
        let launches = moments(&client, problem, &center, &center).unwrap();
        assert_eq!(launches.count(), 0);
        assert_eq!(download(&client, F32, &center), [1.0; 9]);
    }
}
