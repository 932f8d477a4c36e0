"""Operators of an ONNX program that draw random numbers each time it runs."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from irtool.hosts.onnx.files.normalize import STANDARD

DRAWING = frozenset({"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"})
"""Operators that give something else each time."""


def draws(node: gs.Node) -> bool:
    """Whether an operator draws: one of the above, or a dropout whose third input may say that the model is in training."""
    if node.domain not in STANDARD:
        return False
    if node.op != "Dropout" or len(node.inputs) < 3:
        return node.op in DRAWING
    mode = node.inputs[2]
    return bool(mode.name) and not (isinstance(mode, gs.Constant) and not np.asarray(mode.values).any())
