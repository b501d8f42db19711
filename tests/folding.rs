//! Folded layers against the layers that they are made of.

use batchnorm_tests::devices;
use burn::module::{Module, Param};
use burn::nn::conv::{
    Conv1d, Conv1dConfig, Conv2d, Conv2dConfig, Conv3d, Conv3dConfig, ConvTranspose1dConfig,
    ConvTranspose2dConfig, ConvTranspose3dConfig,
};
use burn::nn::{LinearConfig, LinearLayout, PaddingConfig1d, PaddingConfig2d, PaddingConfig3d};
use burn::tensor::{DType, Device, Tensor};
use burn_batchnorm::fold::{self, FoldError, Folded, Next, Previous};
use burn_batchnorm::{Activation, BatchNorm, BatchNormConfig, Inference, RunningState};
use rstest::rstest;

use crate::common::{assert_close, random};

/// Sums of a few dozen products, rounded in another order.
const TOLERANCE: f64 = 1e-5;

/// A batch norm as training leaves it: gammas of both signs, statistics away from 0 and 1.
fn trained(config: BatchNormConfig, device: &Device) -> BatchNorm {
    let channels = config.num_features;
    let vector = |seed| random([channels], seed, device);
    let mut norm = config.init(device);
    norm.gamma = Param::from_tensor(vector(21) * 2.0);
    norm.beta = Param::from_tensor(vector(22));
    norm.running_mean.update(vector(23));
    norm.running_var.update(vector(24).abs() * 3.0 + 0.1);
    norm
}

fn norm(channels: usize, device: &Device) -> BatchNorm {
    trained(BatchNormConfig::new(channels), device)
}

/// On wgpu for one number of groups alone: software Vulkan takes seconds to tune a convolution.
fn on_every_device(groups: usize, body: impl Fn(&str, &Device)) {
    for (name, device) in devices::all() {
        if name != "wgpu" || groups == 2 {
            body(name, &device);
        }
    }
}

fn check<const D: usize, L>(
    what: &str,
    folded: Folded<L>,
    run: impl Fn(&L) -> Tensor<D>,
    expected: Tensor<D>,
) {
    let got = run(&folded.layer);
    let difference = (got.clone() - expected.clone())
        .abs()
        .max()
        .into_scalar::<f32>();
    assert_eq!(folded.difference, Some(difference.into()), "{what}");
    assert_close(what, &got.into_data(), &expected.into_data(), TOLERANCE);
}

fn previous<const D: usize, L: Previous<D>>(what: &str, layer: L, norm: &BatchNorm, x: Tensor<D>) {
    let expected = norm.forward(layer.run(x.clone()));
    let folded = fold::into_previous(&layer, norm, Some(x.clone())).expect("folds");
    check(what, folded, |layer| layer.run(x.clone()), expected);
}

fn next<const D: usize, L: Next<D>>(what: &str, norm: &BatchNorm, layer: L, x: Tensor<D>) {
    let expected = layer.run(norm.forward(x.clone()));
    let folded = fold::into_next(norm, &layer, Some(x.clone())).expect("folds");
    check(what, folded, |layer| layer.run(x.clone()), expected);
}

#[rstest]
fn into_the_convolution_before(
    #[values(1, 2, 3)] groups: usize,
    #[values(true, false)] bias: bool,
) {
    on_every_device(groups, |name, device| {
        let norm = &norm(12, device);
        let conv = Conv1dConfig::new(6, 12, 3)
            .with_groups(groups)
            .with_bias(bias)
            .with_padding(PaddingConfig1d::Explicit(2, 1));
        let x = random([2, 6, 7], 1, device);
        previous(&format!("{name} 1d"), conv.init(device), norm, x);

        let conv = Conv2dConfig::new([6, 12], [3, 2])
            .with_groups(groups)
            .with_bias(bias)
            .with_stride([2, 1])
            .with_padding(PaddingConfig2d::Explicit(1, 0, 2, 1));
        let x = random([2, 6, 7, 5], 2, device);
        previous(&format!("{name} 2d"), conv.init(device), norm, x);

        let conv = Conv3dConfig::new([6, 12], [1, 3, 2])
            .with_groups(groups)
            .with_bias(bias)
            .with_padding(PaddingConfig3d::Explicit(0, 1, 1));
        let x = random([2, 6, 3, 4, 5], 3, device);
        previous(&format!("{name} 3d"), conv.init(device), norm, x);
    });
}

