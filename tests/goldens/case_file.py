"""One golden case: its inputs, a numpy oracle for it, and the file it is stored in.

The numpy oracle repeats the textbook formulas and knows nothing of any
framework. Every expectation that a framework gives is checked against it
before it is written, so a misused framework call cannot become a golden.
"""

import json
import struct
from dataclasses import dataclass, field

import numpy as np
import torch
from safetensors.torch import save

DEFAULTS = {
    "epsilon": 1e-5,
    "momentum": 0.1,
    "averaging": "Exponential",
    "variance": "Unbiased",
    "scale": True,
    "shift": True,
    "running_stats": True,
    "channel_axis": 1,
    "single_value": "Error",
}

DTYPES = {
    "f32": torch.float32,
    "f64": torch.float64,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
}


@dataclass
class Case:
    """Inputs of one case, as float64 arrays whose values `dtype` can hold exactly."""

    name: str
    about: str
    dtype: str
    config: dict  # as written to the file: `num_features` and what differs from DEFAULTS
    training: bool
    batches: list  # x, x2, x3, ..
    dy: np.ndarray | None = None
    params: dict = field(default_factory=dict)  # gamma, beta, running_mean, running_var if given
    num_batches_tracked: int | None = None
    preset: str | None = None  # the BatchNormConfig preset that must equal `config`

    def __getattr__(self, key):
        """`case.epsilon` and so on: the configured value or its default."""
        if key in DEFAULTS:
            return self.config.get(key, DEFAULTS[key])
        raise AttributeError(key)

    @property
    def channels(self):
        return self.config["num_features"]

    @property
    def axis(self):
        return self.channel_axis % self.batches[0].ndim

    @property
    def x_dtype(self):
        return DTYPES[self.dtype]

    @property
    def param_dtype(self):
        """Parameters and statistics of half inputs are f32."""
        return torch.float64 if self.dtype == "f64" else torch.float32

    def initial(self, name):
        """A parameter or statistic as it is before the first batch."""
        start = np.zeros if name in ("beta", "running_mean") else np.ones
        return self.params.get(name, start(self.channels))


def representable(values, dtype):
    """`values` rounded to a torch `dtype`, back in float64."""
    return torch.as_tensor(values, dtype=torch.float64).to(dtype).to(torch.float64).numpy()


def numpy_expected(case):
    """Outputs of a case by the formulas, in float64. Keys as in the file, without `expect.`."""
    x0 = case.batches[0]
    others = tuple(i for i in range(x0.ndim) if i != case.axis)

    def per_channel(v):
        return v.reshape([-1 if i == case.axis else 1 for i in range(x0.ndim)])

    gamma, beta = (per_channel(case.initial(p)) for p in ("gamma", "beta"))
    running_mean, running_var = case.initial("running_mean"), case.initial("running_var")
    count = case.num_batches_tracked or 0
    from_batch = case.training or not case.running_stats
    out = {}
    for i, x in enumerate(case.batches):
        n = x.size // case.channels
        if from_batch:
            mean = x.mean(axis=others)
            var = np.square(x - per_channel(mean)).mean(axis=others)
        else:
            mean, var = running_mean, running_var
        inv_std = 1 / np.sqrt(per_channel(var) + case.epsilon)
        x_hat = (x - per_channel(mean)) * inv_std
        out["y" if i == 0 else f"y{i + 1}"] = gamma * x_hat + beta
        if i == 0 and case.dy is not None:
            sum_dy = case.dy.sum(axis=others)
            sum_dy_x_hat = (case.dy * x_hat).sum(axis=others)
            centred = case.dy
            if from_batch:
                centred = case.dy - per_channel(sum_dy / n) - x_hat * per_channel(sum_dy_x_hat / n)
            out["dx"] = gamma * inv_std * centred
            out["dgamma"], out["dbeta"] = sum_dy_x_hat, sum_dy
        if case.training and case.running_stats:
            count += 1
            weight = 1 / count if case.averaging == "Cumulative" else case.momentum
            kept = var if case.variance == "Biased" else var * n / (n - 1)
            running_mean = (1 - weight) * running_mean + weight * mean
            running_var = (1 - weight) * running_var + weight * kept
    out["running_mean"], out["running_var"] = running_mean, running_var
    out["num_batches_tracked"] = np.int64(count)
    return {key: v for key, v in out.items() if exists(case, key)}


def exists(case, key):
    """Whether the configured layer has this output at all."""
    if key == "dgamma":
        return case.scale
    if key == "dbeta":
        return case.shift
    if key.startswith("running_") or key == "num_batches_tracked":
        return case.running_stats
    return True


def worst_error(actual, expected):
    """Largest |actual - expected|, relative to the largest |expected| where that exceeds 1."""
    scale = max(1.0, float(np.abs(expected).max()))
    return float(np.abs(np.asarray(actual, np.float64) - expected).max()) / scale


def check(case, expected, tolerance):
    """Fail unless a framework's results agree with the formulas."""
    own = numpy_expected(case)
    missing = own.keys() - expected.keys() - {"num_batches_tracked"}
    assert not missing, f"{case.name}: no {missing}"
    for key, value in expected.items():
        error = worst_error(value, own[key])
        assert np.shape(value) == np.shape(own[key]), f"{case.name}: shape of {key}"
        assert error <= tolerance, f"{case.name}: {key} is off by {error:.1e}"


def write_case(folder, case, expected, generator):
    """Store inputs and expectations; returns the size in bytes."""
    tensors = {}

    def put(name, values, dtype):
        tensors[name] = torch.from_numpy(np.array(values)).to(dtype).contiguous()

    for i, x in enumerate(case.batches):
        put("x" if i == 0 else f"x{i + 1}", x, case.x_dtype)
    if case.dy is not None:
        put("dy", case.dy, case.x_dtype)
    for name, values in case.params.items():
        put(name, values, case.param_dtype)
    for key, values in expected.items():
        if key == "num_batches_tracked":
            put(f"expect.{key}", values, torch.int64)
        else:
            like_x = key.startswith("y") or key == "dx"
            put(f"expect.{key}", values, case.x_dtype if like_x else case.param_dtype)

    record = {"config": case.config, "training": case.training}
    if case.num_batches_tracked is not None:
        record["num_batches_tracked"] = case.num_batches_tracked
    metadata = {"case": json.dumps(record), "about": case.about, "generator": generator}
    if case.preset is not None:
        metadata["preset"] = case.preset
    return write_safetensors(folder / f"{case.name}.safetensors", tensors, metadata)


def write_safetensors(path, tensors, metadata):
    """Like `safetensors.torch.save_file`, whose metadata order is random: here it is sorted."""
    data = save(tensors, metadata)
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    return path.stat().st_size
