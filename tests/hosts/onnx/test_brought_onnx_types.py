"""Files in float16 and float64, that draw random numbers, take a number, return a constant, or sample at computed places."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_judge import in_onnxruntime
from onnx_nets import Net

import irtool
from irtool.errors import CheckError
from irtool.hosts.onnx.files.load import from_model
from irtool.workflows.equality.chain import folded_links


def made(n: Net, outputs: dict[str, int], inputs: dict[str, list[object]] | None = None, kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """A model whose inputs, outputs and weights are of one type."""
    infos = [helper.make_tensor_value_info(name, kind, [None] * rank) for name, rank in outputs.items()]
    given = [helper.make_tensor_value_info(name, kind, shape) for name, shape in {"x": n.shape, **(inputs or {})}.items()]
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    weights = [numpy_helper.from_array(a.astype(dtype) if a.dtype == np.float32 else a, name) for name, a in n.weights.items()]
    graph = helper.make_graph(n.nodes, "net", given, infos, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", n.opset)], ir_version=8)


def two_layers(n: Net) -> str:
    return n.conv(n.cbr("x", 3, 16), 16, 8)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE], ids=["float16", "float64"])
def test_a_rewrite_of_a_file_in_another_width_is_shown_in_float32(kind: int, tmp_path: Path) -> None:
    n = Net(17, ("N", 3, 8, 8))
    model = made(n, {two_layers(n): 4}, kind=kind)
    graph = from_model(model, [(2, 3, 8, 8)])
    plan = irtool.plan(graph, "l1", 0.5, round_to=1)
    for constants in ("drop", "absorb"):
        check = irtool.check_prune(graph, plan, constants=constants)
        assert check.ok
        assert check.tolerance == 1e-5
    pruned = irtool.prune(graph, plan)
    assert {str(value.dtype) for value in pruned.params.values()} == {"torch.float16" if kind == TensorProto.FLOAT16 else "torch.float64"}
    if kind == TensorProto.FLOAT16:  # onnxruntime has no convolution in float64
        irtool.save_onnx(pruned, tmp_path / "half.onnx")
        assert in_onnxruntime(tmp_path / "half.onnx", np.ones((2, 3, 8, 8), np.float16))[0].dtype == np.float16
        links = folded_links(pruned, irtool.fold_batchnorm(pruned), pruned.example_inputs)
        assert [link.arithmetic for link in links] == ["float32", "as stored"]
        assert all(link.ok for link in links)


@pytest.mark.parametrize("where", ["between layers", "weights"])
def test_a_file_with_bfloat16_in_it_is_compressed(where: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """numpy has no such type, and onnxruntime hands no such numbers out: they are looked at in float32."""
    n = Net(17, ("N", 3, 8, 8))
    y = n.cbr("x", 3, 16)
    if where == "weights":
        kernel = n.op("Cast", n.op("Cast", n.const(np.random.default_rng(0).normal(size=(8, 16, 3, 3)), np.float32), to=16), to=1)
        y = n.op("Conv", y, kernel, pads=[1, 1, 1, 1])
    else:
        y = n.conv(n.op("Cast", n.op("Cast", y, to=16), to=1), 16, 8)
    onnx.save(made(n, {n.conv(y, 8, 4): 4}), tmp_path / "net.onnx")
    done = irtool.compress(tmp_path / "net.onnx", out=tmp_path / "out", ratio=0.5, runs=1)
    assert done.report.channels[1] <= 0.7 * done.report.channels[0]
    done.report.chain.require()
    x = np.random.default_rng(0).normal(size=(3, 3, 8, 8)).astype(np.float32)
    assert in_onnxruntime(tmp_path / "out" / "model.onnx", x)[0].shape == (3, 4, 8, 8)
    assert capfd.readouterr() == ("", "")


def test_a_dropout_in_training_mode_and_noise_are_named(tmp_path: Path) -> None:
    n = Net(13, ("N", 3, 8, 8))
    y = n.op("Dropout", n.cbr("x", 3, 16), n.const(0.5, np.float32), n.const(True, bool))
    graph = from_model(made(n, {n.conv(y, 16, 8): 4}), [(1, 3, 8, 8)])
    plan = irtool.plan(graph, "l1", 0.5, round_to=1)
    assert irtool.check_prune(graph, plan).ok
    assert [node.op for node in graph.drawing()] == ["Dropout"]
    n = Net(13, ("N", 3, 8, 8))
    y = n.cbr("x", 3, 16)
    noisy = made(n, {n.conv(n.op("Add", y, n.op("RandomNormalLike", y)), 16, 8): 4})
    onnx.save(noisy, tmp_path / "noisy.onnx")
    with pytest.raises(CheckError, match=r"RandomNormalLike draws random numbers.*take the operator out"):
        irtool.compress(tmp_path / "noisy.onnx", out=tmp_path / "out")


def test_a_dropout_that_is_off_draws_nothing() -> None:
    n = Net(13, ("N", 3, 8, 8))
    y = n.op("Dropout", n.cbr("x", 3, 16), n.const(0.5, np.float32), n.const(False, bool))
    assert not from_model(made(n, {n.conv(y, 16, 8): 4}), [(1, 3, 8, 8)]).drawing()


def test_a_number_as_an_input_and_a_constant_as_an_output(tmp_path: Path) -> None:
    n = Net(17, ("N", 3, 8, 8))
    y = n.conv(n.op("Mul", n.cbr("x", 3, 16), "alpha"), 16, 8)
    onnx.save(made(n, {y: 4, n.const([1, 2, 3], np.float32): 1}, {"alpha": []}), tmp_path / "net.onnx")
    irtool.compress(tmp_path / "net.onnx", out=tmp_path / "out", ratio=0.5)
    x, alpha = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32), np.array(0.5, np.float32)
    small = in_onnxruntime(tmp_path / "out" / "model.onnx", x, alpha)
    assert small[1].tolist() == [1, 2, 3]


def test_places_to_sample_at_stay_and_what_is_sampled_is_pruned() -> None:
    n = Net(16, ("N", 3, 8, 8))
    y = n.cbr("x", 3, 16)
    grid = n.op("Tanh", n.op("Transpose", n.conv(y, 16, 2), perm=[0, 2, 3, 1]))
    boxes = n.const([[0, 0, 4, 4], [1, 1, 6, 6]], np.float32)
    z = n.op("RoiAlign", n.op("GridSample", y, grid), boxes, n.const([0, 0]), output_height=2, output_width=2)
    graph = from_model(made(n, {n.conv(z, 16, 8): 4}), [(1, 3, 8, 8)])
    plan = irtool.plan(graph, "l1", 0.5, round_to=1)
    assert [len(layer.removed) for layer in plan.layers] == [8, 0, 0]
    assert irtool.check_prune(graph, plan).ok
