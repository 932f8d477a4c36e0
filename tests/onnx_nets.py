"""Small ONNX models built node by node: what exporters write, and what they do not."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from irtool import OnnxGraph


class Net:
    """Collects nodes and weights; every method returns the name of what it made. Weights are drawn from one seed."""

    def __init__(self, opset: int = 17, shape: Sequence[int | str] = ("N", 3, 12, 12)) -> None:
        self.opset, self.shape = opset, list(shape)
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.count = 0

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attrs: Any) -> Any:
        self.count += 1
        names = [f"{kind.lower()}_{self.count}" + (f".{i}" if outputs > 1 else "") for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=f"{kind}_{self.count}", **attrs))
        return names[0] if outputs == 1 else names

    def const(self, array: Any, dtype: Any = np.int64, *, node: bool = False) -> str:
        """A constant: an initializer, or a Constant node."""
        array = np.asarray(array, dtype)
        if node:
            return self.op("Constant", value=numpy_helper.from_array(array))
        self.count += 1
        self.weights[f"const_{self.count}"] = array
        return f"const_{self.count}"

    def weight(self, *shape: int, low: float | None = None) -> str:
        data = self.rng.normal(0, 1 / np.sqrt(max(np.prod(shape[1:]), 1)), shape) if low is None else self.rng.uniform(low, low + 1, shape)
        return self.const(data, np.float32)

    def conv(self, x: str, cin: int, cout: int, k: int = 3, groups: int = 1, bias: bool = True, **attrs: Any) -> str:
        inputs = [x, self.weight(cout, cin // groups, k, k), *([self.weight(cout)] if bias else [])]
        return self.op("Conv", *inputs, group=groups, **{"pads": [k // 2] * 4, **attrs})

    def bn(self, x: str, c: int) -> str:
        return self.op("BatchNormalization", x, self.weight(c, low=0.5), self.weight(c), self.weight(c), self.weight(c, low=0.5))

    def cbr(self, x: str, cin: int, cout: int, k: int = 3, groups: int = 1) -> str:
        return self.op("Relu", self.bn(self.conv(x, cin, cout, k, groups, bias=False), cout))

    def head(self, x: str, c: int, classes: int = 4) -> str:
        pooled = self.op("Flatten", self.op("GlobalAveragePool", x))
        return self.op("Gemm", pooled, self.weight(classes, c), self.weight(classes), transB=1)

    def model(self, *outputs: str, ranks: Sequence[int] | None = None) -> onnx.ModelProto:
        """The model; outputs have no stated sizes but their rank (2 unless given)."""
        infos = [
            helper.make_tensor_value_info(o, TensorProto.FLOAT, [None] * r)
            for o, r in zip(outputs, ranks or [2] * len(outputs), strict=True)
        ]
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)
        weights = [numpy_helper.from_array(array, name) for name, array in self.weights.items()]
        graph = helper.make_graph(self.nodes, "net", [x], infos, weights)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        helper.set_model_props(made, {"author": "test"})
        onnx.checker.check_model(made, full_check=True)
        return made


def residual(opset: int = 17, shape: Sequence[int | str] = ("N", 3, 12, 12)) -> onnx.ModelProto:
    n = Net(opset, shape)
    a = n.cbr("x", 3, 16)
    b = n.bn(n.conv(n.cbr(a, 16, 16), 16, 16, bias=False), 16)
    return n.model(n.head(n.op("Relu", n.op("Add", a, b)), 16))


def nhwc() -> onnx.ModelProto:
    n = Net(13, ("N", 12, 12, 3))
    x = n.op("Transpose", "x", perm=[0, 3, 1, 2])
    x = n.op("Transpose", n.conv(x, 3, 16), perm=[0, 2, 3, 1])
    x = n.op("PRelu", x, n.weight(1, 1, 16, low=0.1))
    x = n.op("Add", x, n.weight(16))
    x = n.op("Transpose", n.conv(n.op("Transpose", x, perm=[0, 3, 1, 2]), 16, 8), perm=[0, 2, 3, 1])
    pooled = n.op("ReduceMean", x, axes=[1, 2], keepdims=0)
    return n.model(n.op("Softmax", n.op("MatMul", pooled, n.weight(8, 5))))


def shape_chain() -> onnx.ModelProto:
    """A channel shuffle whose every size is computed from Shape, the channels included."""
    n = Net(12)
    x = n.cbr("x", 3, 12)
    shape = n.op("Shape", x)
    batch, channels, height, width = (n.op("Unsqueeze", n.op("Gather", shape, n.const(i), axis=0), axes=[0]) for i in range(4))
    groups = n.const([3])
    each = n.op("Div", channels, groups)
    x = n.op("Transpose", n.op("Reshape", x, n.op("Concat", batch, groups, each, height, width, axis=0)), perm=[0, 2, 1, 3, 4])
    x = n.op("Reshape", x, n.op("Concat", batch, n.const([12]), height, width, axis=0))
    return n.model(n.head(n.cbr(x, 12, 8), 8))


def flatten_by_shape() -> onnx.ModelProto:
    """A view to (batch, features), the batch from Shape, the features written; then a linear layer over them."""
    n = Net(14, ("N", 3, 6, 6))
    x = n.cbr("x", 3, 8)
    batch = n.op("Unsqueeze", n.op("Gather", n.op("Shape", x), n.const(0), axis=0), n.const([0]))
    x = n.op("Reshape", x, n.op("Concat", batch, n.const([8 * 36]), axis=0))
    return n.model(n.op("Gemm", x, n.weight(8 * 36, 5), n.weight(5)))


def splits(opset: int) -> onnx.ModelProto:
    n = Net(opset)
    x = n.cbr("x", 3, 16)
    if opset < 13:
        a, b = n.op("Split", x, outputs=2, axis=1, split=[6, 10])
        c, d = n.op("Split", b, outputs=2, axis=1)
    else:
        a, b = n.op("Split", x, n.const([6, 10]), outputs=2, axis=1)
        c, d = n.op("Split", b, outputs=2, axis=1, **({"num_outputs": 2} if opset >= 18 else {}))
    joined = n.op("Concat", d, n.cbr(a, 6, 8), c, axis=1)
    return n.model(n.head(n.cbr(joined, 18, 8), 8))


def slices(opset: int = 17) -> onnx.ModelProto:
    n = Net(opset)
    x = n.cbr("x", 3, 16)
    if opset < 10:
        a, b = (n.op("Slice", x, axes=[1], starts=[s], ends=[e]) for s, e in ((0, 5), (5, 2**31 - 1)))
    else:
        a, b = (n.op("Slice", x, n.const([s]), n.const([e]), n.const([1])) for s, e in ((0, 5), (5, 2**31 - 1)))
    return n.model(n.head(n.op("Concat", n.cbr(b, 11, 6), a, axis=1), 11))


def halves_by_shape() -> onnx.ModelProto:
    """x[:, :C // 2] and x[:, C // 2:] with C from Shape."""
    n = Net()
    x = n.cbr("x", 3, 16)
    half = n.op("Div", n.op("Slice", n.op("Shape", x), n.const([1]), n.const([2]), n.const([0])), n.const([2]))
    a = n.op("Slice", x, n.const([0]), half, n.const([1]))
    b = n.op("Slice", x, half, n.const([2**31 - 1]), n.const([1]))
    return n.model(n.head(n.op("Concat", n.cbr(a, 8, 6), b, axis=1), 14))


def mobile() -> onnx.ModelProto:
    """Inverted residual with squeeze and excitation, hard-swish from Clip and HardSwish."""
    n = Net()
    x = n.cbr("x", 3, 8)
    h = n.cbr(n.cbr(x, 8, 24, 1), 24, 24, 3, groups=24)
    s = n.op("Relu", n.conv(n.op("GlobalAveragePool", h), 24, 6, 1))
    h = n.op("Mul", h, n.op("HardSigmoid", n.conv(s, 6, 24, 1), alpha=1 / 6))
    swish = n.op("Mul", h, n.op("Clip", n.op("Add", h, n.const(3, np.float32)), n.const(0, np.float32), n.const(6, np.float32)))
    h = n.op("Div", swish, n.const(6, np.float32, node=True))
    y = n.op("Add", x, n.bn(n.conv(n.op("HardSwish", h), 24, 8, 1), 8))
    return n.model(n.head(y, 8))


def grouped() -> onnx.ModelProto:
    n = Net()
    x = n.cbr(n.cbr("x", 3, 16), 16, 24, 3, groups=4)
    return n.model(n.head(n.cbr(x, 24, 8), 8))


def transposed(groups: int) -> onnx.ModelProto:
    n = Net()
    x = n.cbr("x", 3, 16)
    x = n.op("ConvTranspose", x, n.weight(16, 12 // groups, 2, 2), strides=[2, 2], group=groups)
    return n.model(n.head(n.conv(n.op("Relu", n.bn(x, 12)), 12, 8), 8))


def upsampled() -> onnx.ModelProto:
    n = Net(11)
    x = n.cbr("x", 3, 8)
    half = n.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    scales = n.op("Resize", half, n.const([], np.float32), n.const([1, 1, 2, 2], np.float32), mode="nearest")
    small = n.op("Slice", n.op("Shape", x), n.const([0]), n.const([1]))
    sizes = n.op("Concat", small, n.const([8, 12, 12]), axis=0)
    sized = n.op("Resize", half, n.const([], np.float32), n.const([], np.float32), sizes, mode="linear")
    return n.model(n.head(n.op("Concat", n.op("Add", x, scales), sized, axis=1), 16))


def upsample9() -> onnx.ModelProto:
    n = Net(9, (1, 3, 12, 12))
    x = n.op("Upsample", n.cbr("x", 3, 8), n.const([1, 1, 2, 2], np.float32))
    return n.model(n.head(n.cbr(x, 8, 8), 8))


def pixels(mode: str) -> onnx.ModelProto:
    n = Net(13)
    x = n.op("DepthToSpace", n.conv(n.cbr("x", 3, 8), 8, 32), blocksize=2, mode=mode)
    return n.model(n.head(n.cbr(n.op("SpaceToDepth", n.cbr(x, 8, 6), blocksize=2), 24, 8), 8))


def heads() -> onnx.ModelProto:
    """Linear layers by MatMul and by Gemm with weights stored (inputs, outputs), over tokens."""
    n = Net()
    x = n.op("Transpose", n.op("Reshape", n.conv("x", 3, 8), n.const([0, 8, -1])), perm=[0, 2, 1])
    x = n.op("Add", n.op("MatMul", n.op("Relu", n.op("Add", n.op("MatMul", x, n.weight(8, 20)), n.weight(20))), n.weight(20, 8)), x)
    x = n.op("ReduceMean", x, axes=[1], keepdims=0)
    x = n.op("Relu", n.op("Gemm", x, n.weight(8, 12), n.weight(12), alpha=0.5, beta=2.0))
    return n.model(n.op("Gemm", x, n.weight(12, 4), n.weight(4)))


def option_a() -> onnx.ModelProto:
    """The parameter-free shortcut: channels of zeros are padded in."""
    n = Net()
    x = n.cbr("x", 3, 8)
    y = n.bn(n.conv(n.cbr(x, 8, 16), 16, 16, bias=False), 16)
    return n.model(n.head(n.op("Relu", n.op("Add", n.op("Pad", x, n.const([0, 4, 0, 0, 0, 4, 0, 0])), y)), 16))


def selected() -> onnx.ModelProto:
    n = Net()
    x = n.cbr("x", 3, 16)
    return n.model(n.head(n.cbr(n.op("Gather", x, n.const([1, 3, 5, 7, 9, 14, 15]), axis=1), 7, 8), 8))


def shared() -> onnx.ModelProto:
    """One weight read by two convolutions, once through an Identity."""
    n = Net()
    x = n.cbr("x", 3, 8)
    w = n.weight(8, 8, 3, 3)
    a = n.op("Relu", n.op("Conv", x, w, pads=[1] * 4))
    b = n.op("Relu", n.op("Conv", a, n.op("Identity", w), pads=[1] * 4))
    return n.model(n.head(b, 8))


def tiled() -> onnx.ModelProto:
    n = Net(13)
    x = n.cbr("x", 3, 8)
    gate = n.op("Sigmoid", n.conv(n.op("GlobalAveragePool", x), 8, 8, 1))
    gate = n.op("Expand", gate, n.const([1, 8, 12, 12]))
    x = n.op("Concat", n.op("Mul", x, gate), n.op("Tile", n.conv(x, 8, 4), n.const([1, 2, 1, 1])), axis=1)
    return n.model(n.head(x, 16))


def recurrent() -> onnx.ModelProto:
    """An LSTM over the rows of an image: its input stays whole, what comes before that does not."""
    n = Net(14, (1, 3, 6, 6))
    x = n.conv(n.cbr("x", 3, 8), 8, 4)
    rows = n.op("Reshape", n.op("Transpose", x, perm=[2, 0, 1, 3]), n.const([6, 1, 24]))
    y = n.op("LSTM", rows, n.weight(1, 20, 24), n.weight(1, 20, 5), hidden_size=5)
    return n.model(n.op("Flatten", y))


def positions() -> onnx.ModelProto:
    """Numbers computed from the width are added to every row, and the channel count divides."""
    n = Net()
    x = n.cbr("x", 3, 8)
    shape = n.op("Shape", x)
    width, channels = (n.op("Gather", shape, n.const(axis)) for axis in (3, 1))
    steps = n.op("Cast", n.op("Range", n.const(0), width, n.const(1)), to=TensorProto.FLOAT)
    x = n.op("Div", n.op("Add", x, steps), n.op("Cast", channels, to=TensorProto.FLOAT))
    return n.model(n.head(n.cbr(x, 8, 6), 6))


def branching() -> onnx.ModelProto:
    """An If whose bodies capture a value from outside."""
    n = Net(13)
    x = n.cbr(n.cbr("x", 3, 8), 8, 6)
    bodies = {}
    for name, kind in (("then_branch", "Relu"), ("else_branch", "Neg")):
        out = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)
        bodies[name] = helper.make_graph([helper.make_node(kind, [x], [f"{name}_out"], name=f"{name}_{kind}")], name, [], [out])
    positive = n.op("Greater", n.op("ReduceSum", "x", keepdims=0), n.const(0, np.float32))
    return n.model(n.head(n.op("If", positive, **bodies), 6))


def mixing(kind: str) -> onnx.ModelProto:
    """An operator whose result for one channel depends on the others, between two convolutions."""
    n = Net({"GroupNormalization": 21, "RMSNormalization": 23}.get(kind, 18))
    x = n.cbr("x", 3, 12)
    if kind == "LRN":
        x = n.op("LRN", x, size=3, alpha=0.5)
    elif kind == "GroupNormalization":
        x = n.op("GroupNormalization", x, n.weight(12, low=0.5), n.weight(12), num_groups=3)
    elif kind in ("LayerNormalization", "RMSNormalization"):
        weights = [n.weight(12, low=0.5), *([n.weight(12)] if kind == "LayerNormalization" else [])]
        x = n.op("Transpose", n.op(kind, n.op("Transpose", x, perm=[0, 2, 3, 1]), *weights), perm=[0, 3, 1, 2])
    elif kind == "Softmax":
        x = n.op("Mul", x, n.op("Softmax", x, axis=1))
    else:  # attention over positions by the mean over channels
        x = n.op("Mul", x, n.op("Sigmoid", n.op(kind, x, n.const([1]))))
    return n.model(n.head(n.cbr(x, 12, 8), 8))


def looping() -> onnx.ModelProto:
    """A Loop that doubles three times; its body sees one value of its own and one from outside."""
    n = Net(16)
    x = n.cbr(n.cbr("x", 3, 8), 8, 6)
    y = n.conv(x, 6, 6)
    flag = helper.make_tensor_value_info("go", TensorProto.BOOL, [])
    count = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    state, result = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("state", "doubled"))
    still = helper.make_tensor_value_info("still", TensorProto.BOOL, [])
    nodes = [
        helper.make_node("Identity", ["go"], ["still"], name="body_go"),
        helper.make_node("Add", ["state", y], ["sum"], name="body_add"),
        helper.make_node("Tanh", ["sum"], ["doubled"], name="body_tanh"),
    ]
    body = helper.make_graph(nodes, "body", [count, flag, state], [still, result])
    return n.model(n.head(n.op("Loop", n.const(3), n.const(True, np.bool_), x, body=body), 6))


def attention() -> onnx.ModelProto:
    """A head that multiplies three projections of tokens by MatMul, with a Softmax over positions."""
    n = Net(17, ("N", 3, 6, 6))
    x = n.op("Transpose", n.op("Reshape", n.cbr("x", 3, 8), n.const([0, 8, -1])), perm=[0, 2, 1])
    q, k, v = (n.op("MatMul", x, n.weight(8, 12)) for _ in range(3))
    scores = n.op("Softmax", n.op("MatMul", q, n.op("Transpose", k, perm=[0, 2, 1])), axis=-1)
    x = n.op("Add", x, n.op("MatMul", n.op("MatMul", scores, v), n.weight(12, 8)))
    return n.model(n.op("Gemm", n.op("ReduceMean", x, axes=[1], keepdims=0), n.weight(8, 4), n.weight(4)))


MIXING = ("LRN", "GroupNormalization", "LayerNormalization", "RMSNormalization", "Softmax", "ReduceMean", "ReduceMax")
NETS: dict[str, Callable[[], onnx.ModelProto]] = {
    "residual": residual, "nhwc": nhwc, "shape_chain": shape_chain, "flatten_by_shape": flatten_by_shape,
    "splits9": lambda: splits(9), "splits13": lambda: splits(13), "splits18": lambda: splits(18), "slices9": lambda: slices(9), "slices": slices,
    "halves_by_shape": halves_by_shape, "mobile": mobile, "grouped": grouped, "transposed": lambda: transposed(1),
    "transposed_grouped": lambda: transposed(4), "upsampled": upsampled, "upsample9": upsample9, "pixels_dcr": lambda: pixels("DCR"),
    "pixels_crd": lambda: pixels("CRD"), "heads": heads, "option_a": option_a, "selected": selected, "shared": shared, "tiled": tiled,
    "recurrent": recurrent, "branching": branching, "positions": positions,
    "looping": looping, "attention": attention, **{f"mixing_{kind}": functools.partial(mixing, kind) for kind in MIXING},
}  # fmt: skip


def randomised(graph: OnnxGraph) -> OnnxGraph:
    """The same topology with weights drawn at random, where the file has one number throughout."""
    new = graph.clone()
    rng = np.random.default_rng(0)
    for name, value in new.params.items():
        data = value.data
        if data is not None and data.is_floating_point() and data.numel() > 1 and bool((data == data.reshape(-1)[0]).all()):
            fan = max(int(np.prod(value.sizes[1:])), 1)
            drawn = rng.normal(0, (2 / fan) ** 0.5, value.sizes) if len(value.sizes) > 1 and fan > 1 else rng.uniform(0.5, 1.5, value.sizes)
            new.set_param(name, torch.from_numpy(drawn.astype(np.float32)))
    return new
