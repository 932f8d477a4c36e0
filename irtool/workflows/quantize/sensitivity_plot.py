"""Layer sensitivities as JSON and as a plot."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path

from irtool.atomic_files import replacing
from irtool.extras import absent, needed
from irtool.workflows.quantize.sensitivity import Sensitivity


def write_sensitivity(found: Sequence[Sensitivity], path: Path, *, images: int, floating: Collection[str] = ()) -> None:
    """Write the layers, the most sensitive first, as JSON.

    Raises:
        FileError: the file cannot be written.
    """
    plain = {"images": images, "layers": [{**asdict(entry), "float": entry.layer in floating} for entry in found]}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")


def plot_sensitivity(found: Sequence[Sensitivity], path: Path, *, floating: Collection[str] = ()) -> None:
    """Draw SQNR and lost agreement of each layer in the model's order of sensitivity.

    Args:
        found: the layers.
        path: a .png or .svg file.
        floating: layers that stay in float; they are marked.

    Raises:
        FileError: the file cannot be written.
    """
    if absent("matplotlib"):  # told by the command: a picture is no reason to lose an hour's work
        return
    figure = needed("matplotlib.figure").Figure(figsize=(max(6.0, 0.22 * len(found) + 2), 5.5), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    places = range(len(found))
    colours = ["tab:orange" if entry.layer in floating else "tab:blue" for entry in found]
    top.bar(places, [entry.sqnr_db for entry in found], color=colours)
    top.set_ylabel("SQNR of the output, dB")
    top.set_title("One layer in int8, all else in float" + (" (orange: left in float)" if floating else ""))
    bottom.bar(places, [100 * (1 - entry.accuracy) for entry in found], color=colours)
    bottom.set_ylabel("agreement with float lost, points")
    bottom.set_xticks(list(places), [entry.layer for entry in found], rotation=90, fontsize=6)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
