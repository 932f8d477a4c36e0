"""Not stricter than the engine: what onnxruntime takes is read as it reads it, written right, and said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper
from onnx_nets import residual

import irtool

Run = Callable[..., tuple[int, str, str]]


def no_shape(model: ModelProto) -> None:
    model.graph.output[0].type.tensor_type.ClearField("shape")


def no_type(model: ModelProto) -> None:
    model.graph.output[0].ClearField("type")


def wrong_size(model: ModelProto) -> None:
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info(model.graph.output[0].name, TensorProto.FLOAT, [1, 7]))


def wrong_rank(model: ModelProto) -> None:
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info(model.graph.output[0].name, TensorProto.FLOAT, [1, 4, 1, 1]))


def wrong_inside(model: ModelProto) -> None:
    model.graph.value_info.append(helper.make_tensor_value_info(model.graph.node[0].output[0], TensorProto.FLOAT, [1, 2, 3, 4]))


def old_ir(model: ModelProto) -> None:
    model.ir_version = 3


def no_ir(model: ModelProto) -> None:
    model.ClearField("ir_version")


def no_name(model: ModelProto) -> None:
    model.graph.ClearField("name")


def shuffled(model: ModelProto) -> None:
    nodes = list(model.graph.node)[::-1]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)


DAMAGE: dict[str, tuple[Callable[[ModelProto], None], str]] = {
    "no_shape": (no_shape, "had no shape"), "no_type": (no_type, "had no shape"), "wrong_size": (wrong_size, "another shape"),
    "wrong_rank": (wrong_rank, "another shape"), "wrong_inside": (wrong_inside, ""), "old_ir": (old_ir, "IR version 4, the file said 3"),
    "no_ir": (no_ir, ""), "no_name": (no_name, ""), "shuffled": (shuffled, "put in order"),
}  # fmt: skip


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_file_that_onnxruntime_runs_is_read_and_written_right(kind: str, free: bool, tmp_path: Path) -> None:
    damage, note = DAMAGE[kind]
    model = residual(shape=("N" if free else 1, 3, 12, 12))
    whole = model.SerializeToString()
    damage(model)
    path = tmp_path / "net.onnx"
    path.write_bytes(model.SerializeToString())
    x = np.random.default_rng(0).standard_normal((1, 3, 12, 12)).astype(np.float32)
    expected = onnxruntime.InferenceSession(whole, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    graph = irtool.load_onnx(path)
    assert note in " ".join(graph.notes)
    assert note or len(graph.notes) <= 1
    irtool.save_onnx(graph, tmp_path / "written.onnx")
    onnx.checker.check_model(str(tmp_path / "written.onnx"), full_check=True)
    session = onnxruntime.InferenceSession(str(tmp_path / "written.onnx"), providers=["CPUExecutionProvider"])
    assert np.allclose(session.run(None, {"x": x})[0], expected, atol=1e-5)
    assert session.get_outputs()[0].shape[1:] == [4]
    assert isinstance(session.get_outputs()[0].shape[0], int) is not free
    assert not irtool.load_onnx(tmp_path / "written.onnx").notes
    plan = irtool.plan(graph, "l1", 0.5)
    assert irtool.check_prune(graph, plan).ok


@pytest.mark.parametrize("kind", ["no_shape", "wrong_size", "old_ir", "shuffled"])
def test_what_was_mended_is_said_by_the_command(cli: Run, kind: str, tmp_path: Path) -> None:
    model = residual()
    DAMAGE[kind][0](model)
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    code, out, err = cli("compress", tmp_path / "net.onnx", "--ratio", "0.5", "--runs", "1", "--out", tmp_path / "out")
    assert code == 0, err
    assert DAMAGE[kind][1] in out + err
    onnx.checker.check_model(str(tmp_path / "out" / "model.onnx"), full_check=True)
