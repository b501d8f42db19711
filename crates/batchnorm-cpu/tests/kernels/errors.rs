//! Wrong arguments are refused with a sentence, before anything is written.

use batchnorm_cpu::{
    Activation, Affine, BatchStatistics, Coefficients, Epilogue, Error, Gradients, Layout,
    Normalization, Output, Saved, Statistics, Stream, backward, backward_sums, input_grad, moments,
    normalize, train_forward,
};

const CHANNELS: usize = 3;
const ELEMENTS: usize = 24;

fn layout() -> Layout {
    Layout::new(2, CHANNELS, 4).expect("small")
}

/// Arrays of which one, chosen by its position, has the wrong length.
struct Arrays {
    wrong: usize,
    next: usize,
}

impl Arrays {
    fn make(&mut self, len: usize) -> Vec<f32> {
        self.next += 1;
        vec![
            7.5;
            if self.next - 1 == self.wrong {
                len + 1
            } else {
                len
            }
        ]
    }
}

fn forward(wrong: usize) -> Result<(), Error> {
    let mut arrays = Arrays { wrong, next: 0 };
    let [x, mut y, residual] = [(); 3].map(|()| arrays.make(ELEMENTS));
    let [gamma, beta, mut mean, mut variance, mut inv_std] =
        [(); 5].map(|()| arrays.make(CHANNELS));
    let epilogue = Epilogue {
        residual: Some(&residual),
        activation: Activation::Relu,
    };
    let out = BatchStatistics {
        mean: &mut mean,
        mean_low: None,
        variance: &mut variance,
        inv_std: &mut inv_std,
    };
    let result = train_forward(
        layout(),
        Stream::new(&x, &mut y),
        Affine {
            gamma: &gamma,
            beta: &beta,
        },
        1e-5,
        epilogue,
        out,
    );
    if result.is_err() {
        assert!(
            [y, mean, variance, inv_std]
                .concat()
                .iter()
                .all(|&v| v == 7.5),
            "a refused call writes nothing"
        );
    }
    result
}

fn backward_with(wrong: usize) -> Result<(), Error> {
    let mut arrays = Arrays { wrong, next: 0 };
    let [x, dy, mut dx, residual, mut dresidual] = [(); 5].map(|()| arrays.make(ELEMENTS));
    let [gamma, beta, mean, inv_std, mut dgamma, mut dbeta] =
        [(); 6].map(|()| arrays.make(CHANNELS));
    let epilogue = Epilogue {
        residual: Some(&residual),
        activation: Activation::Relu,
    };
    let saved = Saved {
        gamma: &gamma,
        beta: &beta,
        mean: &mean,
        mean_low: None,
        inv_std: &inv_std,
        statistics: Statistics::OfBatch,
    };
    let out = Gradients {
        residual: Some(Output::from(&mut dresidual)),
        gamma: Some(&mut dgamma),
        beta: Some(&mut dbeta),
    };
    let result = backward(
        layout(),
        &x,
        Stream::new(&dy, &mut dx),
        saved,
        epilogue,
        out,
    );
    if result.is_err() {
        assert!(
            [dx, dresidual, dgamma, dbeta]
                .concat()
                .iter()
                .all(|&v| v == 7.5),
            "a refused call writes nothing"
        );
    }
    result
}

fn primitives(wrong: usize) -> [Result<(), Error>; 4] {
    let mut arrays = Arrays { wrong, next: 0 };
    let [x, dy, mut out, residual] = [(); 4].map(|()| arrays.make(ELEMENTS));
    let [mean, scale, shift, a, b, c, mut p, mut q] = [(); 8].map(|()| arrays.make(CHANNELS));
    let params = Normalization {
        mean: &mean,
        scale: &scale,
        shift: &shift,
    };
    let epilogue = Epilogue {
        residual: Some(&residual),
        activation: Activation::None,
    };
    let coefficients = Coefficients {
        a: &a,
        b: &b,
        c: &c,
    };
    [
        moments(layout(), &x, &mut p, &mut q),
        normalize(layout(), Stream::new(&x, &mut out), params, epilogue),
        backward_sums(layout(), &x, &dy, params, epilogue, &mut p, &mut q),
        input_grad(
            layout(),
            &x,
            Stream::new(&dy, &mut out),
            params,
            coefficients,
            epilogue,
            None,
        ),
    ]
}

