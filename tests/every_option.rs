//! Configurations drawn at random over every option, against the reference, on every device: each agrees or
//! is refused by the error that the reference names, and none panics.
//!
//! Cases are numbered, so that a failure can be repeated: `BATCHNORM_CASES=1234..1235` runs one.

use batchnorm_tests::devices;
use burn::module::Param;
use burn::tensor::{DType, Device, Tensor, TensorData};
use burn_batchnorm::{
    Activation, Averaging, BatchNorm, BatchNormConfig, BatchNormError, Bound, Ghost, GhostVariance,
    Inference, Mask, MaskedOutput, Memory, NonFinite, Reference, Renorm, RunningState, SingleValue,
    Statistics, Variance, With,
};

use crate::common::vector;
use crate::reference::{Batch, Constants, Layer};

/// splitmix64.
struct Draw(u64);

impl Draw {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.bits() % end as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn of<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }

    /// Within [-1, 1), as f32 holds it.
    fn unit(&mut self) -> f64 {
        f64::from((self.bits() >> 40) as f32 / (1u32 << 23) as f32 - 1.0)
    }

    fn units(&mut self, n: usize) -> Vec<f64> {
        (0..n).map(|_| self.unit()).collect()
    }
}

fn config(draw: &mut Draw) -> BatchNormConfig {
    let mut config = BatchNormConfig::new(1 + draw.below(4))
        .with_epsilon(draw.of(&[1e-5, 1e-3, 0.1]))
        .with_momentum(draw.of(&[0.1, 0.1, 0.5, 0.0, 1.0]))
        .with_averaging(draw.of(&[
            Averaging::Exponential,
            Averaging::Exponential,
            Averaging::Cumulative,
            Averaging::Debiased,
        ]))
        .with_variance(draw.of(&[Variance::Unbiased, Variance::Biased]))
        .with_scale(!draw.one_in(5))
        .with_shift(!draw.one_in(5))
        .with_running_stats(!draw.one_in(6))
        .with_channel_axis(draw.of(&[1, 1, 1, -1, 0, -2, 2]))
        .with_activation(draw.of(&[
            Activation::None,
            Activation::None,
            Activation::Relu,
            Activation::LeakyRelu(0.2),
            Activation::Relu6,
            Activation::Silu,
            Activation::Gelu,
            Activation::GeluTanh,
            Activation::HardSwish,
            Activation::Sigmoid,
            Activation::Tanh,
            Activation::Clamp {
                min: -0.5,
                max: 1.0,
            },
        ]))
        .with_single_value(draw.of(&[
            SingleValue::Error,
            SingleValue::UseRunning,
            SingleValue::SkipUpdate,
        ]))
        .with_update_statistics(!draw.one_in(6))
        .with_train_affine(!draw.one_in(6))
        .with_non_finite(draw.of(&[NonFinite::Propagate, NonFinite::Skip]))
        .with_masked_output(draw.of(&[
            MaskedOutput::Normalize,
            MaskedOutput::Zero,
            MaskedOutput::PassThrough,
        ]));
    let factor = draw.of(&[0.0, 0.3, 0.9, 1.0]);
    config.inference = draw.of(&[
        Inference::Running,
        Inference::Running,
        Inference::Batch,
        Inference::Blend { batch: factor },
    ]);
    let bound = |draw: &mut Draw, least: f64| match draw.below(3) {
        0 => Bound::Unbounded,
        1 => Bound::Constant(least + draw.of(&[0.0, 0.5, 2.0])),
        _ => Bound::Ramp {
            start: least,
            end: least + 2.0,
            from: draw.below(2) as u64,
            until: 1 + draw.below(4) as u64,
        },
    };
    config.statistics = match draw.below(6) {
        0 | 1 => Statistics::Batch,
        2 => Statistics::Running,
        3 => Statistics::Blend { batch: factor },
        4 => Statistics::Renorm(Renorm {
            r_min: draw.of(&[None, Some(0.0), Some(0.5)]),
            r_max: bound(draw, 1.0),
            d_max: bound(draw, 0.0),
            reference: draw.of(&[Reference::Running, Reference::Separate { momentum: 0.2 }]),
        }),
        _ => Statistics::Ghost(Ghost {
            size: 1 + draw.below(5),
            variance: draw.of(&[GhostVariance::Pooled, GhostVariance::Mean]),
        }),
    };
    if matches!(
        config.activation,
        Activation::None | Activation::LeakyRelu(_)
    ) && draw.one_in(3)
    {
        config.memory = Memory::Output;
    }
    if config.scale && draw.one_in(3) {
        config.initial_gamma = draw.of(&[0.0, 0.5, -1.0]);
    }
    if config.shift && draw.one_in(3) {
        config.initial_beta = draw.unit();
    }
    // One number out of its range.
    match draw.below(60) {
        0 => config.epsilon = draw.of(&[0.0, -1.0, f64::NAN, f64::INFINITY]),
        1 => config.momentum = draw.of(&[-0.1, 1.1, f64::NAN]),
        2 => config.num_features = 0,
        3 => {
            config.statistics = Statistics::Blend {
                batch: draw.of(&[-0.5, 1.5, f64::NAN]),
            }
        }
        4 => {
            config.inference = Inference::Blend {
                batch: f64::INFINITY,
            }
        }
        5 => config.statistics = Statistics::Ghost(Ghost::new(0)),
        6 => {
            config.statistics = Statistics::Renorm(Renorm {
                r_max: draw.of(&[Bound::Constant(0.5), Bound::Constant(f64::NAN)]),
                ..Renorm::paper()
            });
        }
        7 => {
            config.statistics = Statistics::Renorm(Renorm {
                d_max: Bound::Constant(-1.0),
                ..Renorm::keras()
            });
        }
        8 => config.activation = Activation::LeakyRelu(f64::INFINITY),
        9 => (config.scale, config.initial_gamma) = draw.of(&[(false, 0.5), (true, f64::NAN)]),
        10 => (config.shift, config.initial_beta) = draw.of(&[(false, 0.5), (true, 1e39)]),
        _ => {}
    }
    config
}

