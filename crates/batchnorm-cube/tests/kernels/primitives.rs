//! Moments, normalization with given statistics, its gradients, and affine maps.

use batchnorm_cube::*;
use cubecl::prelude::*;

use crate::case::close;
use crate::device::{
    Random, client, download, download_tensor, empty, empty_tensor, upload, upload_tensor,
};
use crate::reference;

const F32: Element = Element::F32;
const EPSILON: f64 = 1e-3;

fn layouts() -> [Layout; 9] {
    [
        Layout::new(4, 6, 49),
        Layout::new(33, 12, 1),
        Layout::new(7, 3, 2),
        Layout::new(20_000, 2, 3),
        Layout::new(1, 1, 40_000),
        Layout::new(50_000, 3, 1),
        Layout::new(140_000, 3, 1),
        Layout::new(33, 12, 1).with_pitch(16),
        Layout::new(5_000, 6, 4).with_pitch(26),
    ]
}

#[test]
fn normalize_and_its_gradients() {
    let Some(client) = client() else { return };
    let activations = [Activation::None, Activation::LeakyRelu(0.2)];
    for (layout, activation) in layouts().into_iter().zip(activations.into_iter().cycle()) {
        for strategy in [Strategy::Auto, Strategy::Gpu] {
            for in_place in [false, true] {
                for packed in [false, true] {
                    let problem = Problem {
                        strategy,
                        ..Problem::new(layout, F32)
                    };
                    normalized(&client, problem, activation, in_place, packed);
                }
            }
        }
    }
}

fn normalized(
    client: &Client,
    problem: Problem,
    activation: Activation,
    in_place: bool,
    packed: bool,
) {
    let layout = problem.layout;
    let (len, channels) = (layout.len(), layout.channels);
    let mut random = Random(41);
    let [x, dy, residual] = [(); 3].map(|()| random.normal(len, 0.1, 1.0));
    let [mean, gamma, beta] = [(); 3].map(|()| random.normal(channels, 0.4, 0.3));
    let variance: Vec<f64> = gamma.iter().map(|g| 0.5 + g * g).collect();
    let inv_std: Vec<f64> = variance
        .iter()
        .map(|v| 1.0 / (v + EPSILON).sqrt())
        .collect();
    let scale: Vec<f64> = gamma.iter().zip(&inv_std).map(|(g, s)| g * s).collect();

    let (argument, centred) = reference::argument(layout, &x, &mean, &scale, &beta, &residual);
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
    let xhat: Vec<f64> = (0..len)
        .map(|i| centred[i] * inv_std[reference::channel(layout, i)])
        .collect();
    let (dbeta, dgamma) = reference::sums(layout, &g, &xhat);

    let tensor = |values: &[f64]| upload_tensor(client, F32, layout, values);
    let (x_in, x_over, dy_in, residual_in) =
        (tensor(&x), tensor(&x), tensor(&dy), tensor(&residual));
    let low = vec![0.0; channels];
    let packed_in = upload(client, F32, &[&mean[..], &low, &variance].concat());
    let [mean_in, variance_in, gamma_in, beta_in] =
        [&mean, &variance, &gamma, &beta].map(|v| upload(client, F32, v));
    let [y_out, dx_out, dresidual] = [(); 3].map(|()| empty_tensor(client, F32, layout));
    let [dgamma_out, dbeta_out] = [(); 2].map(|()| empty(client, F32, channels));
    let center = match packed {
        true => Center::Packed(&packed_in),
        false => Center::Apart {
            mean: &mean_in,
            variance: &variance_in,
        },
    };
    let affine = Affine {
        gamma: &gamma_in,
        beta: &beta_in,
    };
    let epilogue = Epilogue {
        activation,
        residual: Some(&residual_in),
    };
    let read = |handle| download_tensor(client, F32, layout, handle);

    let (target, result) = match in_place {
        true => (Target::InPlace, &x_over),
        false => (Target::To(&y_out), &y_out),
    };
    let launches = normalize(
        client, problem, &x_over, None, center, affine, EPSILON, epilogue, target,
    )
    .unwrap();
    assert_eq!(launches.count(), 1);
    close("y", &read(result), &y, 1e-5);

    let (target, result) = match in_place {
        true => (Target::InPlace, &dy_in),
        false => (Target::To(&dx_out), &dx_out),
    };
    let out = Gradients {
        input: Some(target),
        gamma: Some(&dgamma_out),
        beta: Some(&dbeta_out),
        residual: Some(&dresidual),
    };
    let backward = |dy, out| {
        normalize_backward(
            client, problem, &x_in, None, dy, affine, center, EPSILON, epilogue, out,
        )
        .unwrap()
    };
    assert!(backward(&dy_in, out).count() <= 2);
    close("dx", &read(result), &dx, 1e-4);
    close("dresidual", &read(&dresidual), &g, 1e-4);
    close("dgamma", &download(client, F32, &dgamma_out), &dgamma, 1e-4);
    close("dbeta", &download(client, F32, &dbeta_out), &dbeta, 1e-4);

    // Without the sums it is a single element-wise launch.
    let alone = empty_tensor(client, F32, layout);
    let out = Gradients {
        input: Some(Target::To(&alone)),
        ..Gradients::default()
    };
    assert_eq!(backward(&tensor(&dy), out).count(), 1);
    close("dx alone", &read(&alone), &dx, 1e-4);
}

