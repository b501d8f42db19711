"""Cut a small class-balanced subset out of the four Fashion-MNIST IDX files.

Why: the classifier must train on real images without a download, and the whole
data set (30 MB) does not belong in the repository. The subset holds the first
K images of every class, taken in the order of the original files, so no image
is chosen by looking at it. They are written in rounds: every ten images in a
row hold each class once, in an order shuffled with a fixed seed. Any slice
that starts and ends on a multiple of ten is therefore balanced too, which
makes a validation split by position balanced.

The output is a function of the input alone: gzip at level 9 without time stamp
and file name. (Another zlib, such as zlib-ng, may compress to other bytes; the
unpacked content is the same, and the digests of both are printed.)

    python make_subset.py SOURCE_DIR OUTPUT_DIR [--train-per-class 700] [--test-per-class 150]

SOURCE_DIR holds `train-images-idx3-ubyte.gz` and so on, for example what
Debian's package dataset-fashion-mnist installs. Needs Python 3 and numpy.
"""

import argparse
import gzip
import hashlib
import io
import random
import struct
from pathlib import Path

import numpy as np

CLASSES = 10
SEED = 20170828
SPLITS = ("train", "t10k")
MAX_TOTAL_BYTES = 3_900_000


def read_idx(path, rank):
    """The unsigned-byte array of one gzipped IDX file; the header is checked."""
    data = gzip.decompress(path.read_bytes())
    if data[:4] != bytes([0, 0, 8, rank]):
        raise SystemExit(f"{path}: magic is {data[:4].hex()}, expected 000008{rank:02x}")
    shape = struct.unpack(f">{rank}I", data[4 : 4 + 4 * rank])
    body = np.frombuffer(data, np.uint8, offset=4 + 4 * rank)
    if body.size != np.prod(shape):
        raise SystemExit(f"{path}: header says {shape}, file holds {body.size} values")
    return body.reshape(shape)


def idx_bytes(array):
    """`array` of unsigned bytes as the content of an IDX file."""
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


def gzip_bytes(content):
    """`content` gzipped at level 9, without file name and time stamp."""
    out = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=out, mtime=0) as f:
        f.write(content)
    return out.getvalue()


def balanced_order(labels, per_class, rng):
    """Indices of the first `per_class` images of each class, one round of all classes after another."""
    first = [np.flatnonzero(labels == c)[:per_class] for c in range(CLASSES)]
    for c, indices in enumerate(first):
        if len(indices) < per_class:
            raise SystemExit(f"class {c} has {len(indices)} images, {per_class} wanted")
    order = []
    for round_ in range(per_class):
        classes = list(range(CLASSES))
        rng.shuffle(classes)
        order += [first[c][round_] for c in classes]
    return np.array(order)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder of the four original .gz files")
    parser.add_argument("output", type=Path, help="folder to write the four files into")
    parser.add_argument("--train-per-class", type=int, default=700)
    parser.add_argument("--test-per-class", type=int, default=150)
    args = parser.parse_args()

    rng = random.Random(SEED)
    files = {}
    for split, per_class in zip(SPLITS, (args.train_per_class, args.test_per_class)):
        images_name = f"{split}-images-idx3-ubyte.gz"
        labels_name = f"{split}-labels-idx1-ubyte.gz"
        images = read_idx(args.source / images_name, 3)
        labels = read_idx(args.source / labels_name, 1)
        if len(images) != len(labels):
            raise SystemExit(f"{split}: {len(images)} images but {len(labels)} labels")
        order = balanced_order(labels, per_class, rng)
        files[images_name] = idx_bytes(images[order])
        files[labels_name] = idx_bytes(labels[order])

    packed = {name: gzip_bytes(content) for name, content in files.items()}
    total = sum(map(len, packed.values()))
    if total > MAX_TOTAL_BYTES:
        raise SystemExit(f"{total} bytes in all, more than {MAX_TOTAL_BYTES}: take fewer images")

    args.output.mkdir(parents=True, exist_ok=True)
    for name, data in packed.items():
        (args.output / name).write_bytes(data)
        print(f"{name}  {len(data)} bytes")
        print(f"  sha256 {hashlib.sha256(data).hexdigest()}")
        print(f"  unpacked sha256 {hashlib.sha256(files[name]).hexdigest()}")
    print(f"{total} bytes in all")


if __name__ == "__main__":
    main()
