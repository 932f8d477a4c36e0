"""Report on an int8 model: the files beside it, the steps between float and integers, and a verdict."""

from __future__ import annotations

import json
from pathlib import Path

from irtool.engines.latency import NOISE
from irtool.engines.table import ENGINES
from irtool.quant import layers_of
from irtool.workflows.quantize.calibration_images import Images
from irtool.workflows.quantize.forms import GOALS, WORDS
from irtool.workflows.quantize.graph import Outcome, Settings, record
from irtool.workflows.quantize.sensitivity_plot import plot_sensitivity, write_sensitivity
from irtool.workflows.quantize.trials import SENSITIVITY_IMAGES

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
        for form in outcome.forms:
            (folder / f"{form.name}.json").write_text(beside, encoding="utf-8")
    if outcome.sensitivity:
        count = min(SENSITIVITY_IMAGES, images.chosen_by)
        write_sensitivity(outcome.sensitivity, folder / "sensitivity.json", images=count, floating=outcome.floating)
        plot_sensitivity(outcome.sensitivity, folder / "sensitivity.png", floating=outcome.floating)


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
    """Say in a few sentences whether int8 is worth it here, if not why, and which file to use."""
    said = f"{_loss(outcome, settings)}{_speed(outcome, settings, file)}{_advice(outcome, settings)}"
    return f"{said} ({outcome.warning}.)" if outcome.warning else said


def _loss(outcome: Outcome, settings: Settings) -> str:
    drop, error, allowed = 100 * outcome.after.drop, outcome.after.error, 100 * settings.max_drop
    said = f"With {title('int8', settings)} the model" if settings.weights_only else "int8"
    if drop <= 0:
        return f"{said} is no worse"
    sure = "" if error is None else f" ± {100 * error:.2f}"
    bound = f"within the {allowed:.2f} allowed" if drop <= allowed else f"not certainly more than the {allowed:.2f} allowed"
    return f"{said} is worse by {drop:.2f}{sure} points, {bound}"


def _speed(outcome: Outcome, settings: Settings, file: Path) -> str:
    ratio = outcome.ratio
    if ratio is None:
        return "; its time is not measurable now."
    if ratio <= 1 + NOISE:
        return f", and {f'{1 / ratio:.2f}x' if ratio < 1 - NOISE else 'about'} as fast as float."
    if settings.weights_only:
        return f", at {ratio:.2f}x the time of float: weights alone save bytes, not time."
    engine = ENGINES[settings.engine]
    times = engine.times(file, outcome.inputs)
    reasons = [
        f"{len(outcome.account.steps)} steps in and out of integers",
        "time goes to " + ", ".join(f"{op} {time:.2f} ms" for op, time in list(times.items())[:3]),
    ]
    if missing := engine.int8.missing():
        reasons.append(missing)
    said = f", but SLOWER: {ratio:.2f}x the time of float ({'; '.join(reasons)})."
    return " ".join(filter(None, (said, engine.int8.remedy())))


def title(name: str, settings: Settings) -> str:
    """Return what a form is, in words."""
    return f"{settings.scheme.weight_bits}-bit weights alone" if name == "int8" and settings.weights_only else WORDS[name]


def _advice(outcome: Outcome, settings: Settings) -> str:
    """Say which file to use for the goal."""
    best = next(form for form in outcome.forms if form.name == outcome.recommended)
    known = all(form.ratio is not None for form in outcome.forms)
    why = GOALS[settings.goal] if known or settings.goal == "size" else "the fewest bytes, since times are not measurable now"
    return f" Use {best.name}{ENGINES[settings.engine].suffix} ({title(best.name, settings)}): {why} within {100 * settings.max_drop:.2f} points."
