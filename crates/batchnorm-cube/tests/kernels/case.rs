//! One case: forward and backward of a tensor on the device, held against the oracle.

use batchnorm_cube::*;
use cubecl::prelude::*;

use crate::device::{
    Random, download, download_tensor, empty, empty_tensor, rounded, upload, upload_tensor,
};
use crate::positions::Positions;
use crate::reference;

/// What is tried.
#[derive(Clone, Copy)]
pub struct Case {
    pub layout: Layout,
    pub element: Element,
    pub strategy: Strategy,
    pub mean: f64,
    pub activation: Activation,
    pub residual: bool,
    pub in_place: bool,
    pub positions: Positions,
}

impl Case {
    pub fn new(outer: usize, channels: usize, inner: usize) -> Self {
        Self {
            layout: Layout::new(outer, channels, inner),
            element: Element::F32,
            strategy: Strategy::Auto,
            mean: 0.3,
            activation: Activation::None,
            residual: false,
            in_place: false,
            positions: Positions::Even,
        }
    }

    fn tolerances(&self) -> (f64, f64) {
        match self.element {
            // f32 outputs 1e-5 and gradients 1e-4, relative to the spread of what is compared.
            Element::F32 => (1e-5, 1e-4),
            Element::F64 => (1e-11, 1e-10),
            // Half an ulp at the largest output is 2^-11 of it in f16, 2^-9 in bf16.
            Element::F16 => (2e-3, 2e-3),
            Element::Bf16 => (4e-3, 4e-3),
        }
    }
}

/// Compares, relative to the largest expected value and at least to 1, the deviation of the data.
pub fn close(name: &str, got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{name}: length");
    let largest = expected.iter().fold(1f64, |a, b| a.max(b.abs()));
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        let off = (g - e).abs() / largest;
        assert!(
            off <= tolerance,
            "{name}[{i}]: got {g}, expected {e}, off by {off:e} of {largest}"
        );
    }
}

const EPSILON: f64 = 1e-5;
const FACTOR: f64 = 0.1;

