"""ResNet-18 with our batch norm, with burn-nn's and in PyTorch: inference and training steps.

    python pytorch_resnet.py --device flex --rounds 3 --json ../results/resnet-flex.json

In every round PyTorch runs every pass three times, then `resnet bench` does so with every network, in turns;
the median of the rounds' medians counts. The
peak of memory is that of a process of its own, which runs two training steps. Same sizes, same number of threads. PyTorch runs as it comes and, for inference, with torchvision's
batch norms folded by `torch.nn.utils.fusion`. On a device other than a CPU only ours is on that device.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import torch
import torchvision
from torch.nn.utils.fusion import fuse_conv_bn_eval


RUNS = 3
# Those of `resnet bench`. The last two differ in what their batch norms keep for the backward pass.
NETWORKS = ("ours", "without", "burn-nn", "leaky", "in-place")


def timed(run):
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def folded(model):
    """The network with every batch norm in the convolution before it."""
    model.conv1, model.bn1 = fuse_conv_bn_eval(model.conv1, model.bn1), torch.nn.Identity()
    for block in (b for layer in (model.layer1, model.layer2, model.layer3, model.layer4) for b in layer):
        block.conv1, block.bn1 = fuse_conv_bn_eval(block.conv1, block.bn1), torch.nn.Identity()
        block.conv2, block.bn2 = fuse_conv_bn_eval(block.conv2, block.bn2), torch.nn.Identity()
        if block.downsample is not None:
            block.downsample = torch.nn.Sequential(fuse_conv_bn_eval(*block.downsample))
    return model


def passes(batch, size):
    """Name -> a callable that runs it once."""
    images = torch.randn(batch, 3, size, size)
    labels = torch.zeros(batch, dtype=torch.int64)
    plain = torchvision.models.resnet18().eval()
    fused = folded(torchvision.models.resnet18().eval())
    trained = torchvision.models.resnet18()
    optimizer = torch.optim.SGD(trained.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)

    def inference(model):
        with torch.inference_mode():
            model(images)

    def step():
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(trained(images), labels).backward()
        optimizer.step()

    return {
        ("inference", "pytorch"): lambda: inference(plain),
        ("inference", "pytorch_without"): lambda: inference(fused),
        ("training step", "pytorch"): step,
    }


def ours(options, batch):
    command = [options.resnet, "bench", "--json", "--device", options.device, "--rounds", str(RUNS),
               "--batches", str(batch), "--size", str(options.size), "--networks", ",".join(NETWORKS)]
    environment = os.environ | {"RAYON_NUM_THREADS": str(options.threads)}
    output = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE).stdout
    for row in json.loads(output):
        yield (row["pass"], row["network"]), row["milliseconds"]


def peak(options, batch, network):
    """MiB that a process has needed at most for training steps of this network."""
    if network == "pytorch":
        command = [sys.executable, __file__, "--only-train", "--batches", str(batch)]
    else:
        command = [options.resnet, "bench", "--device", options.device, "--rounds", "1",
                   "--networks", network, "--batches", str(batch)]
    command += ["--size", str(options.size)]
    # In between, since a process counts what its parent had when it was forked.
    small = ("import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=2); "
             "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)")
    command = [sys.executable, "-c", small, *map(str, command)]
    return round(int(subprocess.check_output(command, stderr=subprocess.DEVNULL)) / 1024)


def machine():
    fields = dict(line.split(":", 1) for line in subprocess.check_output("lscpu", text=True).splitlines()
                  if ":" in line)
    return {"cpu": fields["Model name"].strip(), "cores": os.cpu_count(),
            "load": os.getloadavg()[0], "torch": torch.__version__}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--resnet", default="target/release/resnet")
    parser.add_argument("--device", default="flex")
    parser.add_argument("--batches", default="1,32")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only-train", action="store_true", help="train two steps, time nothing")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    batches = [int(batch) for batch in options.batches.split(",")]
    if options.only_train:
        step = passes(batches[0], options.size)["training step", "pytorch"]
        step()
        step()
        return
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], text=True).strip()
    report = {"machine": machine(), "commit": commit, "device": options.device, "size": options.size,
              "rounds": options.rounds, "milliseconds": [], "peak_mib": []}
    for batch in batches:
        times = {}
        peers = passes(batch, options.size)
        for run in peers.values():
            run()
        for _ in range(options.rounds):
            for name, run in peers.items():
                times.setdefault(name, []).append(median(timed(run) for _ in range(RUNS)))
            for name, milliseconds in ours(options, batch):
                times.setdefault(name, []).append(milliseconds)
        for kind in ("inference", "training step"):
            row = {name: round(median(t), 1) for (of, name), t in times.items() if of == kind}
            report["milliseconds"].append({"pass": kind, "batch": batch} | row)
            print(kind, batch, row, flush=True)
        row = {network: peak(options, batch, network) for network in ("pytorch", *NETWORKS)}
        report["peak_mib"].append({"batch": batch} | row)
        print("peak MiB", batch, row, flush=True)
    if options.json:
        unfinished = options.json.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(report, indent=1) + "\n")
        unfinished.rename(options.json)


if __name__ == "__main__":
    main()
