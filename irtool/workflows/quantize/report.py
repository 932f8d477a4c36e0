"""What is told about an int8 model: the files beside it, the steps between float and integers, and a verdict."""

from __future__ import annotations

import json
from pathlib import Path

from irtool.engines.table import ENGINES
from irtool.quant import layers_of
from irtool.workflows.quantize.calibration_images import Images
from irtool.workflows.quantize.graph import AGREED_IMAGES, SENSITIVITY_IMAGES, Outcome, Settings, record
from irtool.workflows.quantize.sensitivity_plot import plot_sensitivity, write_sensitivity

NOISE = 0.05
"""Ratios of latencies that are this near to 1 say nothing."""
SHOWN = 6
"""So many steps between float and integers are printed; steps.txt has all."""


def write_report(folder: Path, outcome: Outcome, images: Images, settings: Settings) -> None:
    """Write what was found beside the files: steps.txt, report.json, the sensitivities, and a description of each file that cannot hold its own."""
    (folder / "steps.txt").write_text("".join(f"{line}\n" for line in outcome.account.lines()), encoding="utf-8")
    plain = record(outcome, images, settings)
    (folder / "report.json").write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    if ENGINES[settings.engine].convert is not None:  # its file has no place for metadata
        (folder / "float.onnx").unlink()
        beside = json.dumps({"preprocessing": images.preprocessing.to_dict(), "classes": list(images.classes)}, indent=1) + "\n"
        for name in ("float.json", "int8.json"):
            (folder / name).write_text(beside, encoding="utf-8")
    if outcome.sensitivity:
        count = min(AGREED_IMAGES if outcome.measure == "agreement of outputs" else SENSITIVITY_IMAGES, len(images.scored))
        write_sensitivity(outcome.sensitivity, folder / "sensitivity.json", images=count, floating=outcome.floating)
        plot_sensitivity(outcome.sensitivity, folder / "sensitivity.png", expected=outcome.expected, floating=outcome.floating)


def borders(outcome: Outcome, engine: str) -> list[str]:
    """List where the model goes into integers and out again, and why: the first lines of steps.txt; and the layers in float."""
    lines = outcome.account.lines()
    shown, left = lines[: SHOWN + 1], len(lines) - 1 - SHOWN
    if left > 0:
        shown.append(f"... and {left} more in steps.txt")
    if outcome.floating:
        shown.append(f"left in float for accuracy: {', '.join(outcome.floating)}")
    by_rule = [
        layer for layer in layers_of(outcome.model) if layer.name not in outcome.floating and layer.node in outcome.placement.floating
    ]
    shown += [f"computes in float: {layer.name}: {outcome.placement.floating[layer.node]}" for layer in by_rule]
    if outcome.missed:
        shown.append(
            f"{len(outcome.missed)} layers have no int8 form in {engine}: {', '.join(outcome.missed[:3])}{', ...' if len(outcome.missed) > 3 else ''}"
        )
    return shown


def verdict(outcome: Outcome, settings: Settings, file: Path) -> str:
    """One line: whether int8 is worth it here, and if not, why."""
    drop = 100 * (outcome.before.accuracy - outcome.after.accuracy)
    worse = f"int8 is worse by {drop:.2f} points, within the {100 * settings.max_drop:.2f} allowed" if drop > 0 else "int8 is no worse"
    if outcome.ratio <= 1 + NOISE:
        return f"{worse}, and {f'{1 / outcome.ratio:.2f}x' if outcome.ratio < 1 - NOISE else 'about'} as fast as float."
    if settings.weights_only:
        return f"{worse}, at {outcome.ratio:.2f}x the time of float: weights alone save bytes, not time."
    engine = ENGINES[settings.engine]
    times = engine.times(file, outcome.inputs)
    reasons = [
        f"{len(outcome.account.steps)} steps in and out of integers",
        "time goes to " + ", ".join(f"{op} {time:.2f} ms" for op, time in list(times.items())[:3]),
    ]
    if missing := engine.int8.missing():
        reasons.append(missing)
    return f"{worse}, but SLOWER: {outcome.ratio:.2f}x the time of float ({'; '.join(reasons)}). Prefer the float file if time matters more than bytes."
