"""Cases answered by Keras, Flax and ONNX, one preset of `BatchNormConfig` each.

Keras and Flax run on JAX. Both count the momentum as the weight of the old
statistics (0.99) and store the biased variance; their gradients are those of
JAX's automatic differentiation. Flax computes in float64, with
`use_fast_variance=False`, because its default E[x^2] - E[x]^2 is no oracle.
Keras computes batch normalization in float32 whatever the type of the layer
(`result_type(x.dtype, "float32")` is float32 for float64 too), so its cases hold
f32 results as they are.

ONNX is its own reference implementation of BatchNormalization-15. Its text says
of the running variance: "ReduceVar refers to the population variance", so it is
biased too, and its momentum (0.9) is the weight of the old statistics. It has
no gradients, and its attributes are f32, hence the wider tolerance.

None of the three counts batches, so there is no expected counter.
"""

import os

os.environ["KERAS_BACKEND"] = "jax"

import flax
import jax

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_platforms", "cpu")

import keras
import numpy as np
import onnx
from flax import nnx
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from case_file import check
from cases import build

PRESETS = {
    "keras": {"epsilon": 1e-3, "momentum": 0.01, "variance": "Biased", "channel_axis": -1},
    "flax": {"epsilon": 1e-5, "momentum": 0.01, "variance": "Biased", "channel_axis": -1},
    "onnx": {"epsilon": 1e-5, "momentum": 0.1, "variance": "Biased", "channel_axis": 1},
}
ROUNDED = "computed in float64, rounded once to the stored type"
RANK2 = [(7, 5), (4, 5), (11, 5)]
CHANNELS_LAST = [(3, 4, 6, 5), (2, 4, 6, 5), (4, 3, 5, 5)]
CHANNELS_FIRST = [(3, 5, 4, 6), (2, 5, 4, 6), (4, 5, 3, 5)]


def peer_cases():
    """Each case with its expectations and the name of what gave them."""
    for name, answer, generator, tolerance in (
        (
            "keras",
            keras_expected,
            f"keras {keras.__version__}, jax {jax.__version__}; float32 results as they are",
            1e-5,
        ),
        ("flax", flax_expected, f"flax {flax.__version__}, jax {jax.__version__}; {ROUNDED}", 1e-11),
        ("onnx", onnx_expected, f"onnx {onnx.__version__} reference, attributes in f32; {ROUNDED}", 1e-6),
    ):
        nd = CHANNELS_FIRST if name == "onnx" else CHANNELS_LAST
        has_gradient = name != "onnx"
        for suffix, shapes, dtype, training in (
            ("rank2_train", RANK2, "f32", True),
            ("rank4_train", nd, "f32", True),
            ("rank4_f64_train", nd, "f64", True),
            ("rank4_eval", nd[:1], "f32", False),
        ):
            if name != "flax" and dtype == "f64":
                continue  # f32 inside: its rounding would be the error measured
            case = build(
                f"{name}_{suffix}",
                f"the semantics of {name}",
                shapes,
                dtype,
                training=training,
                dy=has_gradient,
                preset=name,
                **PRESETS[name],
            )
            expected = answer(case)
            check(case, expected, tolerance)
            yield case, expected, generator


def gradients(case, forward, dtype):
    """dx, dgamma and dbeta of `forward(x, gamma, beta)` for the first batch."""
    inputs = (case.batches[0], case.initial("gamma"), case.initial("beta"))
    _, pull_back = jax.vjp(forward, *(jax.numpy.asarray(v, dtype) for v in inputs))
    return dict(zip(("dx", "dgamma", "dbeta"), pull_back(jax.numpy.asarray(case.dy, dtype))))


def keras_expected(case):
    layer = keras.layers.BatchNormalization()
    assert (layer.axis, layer.momentum, layer.epsilon) == (-1, 0.99, 1e-3)
    layer.build(case.batches[0].shape)
    for variable, name in (
        (layer.gamma, "gamma"),
        (layer.beta, "beta"),
        (layer.moving_mean, "running_mean"),
        (layer.moving_variance, "running_var"),
    ):
        variable.assign(case.initial(name))
    state = [v.value for v in layer.non_trainable_variables]

    def forward(x, gamma, beta):
        return layer.stateless_call([gamma, beta], state, x, training=case.training)[0]

    out = gradients(case, forward, np.float32)
    for i, x in enumerate(case.batches):
        out["y" if i == 0 else f"y{i + 1}"] = layer(x.astype(np.float32), training=case.training)
    out |= {"running_mean": layer.moving_mean.value, "running_var": layer.moving_variance.value}
    return {k: np.asarray(v) for k, v in out.items()}


def flax_expected(case):
    def layer(gamma, beta):
        """A fresh layer in the initial state of the case."""
        bn = nnx.BatchNorm(
            case.channels,
            use_running_average=not case.training,
            dtype=np.float64,
            param_dtype=np.float64,
            use_fast_variance=False,
            rngs=nnx.Rngs(0),
        )
        assert (bn.momentum, bn.epsilon, bn.axis) == (0.99, 1e-5, -1)
        for variable, value in (
            (bn.scale, gamma),
            (bn.bias, beta),
            (bn.mean, case.initial("running_mean")),
            (bn.var, case.initial("running_var")),
        ):
            variable.set_value(jax.numpy.asarray(value))
        return bn

    out = gradients(case, lambda x, gamma, beta: layer(gamma, beta)(x), np.float64)
    bn = layer(case.initial("gamma"), case.initial("beta"))
    for i, x in enumerate(case.batches):
        out["y" if i == 0 else f"y{i + 1}"] = bn(jax.numpy.asarray(x))
    out |= {"running_mean": bn.mean.get_value(), "running_var": bn.var.get_value()}
    return {k: np.asarray(v) for k, v in out.items()}


def onnx_expected(case):
    inputs = ["x", "gamma", "beta", "running_mean", "running_var"]
    outputs = ["y", "new_mean", "new_var"] if case.training else ["y"]
    # epsilon 1e-5 and momentum 0.9 are ONNX's defaults and therefore not set.
    node = helper.make_node("BatchNormalization", inputs, outputs, training_mode=int(case.training))
    graph = helper.make_graph(
        [node],
        "batch_norm",
        [helper.make_tensor_value_info(name, TensorProto.DOUBLE, None) for name in inputs],
        [helper.make_tensor_value_info(name, TensorProto.DOUBLE, None) for name in outputs],
    )
    evaluator = ReferenceEvaluator(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)]))
    state = {name: case.initial(name) for name in inputs[1:]}
    out = {}
    for i, x in enumerate(case.batches):
        y, *statistics = evaluator.run(None, {"x": x} | state)
        out["y" if i == 0 else f"y{i + 1}"] = y
        if case.training:
            state["running_mean"], state["running_var"] = statistics
    return out | {"running_mean": state["running_mean"], "running_var": state["running_var"]}
