"""Operators whose mode is told by their outputs: a batch norm in training mode, a layer norm that gives its statistics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_judge import in_onnxruntime, relative
from onnx_nets import Net

import irtool
from irtool.hosts.onnx.files.load import from_model
from irtool.passmanager import make

PASSES = ("fold_constants", "fold_batchnorm", "fold_norm_forward", "lower_affine", "widen_selects", "remove_identity")


def training_norm(
    opset: int, *, spatial: int = 1, outputs: tuple[str, ...] = ("mean", "var", "saved_mean", "saved_var")
) -> onnx.ModelProto:
    n = Net(opset)
    x = n.conv(n.cbr("x", 3, 8), 8, 10)
    parameters = [n.weight(10, low=0.5), n.weight(10), n.weight(10), n.weight(10, low=0.5)]
    attrs = {"training_mode": 1} if opset >= 14 else {"spatial": spatial} if opset < 9 else {}
    n.nodes.append(helper.make_node("BatchNormalization", [x, *parameters], ["normed", *outputs], name="norm", **attrs))
    return n.model(n.head(n.op("Relu", n.conv("normed", 10, 12)), 12))


@pytest.mark.parametrize("opset", [7, 8, 9, 12, 13, 14, 17])
def test_batch_norm_in_training_mode_is_neither_folded_nor_pruned(opset: int, tmp_path: Path) -> None:
    outputs = ("mean", "var") if opset >= 14 else ("mean", "var", "saved_mean", "saved_var")
    model = training_norm(opset, outputs=outputs)
    graph = from_model(model)
    node = graph.node("norm")
    assert (node.op, node.callee) == ("Opaque", "batch norm in training mode")
    folded = irtool.Pipeline([make(name) for name in PASSES])(graph).graph
    plan = irtool.plan(graph, "l1", 0.5)
    reasons = {layer.name: layer.reason for layer in plan.layers}
    assert plan.removed > 0
    assert any("training mode" in (reason or "") for reason in reasons.values())
    assert irtool.check_prune(graph, plan).ok
    x = np.random.default_rng(1).normal(size=(4, 3, 12, 12)).astype(np.float32)
    onnx.save(model, tmp_path / "m.onnx")
    irtool.save_onnx(folded, tmp_path / "folded.onnx")
    assert relative(in_onnxruntime(tmp_path / "folded.onnx", x)[0], in_onnxruntime(tmp_path / "m.onnx", x)[0]) <= 1e-5


def test_batch_norm_with_its_statistics_as_results_of_the_model(tmp_path: Path) -> None:
    model = training_norm(9)
    model.graph.output.append(helper.make_tensor_value_info("mean", onnx.TensorProto.FLOAT, [10]))
    graph = from_model(model)
    assert irtool.check_prune(graph, irtool.plan(graph, "l1", 0.5)).ok


def test_layer_norm_that_gives_its_mean() -> None:
    n = Net(17)
    x = n.op("Transpose", n.cbr("x", 3, 8), perm=[0, 2, 3, 1])
    normed, mean, _ = n.op("LayerNormalization", x, n.weight(8, low=0.5), n.weight(8), outputs=3)
    x = n.op("Transpose", n.op("Add", normed, mean), perm=[0, 3, 1, 2])
    graph = from_model(n.model(n.head(n.cbr(x, 8, 6), 6)))
    plan = irtool.plan(graph, "l1", 0.5)
    assert [len(layer.removed) for layer in plan.layers] == [0, 3, 0]
    assert irtool.check_prune(graph, plan).ok


def test_layer_norm_whose_statistics_nobody_reads() -> None:
    n = Net(17)
    x = n.op("Transpose", n.cbr("x", 3, 8), perm=[0, 2, 3, 1])
    normed, _, _ = n.op("LayerNormalization", x, n.weight(8, low=0.5), n.weight(8), outputs=3)
    graph = from_model(n.model(n.head(n.cbr(n.op("Transpose", normed, perm=[0, 3, 1, 2]), 8, 6), 6)))
    plan = irtool.plan(graph, "l1", 0.5)
    assert [len(layer.removed) for layer in plan.layers] == [4, 3, 0]
    assert irtool.check_prune(graph, plan).ok
