"""The chain of equality: masked = sliced = folded = ONNX = each engine's file, each link measured, each with its tolerance.

The first two links are shown twice: in float64, where rounding cannot hide a wrong rewrite, and in float32 between the very
graphs that are written. Nothing may be written while a link is broken: `Chain.require` says so, with the first node that
diverges.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from irtool.analysis.compare import Comparison
from irtool.analysis.randomness import require_repeatable
from irtool.engines import OnnxSession
from irtool.engines.compare import compare
from irtool.engines.engine import Engine
from irtool.engines.table import REFERENCE
from irtool.errors import CheckError, IrtoolError
from irtool.hosts.onnx.files.load import load_onnx
from irtool.hosts.onnx.graph import OnnxGraph
from irtool.hosts.torch.dtypes import rounding
from irtool.hosts.torch.graph import FxGraph
from irtool.ir.graph import Graph
from irtool.nests import map_tensors
from irtool.passes import fold_batchnorm, prune
from irtool.passes.prune import Constants
from irtool.pruning import Plan
from irtool.pruning.reconstruct.restored import is_refitted
from irtool.pruning.slicing.check import TOLERANCE as EXACT
from irtool.pruning.slicing.check import MaskedCheck, check_prune, check_refitted
from irtool.workflows.equality.divergence import before_saturation, first_in_engine, first_in_onnx

FLOAT32 = 1e-4
"""Two float32 programs of the same formula: sums in another order."""


@dataclass(frozen=True)
class Link:
    """Two neighbours in the chain, run on the same inputs.

    Attributes:
        left, right: what is compared: `masked`, `sliced`, `refitted`, `folded`, `ONNX`, or an engine's title, as `MNN`.
        arithmetic: `float64` or `float32`.
        max_abs: the largest absolute difference of any output element.
        relative: that, over the largest absolute output on the left.
        tolerance: what is allowed. In float64 it bounds `relative`; in float32 one of the two errors must be within it,
            so that outputs near zero are not held to less than rounding.
        ok: whether the link holds, or is not broken as far as could be checked.
        unchecked: steps without a reference of their own. With any, the two need not agree in numbers, and only the proof
            by labels stands.
        note: what else is worth knowing: inexact steps, border effects.
        diverges: the first node where the two part; empty if they do not, or if nothing tells.
    """

    left: str
    right: str
    arithmetic: str
    max_abs: float
    relative: float
    tolerance: float
    ok: bool
    note: str = ""
    diverges: str = ""
    unchecked: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """`holds`, `BROKEN` or `unchecked`."""
        return "unchecked" if self.unchecked else "holds" if self.ok else "BROKEN"

    @property
    def name(self) -> str:
        """`left = right`."""
        return f"{self.left} = {self.right}"


@dataclass(frozen=True)
class Chain:
    """The links, in order."""

    links: tuple[Link, ...]

    @property
    def ok(self) -> bool:
        """Whether all links hold."""
        return all(link.ok for link in self.links)

    def require(
        self,
        remedy: str = "The rewrite or the engine is wrong here, so nothing is written; please report the model.",
        *,
        unchecked: bool = False,
    ) -> None:
        """Do nothing if all links hold.

        Args:
            remedy: what to do if one is broken.
            unchecked: let links pass that could not be checked, because a step has no reference of its own.

        Raises:
            CheckError: the first broken link, its errors, and the first node that diverges; or the first link that could not
                be checked, and the steps that have no reference.
        """
        for link in self.links:
            if link.unchecked and not unchecked:
                raise CheckError(
                    f"cannot be checked in numbers: no reference for {', '.join(link.unchecked[:4])}{', ...' if len(link.unchecked) > 4 else ''}",
                    where=link.name,
                    remedy="Name the layers before it in --ignore, or accept the proof by labels alone with --allow-unchecked.",
                )
            if not link.ok:
                place = f"; first diverging node: {link.diverges}" if link.diverges else ""
                raise CheckError(
                    f"differ by {link.max_abs:.2e} absolute, {link.relative:.2e} relative in {link.arithmetic}, {link.tolerance:.0e} allowed{place}",
                    where=link.name,
                    remedy=remedy,
                )

    def to_dict(self) -> list[dict[str, Any]]:
        """The links as JSON data."""
        return [{"name": link.name, "verdict": link.verdict, **asdict(link)} for link in self.links]


def masked_links(
    graph: Graph,
    plan: Plan,
    sliced: Graph,
    inputs: tuple[Any, ...],
    constants: Constants = "absorb",
    calibration: Iterable[Any] | None = None,
) -> tuple[Link, ...]:
    """The user's model against its graph, masked against sliced in float64, and the sliced graph as it is stored against that one.

    For an ONNX graph masked against sliced in onnxruntime's float32, which is what is stored.

    Args:
        graph, plan, constants, calibration: what `sliced` was made from.
        sliced: what `prune` or `reconstruct` returned for them. Of a refitted graph the slicing is shown first, then that the
            masked original with the refitted values gives the same.
        inputs: what to run on.

    Raises:
        CheckError: the graph draws random numbers, so that no two of these can be compared.
    """
    require_repeatable(graph)
    refitted = is_refitted(sliced, graph)
    if refitted:
        constants, calibration = "drop", None
    batches = None if calibration is None else list(calibration)
    found = check_prune(graph, plan, inputs, constants, batches)
    precision = "float64" if graph.arithmetic is torch.float64 else "float32"
    masked = _masked(found, precision)
    if refitted:
        own = replace(_masked(check_refitted(graph, plan, sliced, inputs), precision), right="refitted")
        return (*_traced(graph, found), masked, own)
    if sliced.arithmetic is not torch.float64:
        return (masked,)
    wide = map_tensors(batches, _double) if batches is not None else None
    stored = compare(prune(graph.widened(), plan, constants, wide), sliced, map_tensors(inputs, _double), dtype=torch.float64)
    return (*_traced(graph, found), masked, _link("sliced", "stored", "float64", stored, FLOAT32))


def _traced(graph: Graph, found: MaskedCheck) -> tuple[Link, ...]:
    """The user's model against its graph; nothing where there is no model."""
    if getattr(graph, "origin", None) is None:
        return ()
    note = "the trace decided by the example's sizes: images of other sizes give other results" if found.fixed else ""
    return (
        Link(
            "model", "traced", "float32", found.traced, found.traced, found.traced_tolerance, found.traced <= found.traced_tolerance, note
        ),
    )


