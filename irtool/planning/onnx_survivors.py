"""Operators that mix channels, written so that they compute from the channels that stay: what a sliced ONNX graph does there.

The counterpart of `analysis.survivors`, which computes on tensors, for a reference that is itself an ONNX graph: the
surviving channels are gathered in front of the operator, and its result is spread out again.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from torch import Tensor

from irtool.ir.graph import Node

_PER_CHANNEL: dict[str, tuple[int, ...]] = {
    "LRN": (), "Cumsum": (), "LpNormalization": (), "Softmax": (), "Reduce": (), "LayerNormalization": (1, 2), "RMSNormalization": (1,),
    "GroupNormalization": (1, 2),
}  # fmt: skip
"""Operators that have this form, and which of their inputs hold a number for each channel."""


def on_survivors(node: Node, own: gs.Node, stays: Tensor) -> list[gs.Node] | None:
    """Rewire one host node in place so that it sees the surviving channels alone.

    Args:
        node: its view.
        own: the host node, of a copy of the program.
        stays: which channels of its first input stay, of the label shape (size 1 along axes without channels).

    Returns:
        The nodes in its place, itself among them. The result holds any number where a channel was removed: whoever reads
        it must mask it. None where this has no plain form; nothing is changed then.
    """
    axes = [axis for axis, size in enumerate(stays.shape) if size > 1]
    places = _PER_CHANNEL.get(node.op)
    if places is None or len(axes) != 1 or len(own.outputs) != 1:
        return None
    kept = stays.reshape(-1).numpy().nonzero()[0]
    parameters = {place: own.inputs[place] for place in places if len(own.inputs) > place and own.inputs[place].name}
    if any(not isinstance(tensor, gs.Constant) or tuple(tensor.shape) != (stays.numel(),) for tensor in parameters.values()):
        return None
    for place, tensor in parameters.items():
        own.inputs[place] = gs.Constant(f"{own.name}.survivors_{place}", np.asarray(tensor.values)[kept])
    part, raw = gs.Variable(f"{own.name}.survivors"), gs.Variable(f"{own.name}.of_survivors")
    gather = _gather(f"{own.name}.pick", own.inputs[0], kept, axes[0], part)
    own.inputs[0] = part
    if node.op == "Reduce":
        return [gather, own]
    output = own.outputs[0]
    own.outputs[0] = raw
    place_of = np.zeros(stays.numel(), np.int64)
    place_of[kept] = np.arange(len(kept))
    return [gather, own, _gather(f"{own.name}.spread", raw, place_of, axes[0], output)]


def _gather(name: str, source: gs.Tensor, index: NDArray[np.int64], axis: int, result: gs.Variable) -> gs.Node:
    return gs.Node("Gather", name, {"axis": axis}, [source, gs.Constant(f"{name}.index", index.astype(np.int64))], [result])
