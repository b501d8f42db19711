//! Wrong arguments are refused with a sentence, before anything is written.

use batchnorm_cpu::{
    Activation, Affine, Epilogue, Error, Given, Gradients, InOut, Layout, Output, Saved,
    Statistics, affine, backward, blend, moments, normalize, train,
};

const CHANNELS: usize = 3;
const ELEMENTS: usize = 24;

fn layout() -> Layout {
    Layout::new(2, CHANNELS, 4).expect("small")
}

/// Arrays of which one, chosen by its position, has the wrong length.
struct Arrays {
    wrong: usize,
    by: isize,
    next: usize,
}

impl Arrays {
    fn make(&mut self, len: usize) -> Vec<f32> {
        self.next += 1;
        let by = if self.next - 1 == self.wrong {
            self.by
        } else {
            0
        };
        vec![7.5; len.strict_add_signed(by)]
    }
}

fn untouched(result: &Result<(), Error>, arrays: &[&[f32]]) {
    let written = arrays.concat().iter().any(|&v| v != 7.5);
    assert!(result.is_ok() || !written, "a refused call writes nothing");
}

fn forward(wrong: usize, by: isize) -> Result<(), Error> {
    let mut arrays = Arrays { wrong, by, next: 0 };
    let [x, mut y, residual] = [(); 3].map(|()| arrays.make(ELEMENTS));
    let [
        gamma,
        beta,
        mut mean,
        mut mean_lo,
        mut variance,
        mut inv_std,
    ] = [(); 6].map(|()| arrays.make(CHANNELS));
    let epilogue = Epilogue {
        residual: Some(&residual),
        activation: Activation::Relu,
    };
    let affine = Affine {
        gamma: &gamma,
        beta: &beta,
    };
    let out = Statistics {
        mean: &mut mean[..],
        mean_lo: &mut mean_lo[..],
        variance: &mut variance[..],
        inv_std: &mut inv_std[..],
    };
    let result = train(
        layout(),
        InOut::new(&x, &mut y),
        affine,
        1e-5,
        epilogue,
        out,
    );
    untouched(&result, &[&y, &mean, &mean_lo, &variance, &inv_std]);
    result
}

fn backward_with(wrong: usize, by: isize, batch: bool) -> Result<(), Error> {
    let mut arrays = Arrays { wrong, by, next: 0 };
    let [x, dy, mut x_grad, residual, mut residual_grad] = [(); 5].map(|()| arrays.make(ELEMENTS));
    let [
        gamma,
        beta,
        mean,
        mean_lo,
        variance,
        mut gamma_grad,
        mut beta_grad,
    ] = [(); 7].map(|()| arrays.make(CHANNELS));
    let inv_std = arrays.make(CHANNELS);
    let epilogue = Epilogue {
        residual: Some(&residual),
        activation: Activation::Relu,
    };
    let saved = if batch {
        Saved::Batch(Statistics {
            mean: &mean[..],
            mean_lo: &mean_lo,
            variance: &variance,
            inv_std: &inv_std,
        })
    } else {
        Saved::Given(Given {
            mean: &mean,
            mean_lo: Some(&mean_lo),
            variance: &variance,
            epsilon: 1e-5,
        })
    };
    let affine = Affine {
        gamma: &gamma,
        beta: &beta,
    };
    let out = Gradients {
        residual: Some(Output::from(&mut residual_grad)),
        gamma: Some(&mut gamma_grad),
        beta: Some(&mut beta_grad),
    };
    let dy = InOut::new(&dy, &mut x_grad);
    let result = backward(layout(), &x, dy, saved, affine, epilogue, out);
    untouched(&result, &[&x_grad, &residual_grad, &gamma_grad, &beta_grad]);
    result
}

