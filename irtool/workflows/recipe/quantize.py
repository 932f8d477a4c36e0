"""The step `quantize` of a recipe: what `irtool quantize` does, on the recipe's model and images."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any

from irtool.engines.table import ENGINES
from irtool.workflows.quantize.calibration_images import Images
from irtool.workflows.quantize.graph import Outcome, quantize_graph
from irtool.workflows.quantize.options import QuantizeOptions
from irtool.workflows.quantize.report import borders, verdict, write_report
from irtool.workflows.recipe.kind import Context, Kind, Made, Options


def _quantize(context: Context, options: Options) -> Made:
    wanted = QuantizeOptions(**options)
    settings, images = wanted.settings(), Images(context.data.train, wanted.images, context.data.test, labelled=True)
    outcome = quantize_graph(context.graph, images, settings, context.folder, context.progress)
    write_report(context.folder, outcome, images, settings)
    judged = verdict(outcome, settings, context.folder / f"int8{ENGINES[settings.engine].suffix}")
    notes = (*outcome.notes, _line(wanted.engine, outcome), *borders(outcome, wanted.engine), judged)
    return Made(context.graph, outcome.after.accuracy, notes)


def _line(engine: str, outcome: Outcome) -> str:
    before, after = outcome.before, outcome.after
    time = "not measurable now" if outcome.ratio is None else f"{outcome.ratio:.2f} of float's time"
    return (
        f"{engine}: accuracy {100 * before.accuracy:.2f} % in float, {100 * after.accuracy:.2f} % in int8; "
        f"{after.bytes:,} bytes, {after.bytes / before.bytes:.3f} of float; {time}"
    )


def check_quantize(name: str, value: Any) -> None:
    """Refuse a value that an option of the step can never have.

    Raises:
        OptionError: it cannot.
    """
    if name in (mistakes := QuantizeOptions(**{name: value}).mistakes()):
        raise mistakes[name]


def _together(options: Options) -> Mapping[str, str]:
    return {name: str(mistake) for name, mistake in QuantizeOptions(**options).mistakes().items()}


QUANTIZE = Kind(typing.get_type_hints(QuantizeOptions), check_quantize, _quantize, together=_together)
