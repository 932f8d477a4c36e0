"""Reconstruction: after slicing, fit every layer to what the original gave, on what it reads in the pruned net so far.

The idea is that of ThiNet (Luo et al., 2017) and channel pruning by least squares (He et al., 2017), in the form of
GRAIL (2026): one ridge regression a layer, in closed form, without labels. Here layers are taken in order, so that each
makes up for what all before it could not; where a layer's output goes straight into an addition, it also makes up for
what the other operand lacks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from irtool.errors import DataError
from irtool.ir.frontier import Batch, Frontier
from irtool.ir.graph import Graph, Node
from irtool.ops.properties import WINDOWED
from irtool.progress import Progress, Status, silent
from irtool.pruning.absorb.contribution import channel_axis, weight_of
from irtool.pruning.reconstruct.images import size_of
from irtool.pruning.reconstruct.least_squares import KEPT_ROWS, WIDE, Fit, Regression
from irtool.pruning.reconstruct.refit import Task, tasks
from irtool.pruning.reconstruct.rows import as_blocks, from_blocks, inputs_at, outputs_at, sample
from irtool.pruning.slicing.slicing import Slicing

HELD_OUT = 4
"""One image in so many is held out."""
_FINITE = "Look at their preprocessing."
_EQUAL = {torch.float64: 1e-10}
"""The relative error below which a layer gives what it gave, by its type; 1e-5 for others."""
_SAME = 1e-6
"""Rows that differ by less than this share of their size are the same."""
_NEGLIGIBLE = 1e-6
"""A scale this much smaller than the largest hides its channel."""


@dataclass(frozen=True)
class Refitted:
    """One layer that was refitted, or the reason why it was not.

    Attributes:
        location: the layer.
        before, after: the error of its output, or of the sum that it goes into, on images that were held out, relative to how
            much that varies.
        strength: the penalty of the regression; None if only the bias changed, or nothing did.
        changed: `"weight"`, `"bias"` or `""`.
    """

    location: str
    before: float
    after: float
    strength: float | None
    changed: str

    def __str__(self) -> str:
        what = {"weight": f"weights, strength {self.strength:g}" if self.strength is not None else "", "bias": "bias alone"}
        if not self.changed:
            return f"{self.location}: error {self.before:.3g}, nothing fits better"
        return f"{self.location}: error {self.before:.3g} -> {self.after:.3g} ({what[self.changed]})"


@dataclass
class Outcome:
    """The result of a reconstruction.

    Attributes:
        layers: a record for each layer that gives other outputs than it gave.
        gains: for a layer's name, what its bias gained, float64, (outputs,).
        notes: what was left alone, and why.
        constant: layers that read the same at all sampled positions of all images, so that these say nothing about their weights.
    """

    layers: list[Refitted] = field(default_factory=list)
    gains: dict[str, Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    constant: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Sample:
    """Sampled positions of one layer in one batch: the images that they are of, the aim there (rows, outputs), the sizes of the output."""

    places: Tensor
    images: Tensor
    aim: Tensor
    made: tuple[int, ...]


@dataclass
class Reconstruction:
    """The walk.

    Args:
        slicings: the proven slicings that lead from the original to the sliced graph: they say what stayed where.
        new: the graph of the last, filled: weights are exchanged in it.
        batches: arguments of the graphs.
        weights: whether weights may change, or biases alone.
        ignore: layers that stay as they are.
        positions: of each layer's output, sampled from each image.
        memory: bytes that the samples of all layers may take together.
        seed: of the positions.
        progress: told of it.
    """

    slicings: Sequence[Slicing[Any]]
    new: Graph
    batches: Sequence[Batch]
    weights: bool = True
    ignore: Sequence[str] = ()
    positions: int = 128
    memory: int = 1 << 30
    seed: int = 0
    progress: Progress = silent
    _samples: dict[tuple[str, int], _Sample] = field(default_factory=dict)

    @torch.no_grad()
    def run(self) -> Outcome:
        """Fit the layers in order."""
        found, notes = tasks(self.slicings, self.new, self.ignore)
        outcome = Outcome(notes=notes)
        frontier = self.new.side_by_side(self.batches, [task.stop for task in found])
        found = [task for task in found if frontier.usable(task.stop)]
        self._observe(found)
        with frontier.running():
            for number, task in enumerate(found):
                self.progress(Status("reconstruct", number, len(found)))
                frontier.advance(task.node)
                self._fit(task, frontier, outcome)
        self.progress(Status("reconstruct", len(found), len(found)))
        if outcome.constant:
            what = f"{len(outcome.constant)} of {len(found)} layers, as {outcome.constant[0]}, read the same everywhere on these images"
            outcome.notes.append(f"{what}: of their weights the images say nothing, and they keep them")
        return outcome

    def _observe(self, found: Sequence[Task]) -> None:
        """Run the original, and sample what each layer gave."""
        aims: dict[str, list[tuple[int, Task]]] = {}
        for number, task in enumerate(found):
            aims.setdefault(task.watched, []).append((number, task))
        channels = sum(task.node.output.sizes[channel_axis(task.node, task.node.output)] for task in found)
        images = sum(map(size_of, self.batches))
        each = max(1, min(self.positions, self.memory // max(channels * images * 8, 1)))
        for number, batch in enumerate(self.batches):
            self.progress(Status("run the original", number, len(self.batches)))

            def seen(name: str, value: Tensor, number: int = number, size: int = size_of(batch)) -> None:
                for place, task in aims[name]:
                    self._samples[task.node.name, number] = self._sample(task, value, size, each, (place << 24) + number)

            (self.slicings[0].origin or self.slicings[0].labels.graph).observe(batch, set(aims), seen)

    def _sample(self, task: Task, value: Tensor, size: int, each: int, seed: int) -> _Sample:
        value = task.aligned(value)
        axis = channel_axis(task.node, task.node.output)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + seed)
        drawn = sample(value.numel() // value.shape[axis], size, each, generator)
        aim = outputs_at(task.node, value, drawn.places, task.kept)
        if not bool(torch.isfinite(aim).all()):
            raise DataError(
                "the original gives values that are not finite on these images",
                where=task.node.location,
                remedy=_FINITE,
            )
        return _Sample(drawn.places, drawn.images, aim.clone(), tuple(value.shape))

    def _fit(self, task: Task, frontier: Frontier, outcome: Outcome) -> None:
        """Fit one layer, and put what was found in its place."""
        node, weight = task.node, _data(task.node)
        blocks = as_blocks(node, weight.double())
        regression, spread, read = Regression(blocks.shape[2]), _Spread(), _Spread()
        for number, rows in enumerate(self._rows(task, frontier, blocks)):
            if number == 0 and not _computes(rows, task, frontier):
                outcome.notes.append(f"{node.location}: left as it is (it does not compute what its attributes say)")
                break
            if not bool(torch.isfinite(rows.read).all()):
                raise DataError("reads values that are not finite on these images", where=node.location, remedy=_FINITE)
            regression.add(rows.read, rows.lacking, rows.held)
            spread.add(rows.aim)
            read.add(rows.read.flatten(1))
        for number in range(len(self.batches)):
            self._samples.pop((node.name, number), None)
        variance = spread.variance()
        if variance is None:
            return
        same = read.is_constant()
        if same:
            outcome.constant.append(node.location)
        fit = regression.solve(weights=self.weights and not same)
        if fit.before <= variance * _EQUAL.get(weight.dtype, 1e-5) ** 2:
            return
        self._apply(task, fit, blocks, frontier, outcome)
        changed = "weight" if fit.weight is not None else "bias" if fit.bias is not None else ""
        before, after = ((part / max(variance, 1e-30)) ** 0.5 for part in (fit.before, fit.after))
        outcome.layers.append(Refitted(node.location, before, after, fit.strength, changed))

    def _rows(self, task: Task, frontier: Frontier, blocks: Tensor) -> Iterator[_Rows]:
        """Yield a layer's inputs at the sampled positions and the outputs that it lacks there, batch by batch."""
        node, bias, first = task.node, task.node.get("bias"), 0
        old = bias.data.double() if bias is not None and bias.data is not None else blocks.new_zeros(blocks.shape[:2].numel())
        scale, shift = task.scale.to(blocks), task.shift.to(blocks)
        step = -(-sum(len(self._samples[node.name, n].places) for n in range(len(self.batches))) // KEPT_ROWS)
        step = step if blocks.shape[2] > WIDE else 1
        few = sum(map(size_of, self.batches)) < 2 * HELD_OUT
        for number, batch in enumerate(self.batches):
            taken = self._samples[node.name, number]
            places, images, aim = taken.places[::step], taken.images[::step] + first, taken.aim[::step].double()
            first += size_of(batch)
            x = frontier.value(number, node.input)
            read = inputs_at(node, x, taken.made, places).double()
            made = torch.einsum("rgi,goi->rgo", read, blocks).flatten(1) + old
            if task.other is None:
                aim = aim * scale + shift
            else:
                aim = aim - outputs_at(node, frontier.value(number, task.other), places).double()
            lacking = (aim - made * scale - shift).reshape(len(places), *blocks.shape[:2])
            held = (torch.arange(len(places)) if few else images) % HELD_OUT == HELD_OUT - 1
            yield _Rows(x, places, made, read, aim, lacking, held)

    def _apply(self, task: Task, fit: Fit, blocks: Tensor, frontier: Frontier, outcome: Outcome) -> None:
        """Take a fit over into the layer: the regression was of what comes after a scale."""
        if fit.bias is None:
            return
        node, scale = task.node, task.scale.to(blocks).reshape(blocks.shape[:2])
        visible = scale.abs() > _NEGLIGIBLE * scale.abs().max()
        back = torch.where(visible, 1 / torch.where(visible, scale, 1.0), 0.0)
        gain = (fit.bias * back).flatten()
        if bool(gain.any()):
            outcome.gains[node.name] = gain
            after = len(node.output.sizes) - 1 - channel_axis(node, node.output)
            frontier.added[node.name] = gain.reshape([-1] + [1] * after)
        if fit.weight is not None:
            value = weight_of(node)
            assert value is not None
            self.new.set_param(value.name, from_blocks(node, blocks + fit.weight * back[:, :, None], _data(node)))


@dataclass(frozen=True)
class _Rows:
    """Rows of one layer in one batch: its whole input; at sampled positions output, input, aim and error; and those that are held out."""

    x: Tensor
    places: Tensor
    made: Tensor
    read: Tensor
    aim: Tensor
    lacking: Tensor
    held: Tensor


def _computes(rows: _Rows, task: Task, frontier: Frontier) -> bool:
    """Whether the rows and the weight give what the layer itself gives, on the first image."""
    node, x = task.node, rows.x
    batched = x.dim() > (_data(node).dim() - 1 if node.op in WINDOWED else 1)
    result = frontier.output(node, x[:1] if batched else x)
    own = rows.places < result.numel() // rows.made.shape[1]
    expected = outputs_at(node, result, rows.places[own]).double()
    wide = x.dtype in (torch.float32, torch.float64)
    limit = (1e-3 if wide else 5e-2) * max(float(result.double().abs().max()), 1e-6)
    return not bool(own.any()) or float((expected - rows.made[own]).abs().max()) <= limit


def _data(node: Node) -> Tensor:
    """A layer's weight."""
    weight = weight_of(node)
    assert weight is not None
    assert weight.data is not None
    return weight.data


class _Spread:
    """Variance of rows, summed over channels."""

    def __init__(self) -> None:
        self._count, self._sum, self._squares = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """Take in rows (rows, channels)."""
        self._count += len(rows)
        self._sum, self._squares = self._sum.to(rows) + rows.sum(0), self._squares.to(rows) + rows.square().sum(0)

    def is_constant(self) -> bool:
        """Whether all rows are the same, but for rounding."""
        return (self.variance() or 0.0) <= _SAME**2 * float(self._squares.sum()) / max(self._count, 1)

    def variance(self) -> float | None:
        """Variance of all channels together; None without rows."""
        if not self._count:
            return None
        mean = self._sum / self._count
        return float((self._squares / self._count - mean.square()).clamp(min=0).sum())
