//! Normalization with given statistics, and the parts of training.

use batchnorm_cube::*;
use cubecl::prelude::*;

use crate::case::close;
use crate::device::{Random, client, download, empty, upload};
use crate::reference;

const F32: Element = Element::F32;
const LAYOUTS: [(usize, usize, usize); 6] = [
    (4, 6, 49),
    (33, 12, 1),
    (7, 3, 2),
    (20_000, 2, 3),
    (1, 1, 40_000),
    (50_000, 3, 1),
];

fn problem((outer, channels, inner): (usize, usize, usize)) -> Problem {
    let layout = Layout {
        outer,
        channels,
        inner,
    };
    Problem::new(layout, F32)
}

#[test]
fn normalize_and_its_gradients() {
    let Some(client) = client() else { return };
    for (shape, activation) in LAYOUTS.into_iter().zip(
        [Activation::None, Activation::LeakyRelu(0.2)]
            .into_iter()
            .cycle(),
    ) {
        for in_place in [false, true] {
            let problem = problem(shape);
            normalized(&client, problem, activation, in_place);
            let strategy = Strategy::Gpu;
            normalized(
                &client,
                Problem {
                    strategy,
                    ..problem
                },
                activation,
                in_place,
            );
        }
    }
}

fn normalized(client: &Client, problem: Problem, activation: Activation, in_place: bool) {
    let layout = problem.layout;
    let (len, channels) = (layout.len(), layout.channels);
    let mut random = Random(41);
    let [x, dy, residual] = [(); 3].map(|()| random.normal(len, 0.1, 1.0));
    let [mean, scale, shift] = [(); 3].map(|()| random.normal(channels, 0.4, 0.3));

    let (argument, centred) = reference::argument(layout, &x, &mean, &scale, &shift, &residual);
    let y: Vec<f64> = argument
        .iter()
        .map(|v| reference::act(activation, *v).0)
        .collect();
    let g: Vec<f64> = argument
        .iter()
        .zip(&dy)
        .map(|(v, dy)| dy * reference::act(activation, *v).1)
        .collect();
    let dx: Vec<f64> = (0..len)
        .map(|i| g[i] * scale[reference::channel(layout, i)])
        .collect();
    let (dshift, dscale) = reference::sums(layout, &g, &centred);

    let [x_in, x_over, dy_in, residual_in] =
        [&x, &x, &dy, &residual].map(|v| upload(client, F32, v));
    let [mean_in, scale_in, shift_in] = [&mean, &scale, &shift].map(|v| upload(client, F32, v));
    let [y_out, dx_out, dresidual] = [(); 3].map(|()| empty(client, F32, len));
    let [dscale_out, dshift_out] = [(); 2].map(|()| empty(client, F32, channels));
    let affine = Affine {
        scale: &scale_in,
        shift: &shift_in,
    };
    let epilogue = Epilogue {
        activation,
        residual: Some(&residual_in),
    };

    let target = if in_place {
        Target::InPlace
    } else {
        Target::To(&y_out)
    };
    let launches = normalize(client, problem, &x_over, &mean_in, affine, epilogue, target).unwrap();
    assert_eq!(launches.count(), 1);
    close(
        "y",
        &download(client, F32, if in_place { &x_over } else { &y_out }),
        &y,
        1e-5,
    );

    let target = if in_place {
        Target::InPlace
    } else {
        Target::To(&dx_out)
    };
    let out = Gradients {
        input: Some(target),
        scale: Some(&dscale_out),
        shift: Some(&dshift_out),
        residual: Some(&dresidual),
    };
    let launches = normalize_backward(
        client, problem, &x_in, &dy_in, affine, &mean_in, epilogue, out,
    )
    .unwrap();
    assert!(launches.count() <= 2);
    close(
        "dx",
        &download(client, F32, if in_place { &dy_in } else { &dx_out }),
        &dx,
        1e-4,
    );
    close("dresidual", &download(client, F32, &dresidual), &g, 1e-4);
    close("dscale", &download(client, F32, &dscale_out), &dscale, 1e-4);
    close("dshift", &download(client, F32, &dshift_out), &dshift, 1e-4);
}