/// The error that initialization must give, by the ranges of the documentation.
fn refusal(config: &BatchNormConfig) -> Option<&'static str> {
    let weight = |weight: f64| (0.0..=1.0).contains(&weight);
    if config.num_features == 0 {
        return Some("NumFeatures");
    }
    if config.activation == Activation::LeakyRelu(f64::INFINITY) {
        return Some("Activation");
    }
    if !(config.epsilon.is_finite() && config.epsilon > 0.0) {
        return Some("Epsilon");
    }
    if !weight(config.momentum) {
        return Some("Momentum");
    }
    let starts = |value: f64, neutral: f64, learned: bool| {
        (value as f32).is_finite() && (learned || value == neutral)
    };
    if !starts(config.initial_gamma, 1.0, config.scale)
        || !starts(config.initial_beta, 0.0, config.shift)
    {
        return Some("Invalid");
    }
    let least = |renorm: &Renorm| renorm.r_min.unwrap_or(1.0);
    let valid = match config.statistics {
        Statistics::Blend { batch } => weight(batch),
        Statistics::Ghost(ghost) => ghost.size > 0,
        Statistics::Renorm(renorm) => {
            let valid = |bound: Bound, least: f64| match bound {
                Bound::Constant(bound) => bound >= least,
                Bound::Ramp {
                    start,
                    end,
                    from,
                    until,
                } => start >= least && end >= least && from <= until,
                _ => true,
            };
            valid(renorm.r_max, least(&renorm)) && valid(renorm.d_max, 0.0)
        }
        _ => true,
    };
    let valid = valid && !matches!(config.inference, Inference::Blend { batch } if !weight(batch));
    if !valid {
        return Some("Invalid");
    }
    let needs = !matches!(config.statistics, Statistics::Batch | Statistics::Ghost(_))
        || matches!(config.inference, Inference::Blend { .. });
    (needs && !config.running_stats).then_some("Conflict")
}

