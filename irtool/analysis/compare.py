"""Two graphs side by side on the same inputs: how far apart, and where they part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from irtool.errors import CheckError
from irtool.ir.graph import Graph
from irtool.ir.pictures import html_table
from irtool.nests import tensors_in
from irtool.tensor_defaults import plain_tensors

FLOOR = 1e-6
"""Relative errors are measured against at least this: an output that is zero but for rounding is no difference."""

TOLERANCES: Mapping[torch.dtype | None, float] = {torch.float64: 1e-9, None: 1e-4}
"""The relative error that two equal programs may show, by the type they were asked to compute in."""

INFINITE = float("inf")


@dataclass(frozen=True, slots=True)
class Deviation:
    """Distance of one value from its reference.

    Attributes:
        name: the output's path, or the node's name.
        where: the node's location, or the output's path.
        max_abs: max|b - a|; infinite where only one of the two is finite, or the shapes differ.
        relative: max|b - a| / max(max|a|, FLOOR), a being the reference: one scale for the whole value, so that entries near
            zero do not blow it up.
        nonfinite: entries that are NaN in either, or infinite in one alone. Equal infinities agree.
        note: why it could not be compared, else empty.
    """

    name: str
    where: str
    max_abs: float
    relative: float
    nonfinite: int = 0
    note: str = ""

    def ok(self, tolerance: float) -> bool:
        """Whether the relative error is at most `tolerance` and nothing is NaN."""
        return self.relative <= tolerance and not self.nonfinite and not self.note


@dataclass(frozen=True, slots=True)
class Comparison:
    """The deviations between two programs.

    Attributes:
        outputs: a deviation per output tensor, in order.
        nodes: for two graphs, a deviation per node that both have by name, in the reference's order.
        skipped: nodes that both have, with other shapes (channels were removed): not compared.
        sources: for each node of the reference, the nodes that it reads.
        tolerance: what `ok`, `first` and `text` go by unless told: 1e-9 where float64 was asked for, else 1e-4.
        instead: outputs whose sizes are data, such as a number of detections, which a rounding may change: `outputs` holds what
            goes into the operators that make such sizes.
    """

    outputs: tuple[Deviation, ...]
    nodes: tuple[Deviation, ...] = ()
    skipped: tuple[str, ...] = ()
    sources: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    tolerance: float = TOLERANCES[None]
    instead: tuple[str, ...] = ()

    @property
    def max_abs(self) -> float:
        """The largest absolute error over all outputs."""
        return max((output.max_abs for output in self.outputs), default=0.0)

    @property
    def relative(self) -> float:
        """The largest relative error over all outputs, each against its own largest entry."""
        return max((output.relative for output in self.outputs), default=0.0)

    @property
    def nonfinite(self) -> int:
        """Output entries that are NaN in either program, or infinite in one alone."""
        return sum(output.nonfinite for output in self.outputs)

    def ok(self, tolerance: float | None = None) -> bool:
        """Whether every output is within `tolerance` (relative) and free of NaN."""
        limit = self.tolerance if tolerance is None else tolerance
        return all(output.ok(limit) for output in self.outputs)

    def first(self, tolerance: float | None = None) -> Deviation | None:
        """The node where a difference that reaches an output begins: the first in the reference's order.

        A node that differs while what reads it agrees again is no divergence: a convolution that took over its batch norm
        differs, the activation after both agrees. So the walk goes back from the outputs and stops at nodes that agree.
        """
        limit = self.tolerance if tolerance is None else tolerance
        if self.ok(limit):
            return None
        found = {node.name: node for node in self.nodes}
        waiting, reached = [name for name in self.sources if name == "output"], set()
        while waiting:
            for source in self.sources.get(waiting.pop(), ()):
                if source not in reached and not (source in found and found[source].ok(limit)):
                    reached.add(source)
                    waiting.append(source)
        return next((node for node in self.nodes if node.name in reached), None)

    def __repr__(self) -> str:
        return f"<Comparison: {self.text()}>"

    def __str__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        rows = [
            (item.name, item.max_abs, item.relative, "" if item.ok(self.tolerance) else "differs") for item in (*self.outputs, *self.nodes)
        ]
        return html_table(("output or node", "max abs", "relative", ""), rows, self.text())

    def text(self, tolerance: float | None = None) -> str:
        """One line: the errors, and where the two part if they do."""
        limit = self.tolerance if tolerance is None else tolerance
        worst = next((output for output in self.outputs if output.note), None)
        verdict, count = "equal" if self.ok(limit) else "differ", f"{len(self.outputs)} output{'s' * (len(self.outputs) != 1)}"
        parts = [f"{verdict} at tolerance {limit:.0e}: max abs {self.max_abs:.2e}, relative {self.relative:.2e} over {count}"]
        if worst is not None:
            parts.append(f"output {worst.name} {worst.note}")
        if self.nonfinite:
            parts.append(f"{self.nonfinite} entries not finite")
        first = self.first(limit)
        if first is not None:
            parts.append(f"first diverging node {first.where} (relative {first.relative:.2e})")
        if self.skipped:
            parts.append(f"{len(self.skipped)} nodes of other shapes not compared")
        return "; ".join(parts)


@plain_tensors()
def compare_graphs(a: Graph, b: Graph, inputs: Any, *, dtype: torch.dtype | None = None) -> Comparison:
    """Compare two graphs of one host node by node; by their outputs alone where they differ in what stands for outputs.

    The arguments and errors are those of `irtool.compare`, which takes other programs, too.
    """
    inputs, tolerance = arguments_of(inputs), tolerance_for(dtype)
    if len(a.compared()) != len(b.compared()):
        return compare_results(a.run_as(inputs, dtype), b.run_as(inputs, dtype), tolerance)
    lockstep = _Lockstep(a, b, inputs, dtype)
    results = lockstep.run()
    return Comparison(_outputs(*results), tuple(lockstep.found), tuple(lockstep.skipped), _sources(a), tolerance, a.hidden_outputs())


def compare_results(reference: Any, other: Any, tolerance: float) -> Comparison:
    """Compare the results of two programs, nests of tensors. Raises CheckError where these have different numbers of tensors."""
    return Comparison(_outputs(reference, other), tolerance=tolerance)


def tolerance_for(dtype: torch.dtype | None) -> float:
    """Return the relative error that two equal programs may show when they are asked to compute in a type."""
    return TOLERANCES[torch.float64 if dtype is torch.float64 else None]


def arguments_of(inputs: Any) -> tuple[Any, ...]:
    """Return positional arguments with tensors in place of arrays; one input alone is the only argument."""
    given = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    return pytree.tree_map(lambda leaf: torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf, given)


def _tensors(result: Any) -> dict[str, Tensor]:
    """The tensors in a result by their path (`[0]`, `['aux']`); arrays and numbers count as tensors."""
    found = {}
    for path, leaf in pytree.tree_leaves_with_path(result):
        if isinstance(leaf, Tensor | np.ndarray | np.generic | int | float):
            found[pytree.keystr(path)] = leaf if isinstance(leaf, Tensor) else torch.as_tensor(np.asarray(leaf))
    return found


def _outputs(a: Any, b: Any) -> tuple[Deviation, ...]:
    """Outputs are matched by path where both have the same paths, else by order."""
    reference, other = _tensors(a), _tensors(b)
    if len(reference) != len(other):
        raise CheckError(f"{len(reference)} outputs against {len(other)}", remedy="Compare programs with the same outputs.")
    by_path = reference.keys() == other.keys()
    pairs = (
        [(path, value, other[path]) for path, value in reference.items()]
        if by_path
        else zip(reference, reference.values(), other.values(), strict=True)
    )
    return tuple(deviation(path, path, x, y) for path, x, y in pairs)


def deviation(name: str, where: str, reference: Tensor, other: Tensor) -> Deviation:
    """Compare two tensors in float64; the formulas stand at `Deviation`."""
    if reference.shape != other.shape:
        note = f"has shape {tuple(reference.shape)} against {tuple(other.shape)}"
        return Deviation(name, where, INFINITE, INFINITE, note=note)
    if reference.dtype == other.dtype and reference.device == other.device and torch.equal(reference, other):
        return Deviation(name, where, 0.0, 0.0)
    wide = torch.complex128 if reference.is_complex() or other.is_complex() else torch.float64
    a, b = reference.detach().to(wide), other.detach().to(reference.device, wide)
    nans = torch.isnan(a) | torch.isnan(b)
    gap = (a - b).abs()
    gap[(a == b) | (torch.isnan(a) & torch.isnan(b))] = 0.0
    gap = gap.nan_to_num(nan=INFINITE, posinf=INFINITE)
    size = a.abs()
    scale = size[torch.isfinite(size)].max().item() if bool(torch.isfinite(size).any()) else 0.0
    largest = gap.max().item() if gap.numel() else 0.0
    return Deviation(name, where, largest, largest / max(scale, FLOOR), int((nans | torch.isinf(gap)).sum()))


def difference(expected: Any, got: Any) -> tuple[float, float]:
    """Largest absolute difference over all output tensors, and that over the largest absolute expected value; infinite if shapes differ."""
    worst, scale = 0.0, 0.0
    first, second = tensors_in(expected), tensors_in(got)
    if [a.shape for a in first] != [b.shape for b in second]:
        return float("inf"), float("inf")
    for a, b in zip(first, second, strict=True):
        if a.numel():
            gap = float((a.double() - b.double()).abs().max())
            worst = max(worst, gap if gap == gap else float("inf"))
            scale = max(scale, float(a.double().abs().max()))
    return worst, worst / scale if scale else worst


def _sources(graph: Graph) -> dict[str, tuple[str, ...]]:
    return {node.name: tuple(value.producer.name for value in node.inputs if value.producer is not None) for node in graph.nodes}


Step = tuple[str, str, list[Tensor]]
"""A node's name, its location, and the tensors it gave."""


