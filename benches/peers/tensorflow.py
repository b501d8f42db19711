"""TensorFlow's batch norm against ours, channels last, shape by shape, in one run.

Why: TensorFlow's `FusedBatchNormV3` is the strongest peer on large inputs. It wants
channels last, so ours runs with `channel_axis = -1` on the same memory order. The
operations are called eagerly, without a graph around them.

    cargo build --release -p batchnorm-benches
    python benches/peers/tensorflow.py [--suite target/release/suite-mimalloc]
        [--device flex] [--shapes 32x50,..] [--rounds 5] [--threads N] [--json FILE]

Shapes are given with the channels second, as everywhere, and run with them last.
Needs tensorflow. The JSON has the suite's fields, and `tensorflow_ms`.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# This file is named as the package that it imports.
here = str(Path(__file__).resolve().parent)
sys.path.remove(here)
import tensorflow as tf  # noqa: E402

sys.path.insert(0, here)

from peer import arguments, compare  # noqa: E402


def passes_of(shape):
    # The operation knows images only: batch, height, width, channels.
    image = [shape[0], 1, 1, shape[-1]] if len(shape) == 2 else [shape[0], -1, shape[-2], shape[-1]]
    x = tf.reshape(tf.random.normal(shape, seed=1), image)
    dy = tf.reshape(tf.random.normal(shape, seed=2), image)
    channels = shape[-1]
    gamma, beta = tf.ones(channels), tf.zeros(channels)
    mean, var = tf.zeros(channels), tf.ones(channels)

    def train():
        # The factor is the weight of the new batch in what is returned as running statistics.
        return tf.raw_ops.FusedBatchNormV3(
            x=x, scale=gamma, offset=beta, mean=mean, variance=var, epsilon=1e-5,
            exponential_avg_factor=0.1, data_format="NHWC", is_training=True)

    def forward_backward():
        out = train()
        return tf.raw_ops.FusedBatchNormGradV3(
            y_backprop=dy, x=x, scale=gamma, reserve_space_1=out.reserve_space_1,
            reserve_space_2=out.reserve_space_2, reserve_space_3=out.reserve_space_3,
            epsilon=1e-5, data_format="NHWC", is_training=True)

    def inference():
        return tf.raw_ops.FusedBatchNormV3(
            x=x, scale=gamma, offset=beta, mean=mean, variance=var, epsilon=1e-5,
            data_format="NHWC", is_training=False)

    return train, forward_backward, inference


if __name__ == "__main__":
    options = arguments(__doc__.splitlines()[0])
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    # As the suite does: glibc learns from it to keep freed memory (`settle_allocator`).
    tf.ones(31 << 20, dtype=tf.uint8)
    print(f"TensorFlow {tf.__version__}, {options.threads} threads, ours: {options.suite.name} "
          f"on {options.device}")
    compare(options, "tensorflow", {"eager": passes_of}, channels_last=True)
