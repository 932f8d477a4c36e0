"""Nodes that MNN is given in integers: not those that it computes wrong in them, nor those whose result is the model's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx

from irtool.quant.placement import DefUse, Int8Policy, Layer, Sizes, is_result, non_negative


def mnn_unfit(wiring: DefUse) -> dict[int, str]:
    """The nodes that MNN 3.6 computes wrong or badly in integers on x86.

    There it stores an integer with 128 added, in an unsigned byte. Its maximum compares the bytes as signed ones, so that any
    negative number is more than any other; where none is negative the order is right. A window larger than the image reads beside
    it. Its mean has the scale of what is averaged,
    whose range is wider than a mean's, and leaves padding out of the count. It interpolates past the end of the range.
    """
    positive = non_negative(wiring)
    found = {}
    for index, node in enumerate(wiring.nodes):
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        known = wiring.shapes.get(node.input[0])
        if node.op_type in _WRONG_IN_MNN and _WRONG_IN_MNN[node.op_type](attributes, node.input[0] in positive, known):
            found[index] = "MNN computes it wrong, or rounds it too much, in integers"
    return found


def mnn_better(wiring: DefUse, layer: Layer) -> str | None:
    """Say why a layer is better computed in float in MNN: in 8 bits the two best classes often get the same number."""
    return "its result is the model's, which 8 bits would round too much" if is_result(wiring, layer.output) else None


def _overhangs(attributes: Mapping[str, Any], shape: Sizes | None) -> bool:
    """Whether a pool's window may be larger than its image."""
    pads = any(attributes.get("pads", ())) or attributes.get("auto_pad", b"").startswith(b"SAME")
    kernel = attributes["kernel_shape"]
    sides = shape[2:] if shape is not None else (None,) * len(kernel)
    return pads and any(side is None or side < window for side, window in zip(sides, kernel, strict=True))


_WRONG_IN_MNN: dict[str, Callable[[Mapping[str, Any], bool, Sizes | None], bool]] = {
    "MaxPool": lambda attributes, positive, shape: not positive or _overhangs(attributes, shape),
    "GlobalMaxPool": lambda _attributes, positive, _shape: not positive,
    "AveragePool": lambda _attributes, _positive, _shape: True,
    "GlobalAveragePool": lambda _attributes, _positive, _shape: True,
    "Resize": lambda attributes, _positive, _shape: attributes.get("mode", b"nearest") != b"nearest",
}
"""Whether a node is unfit, by its attributes, whether its input cannot be negative, and the input's shape where it is known."""

MNN_POLICY = Int8Policy(outputs=True, unfit=mnn_unfit, better=mnn_better)
