"""Models of one layer, or one element-wise operator, to be timed alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

COPIES = 4
"""Layers that read one input side by side, so that changing its layout counts little. Each ends in a global mean, as small as may be."""
CHAIN = 8
"""Element-wise operators that follow one another."""
MOST_WEIGHTS = 2**22
"""Entries of a sample's weight. Of larger layers a narrower one is timed."""


@dataclass(frozen=True)
class Sample:
    """One thing that is timed.

    Attributes:
        op: `Conv`, `ConvTranspose`, `Gemm`, or an element-wise operator.
        size: the input's axes after batch and channels; of element-wise operators all but the batch.
        kernel, stride, padding, dilation: of convolutions, a number an axis of `size`.
        groups: of convolutions; 0 for depthwise.
        inputs, outputs: channels.
    """

    op: str
    size: tuple[int, ...]
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    inputs: int = 0
    outputs: int = 0

    @property
    def key(self) -> str:
        """A name that says all of it."""
        numbers = (self.size, self.kernel, self.stride, self.padding, self.dilation)
        shape = " ".join(f"{mark}{'x'.join(map(str, values))}" for mark, values in zip(" kspd", numbers, strict=True) if values)
        return f"{self.op} {shape.strip()} g{self.groups} {self.inputs}>{self.outputs}"

    @property
    def repeats(self) -> int:
        """Count how many times the model holds it."""
        return COPIES if self.op in LAYERS else CHAIN

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the model's input."""
        return (1, self.inputs, *self.size) if self.op in LAYERS else (1, *self.size)


LAYERS = ("Conv", "ConvTranspose", "Gemm")
ELEMENTWISE = ("Add", "Mul", "Relu", "Sigmoid", "HardSigmoid", "HardSwish", "Swish")


def model_of(samples: Sequence[Sample]) -> ModelProto:
    """A model in which sample number i reads the input `x<i>` and gives the output `y<i>`."""
    nodes: list[NodeProto] = []
    weights: list[TensorProto] = []
    for number, sample in enumerate(samples):
        write = _side_by_side if sample.op in LAYERS else _chained
        write(sample, number, nodes, weights)
    inputs = [helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, sample.shape) for i, sample in enumerate(samples)]
    outputs = [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, None) for i in range(len(samples))]
    graph = helper.make_graph(nodes, "samples", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _side_by_side(sample: Sample, number: int, nodes: list[NodeProto], weights: list[TensorProto]) -> None:
    groups = sample.groups or sample.inputs
    first, second = (sample.inputs, sample.outputs) if sample.op != "Conv" else (sample.outputs, sample.inputs)
    shape = (first, second // groups, *sample.kernel)
    ends = []
    for copy in range(COPIES):
        name = f"{number}_{copy}"
        ends.append(f"e{name}")
        weights += [_drawn(f"w{name}", shape, copy), _drawn(f"b{name}", (sample.outputs,), copy)]
        if sample.op == "Gemm":
            nodes.append(helper.make_node("Gemm", [f"x{number}", f"w{name}", f"b{name}"], [f"e{name}"]))
            continue
        options: dict[str, Any] = {"group": groups, "strides": sample.stride, "pads": sample.padding * 2, "dilations": sample.dilation}
        options["kernel_shape"] = sample.kernel
        nodes.append(helper.make_node(sample.op, [f"x{number}", f"w{name}", f"b{name}"], [f"c{name}"], **options))
        nodes += [helper.make_node("Relu", [f"c{name}"], [f"r{name}"]), helper.make_node("GlobalAveragePool", [f"r{name}"], [f"e{name}"])]
    nodes.append(helper.make_node("Concat", ends, [f"y{number}"], axis=1))


def _chained(sample: Sample, number: int, nodes: list[NodeProto], weights: list[TensorProto]) -> None:
    value = f"x{number}"
    for step in range(CHAIN):
        end = f"y{number}" if step == CHAIN - 1 else f"v{number}_{step}"
        gate = f"g{number}_{step}"
        if sample.op in ("Add", "Mul"):
            nodes.append(helper.make_node(sample.op, [value, f"x{number}"], [end]))
        elif sample.op == "Swish":
            nodes += [helper.make_node("Sigmoid", [value], [gate]), helper.make_node("Mul", [value, gate], [end])]
        else:
            nodes.append(helper.make_node(sample.op, [value], [end]))
            if sample.op == "Relu" and step < CHAIN - 1:  # two in a row would become one
                nodes[-1].output[0] = gate
                nodes.append(helper.make_node("Neg", [gate], [end]))
        value = end


def _drawn(name: str, shape: tuple[int, ...], seed: int) -> TensorProto:
    """Small random numbers, repeated where many are asked for."""
    pool = np.random.default_rng(seed).normal(size=4099).astype(np.float32) * 0.01
    return numpy_helper.from_array(np.resize(pool, prod(shape)).reshape(shape), name)
