"""Writes what the documentation shows of measured results, from the files that hold them.

    python3 docs/update.py            writes
    python3 docs/update.py --check    writes nothing, and fails where a page or a picture is stale

Needs Python 3.9 and nothing else. `benches/results/*.json` and `.txt` are the results, and
`benches/results/runs.json` says on which machine and commit each was made; a result that it does not name is
an error. From them come the pictures in `docs/pictures` and the text between `<!-- NAME -->` and `<!-- /NAME -->`
in the pages, where NAME is one of `BLOCKS`.
"""

import json
import math
import re
import sys
from pathlib import Path

import pictures

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benches" / "results"
PASSES = {"forward_backward": "forward + backward", "forward": "forward", "inference": "inference"}


def results():
    return {path.name: json.loads(path.read_text()) for path in RESULTS.glob("*.json") if path.name != "runs.json"}


def provenance():
    """File name -> its run, with the machine in words. Every result has one, and none is missing."""
    listed = json.loads((RESULTS / "runs.json").read_text())
    runs = {file: run | {"machine": listed["machines"][run["machine"]]} for run in listed["runs"] for file in run["files"]}
    present = {path.name for path in RESULTS.iterdir() if path.suffix in (".json", ".txt")} - {"runs.json"}
    if wrong := sorted(present ^ runs.keys()):
        raise SystemExit(f"benches/results/runs.json and the files beside it differ in {', '.join(wrong)}: "
                         "name every file with its machine and commit, and no other")
    return runs


DATA, RUNS = results(), provenance()


def times(file, pass_name="forward_backward"):
    """Shape -> (ours, the other's), milliseconds."""
    other = next(key for key in DATA[file][0] if key in ("torch_ms", "burn_nn_ms", "tensorflow_ms"))
    return {tuple(r["shape"]): (r["ours_ms"], r[other]) for r in DATA[file] if r["pass"] == pass_name}


def ratios(file, pass_name="forward_backward"):
    """How many times as long as ours the other takes, shape by shape."""
    return {shape: other / ours for shape, (ours, other) in times(file, pass_name).items()}


def mean(values):
    """Geometric, as ratios are averaged."""
    values = list(values)
    return math.exp(sum(map(math.log, values)) / len(values))


def source(*files, note=True):
    """Machine and commit of results that belong together, and what else is to be known of them."""
    runs = [RUNS[file] for file in files]
    if any(run != runs[0] for run in runs):
        raise SystemExit(f"{', '.join(files)} are shown together, but were not made on one machine and commit")
    note = f", {runs[0]['note']}" if note else ""
    return f"{runs[0]['machine']}, commit {runs[0]['commit']} ({runs[0]['date']}){note}"


def name(shape):
    return f"[{', '.join(map(str, shape))}]"


