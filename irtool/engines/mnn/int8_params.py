"""MNN's compression file: a protobuf with the scales of an int8 model, built from a descriptor made here.

The messages are those of MNN's schema `MNN.Compression` (proto2); only the fields that int8 needs are described.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from irtool.quant.affine import Affine

_Field = descriptor_pb2.FieldDescriptorProto
_KINDS = {
    "string": _Field.TYPE_STRING,
    "int32": _Field.TYPE_INT32,
    "float": _Field.TYPE_FLOAT,
}
# message: (field, number, kind, repeated); a kind that is no scalar is a message of this table.
_SCHEMA: dict[str, tuple[tuple[str, int, str, bool], ...]] = {
    "Activation": (
        ("name", 1, "string", False),
        ("bits", 2, "int32", False),
        ("scales", 3, "float", True),
        ("zero_point", 4, "int32", False),
        ("clamp_min", 5, "int32", False),
        ("clamp_max", 6, "int32", False),
    ),
    "Weight": (
        ("name", 1, "string", False),
        ("bits", 2, "int32", False),
        ("scales", 3, "float", True),
        ("clamp_min", 4, "int32", False),
        ("clamp_max", 5, "int32", False),
    ),
    "Layer": (
        ("input", 1, "Activation", True),
        ("weight", 2, "Weight", True),
        ("output", 3, "Activation", True),
        ("method", 4, "int32", False),
    ),
    "Quantise": (("round_mode", 1, "int32", False), ("layer", 4, "Layer", True)),
    "Algorithm": (("type", 1, "int32", False), ("quant_params", 2, "Quantise", False)),
    "Pipeline": (("version", 1, "string", False), ("algo", 2, "Algorithm", True), ("mnn_uuid", 3, "string", False)),
}
_PACKAGE = "irtool.mnn"


@dataclass(frozen=True)
class MnnLayer:
    """One convolution of an MNN file, as its converter names it.

    Attributes:
        output: the name of its output tensor in the MNN graph: the converter finds the layer by it.
        given, result: how its input and output are quantised.
        scales: of the weight, float32 (output channels,).
        steps: the largest integer of the weight.
    """

    output: str
    given: Affine
    result: Affine
    scales: np.ndarray
    steps: int


@cache
def _messages() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="irtool_mnn_compression.proto", package=_PACKAGE, syntax="proto2")
    for name, fields in _SCHEMA.items():
        message = file.message_type.add(name=name)
        for field, number, kind, repeated in fields:
            label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
            added = message.field.add(name=field, number=number, label=label, type=_KINDS.get(kind, _Field.TYPE_MESSAGE))
            if kind not in _KINDS:
                added.type_name = f".{_PACKAGE}.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _SCHEMA}


def compression_params(layers: Sequence[MnnLayer]) -> bytes:
    """The file's content."""
    pipeline = _messages()["Pipeline"](version="0.0.0")
    algorithm = pipeline.algo.add(type=0)
    algorithm.quant_params.round_mode = 1
    for layer in layers:
        entry = algorithm.quant_params.layer.add(method=0)
        _activation(entry.input.add(), f"{layer.output}.input", layer.given)
        _activation(entry.output.add(), layer.output, layer.result)
        entry.weight.add(name=f"{layer.output}.weight", bits=8, scales=layer.scales.tolist(), clamp_min=-layer.steps, clamp_max=layer.steps)
    content: bytes = pipeline.SerializeToString()
    return content


def _activation(entry: Any, name: str, params: Affine) -> None:
    entry.name, entry.bits, entry.zero_point = name, 8, params.zero_point
    entry.scales.append(params.scale)
    entry.clamp_min, entry.clamp_max = params.grid.low, params.grid.high