#[rstest]
fn into_the_transposed_convolution_before(
    #[values(1, 2, 3)] groups: usize,
    #[values(true, false)] bias: bool,
) {
    on_every_device(groups, |name, device| {
        let norm = &norm(12, device);
        let conv = ConvTranspose1dConfig::new([6, 12], 3)
            .with_groups(groups)
            .with_bias(bias)
            .with_stride(2);
        let x = random([2, 6, 5], 1, device);
        previous(&format!("{name} 1d"), conv.init(device), norm, x);

        let conv = ConvTranspose2dConfig::new([6, 12], [3, 2])
            .with_groups(groups)
            .with_bias(bias)
            .with_stride([2, 1])
            .with_padding([1, 0]);
        let x = random([2, 6, 4, 5], 2, device);
        previous(&format!("{name} 2d"), conv.init(device), norm, x);

        let conv = ConvTranspose3dConfig::new([6, 12], [1, 3, 2])
            .with_groups(groups)
            .with_bias(bias);
        let x = random([2, 6, 3, 4, 2], 3, device);
        previous(&format!("{name} 3d"), conv.init(device), norm, x);
    });
}

#[rstest]
fn into_the_linear_layer_before(#[values(true, false)] bias: bool) {
    on_every_device(2, |name, device| {
        let linear = || LinearConfig::new(5, 7).with_bias(bias).init(device);
        let first = norm(7, device);
        let x = random([4, 5], 1, device);
        previous(&format!("{name}, rank 2"), linear(), &first, x);
        let last = trained(BatchNormConfig::new(7).with_channel_axis(-1), device);
        let x = random([4, 5], 1, device);
        previous(&format!("{name}, rank 2, last axis"), linear(), &last, x);
        let x = random([3, 2, 4, 5], 2, device);
        previous(&format!("{name}, rank 4"), linear(), &last, x);
    });
}

#[rstest]
fn into_the_layer_after(#[values(1, 2, 3)] groups: usize, #[values(true, false)] bias: bool) {
    on_every_device(groups, |name, device| {
        let norm = &norm(6, device);
        let linear = LinearConfig::new(6, 5).with_bias(bias).init(device);
        let x = random([4, 6], 1, device);
        next(&format!("{name}, linear"), norm, linear, x);

        let conv = Conv1dConfig::new(6, 12, 3)
            .with_groups(groups)
            .with_bias(bias);
        let x = random([2, 6, 7], 2, device);
        next(&format!("{name} 1d"), norm, conv.init(device), x);

        let conv = Conv2dConfig::new([6, 12], [1, 1])
            .with_groups(groups)
            .with_bias(bias)
            .with_stride([2, 2])
            .with_padding(PaddingConfig2d::Same);
        let x = random([2, 6, 7, 5], 3, device);
        next(&format!("{name} 2d"), norm, conv.init(device), x);

        let conv = Conv3dConfig::new([6, 12], [1, 3, 2])
            .with_groups(groups)
            .with_bias(bias)
            .with_padding(PaddingConfig3d::Explicit(0, 0, 0));
        let x = random([2, 6, 2, 4, 3], 4, device);
        next(&format!("{name} 3d"), norm, conv.init(device), x);
    });
}

#[test]
fn into_the_batch_norm_before() {
    on_every_device(2, |name, device| {
        let first = trained(
            BatchNormConfig::new(5).with_scale(false).with_shift(false),
            device,
        );
        let config = BatchNormConfig::keras(5).with_activation(Activation::Relu);
        let second = trained(config, device);
        let plain = trained(BatchNormConfig::keras(5), device);
        let x = random([4, 5], 1, device);
        let expected = plain.forward(first.forward(x.clone()));
        let folded = fold::into_norm(&first, &second, Some(x.clone())).expect("folds");
        assert_eq!(folded.activation, Activation::Relu);
        let record = folded.layer.clone().into_record();
        assert_eq!(record.len(), 4, "its gamma and beta are recorded");
        check(name, folded, |layer| layer.forward(x.clone()), expected);
    });
}

