"""The table and the plot of `bench/quality.py`."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

OURS = "irtool, fisher, 2 stages"
"""What is compared to the best of the peers, named before anything was measured."""
WAYS = ("plain", "recalibrated")
"""The net as it was returned, and with its batch norms' statistics measured anew."""


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: what irtool gave beside the best peer, then every tool. Rows that are lost say so."""
    cells = sorted({(row["net"], row["share"]) for row in rows if row["share"] < 1}, key=lambda pair: (pair[0], -pair[1]))
    lines = ["| net | MACs | irtool: right | best peer | | as unpruned | best peer | |", "|---|---|---|---|---|---|---|---|"]
    lines += [_verdict(rows, *cell) for cell in cells]
    lines += [
        "",
        "| net | MACs | tool | as returned: right, as unpruned | recalibrated | MACs kept | CPU s |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join(lines + [line for cell in cells for line in _tools(rows, *cell)])


def _verdict(rows: list[dict[str, Any]], net: str, share: float) -> str:
    """Ours as it was returned against the peer that is best on these very images, as returned or recalibrated."""
    line = f"| {net} | {100 * share:g} % |"
    for place in (0, 1):
        own = [row["plain"][place] for row in _of(rows, OURS, net, share)]
        peers = [(_best(_of(rows, tool, net, share), place), tool) for tool in _names(rows) if not tool.startswith(("irtool", "unpruned"))]
        best, tool = max(peers)
        gap = statistics.mean(own) - best if own else 0.0
        word = "" if not own else "equal" if abs(gap) < 1e-9 else "ahead" if gap > 0 else "**LOST**"
        line += f" {_spread(own) if own else ''} | {best:.2f} ({tool}) | {word} |"
    return line


def _tools(rows: list[dict[str, Any]], net: str, share: float) -> list[str]:
    """Every tool at one budget, best first."""
    lines, found = [], []
    for tool in _names(rows):
        if good := _of(rows, tool, net, share):
            found.append((_best(good, 0), tool, good))
        for row in rows:
            if (row["tool"], row["net"], row["share"]) == (tool, net, share) and "failed" in row:
                lines.append(f"| {net} | {100 * share:g} % | {tool} | failed: {row['failed']} | | | |")
    for _, tool, good in sorted(found, key=lambda entry: -entry[0]):
        ways = [" / ".join(_spread(_scores(good, way, place)) for place in (0, 1)) for way in WAYS]
        seconds, kept = (statistics.mean(row[key] for row in good) for key in ("seconds", "macs"))
        lines.append(f"| {net} | {100 * share:g} % | {tool} | {ways[0]} | {ways[1]} | {100 * kept:.1f} % | {seconds:.0f} |")
    return lines


def _names(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["tool"] for row in rows))


def _of(rows: list[dict[str, Any]], tool: str, net: str, share: float) -> list[dict[str, Any]]:
    return [row for row in rows if (row["tool"], row["net"], row["share"]) == (tool, net, share) and "plain" in row]


def _best(rows: list[dict[str, Any]], place: int) -> float:
    """The better of both ways; -1 where nothing was measured."""
    return max((statistics.mean(scores) for way in WAYS if (scores := _scores(rows, way, place))), default=-1.0)


def _scores(rows: list[dict[str, Any]], way: str, place: int) -> list[float]:
    return [row[way][place] for row in rows if row[way] is not None]


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values) if values else math.nan:.2f}".replace("nan", "far less") + (
        f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    )


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Agreement with the unpruned net over what is left, the best peer and ours, a panel a net."""
    import matplotlib.pyplot as plt

    nets = sorted({row["net"] for row in rows})
    figure, panels = plt.subplots(1, len(nets), figsize=(5 * len(nets), 3.6), sharey=True, squeeze=False)
    for net, panel in zip(nets, panels[0], strict=True):
        for tool in _names(rows):
            points: dict[float, list[float]] = {}
            for row in rows:
                if row["net"] == net and row["tool"] == tool and "plain" in row and row["share"] < 1:
                    points.setdefault(row["share"], []).append(_best([row], 1))
            if points:
                xs = sorted(points)
                style = {"color": "tab:blue", "linewidth": 2.2} if tool.startswith("irtool") else {"alpha": 0.7, "linewidth": 1.0}
                panel.plot([100 * x for x in xs], [statistics.mean(points[x]) for x in xs], marker="o", label=tool, **style)
        panel.set(title=f"PreResNet-38, {net}", xlabel="MACs left, %", ylabel="same class as the unpruned net, %")
        panel.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
