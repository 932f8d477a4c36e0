"""docs/results.md, its tables and plots, from the runs that bench/experiments.py logged. No figure is written by hand.

    python bench/results.py

Reads bench/results/training/*.json. A name that ends in -seedN is another seed of the same run: the table shows the mean and
the spread. Accuracies are those of the last epoch, not of the best: the best epoch is chosen by the test images.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "bench" / "results" / "training"
DOCS = ROOT / "docs"
LINES = {
    "preresnet": "PreResNet-38, from the published sparsely trained checkpoint",
    "vgg": "VGG-16 at full (`vgg-full`, `vgg-sparse`), half and quarter width, from scratch",
    "vgg-cifar": "VGG-16 on CIFAR-10 (JPEG) at full and half width, sparsely trained from scratch and pruned at 0.7",
}
NOTES = {
    "preresnet": "The published net was trained on padded and mirrored crops of images that never were JPEG files. Statistics measured on "
    "images as in use lose accuracy even in the unpruned net; measured on images as in training they gain it.",
    "vgg": "Distillation needs a teacher that is better than its student. Nets trained on 8,000 images for a few epochs (`vgg-full`, "
    "`vgg-half-longer`) are not, and their lessons cost accuracy. A half net trained on all 60,000 (`vgg-teacher`) is, and gives the "
    "quarter net what the published line reports, on the same 8,000 images; three epochs are too few for it.",
    "vgg-cifar": "Three epochs on 20,000 images do not train VGG-16 to its accuracy: what counts here is what pruning changes.",
}
MARKERS = {"as it is": "*", "drop": "v", "absorb": "^", "absorb, recalibrated": "s", "random": "x", "trained": "o", "distilled": "D"}

Logged = Mapping[str, Any]


@dataclass(frozen=True)
class Result:
    """One experiment over its seeds, the first logged run standing for what they share."""

    name: str
    runs: tuple[Logged, ...]

    @property
    def first(self) -> Logged:
        return self.runs[0]

    @property
    def accuracy(self) -> float:
        """The mean over seeds, in [0, 1]."""
        return statistics.mean(run["accuracy"] for run in self.runs)

    def shown(self) -> str:
        """The accuracy in per cent, with the standard deviation where there are several seeds."""
        spread = f" ± {100 * statistics.stdev(run['accuracy'] for run in self.runs):.2f}" if len(self.runs) > 1 else ""
        return f"{100 * self.accuracy:.2f}{spread}"

    @property
    def kind(self) -> str:
        """The treatment of the net, for the plots' legend."""
        run = self.first["definition"]["run"]
        if run["stage"]:
            return "distilled" if run["stage"] == "distill" else "trained"
        if not run["prune"]:
            return "as it is"
        if run["prune"]["criterion"] == "random":
            return "random"
        return f"{run['prune']['constants']}{', recalibrated' if run['prune']['recalibrate'] else ''}"


def read() -> dict[str, Result]:
    """All logged runs by name, seeds together."""
    found: dict[str, list[Logged]] = {}
    for path in sorted(RUNS.glob("*.json")):
        run = json.loads(path.read_text())
        found.setdefault(re.sub(r"-seed\d+$", "", run["name"]), []).append(run)
    return {name: Result(name, tuple(runs)) for name, runs in found.items()}


