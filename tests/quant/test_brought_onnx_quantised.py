"""Int8 files that onnxruntime takes, whatever stands beside the layers: indices of pools, stored results, bodies of loops."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_nets import Net

from irtool.engines.onnxruntime.calibrate import calibrate
from irtool.engines.onnxruntime.prepare import prepared
from irtool.engines.onnxruntime.qdq import to_qdq
from irtool.quant import Scheme, make_recipe, place


def pool_with_places() -> onnx.ModelProto:
    """A pool whose places are read by an unpooling."""
    n = Net(17, (1, 3, 12, 12))
    x = n.op("Relu", n.conv("x", 3, 8))
    y, places = n.op("MaxPool", x, outputs=2, kernel_shape=[2, 2], strides=[2, 2])
    y = n.op("MaxUnpool", n.conv(y, 8, 8), places, n.const([1, 8, 12, 12]), kernel_shape=[2, 2], strides=[2, 2])
    return n.model(n.head(n.conv(y, 8, 6), 6))


def places_as_result() -> onnx.ModelProto:
    n = Net(17, (1, 3, 12, 12))
    y, places = n.op("MaxPool", n.op("Relu", n.conv("x", 3, 8)), outputs=2, kernel_shape=[2, 2], strides=[2, 2])
    model = n.model(n.head(n.conv(y, 8, 6), 6))
    model.graph.output.append(helper.make_tensor_value_info(places, TensorProto.INT64, None))
    return model


def stored_result() -> onnx.ModelProto:
    """A result that is an initializer (anchors), which nothing else reads."""
    n = Net(17, (1, 3, 12, 12))
    model = n.model(n.head(n.conv("x", 3, 8), 8))
    model.graph.initializer.append(numpy_helper.from_array(np.arange(6, dtype=np.float32), "anchors"))
    model.graph.output.append(helper.make_tensor_value_info("anchors", TensorProto.FLOAT, [6]))
    return model


def result_that_is_read() -> onnx.ModelProto:
    """A bias that is also a result, and a feature map that is."""
    n = Net(17, (1, 3, 12, 12))
    a = n.op("Relu", n.conv("x", 3, 8))
    model = n.model(n.head(n.conv(a, 8, 6), 6))
    bias = model.graph.node[0].input[2]
    model.graph.output.append(helper.make_tensor_value_info(bias, TensorProto.FLOAT, [8]))
    model.graph.output.append(helper.make_tensor_value_info(a, TensorProto.FLOAT, None))
    return model


def loop(names: tuple[str, str]) -> onnx.ModelProto:
    """A loop whose body reads a feature map and a stored number, with names that the writer likes to give itself."""
    n = Net(16, (1, 3, 12, 12))
    x = n.op("Relu", n.conv("x", 3, 8))
    y = n.conv(x, 8, 8)
    step = n.const(0.5, np.float32)
    flag, count = helper.make_tensor_value_info("go", TensorProto.BOOL, []), helper.make_tensor_value_info("i", TensorProto.INT64, [])
    state, result = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("state", "moved"))
    nodes = [
        helper.make_node("Identity", ["go"], ["still"], name="body_go"),
        helper.make_node("Mul", [y, step], [names[0]], name=names[1]),
        helper.make_node("Add", ["state", names[0]], ["moved"], name="body_add"),
    ]
    body = helper.make_graph(nodes, "body", [count, flag, state], [helper.make_tensor_value_info("still", TensorProto.BOOL, []), result])
    return n.model(n.head(n.conv(n.op("Loop", n.const(3), n.const(True, np.bool_), x, body=body), 8, 6), 6))


def scan() -> onnx.ModelProto:
    """A running sum over rows, whose body reads a stored number."""
    n = Net(16, (1, 3, 12, 12))
    x = n.op("Relu", n.conv("x", 3, 8))
    rows = n.op("Transpose", x, perm=[2, 0, 1, 3])
    scale = n.const(0.25, np.float32)
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("sum_in", "row", "sum_out", "row_out")]
    nodes = [
        helper.make_node("Mul", ["row", scale], ["q0"], name="s0"),
        helper.make_node("Add", ["sum_in", "q0"], ["sum_out"], name="d0"),
        helper.make_node("Identity", ["sum_out"], ["row_out"], name="n0"),
    ]
    body = helper.make_graph(nodes, "body", infos[:2], infos[2:])
    start = n.const(np.zeros((1, 8, 12)), np.float32)
    _, summed = n.op("Scan", start, rows, outputs=2, body=body, num_scan_inputs=1)
    y = n.op("Transpose", summed, perm=[1, 2, 0, 3])
    return n.model(n.head(n.conv(y, 8, 6), 6))


def branch() -> onnx.ModelProto:
    """An If whose branches read a layer's result, with names of their own as the writer's."""
    n = Net(16, (1, 3, 12, 12))
    x = n.op("Relu", n.conv("x", 3, 8))
    bodies = {}
    for name, kind in (("then_branch", "Relu"), ("else_branch", "Neg")):
        out = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)
        inner = [helper.make_node(kind, [x], ["d1"], name="q1"), helper.make_node("Identity", ["d1"], [f"{name}_out"], name=f"{name}_i")]
        bodies[name] = helper.make_graph(inner, name, [], [out])
    positive = n.op("Greater", n.op("ReduceSum", "x", keepdims=0), n.const(0, np.float32))
    y = n.op("If", positive, **bodies)
    return n.model(n.head(n.op("Add", n.conv(x, 8, 8), n.conv(y, 8, 8)), 8))


NETS: dict[str, Callable[[], onnx.ModelProto]] = {
    "a pool with places": pool_with_places, "places as a result": places_as_result, "a stored result": stored_result,
    "a result that is read": result_that_is_read, "a loop": lambda: loop(("q0", "s0")), "a loop of other names": lambda: loop(("d0", "w0")),
    "a scan": scan, "a branch": branch,
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_int8_files_are_taken_by_onnxruntime(name: str) -> None:
    model = prepared(NETS[name]())
    onnx.checker.check_model(model)
    rng = np.random.default_rng(0)
    batches = [rng.normal(size=(1, 3, 12, 12)).astype(np.float32) for _ in range(4)]
    placement = place(model)
    assert placement.layers
    int8 = to_qdq(model, make_recipe(model, placement, calibrate(model, placement.tensors, batches), Scheme()))
    onnx.checker.check_model(int8)
    assert any(node.op_type == "QuantizeLinear" for node in int8.graph.node)
    feed = {"x": batches[0]}
    expected, got = (ort.InferenceSession(m.SerializeToString()).run(None, feed) for m in (model, int8))
    assert [array.shape for array in got] == [array.shape for array in expected]
    scale = max(float(np.abs(expected[0]).max()), 1e-3)
    assert float(np.abs(got[0] - expected[0]).max()) <= 0.1 * scale
