"""Reports as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, log10

from rich.markup import escape
from rich.table import Table

from irtool.quant import layers_of
from irtool.workflows.compress.engine_files import FILES
from irtool.workflows.compress.search import Trial
from irtool.workflows.equality.chain import Chain
from irtool.workflows.folders.record import TIMED, Measured
from irtool.workflows.quantize.calibration_images import Images
from irtool.workflows.quantize.forms import WORDS
from irtool.workflows.quantize.graph import Outcome, Settings
from irtool.workflows.quantize.report import title
from irtool.workflows.quantize.weights_alone import WeightsAlone

_COLOURS = {"holds": "green", "unchecked": "yellow", "BROKEN": "red"}


def chain_table(chain: Chain) -> Table:
    """A row for each link: both errors, what is allowed, whether it holds."""
    table = Table(title="Chain of equality", title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("link", no_wrap=True)
    table.add_column("in", no_wrap=True)
    for name in ("max abs", "relative", "allowed"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    notes = []
    for link in chain.links:
        mark = f"[{_COLOURS[link.verdict]}]{link.verdict}[/]"
        table.add_row(link.name, link.arithmetic, f"{link.max_abs:.2e}", f"{link.relative:.2e}", f"{link.tolerance:.0e}", mark)
        notes += [f"{link.name}: {note}" for note in (link.note, f"first diverging node {link.diverges}" if link.diverges else "") if note]
    table.caption, table.caption_justify = escape("\n".join(notes)) or None, "left"
    return table


def comparison_table(columns: Sequence[tuple[str, Measured]], title: str, truth: str = "labels") -> Table:
    """Models side by side; each column after the first shows its share of the first.

    Args:
        columns: a heading and a model each; the first is the original.
        title: above the table.
        truth: "answers" where accuracy is agreement with the original.
    """
    table = Table(title=escape(title), title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for heading, _ in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    first = columns[0][1]
    if first.accuracy is not None:
        what = "agreement with the original" if truth == "answers" else "accuracy"
        table.add_row(f"{what} ({first.images:,} images)", *(_percent(model.accuracy) for _, model in columns))
    for label, read in _COUNTS:
        base = read(first)
        table.add_row(label, *(_share(read(model), base, f"{read(model):,}") for _, model in columns))
    for kind, label in {"model": "model file", **{kind: f"{kind.upper()} file" for kind in FILES}}.items():
        if any(kind in model.file_bytes for _, model in columns):
            base = first.file_bytes.get(kind)
            table.add_row(label, *(_bytes(model.file_bytes.get(kind), base) for _, model in columns))
    for engine in TIMED:
        if any(engine in model.latency_ms for _, model in columns):
            base = first.latency_ms.get(engine)
            table.add_row(f"{engine}, ms", *(_time(model.latency_ms.get(engine), base) for _, model in columns))
    if first.runs:
        counted = f"{first.threads} thread{'s' * (first.threads != 1)}"
        table.caption = f"ms: batch 1, {counted}, median of {first.runs} runs of the original, times the median ratio (%) of paired runs"
        table.caption_justify = "left"
    return table


_COUNTS = (
    ("parameters", lambda model: model.params),
    ("MACs", lambda model: model.macs),
)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f} %"


def _share(value: float, base: float | None, text: str) -> str:
    return text if base is None or not base or value == base else f"{text}  {100 * value / base:3.0f} %"


def _bytes(size: int | None, base: int | None) -> str:
    return "" if size is None else _share(size, base, f"{size:,}")


def _time(milliseconds: float | None, base: float | None) -> str:
    """Milliseconds, and their share of the original's: the median ratio of paired runs, which both were made from."""
    return "" if milliseconds is None else _share(milliseconds, base, _milliseconds(milliseconds))


def _milliseconds(time: float) -> str:
    """Three digits, as the page has them, so that two times tell their ratio."""
    return f"{time:,.0f}" if time >= 1000 or not time else f"{time:.{max(2 - floor(log10(time)), 0)}f}"


def stored_table(done: WeightsAlone) -> Table:
    """A table of files whose weights alone are smaller: a row each."""
    shown = Table(title=f"{done.engine}: no images, so no accuracy", title_justify="left", title_style="bold", box=None, pad_edge=False)
    for name in ("", "bytes", "of float", "signal to noise"):
        shown.add_column(name, justify="right" if name else "left", no_wrap=True)
    whole = done.forms["float"].bytes
    for name, form in done.forms.items():
        label = f"{done.bits}-bit weights alone" if name == "int8" else WORDS[name]
        noise = () if name == "float" else (f"{form.bytes / whole:.3f}", f"{form.snr_db:.1f} dB")
        shown.add_row(label, f"{form.bytes:,}", *noise)
    return shown


def forms_table(outcome: Outcome, settings: Settings, images: Images) -> Table:
    """A table of the files that were made: a row each, the recommended one marked."""
    count, before = len(images.scored), outcome.before
    shown = Table(
        title=f"{settings.engine}: {outcome.measure} ({count:,} images)", title_justify="left", title_style="bold", box=None, pad_edge=False
    )
    for name in ("", outcome.measure, "points lost", "bytes", "of float", "ms", "of float", ""):
        shown.add_column(name, justify="right" if name else "left", no_wrap=True)
    for form in outcome.forms:
        first = form is before
        lost = "" if first else f"{100 * form.drop:+.2f}" + ("" if form.error is None else f" ± {100 * form.error:.2f}")
        ratio = "" if first else "not measurable now" if form.ratio is None else f"{form.ratio:.2f}"
        share = "" if first else f"{form.bytes / before.bytes:.3f}"
        mark = "recommended" if form.name == outcome.recommended else ""
        shown.add_row(
            title(form.name, settings),
            f"{100 * form.accuracy:.2f} %",
            lost,
            f"{form.bytes:,}",
            share,
            _milliseconds(form.latency_ms),
            ratio,
            mark,
        )
    taken = f"{len(outcome.placement.layers) - len(outcome.missed)} of {len(layers_of(outcome.model))} layers in int8"
    kind = f"weights alone are integers of {settings.scheme.weight_bits} bits" if settings.weights_only else taken
    clock = "processor time of one thread" if settings.threads == 1 else f"wall time of {settings.threads} threads"
    shown.caption = f"{kind}; ms: batch 1, {clock}, float's median, times the median ratio of paired runs"
    shown.caption_justify = "left"
    return shown


def trials_table(trials: Sequence[Trial]) -> Table:
    """A table of what a search tried: a row for each model, the choice marked."""
    shown = Table(title="Tried", title_justify="left", title_style="bold", box=None, pad_edge=False)
    kinds = list(trials[0].cost)
    for name in ("asked for", *kinds, "epochs", "points lost", ""):
        shown.add_column(name, justify="left" if name in ("asked for", "") else "right", no_wrap=True)
    for trial in trials:
        asked = ", ".join(f"{kind} {100 * share:.3g} %" for kind, share in trial.budget.items())
        costs = [f"{100 * trial.cost[kind]:.1f} %" for kind in kinds]
        mark = ("holds" if trial.holds else "") + (", chosen" if trial.chosen else "")
        lost = f"{100 * trial.drop:.2f} ± {100 * trial.error:.2f}"
        shown.add_row(asked, *costs, str(trial.epochs), lost, mark.removeprefix(", "))
    return shown
