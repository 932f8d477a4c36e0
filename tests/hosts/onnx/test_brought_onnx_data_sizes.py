"""Sizes that are data (detections, entries that are not zero): the trunk is pruned, what lies behind is a barrier."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from onnx_nets import Net

import irtool
from irtool.hosts.onnx.files.load import from_model

Run = Callable[..., tuple[int, str, str]]


def trunk(n: Net, outputs: int) -> str:
    return n.conv(n.cbr(n.cbr(n.cbr("x", 3, 16), 16, 16), 16, 8), 8, outputs, 1)


def typed(n: Net, outputs: list[str], ranks: list[int], kinds: list[int]) -> onnx.ModelProto:
    infos = [helper.make_tensor_value_info(o, k, [None] * r) for o, k, r in zip(outputs, kinds, ranks, strict=True)]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, n.shape)
    weights = [onnx.numpy_helper.from_array(array, name) for name, array in n.weights.items()]
    graph = helper.make_graph(n.nodes, "net", [x], infos, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", n.opset)], ir_version=8)


def suppressed(threshold: float = 0.5) -> onnx.ModelProto:
    """A detector as exporters end it: NonMaxSuppression, then GatherND by its indices."""
    n = Net(17, (1, 3, 8, 8))
    y = n.op("Reshape", trunk(n, 6), n.const([1, 6, 64]))
    boxes, scores = n.op("Split", y, n.const([4, 2]), outputs=2, axis=1)
    boxes, scores = n.op("Transpose", boxes, perm=[0, 2, 1]), n.op("Sigmoid", scores)
    kept = n.op("NonMaxSuppression", boxes, scores, n.const([20]), n.const([0.4], np.float32), n.const([threshold], np.float32))
    batch_box = n.op("Gather", kept, n.const([0, 2]), axis=1)
    return typed(n, [n.op("GatherND", boxes, batch_box), n.op("GatherND", scores, kept), kept], [2, 1, 2],
                 [TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.INT64])  # fmt: skip


def nonzero() -> onnx.ModelProto:
    """Scores above a bound, by NonZero and GatherND."""
    n = Net(17, (1, 3, 8, 8))
    y = n.op("Sigmoid", trunk(n, 2))
    places = n.op("Transpose", n.op("NonZero", n.op("Greater", y, n.const(0.5, np.float32))), perm=[1, 0])
    return n.model(n.op("GatherND", y, places), ranks=[1])


def compressed() -> onnx.ModelProto:
    """Rows that a condition keeps, and a linear layer behind them."""
    n = Net(17, (1, 3, 8, 8))
    rows = n.op("Transpose", n.op("Reshape", trunk(n, 5), n.const([5, 64])), perm=[1, 0])
    best = n.op("ReduceMax", rows, axes=[1], keepdims=0)
    kept = n.op("Compress", rows, n.op("Greater", best, n.const(0.0, np.float32)), axis=0)
    return n.model(n.op("Gemm", kept, n.weight(7, 5), n.weight(7), transB=1))


def computed_k() -> onnx.ModelProto:
    """As many of the best as there are above a bound."""
    n = Net(17, (1, 3, 8, 8))
    y = n.op("Reshape", trunk(n, 1), n.const([64]))
    above = n.op("Cast", n.op("Greater", y, n.const(0.0, np.float32)), to=TensorProto.INT64)
    k = n.op("Reshape", n.op("ReduceSum", above, keepdims=0), n.const([1]))
    return n.model(n.op("TopK", y, k, outputs=2)[0], ranks=[1])


def unique() -> onnx.ModelProto:
    n = Net(17, (1, 3, 8, 8))
    best = n.op("ArgMax", trunk(n, 6), axis=1)
    return typed(n, [n.op("Unique", best)], [1], [TensorProto.INT64])


def sliced_by_data() -> onnx.ModelProto:
    """Slice, Range, Expand, ConstantOfShape and Reshape with sizes that a count over the data gives."""
    n = Net(17, (1, 3, 8, 8))
    y = n.op("Reshape", trunk(n, 1), n.const([64]))
    above = n.op("Cast", n.op("Greater", y, n.const(0.0, np.float32)), to=TensorProto.INT64)
    count = n.op("ReduceSum", above, keepdims=0)
    one = n.op("Reshape", count, n.const([1]))
    first = n.op("Slice", y, n.const([0]), one, n.const([0]))
    steps = n.op("Cast", n.op("Range", n.const(0), count, n.const(1)), to=TensorProto.FLOAT)
    filled = n.op("ConstantOfShape", one)
    spread = n.op("Expand", n.const([2.0], np.float32), one)
    return n.model(n.op("Add", n.op("Add", first, steps), n.op("Add", filled, spread)), ranks=[1])


def rest_by_shape() -> onnx.ModelProto:
    """The Shape of a value whose size is data decides the sizes of others."""
    n = Net(17, (1, 3, 8, 8))
    y = n.op("Relu", trunk(n, 2))
    count = n.op("Shape", n.op("NonZero", y), start=1)
    zeros = n.op("ConstantOfShape", n.op("Concat", count, n.const([3]), axis=0))
    return n.model(n.op("MatMul", zeros, n.weight(3, 4)))


def looped() -> onnx.ModelProto:
    """A loop that runs as often as the data say, and gives a row a round."""
    n = Net(17, (1, 3, 8, 8))
    y = n.op("Reshape", trunk(n, 1), n.const([64]))
    above = n.op("Cast", n.op("Greater", y, n.const(0.0, np.float32)), to=TensorProto.INT64)
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["still"]), helper.make_node("Gather", [y, "i"], ["picked"])],
        "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []), helper.make_tensor_value_info("go", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("still", TensorProto.BOOL, []), helper.make_tensor_value_info("picked", TensorProto.FLOAT, [])],
    )
    return n.model(n.op("Loop", n.op("ReduceSum", above, keepdims=0), n.const(True, np.bool_), body=body), ranks=[1])


def two_stages() -> onnx.ModelProto:
    """Regions cut out at suppressed boxes, and a second network on them."""
    n = Net(17, (1, 3, 8, 8))
    features = n.cbr(n.cbr("x", 3, 16), 16, 12)
    y = n.op("Reshape", n.conv(n.cbr(features, 12, 8), 8, 5, 1), n.const([1, 5, 64]))
    boxes, scores = n.op("Split", y, n.const([4, 1]), outputs=2, axis=1)
    boxes = n.op("Transpose", boxes, perm=[0, 2, 1])
    kept = n.op("NonMaxSuppression", boxes, n.op("Sigmoid", scores), n.const([9]), n.const([0.4], np.float32), n.const([0.1], np.float32))
    place = n.op("Squeeze", n.op("Gather", kept, n.const([2]), axis=1), n.const([1]))
    rois = n.op("Gather", n.op("Squeeze", boxes, n.const([0])), place, axis=0)
    batch = n.op("Squeeze", n.op("Gather", kept, n.const([0]), axis=1), n.const([1]))
    regions = n.op("RoiAlign", features, rois, batch, output_height=2, output_width=2)
    return n.model(n.op("Gemm", n.op("Flatten", n.op("Relu", n.conv(regions, 12, 8))), n.weight(4, 32), n.weight(4), transB=1))


NETS: dict[str, Callable[[], onnx.ModelProto]] = {
    "suppressed": suppressed, "none_kept": lambda: suppressed(0.999), "nonzero": nonzero, "compressed": compressed, "computed_k": computed_k,
    "unique": unique, "sliced_by_data": sliced_by_data, "rest_by_shape": rest_by_shape, "looped": looped, "two_stages": two_stages,
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_the_trunk_before_sizes_that_are_data_is_pruned(name: str) -> None:
    graph = from_model(NETS[name]())
    plan = irtool.plan(graph, "random", 0.5)
    removed = [len(layer.removed) for layer in plan.layers]
    assert removed[0] >= 7
    assert sum(removed) >= (10 if name == "two_stages" else 16)
    found = irtool.check_prune(graph, plan)
    assert found.ok
    assert found.relative < 1e-5
    small = irtool.prune(graph, plan, constants="drop")
    assert irtool.cost(small).params < 0.6 * irtool.cost(graph).params or name == "two_stages"
    small.run(*small.example_inputs)


@pytest.mark.parametrize("name", NETS)
def test_a_wrong_trunk_is_seen_where_outputs_have_sizes_that_are_data(name: str) -> None:
    graph = from_model(NETS[name]())
    folded = irtool.fold_batchnorm(graph)
    x = (torch.randn(1, 3, 8, 8),)
    assert irtool.compare(graph, folded, x).ok()
    wrong = folded.clone()
    weight = next(name for name, value in wrong.params.items() if len(value.sizes) == 4)
    wrong.set_param(weight, wrong.params[weight].data * 1.05)
    assert not irtool.compare(graph, wrong, x).ok()


@pytest.mark.parametrize("name", ["suppressed", "none_kept", "nonzero", "looped"])
def test_the_main_job_writes_a_detector(cli: Run, name: str, tmp_path: Path) -> None:
    onnx.save(NETS[name](), tmp_path / "net.onnx")
    code, _, err = cli("compress", tmp_path / "net.onnx", "--ratio", "0.5", "--runs", "1", "--out", tmp_path / "out")
    assert code == 0, err
    small = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"), providers=["CPUExecutionProvider"])
    small.run(None, {"x": np.zeros((1, 3, 8, 8), np.float32)})
    assert (tmp_path / "out" / "model.onnx").stat().st_size < 0.7 * (tmp_path / "net.onnx").stat().st_size
