"""Trials of a search, as JSON and as a plot of accuracy against cost."""

from __future__ import annotations

import json
from pathlib import Path

from irtool.atomic_files import replacing
from irtool.extras import absent, needed
from irtool.workflows.compress.search import Bound, Found, pareto, plain

AXES = {"macs": "MACs", "params": "parameters", "bytes": "bytes", "latency": "latency"}


def write_search(found: Found, bound: Bound, path: Path) -> None:
    """Write all trials, and which was chosen, as JSON.

    Raises:
        FileError: the file cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(plain(found, bound), indent=1) + "\n", encoding="utf-8")


def plot_search(found: Found, bound: Bound, path: Path) -> None:
    """Draw points lost against cost: each trial, the Pareto front, the bound, and the choice.

    Args:
        found: the trials.
        bound: what might be lost.
        path: a .png or .svg file.

    Raises:
        FileError: the file cannot be written.
    """
    if absent("matplotlib"):  # told by the command: a picture is no reason to lose an hour's work
        return
    kind = kind_of(found)
    figure = needed("matplotlib.figure").Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for trained, marker, label in ((False, "o", "refitted, no labels"), (True, "s", "and distilled")):
        points = [trial for trial in found.trials if bool(trial.epochs) is trained]
        if points:
            axes.errorbar(
                [100 * trial.cost[kind] for trial in points],
                [100 * trial.drop for trial in points],
                yerr=[100 * trial.error for trial in points],
                fmt=marker,
                label=label,
                capsize=2,
            )
    front = pareto(found.trials, kind)
    axes.plot([100 * trial.cost[kind] for trial in front], [100 * trial.drop for trial in front], "-", color="0.6", zorder=0, label="front")
    axes.axhline(100 * bound.max_drop, color="tab:red", linewidth=1, label=f"{100 * bound.max_drop:g} points")
    chosen = next(trial for trial in found.trials if trial.chosen)
    axes.plot(100 * chosen.cost[kind], 100 * chosen.drop, "o", markersize=14, fillstyle="none", color="tab:red", label="chosen")
    axes.set_xlabel(f"{AXES.get(kind, kind)}, % of the original")
    axes.set_ylabel("accuracy lost, points")
    axes.invert_yaxis()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)


def kind_of(found: Found) -> str:
    """Choose the horizontal axis: the first kind that the budgets speak of."""
    return next(iter(found.trials[0].budget))


def verdict(found: Found, bound: Bound) -> str:
    """In a sentence, what was reached, on images that chose nothing."""
    chosen = next(trial for trial in found.trials if trial.chosen)
    costs = ", ".join(f"{100 * share:.0f} % of the {AXES.get(kind, kind)}" for kind, share in chosen.cost.items() if kind in chosen.budget)
    lost = f"{100 * found.drop:.2f} ± {100 * found.error:.2f} points lost on {found.images[1]:,} images that chose nothing"
    if not chosen.holds:
        return f"NOT MET: nothing that was tried loses at most {100 * bound.max_drop:g} points; the best has {costs}, {lost}."
    if not found.met:
        return f"NOT MET: the budget was missed; the smallest that loses at most {100 * bound.max_drop:g} points has {costs}, {lost}."
    if found.drop > bound.max_drop:
        return f"NOT MET: {costs}, but {lost}, more than the {100 * bound.max_drop:g} allowed (on those that chose, it held)."
    return f"met: {costs}, {lost}; {100 * bound.max_drop:g} are allowed."


def is_met(found: Found, bound: Bound) -> bool:
    """Whether the wish came true, told by the images that chose nothing."""
    return found.met and found.drop <= bound.max_drop
