"""The list of golden cases for PyTorch, and how the random tensors of a case are made."""

import zlib

import numpy as np

from case_file import DTYPES, Case, representable


def build(
    name, about, shapes, dtype="f32", training=True, x=None, given=True, dy=True, count=None, preset=None, **config
):
    """A case with random tensors, seeded by its name so that cases do not depend on each other.

    `x(rng, shape)` makes the batches (default: a different mean and spread per
    channel). `given` says whether parameters and statistics are in the file;
    the first half of the random gammas is negative.
    """
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    axis = config.get("channel_axis", 1) % len(shapes[0])
    channels = shapes[0][axis]
    case = Case(name, about, dtype, {"num_features": channels} | config, training, [], preset=preset)
    case.num_batches_tracked = count

    offsets, spreads = rng.normal(0, 2, channels), rng.uniform(0.3, 3, channels)
    view = [-1 if i == axis else 1 for i in range(len(shapes[0]))]
    for shape in shapes:
        if x is None:
            values = rng.normal(size=shape) * spreads.reshape(view) + offsets.reshape(view)
        else:
            values = x(rng, shape)
        case.batches.append(representable(values, DTYPES[dtype]))
    if dy:
        case.dy = representable(rng.normal(size=shapes[0]), DTYPES[dtype])

    sign = np.where(np.arange(channels) < (channels + 1) // 2, -1.0, 1.0)
    params = {
        "gamma": sign * rng.uniform(0.5, 2, channels),
        "beta": rng.normal(size=channels),
        "running_mean": rng.normal(size=channels),
        "running_var": rng.uniform(0.2, 3, channels),
    }
    absent = set() if given else set(params)
    if not case.scale:
        absent.add("gamma")
    if not case.shift:
        absent.add("beta")
    if not case.running_stats:
        absent |= {"running_mean", "running_var"}
    case.params = {k: representable(v, case.param_dtype) for k, v in params.items() if k not in absent}
    return case


def large_mean(rng, shape):
    """Mean 1e4 and standard deviation 1: E[x^2] - E[x]^2 would lose the variance in f32."""
    return rng.normal(1e4, 1, shape)


def one_constant_channel(rng, shape):
    """Channel 1 is 1e4 everywhere, channel 2 is zero everywhere, the others are random."""
    values = rng.normal(size=shape)
    values[:, 1] = 1e4
    values[:, 2] = 0
    return values


def tiny_variance(rng, shape):
    """Standard deviations from 1e-6 (variance far below epsilon) to 1."""
    spreads = np.logspace(-6, 0, shape[1]).reshape([-1 if i == 1 else 1 for i in range(len(shape))])
    return rng.normal(size=shape) * spreads


RANKS = {  # three batches each, of different sizes; the last ones also differ in the trailing axes
    2: [(7, 5), (4, 5), (11, 5)],
    3: [(3, 4, 9), (2, 4, 9), (5, 4, 6)],
    4: [(3, 5, 4, 7), (2, 5, 4, 7), (4, 5, 3, 5)],
    5: [(2, 3, 2, 3, 5), (1, 3, 2, 3, 5), (3, 3, 4, 2, 3)],
}


def torch_cases():
    for rank, shapes in RANKS.items():
        for dtype in ("f32", "f64"):
            yield build(
                f"pytorch_rank{rank}_{dtype}_train",
                f"rank {rank}, three training batches of unequal size",
                shapes,
                dtype,
            )
            yield build(
                f"pytorch_rank{rank}_{dtype}_eval",
                f"rank {rank}, running statistics, gradients in eval mode",
                shapes[:2],
                dtype,
                training=False,
            )
    r2, r3, r4, _ = RANKS.values()

    yield build("pytorch_defaults_train", "nothing given: initial parameters and statistics", r4, given=False)
    yield build(
        "pytorch_defaults_eval", "nothing given: eval with statistics 0 and 1", r4[:1], given=False, training=False
    )
    yield build("pytorch_forward_only_train", "no dy: outputs and statistics alone", r3, dy=False)
    yield build(
        "pytorch_counter_exponential", "a given counter goes on; exponential averaging ignores it", r2, count=41
    )

    # Straight from PyTorch in f32.
    yield build("pytorch_f32_rank2_train", "PyTorch's own f32 results, rank 2", r2)
    yield build("pytorch_f32_rank4_train", "PyTorch's own f32 results, rank 4", r4)
    yield build("pytorch_f32_rank4_eval", "PyTorch's own f32 results, eval mode", r4[:1], training=False)
    yield build(
        "pytorch_f32_article_train", "PyTorch's own f32 results, the article's layer: batch 32, 50 features", [(32, 50)]
    )

    # Averaging and estimator.
    yield build("pytorch_cumulative_rank2_f32", "equal weight of all batches", r2, averaging="Cumulative")
    yield build("pytorch_cumulative_rank4_f64", "equal weight of all batches", r4, "f64", averaging="Cumulative")
    yield build(
        "pytorch_cumulative_resumed",
        "seven batches were counted before: weights 1/8, 1/9, 1/10",
        r3,
        averaging="Cumulative",
        count=7,
    )
    yield build(
        "pytorch_cumulative_biased", "equal weight, biased variance", r2, averaging="Cumulative", variance="Biased"
    )
    yield build("pytorch_biased_rank2_f32", "biased running variance", r2, variance="Biased")
    yield build("pytorch_biased_rank4_f64", "biased running variance", r4, "f64", variance="Biased")
    yield build("pytorch_momentum_zero", "momentum 0: statistics stay, the counter does not", r3, momentum=0.0)
    yield build("pytorch_momentum_one", "momentum 1: statistics of the last batch", r3, momentum=1.0)
    yield build(
        "pytorch_momentum_one_resumed",
        "two values per channel: unbiased variance is twice the biased one (no dy: dx cancels to rounding errors)",
        [(2, 6)],
        dy=False,
        momentum=1.0,
        count=3,
    )
    yield build(
        "pytorch_epsilon_train", "epsilon 1e-3 with channels of tiny variance", r4, x=tiny_variance, epsilon=1e-3
    )
    yield build("pytorch_epsilon_eval", "epsilon 1e-3 in eval mode", r4[:1], training=False, epsilon=1e-3)

    # Scale, shift and running statistics off.
    for mode in ("train", "eval"):
        training = mode == "train"
        shapes = r4 if training else r4[:1]
        yield build(f"pytorch_no_scale_{mode}", "shift without scale", shapes, training=training, scale=False)
        yield build(f"pytorch_no_shift_{mode}", "scale without shift", shapes, training=training, shift=False)
        yield build(
            f"pytorch_no_affine_{mode}", "neither scale nor shift", shapes, training=training, scale=False, shift=False
        )
        yield build(
            f"pytorch_no_running_stats_{mode}",
            "no running statistics: those of the batch in both modes",
            r3[:2],
            training=training,
            running_stats=False,
        )
    yield build(
        "pytorch_no_affine_no_running_stats_train",
        "a layer without any tensor of its own",
        r2,
        "f64",
        scale=False,
        shift=False,
        running_stats=False,
    )

    # Channel axis.
    last3, last4 = [(3, 9, 4), (2, 9, 4), (5, 6, 4)], [(3, 4, 7, 5), (2, 4, 7, 5), (4, 3, 5, 5)]
    yield build("pytorch_axis_last_rank2_train", "channels last, rank 2: the same as axis 1", r2, channel_axis=-1)
    yield build("pytorch_axis_last_rank3_train", "channels last", last3, channel_axis=-1)
    yield build("pytorch_axis_last_rank4_train", "channels last", last4, channel_axis=-1)
    yield build("pytorch_axis_last_rank4_eval", "channels last, eval mode", last4[:1], training=False, channel_axis=-1)
    yield build("pytorch_axis_last_rank4_f64", "channels last", last4, "f64", channel_axis=-1)
    yield build(
        "pytorch_axis_0_rank2_train",
        "channels first of all, one long row each",
        [(5, 7), (5, 4), (5, 11)],
        channel_axis=0,
    )
    yield build(
        "pytorch_axis_2_rank4_train",
        "channel axis in the middle",
        [(3, 4, 5, 7), (2, 4, 5, 7), (4, 3, 5, 6)],
        channel_axis=2,
    )
    yield build(
        "pytorch_axis_minus2_rank4_eval",
        "channel axis counted from the end",
        [(3, 4, 5, 7)],
        training=False,
        channel_axis=-2,
    )
    yield build(
        "pytorch_mixed_options",
        "channels last, biased, no shift, epsilon 1e-3, momentum 0.5, counter 3",
        last3,
        "f64",
        channel_axis=-1,
        variance="Biased",
        shift=False,
        epsilon=1e-3,
        momentum=0.5,
        count=3,
    )

    # Hard numbers.
    for dtype in ("f32", "f64"):
        yield build(
            f"pytorch_large_mean_{dtype}",
            "mean 1e4, standard deviation 1",
            [(4, 3, 6, 7), (3, 3, 6, 7)],
            dtype,
            x=large_mean,
        )
        yield build(
            f"pytorch_constant_channel_{dtype}",
            "channel 1 is 1e4, channel 2 is 0 everywhere: y is exactly beta there",
            r4,
            dtype,
            x=one_constant_channel,
        )
    yield build(
        "pytorch_large_mean_rank2", "mean 1e4, standard deviation 1, one value per row", [(33, 17)], x=large_mean
    )
    yield build(
        "pytorch_large_mean_axis_last",
        "mean 1e4, standard deviation 1, channels last",
        [(2, 5, 6, 9)],
        x=large_mean,
        channel_axis=-1,
    )
    yield build("pytorch_tiny_variance", "standard deviations from 1e-6 to 1", [(4, 7, 5), (3, 7, 5)], x=tiny_variance)

    # Shapes that reach vector tails and cuts.
    yield build("pytorch_single_channel", "one channel", [(5, 1, 3, 3), (2, 1, 3, 3)])
    yield build("pytorch_many_channels", "131 channels, inner length 1", [(6, 131)])
    yield build("pytorch_long_rows", "rows of 1031 values", [(2, 1, 1031)])
    yield build("pytorch_one_row_per_channel", "batch of one with trailing axes", [(1, 6, 5, 5), (1, 6, 2, 1)])

    # Half inputs, f32 parameters.
    for dtype in ("f16", "bf16"):
        yield build(f"half_{dtype}_rank2_train", f"{dtype} input, f32 parameters", r2, dtype)
        yield build(f"half_{dtype}_rank4_train", f"{dtype} input, f32 parameters", r4, dtype)
        yield build(
            f"half_{dtype}_rank4_eval", f"{dtype} input, f32 parameters, eval mode", r4[:1], dtype, training=False
        )
    yield build(
        "half_f16_large_values",
        "squares overflow f16: variance near 1e6",
        [(6, 3, 8)],
        "f16",
        x=lambda rng, shape: rng.normal(500, 1000, shape),
    )
    yield build(
        "half_bf16_axis_last_train",
        "bf16 input, channels last, biased",
        last3,
        "bf16",
        channel_axis=-1,
        variance="Biased",
    )