/// As a type holds them.
fn rounded(values: Vec<f64>, dtype: DType) -> Vec<f64> {
    let data = {
        let n = values.len();
        TensorData::new(values, [n])
    }
    .convert_dtype(dtype);
    data.iter::<f64>().collect()
}

fn batch(
    draw: &mut Draw,
    rank: usize,
    config: &BatchNormConfig,
    masked: bool,
    with_residual: bool,
    dtype: DType,
) -> Batch {
    let axis = config.channel_axis
        + if config.channel_axis < 0 {
            rank as isize
        } else {
            0
        };
    let mut shape: Vec<usize> = (0..rank).map(|_| 1 + draw.below(4)).collect();
    if draw.one_in(30) {
        shape[draw.below(rank)] = 0;
    }
    // Sometimes another number of channels than the layer's.
    if let Some(channels) = shape.get_mut(axis as usize)
        && !draw.one_in(40)
    {
        *channels = config.num_features;
    }
    let n = shape.iter().product();
    let (spread, mean) = (draw.of(&[1.0, 3.0]), draw.of(&[0.0, 1.0, -4.0]));
    let x = draw.units(n).into_iter().map(|x| x * spread + mean);
    let mut x = rounded(x.collect(), dtype);
    let weights = masked.then(|| {
        let none = draw.one_in(8);
        let fractions = draw.one_in(3);
        let every_channel_its_own = draw.one_in(4);
        let mut one = |_| match draw.below(3) {
            _ if none => 0.0,
            0 => 0.0,
            1 if fractions => 0.5,
            _ => 1.0,
        };
        if every_channel_its_own {
            return (0..n).map(one).collect::<Vec<f64>>();
        }
        // The same for all channels.
        let axis = axis as usize;
        let channels = shape.get(axis).copied().unwrap_or(1);
        let inner: usize = shape.get(axis + 1..).unwrap_or(&[]).iter().product();
        let positions: Vec<f64> = (0..n / channels.max(1)).map(&mut one).collect();
        (0..n)
            .map(|index| {
                positions[index / (channels * inner).max(1) * inner + index % inner.max(1)]
            })
            .collect::<Vec<f64>>()
    });
    if let Some(weights) = &weights {
        for (x, weight) in x.iter_mut().zip(weights) {
            if *weight == 0.0 && draw.one_in(4) {
                *x = draw.of(&[f64::NAN, f64::INFINITY, f64::NEG_INFINITY]);
            }
        }
    }
    if config.non_finite == NonFinite::Skip && draw.one_in(4) && n > 0 {
        x[draw.below(n)] = f64::NAN;
    }
    Batch {
        residual: with_residual.then(|| rounded(draw.units(n), dtype)),
        shape,
        x,
        weights,
    }
}

/// What the layer makes of a batch.
struct Got {
    y: Vec<f64>,
    /// For x, gamma, beta of `sum(y * dy)`.
    gradients: Option<[Option<Vec<f64>>; 3]>,
}

fn run<const D: usize>(
    layer: &BatchNorm,
    batch: &Batch,
    dy: Option<&[f64]>,
    dtype: DType,
    device: &Device,
) -> Result<Got, BatchNormError> {
    let shape: [usize; D] = batch.shape.clone().try_into().expect("the rank");
    let tensor = |values: &[f64]| {
        let data = TensorData::new(values.to_vec(), shape).convert_dtype(dtype);
        Tensor::<D>::from_data(data, (device, dtype))
    };
    let x = tensor(&batch.x).require_grad();
    let with = With {
        residual: batch.residual.as_ref().map(|residual| tensor(residual)),
        mask: batch
            .weights
            .as_ref()
            .map(|weights| Mask::from_weights(tensor(weights))),
    };
    let y = layer.try_forward_with(x.clone(), with)?;
    let gradients = dy.map(|dy| {
        // Where nobody looks, nothing flows: 0 times a NaN would.
        let gradients = y.clone().mul(tensor(dy)).sum().backward();
        [
            x.grad(&gradients).map(vector),
            layer.gamma.grad(&gradients).map(vector),
            layer.beta.grad(&gradients).map(vector),
        ]
    });
    Ok(Got {
        y: vector(y),
        gradients,
    })
}

