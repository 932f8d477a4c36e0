"""A float model in the form that MNN quantises well: it computes the same, and nothing of it shows outside MNN's file.

What MNN 3.6 does, and why it is rewritten:

- An addition of two int8 tensors to a third runs in int8, about twenty times slower on x86 than in float. So between an
  addition and what reads it stands a maximum with the lowest number, or with 0 in place of a ReLU. It has no scale, and MNN carries no scale
  back through it, so the addition stays in float.
- Pools, resizing and batch norms carry scales both ways, whatever they do to the range, and some are wrong in integers (see
  `mnn_unfit`). So such a maximum stands on both sides of one that is to compute in float.
- A part of a tensor that several read, a convolution in int8 and an addition, say: whether the others see it rounded MNN decides anew each time
  that the file is loaded, and its outputs differ by a fifth of the largest in a detector. So such a maximum stands behind the part.
- A product with 65,536 weights or more loses its int8 weights when the converter makes a convolution of it. So it is one already.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from irtool.engines.mnn.int8_policy import mnn_unfit
from irtool.engines.onnxruntime.prepare import drop_unread, replace_nodes
from irtool.quant.placement import DefUse

JOINS = frozenset({"Add", "Mul", "Sub", "Div", "Max", "Min", "Pow"})
"""Operators of two tensors. MNN's integer maximum is wrong, and the others are slow."""
PARTS = frozenset({"Split", "Slice"})
"""Operators whose results are parts of a tensor."""
_WHOLE = (TensorProto.INT64, TensorProto.INT32)
LARGE = 1 << 16
"""Weights of a product that the converter cannot count any more."""


def mnn_form(
    model: ModelProto, weights: Mapping[int, np.ndarray], biases: Mapping[int, np.ndarray], floating: Collection[int] = ()
) -> tuple[ModelProto, dict[str, str]]:
    """A copy that computes the same but for the weights and biases, and for each product that became a convolution the convolution's output.

    Args:
        model: the float model.
        weights: for some layers, by the index of their nodes, of the shapes of their own.
        biases: float (output channels,), the same.
        floating: the nodes that are to compute in float, by index.
    """
    result = ModelProto()
    result.CopyFrom(model)
    form = _Form(result, floating)
    for index, weight in weights.items():
        form.give(result.graph.node[index], 1, "rounded_weight", weight)
    for index, bias in biases.items():
        form.give(result.graph.node[index], 2, "corrected_bias", bias)
    drop_unread(result)
    form.rewrite()
    return result, form.convolutions