/// RepVGG's block: 3x3 and 1x1 convolutions with batch norm, and a batch norm alone.
#[rstest]
fn branches_of_repvgg(#[values(1, 2, 4)] groups: usize) {
    on_every_device(groups, |name, device| {
        let config = Conv2dConfig::new([4, 4], [3, 3])
            .with_groups(groups)
            .with_bias(false)
            .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1));
        let wide = config.init(device);
        let config = Conv2dConfig::new([4, 4], [1, 1]).with_groups(groups);
        let narrow = config.init(device);
        let norms = [0.5, 1.0, 2.0].map(|epsilon| {
            let config = BatchNormConfig::new(4).with_epsilon(epsilon);
            trained(config, device)
        });
        let x = random([2, 4, 5, 6], 1, device);
        let expected = norms[2].forward(x.clone())
            + norms[0].forward(wide.forward(x.clone()))
            + norms[1].forward(narrow.forward(x.clone()));

        let part = |conv: &Conv2d, norm: &BatchNorm| {
            fold::into_previous(conv, norm, None).expect("folds").layer
        };
        let branches = [
            fold::identity(&norms[2], groups).expect("a convolution"),
            part(&wide, &norms[0]),
            part(&narrow, &norms[1]),
        ];
        let folded = fold::sum(&branches, Some(x.clone())).expect("adds up");
        assert_eq!(folded.layer.kernel_size, [3, 3]);
        assert!(folded.difference.expect("an input") < 1e-5, "{name}");
        let y = folded.layer.forward(x);
        assert_close(name, &y.into_data(), &expected.into_data(), TOLERANCE);
    });
}

/// Kernels that differ along one axis, asymmetric padding, dilation, strides; ACNet's cross of kernels
/// would fit into no single one of its own.
#[test]
fn kernels_within_kernels() {
    let device = &Device::flex();
    let conv = |taps, before, after, dilation| {
        Conv1dConfig::new(2, 3, taps)
            .with_dilation(dilation)
            .with_stride(2)
            .with_padding(PaddingConfig1d::Explicit(before, after))
            .init(device)
    };
    let x = random([2, 2, 11], 1, device);
    let branches = [conv(2, 2, 0, 2), conv(4, 4, 2, 2), conv(1, 0, 0, 7)];
    let folded = fold::sum(&branches, Some(x.clone())).expect("adds up");
    assert!(folded.difference.expect("an input") < 1e-5, "{folded:?}");

    let cube = |taps: [usize; 3], padding: [usize; 3]| {
        let [depth, height, width] = padding;
        Conv3dConfig::new([2, 3], taps)
            .with_padding(PaddingConfig3d::Explicit(depth, height, width))
            .init(device)
    };
    let x = random([1, 2, 4, 5, 3], 2, device);
    let branches = [cube([1, 3, 1], [0, 1, 0]), cube([3, 3, 1], [1, 1, 0])];
    let folded: Folded<Conv3d> = fold::sum(&branches, Some(x)).expect("adds up");
    assert!(folded.difference.expect("an input") < 1e-5, "{folded:?}");

    // The same padding, so another size.
    let branches = [conv(3, 1, 1, 1), conv(1, 1, 1, 1)];
    let error = fold::sum::<3, Conv1d>(&branches, None).expect_err("refused");
    assert!(
        matches!(error, FoldError::Branch { branch: 1, .. }),
        "{error}"
    );
    let branches = [conv(3, 1, 1, 1), conv(3, 1, 1, 2)];
    let error = fold::sum::<3, Conv1d>(&branches, None).expect_err("refused");
    assert!(
        matches!(error, FoldError::Branch { branch: 1, .. }),
        "{error}"
    );
    let error = fold::sum::<3, Conv1d>(&[], None).expect_err("refused");
    assert_eq!(error, FoldError::NoBranches);
}