fn run_rank(
    layer: &BatchNorm,
    batch: &Batch,
    dy: Option<&[f64]>,
    dtype: DType,
    device: &Device,
) -> Result<Got, BatchNormError> {
    match batch.shape.len() {
        2 => run::<2>(layer, batch, dy, dtype, device),
        3 => run::<3>(layer, batch, dy, dtype, device),
        _ => run::<4>(layer, batch, dy, dtype, device),
    }
}

fn close(what: &str, got: &[f64], expected: &[f64], tolerance: f64) -> Result<(), String> {
    if got.len() != expected.len() {
        return Err(format!(
            "{what}: {} values, expected {}",
            got.len(),
            expected.len()
        ));
    }
    let finite: Vec<f64> = expected.iter().copied().filter(|e| e.is_finite()).collect();
    let rms = (finite.iter().map(|e| e * e).sum::<f64>() / finite.len().max(1) as f64).sqrt();
    for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
        let same = got == expected || (got.is_nan() && expected.is_nan());
        let close = (got - expected).abs() <= tolerance * (expected.abs() + rms + 0.02);
        // A NaN is not close.
        if !same && !close {
            return Err(format!("{what}[{index}]: {got}, expected {expected}"));
        }
    }
    Ok(())
}

/// Finite differences of `sum(y * dy)` in the reference.
fn gradients(
    layer: &Layer,
    batch: &Batch,
    dy: &[f64],
    training: bool,
    constants: &Constants,
) -> [Vec<f64>; 3] {
    let loss = |layer: &Layer, batch: &Batch| {
        let (y, _) = layer
            .clone()
            .forward(batch, training, Some(constants))
            .expect("as before");
        // A value that is not finite has no derivative, and nobody looks at it.
        y.iter()
            .zip(dy)
            .filter(|(_, dy)| **dy != 0.0)
            .map(|(y, dy)| y * dy)
            .sum::<f64>()
    };
    let step = 1e-5;
    let of_x = (0..batch.x.len()).map(|index| {
        if !batch.x[index].is_finite() {
            return 0.0;
        }
        let moved = |by: f64| {
            let mut batch = batch.clone();
            batch.x[index] += by;
            loss(layer, &batch)
        };
        (moved(step) - moved(-step)) / (2.0 * step)
    });
    let of = |which: fn(&mut Layer) -> &mut Vec<f64>| {
        (0..layer.config.num_features)
            .map(|c| {
                let moved = |by: f64| {
                    let mut layer = layer.clone();
                    which(&mut layer)[c] += by;
                    loss(&layer, batch)
                };
                (moved(step) - moved(-step)) / (2.0 * step)
            })
            .collect()
    };
    [
        of_x.collect(),
        of(|layer| &mut layer.gamma),
        of(|layer| &mut layer.beta),
    ]
}

/// How far a value may be from what it should be, in a half type: some roundings.
fn epsilon(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 4e-3,
        _ => 3e-2,
    }
}

