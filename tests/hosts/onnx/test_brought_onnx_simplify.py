"""`irtool simplify`: shape chains folded, dead and duplicate operators gone, free axes free, numbers untouched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from onnx_nets import NETS, Net, shape_chain

import irtool
from irtool.errors import OptionError
from irtool.hosts.onnx.files.load import from_model

Run = Callable[..., tuple[int, str, str]]


def shuffles(blocks: int = 3) -> onnx.ModelProto:
    """Channel shuffles as TorchScript's exporter writes them for a free batch, each with a Shape chain of its own for each size."""
    n = Net(17, ("N", 3, 12, 12))
    x = n.cbr("x", 3, 12)
    for _ in range(blocks):
        sizes = [n.op("Gather", n.op("Shape", x), n.const(axis), axis=0) for axis in range(4)]
        half = n.op("Cast", n.op("Cast", n.op("Div", sizes[1], n.const(2)), to=TensorProto.INT64), to=TensorProto.INT64)
        parts = [n.op("Unsqueeze", size, n.const([0])) for size in (sizes[0], half, sizes[2], sizes[3])]
        apart = n.op("Concat", parts[0], n.const([2]), *parts[1:], axis=0)
        whole = n.op("Concat", parts[0], n.const([-1]), *parts[2:], axis=0)
        x = n.op("Reshape", n.op("Transpose", n.op("Reshape", x, apart), perm=[0, 2, 1, 3, 4]), whole)
        x = n.cbr(x, 12, 12)
    return n.model(n.head(x, 12))


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def test_shape_chains_are_written_down_and_the_batch_stays_free() -> None:
    model = shuffles()
    simple = irtool.simplify(from_model(model))
    kinds = [node.op for node in simple.host.nodes]
    assert set(kinds) == {"Conv", "BatchNormalization", "Relu", "Reshape", "Transpose", "GlobalAveragePool", "Flatten", "Gemm"}
    assert len(kinds) == 4 * 3 + 3 * 3 + 3
    for batch in (1, 2, 5):
        x = np.random.default_rng(batch).standard_normal((batch, 3, 12, 12)).astype(np.float32)
        assert np.array_equal(session(simple.proto).run(None, {"x": x})[0], session(model).run(None, {"x": x})[0])


@pytest.mark.parametrize("name", NETS)
def test_numbers_are_untouched(name: str) -> None:
    graph = from_model(NETS[name]())
    simple = irtool.simplify(graph)
    assert len(simple.host.nodes) <= len(graph.host.nodes)
    x = torch.randn(graph.example_inputs[0].shape)
    assert all(torch.equal(a, b) for a, b in zip(graph.run(x), simple.run(x), strict=True))


def free_image() -> onnx.ModelProto:
    """A free batch and free image sizes: two sizes of a view that are not those of its input stay computed."""
    n = Net(17, ("N", 3, "H", "W"))
    x = n.op("MaxPool", n.cbr("x", 3, 8), kernel_shape=[2, 2], strides=[2, 2])
    sizes = n.op("Slice", n.op("Shape", "x"), n.const([2]), n.const([4]), n.const([0]))
    back = n.op(
        "Resize", x, "", "", n.op("Concat", n.op("Slice", n.op("Shape", x), n.const([0]), n.const([2]), n.const([0])), sizes, axis=0)
    )
    return n.model(n.head(n.op("Add", back, n.cbr("x", 3, 8)), 8))


def test_free_image_sizes_stay_free(cli: Run, tmp_path: Path) -> None:
    model = free_image()
    onnx.save(model, tmp_path / "net.onnx")
    code, out, err = cli("simplify", tmp_path / "net.onnx", "--out", tmp_path / "simple.onnx")
    assert code == 0, err
    assert out.count("holds") == 3
    small = onnx.load(tmp_path / "simple.onnx")
    for shape in ((1, 3, 64, 64), (3, 3, 40, 24)):
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        assert np.array_equal(session(small).run(None, {"x": x})[0], session(model).run(None, {"x": x})[0])