fn others(wrong: usize, by: isize) -> [Result<(), Error>; 4] {
    let mut arrays = Arrays { wrong, by, next: 0 };
    let [x, mut out, residual] = [(); 3].map(|()| arrays.make(ELEMENTS));
    let [mean, scale, shift, mut p, mut q, mut r] = [(); 6].map(|()| arrays.make(CHANNELS));
    let given = Given {
        mean: &mean,
        mean_lo: Some(&p),
        variance: &q,
        epsilon: 1e-5,
    };
    let parameters = Affine {
        gamma: &scale,
        beta: &shift,
    };
    let epilogue = Epilogue {
        residual: Some(&residual),
        activation: Activation::None,
    };
    let normalized = normalize(
        layout(),
        InOut::new(&x, &mut out),
        given,
        parameters,
        epilogue,
    );
    let applied = affine(layout(), InOut::new(&x, &mut out), &mean, &scale, &shift);
    let blended = blend(&mean, &scale, 0.5, 0.5, &mut r);
    [
        moments(layout(), &x, &mut p, &mut q, &mut r),
        normalized,
        applied,
        blended,
    ]
}

#[test]
fn every_wrong_length_is_refused() {
    for by in [-2, -1, 1] {
        for wrong in 0..9 {
            let result = forward(wrong, by);
            assert!(matches!(result, Err(Error::Length { .. })), "train {wrong}");
        }
        for batch in [true, false] {
            for wrong in 0..12 + usize::from(batch) {
                let result = backward_with(wrong, by, batch);
                assert!(
                    matches!(result, Err(Error::Length { .. })),
                    "backward {wrong}"
                );
            }
            assert_eq!(backward_with(13, by, batch), Ok(()));
        }
        assert_eq!(forward(9, by), Ok(()));
        // Which of x, out, residual, mean, scale, shift, p, q, r each takes.
        let takes = [0b111000001, 0b011111111, 0b000111011, 0b100011000];
        for wrong in 0..10 {
            for (kernel, result) in others(wrong, by).into_iter().enumerate() {
                assert_eq!(
                    result.is_err(),
                    takes[kernel] >> wrong & 1 == 1,
                    "function {kernel}, argument {wrong}"
                );
            }
        }
    }
}

#[test]
fn a_buffer_of_statistics_has_four_vectors() {
    let mut buffer = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
    let statistics = Statistics::split(&buffer, 2).expect("four of two");
    assert_eq!(statistics.mean_lo, [3.0, 4.0]);
    assert_eq!(statistics.inv_std, [7.0, 8.0]);
    assert!(Statistics::split(&buffer, 3).is_err());
    assert!(Statistics::split(&buffer, usize::MAX).is_err());
    assert!(Statistics::split_mut(&mut buffer[..7], 2).is_err());
    assert!(Statistics::split_mut(&mut buffer, 2).is_ok());
}

#[test]
fn the_message_says_what_was_expected() {
    let error = forward(3, 1).expect_err("gamma is too long");
    assert_eq!(
        error.to_string(),
        "`gamma` has the wrong length: expected 3 channels, got 4"
    );
    let error = forward(2, 1).expect_err("the residual is too long");
    assert_eq!(
        error.to_string(),
        "`residual` has the wrong length: expected 24 elements, got 25"
    );
    let error = forward(6, -2).expect_err("mean_lo is too short");
    assert_eq!(
        error.to_string(),
        "`mean_lo` has the wrong length: expected 3 channels, got 1"
    );
    let error = Layout::from_shape(&[2, 3], 2).expect_err("there is no axis 2");
    assert_eq!(
        error.to_string(),
        "the channel axis must be smaller than the rank: expected less than 2, got 2"
    );
}