#[test]
fn what_would_be_wrong_is_refused() {
    let device = &Device::flex();
    let conv = |padding| {
        Conv2dConfig::new([4, 4], [3, 3])
            .with_padding(padding)
            .init(device)
    };
    let valid = conv(PaddingConfig2d::Valid);
    let refused = |norm: &BatchNorm| {
        let error = fold::into_previous(&valid, norm, None).expect_err("refused");
        assert_eq!(
            error,
            fold::into_next(norm, &valid, None).expect_err("refused"),
        );
        error
    };

    let training = device.clone().autodiff();
    let layer = trained(BatchNormConfig::new(4), &training);
    assert_eq!(refused(&layer), FoldError::Training);
    // A layer that was told to stop is the one that `valid()` gives.
    let conv_training = Conv2dConfig::new([4, 4], [3, 3]).init(&training);
    let frozen = layer.clone().freeze();
    let folded = fold::into_previous(&conv_training, &frozen, None).expect("folds");
    assert!(folded.layer.weight.device().is_autodiff());

    let without = BatchNormConfig::new(4).with_running_stats(false);
    assert_eq!(refused(&without.init(device)), FoldError::NoStatistics);
    let last = trained(BatchNormConfig::new(4).with_channel_axis(-1), device);
    let expected = FoldError::ChannelAxis {
        expected: 1,
        got: -1,
        rank: 4,
    };
    assert_eq!(refused(&last), expected);
    let expected = FoldError::Channels {
        expected: 4,
        got: 3,
    };
    assert_eq!(refused(&norm(3, device)), expected);
    let mut replaced = norm(4, device);
    replaced.running_var = RunningState::new(Tensor::ones([5], device));
    assert!(matches!(refused(&replaced), FoldError::Layer(_)));
    #[allow(deprecated, reason = "burn deprecates NdArray, this crate supports it")]
    let elsewhere = norm(4, &Device::ndarray());
    assert!(matches!(refused(&elsewhere), FoldError::Layer(_)));

    // PyTorch folds this one wrongly: the channels of the two layers are on different axes.
    let linear = LinearConfig::new(4, 4).init(device);
    let error = fold::into_previous::<3, _>(&linear, &norm(4, device), None);
    assert!(matches!(error, Err(FoldError::ChannelAxis { .. })));

    let relu = BatchNormConfig::new(4).with_activation(Activation::Relu);
    let relu = trained(relu, device);
    let between = FoldError::Activation(Activation::Relu);
    let error = fold::into_next(&relu, &valid, None).expect_err("refused");
    assert_eq!(error, between);
    let error = fold::into_norm::<4>(&relu, &norm(4, device), None).expect_err("refused");
    assert_eq!(error, between);
    assert_eq!(
        fold::identity::<4, Conv2d>(&relu, 1).expect_err("refused"),
        between
    );
    let folded = fold::into_previous(&valid, &relu, None).expect("folds");
    assert_eq!(folded.activation, Activation::Relu);

    for padding in [PaddingConfig2d::Same, PaddingConfig2d::Explicit(0, 0, 0, 1)] {
        let error = fold::into_next(&norm(4, device), &conv(padding), None).expect_err("refused");
        assert!(matches!(error, FoldError::Padding { .. }), "{error}");
    }
    let error = fold::identity::<4, Conv2d>(&norm(4, device), 3).expect_err("refused");
    assert_eq!(
        error,
        FoldError::Groups {
            channels: 4,
            groups: 3
        }
    );
}

/// The folded layer keeps the type of the layer's parameters, and is computed wide.
#[test]
fn half_parameters_stay_half() {
    let device = &Device::flex();
    let mut linear = LinearConfig::new(4, 4).init(device);
    linear.weight = Param::from_tensor(linear.weight.val().cast(DType::F16));
    linear.bias = None;
    let norm = norm(4, device);
    let folded = fold::into_previous::<2, _>(&linear, &norm, None).expect("folds");
    assert_eq!(folded.layer.weight.dtype(), DType::F16);
    assert_eq!(folded.layer.bias.expect("a bias").dtype(), DType::F16);
}

