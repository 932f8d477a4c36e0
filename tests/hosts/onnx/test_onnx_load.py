"""Reading .onnx files: weights beside them, sizes of free axes, every operator set, and files that are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnx_judge import in_onnxruntime, real, relative
from onnx_nets import NETS, Net, residual

import irtool
from irtool.errors import FileError, GraphError, OptionError
from irtool.hosts.onnx.files.load import from_model


def with_external_weights(folder: Path, location: str = "weights.bin") -> Path:
    path = folder / "model.onnx"
    onnx.save(NETS["residual"](), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = location if entry.key == "location" else entry.value
    path.write_bytes(model.SerializeToString())
    return path


def test_external_weights(tmp_path: Path) -> None:
    graph = irtool.load_onnx(with_external_weights(tmp_path))
    assert irtool.check_prune(graph, irtool.plan(graph, "l1", 0.5)).ok


@pytest.mark.parametrize(
    "location",
    ["/etc/hostname", "../weights.bin", "link.bin", "a/../../weights.bin", "absent.bin", "loop.bin", "a" * 5000, "C:\\weights.bin", ""],
)
def test_external_weights_outside_the_folder_are_refused(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "weights.bin").write_bytes(b"\0" * 100000)
    (folder / "link.bin").symlink_to(tmp_path / "weights.bin")
    (folder / "loop.bin").symlink_to("loop.bin")
    path = with_external_weights(folder, location)
    with pytest.raises(FileError, match=r"outside the model's folder|no file '(absent.bin|loop.bin|a+)'"):
        irtool.load_onnx(path)


def test_external_weights_cut_off(tmp_path: Path) -> None:
    path = with_external_weights(tmp_path)
    data = (tmp_path / "weights.bin").read_bytes()
    (tmp_path / "weights.bin").write_bytes(data[: len(data) // 2])
    with pytest.raises(FileError, match="beyond the end"):
        irtool.load_onnx(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"\xff" * 64, "not an ONNX file"),
        (b"hello, this is no model at all", "not an ONNX file|no operators"),
        (None, "cannot be read"),
    ],
)
def test_no_model(data: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(FileError, match=message):
        irtool.load_onnx(path)


def test_without_an_operator_set(tmp_path: Path) -> None:
    model = NETS["residual"]()
    del model.opset_import[:]
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(FileError, match=r"no opset_import.*Export the model again"):
        irtool.load_onnx(tmp_path / "m.onnx")


def test_real_file_without_an_operator_set() -> None:
    with pytest.raises(FileError, match="no opset_import"):
        irtool.load_onnx(real("super_resolution"))


def test_sizes_of_free_axes() -> None:
    model = NETS["residual"]()
    assert from_model(model, {"x": (5, 3, 12, 12)}).outputs[0].sizes == (5, 4)
    with pytest.raises(OptionError, match="a size for each free axis"):
        from_model(model, {"x": (5, 3, 13, 12)})
    with pytest.raises(OptionError, match="The inputs are x"):
        from_model(model, {"y": (1, 3, 12, 12)})


def test_sizes_that_do_not_fit_name_the_node() -> None:
    n = Net(17, ("N", 3, "H", "W"))
    features = n.op("Flatten", n.cbr("x", 3, 8))
    model = n.model(n.op("Gemm", features, n.weight(8 * 36, 4)))
    with pytest.raises(GraphError, match=r"Gemm.*example sizes"):
        from_model(model)
    graph = from_model(model, {"x": (1, 3, 6, 6)})
    assert irtool.check_prune(graph, irtool.plan(graph, "l1", 0.5)).ok


def test_a_cycle_and_a_missing_weight_are_refused(tmp_path: Path) -> None:
    cyclic, headless = NETS["residual"](), NETS["residual"]()
    cyclic.graph.node[0].input[0] = cyclic.graph.node[3].output[0]
    del headless.graph.initializer[0]
    for model in (cyclic, headless):
        (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(FileError, match=r"malformed.*onnx\.checker"):
            irtool.load_onnx(tmp_path / "m.onnx")


def test_absurd_sizes_are_refused() -> None:
    n = Net(13)
    huge = n.op("ConstantOfShape", n.const([2**20, 2**20]))
    model = n.model(n.op("Add", n.head(n.conv("x", 3, 4), 4), n.op("ReduceMax", huge, keepdims=0)))
    with pytest.raises(GraphError, match="smaller example sizes"):
        from_model(model)


@pytest.mark.parametrize("opset", range(9, onnx.defs.onnx_opset_version() + 1))
def test_every_operator_set(opset: int, tmp_path: Path) -> None:
    graph = from_model(residual(opset, ("N", 3, "H", "W")), {"x": (1, 3, 12, 12)})
    plan = irtool.plan(graph, "l1", 0.5)
    assert irtool.check_prune(graph, plan).relative <= 1e-5
    irtool.save_onnx(irtool.fold_batchnorm(irtool.prune(graph, plan)), tmp_path / "m.onnx")
    saved = onnx.load(tmp_path / "m.onnx")
    assert [entry.version for entry in saved.opset_import if not entry.domain] == [opset]
    assert [d.dim_param or d.dim_value for d in saved.graph.input[0].type.tensor_type.shape.dim] == ["N", 3, "H", "W"]
    for shape in ((1, 3, 8, 8), (3, 3, 9, 15)):
        assert in_onnxruntime(tmp_path / "m.onnx", np.ones(shape, np.float32))[0].shape == (shape[0], 4)


def test_models_that_are_too_large_for_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As above 2 GiB, with the limit at 1,000 bytes: weights go beside the file, and nothing serialises the whole."""
    monkeypatch.setattr("irtool.hosts.onnx.files.file.INLINE_LIMIT", 1000)
    path = with_external_weights(tmp_path)
    graph = irtool.load_onnx(path)
    plan = irtool.plan(graph, "l1", 0.5)
    assert irtool.check_prune(graph, plan).relative <= 1e-5
    smaller = irtool.fold_batchnorm(irtool.prune(graph, plan))
    size = irtool.save_onnx(smaller, tmp_path / "small.onnx")
    assert size == sum((tmp_path / name).stat().st_size for name in ("small.onnx", "small.onnx.data"))
    assert (tmp_path / "small.onnx").stat().st_mode == (tmp_path / "small.onnx.data").stat().st_mode
    x = torch.randn(1, 3, 12, 12)
    again = irtool.load_onnx(tmp_path / "small.onnx")
    assert relative(smaller.run(x)[0].numpy(), again.run(x)[0].numpy()) <= 1e-6
    assert relative(smaller.run(x)[0].numpy(), in_onnxruntime(tmp_path / "small.onnx", x.numpy())[0]) <= 1e-5


def test_a_loop_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("irtool.hosts.onnx.trial.SECONDS", 1)
    model = NETS["looping"]()
    count = next(node for node in model.graph.node if node.op_type == "Loop").input[0]
    rounds = next(tensor for tensor in model.graph.initializer if tensor.name == count)
    rounds.CopyFrom(numpy_helper.from_array(np.array(2**60), count))
    with pytest.raises(GraphError, match=r"does not end: it was stopped after 1 s of CPU time\. Check the file, how often"):
        from_model(model)


def test_scales_of_another_size_do_not_fit() -> None:
    model = NETS["mixing_LayerNormalization"]()
    norm = next(node for node in model.graph.node if node.op_type == "LayerNormalization")
    norm.input[1] = next(node for node in model.graph.node if node.op_type == "Gemm").input[2]
    with pytest.raises(GraphError, match=r"LayerNormalization.*do not fit"):
        from_model(model)
