"""Values of the graph that the bodies of If and Loop read stay as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from onnx_nets import Net

import irtool
from irtool.hosts.onnx.files.load import from_model


def _branch(name: str, nodes: list[onnx.NodeProto]) -> onnx.GraphProto:
    return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)])


def _if(n: Net, captured: onnx.NodeProto, value: str, nested: bool) -> str:
    """An If with `captured` in a branch, or in the If of a branch."""
    positive = n.op("Greater", n.op("ReduceSum", "x", keepdims=0), n.const(0, np.float32))
    then, other = _branch("then", [captured]), _branch("other", [helper.make_node("Identity", [value], ["other_out"], name="keep")])
    if nested:
        inner = _branch("inner", [helper.make_node("Identity", [value], ["inner_out"], name="keep_inner")])
        node = helper.make_node("If", [positive], ["then_out"], name="within", then_branch=then, else_branch=inner)
        then = _branch("outer", [node])
    return n.op("If", positive, then_branch=then, else_branch=other)


def _model(groups: int, nested: bool) -> onnx.ModelProto:
    """A convolution's weight is read by a body, too: two convolutions, an If with that weight inside, a sum, head."""
    n = Net()
    x = n.op("Relu", n.conv("x", 3, 16))
    weight = n.weight(16, 16 // groups, 3, 3)
    inside = helper.make_node("Conv", [x, weight], ["conv_out"], name="inside", pads=[1] * 4, group=groups)
    y = n.op("Conv", n.op("Relu", n.conv("x", 3, 16)), weight, pads=[1] * 4, group=groups)
    y = n.op("Add", _if(n, inside, x, nested), y)
    return n.model(n.head(n.conv(n.op("Relu", y), 16, 12), 12))


@pytest.mark.parametrize(("groups", "nested"), [(1, False), (4, False), (1, True)])
def test_a_weight_that_a_branch_reads_stays_whole(tmp_path: Path, groups: int, nested: bool) -> None:
    graph = from_model(_model(groups, nested))
    plan = irtool.plan(graph, "l1", 0.5, "local")
    found = {layer.name: (len(layer.removed), layer.reason) for layer in plan.layers}
    flows = "flows into If, which irtool does not know (at If_14)"
    assert list(found.values()) == [(0, flows), (0, flows), (0, flows), (6, ""), (0, "is a graph output (at output)")]
    pruned = irtool.prune(graph, plan)
    assert irtool.check_prune(graph, plan).ok
    irtool.save_onnx(pruned, tmp_path / "small.onnx")
    x = torch.randn(1, 3, 12, 12)
    assert torch.equal(irtool.load_onnx(tmp_path / "small.onnx").run(x)[0], pruned.run(x)[0])


def test_a_weight_that_a_loop_reads_stays_whole(tmp_path: Path) -> None:
    n = Net()
    x = n.op("Relu", n.conv("x", 3, 8))
    weight = n.weight(8, 8, 1, 1)
    nodes = [
        helper.make_node("Identity", ["go"], ["still"], name="on"),
        helper.make_node("Conv", ["state", weight], ["next"], name="inside"),
    ]
    state, result = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("state", "next"))
    flag, still = (helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("go", "still"))
    body = helper.make_graph(nodes, "body", [helper.make_tensor_value_info("i", TensorProto.INT64, []), flag, state], [still, result])
    y = n.op("Conv", n.op("Loop", n.const(3), n.const(True, np.bool_), x, body=body), weight)
    graph = from_model(n.model(n.head(n.conv(n.op("Relu", y), 8, 6), 6)))
    plan = irtool.plan(graph, "l1", 0.5, "local")
    flows = "flows into Loop, which irtool does not know (at Loop_8)"
    assert [(len(layer.removed), layer.reason) for layer in plan.layers][:3] == [(0, flows), (0, flows), (3, "")]
    irtool.save_onnx(irtool.prune(graph, plan), tmp_path / "small.onnx")


def test_a_quantised_weight_that_a_branch_reads_stays_whole() -> None:
    n = Net()
    x = n.op("Relu", n.conv("x", 3, 8))
    whole = n.const(n.rng.integers(-9, 9, (8, 8, 3, 3)), np.int8)
    weight = n.op("DequantizeLinear", whole, n.weight(8, low=0.1), n.const(np.zeros(8), np.int8), axis=0)
    inside = helper.make_node("Conv", [x, weight], ["conv_out"], name="inside", pads=[1] * 4)
    y = n.op("Conv", _if(n, inside, x, False), weight, pads=[1] * 4)
    graph = from_model(n.model(n.head(n.conv(n.op("Relu", y), 8, 6), 6)))
    layers = irtool.plan(graph, "l1", 0.5, "local").layers
    assert [len(layer.removed) for layer in layers] == [0, 0, 3, 0]
    assert all(layer.reason.startswith("flows into If") for layer in layers[:2])
