"""Sequences, bool inputs, inputs whose value matters, sparse initialisers, empty tensors: read as what they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx_nets import Net

import irtool
from irtool.errors import OptionError
from irtool.hosts.onnx.files.load import from_model

Run = Callable[..., tuple[int, str, str]]


def sequence(kind: str) -> ModelProto:
    n = Net(9 + 2 if kind == "opset11" else 17)
    x = n.cbr("x", 3, 12)
    if kind in ("scalar", "opset11"):
        parts = n.op("SplitToSequence", x, n.const(5), axis=1)
    elif kind == "listed":
        parts = n.op("SplitToSequence", x, n.const([2, 4, 6]), axis=1)
    elif kind == "single":
        parts = n.op("SplitToSequence", x, axis=1, keepdims=0)
    else:
        a, b, c = n.op("Split", x, n.const([4, 4, 4]), outputs=3, axis=1)
        parts = n.op("SequenceInsert", n.op("SequenceConstruct", n.op("Relu", b), a), n.op("Neg", c), n.const(-1))
        if kind == "erased":
            parts = n.op("SequenceErase", parts, n.const(1))
        if kind == "empty":
            parts = n.op("SequenceInsert", n.op("SequenceInsert", n.op("SequenceEmpty"), b), a, n.const(0))
    if kind in ("scalar", "listed", "opset11"):
        first = n.op("SequenceAt", parts, n.const(-1))
        width = 6 if kind == "listed" else 2
        y = n.op("Concat", n.cbr(first, width, 8), n.op("ConcatFromSequence", parts, axis=1), axis=1)
        return n.model(n.head(n.cbr(y, 20, 8), 8))
    if kind == "single":
        y = n.op("ConcatFromSequence", parts, axis=1, new_axis=1)
        return n.model(n.head(n.cbr(y, 12, 8), 8))
    return n.model(n.head(n.cbr(n.op("ConcatFromSequence", parts, axis=1), {"erased": 8, "empty": 8}.get(kind, 12), 8), 8))


@pytest.mark.parametrize("kind", ["scalar", "listed", "single", "opset11", "constructed", "erased", "empty"])
def test_sequences_are_splits_and_concats(kind: str) -> None:
    model = sequence(kind)
    graph = from_model(model)
    assert not any("Sequence" in node.callee for node in graph.nodes)
    x = torch.randn(2, 3, 12, 12)
    expected = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x.numpy()})[0]
    assert np.allclose(graph.run(x)[0].numpy(), expected, atol=1e-5)
    plan = irtool.plan(graph, "random", 0.5)
    assert sum(len(layer.removed) for layer in plan.layers) >= (4 if kind == "single" else 8)  # one channel a part: none can go there
    assert irtool.check_prune(graph, plan).ok


def chosen_by_data() -> ModelProto:
    """The data say which part is taken: a barrier."""
    n = Net(17, (1, 3, 8, 8))
    x = n.cbr(n.cbr("x", 3, 16), 16, 12)
    parts = n.op("SplitToSequence", x, n.const(6), axis=1)
    which = n.op("Cast", n.op("Greater", n.op("ReduceSum", "x", keepdims=0), n.const(0, np.float32)), to=TensorProto.INT64)
    return n.model(n.head(n.conv(n.op("SequenceAt", parts, which), 6, 8), 8))


def test_a_part_that_the_data_choose_is_behind_a_barrier() -> None:
    graph = from_model(chosen_by_data())
    plan = irtool.plan(graph, "random", 0.5)
    assert len(plan.layers[0].removed) >= 7
    assert irtool.check_prune(graph, plan).ok


def typed_inputs(n: Net, output: str, **more: tuple[int, list[int | str]]) -> ModelProto:
    model = n.model(output)
    model.graph.input.extend(helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in more.items())
    return model


def masked() -> ModelProto:
    n = Net(17, (1, 3, 8, 8))
    y = n.op("Where", "mask", n.cbr(n.cbr("x", 3, 16), 16, 12), n.const(-1.0, np.float32))
    out = n.head(n.cbr(y, 12, 8), 8)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, n.shape)
    mask = helper.make_tensor_value_info("mask", TensorProto.BOOL, [1, 1, 8, 8])
    weights = [numpy_helper.from_array(array, name) for name, array in n.weights.items()]
    infos = [helper.make_tensor_value_info(out, TensorProto.FLOAT, [1, 4])]
    graph = helper.make_graph(n.nodes, "net", [x, mask], infos, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_bool_inputs_are_masks(cli: Run, tmp_path: Path) -> None:
    graph = from_model(masked())
    assert bool(graph.example_inputs[1].all())
    plan = irtool.plan(graph, "random", 0.5)
    assert [len(layer.removed) >= 4 for layer in plan.layers[:3]] == [True] * 3
    mask = torch.rand(1, 1, 8, 8) > 0.5
    assert irtool.check_prune(graph, plan, (torch.randn(1, 3, 8, 8), mask)).ok
    onnx.save(masked(), tmp_path / "net.onnx")
    code, _, err = cli("compress", tmp_path / "net.onnx", "--ratio", "0.5", "--runs", "1", "--out", tmp_path / "out")
    assert code == 0, err


def by_rate(kind: int = TensorProto.INT64, nested: bool = False) -> ModelProto:
    """Speech nets: one branch of the net for each sample rate."""
    n = Net(17, (1, 3, 8, 8))
    x = n.cbr("x", 3, 16)
    branches = {}
    for name, width in (("then_branch", 12), ("else_branch", 20)):
        inner = Net(17)
        inner.count, inner.rng = 100 * width, np.random.default_rng(width)
        y = inner.head(inner.cbr(inner.cbr(x, 16, width), width, 8), 8)
        held = [numpy_helper.from_array(array, key) for key, array in inner.weights.items()]
        out = helper.make_tensor_value_info(y, TensorProto.FLOAT, [1, 4])
        branches[name] = helper.make_graph(inner.nodes, name, [], [out], held)
    rate = n.const(16000, helper.tensor_dtype_to_np_dtype(kind))
    y = n.op("If", n.op("Equal", "sr", rate), **branches)
    x_info = helper.make_tensor_value_info("x", TensorProto.FLOAT, n.shape)
    weights = [numpy_helper.from_array(array, name) for name, array in n.weights.items()]
    graph = helper.make_graph(n.nodes, "net", [x_info, helper.make_tensor_value_info("sr", kind, [])],
                              [helper.make_tensor_value_info(y, TensorProto.FLOAT, [1, 4])], weights)  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("rate", [16000, 8000])
@pytest.mark.parametrize("kind", [TensorProto.INT64, TensorProto.FLOAT])
def test_an_input_whose_value_is_given_decides_the_branch(rate: int, kind: int) -> None:
    model = by_rate(kind)
    graph = from_model(model, values={"sr": rate})
    assert [value.name for value in graph.inputs] == ["x"]
    assert "'sr' is" in graph.notes[0]
    x = torch.randn(1, 3, 8, 8)
    sr = np.array(rate, helper.tensor_dtype_to_np_dtype(kind))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert np.allclose(graph.run(x)[0].numpy(), session.run(None, {"x": x.numpy(), "sr": sr})[0], atol=1e-5)
    plan = irtool.plan(graph, "random", 0.5)
    assert [len(layer.removed) > 2 for layer in plan.layers[:3]] == [True] * 3
    assert irtool.check_prune(graph, plan).ok


def test_set_on_the_command_line(cli: Run, tmp_path: Path) -> None:
    onnx.save(by_rate(), tmp_path / "net.onnx")
    code, out, err = cli("compress", tmp_path / "net.onnx", "--set", "sr=16000", "--ratio", "0.5", "--runs", "1", "--out", tmp_path / "out")
    assert code == 0, err
    assert [value.name for value in onnx.load(tmp_path / "out" / "model.onnx").graph.input] == ["x"]
    assert "'sr' is 16000 for good" in out
    assert cli("verify", tmp_path / "out")[0] == 0
    for wrong, match in (
        ("rate=1", "no input is called"),
        ("sr=fast", "gives no number"),
        ("sr=1.5", "whole numbers"),
        ("16000", "names no input"),
    ):
        code, _, err = cli("compress", tmp_path / "net.onnx", "--set", wrong, "--out", tmp_path / "no")
        assert code
        assert match in err
        assert "Traceback" not in err


def test_every_input_cannot_be_given() -> None:
    with pytest.raises(OptionError, match="every input has a value"):
        from_model(by_rate(), values={"sr": 1, "x": 0})


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
@pytest.mark.parametrize("linear", [True, False])
def test_sparse_initialisers_keep_their_type(dtype: type, linear: bool) -> None:
    n = Net(17, (1, 3, 8, 8))
    y = n.cbr("x", 3, 12)
    y = n.op("Mul", y, n.op("Cast", "sparse", to=TensorProto.FLOAT))
    n.weights["sparse"] = np.zeros((12, 1, 1), dtype)
    model = n.model(n.head(n.cbr(y, 12, 8), 8))
    (held,) = [tensor for tensor in model.graph.initializer if tensor.name == "sparse"]
    model.graph.initializer.remove(held)
    places = np.array([1, 5, 9]) if linear else np.array([[1, 0, 0], [5, 0, 0], [9, 0, 0]])
    values = numpy_helper.from_array(np.array([2, 3, 4], dtype), "sparse")
    model.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, numpy_helper.from_array(places.astype(np.int64), "places"), [12, 1, 1])
    )
    graph = from_model(model)
    dense = np.zeros((12, 1, 1), np.float32)
    dense[[1, 5, 9], 0, 0] = [2, 3, 4]
    scale = next(value.data for value in graph.params.values() if value.sizes == (12, 1, 1))
    assert np.array_equal(scale.numpy(), dense)
    assert irtool.check_prune(graph, irtool.plan(graph, "random", 0.5)).ok


def with_empty(kind: str) -> ModelProto:
    n = Net(17, (1, 3, 8, 8))
    y = n.cbr("x", 3, 12)
    empty = {
        "constant": lambda: n.const(np.zeros((1, 0, 8, 8)), np.float32),
        "node": lambda: n.const(np.zeros((1, 0, 8, 8)), np.float32, node=True),
        "vector": lambda: n.const(np.zeros((1, 0, 8, 8)), np.float32),
        "sliced": lambda: n.op("Slice", y, n.const([12]), n.const([20]), n.const([1])),
        "filled": lambda: n.op(
            "ConstantOfShape", n.op("Concat", n.op("Slice", n.op("Shape", y), n.const([0]), n.const([1])), n.const([0, 8, 8]), axis=0)
        ),
    }[kind]()
    return n.model(n.head(n.cbr(n.op("Concat", empty, y, axis=1), 12, 8), 8))


@pytest.mark.parametrize("kind", ["constant", "node", "sliced", "filled"])
def test_empty_tensors_in_a_concat(kind: str) -> None:
    graph = from_model(with_empty(kind))
    plan = irtool.plan(graph, "random", 0.5)
    assert [len(layer.removed) > 2 for layer in plan.layers[:2]] == [True] * 2
    assert irtool.check_prune(graph, plan).ok
