"""Golden cases of options, answered by the framework that has each.

    python option_peers.py OUTPUT_DIR

    option_keras_mask*, option_keras_renorm*   Keras 3 on JAX (float32, as they are)
    option_flax_mask*                          Flax on JAX, float64
    option_keras2_ghost*                       tf-keras, `virtual_batch_size`
    option_pytorch_update_bn                   torch.optim.swa_utils.update_bn

Needs keras, jax, flax, tensorflow, tf-keras, torch, numpy, safetensors. The files are cases for the
case runner as `generate.py` describes them, with `mask`, `mask2`, .. for the batches in turn. Of
`update_bn` there is no pass to run: x, x2, .. and the statistics that it ends with.
"""

import json
import os
import sys
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import jax

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_platforms", "cpu")

import flax
import keras
import numpy as np
import tensorflow as tf
import tf_keras
import torch
from flax import nnx
from safetensors.numpy import save_file

FOLDER = Path(sys.argv[1])
KERAS = {"epsilon": 1e-3, "momentum": 0.01, "variance": "Biased", "channel_axis": -1}


def name(prefix, index):
    return prefix if index == 0 else f"{prefix}{index + 1}"


def write(file, about, generator, config, inputs, expected):
    tensors = {key: np.ascontiguousarray(value) for key, value in inputs.items()}
    tensors |= {f"expect.{key}": np.ascontiguousarray(value) for key, value in expected.items()}
    metadata = {
        "case": json.dumps({"config": config, "training": True}),
        "about": about,
        "generator": generator,
    }
    save_file(tensors, FOLDER / f"{file}.safetensors", metadata)
    (FOLDER / f"{file}.safetensors").chmod(0o644)
    print(file, ", ".join(sorted(expected)))


def inputs_of(seed, shapes, dtype, masked=False):
    """Batches with a mean and a spread a channel, gradients, parameters, statistics."""
    rng = np.random.default_rng(seed)
    channels = shapes[0][-1]
    inputs = {}
    for index, shape in enumerate(shapes):
        x = rng.normal(size=shape) * rng.uniform(0.5, 3, channels) + rng.normal(size=channels) * 2
        inputs[name("x", index)] = x.astype(dtype)
        if masked:
            mask = rng.uniform(size=shape[:-1]) < 0.6
            mask.flat[:2] = True
            inputs[name("mask", index)] = mask
    inputs["dy"] = rng.normal(size=shapes[0]).astype(dtype)
    inputs["gamma"] = rng.uniform(0.5, 1.5, channels).astype(dtype)
    inputs["beta"] = rng.normal(size=channels).astype(dtype)
    return inputs


def masks(inputs):
    """The case runner reads bytes."""
    return {k: v.astype(np.uint8) if k.startswith("mask") else v for k, v in inputs.items()}


def keras_case(file, about, shapes, seed, masked, config=None, **options):
    inputs = inputs_of(seed, shapes, np.float32, masked)
    layer = keras.layers.BatchNormalization(**options)
    layer.build(shapes[0])
    layer.gamma.assign(inputs["gamma"])
    layer.beta.assign(inputs["beta"])
    state = [v.value for v in layer.non_trainable_variables]

    def call(x, index, **rest):
        mask = inputs.get(name("mask", index))
        return layer(x, training=True, mask=mask, **rest) if masked else layer(x, training=True)

    def forward(x, gamma, beta):
        rest = {"mask": inputs["mask"]} if masked else {}
        return layer.stateless_call([gamma, beta], state, x, training=True, **rest)[0]

    _, pull_back = jax.vjp(forward, *(jax.numpy.asarray(inputs[k]) for k in ("x", "gamma", "beta")))
    out = dict(zip(("dx", "dgamma", "dbeta"), pull_back(jax.numpy.asarray(inputs["dy"]))))
    for index in range(len(shapes)):
        out[name("y", index)] = call(inputs[name("x", index)], index)
    out["running_mean"] = layer.moving_mean.value
    out["running_var"] = layer.moving_variance.value
    out = {key: np.asarray(value, np.float32) for key, value in out.items()}
    generator = f"keras {keras.__version__}, jax {jax.__version__}; float32 results as they are"
    config = {"num_features": shapes[0][-1]} | KERAS | (config or {})
    write(file, about, generator, config, masks(inputs), out)