def _few(places: Sequence[str]) -> str:
    """The first places of a list, and how many more there are."""
    return ", ".join(places[:3]) + (f" and {len(places) - 3} more" if len(places) > 3 else "")


def _masked(found: MaskedCheck, precision: str) -> Link:
    """Masked against sliced, with what the check has to say of it."""
    notes = [f"inexact where channels are mixed: {_few(found.inexact)}"] if found.inexact else []
    border = "constants are not exact at zero-padded borders, nor in single calls of a layer: that moves the outputs by"
    notes += [f"{border} {found.border:.1%}"] if found.border > found.tolerance else []
    wrong = found.constants > found.tolerance
    notes += ["what is absorbed is not what constant channels add"] if wrong else []
    notes += [f"no reference for {_few(found.unresolved)}: only proven by labels"] if found.unresolved else []
    return Link(
        "masked",
        "sliced",
        precision,
        found.max_abs,
        max(found.relative, found.constants),
        found.tolerance,
        not wrong and (found.relative <= found.tolerance or bool(found.unresolved)),
        "; ".join(notes),
        unchecked=found.unresolved,
    )


def folded_links(sliced: Graph, folded: Graph, inputs: tuple[Any, ...]) -> tuple[Link, ...]:
    """Sliced against folded: the rewrite in float64 (of torch graphs), and the two graphs as they are in float32."""
    wide = sliced.widened()
    if wide is sliced:
        return (_link("sliced", "folded", "float32", compare(sliced, folded, inputs), FLOAT32),)
    if sliced.arithmetic is not torch.float64:  # a file in float16, or with bfloat16 in it
        given = map_tensors(inputs, lambda tensor: tensor.float() if tensor.is_floating_point() else tensor)
        return (
            _link("sliced", "folded", "float32", compare(wide, fold_batchnorm(wide), given), FLOAT32),
            _link("sliced", "folded", "as stored", compare(sliced, folded, inputs), rounding(torch.float16)),
        )
    exact = compare(wide, fold_batchnorm(wide), map_tensors(inputs, _double))
    return (
        _link("sliced", "folded", "float64", exact, EXACT),
        _link("sliced", "folded", "float32", compare(sliced, folded, inputs), FLOAT32),
    )


def onnx_link(folded: Graph, path: Path, inputs: tuple[Any, ...], name: str = "folded") -> Link:
    """The folded graph (or what `name` calls it) against its ONNX file in onnxruntime."""
    if folded.data_sized or folded.foreign:
        found = _before_data_sizes(cast(OnnxGraph, folded), path, inputs)
    else:
        found = compare(folded, OnnxSession(path), inputs)
    link = _link(name, "ONNX", "float32", found, FLOAT32)
    if link.ok:
        return link
    if folded.trainable:
        require_repeatable(folded)
        return _placed(link, first_in_onnx(cast(FxGraph, folded), path, inputs, FLOAT32))
    return _placed(link, _first_node(folded, path, inputs))


