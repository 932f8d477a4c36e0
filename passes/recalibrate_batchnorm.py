"""Estimate the statistics of batch norms anew, on a calibration set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from irtool.errors import OptionError
from irtool.ir.frontier import Batch, Stop
from irtool.ir.graph import G, Graph, Node
from irtool.ops.batch_norm import not_fixed
from irtool.passmanager import ChangesValues, Pass, Rewritten, register
from irtool.pruning.reconstruct.images import require_information

Method = Literal["pooled", "exact"]


@register
@dataclass(frozen=True)
class RecalibrateBatchNorm(ChangesValues, Pass):
    """Give each batch norm the mean and variance of what it reads on a calibration set. No weight is trained, no label needed.

    Removing channels moves what later batch norms read, and their stored statistics no longer fit. (Statistics measured anew are
    an old remedy; Li et al., 2020, "EagleEye", rank pruned nets by their accuracy after it.)

    Given:  %bn = BatchNormalization(%x, @bn.weight, @bn.bias, @bn.running_mean, @bn.running_var)
    Result: the same text; @bn.running_mean and @bn.running_var hold the mean and variance of %x over all calibration images

    Attributes:
        batches: inputs of the graph: a tensor, or a tuple of them, for each batch. More than one value a channel in all. Show
            images as training showed them (`data.sample(count, augment=...)`): padding and crops are part of the statistics.
        method: `"pooled"`: each batch is normalised by its own statistics on its way, as in training, and the moments of all
            batches are put together; memory for one batch. `"exact"`: all batches advance together, so that each batch norm
            reads what it will read in use; memory for all batches.
    """

    name: ClassVar[str] = "recalibrate_batchnorm"
    exact: ClassVar[bool] = False

    batches: Iterable[Any]
    method: Method = "pooled"

    def __post_init__(self) -> None:
        if self.method not in ("pooled", "exact"):
            raise OptionError(f"method {self.method!r} does not exist", remedy="Choose pooled or exact.")
        if not isinstance(self.batches, Iterable):
            raise OptionError(f"batches {self.batches!r} hold no images", remedy="Give some: batches=data.sample(512).split(64).")

    def rewrite(self, graph: G) -> Rewritten[G]:
        """Run the calibration set through a copy.

        Raises:
            GraphError: a batch does not fit.
            DataError: all batches hold one value in every position.
            OptionError: no batches, a single value a channel, or a batch that is empty or gives values that are not finite.
        """
        norms = _fixed(graph)
        left = [node for node in graph.nodes if node.op == "BatchNormalization" and node not in norms]
        notes = tuple(f"{node.location}: {not_fixed(node)}" for node in left)
        if not norms:
            return Rewritten(graph, notes)
        new = graph.clone()
        batches = [batch if isinstance(batch, tuple) else (batch,) for batch in self.batches]
        if not batches:
            raise OptionError("no calibration batches", remedy="Give some images: batches=data.sample(512).split(64).")
        found, shared = _measured(graph, batches, together=self.method == "exact")
        for node in norms:
            moments = found[node.operands["running_mean"].name]
            _give(new, node, moments.mean, moments.unbiased())
        require_information(batches)
        return Rewritten(new, (f"{len(norms)} batch norms recalibrated", *notes, *shared))


@dataclass
class _Moments:
    """Running mean and summed squared deviation of each channel, float64, by Chan, Golub and LeVeque's pairwise update."""

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    squares: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    def add(self, x: Tensor) -> None:
        """Take in a tensor (N, C, ...)."""
        axes = [axis for axis in range(x.dim()) if axis != 1]
        var, mean = (part.double() for part in torch.var_mean(x, axes, correction=0))
        count = x.numel() // x.shape[1]
        total, away = self.count + count, mean - self.mean
        self.squares = self.squares + var * count + away.square() * (self.count * count / total)
        self.mean = self.mean + away * (count / total)
        self.count = total

    def unbiased(self) -> Tensor:
        """The variance that batch norm keeps: squares over count - 1."""
        if self.count < 2:
            raise OptionError("one value a channel has no variance", remedy="Give at least two images.")
        return self.squares / (self.count - 1)

    def biased(self) -> Tensor:
        """The variance that batch norm divides by in training."""
        return self.squares / self.count


def _fixed(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes if node.op == "BatchNormalization" and not_fixed(node) is None]


def _measured(graph: Graph, batches: Sequence[Batch], *, together: bool) -> tuple[dict[str, _Moments], list[str]]:
    """Moments of what is read under each name of a mean, and notes on where they are not quite those of use."""
    copy, found, numbered = graph.clone(), dict[str, _Moments](), dict(enumerate(batches))
    norms = _fixed(copy)
    for group in [numbered] if together else [{number: batch} for number, batch in numbered.items()]:
        _advance(copy, norms, group, found, biased=not together)
    counts = Counter(node.operands["running_mean"].name for node in norms)
    shared = [
        f"{name} serves {count} batch norms: in use none reads quite what was measured" for name, count in counts.items() if count > 1
    ]
    return found, shared if together else []


def _advance(graph: Graph, norms: Sequence[Node], group: Mapping[int, Batch], found: dict[str, _Moments], *, biased: bool) -> None:
    """Run batches side by side, from batch norm to batch norm; each is normalised by the moments of the whole group."""
    stops = [Stop(node, [(node.input, node)]) for node in norms]
    frontier = graph.side_by_side(list(group.values()), stops)
    with frontier.running(), torch.no_grad():
        for node in norms:
            frontier.advance(node)
            here, total = _Moments(), found.setdefault(node.operands["running_mean"].name, _Moments())
            for place, number in enumerate(group):
                value = frontier.value(place, node.input)
                _refuse_useless(value, node, number)
                here.add(value)
                total.add(value)
            _give(graph, node, here.mean, here.biased() if biased else here.unbiased())


def _give(graph: Graph, node: Node, mean: Tensor, var: Tensor) -> None:
    """Let a batch norm normalise by other statistics."""
    for role, data in (("running_mean", mean), ("running_var", var)):
        value = node.operands[role]
        assert value.data is not None
        graph.set_param(value.name, data.to(value.data))


def _refuse_useless(value: Tensor, node: Node, number: int) -> None:
    if not value.numel():
        raise OptionError(f"calibration batch {number} is empty", remedy="Leave it out; batches are counted from 0.")
    if not torch.isfinite(value).all():
        raise OptionError(
            f"calibration batch {number} gives values that are not finite",
            where=node.location,
            remedy="Look for NaN and infinity in its images; batches are counted from 0.",
        )
