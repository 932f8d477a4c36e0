"""Inputs and outputs of a layer at sampled positions of its output, as rows of a linear map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import NodeProto, helper

from irtool.quant.placement import Layer

Array = np.ndarray


def inputs_at(layer: Layer, node: NodeProto, x: Array, weight: tuple[int, ...], places: Callable[[int, int], Array]) -> Array | None:
    """Gather what a layer reads for sampled positions of its output.

    Args:
        layer: a convolution, or a product whose inputs lie along the last axis.
        node: its node.
        x: its input.
        weight: the shape of its weight.
        places: called with the number of images and of positions in each; returns positions of each image, (images, some).

    Returns:
        (rows, groups, inputs of a group times taps), image by image; None where the windows cannot be told.
    """
    if layer.op != "Conv":
        flat = x.reshape(-1, x.shape[-1])
        each = len(flat) // len(x)
        chosen = places(len(x), each)
        return flat.reshape(len(x), each, -1)[np.arange(len(x))[:, None], chosen].reshape(chosen.size, 1, -1)
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    axes, kernel = len(weight) - 2, weight[2:]
    if attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        return None
    strides, dilations = (attributes.get(name, [1] * axes) for name in ("strides", "dilations"))
    pads = attributes.get("pads", [0] * 2 * axes)
    padded = np.pad(x, [(0, 0), (0, 0), *zip(pads[:axes], pads[axes:], strict=True)])
    spans = tuple((size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True))
    seen = np.lib.stride_tricks.sliding_window_view(padded, spans, tuple(range(2, 2 + axes)))
    seen = seen[(slice(None), slice(None), *(slice(None, None, step) for step in (*strides, *dilations)))]
    sizes = seen.shape[2 : 2 + axes]
    chosen = places(len(x), int(np.prod(sizes)))
    image = np.repeat(np.arange(len(x)), chosen.shape[1])
    there: tuple[Any, ...] = (image, slice(None), *np.unravel_index(chosen.reshape(-1), sizes))
    rows = seen[there]
    return rows.reshape(len(rows), layer.groups, -1)


def outputs_at(layer: Layer, y: Array, places: Callable[[int, int], Array]) -> Array:
    """Gather what a layer gives at the same positions: (rows, outputs)."""
    if layer.op != "Conv":
        flat = y.reshape(len(y), -1, y.shape[-1])
    else:
        flat = y.reshape(*y.shape[:2], -1).transpose(0, 2, 1)
    chosen = places(len(y), flat.shape[1])
    return flat[np.arange(len(y))[:, None], chosen].reshape(chosen.size, -1)