def _before_data_sizes(graph: OnnxGraph, path: Path, inputs: tuple[Any, ...]) -> Comparison:
    """A graph against its file, by what goes into the operators that make sizes out of data."""
    names = graph.compared()
    if graph.foreign:
        return compare(graph, load_onnx(path, [tuple(leaf.shape) for leaf in inputs]), inputs)
    found = compare(lambda *given: graph.run(*given, values=names), OnnxSession(path, values=names), inputs)
    return replace(found, instead=graph.hidden_outputs())


def _first_node(graph: Graph, path: Path, inputs: tuple[Any, ...]) -> str:
    """The node where a written file parts from the ONNX graph it came from; "" if nothing tells."""
    try:
        first = compare(graph, load_onnx(path, [tuple(leaf.shape) for leaf in graph.example_inputs]), inputs).first()
    except IrtoolError:
        return ""  # the search for a place must not hide the failure that it explains
    return first.where if first is not None else ""


def graph_link(first: Graph, second: Graph, inputs: tuple[Any, ...]) -> Link:
    """Two graphs of one host: before and after passes that keep numbers."""
    return _link("original", "written", "float32", compare(first, second, inputs), FLOAT32)


def files_link(first: Path, second: Path, inputs: tuple[Any, ...]) -> Link:
    """Two ONNX files in onnxruntime; `original` and `written` by name."""
    found = _found_before_data_sizes(first, second, inputs) or compare(OnnxSession(first), OnnxSession(second), inputs)
    return _link("original", "written", "float32", found, FLOAT32)


def _found_before_data_sizes(first: Path, second: Path, inputs: tuple[Any, ...]) -> Comparison | None:
    """Compare two files by what goes into the operators that make sizes out of data; None if there are none, or irtool cannot tell."""
    try:
        graphs = [load_onnx(path, [tuple(leaf.shape) for leaf in inputs]) for path in (first, second)]
    except IrtoolError:
        return None  # a file that irtool cannot read may still be compared by its outputs
    if all(graph.foreign for graph in graphs):
        return compare(graphs[0], graphs[1], inputs)
    names = [graph.compared() for graph in graphs]
    if not all(graph.data_sized for graph in graphs) or len(names[0]) != len(names[1]):
        return None
    sessions = [OnnxSession(path, values=shown) for path, shown in zip((first, second), names, strict=True)]
    found = compare(sessions[0], sessions[1], inputs)
    return replace(found, instead=graphs[0].hidden_outputs())


def engine_link(engine: Engine, onnx_path: Path, path: Path, inputs: tuple[Any, ...]) -> Link:
    """The ONNX file in onnxruntime against an engine's file of it, in that engine."""
    allowed = engine.tolerance
    reference = OnnxSession(onnx_path)
    link = _link(REFERENCE.title, engine.title, "float32", compare(reference, engine.session(path, None), inputs), allowed)
    if link.ok:
        return link
    if engine.exact is not None:
        exact = _link(REFERENCE.title, engine.title, "float32", compare(reference, engine.exact(path), inputs), allowed)
        if exact.ok:
            note = (
                f"compared where {engine.title} rounds least; as it runs by itself it is within {link.relative:.1e} of the largest output"
            )
            return replace(exact, note=note)
    raw = before_saturation(engine, onnx_path, path, inputs)
    if raw is not None and raw[1] <= allowed:
        note = f"compared before the softmax or sigmoid at the end, after which it is {link.max_abs:.1e} absolute"
        return Link(link.left, link.right, "float32", *raw, allowed, True, note)
    return _placed(link, first_in_engine(engine, onnx_path, path, inputs))


def half_link(engine: Engine, onnx_path: Path, path: Path, inputs: tuple[Any, ...]) -> Link:
    """The ONNX file in onnxruntime against a file of it whose weights are half floats, in its engine. Weights that half floats cannot hold break it."""
    found = compare(OnnxSession(onnx_path), engine.session(path, None), inputs)
    return replace(
        _link("float", f"{engine.title}, half", "float32", found, rounding(torch.float16)),
        note="weights are rounded to half floats: that moves the outputs",
    )


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor.clone()


def _link(left: str, right: str, arithmetic: str, found: Comparison, tolerance: float) -> Link:
    error = found.relative if tolerance == EXACT else min(found.relative, found.max_abs)
    ok = error <= tolerance and not found.nonfinite and not any(output.note for output in found.outputs)
    first = None if ok else found.first(tolerance)
    notes = [output.note for output in found.outputs if output.note]
    notes += [f"the sizes of {', '.join(found.instead)} are data: compared by what goes into the operators that make them"] * bool(
        found.instead
    )
    note = "; ".join(notes)
    return Link(left, right, arithmetic, found.max_abs, found.relative, tolerance, ok, note, first.where if first is not None else "")


def _placed(link: Link, node: str) -> Link:
    return Link(**{**asdict(link), "diverges": node})
