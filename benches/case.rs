//! One shape of the suite: both layers, checked, then timed in turn.

use std::fmt;
use std::hint::black_box;
use std::time::{Duration, Instant};

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use serde::Serialize;

use crate::{Layer, random};

/// Medians of one pass over one shape.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Lengths of the axes.
    pub shape: Vec<usize>,
    /// The device, as the example names it.
    pub device: String,
    /// `forward`, `forward_backward` or `inference`.
    pub pass: &'static str,
    /// Our layer, milliseconds.
    pub ours_ms: f64,
    /// Half the distance between the quartiles of ours, milliseconds.
    pub ours_spread_ms: f64,
    /// burn-nn's layer, milliseconds; none with channels last, which it has not.
    pub burn_nn_ms: Option<f64>,
    /// The passes over memory that cannot be avoided, milliseconds.
    pub floor_ms: f64,
}

impl Report {
    /// Times as fast as burn-nn.
    fn ratio(&self) -> Option<f64> {
        self.burn_nn_ms.map(|theirs| theirs / self.ours_ms)
    }

    /// The line above the reports.
    pub fn header() -> String {
        format!(
            "{:<20}{:<18}{:>11}{:>10}{:>13}{:>9}{:>11}",
            "shape", "pass", "ours ms", "+-", "burn-nn ms", "ratio", "x floor"
        )
    }

    /// The geometric means of the ratios, pass by pass.
    pub fn summary(reports: &[Self]) -> String {
        let lines = ["forward", "forward_backward", "inference"].map(|pass| {
            let logs: Vec<f64> = reports
                .iter()
                .filter(|report| report.pass == pass)
                .filter_map(Report::ratio)
                .map(f64::ln)
                .collect();
            match logs.is_empty() {
                true => String::new(),
                false => {
                    let mean = (logs.iter().sum::<f64>() / logs.len() as f64).exp();
                    format!("geometric mean, {pass}: {mean:.2} times as fast as burn-nn\n")
                }
            }
        });
        lines.concat()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |value: Option<f64>, digits| match value {
            Some(value) => format!("{value:.digits$}"),
            None => "-".to_string(),
        };
        write!(
            f,
            "{:<20}{:<18}{:>11.4}{:>10.4}{:>13}{:>9}{:>11.2}",
            format!("{:?}", self.shape).replace(' ', ""),
            self.pass,
            self.ours_ms,
            self.ours_spread_ms,
            number(self.burn_nn_ms, 4),
            number(self.ratio(), 2),
            self.ours_ms / self.floor_ms,
        )
    }
}

/// Times the three passes on one shape, each for about `seconds`.
///
/// # Panics
///
/// Panics where the layers disagree, or if the rank is not 2 to 5.
pub fn measure(
    name: &str,
    device: &Device,
    shape: &[usize],
    channels_last: bool,
    seconds: f64,
) -> Vec<Report> {
    match *shape {
        [a, b] => measure_rank(name, device, [a, b], channels_last, seconds),
        [a, b, c] => measure_rank(name, device, [a, b, c], channels_last, seconds),
        [a, b, c, d] => measure_rank(name, device, [a, b, c, d], channels_last, seconds),
        [a, b, c, d, e] => measure_rank(name, device, [a, b, c, d, e], channels_last, seconds),
        _ => panic!("the suite expects rank 2 to 5, got {shape:?}"),
    }
}

