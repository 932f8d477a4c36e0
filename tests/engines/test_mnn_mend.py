"""Operators that MNN misreads are written as others; those it cannot run are not written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

import irtool
from irtool.engines import MnnSession, OnnxSession
from irtool.engines.mnn.workarounds import worked_around
from irtool.errors import ExportError


class Flip(nn.Module):
    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.convs = nn.ModuleList([nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.convs[1](self.convs[0](x))
        return self.convs[3](self.convs[2](x - x.flip(self.axis)))


def test_a_file_that_breaks_memory_when_the_batch_changes_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MNN 3.6 does with a slice of negative steps. Seen in another process, which it ends."""
    monkeypatch.setattr("irtool.engines.mnn.workarounds.worked_around", lambda model, source, folder: source)
    torch.manual_seed(0)
    graph = irtool.trace(Flip(0).eval(), torch.zeros(4, 3, 6, 6))
    irtool.export_onnx(graph, tmp_path / "flip.onnx")
    with pytest.raises(ExportError, match=r"MNN died with signal.*Export with fixed sizes"):
        irtool.export_mnn(tmp_path / "flip.onnx", tmp_path / "flip.mnn")
    assert not (tmp_path / "flip.mnn").exists()


@pytest.mark.parametrize("axis", [0, 1, 3])
def test_flips_run_at_any_batch(axis: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, images = Flip(axis).eval(), torch.randn(9, 3, 6, 6)
    irtool.export_onnx(irtool.trace(model, torch.zeros(4, 3, 6, 6)), tmp_path / "flip.onnx")
    irtool.export_mnn(tmp_path / "flip.onnx", tmp_path / "flip.mnn")
    session = MnnSession(tmp_path / "flip.mnn")
    with torch.no_grad():
        for batch in (4, 1, 9):
            torch.testing.assert_close(torch.from_numpy(session.run(images[:batch].numpy())[0]), model(images[:batch]), rtol=0, atol=1e-5)


def test_slices_that_go_back_are_gathers_of_the_same_numbers(tmp_path: Path) -> None:
    """Against onnxruntime's own slices: bounds from the end, outside the axis, steps of both signs in one node."""
    bounds = [([-1, 0], [-(2**63) + 1, 2], [-1, 1]), ([7, 5], [1, -9], [-2, -1]), ([4, -2], [-7, 0], [-3, -2]), ([-1, 1], [0, 99], [-1, 2])]
    values, nodes = {}, []
    for number, (starts, ends, steps) in enumerate(bounds):
        names = [f"{word}{number}" for word in ("starts", "ends", "axes", "steps")]
        values |= dict(zip(names, (starts, ends, [1, 2], steps), strict=True))
        nodes.append(helper.make_node("Slice", ["x", *names], [f"y{number}"]))
    held = [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in values.items()]
    image = helper.make_tensor_value_info("x", 1, ["N", 8, 6])
    outputs = [helper.make_tensor_value_info(f"y{number}", 1, None) for number in range(len(bounds))]
    model = helper.make_model(
        helper.make_graph(nodes, "slices", [image], outputs, held), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    onnx.save(model, tmp_path / "slices.onnx")
    path = worked_around(model, tmp_path / "slices.onnx", tmp_path)
    assert {node.op_type for node in onnx.load(path).graph.node} == {"Gather"}
    x = np.random.default_rng(0).normal(size=(3, 8, 6)).astype(np.float32)
    for ours, theirs in zip(OnnxSession(path).run(x), OnnxSession(tmp_path / "slices.onnx").run(x), strict=True):
        np.testing.assert_array_equal(ours, theirs)