def milliseconds(value):
    """Three digits where they mean something."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.3f}"


# What the pages show.

TABLE = ["pytorch-flex.json", "pytorch-ndarray.json", "cpu-flex.json", "cpu-ndarray.json", "wgpu-software.json"]


def table():
    """Forward + backward of every shape, then the means of every pass."""
    rows = ["| shape | PyTorch 2.15 / flex | | PyTorch : ndarray | burn-nn : flex | burn-nn : ndarray | wgpu, software Vulkan: burn-nn / ours | |",
            "|---|---|---|---|---|---|---|---|"]
    pairs = lambda pair: f"{milliseconds(pair[1])} / {milliseconds(pair[0])}"
    columns = [ratios(file) for file in TABLE]
    for shape, pair in times(TABLE[0]).items():
        multiples = [f"{column[shape]:.1f}x" for column in columns]
        wgpu = pairs(times(TABLE[4])[shape])
        rows.append(f"| {name(shape)} | {pairs(pair)} | {' | '.join(multiples[:4])} | {wgpu} | {multiples[4]} |")
    for key, words in PASSES.items():
        means = [f"**{mean(ratios(file, key).values()):.1f}x**" for file in TABLE]
        rows.append(f"| geometric mean, {words} | | {' | '.join(means[:4])} | | {means[4]} |")
    return "\n".join([*rows, "", f"{source(*TABLE)}."])


BEST = {"alone, flex": "best-flex.json", "ReLU, flex": "best-flex-relu.json", "addition and ReLU, flex": "best-flex-add-relu.json",
        "alone, ndarray": "best-ndarray.json"}


def best():
    """How many times as long as ours the faster of eager and compiled PyTorch takes, and where that is the compiled one."""
    rows = [f"| shape | {' | '.join(BEST)} |", "|---" * (len(BEST) + 1) + "|"]
    def compiled(file, shape, key="forward_backward"):
        report = next(r for r in DATA[file] if tuple(r["shape"]) == shape and r["pass"] == key)
        return "c" if report["torch_compiled_ms"] < report["torch_eager_ms"] else ""
    for shape in times(BEST["alone, flex"]):
        cells = [f"{ratios(file)[shape]:.2f}{compiled(file, shape)}" for file in BEST.values()]
        rows.append(f"| {name(shape)} | {' | '.join(cells)} |")
    for key, words in PASSES.items():
        cells = [f"**{mean(values):.2f}**, least {min(values):.2f}" for values in
                 (list(ratios(file, key).values()) for file in BEST.values())]
        rows.append(f"| geometric mean, {words} | {' | '.join(cells)} |")
    return "\n".join([*rows, "", f"c: the compiled one was faster. {source(*BEST.values())}."])


def rewrite():
    """How many times as fast the rewritten kernels are as the old ones, geometric means."""
    data = DATA["rewrite-against-ec3ad6c.json"]["results"]
    rows = [f"| device | shapes | {' | '.join(PASSES.values())} | slowest |", "|---" * (len(PASSES) + 3) + "|"]
    for device in dict.fromkeys(r["device"] for r in data):
        of_device = [(r["old_ms"] / r["new_ms"], r) for r in data if r["device"] == device]
        means = [f"{mean(ratio for ratio, r in of_device if r['pass'] == key):.2f}" for key in PASSES]
        ratio, slowest = min(of_device, key=lambda pair: pair[0])
        shapes = len({tuple(r["shape"]) for _, r in of_device})
        rows.append(f"| {device} | {shapes} | {' | '.join(means)} | {ratio:.2f}: {name(slowest['shape'])}, {PASSES[slowest['pass']]} |")
    return "\n".join([*rows, "", f"{source('rewrite-against-ec3ad6c.json')}."])


def speed_in_words():
    """The README's first point."""
    files = "pytorch-flex.json", "cpu-flex.json", "wgpu-software.json"
    torch, burn, wgpu = map(ratios, files)
    alone, relu = ([*ratios(file).values()] for file in ("best-flex.json", "best-flex-relu.json"))
    inference = ratios("best-flex.json", "inference").values()
    return (f"- **Fast**: forward + backward on the CPU (flex) takes {mean(torch.values()):.1f} times as long with PyTorch 2.15 (eager) and "
            f"{mean(burn.values()):.1f} times with burn-nn,\n  geometric means of {len(torch)} shapes; on software Vulkan {mean(wgpu.values()):.1f} times "
            f"with burn-nn. {source(*files)}.\n  With the faster of eager and compiled PyTorch on each shape it takes {mean(alone):.1f} times as long, at least "
            f"{min(alone):.2f} times on each, with a fused ReLU\n  {mean(relu):.1f} times; in inference PyTorch was faster on "
            f"{sum(ratio < 1 for ratio in inference)} of {len(inference)} shapes. {source('best-flex.json', note=False)}\n"
            "  ([benchmarks](docs/benchmarks.md)).")


SEEDS = {"ours": "our layer", "burn": "burn-nn's layer", "none": "no batch norm", "pytorch": "PyTorch",
         "pytorch, denormals flushed": "PyTorch, `--flush-denormal`"}


def of_seeds(key, what):
    return [run[what] for run in DATA["fashion-mnist-seeds.json"][key]]


def average(values):
    return sum(values) / len(values)


def deviation(values):
    middle = average(values)
    return math.sqrt(sum((value - middle) ** 2 for value in values) / (len(values) - 1))


def accuracy():
    """All images of Fashion-MNIST, seed by seed."""
    rows = ["| | test accuracy | deviation | seeds | images/s |", "|---|---|---|---|---|"]
    for key, words in SEEDS.items():
        percent = [100 * value for value in of_seeds(key, "test_accuracy")]
        speed = of_seeds(key, "images_per_second")
        rows.append(f"| {words} | {average(percent):.2f} % | {deviation(percent):.2f} | {len(percent)} | "
                    f"{average(speed):,.0f} |")
    return "\n".join([*rows, "", f"{source('fashion-mnist-seeds.json')}."])