/// Runs the case through `train` and `train_backward`, or their weighted forms; the number of launches of both.
pub fn check_train(client: &Client, case: Case) -> (usize, usize) {
    let Case {
        layout,
        element,
        activation,
        in_place,
        ..
    } = case;
    let (forward_tolerance, backward_tolerance) = case.tolerances();
    let (len, channels) = (layout.len(), layout.channels);
    let problem = Problem {
        strategy: case.strategy,
        ..Problem::new(layout, element)
    };
    let float = element.accumulator();

    let mut random = Random(0x9E37_79B9_7F4A_7C15 ^ len as u64);
    let mut x = rounded(element, random.normal(len, case.mean, 1.0));
    let weights = rounded(float, case.positions.weights(layout));
    case.positions.spoil(&weights, &mut x);
    let dy = rounded(element, random.normal(len, 0.2, 1.0));
    let residual = match case.residual {
        true => rounded(element, random.normal(len, 0.1, 0.5)),
        false => Vec::new(),
    };
    let gamma = rounded(float, random.normal(channels, 1.0, 0.2));
    let beta = rounded(float, random.normal(channels, 0.0, 0.5));
    let old_mean = rounded(float, random.normal(channels, 0.0, 1.0));
    let old_var = rounded(float, random.normal(channels, 2.0, 0.1));

    // The oracle.
    let [sums, mean, variance] = reference::moments(layout, &x, &weights);
    let given = x;
    let x = reference::finite(layout, &given, &mean);
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
    let xhat: Vec<f64> = (0..len)
        .map(|i| centred[i] * inv_std[reference::channel(layout, i)])
        .collect();
    let (dbeta, dgamma) = reference::sums(layout, &g, &xhat);
    let dx: Vec<f64> = (0..len)
        .map(|i| {
            let c = reference::channel(layout, i);
            scale[c] * (g[i] - weights[i] / sums[c] * (dbeta[c] + xhat[i] * dgamma[c]))
        })
        .collect();
    let n = layout.samples_per_channel() as f64;
    let correction = if n > 1.0 { n / (n - 1.0) } else { 1.0 };
    let blend = |old: &[f64], new: &[f64], factor: f64| -> Vec<f64> {
        old.iter()
            .zip(new)
            .map(|(o, n)| (1.0 - FACTOR) * o + FACTOR * factor * n)
            .collect()
    };

    // The device.
    let [x_in, dy_in] = [&given, &dy].map(|values| upload_tensor(client, element, layout, values));
    let weights_in = case.positions.upload(client, float, layout, &weights);
    let [gamma, beta, old_mean_in, old_var_in] =
        [&gamma, &beta, &old_mean, &old_var].map(|values| upload(client, float, values));
    let residual_in = case
        .residual
        .then(|| upload_tensor(client, element, layout, &residual));
    let [y_out, dx_out, dresidual] = [(); 3].map(|()| empty_tensor(client, element, layout));
    let [new_mean, new_var, dgamma_out, dbeta_out] =
        [(); 4].map(|()| empty(client, float, channels));
    let rows = 4 + usize::from(weights_in.is_some());
    let statistics = empty(client, float, rows * channels);

    let affine = Affine {
        gamma: &gamma,
        beta: &beta,
    };
    let epilogue = Epilogue {
        activation,
        residual: residual_in.as_ref(),
    };
    let running = Running {
        mean: &old_mean_in,
        variance: &old_var_in,
        new_mean: &new_mean,
        new_variance: &new_var,
        keep: 1.0 - FACTOR,
        add_mean: FACTOR,
        add_variance: FACTOR * correction,
    };

    // The backward needs x: the forward in place gets a copy.
    let forward_in = if in_place {
        upload_tensor(client, element, layout, &given)
    } else {
        x_in.clone()
    };
    let target = if in_place {
        Target::InPlace
    } else {
        Target::To(&y_out)
    };
    let out = TrainOutputs {
        y: target,
        statistics: &statistics,
    };
    let (x_in_place, running) = (&forward_in, Some(running));
    let handles = weights_in
        .as_ref()
        .map(|weights| case.positions.handle(weights));
    let forward = train(
        client, problem, x_in_place, handles, affine, running, EPSILON, epilogue, out,
    )
    .unwrap();

    let spread = |values: &[f64]| values.iter().fold(1.0f64, |a, b| a.max(b.abs()));
    let got = if in_place { &forward_in } else { &y_out };
    let got = download_tensor(client, element, layout, got);
    close("y", &got, &y, forward_tolerance);
    let rows = download(client, float, &statistics);
    let rows: Vec<&[f64]> = rows.chunks_exact(channels).collect();
    close("mean", rows[0], &mean, 1e-6);
    for (c, low) in rows[1].iter().enumerate() {
        // Half an ulp of the mean.
        assert!(low.abs() <= mean[c].abs() * 6.1e-8, "low[{c}]: {low}");
        let off = (rows[0][c] + low - mean[c]).abs();
        let allowed = 1e-6 * (variance[c].sqrt() + 1e-30);
        assert!(off <= allowed, "mean[{c}] in two parts: off by {off:e}");
    }
    close("variance", rows[2], &variance, 2e-5);
    close("inv_std", rows[3], &inv_std, 2e-5);
    if let Some(row) = rows.get(4) {
        close("sum of weights", row, &sums, 1e-6);
    }
    close(
        "new_running_mean",
        &download(client, float, &new_mean),
        &blend(&old_mean, &mean, 1.0),
        1e-6,
    );
    close(
        "new_running_var",
        &download(client, float, &new_var),
        &blend(&old_var, &variance, correction),
        2e-5,
    );

    let target = if in_place {
        Target::InPlace
    } else {
        Target::To(&dx_out)
    };
    let out = Gradients {
        input: Some(target),
        gamma: Some(&dgamma_out),
        beta: Some(&dbeta_out),
        residual: Some(&dresidual),
    };
    let (x_in, dy_all) = (&x_in, &dy_in);
    let backward = train_backward(
        client,
        problem,
        x_in,
        handles,
        dy_all,
        affine,
        &statistics,
        epilogue,
        out,
    )
    .unwrap();
    // A value whose activation argument is a rounding error away from a kink may fall on either side of it.
    let kinked = argument.iter().any(|v| {
        let near = |kink: f64| (v - kink).abs() < 1e-5 * spread(&argument);
        match activation {
            Activation::None => false,
            Activation::Relu | Activation::LeakyRelu(_) => near(0.0),
            Activation::Relu6 => near(0.0) || near(6.0),
            Activation::Clamp { min, max } => near(min) || near(max),
            Activation::HardSwish => near(-3.0) || near(3.0),
            _ => false,
        }
    });
    if !kinked {
        let got = if in_place { &dy_in } else { &dx_out };
        let got = download_tensor(client, element, layout, got);
        close("dx", &got, &dx, backward_tolerance);
        close(
            "dresidual",
            &download_tensor(client, element, layout, &dresidual),
            &g,
            backward_tolerance,
        );
        // Terms that cancel leave the rounding of the mean and of the sum: some 1e-7 of the sum of their magnitudes.
        let magnitude = |factor: &[f64]| {
            let terms: Vec<f64> = g.iter().zip(factor).map(|(g, f)| (g * f).abs()).collect();
            reference::sums(layout, &terms, &terms).0
        };
        for (name, handle, expected, terms) in [
            ("dbeta", &dbeta_out, &dbeta, magnitude(&vec![1.0; len])),
            ("dgamma", &dgamma_out, &dgamma, magnitude(&xhat)),
        ] {
            let got = download(client, float, handle);
            let largest = spread(expected);
            for c in 0..channels {
                let allowed = backward_tolerance * largest + 2e-6 * terms[c];
                let off = (got[c] - expected[c]).abs();
                assert!(
                    off <= allowed,
                    "{name}[{c}]: got {}, expected {}, off by {off:e}",
                    got[c],
                    expected[c]
                );
            }
        }
    }
    (forward.count(), backward.count())
}