def flax_case(file, shapes, seed):
    inputs = inputs_of(seed, shapes, np.float64, masked=True)

    def layer(gamma, beta):
        bn = nnx.BatchNorm(
            shapes[0][-1],
            dtype=np.float64,
            param_dtype=np.float64,
            use_fast_variance=False,
            rngs=nnx.Rngs(0),
        )
        bn.scale.set_value(jax.numpy.asarray(gamma))
        bn.bias.set_value(jax.numpy.asarray(beta))
        bn.mean.set_value(np.zeros(shapes[0][-1]))
        bn.var.set_value(np.ones(shapes[0][-1]))
        return bn

    def forward(x, gamma, beta):
        return layer(gamma, beta)(x, mask=inputs["mask"][..., None])

    _, pull_back = jax.vjp(forward, *(jax.numpy.asarray(inputs[k]) for k in ("x", "gamma", "beta")))
    out = dict(zip(("dx", "dgamma", "dbeta"), pull_back(jax.numpy.asarray(inputs["dy"]))))
    bn = layer(inputs["gamma"], inputs["beta"])
    for index in range(len(shapes)):
        mask = inputs[name("mask", index)][..., None]
        out[name("y", index)] = bn(jax.numpy.asarray(inputs[name("x", index)]), mask=mask)
    out |= {"running_mean": bn.mean.get_value(), "running_var": bn.var.get_value()}
    out = {key: np.asarray(value, np.float64) for key, value in out.items()}
    generator = f"flax {flax.__version__}, jax {jax.__version__}; float64"
    config = {"num_features": shapes[0][-1]} | KERAS | {"epsilon": 1e-5}
    write(file, "mask= of flax.nnx.BatchNorm", generator, config, masks(inputs), out)


def ghost_case(file, shapes, size, seed):
    inputs = inputs_of(seed, shapes, np.float32)
    layer = tf_keras.layers.BatchNormalization(virtual_batch_size=size, fused=False)
    layer.build((None,) + shapes[0][1:])
    # Its vectors have an axis for the ghost batches.
    layer.gamma.assign(inputs["gamma"].reshape(layer.gamma.shape))
    layer.beta.assign(inputs["beta"].reshape(layer.beta.shape))
    out = {}
    for index in range(len(shapes)):
        x = tf.Variable(inputs[name("x", index)])
        with tf.GradientTape() as tape:
            y = layer(x, training=True)
            loss = tf.reduce_sum(y * inputs["dy"]) if index == 0 else None
        if index == 0:
            gradients = tape.gradient(loss, [x, layer.gamma, layer.beta])
            out |= dict(zip(("dx", "dgamma", "dbeta"), gradients))
        out[name("y", index)] = y
    out |= {"running_mean": layer.moving_mean, "running_var": layer.moving_variance}
    out = {key: np.asarray(value, np.float32) for key, value in out.items()}
    vectors = ("dgamma", "dbeta", "running_mean", "running_var")
    out |= {key: out[key].reshape(-1) for key in vectors}
    generator = f"tf-keras {tf_keras.__version__}, tensorflow {tf.__version__}; float32 results as they are"
    ghost = {"statistics": {"Ghost": {"size": size, "variance": "Mean"}}}
    config = {"num_features": shapes[0][-1]} | KERAS | ghost
    write(file, f"virtual_batch_size={size} of Keras 2", generator, config, inputs, out)


def update_bn_case():
    rng = np.random.default_rng(7)
    batches = [torch.from_numpy(rng.normal(2, 3, (n, 4, 3))) for n in (6, 6, 2)]
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(4, dtype=torch.float64))
    model[0](batches[0] * 7)  # statistics to forget
    torch.optim.swa_utils.update_bn(batches, model)
    inputs = {name("x", i): batch.numpy() for i, batch in enumerate(batches)}
    expected = {
        "running_mean": model[0].running_mean.numpy(),
        "running_var": model[0].running_var.numpy(),
    }
    generator = f"torch {torch.__version__.split('+')[0]}; float64"
    write("option_pytorch_update_bn", "update_bn", generator, {"num_features": 4}, inputs, expected)


SEQUENCES = [(4, 6, 3), (3, 5, 3), (2, 7, 3)]
clipped = {"Renorm": {"r_min": 0.5, "r_max": {"Constant": 1.5}, "d_max": {"Constant": 0.5},
                      "reference": {"Separate": {"momentum": 0.01}}}}
unclipped = {"Renorm": {"r_min": 0.0, "r_max": "Unbounded", "d_max": "Unbounded",
                        "reference": {"Separate": {"momentum": 0.1}}}}
keras_case("option_keras_mask", "mask= of Keras 3", SEQUENCES, 1, masked=True)
keras_case("option_keras_renorm_clipped", "renorm=True with clipping", [(7, 5), (4, 5), (11, 5)], 2,
           masked=False, config={"statistics": clipped}, renorm=True,
           renorm_clipping={"rmin": 0.5, "rmax": 1.5, "dmax": 0.5})
keras_case("option_keras_renorm", "renorm=True without clipping", [(3, 4, 6, 5), (2, 4, 6, 5), (4, 3, 5, 5)], 3,
           masked=False, config={"statistics": unclipped, "momentum": 0.2}, renorm=True,
           renorm_momentum=0.9, momentum=0.8)
keras_case("option_keras_renorm_mask", "renorm and a mask together", SEQUENCES, 4, masked=True,
           config={"statistics": clipped}, renorm=True,
           renorm_clipping={"rmin": 0.5, "rmax": 1.5, "dmax": 0.5})
flax_case("option_flax_mask", SEQUENCES, 5)
ghost_case("option_keras2_ghost_rank2", [(12, 5), (8, 5), (20, 5)], 4, 6)
ghost_case("option_keras2_ghost_rank4", [(6, 4, 3, 5), (9, 4, 3, 5), (3, 4, 3, 5)], 3, 8)
update_bn_case()