def accuracy_in_words():
    percent, speed = ({key: average(of_seeds(key, what)) for key in SEEDS} for what in ("test_accuracy", "images_per_second"))
    percent = {key: 100 * share for key, share in percent.items()}
    return (f"On all 60,000 images of Fashion-MNIST (means of {len(of_seeds('ours', 'test_accuracy'))} seeds) it reaches {percent['ours']:.2f} % with our "
            f"layer, {percent['burn']:.2f} % with burn-nn's, {percent['none']:.2f} % without\nany, and {percent['pytorch']:.2f} % in PyTorch: the second claim "
            f"does not hold here. Training makes {speed['ours'] / speed['pytorch']:.1f} times as many images/s as PyTorch's eager loop.\n"
            f"{source('fashion-mnist-seeds.json', note=False)}.")


def quickstart():
    """The output that the quickstart's own README shows and its test holds against the program."""
    shown = (ROOT / "examples" / "quickstart" / "README.md").read_text().splitlines()
    return "\n".join(line for line in shown if line.startswith("    "))


def compared(name="compare", flags=""):
    """The command `compare` of the example and what it printed."""
    printed = (RESULTS / f"article-{name}.txt").read_text().rstrip()
    lines = [f"$ cargo run --release -p mnist -- compare{flags}", *printed.splitlines(), "",
             f"written to artifacts/compare: {name}.png, {name}.txt, {name}.json"]
    indented = "\n".join(f"    {line}".rstrip() for line in lines)
    return f"{indented}\n\n{source(f'article-{name}.txt', f'article-{name}.json')}."


def small_batches():
    return compared("batch-sizes", " --batch-sizes 2,4,8,32")


def speed_picture():
    files = "pytorch-flex.json", "cpu-flex.json"
    torch, burn = map(ratios, files)
    rows = [("geometric mean", mean(torch.values()), mean(burn.values()))]
    rows += [(name(shape), torch[shape], burn[shape]) for shape in torch]
    return pictures.speed(rows, [
        "Burn's CPU backend flex, f32, 2 threads on every side, PyTorch 2.15; each of the two beside ours in one run.",
        f"{source(*files)}.",
    ])


def article_picture():
    data = DATA["article-compare.json"]
    courses = {(group["learning_rate"], group["norm"]): group["validation_accuracy"] for group in data["groups"]}
    rates = sorted({rate for rate, _ in courses})
    return pictures.article([(rate, courses[rate, "batch"], courses[rate, "none"]) for rate in rates], [
        f"784-50-10, Adam, batch 32, {data['train_images']:,} images of Fashion-MNIST for training, accuracy on others; "
        f"means of {data['seeds']} seeds.",
        f"{source('article-compare.json', note=False)}.",
    ])


BLOCKS = {"speed": speed_in_words, "table": table, "best": best, "accuracy": accuracy, "accuracy-in-words": accuracy_in_words, "rewrite": rewrite, "quickstart": quickstart, "compare": compared,
          "batch-sizes": small_batches}
PAGES = ["README.md", "docs/benchmarks.md", "examples/mnist/README.md"]
PICTURES = {"docs/pictures/speed.svg": speed_picture, "docs/pictures/article.svg": article_picture}


def filled(page):
    """The page with its blocks made anew."""
    def block(found):
        return f"<!-- {found[1]} -->\n{BLOCKS[found[1]]()}\n<!-- /{found[1]} -->"
    names = "|".join(BLOCKS)
    return re.sub(rf"<!-- ({names}) -->\n.*?\n<!-- /\1 -->", block, (ROOT / page).read_text(), flags=re.DOTALL)


def main():
    made = {page: filled(page) for page in PAGES} | {path: draw() for path, draw in PICTURES.items()}
    for found in set(BLOCKS) - {block for page in PAGES for block in BLOCKS if f"<!-- /{block} -->" in made[page]}:
        raise SystemExit(f"no page has the block `{found}`: {', '.join(PAGES)}")
    stale = [path for path, content in made.items() if not (ROOT / path).exists() or (ROOT / path).read_text() != content]
    if "--check" in sys.argv[1:]:
        if stale:
            raise SystemExit(f"stale: {', '.join(stale)}; `python3 docs/update.py` writes them from benches/results")
        return
    for path in stale:
        fresh = (ROOT / path).with_suffix(".new")
        fresh.write_text(made[path])
        fresh.replace(ROOT / path)
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