#[test]
fn a_nan_is_a_difference() {
    let device = &Device::flex();
    let linear = LinearConfig::new(2, 2).init(device);
    let x = Tensor::<2>::from_floats([[f32::NAN, 0.0], [1.0, 2.0]], device);
    let folded = fold::into_previous(&linear, &norm(2, device), Some(x)).expect("folds");
    assert!(folded.difference.expect("an input").is_nan());
}

/// On a device that checkpoints gradients, and where inference is not by the running statistics.
#[test]
fn folding_heeds_the_device_and_the_inference() {
    let device = Device::flex().autodiff().gradient_checkpointing();
    let conv = Conv2dConfig::new([2, 3], [3, 3]).init(&device);
    let frozen = norm(3, &device).freeze();
    let x = random([2, 2, 5, 5], 1, &device);
    let folded = fold::into_previous(&conv, &frozen, Some(x)).expect("folded");
    let difference = folded.difference.expect("an input was given");
    assert!(difference < 1e-5, "{difference}");

    for inference in [Inference::Batch, Inference::Blend { batch: 0.5 }] {
        let norm = trained(BatchNormConfig::new(3).with_inference(inference), &device).freeze();
        let error = fold::into_previous::<4, _>(&conv, &norm, None).expect_err("a refusal");
        assert_eq!(error, FoldError::Inference(inference));
        let error = burn::nn::BatchNorm::try_from(norm).expect_err("a refusal");
        assert!(error.to_string().contains("inference"), "{error}");
    }
}

/// Folding changes values: what was frozen stays so.
#[test]
fn folded_parameters_train_as_those_that_they_replace() {
    let device = Device::flex().autodiff();
    let frozen = norm(3, &device).freeze();
    let conv = |bias| {
        let config = Conv2dConfig::new([3, 3], [1, 1]).with_bias(bias);
        config.init(&device)
    };
    let fold = |conv: &Conv2d| {
        let folded = fold::into_previous::<4, _>(conv, &frozen, None).expect("folds");
        folded.layer
    };
    let trains = |conv: &Conv2d| {
        let bias = conv.bias.as_ref().expect("a bias");
        (conv.weight.is_require_grad(), bias.is_require_grad())
    };
    for bias in [true, false] {
        assert_eq!(trains(&fold(&conv(bias))), (true, true));
        assert_eq!(trains(&fold(&conv(bias).freeze())), (false, false));
    }
    let mut half = conv(true);
    half.weight = half.weight.set_require_grad(false);
    assert_eq!(trains(&fold(&half)), (false, true));
    let sum = fold::sum::<4, _>(&[conv(true).freeze(), conv(true)], None);
    assert_eq!(trains(&sum.expect("folds").layer), (false, false));
    let identity: Conv2d = fold::identity(&frozen, 1).expect("folds");
    assert_eq!(trains(&identity), (false, false));
    let twice = fold::into_norm::<4>(&frozen, &frozen, None).expect("folds");
    assert!(!twice.layer.gamma.is_require_grad());

    // On a plain device it is remembered.
    let plain = norm(3, &Device::flex());
    let fold = |conv: Conv2d| {
        let folded = fold::into_previous::<4, _>(&conv.valid(), &plain, None);
        trains(&folded.expect("folds").layer.train())
    };
    assert_eq!(fold(conv(true)), (true, true));
    assert_eq!(fold(conv(true).freeze()), (false, false));
}

/// Burn records the weight of a `Col` layout transposed.
#[test]
fn a_folded_layer_is_recorded_as_the_layer_that_it_replaces() {
    let device = Device::flex();
    let config = LinearConfig::new(4, 4).with_layout(LinearLayout::Col);
    let folded = fold::into_previous::<2, _>(&config.init(&device), &norm(4, &device), None);
    let folded = folded.expect("folds").layer;
    let x = random([5, 4], 1, &device);
    let expected = folded.forward(x.clone()).into_data();
    let loaded = config.init(&device).load_record(folded.into_record());
    assert_close("loaded", &loaded.forward(x).into_data(), &expected, 1e-6);
}
