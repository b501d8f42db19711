//! One shape of the suite: both layers, checked, then timed in turn.

use std::time::{Duration, Instant};

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor};
use burn_batchnorm::{Activation, Mask};
use rayon::prelude::*;

use crate::epilogue::{Epilogue, Fused, Separate};
use crate::suite::Report;
use crate::{Layer, Pass, Results, random, run};

/// How a case is timed.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// The device, as the example names it.
    pub name: &'a str,
    /// The same, without autodiff.
    pub device: &'a Device,
    /// Channels on the last axis instead of axis 1, which burn-nn's layer has not.
    pub channels_last: bool,
    /// Without burn-nn's layer.
    pub ours_only: bool,
    /// What follows the normalization. If anything does, our plain layer and Burn's operations take
    /// burn-nn's place.
    pub epilogue: Epilogue,
    /// With a mask that admits every position. Then the same layer without takes burn-nn's place.
    pub masked: bool,
    /// Type of the input.
    pub dtype: DType,
    /// Time for each pass.
    pub seconds: f64,
}

/// Times the three passes on one shape.
///
/// # Panics
///
/// Panics where our layer disagrees with the reference.
pub fn measure<const D: usize>(shape: [usize; D], options: Options<'_>) -> Vec<Report> {
    let (axis, channels): (isize, usize) = match options.channels_last {
        true => (-1, shape[D - 1]),
        false => (1, shape[1]),
    };
    let training = &options.device.clone().autodiff();
    let Epilogue {
        activation,
        residual,
    } = options.epilogue;
    let tensor = |seed| random(shape, seed, training).cast(options.dtype);
    let residual = residual.then(|| tensor(3));
    let plain = burn_batchnorm::BatchNormConfig::new(channels).with_channel_axis(axis);
    let ours = plain.clone().with_activation(activation).init(training);
    let burn_nn = burn::nn::BatchNormConfig::new(channels);
    let fused = |layer, residual, mask| {
        Box::new(Fused {
            layer,
            residual,
            mask,
        }) as Box<dyn Layer<D>>
    };
    let axis = axis.rem_euclid(D as isize) as usize;
    let mask = |device| {
        let mut positions = shape;
        positions[axis] = 1;
        let all = || Mask::from_weights(Tensor::<D>::ones(positions, device));
        options.masked.then(all)
    };
    let separate = |layer, residual| {
        Box::new(Separate {
            layer,
            activation,
            residual,
        }) as Box<dyn Layer<D>>
    };
    let without_autodiff = residual.clone().map(Tensor::inner);
    let burn_nn_fits = !options.channels_last && options.dtype == DType::F32;
    let theirs = match options.epilogue.any() {
        _ if options.ours_only => None,
        _ if options.masked => {
            let valid = fused(ours.valid(), without_autodiff.clone(), None);
            Some([fused(ours.clone(), residual.clone(), None), valid])
        }
        true => {
            let layer = plain.init(training);
            let valid = separate(layer.valid(), without_autodiff.clone());
            Some([separate(layer, residual.clone()), valid])
        }
        false => burn_nn_fits.then(|| {
            let layer = burn_nn.init(training);
            let valid = Box::new(layer.valid()) as Box<dyn Layer<D>>;
            [Box::new(layer) as Box<dyn Layer<D>>, valid]
        }),
    };
    let (theirs, theirs_valid) = theirs.map(|[a, b]| (a, b)).unzip();
    let ours_valid = fused(ours.valid(), without_autodiff, mask(options.device));
    let ours = fused(ours, residual.clone(), mask(training));
    let (x, dy) = (tensor(1), tensor(2));
    let expected = reference([&x, &dy], residual.as_ref(), axis, activation);
    // A rounding error of a half's largest output.
    let tolerance = match options.dtype {
        DType::F32 => 1e-3,
        _ => 5e-2,
    };
    if let Some(difference) = difference(numbers(&*ours, &x, &dy), &expected, tolerance) {
        panic!("{shape:?}: our {difference}");
    }
    if let Some(theirs) = &theirs
        && let Some(difference) = difference(numbers(&**theirs, &x, &dy), &expected, tolerance)
    {
        eprintln!("{shape:?}: the other's {difference}; it is timed all the same");
    }
    drop(expected);
    let mut copy = copy(options, &x);
    let (plain, unused) = (x.clone().inner(), dy.clone().inner());

    Pass::ALL
        .map(|pass| {
            let (ours, theirs, x, dy) = match pass {
                Pass::Inference => (&ours_valid, &theirs_valid, &plain, &unused),
                Pass::Forward | Pass::ForwardBackward => (&ours, &theirs, &x, &dy),
            };
            let [ours, theirs, copies] = alternate(
                options.seconds,
                || run(&**ours, pass, x, dy).0,
                theirs
                    .as_ref()
                    .map(|theirs| || run(&**theirs, pass, x, dy).0),
                &mut copy,
            );
            Report {
                shape: shape.to_vec(),
                device: options.name.to_string(),
                pass: pass.to_string(),
                ours_ms: quantile(&ours, 0.5),
                ours_spread_ms: (quantile(&ours, 0.75) - quantile(&ours, 0.25)) / 2.0,
                burn_nn_ms: (!theirs.is_empty()).then(|| quantile(&theirs, 0.5)),
                floor_ms: quantile(&copies, 0.5) * pass.streams() / 2.0,
            }
        })
        .to_vec()
}

