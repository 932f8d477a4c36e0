"""Slices of several axes, one of which goes over pruned channels in steps."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_judge import in_onnxruntime, relative, zeroed_original
from onnx_nets import Net

import irtool
from irtool.hosts.onnx.files.load import from_model


@pytest.mark.parametrize("ratio", [0.3, 0.6])
def test_steps_over_channels_become_gathers_where_other_axes_are_sliced_too(ratio: float) -> None:
    n = Net(17)
    x = n.cbr("x", 3, 24)
    odd = n.op("Slice", x, n.const([1, -2]), n.const([24, -11]), n.const([1, 2]), n.const([2, -1]))
    back = n.op("Slice", x, n.const([20, 0]), n.const([2, 9]), n.const([1, 3]), n.const([-3, 2]))
    model = n.model(n.op("Add", n.head(odd, 12), n.head(back, 6)))
    graph = from_model(model, [(1, 3, 12, 12)])
    plan = irtool.plan(graph, "l1", ratio=ratio)
    small = irtool.prune(graph, plan, "drop")
    assert plan.removed
    assert "Gather" in {node.host.op for node in small.nodes if node.host is not None}
    zeroed = zeroed_original(model, plan, 1, 3, 12, 12).SerializeToString()
    for batch in (1, 3):
        x = np.random.default_rng(batch).normal(size=(batch, 3, 12, 12)).astype(np.float32)
        (expected,), (got,) = in_onnxruntime(zeroed, x), in_onnxruntime(small.proto.SerializeToString(), x)
        assert relative(expected, got) <= 1e-5