def table(results: Iterable[Result]) -> list[str]:
    """A line a run."""
    lines = ["| run | what | accuracy, % | parameters | MACs | images × epochs | seeds | seconds |", "|---|---|---|---|---|---|---|---|"]
    for result in results:
        run = result.first
        trained = f"{run['train_images']:,} × {run['epochs']}" if run["epochs"] else "none"
        seeds = ", ".join(str(each["seed"]) for each in result.runs)
        cells = (
            f"`{result.name}`",
            what(run),
            result.shown(),
            f"{run['params']:,}",
            f"{run['macs'] / 1e6:.1f} M",
            trained,
            seeds,
            f"{run['seconds']:.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def what(run: Logged) -> str:
    """A run's definition in words."""
    made, words = run["definition"]["run"], []
    if made["start"].startswith(("published:", "new:")):
        kind, _, name = made["start"].partition(":")
        words.append(f"published `{name}.pth`" if kind == "published" else f"`{name}`")
    else:
        words.append(f"`{made['start']}`")
    if made["prune"]:
        ratio = made["prune"]["ratio"]
        words.append(
            f"pruned by {made['prune']['criterion']} {'at' if isinstance(ratio, float) else 'to the size of'} {ratio}, {made['prune']['constants']}"
        )
        if made["prune"]["recalibrate"]:
            seen = "as in training" if made["prune"].get("augment") else "as in use"
            words.append(f"recalibrated on {made['prune']['recalibrate']} training images {seen}")
    if made["stage"]:
        options = {**made["options"], "lr": made["settings"]["lr"]}
        told = ", ".join(f"{key} {value:g}" for key, value in options.items())
        words.append(f"{made['stage']}{' from `' + made['teacher'] + '`' if made['teacher'] else ''} ({told})")
    return "; ".join(words)


@dataclass(frozen=True)
class Claim:
    """A published pattern, and the two runs whose accuracies show whether it came out.

    Attributes:
        text: the pattern.
        one, other: names of runs.
        least: the difference (one less other, in points) above which it counts as shown.
    """

    text: str
    one: str
    other: str
    least: float


CLAIMS = (
    Claim("Absorbing constants against dropping them at 0.7, without training", "preresnet-0.7-absorb", "preresnet-0.7-drop", 10),
    Claim("Recalibration on images as in use, on top of absorbing at 0.7", "preresnet-0.7-absorb-recalibrated", "preresnet-0.7-absorb", 0),
    Claim("Recalibration on images as in training, on top of absorbing at 0.7", "preresnet-0.7-absorb-recalibrated-augmented", "preresnet-0.7-absorb", 0),
    Claim("The same at 0.5, images as in use", "preresnet-0.5-absorb-recalibrated", "preresnet-0.5-absorb", 0),
    Claim("The same at 0.5, images as in training", "preresnet-0.5-absorb-recalibrated-augmented", "preresnet-0.5-absorb", 0),
    Claim("The unpruned net, images as in use", "preresnet-sparse-recalibrated", "preresnet-sparse", 0),
    Claim("The unpruned net, images as in training", "preresnet-sparse-recalibrated-augmented", "preresnet-sparse", 0),
    Claim("0.7 with distillation against the unpruned net finetuned for as long (within half a point)", "preresnet-0.7-kd", "preresnet-sparse-finetuned", -0.5),
    Claim("Distillation against finetuning at 0.7", "preresnet-0.7-kd", "preresnet-0.7-finetuned", 0),
    Claim("bn_scale against random of the same size, both finetuned", "preresnet-0.7-finetuned", "preresnet-random-as-0.7-finetuned", 0),
    Claim("VGG-16 at 0.3 after sparse training against without it, dropped", "vgg-sparse-0.3-drop", "vgg-full-0.3-drop", 10),
    Claim("VGG-16 at 0.3 without sparse training, absorbed against dropped", "vgg-full-0.3-absorb", "vgg-full-0.3-drop", 0),
    Claim("VGG-16 at 0.7 after sparse training against unpruned (within one point), dropped", "vgg-sparse-0.7-drop", "vgg-sparse", -1),
    Claim("The same, absorbed", "vgg-sparse-0.7-absorb", "vgg-sparse", -1),
    Claim("The same, absorbed and recalibrated", "vgg-sparse-0.7-absorb-recalibrated-augmented", "vgg-sparse", -1),
    Claim("The same, finetuned for three epochs", "vgg-sparse-0.7-finetuned", "vgg-sparse", -1),
    Claim("VGG-16 at 0.7, finetuned, against random at the same ratio, finetuned", "vgg-sparse-0.7-finetuned", "vgg-sparse-0.7-random-finetuned", 0),
    Claim("A quarter of VGG-16's width, from scratch, distilled from the full net against without", "vgg-quarter-kd", "vgg-quarter", 0),
    Claim("The same trained on at the published rate, distilled from the half net at the published temperature, 10, against without", "vgg-quarter-longer-kd", "vgg-quarter-longer", 0),
    Claim("The same for ten epochs, at temperature 10", "vgg-quarter-ten-kd", "vgg-quarter-ten", 0),
    Claim("The same for three epochs, at temperature 3", "vgg-quarter-longer-kd-3", "vgg-quarter-longer", 0),
    Claim("With a better teacher, a half net trained on all images: three epochs, temperature 10", "vgg-quarter-taught", "vgg-quarter-longer", 0),
    Claim("The same for ten epochs", "vgg-quarter-ten-taught", "vgg-quarter-ten", 0),
    Claim("The better teacher, ten epochs from scratch, temperature 10", "vgg-quarter-cycle-taught", "vgg-quarter-cycle", 0),
    Claim("The same at temperature 3", "vgg-quarter-cycle-taught-3", "vgg-quarter-cycle", 0),
    Claim("VGG-16 on CIFAR at 0.7 against unpruned (within one point), absorbed", "vgg-cifar-0.7-absorb", "vgg-cifar-sparse", -1),
    Claim("The same, dropped", "vgg-cifar-0.7-drop", "vgg-cifar-sparse", -1),
    Claim("The same, finetuned for two epochs", "vgg-cifar-0.7-absorb-finetuned", "vgg-cifar-sparse", -1),
    Claim("VGG-16 at half width on CIFAR at 0.7 against unpruned (within one point), absorbed", "vgg-cifar-half-0.7-absorb", "vgg-cifar-half-sparse", -1),
    Claim("The same, absorbed against dropped", "vgg-cifar-half-0.7-absorb", "vgg-cifar-half-0.7-drop", 0),
    Claim("The same, finetuned for two epochs", "vgg-cifar-half-0.7-absorb-finetuned", "vgg-cifar-half-sparse", -1),
    Claim("The same against random at the same ratio, both finetuned", "vgg-cifar-half-0.7-absorb-finetuned", "vgg-cifar-half-0.7-random-finetuned", 0),
)  # fmt: skip


def claims(results: Mapping[str, Result]) -> list[str]:
    """Patterns that came out, as far as their runs are logged."""
    lines = ["| pattern | | | difference, points | shown |", "|---|---|---|---|---|"]
    for claim in CLAIMS:
        if claim.one not in results or claim.other not in results:
            lines.append(f"| {claim.text} | | | | not run |")
            continue
        one, other = results[claim.one], results[claim.other]
        points = 100 * (one.accuracy - other.accuracy)
        lines.append(f"| {claim.text} | {one.shown()} | {other.shown()} | {points:+.2f} | {'yes' if points > claim.least else '**no**'} |")
    return lines


def size_plot(results: Sequence[Result], line: str) -> str:
    """Accuracy against parameters and against MACs, a point a model."""
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for axis, key, label in zip(axes, ("params", "macs"), ("parameters", "MACs an image"), strict=True):
        for kind, marker in MARKERS.items():
            points = [result for result in results if result.kind == kind]
            if points:
                sizes, accuracies = [point.first[key] for point in points], [100 * point.accuracy for point in points]
                colour = f"C{list(MARKERS).index(kind)}"  # hollow, so that a marker shows what lies under it
                filled = {"color": colour} if marker == "x" else {"facecolors": "none", "edgecolors": colour}
                axis.scatter(sizes, accuracies, marker=marker, label=kind, s=60, linewidths=1.5, **filled)
        axis.set(xlabel=label, xscale="log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.tick_params(axis="x", labelsize=8)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy, %")
    axes[1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return _saved(figure, f"results-{line}-sizes.png")


def curve_plot(results: Sequence[Result], line: str) -> str:
    """Training loss by epoch of all runs that trained."""
    figure, axis = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for number, result in enumerate(results):
        records = result.first["history"]["records"]
        epochs, losses = ([record[key] for record in records] for key in ("epoch", "train_loss"))
        axis.plot(epochs, losses, ("-", "--", ":")[number // 10 % 3], color=f"C{number % 10}", marker="o", label=result.name)
    axis.set(xlabel="epoch", ylabel="training loss (with distillation: its own)")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="x-small")
    return _saved(figure, f"results-{line}-curves.png")


def _saved(figure: Any, name: str) -> str:
    figure.savefig(DOCS / name, dpi=110, metadata={"Software": None})
    pyplot.close(figure)
    return name


def section(line: str, title: str, results: Sequence[Result]) -> list[str]:
    """One published line: data, table, plots."""
    data = sorted({f"{result.first['data']} ({result.first['test_images']:,} test images)" for result in results})
    lines = [f"## {title}", "", f"Data: {'; '.join(data)}.", "", NOTES[line], "", *table(results), ""]
    lines += [f"![accuracy against size]({size_plot(results, line)})", ""]
    trained = [result for result in results if result.first["history"]]
    return [*lines, f"![training loss]({curve_plot(trained, line)})", ""] if trained else lines


def page(results: Mapping[str, Result]) -> str:
    """The whole document."""
    shown = {name: result for name, result in results.items() if "-lr-" not in name}
    machines = sorted({f"{run['machine']}, torch {run['torch']}" for result in shown.values() for run in result.runs})
    parts = [
        "# Training results", "", "Made by `python bench/results.py` from the runs that `python bench/experiments.py --only RUN` logs in `bench/results/training`.",
        "Accuracies are those of the last epoch. Epochs are few, and training images a part of each dataset: the table says how many. With one seed, differences below about a point mean little.",
        f"Machine: {'; '.join(machines)}; others used it too, so the seconds are no measure of speed.", "", "## What was to be shown", "", *claims(results), "",
    ]  # fmt: skip
    for line, title in LINES.items():
        own = [result for result in shown.values() if result.first["line"] == line]
        if own:
            parts += section(line, title, own)
    searched = [result for name, result in results.items() if "-lr-" in name]
    if searched:
        parts += [
            "## The search for a learning rate",
            "",
            "One epoch on few images, scored on training images held out.",
            "",
            *table(searched),
            "",
        ]
    return "\n".join(parts)


def main() -> None:
    """Write the page and its plots."""
    results = read()
    (DOCS / "results.md").write_text(page(results), encoding="utf-8")
    print(f"docs/results.md: {len(results)} experiments")


if __name__ == "__main__":
    main()