#[test]
fn moments_and_affine_maps() {
    let Some(client) = client() else { return };
    for layout in layouts() {
        let problem = Problem::new(layout, F32);
        let (len, channels) = (layout.len(), layout.channels);
        let mut random = Random(43);
        let x = random.normal(len, 1e4, 1.0);
        let x: Vec<f64> = x.into_iter().map(|v| v as f32 as f64).collect();
        let [scale, shift] = [(); 2].map(|()| random.normal(channels, 0.4, 0.3));
        let x_in = upload_tensor(&client, F32, layout, &x);
        let center = empty(&client, F32, 3 * channels);

        let ones = vec![1.0; layout.len()];
        let [_, means, variances] = reference::moments(layout, &x, &ones);
        let launches = moments(&client, problem, &x_in, &center).unwrap();
        assert!(launches.count() <= 2);
        let rows = download(&client, F32, &center);
        for (c, (mean, variance)) in means.iter().zip(&variances).enumerate() {
            let got = rows[c] + rows[channels + c];
            assert!((got - mean).abs() < 1e-5, "{layout:?}: {got} for {mean}");
            let off = (rows[2 * channels + c] / variance - 1.0).abs();
            assert!(off < 2e-5, "{layout:?}: variance off by {off:e}");
        }

        let mean = vec![1e4; channels];
        let [mean_in, scale_in, shift_in] =
            [&mean, &scale, &shift].map(|v| upload(&client, F32, v));
        let y = empty_tensor(&client, F32, layout);
        let launches = affine(
            &client,
            problem,
            &x_in,
            &mean_in,
            &scale_in,
            &shift_in,
            Target::To(&y),
        )
        .unwrap();
        assert_eq!(launches.count(), 1);
        let (expected, _) = reference::argument(layout, &x, &mean, &scale, &shift, &[]);
        let got = download_tensor(&client, F32, layout, &y);
        close("y", &got, &expected, 1e-5);
    }
}

/// Only what is wanted is written, and nothing is launched for nothing.
#[test]
fn wanted_gradients() {
    let Some(client) = client() else { return };
    for (outer, channels, inner) in [(8, 6, 5), (20_000, 2, 3), (140_000, 3, 1)] {
        let layout = Layout::new(outer, channels, inner);
        let problem = Problem::new(layout, F32);
        let len = layout.len();
        let mut random = Random(47);
        let [x, dy] = [(); 2].map(|()| upload(&client, F32, &random.normal(len, 0.0, 1.0)));
        let [gamma, beta] =
            [(); 2].map(|()| upload(&client, F32, &random.normal(channels, 1.0, 0.1)));
        let rows = [vec![0.0; 2 * channels], vec![1.0; 2 * channels]].concat();
        let statistics = upload(&client, F32, &rows);
        let affine = Affine {
            gamma: &gamma,
            beta: &beta,
        };
        let backward = |out| {
            train_backward(
                &client,
                problem,
                &x,
                None,
                &dy,
                affine,
                &statistics,
                Epilogue::default(),
                out,
            )
            .unwrap()
        };

        let [dgamma, dbeta] = [(); 2].map(|()| empty(&client, F32, channels));
        let [dx, only] = [(); 2].map(|()| empty(&client, F32, len));
        let all = Gradients {
            input: Some(Target::To(&dx)),
            gamma: Some(&dgamma),
            beta: Some(&dbeta),
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
            gamma: Some(&only),
            ..Gradients::default()
        });
        close(
            "dgamma",
            &download(&client, F32, &only),
            &download(&client, F32, &dgamma),
            1e-5,
        );
        assert!(launches.count() <= 2);
        assert_eq!(backward(Gradients::default()).count(), 0);
    }
}