#[test]
fn numbers_outside_of_their_range_are_refused() {
    let layout = Layout::new(2, 1, 1).expect("small");
    let parameters = Affine {
        gamma: &[1.0],
        beta: &[0.0],
    };
    let run = |epsilon: f64, activation: Activation| {
        let mut saved = [7.5f32; 4];
        let out = Statistics::split_mut(&mut saved, 1).expect("four");
        let mut x = [1.0f32, 2.0];
        let x = InOut::in_place(&mut x);
        let result = train(layout, x, parameters, epsilon, activation.into(), out);
        untouched(&result, &[&saved]);
        let given = Given {
            mean: &[1.5],
            mean_lo: None,
            variance: &[1.0],
            epsilon,
        };
        let mut x = [1.0f32, 2.0];
        let x = InOut::in_place(&mut x);
        let other = normalize(layout, x, given, parameters, activation.into());
        assert_eq!(result, other);
        let (dy, saved) = (InOut::only(&[1.0f32, 2.0]), Saved::Given(given));
        let out = Gradients::default();
        let other = backward(
            layout,
            &[1.0, 2.0],
            dy,
            saved,
            parameters,
            activation.into(),
            out,
        );
        assert_eq!(result, other);
        result
    };
    assert_eq!(run(1e-5, Activation::None), Ok(()));
    for epsilon in [0.0, -1e-9, f64::NAN, f64::INFINITY] {
        assert!(matches!(
            run(epsilon, Activation::None),
            Err(Error::Value {
                name: "epsilon",
                ..
            })
        ));
    }
    for activation in [
        Activation::LeakyRelu(f64::INFINITY),
        Activation::LeakyRelu(1e39),
        Activation::Clamp { min: 1.0, max: 0.0 },
    ] {
        assert!(matches!(
            run(1e-5, activation),
            Err(Error::Value {
                name: "activation",
                ..
            })
        ));
    }
}

#[test]
fn an_output_that_has_nothing_to_do_is_refused_and_so_is_a_missing_one() {
    let layout = Layout::new(2, 1, 1).expect("small");
    let parameters = Affine {
        gamma: &[1.0],
        beta: &[0.0],
    };
    let given = Given {
        mean: &[1.5],
        mean_lo: None,
        variance: &[1.0],
        epsilon: 1e-5,
    };
    let mut residual_grad = [0.0; 2];
    let out = Gradients {
        residual: Some(Output::from(&mut residual_grad[..])),
        ..Gradients::default()
    };
    let result = backward(
        layout,
        &[1.0, 2.0],
        InOut::in_place(&mut [0.5, 0.25]),
        Saved::Given(given),
        parameters,
        Epilogue::default(),
        out,
    );
    assert!(matches!(
        result,
        Err(Error::Value {
            name: "residual_grad",
            ..
        })
    ));
    let x = InOut::only(&[1.0, 2.0]);
    let result = normalize(layout, x, given, parameters, Epilogue::default());
    assert!(matches!(result, Err(Error::Value { name: "y", .. })));
}

#[test]
fn empty_layouts_do_not_overflow() {
    for (outer, channels, inner) in [
        (usize::MAX, 2, 0),
        (0, 2, usize::MAX),
        (usize::MAX, 0, 2),
        (0, 1, usize::MAX),
        (1 << 40, 1 << 20, 0),
    ] {
        let layout = Layout::new(outer, channels, inner).expect("no elements");
        assert_eq!(layout.elements(), 0);
        if channels > 2 {
            continue;
        }
        let vectors = vec![1.0f32; channels];
        let parameters = Affine {
            gamma: &vectors,
            beta: &vectors,
        };
        let mut saved = vec![7.5; 4 * channels];
        let out = Statistics::split_mut(&mut saved, channels).expect("four");
        let x = InOut::<f32>::in_place(&mut []);
        train(layout, x, parameters, 1.0, Epilogue::default(), out).expect("valid");
        let statistics = Statistics::split(&saved, channels).expect("four");
        assert!(
            statistics
                .mean
                .iter()
                .chain(statistics.variance)
                .all(|&v| v == 0.0)
        );
        let (mut gamma_grad, mut beta_grad) = (vectors.clone(), vectors.clone());
        let out = Gradients::<f32> {
            residual: None,
            gamma: Some(&mut gamma_grad),
            beta: Some(&mut beta_grad),
        };
        let (dy, saved) = (InOut::in_place(&mut []), Saved::Batch(statistics));
        backward(layout, &[], dy, saved, parameters, Epilogue::default(), out).expect("valid");
        assert!(gamma_grad.iter().chain(&beta_grad).all(|&g| g == 0.0));
    }
}