/// Copies as much memory as the tensor has, to memory that was touched before: what no pass over it
/// can beat. On a GPU an operation that reads and writes the tensor once.
fn copy<const D: usize>(options: Options<'_>, x: &Tensor<D>) -> Box<dyn FnMut() -> Duration> {
    if !matches!(options.name, "flex" | "ndarray") {
        let (x, device) = (x.clone().inner(), options.device.clone());
        return Box::new(move || {
            let start = Instant::now();
            let copied = x.clone() + 1.0;
            device.sync().expect("a device that works");
            drop(copied);
            start.elapsed()
        });
    }
    let from = vec![1u8; x.shape().num_elements() * options.dtype.size()];
    let mut to = from.clone();
    Box::new(move || {
        // Below this, waking another thread costs more than it copies.
        const PART: usize = 4 << 20;
        let part = from.len().div_ceil(rayon::current_num_threads() * 4);
        let start = Instant::now();
        match from.len() {
            0..PART => to.copy_from_slice(&from),
            _ => to
                .par_chunks_mut(part)
                .zip(from.par_chunks(part))
                .for_each(|(to, from)| to.copy_from_slice(from)),
        }
        std::hint::black_box(&mut to);
        start.elapsed()
    })
}

/// Runs the three in turn until the time is up, each in a plain loop as a user has it, and returns
/// sorted milliseconds.
fn alternate(
    seconds: f64,
    mut ours: impl FnMut() -> Duration,
    mut theirs: Option<impl FnMut() -> Duration>,
    mut copy: impl FnMut() -> Duration,
) -> [Vec<f64>; 3] {
    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    // The first of all compiles kernels; the first of each turn finds the other side's data cached.
    ours();
    theirs.as_mut().map(|theirs| theirs());
    let turn = |times: &mut Vec<f64>, run: &mut dyn FnMut() -> Duration| {
        const TURNS: f64 = 10.0;
        run();
        let start = Instant::now();
        for round in 0.. {
            if round >= 2 && start.elapsed().as_secs_f64() > seconds / TURNS / 3.0 {
                break;
            }
            times.push(run().as_secs_f64() * 1e3);
        }
    };
    let start = Instant::now();
    while times[0].is_empty() || start.elapsed().as_secs_f64() < seconds {
        turn(&mut times[0], &mut ours);
        if let Some(theirs) = &mut theirs {
            turn(&mut times[1], theirs);
        }
        turn(&mut times[2], &mut copy);
    }
    times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times
    })
}

/// The output of a training pass and its gradients.
type Numbers<const D: usize> = [(&'static str, Tensor<D>); 4];

/// What a layer makes of `x` and `dy`, as tensors of the device that the layer is on.
fn numbers<const D: usize>(layer: &dyn Layer<D>, x: &Tensor<D>, dy: &Tensor<D>) -> Numbers<D> {
    let forward = run(layer, Pass::Forward, x, dy).1;
    let Results { dx, parameters, .. } = run(layer, Pass::ForwardBackward, x, dy).1;
    let vector = |grad: Option<Tensor<1>>| {
        let mut shape = [1; D];
        let grad = grad.expect("a gradient");
        shape[0] = grad.dims()[0];
        // A sum over many values, so relative to the largest.
        let scale = grad.clone().abs().max().into_scalar::<f32>().max(1.0);
        (grad / scale).reshape(shape)
    };
    let [dgamma, dbeta] = parameters.map(vector);
    [
        (
            "y",
            forward
                .y
                .expect("an output")
                .without_autodiff()
                .cast(DType::F32),
        ),
        ("dx", dx.expect("a gradient").cast(DType::F32)),
        ("dgamma", dgamma),
        ("dbeta", dbeta),
    ]
}

/// The reference: burn-nn's layer on flex, which knows channels on axis 1 alone, and separate operations.
fn reference<const D: usize>(
    [x, dy]: [&Tensor<D>; 2],
    residual: Option<&Tensor<D>>,
    axis: usize,
    activation: Activation,
) -> Numbers<D> {
    let flex = &Device::flex().autodiff();
    let second = |tensor: &Tensor<D>| {
        let data = tensor.to_data().convert::<f32>();
        Tensor::<D>::from_data(data, flex).swap_dims(1, axis)
    };
    let layer = Separate {
        layer: burn::nn::BatchNormConfig::new(x.dims()[axis]).init(flex),
        activation,
        residual: residual.map(second),
    };
    numbers(&layer, &second(x), &second(dy)).map(|(what, tensor)| match what {
        "y" | "dx" => (what, tensor.swap_dims(1, axis)),
        _ => (what, tensor),
    })
}

/// What differs most from the reference, if anything does.
fn difference<const D: usize>(
    got: Numbers<D>,
    expected: &Numbers<D>,
    tolerance: f32,
) -> Option<String> {
    got.into_iter()
        .zip(expected)
        .find_map(|((what, got), (_, expected))| {
            let expected = Tensor::<D>::from_data(expected.to_data(), &got.device());
            let error: f32 = (got - expected).abs().max().into_scalar();
            let close = error < tolerance;
            (!close).then(|| format!("{what} differs by {error} from the reference"))
        })
}

fn quantile(sorted: &[f64], share: f64) -> f64 {
    sorted
        .get((sorted.len().saturating_sub(1) as f64 * share).round() as usize)
        .copied()
        .unwrap_or(f64::NAN)
}