fn check(number: u64, device: &Device) -> Result<&'static str, String> {
    let mut draw = Draw(number.wrapping_mul(0xD134_2543_DE82_EF95));
    let config = config(&mut draw);
    let describe = |message: String| format!("case {number}: {message}\n{config:?}");

    // f64 where the device has it: then nothing hides behind rounding.
    let exponential = matches!(
        config.activation,
        Activation::Silu
            | Activation::Gelu
            | Activation::GeluTanh
            | Activation::Sigmoid
            | Activation::Tanh
    );
    let wgpu = devices::by_name("wgpu").is_some_and(|wgpu| wgpu == *device);
    let wide = device.supports_dtype(DType::F64) && !draw.one_in(4) && !(wgpu && exponential);
    let half = draw.of(&[DType::F16, DType::BF16]);
    let halves = draw.one_in(6) && device.supports_dtype(half);
    // Of outputs, of running statistics (f32 in a layer that was made in f32), and the parameters' type.
    let (dtype, tolerance, of_statistics, learned) = match wide {
        _ if halves => (half, epsilon(half), 5e-4, DType::F32),
        true => (DType::F64, 5e-6, 1e-5, DType::F64),
        false => (DType::F32, 5e-4, 5e-4, DType::F32),
    };
    let wide = dtype == DType::F64;
    let device = device.clone().autodiff();
    let device = match draw.one_in(8) {
        true => device.gradient_checkpointing(),
        false => device,
    };
    let result = config.try_init(&device);
    let mut layer = match (result, refusal(&config)) {
        (Ok(layer), None) => layer,
        (Err(error), Some(expected)) if error.name() == expected => return Ok("refused"),
        (result, expected) => {
            let got = result.map(|_| "a layer").map_err(|error| error.to_string());
            return Err(describe(format!("init: {got:?}, expected {expected:?}")));
        }
    };
    let channels = config.num_features;
    // As after some steps, or as they start.
    let trained = !draw.one_in(4);
    let (gamma, beta) = match trained {
        true => (draw.units(channels), draw.units(channels)),
        false => (
            vec![config.initial_gamma; channels],
            vec![config.initial_beta as f32 as f64; channels],
        ),
    };
    let mut reference = Layer::new(config.clone(), gamma, beta);
    let put = |param: Param<Tensor<1>>, values: &[f64]| {
        let requires = param.is_require_grad();
        let data = TensorData::new(values.to_vec(), [channels]).convert_dtype(learned);
        Param::from_tensor(Tensor::from_data(data, (&device, learned))).set_require_grad(requires)
    };
    if trained || wide {
        layer.gamma = put(layer.gamma, &reference.gamma);
        layer.beta = put(layer.beta, &reference.beta);
    }

    let rank = 2 + draw.below(3);
    let mask_one_in = draw.of(&[1, 2, 1000]);
    let with_residual = draw.one_in(4);
    // Statistics of the inputs' type, or as they are.
    if wide && draw.one_in(2) {
        let cast = |state: &RunningState| RunningState::new(state.value().cast(DType::F64));
        (layer.running_mean, layer.running_var) =
            (cast(&layer.running_mean), cast(&layer.running_var));
    }
    for step in 0..1 + draw.below(4) {
        let training = !draw.one_in(4);
        let masked = draw.one_in(mask_one_in);
        layer.training = layer.training.with_value(training);
        let batch = batch(&mut draw, rank, &config, masked, with_residual, dtype);
        let axis = config.channel_axis
            + if config.channel_axis < 0 {
                rank as isize
            } else {
                0
            };
        let expected_error = match batch.shape.get(axis as usize) {
            None => Some("ChannelAxis"),
            Some(got) if *got != channels => Some("Channels"),
            Some(_) => None,
        };
        let before = reference.clone();
        let expected = match expected_error {
            Some(error) => Err(error),
            None => reference.forward(&batch, training, None),
        };
        let dy: Vec<f64> = match &expected {
            Ok((y, _)) => {
                let finite = |index: usize| y[index].is_finite() && batch.x[index].is_finite();
                let dy = (0..y.len()).map(|i| if finite(i) { draw.unit() } else { 0.0 });
                rounded(dy.collect(), dtype)
            }
            Err(_) => Vec::new(),
        };
        // A gradient of what is NaN is NaN; a kink has none.
        let smooth = !matches!(
            config.activation,
            Activation::Relu
                | Activation::LeakyRelu(_)
                | Activation::Relu6
                | Activation::Clamp { .. }
                | Activation::HardSwish
        );
        let differentiable = smooth
            && expected.as_ref().is_ok_and(|(y, _)| {
                y.iter()
                    .zip(&batch.x)
                    .all(|(y, x)| y.is_finite() || !x.is_finite())
                    && (batch.weights.is_some() || batch.x.iter().all(|x| x.is_finite()))
            });
        let skips = config.non_finite == NonFinite::Skip;
        let differentiable = differentiable && !(skips && batch.x.iter().any(|x| x.is_nan()));
        let wanted = differentiable.then_some(&dy[..]);
        let got = run_rank(&layer, &batch, wanted, dtype, &device);
        let (expected, got) = match (expected, got) {
            (Err(expected), Err(error)) if error.name() == expected => continue,
            (Ok(expected), Ok(got)) => (expected, got),
            (expected, got) => {
                let got = got.map(|_| "an output").map_err(|error| error.to_string());
                let expected = expected.map(|_| "an output");
                let message = format!(
                    "step {step}, {:?}: {got:?}, expected {expected:?}",
                    batch.shape
                );
                return Err(describe(message));
            }
        };
        let (y, constants) = expected;
        let place = format!(
            "step {step} ({:?}, training {training}, weights {:?})",
            batch.shape, batch.weights
        );
        let fail = |what: String| describe(format!("{place}: {what}\n{:?}", batch.x));
        close("y", &got.y, &y, tolerance).map_err(fail)?;
        if let Some(gradients_got) = got.gradients {
            let expected = gradients(&before, &batch, &dy, training, &constants);
            let learned = [
                true,
                config.scale && config.train_affine,
                config.shift && config.train_affine,
            ];
            for (((what, got), expected), learned) in ["dx", "dgamma", "dbeta"]
                .into_iter()
                .zip(gradients_got)
                .zip(expected)
                .zip(learned)
            {
                match (got, learned) {
                    (Some(got), true) => {
                        close(what, &got, &expected, (tolerance * 10.0).max(1e-5)).map_err(fail)?
                    }
                    (None, false) => {}
                    (got, learned) => {
                        return Err(fail(format!("{what}: {got:?}, learned {learned}")));
                    }
                }
            }
        }
        if config.running_stats {
            for (what, got, expected) in [
                ("running_mean", layer.running_mean.value(), &reference.mean),
                (
                    "running_var",
                    layer.running_var.value(),
                    &reference.variance,
                ),
                ("skipped", layer.skipped_updates(), &reference.skipped),
            ] {
                close(what, &vector(got), expected, of_statistics).map_err(fail)?;
            }
            let (got, expected) = (layer.num_batches_tracked.value(), reference.entered());
            if got != expected {
                return Err(fail(format!("count {got}, expected {expected}")));
            }
        }
    }
    Ok("agreed")
}

