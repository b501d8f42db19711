"""What the comparisons with other frameworks share: taking turns with the suite.

A peer is a function from a shape to its passes, each a callable to be timed, or
several of them: then the fastest counts, shape by shape and pass by pass. For
every shape the peers and the suite (a process of its own, see
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


def arguments(description, more=lambda parser: None):
    parser = argparse.ArgumentParser(description=description)
    more(parser)
    parser.add_argument("--suite", type=Path, default=Path("target/release/suite"),
                        help="the binary to take turns with: suite or suite-mimalloc")
    parser.add_argument("--device", default="flex", help="flex or ndarray")
    parser.add_argument("--shapes", help="only these, such as 32x50,8x256x28x28, channels second")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, help="write the results to this file")
    # What is handed on to the suite.
    parser.set_defaults(epilogue="none", dtype="f32")
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
    # The peer's idle threads may spin for a while in hope of more work.
    time.sleep(0.5)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "suite.json"
        command = [options.suite, "--device", options.device, "--quick", "--ours-only",
                   "--epilogue", options.epilogue, "--dtype", options.dtype,
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


def compare(options, name, peers, channels_last=False):
    """Takes turns, prints the table, and writes the file that was asked for.

    `peers` has, by name, functions from a shape with its channels on axis 1, or
    last where `channels_last`, to a peer's three passes.
    """
    print(f"{'shape':<20}{'pass':<18}{'ours ms':>10}{name + ' ms':>16}{'ratio':>8}{'x floor':>9}  the faster")
    reports = []
    for shape in options.shapes:
        shape = shape[:1] + shape[2:] + shape[1:2] if channels_last else shape
        runs = {peer: dict(zip(PASSES, passes_of(shape))) for peer, passes_of in peers.items()}
        times = {key: {"ours": [], "floor": [], **{peer: [] for peer in peers}} for key in PASSES}
        for _ in range(options.rounds):
            for peer, passes in runs.items():
                for key, run in passes.items():
                    times[key][peer].append(time_pass(run))
            for key, (value, floor) in suite(options, shape, channels_last).items():
                times[key]["ours"].append(value)
                times[key]["floor"].append(floor)
        for key in PASSES:
            medians = {column: median(values) for column, values in times[key].items()}
            ours, floor = medians.pop("ours"), medians.pop("floor")
            best = min(medians, key=medians.get)
            report = {"shape": shape, "device": options.device, "pass": key, "ours_ms": ours,
                      f"{name}_ms": medians[best], "floor_ms": floor}
            if len(peers) > 1:
                report |= {f"{name}_{peer}_ms": value for peer, value in medians.items()}
            reports.append(report)
            print(f"{str(shape).replace(' ', ''):<20}{key:<18}{ours:>10.4f}{medians[best]:>16.4f}"
                  f"{medians[best] / ours:>8.2f}{ours / floor:>9.2f}  {best}")
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
