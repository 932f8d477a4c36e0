"""Operators of an ONNX host that scale and shift each channel: y = scale * x + shift."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

Affine = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Scale and shift, float64 (channels,)."""


def channel_affine(node: gs.Node, channels: int, rank: int) -> Affine | None:
    """A node as scale and shift of axis 1, or None if it is not that.

    Args:
        node: a BatchNormalization in inference, or a Mul, Add, Sub or Div by a constant that varies along axis 1 alone.
        channels: the size of axis 1.
        rank: of the tensor that flows.
    """
    read = _READERS.get(node.op)
    return read(node, channels, rank) if read is not None and len(node.outputs) == 1 else None


def _batchnorm(node: gs.Node, channels: int, _rank: int) -> Affine | None:
    values = [np.asarray(t.values, np.float64) for t in node.inputs[1:] if isinstance(t, gs.Constant)]
    if len(values) != 4 or node.attrs.get("training_mode"):
        return None
    gamma, beta, mean, var = values
    scale = gamma / np.sqrt(var + node.attrs.get("epsilon", 1e-5))
    return scale, beta - mean * scale


def _arithmetic(node: gs.Node, channels: int, rank: int) -> Affine | None:
    constants = [slot for slot, tensor in enumerate(node.inputs) if isinstance(tensor, gs.Constant)]
    if len(constants) != 1 or (constants[0] == 0 and node.op in ("Sub", "Div")):
        return None
    values = np.asarray(node.inputs[constants[0]].values, np.float64)
    shape = (1,) * (rank - values.ndim) + values.shape
    if len(shape) != rank or any(size != 1 for axis, size in enumerate(shape) if axis != 1) or shape[1] not in (1, channels):
        return None
    row = np.broadcast_to(values.reshape(-1), (channels,)).copy()
    one, zero = np.ones(channels), np.zeros(channels)
    forms: dict[str, Callable[[], Affine]] = {
        "Mul": lambda: (row, zero),
        "Div": lambda: (1 / row, zero),
        "Add": lambda: (one, row),
        "Sub": lambda: (one, -row),
    }
    return forms[node.op]()


_READERS: dict[str, Callable[[gs.Node, int, int], Affine | None]] = {
    "BatchNormalization": _batchnorm,
    **dict.fromkeys(("Mul", "Add", "Sub", "Div"), _arithmetic),
}


def flowing(node: gs.Node) -> gs.Variable:
    """The input of such a node that is no constant."""
    return next(tensor for tensor in node.inputs if not isinstance(tensor, gs.Constant))


def only_reader(host: gs.Graph, tensor: gs.Tensor) -> gs.Node | None:
    """The node that alone reads a tensor which is no output of the graph."""
    if len(tensor.outputs) != 1 or any(tensor is output for output in host.outputs):
        return None
    return tensor.outputs[0]