def test_a_free_size_in_another_type_is_no_constant() -> None:
    """As attention's scale is exported: the stand-ins of a free size are one number when rounded to float32."""
    n = Net(17, ("N", 3, "H", "W"))
    width = n.op("Slice", n.op("Shape", "x"), n.const([-1]), n.const([2**63 - 1]))
    x = n.op("Div", n.conv("x", 3, 8), n.op("Sqrt", n.op("Cast", width, to=TensorProto.FLOAT)))
    model = n.model(n.head(x, 8))
    small = irtool.simplify(from_model(model, [(1, 3, 8, 8)])).proto
    for shape in ((1, 3, 8, 8), (2, 3, 6, 11)):
        image = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        np.testing.assert_array_equal(session(small).run(None, {"x": image})[0], session(model).run(None, {"x": image})[0])


def repeated() -> onnx.ModelProto:
    """One operator three times, once with another attribute, and one that draws."""
    n = Net(17, (1, 3, 8, 8))
    x = n.cbr("x", 3, 8)
    pools = [n.op("MaxPool", x, kernel_shape=[k, k], pads=[k // 2] * 4) for k in (3, 3, 5)]
    n.op("Sigmoid", x)
    return n.model(n.head(n.op("Concat", *pools, n.op("Slice", x, n.const([0]), n.const([4]), n.const([1])), axis=1), 28))


def test_dead_and_duplicate_operators_go(cli: Run, tmp_path: Path) -> None:
    onnx.save(repeated(), tmp_path / "net.onnx")
    code, out, err = cli("simplify", tmp_path / "net.onnx", "--out", tmp_path / "simple.onnx")
    assert code == 0, err
    kinds = [node.op_type for node in onnx.load(tmp_path / "simple.onnx").graph.node]
    assert (kinds.count("MaxPool"), kinds.count("Sigmoid")) == (2, 0)
    assert f"operators became {len(kinds)}" in out


def test_what_draws_random_numbers_is_no_duplicate() -> None:
    n = Net(17, (1, 3, 8, 8))
    draws = [n.op("RandomNormalLike", "x") for _ in range(2)]
    simple = irtool.simplify(from_model(n.model(n.head(n.op("Add", n.op("Relu", "x"), n.op("Sub", *draws)), 3))))
    assert [node.op for node in simple.host.nodes].count("RandomNormalLike") == 2


def test_a_simplified_file_is_pruned_as_the_original_is() -> None:
    graph = from_model(shape_chain())
    simple = irtool.simplify(graph)
    removed = [[layer.removed for layer in irtool.plan(g, "l1", 0.5).layers] for g in (graph, simple)]
    assert removed[0] == removed[1]
    assert irtool.check_prune(simple, irtool.plan(simple, "l1", 0.5)).ok


def test_a_model_that_is_no_onnx_file_is_refused(cli: Run, tmp_path: Path) -> None:
    code, _, err = cli("simplify", "VGG:depth=11", "--out", tmp_path / "simple.onnx")
    assert code
    assert "not an .onnx file" in err
    with pytest.raises(OptionError, match="works on ONNX graphs"):
        irtool.simplify(irtool.trace(torch.nn.Conv2d(3, 4, 1), torch.zeros(1, 3, 4, 4)))


def test_batch_norms_are_folded_where_it_is_asked_for(cli: Run, tmp_path: Path) -> None:
    onnx.save(shuffles(), tmp_path / "net.onnx")
    code, out, err = cli("simplify", tmp_path / "net.onnx", "--fold-batchnorm", "--out", tmp_path / "simple.onnx")
    assert code == 0, err
    assert out.count("holds") == 2
    assert {node.op_type for node in onnx.load(tmp_path / "simple.onnx").graph.node}.isdisjoint({"BatchNormalization", "Shape"})
