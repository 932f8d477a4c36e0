"""Turn a channel selection into zeros in the weights behind it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from numbers import Real
from typing import ClassVar, cast

import numpy as np
import onnx_graphsurgeon as gs

from irtool.errors import OptionError
from irtool.hosts.onnx.affine import only_reader
from irtool.hosts.onnx.graph import OnnxGraph
from irtool.ir.graph import G
from irtool.passmanager import Pass, Rewritten, onnx_only, register

_KEEPS_CHANNELS = frozenset({"Relu", "Clip", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool"})
_LAST_ROLES = {"BatchNormalization": (0.0, 0.0, 0.0, 1.0)}


@dataclass
class _Path:
    """From a selection to the layer whose weight can take it over."""

    norms: list[gs.Node] = field(default_factory=list)
    layer: gs.Node | None = None
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
        new = onnx_only(graph, self.name).clone()
        sizes = {value.name: value.shape for node in new.nodes for value in (*node.inputs, *node.outputs)}
        left, widened = Counter[str](), 0
        for node in [node for node in new.host.nodes if node.op == "Gather"]:
            shape = sizes.get(node.inputs[0].name)
            index = _index(node)
            if index is None or shape is None or len(shape) != 4:
                continue
            reason, path = _path(new.host, node, index, shape[1], self.share)
            if path is None:
                left[reason] += 1
                continue
            _widen(new, node, path, index, shape[1])
            widened += 1
        notes = [f"{count} selections stay: {reason}" for reason, count in left.items()]
        if not widened:
            return Rewritten(graph, notes)
        new.tidied()
        return Rewritten(cast(G, new), (f"{widened} selections became zero weights", *notes))


def _index(node: gs.Node) -> np.ndarray | None:
    held = node.inputs[1]
    if node.attrs.get("axis", 0) != 1 or not isinstance(held, gs.Constant) or len(held.shape) != 1:
        return None
    return np.asarray(held.values)


def _path(host: gs.Graph, select: gs.Node, index: np.ndarray, channels: int, share: float) -> tuple[str, _Path | None]:
    if len(set((index % channels).tolist())) != len(index):
        return "they select a channel twice", None
    if len(index) < share * channels:
        return f"they select less than {100 * share:.0f} % of the channels, and zeros would cost more", None
    path, flat = _Path(), False
    node = only_reader(host, select.outputs[0])
    while node is not None:
        if node.op == "Conv" and node.attrs.get("group", 1) == 1 and isinstance(node.inputs[1], gs.Constant):
            path.layer = node
        if node.op == "Gemm" and flat and isinstance(node.inputs[1], gs.Constant) and not node.attrs.get("transA"):
            path.layer, path.axis = node, 1 if node.attrs.get("transB") else 0
        if path.layer is not None:
            return ("the weight behind has another reader", None) if len(path.layer.inputs[1].outputs) > 1 else ("", path)
        if node.op == "BatchNormalization" and all(isinstance(t, gs.Constant) and len(t.outputs) == 1 for t in node.inputs[1:]):
            path.norms.append(node)
        elif node.op == "Flatten" and node.attrs.get("axis", 1) == 1 and _pooled(node):
            flat = True
        elif node.op not in _KEEPS_CHANNELS:
            return f"{node.op} follows", None
        node = only_reader(host, node.outputs[0])
    return "several operators read the result", None


def _pooled(flatten: gs.Node) -> bool:
    """Whether what is flattened has one pixel."""
    producers = flatten.inputs[0].inputs
    return bool(producers) and producers[0].op == "GlobalAveragePool"


def _widen(graph: OnnxGraph, select: gs.Node, path: _Path, index: np.ndarray, channels: int) -> None:
    for node in path.norms:
        for slot, rest in zip(range(1, 5), _LAST_ROLES["BatchNormalization"], strict=True):
            node.inputs[slot].values = _spread(np.asarray(node.inputs[slot].values), index, channels, 0, rest)
    assert path.layer is not None
    weight = path.layer.inputs[1]
    weight.values = _spread(np.asarray(weight.values), index, channels, path.axis, 0.0)
    reader = only_reader(graph.host, select.outputs[0])
    assert reader is not None
    slot = next(slot for slot, tensor in enumerate(reader.inputs) if tensor is select.outputs[0])
    reader.inputs[slot] = select.inputs[0]
    select.inputs.clear()
    select.outputs.clear()
    graph.host.nodes.remove(select)


def _spread(values: np.ndarray, index: np.ndarray, channels: int, axis: int, rest: float) -> np.ndarray:
    """The values at the selected places of an axis of `channels`, and `rest` at the others."""
    shape = (*values.shape[:axis], channels, *values.shape[axis + 1 :])
    wide = np.full(shape, rest, values.dtype)
    wide[(slice(None),) * axis + (index,)] = values
    return wide
