"""Train the article's network in PyTorch for 50 steps and write everything needed to repeat it.

    python generate_parity.py DATA_DIR OUTPUT_DIR

DATA_DIR holds the IDX files of the embedded subset (`train-images-idx3-ubyte.gz`,
`train-labels-idx1-ubyte.gz`). Writes OUTPUT_DIR/parity.safetensors. Needs torch,
numpy and safetensors.

The network: 100 inputs -> Dense(50) -> ReLU -> batch norm -> Dense(10) ->
softmax cross-entropy (mean over the batch), Adam, batch 32, f32. Images are
reduced from 28x28 to 10x10 by area averaging (a target pixel covers 2.8 x 2.8
source pixels, the outer ones in part) and rounded to bytes.

Tensors of the file:

    x            u8  [50, 32, 100]  the images of every step; the network sees x / 255
    targets      i64 [50, 32]
    linear1.weight, linear1.bias, norm.gamma, norm.beta, linear2.weight, linear2.bias
                 f32, before the first step; weights are [in, out] as Burn has them
    loss         f32 [50]           the loss of every step, before its update
    norm.running_mean, norm.running_var, norm.num_batches_tracked
                                    the statistics after the last step
    final.*                         the weights after the last step
Metadata: `optimizer` (JSON: the arguments of Adam), `generator`.

Adam's epsilon is written out because the defaults differ: 1e-5 in Burn's
`AdamConfig`, 1e-8 in PyTorch.

The run is repeated in float64 and the largest difference of a loss is printed:
what f32 rounding alone does to these 50 steps, to set a tolerance against.
"""

import argparse
import gzip
import json
import platform
from pathlib import Path

import numpy as np
import torch

from case_file import write_safetensors

STEPS, BATCH, SIDE, HIDDEN, CLASSES = 50, 32, 10, 50, 10
SEED = 42
ADAM = {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-5}
NAMES = {"linear1": "0", "norm": "2", "linear2": "3"}  # Burn's field -> index in the Sequential


def area_weights(source, target):
    """[target, source]: the share of each source pixel in each target pixel; rows sum to 1."""
    width = source / target
    start = np.arange(target)[:, None] * width
    pixel = np.arange(source)[None, :]
    overlap = np.minimum(start + width, pixel + 1) - np.maximum(start, pixel)
    return np.clip(overlap, 0, None) / width


def load_batches(folder):
    """The first STEPS * BATCH images, reduced, as u8 [steps, batch, pixels], and their labels."""
    images, labels = (
        np.frombuffer(gzip.decompress((folder / name).read_bytes()), np.uint8, offset=header)
        for name, header in (("train-images-idx3-ubyte.gz", 16), ("train-labels-idx1-ubyte.gz", 8))
    )
    images = images.reshape(-1, 28, 28)
    count = STEPS * BATCH
    weights = area_weights(28, SIDE)
    reduced = np.rint(weights @ images[:count].astype(np.float64) @ weights.T).astype(np.uint8)
    x = torch.from_numpy(reduced.reshape(STEPS, BATCH, SIDE * SIDE))
    return x, torch.from_numpy(labels[:count].astype(np.int64).reshape(STEPS, BATCH))


def build_model():
    """PyTorch's own initial weights, but with gamma and beta moved off 1 and 0."""
    torch.manual_seed(SEED)
    model = torch.nn.Sequential(
        torch.nn.Linear(SIDE * SIDE, HIDDEN),
        torch.nn.ReLU(),
        torch.nn.BatchNorm1d(HIDDEN),
        torch.nn.Linear(HIDDEN, CLASSES),
    )
    with torch.no_grad():
        model[2].weight.uniform_(0.5, 1.5)
        model[2].bias.uniform_(-0.5, 0.5)
    return model


def train(model, x, targets):
    """The losses of all steps; the model is trained in place."""
    optimizer = torch.optim.Adam(model.parameters(), foreach=False, **(ADAM | {"betas": tuple(ADAM["betas"])}))
    losses = []
    for images, labels in zip(x, targets):
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses, dtype=torch.float64)


def weights_of(model):
    """The trained tensors under the names and in the layout of Burn."""
    out = {}
    for name, index in NAMES.items():
        layer = model[int(index)]
        if name == "norm":
            out["norm.gamma"], out["norm.beta"] = layer.weight, layer.bias
        else:
            out[f"{name}.weight"], out[f"{name}.bias"] = layer.weight.T, layer.bias
    return {k: v.detach().float().clone().contiguous() for k, v in out.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the IDX files of the embedded subset")
    parser.add_argument("output", type=Path, help="folder to write parity.safetensors into")
    args = parser.parse_args()
    torch.set_num_threads(1)

    bytes_, targets = load_batches(args.data)
    x = bytes_.float() / 255
    model = build_model()
    tensors = {"x": bytes_, "targets": targets} | weights_of(model)
    losses = train(model, x, targets)
    tensors["loss"] = losses.float()
    norm = model[int(NAMES["norm"])]
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        tensors[f"norm.{name}"] = getattr(norm, name).clone()
    final = weights_of(model)
    tensors |= {f"final.{k}": v for k, v in final.items()}

    wide = build_model().double()
    wide_losses = train(wide, bytes_.double() / 255, targets)
    drift = (losses - wide_losses).abs().max().item()
    weight_drift = max((final[k] - v).abs().max().item() for k, v in weights_of(wide).items())

    torch_version = torch.__version__.split("+")[0]
    generator = f"torch {torch_version}, numpy {np.__version__}, python {platform.python_version()}; float32"
    metadata = {"generator": generator, "optimizer": json.dumps(ADAM)}
    args.output.mkdir(parents=True, exist_ok=True)
    size = write_safetensors(args.output / "parity.safetensors", tensors, metadata)
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}, {size} bytes")
    print(f"against float64: losses within {drift:.1e}, final weights within {weight_drift:.1e}")


if __name__ == "__main__":
    main()