fn measure_rank<const D: usize>(
    name: &str,
    device: &Device,
    shape: [usize; D],
    channels_last: bool,
    seconds: f64,
) -> Vec<Report> {
    let training = &device.clone().autodiff();
    let (axis, channels) = match channels_last {
        true => (-1, shape[D - 1]),
        false => (1, shape[1]),
    };
    let ours = burn_batchnorm::BatchNormConfig::new(channels)
        .with_channel_axis(axis)
        .init(training);
    let theirs = (!channels_last).then(|| burn::nn::BatchNormConfig::new(channels).init(training));
    let x = random(shape, 1, training);
    let dy = random(shape, 2, training);
    if let Some(theirs) = &theirs {
        check(&ours, theirs, &x, &dy);
    }

    let copy = |_: u32| {
        let start = Instant::now();
        // Adding a scalar reads and writes the tensor once, as a copy does, into fresh memory too.
        black_box(x.clone().inner() + 1.0);
        sync(device);
        start.elapsed()
    };
    let (ours_valid, theirs_valid) = (ours.valid(), theirs.as_ref().map(Module::valid));
    let plain = x.clone().inner();

    let report = |pass, passes: f64, times: [Vec<f64>; 3]| {
        let [mine, theirs, copies] = times.map(sorted);
        Report {
            shape: shape.to_vec(),
            device: name.to_string(),
            pass,
            ours_ms: quantile(&mine, 0.5),
            ours_spread_ms: (quantile(&mine, 0.75) - quantile(&mine, 0.25)) / 2.0,
            burn_nn_ms: (!theirs.is_empty()).then(|| quantile(&theirs, 0.5)),
            floor_ms: quantile(&copies, 0.5) * passes / 2.0,
        }
    };
    let mut reports = Vec::new();
    for (pass, passes) in [("forward", 2.0), ("forward_backward", 5.0)] {
        let backward = pass == "forward_backward";
        let times = alternate(
            seconds,
            || train(&ours, &x, backward.then_some(&dy)),
            theirs
                .as_ref()
                .map(|theirs| || train(theirs, &x, backward.then_some(&dy))),
            || copy(0),
        );
        reports.push(report(pass, passes, times));
    }
    let times = alternate(
        seconds,
        || infer(&ours_valid, &plain),
        theirs_valid.as_ref().map(|theirs| || infer(theirs, &plain)),
        || copy(0),
    );
    reports.push(report("inference", 2.0, times));
    reports
}

/// A training pass as a user has it: fresh input node, forward, and with `dy` the gradients of x,
/// gamma and beta.
fn train<const D: usize>(layer: &impl Layer<D>, x: &Tensor<D>, dy: Option<&Tensor<D>>) -> Duration {
    let device = x.device();
    let x = x.clone().detach().require_grad();
    let start = Instant::now();
    let y = layer.forward(x.clone());
    match dy {
        None => drop(black_box(y)),
        Some(dy) => {
            // The gradient of this sum with respect to y is dy; the multiplication is on both sides.
            let gradients = (y * dy.clone()).sum().backward();
            black_box(x.grad(&gradients));
            for parameter in layer.parameters() {
                black_box(parameter.grad(&gradients));
            }
        }
    }
    sync(&device);
    start.elapsed()
}

fn infer<const D: usize>(layer: &impl Layer<D>, x: &Tensor<D>) -> Duration {
    let start = Instant::now();
    black_box(layer.forward(x.clone()));
    sync(&x.device());
    start.elapsed()
}

fn sync(device: &Device) {
    device.sync().expect("a device that works");
}

/// Calls the three in turn until the time is up, at least five times, and returns milliseconds.
fn alternate(
    seconds: f64,
    mut ours: impl FnMut() -> Duration,
    mut theirs: Option<impl FnMut() -> Duration>,
    mut copy: impl FnMut() -> Duration,
) -> [Vec<f64>; 3] {
    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    let start = Instant::now();
    while times[0].len() < 6 || start.elapsed().as_secs_f64() < seconds {
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        times[0].push(milliseconds(ours()));
        if let Some(theirs) = &mut theirs {
            times[1].push(milliseconds(theirs()));
        }
        times[2].push(milliseconds(copy()));
    }
    // The first of each warms caches and compiles kernels.
    times.map(|times| times.into_iter().skip(1).collect())
}

/// Both layers agree on the output and on every gradient.
fn check<const D: usize>(
    ours: &impl Layer<D>,
    theirs: &impl Layer<D>,
    x: &Tensor<D>,
    dy: &Tensor<D>,
) {
    let run = |layer: &dyn Fn(Tensor<D>) -> Tensor<D>| {
        let x = x.clone().detach().require_grad();
        let y = layer(x.clone());
        let gradients = (y.clone() * dy.clone()).sum().backward();
        let x_grad = x.grad(&gradients).expect("a gradient");
        (y.inner(), x_grad)
    };
    let (y, dx) = run(&|x| ours.forward(x));
    let (expected_y, expected_dx) = run(&|x| theirs.forward(x));
    for (what, got, expected) in [("y", y, expected_y), ("dx", dx, expected_dx)] {
        let error: f32 = (got - expected).abs().max().into_scalar();
        assert!(error < 1e-3, "{what} differs by {error} on {:?}", x.dims());
    }
}

fn sorted(mut times: Vec<f64>) -> Vec<f64> {
    times.sort_by(f64::total_cmp);
    times
}

fn quantile(sorted: &[f64], share: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * share).round() as usize]
}