class _Lockstep:
    """Runs two graphs at once, each up to the next node that both have."""

    def __init__(self, a: Graph, b: Graph, inputs: Sequence[Any], dtype: torch.dtype | None) -> None:
        names = [{node.name for node in graph.nodes} for graph in (a, b)]
        common = names[0] & names[1]
        self._runs = (a.run_nodes(inputs, common, dtype), b.run_nodes(inputs, common, dtype))
        self._results: list[Any] = [None, None]
        self._running = [True, True]
        self._pending: tuple[dict[str, Step], dict[str, Step]] = ({}, {})
        self._order = {node.name: index for index, node in enumerate(a.nodes)}
        self.found: list[Deviation] = []
        self.skipped: list[str] = []

    def run(self) -> tuple[Any, Any]:
        """Both results."""
        side = 0
        while any(self._running):
            if not self._running[side] or (self._pending[side] and not self._pending[1 - side]):
                side = 1 - side  # the other one will come to the node that this one waits at
            self._advance(side if self._running[side] else 1 - side)
        self.found.sort(key=lambda one: self._order[one.name])
        return self._results[0], self._results[1]

    def _advance(self, side: int) -> None:
        """Run one side up to its next common node, and compare if the other side has been there."""
        step = self._next(side)
        if step is None:
            return
        other = self._pending[1 - side].pop(step[0], None)
        if other is not None:
            self._compare(*((step, other) if side == 0 else (other, step)))
        elif self._pending[1 - side]:  # out of order: this side goes on past its own value, and work in place must not reach it
            self._pending[side][step[0]] = (step[0], step[1], [tensor.clone() for tensor in step[2]])
        else:
            self._pending[side][step[0]] = step

    def _next(self, side: int) -> Step | None:
        try:
            node, tensors = next(self._runs[side])
        except StopIteration as stop:
            self._running[side], self._results[side] = False, stop.value
            return None
        return node.name, node.location, tensors

    def _compare(self, a: Step, b: Step) -> None:
        name, where, _ = a
        if [tensor.shape for tensor in a[2]] != [tensor.shape for tensor in b[2]]:
            self.skipped.append(name)
            return
        parts = [deviation(name, where, x, y) for x, y in zip(a[2], b[2], strict=True)]
        if parts:
            worst = max(parts, key=lambda part: (part.relative, part.nonfinite))
            self.found.append(
                Deviation(name, where, max(part.max_abs for part in parts), worst.relative, sum(part.nonfinite for part in parts))
            )