#[test]
fn moments_sums_and_input_gradient() {
    let Some(client) = client() else { return };
    for shape in LAYOUTS {
        let problem = problem(shape);
        let layout = problem.layout;
        let (len, channels) = (layout.len(), layout.channels);
        let mut random = Random(43);
        let [x, dy] = [(); 2].map(|()| random.normal(len, 0.7, 1.0));
        let [center, a, b, c] = [(); 4].map(|()| random.normal(channels, 0.4, 0.3));

        let [x_in, dy_in] = [&x, &dy].map(|v| upload(&client, F32, v));
        let [center_in, a_in, b_in, c_in] = [&center, &a, &b, &c].map(|v| upload(&client, F32, v));
        let [mean, m2, sum, product] = [(); 4].map(|()| empty(&client, F32, channels));
        let dx = empty(&client, F32, len);

        let n = layout.samples_per_channel() as f64;
        let (means, m2s): (Vec<f64>, Vec<f64>) = reference::moments(layout, &x)
            .into_iter()
            .map(|(mean, v)| (mean, v * n))
            .unzip();
        moments(&client, problem, &x_in, &mean, &m2).unwrap();
        close("mean", &download(&client, F32, &mean), &means, 1e-6);
        close("m2", &download(&client, F32, &m2), &m2s, 2e-5);

        let centred: Vec<f64> = (0..len)
            .map(|i| x[i] - center[reference::channel(layout, i)])
            .collect();
        let (sums, products) = reference::sums(layout, &dy, &centred);
        backward_sums(&client, problem, &x_in, &dy_in, &center_in, &sum, &product).unwrap();
        close("sum", &download(&client, F32, &sum), &sums, 1e-4);
        close(
            "centred sum",
            &download(&client, F32, &product),
            &products,
            1e-4,
        );

        let coefficients = Coefficients {
            a: &a_in,
            b: &b_in,
            c: &c_in,
        };
        let launches = input_grad(
            &client,
            problem,
            &x_in,
            &dy_in,
            &center_in,
            coefficients,
            Target::To(&dx),
        )
        .unwrap();
        assert_eq!(launches.count(), 1);
        let expected: Vec<f64> = (0..len)
            .map(|i| {
                let k = reference::channel(layout, i);
                a[k] * dy[i] + b[k] * centred[i] + c[k]
            })
            .collect();
        close("dx", &download(&client, F32, &dx), &expected, 1e-5);
    }
}

/// Only what is wanted is written, and nothing is launched for nothing.
#[test]
fn wanted_gradients() {
    let Some(client) = client() else { return };
    for shape in [(8, 6, 5), (20_000, 2, 3)] {
        let problem = problem(shape);
        let layout = problem.layout;
        let (len, channels) = (layout.len(), layout.channels);
        let mut random = Random(47);
        let [x, dy] = [(); 2].map(|()| upload(&client, F32, &random.normal(len, 0.0, 1.0)));
        let [gamma, beta] =
            [(); 2].map(|()| upload(&client, F32, &random.normal(channels, 1.0, 0.1)));
        let saved = upload(
            &client,
            F32,
            &[vec![0.0; 2 * channels], vec![1.0; channels]].concat(),
        );
        let affine = Affine {
            scale: &gamma,
            shift: &beta,
        };
        let backward = |out| {
            train_backward(
                &client,
                problem,
                &x,
                &dy,
                affine,
                &saved,
                Epilogue::default(),
                out,
            )
            .unwrap()
        };

        let [dgamma, dbeta] = [(); 2].map(|()| empty(&client, F32, channels));
        let [dx, only] = [(); 2].map(|()| empty(&client, F32, len));
        let all = Gradients {
            input: Some(Target::To(&dx)),
            scale: Some(&dgamma),
            shift: Some(&dbeta),
            residual: None,
        };
        backward(all);
        backward(Gradients {
            input: Some(Target::To(&only)),
            ..Gradients::default()
        });
        assert_eq!(download(&client, F32, &dx), download(&client, F32, &only));

        let only = empty(&client, F32, channels);
        let launches = backward(Gradients {
            scale: Some(&only),
            ..Gradients::default()
        });
        assert_eq!(
            download(&client, F32, &dgamma),
            download(&client, F32, &only)
        );
        assert!(launches.count() <= 2);
        assert_eq!(backward(Gradients::default()).count(), 0);
    }
}