class _Form:
    def __init__(self, model: ModelProto, floating: Collection[int]) -> None:
        self.model, self.graph, self.wiring = model, model.graph, DefUse(model)
        self.taken = {name for node in model.graph.node for name in (*node.input, *node.output)}
        norms = {index for index in floating if self.graph.node[index].op_type == "BatchNormalization"}
        self.apart = norms | mnn_unfit(self.wiring).keys()
        known = (*self.graph.input, *self.graph.value_info, *self.graph.output)
        self.sizes = {value.name for value in known if value.type.tensor_type.elem_type in _WHOLE}
        self.floats = {value.name for value in known if value.type.tensor_type.elem_type == TensorProto.FLOAT}
        self.borders: dict[str, str] = {}
        self.lowest = ""
        self.convolutions: dict[str, str] = {}

    def give(self, node: NodeProto, place: int, name: str, values: np.ndarray) -> None:
        """Put a constant in the place of one of the node's inputs."""
        while len(node.input) <= place:
            node.input.append("")
        node.input[place] = self._constant(f"{node.output[0]}.{name}", values.astype(np.float32))

    def rewrite(self) -> None:
        """Additions, products, and what is to compute in float."""
        nodes: list[NodeProto] = []
        for index, node in enumerate(list(self.graph.node)):
            if index in self.apart:
                nodes += self._before(node)
            if node.op_type not in PARTS:
                nodes += self._parts(node)
            nodes += self._product(node) if self._is_large_product(node) else [node]
            if index in self.apart or self._is_join(node):
                nodes += self._after(node)
        replace_nodes(self.model, nodes)

    def _before(self, node: NodeProto) -> Iterable[NodeProto]:
        """Insert an operator between a node and the maker of its input, which may have a scale. The node is changed."""
        name = node.input[0]
        if name in self.borders.values() or (name in self.wiring.producer and self._is_join(self.wiring.nodes[self.wiring.producer[name]])):
            return ()
        made = () if name in self.borders else (self._border(name),)
        node.input[0] = self.borders[name]
        return made

    def _parts(self, node: NodeProto) -> Iterable[NodeProto]:
        """Insert an operator between a node and each part of a tensor that it is not alone to read. The node is changed."""
        made = []
        for slot, name in enumerate(node.input):
            maker = self.wiring.producer.get(name)
            part = maker is not None and self.graph.node[maker].op_type in PARTS and name in self.floats
            if part and len(self.wiring.readers[name]) > 1:
                made += [] if name in self.borders else [self._border(name)]
                node.input[slot] = self.borders[name]
        return made

    def _after(self, node: NodeProto) -> Iterable[NodeProto]:
        """Insert an operator between a node and its readers. Its readers are changed."""
        name, made = node.output[0], list[NodeProto]()
        for index in self.wiring.readers.get(name, []):
            reader = self.graph.node[index]
            if index in self.apart and self._is_join(node):
                continue  # neither has a scale, and none passes the border behind the reader
            if reader.op_type == "Relu":
                reader.op_type = "Max"
                reader.input.append(self._constant(f"{name}.zero", np.float32(0)))
            elif reader.op_type not in JOINS:
                made = made or [self._border(name)]
                for slot, held in enumerate(reader.input):
                    if held == name:
                        reader.input[slot] = self.borders[name]
        return made

    def _border(self, name: str) -> NodeProto:
        """A maximum with the lowest number, past which no scale is carried."""
        self.borders[name] = self._free(f"{name}.float")
        self.lowest = self.lowest or self._constant("lowest", np.float32(np.finfo(np.float32).min))
        return helper.make_node("Max", [name, self.lowest], [self.borders[name]], self.borders[name])

    def _is_join(self, node: NodeProto) -> bool:
        """Whether a node adds or multiplies two computed tensors of real numbers: no scale is carried back through it."""
        return node.op_type in JOINS and node.output[0] not in self.sizes and len(self.wiring.data_inputs(node)) > 1

    def _is_large_product(self, node: NodeProto) -> bool:
        if node.op_type != "Gemm" or node.input[1] not in self.wiring.constants or node.input[0] in self.wiring.constants:
            return False
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        plain = attributes.get("alpha", 1.0) == attributes.get("beta", 1.0) == 1.0 and not attributes.get("transA")
        plain = plain and all(name in self.wiring.constants and len(self.wiring.constants[name].dims) == 1 for name in node.input[2:])
        return plain and int(np.prod(self.wiring.constants[node.input[1]].dims)) >= LARGE

    def _product(self, node: NodeProto) -> list[NodeProto]:
        """A Gemm as a 1x1 convolution of an image of one pixel."""
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        weight = self.wiring.array(node.input[1])
        rows = weight if attributes.get("transB") else weight.T
        name = node.output[0]
        shapes = [
            self._constant(f"{name}.{kind}", np.array(v, np.int64)) for kind, v in (("pixel", [0, -1, 1, 1]), ("row", [0, len(rows)]))
        ]
        kernel = self._constant(f"{name}.kernel", np.ascontiguousarray(rows[:, :, None, None]))
        pixel, image = self._free(f"{name}.in"), self._free(f"{name}.out")
        self.convolutions[name] = image
        return [
            helper.make_node("Reshape", [node.input[0], shapes[0]], [pixel], pixel),
            helper.make_node("Conv", [pixel, kernel, *node.input[2:]], [image], image, kernel_shape=[1, 1]),
            helper.make_node("Reshape", [image, shapes[1]], [name], node.name),
        ]

    def _constant(self, name: str, values: np.ndarray | np.generic) -> str:
        free = self._free(name)
        tensor = numpy_helper.from_array(np.asarray(values), free)
        self.graph.initializer.append(tensor)
        self.wiring.constants[free] = tensor
        return free

    def _free(self, name: str) -> str:
        found = next(free for number in itertools.count() if (free := f"{name}{number or ''}") not in self.taken)
        self.taken.add(found)
        return found
