"""Writes the files of weights that tests/weights.rs reads, with torch, Keras (on any backend) and Flax.

Each is a small network (a convolution, batch norm after three training steps, a transposed convolution
where the framework's is Burn's, a dense head on the mean over positions), saved in the few lines that
docs/weights.md shows. `expected.safetensors` holds one input, `[batch, channels, height, width]`, and what
every framework makes of it in inference.

    python generate.py            writes the files
    python generate.py --check F  loads F, written by this project, strictly into the PyTorch network
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")
import numpy as np
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file, save_file as save_torch

FOLDER = Path(__file__).parent
RANDOM = np.random.default_rng(13)
X = RANDOM.normal(size=(2, 3, 6, 6)).astype(np.float32)
BATCHES = [RANDOM.normal(1.0, 2.0, size=(4, 3, 6, 6)).astype(np.float32) for _ in range(3)]


def randomized(shape, positive=False):
    values = RANDOM.uniform(0.5, 1.5, shape) if positive else RANDOM.normal(0.0, 0.5, shape)
    return values.astype(np.float32)


class Torch(torch.nn.Module):
    def __init__(self, momentum=None):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, bias=False)
        self.norm = torch.nn.BatchNorm2d(4, momentum=momentum)
        self.up = torch.nn.ConvTranspose2d(4, 5, 3, stride=2)
        self.head = torch.nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.up(self.norm(self.conv(x))).mean((2, 3)))


def pytorch():
    model = Torch()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(randomized(parameter.shape, name == "norm.weight")))
        for batch in BATCHES:
            model(torch.from_numpy(batch))
        save_torch(model.state_dict(), FOLDER / "pytorch.safetensors")
        torch.save(model.state_dict(), FOLDER / "pytorch.pt")
        return model.eval()(torch.from_numpy(X)).numpy()


def keras():
    import keras

    layers = keras.layers
    model = keras.Sequential([
        keras.Input((6, 6, 3)),
        layers.Conv2D(4, 3, use_bias=False, name="conv"),
        layers.BatchNormalization(name="norm"),
        layers.Conv2DTranspose(5, 3, strides=2, name="up"),
        layers.GlobalAveragePooling2D(),
        layers.Dense(2, name="head"),
    ])
    for weight in model.weights:
        positive = weight.path.endswith(("norm/gamma", "norm/moving_variance"))
        weight.assign(randomized(weight.shape, positive))
    save_file({w.path: np.asarray(w) for w in model.weights}, FOLDER / "keras.safetensors")
    return np.asarray(model(X.transpose(0, 2, 3, 1), training=False))


def flax_nnx():
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(3, 4, (3, 3), padding="VALID", use_bias=False, rngs=rngs)
            self.norm = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)
            self.head = nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, x):
            return self.head(self.norm(self.conv(x)).mean((1, 2)))

    model = Net(nnx.Rngs(0))
    for path, variable in nnx.state(model).flat_state():
        positive = path in (("norm", "scale"), ("norm", "var"))
        variable.set_value(randomized(variable.get_value().shape, positive))
        target = model
        for name in path:
            target = getattr(target, name)
        target.set_value(variable.get_value())
    state = {".".join(map(str, path)): np.asarray(v.get_value()) for path, v in nnx.state(model).flat_state()}
    save_file(state, FOLDER / "flax_nnx.safetensors")
    return np.asarray(model(X.transpose(0, 2, 3, 1)))


def flax_linen():
    import jax
    from flax import linen
    from flax.traverse_util import flatten_dict, unflatten_dict

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.Conv(4, (3, 3), padding="VALID", use_bias=False, name="conv")(x)
            x = linen.BatchNorm(use_running_average=True, name="norm")(x)
            return linen.Dense(2, name="head")(x.mean((1, 2)))

    x = X.transpose(0, 2, 3, 1)
    shapes = flatten_dict(Net().init(jax.random.key(0), x), sep="/")
    variables = {
        name: randomized(value.shape, name.endswith(("scale", "var")))
        for name, value in shapes.items()
    }
    save_file(variables, FOLDER / "flax_linen.safetensors")
    return np.asarray(Net().apply(unflatten_dict(variables, sep="/"), x))


def main():
    if sys.argv[1:2] == ["--check"]:
        tensors = load_file(sys.argv[2])
        # With and without a counter: PyTorch's default layer needs none in a file.
        for momentum in (None, 0.1):
            print(Torch(momentum).load_state_dict(tensors, strict=True))
        return
    outputs = {f.__name__: f() for f in (pytorch, keras, flax_nnx, flax_linen)}
    save_file({"x": X, **outputs}, FOLDER / "expected.safetensors")


if __name__ == "__main__":
    main()
