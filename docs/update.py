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


def sources(columns):
    """Machine and commits of columns that are shown together, heading -> file, all made on one machine."""
    commits = {}
    for heading, file in columns.items():
        commits.setdefault((RUNS[file]["commit"], RUNS[file]["date"]), []).append(heading)
    machines = {RUNS[file]["machine"] for file in columns.values()}
    if len(machines) > 1:
        raise SystemExit(f"{', '.join(columns.values())} are shown together, but were not made on one machine")
    return f"{machines.pop()}; " + "; ".join(f"{', '.join(headings)}: commit {commit} ({date})" for (commit, date), headings in commits.items())


def name(shape):
    return f"[{', '.join(map(str, shape))}]"


def milliseconds(value):
    """Three digits where they mean something."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.3f}"


# What the pages show.

TABLE = {"PyTorch : flex": "best-flex.json", "ReLU": "best-flex-relu.json", "addition, ReLU": "best-flex-add-relu.json",
         "PyTorch : ndarray": "best-ndarray.json", "burn-nn : flex": "cpu-flex.json", "burn-nn : ndarray": "cpu-ndarray.json",
         "burn-nn : wgpu": "wgpu-software.json"}


def compiled(file, shape, pass_name="forward_backward"):
    """Marks where the compiled PyTorch was faster than the eager one."""
    report = next(r for r in DATA[file] if tuple(r["shape"]) == shape and r["pass"] == pass_name)
    return "c" if "torch_eager_ms" in report and report["torch_compiled_ms"] < report["torch_eager_ms"] else ""


def table():
    """Forward + backward of every shape, in multiples of ours, then the means of every pass."""
    rows = [f"| shape | ours, flex, ms | {' | '.join(TABLE)} |", "|---" * (len(TABLE) + 2) + "|"]
    for shape, (ours, _) in times("best-flex.json").items():
        cells = [f"{ratios(file)[shape]:.2f}{compiled(file, shape)}" for file in TABLE.values()]
        rows.append(f"| {name(shape)} | {milliseconds(ours)} | {' | '.join(cells)} |")
    for key, words in PASSES.items():
        columns = [list(ratios(file, key).values()) for file in TABLE.values()]
        cells = [f"**{mean(column):.2f}**, least {min(column):.2f}" for column in columns]
        rows.append(f"| geometric mean, {words} | | {' | '.join(cells)} |")
    return "\n".join([*rows, "", f"c: the compiled PyTorch was faster. {sources(TABLE)}."])


def speed_in_words():
    """The README's first point."""
    files = "best-flex.json", "best-flex-relu.json", "cpu-flex.json", "wgpu-software.json"
    torch, relu, burn, wgpu = ([*ratios(file).values()] for file in files)
    inference = ratios("best-flex.json", "inference").values()
    made = sources({"PyTorch": files[0], "with ReLU": files[1], "burn-nn": files[2]})
    return (f"- **Fast**: forward + backward on the CPU (flex) takes {mean(torch):.1f} times as long with PyTorch 2.15, the faster of eager and compiled "
            f"on each\n  shape (least {min(torch):.2f}), with a fused ReLU {mean(relu):.1f} times (least {min(relu):.2f}), and {mean(burn):.1f} times with burn-nn; "
            f"on software Vulkan {mean(wgpu):.1f} times\n  with burn-nn. Geometric means of {len(torch)} shapes. In inference PyTorch was faster on "
            f"{sum(ratio < 1 for ratio in inference) or 'none'} of them.\n  {made} ([benchmarks](docs/benchmarks.md)).")


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
    files = "best-flex.json", "cpu-flex.json"
    torch, burn = map(ratios, files)
    rows = [("geometric mean", mean(torch.values()), mean(burn.values()))]
    rows += [(name(shape), torch[shape], burn[shape]) for shape in torch]
    return pictures.speed(rows, [
        "Burn's CPU backend flex, f32, 2 threads on every side, each of the two beside ours in one run. PyTorch 2.15: the faster of eager and compiled.",
        f"{sources(dict(zip(('PyTorch', 'burn-nn'), files)))}.",
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


BLOCKS = {"speed": speed_in_words, "table": table, "accuracy": accuracy, "accuracy-in-words": accuracy_in_words, "quickstart": quickstart, "compare": compared,
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
