"""The tables and the plot of `bench/quality.py`."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Scores = Callable[[Row], list[float] | None]
"""From a row to what is right and what is as unpruned, in %; None where that was not measured."""
TITLES = {"normal": "PreResNet-38, trained as usual", "sparse": "PreResNet-38, sparse", "vgg16": "VGG-16, Fashion-MNIST",
          "mobilenetv2": "MobileNetV2, Fashion-MNIST"}  # fmt: skip


def table(rows: list[Row]) -> str:
    """Markdown: irtool beside the best peer as returned and after an epoch, then every peer on the images that chose."""
    parts = {
        "## As returned, without training": _verdicts(rows, lambda row: row.get("scored")),
        "## Before and after one epoch with labels": _verdicts(
            rows, lambda row: row.get("epoch", {}).get("scored"), before=lambda row: row.get("scored")
        ),
        "## Every tool, on the images that chose": _tools(rows),
    }
    return "\n\n".join("\n".join([title, "", *part]) for title, part in parts.items() if part)


AHEAD, EVERY = "ahead", 100.0
MARKS = "<!-- bench/quality.py: begin -->", "<!-- bench/quality.py: end -->"


def write(rows: list[Row], path: Path) -> None:
    """Put the tables between the marks of a document.

    Raises:
        ValueError: it has no marks.
    """
    text = path.read_text()
    before, _, rest = text.partition(MARKS[0])
    _, found, after = rest.partition(MARKS[1])
    if not found:
        raise ValueError(f"{path} has no marks {MARKS}")
    path.write_text(f"{before}{MARKS[0]}\n\n{table(rows)}\n\n{MARKS[1]}{after}")


def _cells(rows: list[Row]) -> list[tuple[str, float]]:
    nets = list(dict.fromkeys(row["net"] for row in rows))
    return sorted({(row["net"], row["share"]) for row in rows if row["share"] < 1}, key=lambda pair: (nets.index(pair[0]), -pair[1]))


def _verdicts(rows: list[Row], scores: Scores, before: Scores | None = None) -> list[str]:
    """A line a budget: means over seeds and their standard deviation; then why irtool is not ahead where nothing was lost.

    Args:
        rows: all that is known.
        scores: what is compared.
        before: shown ahead of it, of the same seeds.
    """
    lines, reasons = [], []
    for net, share in _cells(rows):
        found = [row for row in rows if (row["net"], row["share"]) == (net, share) and scores(row)]
        sides = [[row for row in found if row["tool"].startswith("irtool") is own] for own in (True, False)]
        both = set.intersection(*({row["seed"] for row in side} for side in sides))  # the bench may have been stopped between the two
        mine, peers = ([row for row in side if row["seed"] in both] for side in sides)
        if not mine or not peers:
            continue
        names = ", ".join(dict.fromkeys(f"{row['tool']}{'' if row['way'] == 'plain' else ', recalibrated'}" for row in peers))
        line = f"| {net} | {100 * share:g} % | {len(mine)} |"
        (own, other), (own_same, other_same) = (
            [[(scores(row) or [])[place] for row in part] for part in (mine, peers)] for place in (0, 1)
        )
        for place, (ours, theirs) in enumerate(((own, other), (own_same, other_same))):
            shown = [_spread(found) for found in (ours, theirs)]
            if before is not None:
                first = [[(before(row) or [])[place] for row in part] for part in (mine, peers)]
                shown = [f"{_spread(values)} -> {text}" for values, text in zip(first, shown, strict=True)]
            line += f" {shown[0]} | {shown[1]} | {_word(ours, theirs)} |"
        lines.append(f"{line} {names} |")
        if _word(own, other) != AHEAD and min(own_same) == EVERY:
            reasons.append(_as_unpruned(f"{net} at {100 * share:g} %", own, other, other_same))
    head = ["| net | MACs | seeds | irtool: right | best peer | | irtool: as unpruned | best peer | | which peer |", "|" + "---|" * 10]
    return [*head, *lines, *(["", *reasons] if reasons else [])] if lines else []


def _as_unpruned(where: str, own: list[float], other: list[float], same: list[float]) -> str:
    """The reason for which irtool is not ahead by what is right where it answers as the unpruned net does."""
    if min(same) == EVERY:
        return f"- {where}: both give the unpruned net's class for every image, so that nobody can be ahead."
    gap = statistics.mean(other) - statistics.mean(own)
    return (f"- {where}: irtool gives the unpruned net's class for every image, which is what it aims at; the peer gives another for "
            f"{100 - statistics.mean(same):.2f} % of them, and is right {abs(gap):.2f} points {'more' if gap > 0 else 'less'} often.")  # fmt: skip


def _word(own: list[float], other: list[float]) -> str:
    """Whether the difference is more than the spread over seeds of both together."""
    gap, spread = statistics.mean(own) - statistics.mean(other), sum(statistics.stdev(part) for part in (own, other) if len(part) > 1)
    if gap > spread:
        return AHEAD
    return "**within the spread**" if abs(gap) <= spread and spread else "**equal**" if not gap else "**LOST**"


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def _tools(rows: list[Row]) -> list[str]:
    """Every tool at one budget with the first seed, best first, on the images that chose."""
    lines = []
    for net, share in _cells(rows):
        here = [row for row in rows if (row["net"], row["share"], row["seed"]) == (net, share, 0)]
        lines += [f"| {net} | {100 * share:g} % | {row['tool']} | failed: {row['failed']} | | | |" for row in here if "failed" in row]
        for row in sorted((row for row in here if "chosen" in row), key=lambda row: -row["chosen"][row["way"]][0]):
            right, same = row["chosen"][row["way"]]
            way = "as returned" if row["way"] == "plain" else "recalibrated"
            seen = " (250 images)" if row.get("far") else ""
            lines.append(f"| {net} | {100 * share:g} % | {row['tool']} | {right:.1f} / {same:.1f}{seen} | {way} "
                         f"| {100 * row['macs']:.1f} % | {row['seconds']:.0f} |")  # fmt: skip
    head = [
        "| net | MACs | tool | choosing images: right / as unpruned | better way | MACs kept | CPU s |",
        "|---|---|---|---|---|---|---|",
    ]
    return head + lines if lines else []


def plot(rows: list[Row], path: Path) -> None:
    """Agreement with the unpruned net over what is left, irtool and the best peer, a panel a net; bars from the least to the most over seeds."""
    import matplotlib.pyplot as plt

    scored = [row for row in rows if "scored" in row and row["share"] < 1]
    nets = list(dict.fromkeys(row["net"] for row in scored))
    if not nets:
        return
    figure, panels = plt.subplots(1, len(nets), figsize=(4.2 * len(nets), 3.6), sharex=True, sharey=True, squeeze=False)
    for net, panel in zip(nets, panels[0], strict=True):
        for mine, colour, label in ((True, "tab:blue", "irtool"), (False, "tab:orange", "best peer")):
            points: dict[float, list[float]] = {}
            for row in scored:
                if row["net"] == net and row["tool"].startswith("irtool") is mine:
                    points.setdefault(100 * row["share"], []).append(row["scored"][1])
            xs = sorted(points)
            means = [statistics.mean(points[x]) for x in xs]
            ends = [[mean - min(points[x]) for x, mean in zip(xs, means, strict=True)],
                    [max(points[x]) - mean for x, mean in zip(xs, means, strict=True)]]  # fmt: skip
            panel.errorbar(xs, means, ends, marker="o", capsize=3, color=colour, label=label)
        panel.set(title=TITLES.get(net, net), xlabel="MACs left, %")
    panels[0][0].set_ylabel("same class as the unpruned net, %")
    panels[0][0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
