"""The distance of outputs, of nets whose outputs are whole numbers or not finite."""

from __future__ import annotations

import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_nets import Net

import irtool
from irtool.errors import DataError
from irtool.hosts.onnx.files.load import from_model
from irtool.pruning.reconstruct.distance import distance


def test_classes_of_pixels_are_compared_by_the_share_that_differs() -> None:
    aim = torch.arange(8).reshape(1, 2, 4)
    assert float(distance([aim], [aim])) == 0
    assert float(distance([aim.clamp(max=5)], [aim])) == 0.25
    n = Net(17, ("N", 3, 8, 8))
    classes = n.op("ArgMax", n.conv(n.cbr("x", 3, 8), 8, 4), axis=1, keepdims=0)
    weights = [numpy_helper.from_array(array, name) for name, array in n.weights.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, n.shape)
    graph = helper.make_graph(n.nodes, "net", [x], [helper.make_tensor_value_info(classes, TensorProto.INT64, ["N", 8, 8])], weights)
    segmenter = from_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), [(2, 3, 8, 8)])
    small = irtool.reconstruct(segmenter, irtool.plan(segmenter, "l1", ratio=0.5))
    assert small.run(torch.randn(2, 3, 8, 8))[0].dtype is torch.int64


def test_a_layer_that_reads_no_numbers_is_named() -> None:
    n = Net(17, ("N", 3, 8, 8))
    broken = n.op("Log", n.op("Sub", n.cbr("x", 3, 8), n.const(1e3, "float32")))
    graph = from_model(n.model(n.head(n.conv(broken, 8, 8), 8)), [(2, 3, 8, 8)])
    with pytest.raises(DataError, match="not finite"):
        irtool.reconstruct(graph, irtool.plan(graph, "l1", ratio=0.5))
