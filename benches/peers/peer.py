"""What the comparisons with other frameworks share: taking turns with the suite.

A peer is a function from a shape to its passes, each a callable to be timed. For
every shape the peer and the suite (a process of its own, see
`benches/suite.rs`) take turns for some rounds, so that a change of the machine's
mood meets both; each round gives a median, and the median of the rounds counts.
Both get the same number of threads. Memory is that of a plain loop: whatever a
pass returns is freed when the next one starts.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

SHAPES = [
    [32, 50], [128, 512], [1024, 512], [4096, 1024], [64, 128, 256], [32, 64, 56, 56],
    [32, 256, 56, 56], [32, 512, 28, 28], [32, 2048, 7, 7], [8, 256, 28, 28],
    [1, 64, 224, 224], [4, 32, 16, 28, 28],
]
PASSES = ["forward", "forward_backward", "inference"]


def arguments(description):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--suite", type=Path, default=Path("target/release/suite"),
                        help="the binary to take turns with: suite or suite-mimalloc")
    parser.add_argument("--device", default="flex", help="flex or ndarray")
    parser.add_argument("--shapes", help="only these, such as 32x50,8x256x28x28, channels second")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parsed = parser.parse_args()
    if not parsed.suite.exists():
        raise SystemExit(f"{parsed.suite}: no such file; "
                         "cargo build --release -p batchnorm-benches makes it")
    if parsed.shapes:
        parsed.shapes = [[int(n) for n in shape.split("x")] for shape in parsed.shapes.split(",")]
    else:
        parsed.shapes = SHAPES
    return parsed


def suite(options, shape, channels_last):
    """One round of ours: pass -> (milliseconds, floor)."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "suite.json"
        command = [options.suite, "--device", options.device, "--quick", "--ours-only",
                   "--shapes", "x".join(map(str, shape)), "--json", out]
        if channels_last:
            command.append("--channels-last")
        environment = os.environ | {"RAYON_NUM_THREADS": str(options.threads)}
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        reports = json.loads(out.read_text())
    return {report["pass"]: (report["ours_ms"], report["floor_ms"]) for report in reports}


def time_pass(run, seconds=0.2):
    """Median milliseconds of a plain loop, after one call to warm up."""
    run()
    times = []
    started = time.perf_counter()
    while len(times) < 5 or time.perf_counter() - started < seconds:
        start = time.perf_counter()
        kept = run()
        times.append((time.perf_counter() - start) * 1e3)
        del kept
    return median(times)


def compare(options, name, passes_of, channels_last=False):
    """Takes turns, prints the table, and writes the file that was asked for.

    `passes_of(shape)` gives the peer's three passes for a shape with its channels
    on axis 1, or last where `channels_last`.
    """
    print(f"{'shape':<20}{'pass':<18}{'ours ms':>10}{name + ' ms':>16}{'ratio':>8}{'x floor':>9}")
    reports = []
    for shape in options.shapes:
        shape = shape[:1] + shape[2:] + shape[1:2] if channels_last else shape
        passes = dict(zip(PASSES, passes_of(shape)))
        mine, theirs = {p: [] for p in PASSES}, {p: [] for p in PASSES}
        for _ in range(options.rounds):
            for key, run in passes.items():
                theirs[key].append(time_pass(run))
            for key, value in suite(options, shape, channels_last).items():
                mine[key].append(value)
        for key in PASSES:
            ours = median(value for value, _ in mine[key])
            floor = median(value for _, value in mine[key])
            peer = median(theirs[key])
            reports.append({"shape": shape, "device": options.device, "pass": key,
                            "ours_ms": ours, f"{name}_ms": peer, "floor_ms": floor})
            print(f"{str(shape).replace(' ', ''):<20}{key:<18}{ours:>10.4f}{peer:>16.4f}"
                  f"{peer / ours:>8.2f}{ours / floor:>9.2f}")
            sys.stdout.flush()
    for key in PASSES:
        ratios = [r[f"{name}_ms"] / r["ours_ms"] for r in reports if r["pass"] == key]
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        print(f"geometric mean, {key}: {mean:.2f} times as fast as {name}, "
              f"at least {min(ratios):.2f} times")
    if options.json:
        with tempfile.NamedTemporaryFile("w", dir=options.json.parent, delete=False) as file:
            json.dump(reports, file, indent=2)
        os.replace(file.name, options.json)
