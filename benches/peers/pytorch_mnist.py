"""PyTorch's answer to the example classifier: the same network on the same images.

Why: the test accuracy of `examples/mnist` is held against this script's, mean
over seeds, so both sides must train alike. The network is input -> Linear(hidden)
-> ReLU -> BatchNorm1d -> Linear(10) with cross-entropy and Adam (PyTorch's
defaults but for the learning rate; `--adam-eps` sets Burn's 1e-5), initialised as
PyTorch does. Pixels are standardised as the example does it: by the mean and the
deviation of all pixels of the training images. Every epoch sees all
training images once in a new random order; a last smaller batch is kept. There
is no validation split and no choice of epoch: the accuracy after the last one
counts.

    python pytorch_mnist.py --data DIR [--hidden 50] [--epochs 10] [--batch-size 32]
        [--seeds 1 2 3] [--norm batch|none] [--lr 0.001] [--adam-eps 1e-8]
        [--threads 1] [--flush-denormal] [--json FILE]

DIR holds the four IDX files of MNIST, Fashion-MNIST or a relative, gzipped or
plain. Images stay in memory as tensors, so images per second (training steps
only, evaluation not counted) is what PyTorch's eager loop can do, not what a
data loader costs. With `--flush-denormal` denormal numbers are zero
(`torch.set_flush_denormal`), which is what the example's optimizer avoids
without that switch. Needs torch and numpy.
"""

import argparse
import gzip
import json
import time
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from torch.nn.functional import cross_entropy

CLASSES = 10


def read_idx(folder, name, rank):
    """One IDX file of unsigned bytes, `NAME.gz` or `NAME`."""
    packed = folder / f"{name}.gz"
    data = gzip.decompress(packed.read_bytes()) if packed.exists() else (folder / name).read_bytes()
    if data[:4] != bytes([0, 0, 8, rank]):
        raise SystemExit(f"{folder / name}: not an IDX file of rank {rank}")
    shape = np.frombuffer(data, ">u4", count=rank, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape.astype(int))


def load(folder, split, scale=None):
    """Images as f32 [count, pixels], standardised by `scale` or their own; labels as i64; the scale."""
    images = read_idx(folder, f"{split}-images-idx3-ubyte", 3)
    labels = read_idx(folder, f"{split}-labels-idx1-ubyte", 1)
    if len(images) != len(labels):
        raise SystemExit(f"{split}: {len(images)} images but {len(labels)} labels")
    mean, deviation = scale or (images.mean() / 255, images.std() / 255)
    x = (images.reshape(len(images), -1).astype(np.float32) / 255 - np.float32(mean)) / np.float32(deviation)
    return (torch.from_numpy(x), torch.from_numpy(labels.astype(np.int64))), (mean, deviation)


def build_model(pixels, hidden, norm):
    """The article's network, with or without its batch norm."""
    layers = [torch.nn.Linear(pixels, hidden), torch.nn.ReLU()]
    if norm == "batch":
        layers.append(torch.nn.BatchNorm1d(hidden))
    return torch.nn.Sequential(*layers, torch.nn.Linear(hidden, CLASSES))


@torch.no_grad()
def evaluate(model, x, labels):
    """Accuracy and mean loss with running statistics."""
    model.eval()
    logits = model(x)
    accuracy = (logits.argmax(1) == labels).float().mean().item()
    return accuracy, cross_entropy(logits, labels).item()


def run(seed, args, train, test):
    """Train from one seed; returns accuracies, losses and speed."""
    torch.manual_seed(seed)
    x, labels = train
    model = build_model(x.shape[1], args.hidden, args.norm)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, eps=args.adam_eps)
    seconds = 0.0
    for _ in range(args.epochs):
        model.train()
        start = time.perf_counter()
        for batch in torch.randperm(len(x)).split(args.batch_size):
            optimizer.zero_grad()
            cross_entropy(model(x[batch]), labels[batch]).backward()
            optimizer.step()
        seconds += time.perf_counter() - start
    train_accuracy, train_loss = evaluate(model, *train)
    test_accuracy, test_loss = evaluate(model, *test)
    return {
        "seed": seed,
        "test_accuracy": test_accuracy,
        "test_loss": test_loss,
        "train_accuracy": train_accuracy,
        "train_loss": train_loss,
        "train_images_per_second": args.epochs * len(x) / seconds,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the four IDX files")
    parser.add_argument("--hidden", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--norm", choices=["batch", "none"], default="batch")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--adam-eps", type=float, default=1e-8, help="PyTorch's default; Burn's is 1e-5")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--flush-denormal", action="store_true", help="treat denormal numbers as zero")
    parser.add_argument("--json", type=Path, help="also write the results here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    if not torch.set_flush_denormal(args.flush_denormal) and args.flush_denormal:
        raise SystemExit("--flush-denormal: this processor cannot")

    train, scale = load(args.data, "train")
    test, _ = load(args.data, "t10k", scale)
    settings = {k: v for k, v in vars(args).items() if k not in ("data", "json")}
    print(f"torch {torch.__version__}, {len(train[0])} training and {len(test[0])} test images, {settings}")
    runs = []
    for seed in args.seeds:
        result = run(seed, args, train, test)
        runs.append(result)
        print(
            f"seed {seed}: test accuracy {result['test_accuracy']:.4f} loss {result['test_loss']:.4f}, "
            f"train accuracy {result['train_accuracy']:.4f} loss {result['train_loss']:.4f}, "
            f"{result['train_images_per_second']:,.0f} images/s",
            flush=True,
        )
    averages = {k: mean(r[k] for r in runs) for k in ("test_accuracy", "test_loss", "train_images_per_second")}
    print(f"mean: test accuracy {averages['test_accuracy']:.4f}, {averages['train_images_per_second']:,.0f} images/s")
    if args.json:
        report = {"torch": torch.__version__, "settings": settings, "runs": runs, "mean": averages}
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