/// Panics with every failure, up to ten.
fn check_all(name: &str, device: &Device, cases: u64) {
    let range = match std::env::var("BATCHNORM_CASES") {
        Err(_) => 0..cases,
        Ok(range) => {
            let (from, to) = range.split_once("..").expect("BATCHNORM_CASES=FROM..TO");
            from.parse().expect("a number")..to.parse().expect("a number")
        }
    };
    let mut refused = 0;
    let mut failures = Vec::new();
    for number in range.clone() {
        let result = std::panic::catch_unwind(|| check(number, device));
        match result {
            Ok(Ok(outcome)) => refused += u64::from(outcome == "refused"),
            Ok(Err(failure)) => failures.push(failure),
            Err(_) => failures.push(format!("case {number} panicked")),
        }
        if failures.len() >= 10 {
            break;
        }
    }
    assert!(failures.is_empty(), "{name}:\n{}", failures.join("\n\n"));
    let all = range.end - range.start;
    assert!(
        all < 300 || refused < all / 3,
        "{name}: {refused} of {all} refused"
    );
}

#[test]
fn ten_thousand_configurations_agree_on_flex() {
    check_all("flex", &Device::flex(), 10_000);
}

#[test]
fn ten_thousand_configurations_agree_on_ndarray() {
    let device = devices::by_name("ndarray").expect("ndarray");
    check_all("ndarray", &device, 10_000);
}

/// Sixty: software Vulkan compiles kernels for nearly every one of them, a second each. More are for
/// `BATCHNORM_CASES=0..1000`.
#[test]
fn configurations_agree_on_wgpu() {
    if let Some(device) = devices::by_name("wgpu") {
        check_all("wgpu", &device, 60);
    }
}
