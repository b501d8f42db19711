"""PyTorch's batch norm on this machine's GPU, beside what `cube_kernels` has measured there.

    python3 pytorch.py [--quick] [--seconds S] [--json FILE] [TIMES ..]

The same shapes, types and epilogues: eager with channels on axis 1, eager channels_last, and for four shapes
compiled, both. Parameters and running statistics are f32, as ours. Times are by the device's clock, medians; small
tensors are many, one after the other, so that no cache holds them. TIMES are files of `cube_kernels --json`: the
table gives, for each, how many times as long as ours PyTorch takes. Without a GPU, --quick runs on the CPU.
"""

import argparse
import json
import os
import time
from pathlib import Path
from statistics import median

import torch
from torch.nn.functional import batch_norm, relu

SHAPES = [
    [32, 64, 56, 56], [32, 256, 56, 56], [1024, 512], [4096, 1024], [64, 128, 256], [32, 2048, 7, 7], [8, 256, 28, 28],
    [1, 64, 224, 224], [32, 50], [128, 512], [32, 512, 28, 28], [4, 32, 16, 28, 28], [256, 1024, 14, 14], [256, 64, 56, 56],
]
COMPILED = [[32, 64, 56, 56], [32, 256, 56, 56], [256, 1024, 14, 14], [4096, 1024]]
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
EPILOGUES = ["none", "relu", "add-relu"]
PASSES = ["forward", "forward_backward", "inference"]
COLD, MOST = 128 << 20, 16
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def timed(device, run, budget=0.02):
    """Median milliseconds of a run, whose argument is its number."""
    cuda = device == "cuda"
    wait = torch.cuda.synchronize if cuda else lambda: None
    for number in range(3):
        run(number)
    wait()
    start = time.perf_counter()
    run(0)
    wait()
    at_a_time = int(min(max(1e-3 / (time.perf_counter() - start), 1), 64))
    times, begin, number = [], time.perf_counter(), 0
    while len(times) < 5 or time.perf_counter() - begin < budget:
        if cuda:
            marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            marks[0].record()
        start = time.perf_counter()
        for _ in range(at_a_time):
            run(number)
            number += 1
        if cuda:
            marks[1].record()
            wait()
            times.append(marks[0].elapsed_time(marks[1]) / at_a_time)
        else:
            times.append((time.perf_counter() - start) * 1e3 / at_a_time)
    return median(times)


def measure(device, shape, order, dtype, epilogue, compiled):
    """Milliseconds of the three passes."""
    add = epilogue == "add-relu"
    size = torch.Size(shape).numel() * DTYPES[dtype].itemsize
    count = min(max(COLD // size, 1), MOST) if device == "cuda" else 1

    def tensor():
        made = torch.randn(shape, device=device, dtype=DTYPES[dtype])
        return made.to(memory_format=FORMATS[len(shape)]) if order == "last" else made

    sets = [[tensor().requires_grad_(), tensor(), tensor().requires_grad_() if add else None] for _ in range(count)]
    channels = shape[1]
    parameters = [torch.ones(channels, device=device, requires_grad=True), torch.zeros(channels, device=device, requires_grad=True)]
    mean, var = torch.zeros(channels, device=device), torch.ones(channels, device=device)

    def layer(x, residual, training):
        y = batch_norm(x, mean, var, *parameters, training, 0.1, 1e-5)
        y = y if residual is None else y + residual
        return y if epilogue == "none" else relu(y)

    if compiled:
        torch._dynamo.reset()
        layer = torch.compile(layer, dynamic=False)

    def forward(number):
        x, _, residual = sets[number % count]
        return layer(x, residual, True)

    def forward_backward(number):
        x, dy, residual = sets[number % count]
        inputs = [x, *parameters] + ([residual] if add else [])
        return torch.autograd.grad(layer(x, residual, True), inputs, dy)

    @torch.no_grad()
    def inference(number):
        x, _, residual = sets[number % count]
        return layer(x, residual, False)

    return [timed(device, run) for run in (forward, forward_backward, inference)]


def plans(quick):
    """The plain ones first, then the compiled ones, which take seconds each, then the epilogues."""
    shapes = [[1024, 512], [8, 256, 28, 28], [32, 50]] if quick else SHAPES
    dtypes = ["f32"] if quick else DTYPES
    orders = lambda shape: ["first", "last"] if len(shape) in FORMATS else ["first"]
    eager = [(shape, order, dtype, epilogue, False) for epilogue in EPILOGUES for dtype in dtypes for shape in shapes
             for order in orders(shape)]
    plain = [plan for plan in eager if plan[3] == "none"]
    compiled = [(shape, order, dtype, epilogue, True) for dtype in ("f32", "bf16") for epilogue in ("none", "add-relu")
                for shape in COMPILED for order in orders(shape)]
    return plain + ([] if quick else compiled) + eager[len(plain):]


def ours(files):
    """Name of the file -> (shape, order, dtype, epilogue) -> milliseconds of the passes."""
    return {Path(file).stem: {(tuple(row["shape"]), row["order"], row["dtype"], row["epilogue"]):
                              [row["passes"][name]["ms"] for name in PASSES] for row in json.loads(Path(file).read_text())["rows"]}
            for file in files}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seconds", type=float, default=3600, help="begin no row later")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("times", nargs="*")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.quick:
        raise SystemExit("expected a GPU that PyTorch can use, found none")
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    print(f"PyTorch {torch.__version__} on {name}, cuDNN {torch.backends.cudnn.version()}")
    measured = ours(options.times)
    head = "".join(f" | : {name:<22}" for name in measured)
    print(f"{'shape':<22}{'order':<6}{'type':<6}{'epilogue':<9}{'how':<9}  fwd ms   f+b ms   inf ms{head}")
    rows, until = [], time.perf_counter() + options.seconds
    todo = plans(options.quick)
    for plan in todo:
        if time.perf_counter() > until:
            print(f"{len(todo) - len(rows)} of {len(todo)} rows left out: the time was up")
            break
        shape, order, dtype, epilogue, compiled = plan
        times = measure(device, *plan)
        how = "compiled" if compiled else "eager"
        rows.append({"shape": shape, "order": order, "dtype": dtype, "epilogue": epilogue, "how": how} |
                    {f"{key}_ms": value for key, value in zip(PASSES, times)})
        key = (tuple(shape), order, dtype, epilogue)
        ratios = ["".join(f"{theirs / mine:8.2f}" for theirs, mine in zip(times, table[key])) if key in table else " " * 24
                  for table in measured.values()]
        print(f"{'x'.join(map(str, shape)):<22}{order:<6}{dtype:<6}{epilogue:<9}{how:<9}" +
              "".join(f"{ms:9.4f}" for ms in times) + "".join(f" | {ratio}" for ratio in ratios), flush=True)
    if options.json:
        unfinished = options.json.with_suffix(".unfinished")
        unfinished.write_text(json.dumps({"torch": torch.__version__, "device": name, "rows": rows}))
        os.replace(unfinished, options.json)


if __name__ == "__main__":
    main()