#[test]
fn every_wrong_length_is_refused() {
    for wrong in 0..8 {
        assert!(
            matches!(forward(wrong), Err(Error::Length { .. })),
            "forward, argument {wrong}"
        );
    }
    assert_eq!(forward(8), Ok(()));
    for wrong in 0..11 {
        assert!(
            matches!(backward_with(wrong), Err(Error::Length { .. })),
            "backward, argument {wrong}"
        );
    }
    assert_eq!(backward_with(11), Ok(()));
    // Which of x, dy, out, residual, mean, scale, shift, a, b, c, p, q each primitive takes.
    let takes = [
        0b110000000001,
        0b000001111101,
        0b110001111011,
        0b001111111111,
    ];
    for wrong in 0..13 {
        for (kernel, result) in primitives(wrong).into_iter().enumerate() {
            assert_eq!(
                result.is_err(),
                takes[kernel] >> wrong & 1 == 1,
                "primitive {kernel}, argument {wrong}"
            );
        }
    }
}

#[test]
fn the_message_says_what_was_expected() {
    let error = forward(3).expect_err("gamma is too long");
    assert_eq!(
        error.to_string(),
        "`gamma` has the wrong length: expected 3 channels, got 4"
    );
    let error = forward(2).expect_err("the residual is too long");
    assert_eq!(
        error.to_string(),
        "`residual` has the wrong length: expected 24 elements, got 25"
    );
    let error = Layout::from_shape(&[2, 3], 2).expect_err("there is no axis 2");
    assert_eq!(
        error.to_string(),
        "the channel axis must be smaller than the rank: expected less than 2, got 2"
    );
}

#[test]
fn numbers_outside_of_their_range_are_refused() {
    let run = |epsilon: f64, activation| {
        let [mut mean, mut variance, mut inv_std] = [[0.0f32]; 3];
        let out = BatchStatistics {
            mean: &mut mean,
            mean_low: None,
            variance: &mut variance,
            inv_std: &mut inv_std,
        };
        let layout = Layout::new(2, 1, 1).expect("small");
        let affine = Affine {
            gamma: &[1.0],
            beta: &[0.0],
        };
        train_forward(
            layout,
            Stream::in_place(&mut [1.0f32, 2.0]),
            affine,
            epsilon,
            Epilogue::activation(activation),
            out,
        )
    };
    assert_eq!(run(0.0, Activation::None), Ok(()));
    for epsilon in [-1e-9, f64::NAN] {
        assert!(matches!(
            run(epsilon, Activation::None),
            Err(Error::Value {
                name: "epsilon",
                ..
            })
        ));
    }
    assert!(matches!(
        run(1e-5, Activation::LeakyRelu(f64::INFINITY)),
        Err(Error::Value {
            name: "activation",
            ..
        })
    ));
}

#[test]
fn a_residual_gradient_needs_a_residual() {
    let mut dresidual = [0.0; 2];
    let out = Gradients {
        residual: Some(Output::from(&mut dresidual[..])),
        ..Gradients::default()
    };
    let saved = Saved {
        gamma: &[1.0],
        beta: &[0.0],
        mean: &[1.5],
        mean_low: None,
        inv_std: &[2.0],
        statistics: Statistics::OfBatch,
    };
    let layout = Layout::new(2, 1, 1).expect("small");
    let result = backward(
        layout,
        &[1.0, 2.0],
        Stream::in_place(&mut [0.5, 0.25]),
        saved,
        Epilogue::default(),
        out,
    );
    assert!(matches!(
        result,
        Err(Error::Value {
            name: "dresidual",
            ..
        })
    ));
}
