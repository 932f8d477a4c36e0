"""Roles of ONNX operators in int8: layers that compute in integers, and operators that integers pass through. By ONNX's names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class IntegerLayer:
    """A layer with a weight as its second input.

    Attributes:
        axis: the weight's output axis; a Gemm's with `transB` is 0.
        fits: whether a node has a form that computes in integers, by its attributes, and the ranks of its weight and of its bias, if any.
    """

    axis: int
    fits: Callable[[Mapping[str, object], int, int | None], bool]


def _plain_gemm(attributes: Mapping[str, object], weight: int, bias: int | None) -> bool:
    unscaled = attributes.get("alpha", 1.0) == attributes.get("beta", 1.0) == 1.0
    return unscaled and not attributes.get("transA") and bias in (None, 1)


LAYERS: Mapping[str, IntegerLayer] = {
    "Conv": IntegerLayer(0, lambda attributes, weight, bias: weight in (3, 4)),
    "Gemm": IntegerLayer(1, _plain_gemm),
    "MatMul": IntegerLayer(1, lambda attributes, weight, bias: weight == 2),
}
JOINS = frozenset({"Add", "Mul", "AveragePool", "GlobalAveragePool", "Concat"})
"""Operators that engines have in integers, with a scale of its own for each tensor."""
MOVES = frozenset({"MaxPool", "Reshape", "Flatten", "Transpose", "Gather", "Slice", "Squeeze", "Unsqueeze", "Split", "DepthToSpace"})
"""Operators that only move or pick values: the output has the input's scale."""
RECTIFIERS = frozenset({"Relu", "Clip"})
"""Activations that become part of the layer before them, where its output range does what they do."""
POSITIVE = frozenset({"Sigmoid", "HardSigmoid", "Softmax"})
"""Operators other than rectifiers whose results are never negative."""
ENDINGS = POSITIVE | {"LogSoftmax", "Tanh", "Resize"}
"""Operators that often stand behind a last layer, and keep the order of its results."""
