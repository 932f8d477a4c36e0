"""Equalise the ranges of channels between layers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from numbers import Integral
from typing import ClassVar

import torch
from torch import Tensor

from irtool.errors import OptionError
from irtool.ir.graph import G, Graph, Node
from irtool.ops.batch_norm import float_param, grouped_inputs
from irtool.ops.properties import HOMOGENEOUS
from irtool.passmanager import ChangesValues, Pass, Rewritten, register


@register
@dataclass(frozen=True)
class Equalise(ChangesValues, Pass):
    """Cross-layer equalisation: scale a channel down where it is made and up where it is read. Exact.

    After Nagel et al. (2019, arXiv:1906.04721), section 4.1: with r1 the largest weight that makes channel i and r2 the largest
    that reads it, s = sqrt(r1 / r2) leaves both with sqrt(r1 r2). A tensor with one scale for all its channels then loses
    less in integers. Between the two layers only ReLU, LeakyReLU and pools may stand, with no other reader.

    Given:  %a = Conv(%x, @w1, @b1); %r = Relu(%a); %y = Conv(%r, @w2)
    Result: the same, w1[i] and b1[i] divided by s[i], w2[:, i] multiplied

    Args:
        rounds: how often all pairs are gone through: a layer in the middle of a chain belongs to two.
    """

    name: ClassVar[str] = "equalise"
    rounds: int = 3

    def __post_init__(self) -> None:
        if not isinstance(self.rounds, Integral) or self.rounds < 1:
            raise OptionError(f"rounds {self.rounds!r} is no number of rounds", remedy="Give a whole number from 1 on; 3 are usual.")

    def rewrite(self, graph: G) -> Rewritten[G]:
        """Equalise all pairs."""
        new = graph.clone()
        readers = Counter(value.name for node in new.nodes for value in node.inputs if value.is_param)
        pairs = [(node, after) for node in new.nodes if (after := _reader(new, node, readers)) is not None]
        if not pairs:
            return Rewritten(graph)
        for _ in range(self.rounds):
            for before, after in pairs:
                _equalise(new, before, after)
        new.commit()
        return Rewritten(new, (f"{len(pairs)} pairs of layers equalised",))


def _reader(graph: Graph, node: Node, readers: Counter[str]) -> Node | None:
    """The convolution that alone reads what this one makes."""
    if not _own(node, readers):
        return None
    value = node.output
    while len(value.uses) == 1 and value not in graph.outputs:
        after = value.uses[0]
        if after.op == "Conv" and after.input is value and _own(after, readers):
            return after
        if after.op not in HOMOGENEOUS or after.input is not value or len(after.outputs) != 1:
            return None
        value = after.output
    return None


def _own(node: Node, readers: Counter[str]) -> bool:
    """Whether a node is a convolution with float parameters that nobody shares."""
    if node.op != "Conv" or float_param(node, "weight") is None:
        return False
    held = [value for value in (node.get("weight"), node.get("bias")) if value is not None]
    return all(value.is_param and readers[value.name] == 1 for value in held)


def _equalise(graph: Graph, before: Node, after: Node) -> None:
    first, second = float_param(before, "weight"), float_param(after, "weight")
    assert first is not None
    assert second is not None
    groups = after.attrs.get("group", 1)
    grouped = grouped_inputs(second, groups)
    made = first.abs().flatten(1).amax(1)
    read = grouped.abs().amax((1, 3)).reshape(-1)
    usable = (made > 0) & (read > 0)
    scale = torch.where(usable, (made / read.clamp_min(1e-30)).sqrt().clamp(1e-4, 1e4), torch.ones_like(made))
    _set(graph, before, "weight", first / scale.reshape(-1, *(1,) * (first.dim() - 1)))
    bias = float_param(before, "bias")
    if bias is not None:
        _set(graph, before, "bias", bias / scale)
    _set(graph, after, "weight", (grouped * scale.reshape(groups, 1, -1, 1)).reshape(second.shape))


def _set(graph: Graph, node: Node, role: str, data: Tensor) -> None:
    value = node.operands[role]
    assert value.data is not None
    graph.set_param(value.name, data.to(value.data.dtype))
