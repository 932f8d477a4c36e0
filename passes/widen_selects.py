"""Turn a channel selection into zeros in the weights behind it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from numbers import Real
from typing import ClassVar

import torch
from torch import Tensor

from irtool.errors import OptionError
from irtool.ir.graph import G, Graph, Node, Value
from irtool.ops.properties import HOMOGENEOUS
from irtool.ops.rules.contraction import inputs_first
from irtool.passmanager import Pass, Rewritten, onnx_only, register

_KEEPS_CHANNELS = HOMOGENEOUS | {"Clip"}
_NO_CHANGE = {"running_var": 1.0}
"""A batch norm's numbers for a channel that is not there, where they are not 0."""


@dataclass
class _Path:
    """From a selection to the layer whose weight can take it over."""

    norms: list[Node] = field(default_factory=list)
    layer: Node | None = None
    axis: int = 1


@register
@dataclass(frozen=True)
class WidenSelects(Pass):
    """Take out a Gather of channels, and give the next layer zero weights for the channels that it left out. Exact.

    A selection moves memory (and in MNN changes its layout twice), which in a small net costs more than multiplying by
    zeros. What lies between must work on each channel by itself: batch norms get zero channels.

    Given:  %a = Gather(%x, @index) {axis: 1}; %b = BatchNormalization(%a, ...); %c = Relu(%b); %d = Conv(%c, @w)
    Result: %b = BatchNormalization(%x, ...); %c = Relu(%b); %d = Conv(%c, @wider)

    Left alone, with a note: a selection of fewer than `share` of the channels, where the zeros would cost more, and one that
    several operators read or that no convolution or product follows.

    Args:
        share: the least share of selected channels, 0 to 1.
    """

    name: ClassVar[str] = "widen_selects"
    share: float = 0.25

    def __post_init__(self) -> None:
        if not isinstance(self.share, Real) or not 0 <= self.share <= 1:
            raise OptionError(f"share {self.share!r} is no share of channels", remedy="Give 0 <= share <= 1.")

    def rewrite(self, graph: G) -> Rewritten[G]:
        """Widen where it pays.

        Raises:
            OptionError: the graph is not an ONNX graph.
        """
        onnx_only(graph, self.name)
        new, left, widened = graph.clone(), Counter[str](), 0
        for node in new.nodes:
            index = _index(node)
            if index is None:
                continue
            reason, path = _path(new, node, index, self.share)
            if path is None:
                left[reason] += 1
                continue
            _widen(new, node, path, index)
            widened += 1
        notes = [f"{count} selections stay: {reason}" for reason, count in left.items()]
        if not widened:
            return Rewritten(graph, notes)
        new.commit()
        return Rewritten(new, (f"{widened} selections became zero weights", *notes))


def _index(node: Node) -> Tensor | None:
    """The channels that a node selects from images; None if it does not do that."""
    if node.op not in ("Gather", "ChannelSelect") or node.input.shape is None or len(node.input.shape) != 4:
        return None
    index, axis = node.get("index"), node.attrs.get("axis", 1)
    if axis != 1 or index is None or index.data is None or index.data.dim() != 1:
        return None
    return index.data.long() % node.input.shape[1]


def _path(graph: Graph, select: Node, index: Tensor, share: float) -> tuple[str, _Path | None]:
    if len(index.unique()) != len(index):
        return "they select a channel twice", None
    if len(index) < share * select.input.sizes[1]:
        return f"they select less than {100 * share:.0f} % of the channels, and zeros would cost more", None
    path, node, value = _Path(), graph.only_reader(select.output), select.output
    flat = False
    while node is not None:
        if _takes_over(node, value, flat):
            path.layer, path.axis = node, 0 if node.op == "Gemm" and inputs_first(node) else 1
            shared = len(node.operands["weight"].uses) > 1
            return ("the weight behind has another reader", None) if shared else ("", path)
        if node.op == "BatchNormalization" and _is_own(node, value):
            path.norms.append(node)
        elif _flattens(node):
            flat = True
        elif node.op not in _KEEPS_CHANNELS or len(node.outputs) != 1:
            return f"{node.callee} follows", None
        value = node.output
        node = graph.only_reader(value)
    return "several operators read the result", None


def _takes_over(node: Node, value: Value, flat: bool) -> bool:
    """Whether a layer reads the channels by a stored weight with a column for each."""
    weight = node.get("weight")
    if weight is None or not weight.is_param or node.input is not value:
        return False
    conv = node.op == "Conv" and weight.sizes[1] == value.sizes[1]  # one group
    return conv or (node.op == "Gemm" and flat)


def _is_own(node: Node, value: Value) -> bool:
    """Whether a batch norm's numbers are stored, and its alone."""
    held = [operand for role, operand in node.operands.items() if role != "input"]
    return node.input is value and all(operand.is_param and len(operand.uses) == 1 for operand in held)


def _flattens(node: Node) -> bool:
    """Whether a node makes a list of channels of images of one pixel, whatever number of channels there is."""
    before, after = node.input.shape, node.output.shape if len(node.outputs) == 1 else None
    return node.callee == "Flatten" and before is not None and before[2:] == (1, 1) and after == before[:2]


def _widen(graph: Graph, select: Node, path: _Path, index: Tensor) -> None:
    channels = select.input.sizes[1]
    for node in path.norms:
        for role, value in list(node.operands.items()):
            if role != "input":
                _replace(graph, value, index, channels, 0, _NO_CHANGE.get(role, 0.0))
    assert path.layer is not None
    _replace(graph, path.layer.operands["weight"], index, channels, path.axis, 0.0)
    graph.bypass(select)


def _replace(graph: Graph, value: Value, index: Tensor, channels: int, axis: int, rest: float) -> None:
    """Spread a parameter over the selected places of an axis of `channels`, with `rest` at the others."""
    assert value.data is not None
    shape = (*value.sizes[:axis], channels, *value.sizes[axis + 1 :])
    wide = torch.full(shape, rest, dtype=value.data.dtype).index_copy(axis, index, value.data)
    graph.replace_uses(value, graph.add_param(value.name, wide))
