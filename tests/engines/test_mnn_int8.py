"""MNN's reading of an int8 file: which operators it runs in integers, and the form of the model that makes it do so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from quant_nets import Mixed, exported, images, sqnr
from torch import Tensor, nn

import irtool
from irtool.engines import MnnSession
from irtool.engines.mnn.account import mnn_account
from irtool.engines.mnn.int8 import export_mnn_int8
from irtool.engines.mnn.int8_form import LARGE, mnn_form
from irtool.engines.mnn.int8_policy import MNN_POLICY
from irtool.engines.mnn.layers import mnn_scaled
from irtool.engines.mnn.profile import mnn_profile, mnn_times
from irtool.engines.onnxruntime.calibrate import calibrate
from irtool.engines.onnxruntime.prepare import prepared
from irtool.errors import FileError, OptionError
from irtool.quant import Scheme, make_recipe, place
from irtool.quant.placement import DefUse

Join = Callable[[Tensor, Tensor, Callable[[Tensor], Tensor]], Tensor]


class Joined(nn.Module):
    """Additions that are read by a convolution, by an addition, by a ReLU and by both; a gate; a convolution in four groups; products with many weights,
    and an activation between them past which the converter moves a change of shape."""

    def __init__(self, classes: int = 600) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(5))
        self.grouped = nn.Conv2d(16, 32, 3, padding=1, groups=4)
        self.wide, self.hidden, self.out = nn.Conv2d(32, 128, 1), nn.Linear(128, 520), nn.Linear(520, classes)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d, e = self.convs
        x = self.stem(x)
        x = x + a(x)
        y = x + b(x)
        z = F.relu(y + c(F.relu(y)))
        z = z * d(z) + e(y)
        return self.out(F.hardswish(self.hidden(F.relu(self.wide(F.relu(self.grouped(z)))).mean((2, 3)))))


@pytest.fixture(scope="module", params=[Joined, Mixed])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    torch.manual_seed(0)
    return prepared(exported(request.param(), tmp_path_factory.mktemp("net")))


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {"input": x})[0]
    return found


def int8(model: onnx.ModelProto, path: Path) -> Path:
    placement = place(model, MNN_POLICY)
    stats = calibrate(model, placement.tensors, [images(32), images(32, seed=1)], threads=1)
    done = export_mnn_int8(model, make_recipe(model, placement, stats, Scheme("int8", symmetric=True)), path)
    assert done.missed == ()
    return path


def test_the_form_for_mnn_computes_the_same(model: onnx.ModelProto) -> None:
    form, convolutions = mnn_form(model, {}, {})
    onnx.checker.check_model(form, full_check=True)
    x = images(4, seed=3)
    assert np.abs(run(form, x) - run(model, x)).max() <= 1e-6 * np.abs(run(model, x)).max()
    kinds = [node.op_type for node in form.graph.node]
    if "Mul" in kinds:  # the net with many classes
        assert 128 * 520 >= LARGE
        assert "Gemm" not in kinds
        assert len(convolutions) == 2
        assert sum(kind == "Relu" for kind in kinds) == 2  # behind convolutions
        readers = {name: node.op_type for node in form.graph.node for name in node.input}
        assert {readers[node.output[0]] for node in form.graph.node if node.op_type in ("Add", "Mul")} <= {"Max", "Add", "Mul"}


def test_a_weight_that_gives_way_leaves_no_input_behind(tmp_path: Path) -> None:
    model = prepared(exported(Mixed(), tmp_path))
    layer = place(model, MNN_POLICY).layers[0]
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == layer.weight)
    # Files of old say of each constant that it is an input with a default.
    model.graph.input.extend(onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer)
    form, _ = mnn_form(model, {layer.node: numpy_helper.to_array(weight)}, {})
    assert layer.weight not in {tensor.name for tensor in (*form.graph.initializer, *form.graph.input)}
    assert DefUse(form).inputs == DefUse(model).inputs == ["input"]


def test_a_bias_takes_the_place_of_one(model: onnx.ModelProto) -> None:
    index, product = next((index, node) for index, node in enumerate(model.graph.node) if node.output[0] == "output")
    bias = next(numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name == product.input[2])
    form, _ = mnn_form(model, {}, {index: np.zeros(len(bias))})
    x = images(4, seed=3)
    assert np.abs(run(model, x) - run(form, x) - bias).max() <= 1e-6
    assert model.graph.node[index].input[2] == product.input[2]


def test_mnn_adds_in_float_and_convolves_in_integers(model: onnx.ModelProto, tmp_path: Path) -> None:
    path = int8(model, tmp_path / "int8.mnn")
    x = images(8, seed=9)
    assert sqnr(MnnSession(path, 1).run(x)[0], run(model, x)) > 22
    ran = mnn_profile(path, x[:1], runs=2)
    joins = [entry.integer for entry in ran if entry.kind == "BinaryOp"]
    assert joins
    assert not any(joins)
    convolutions = [entry.integer for entry in ran if entry.kind.startswith("Convolution")]
    groups = 3 if "HardSwish" in {node.op_type for node in model.graph.node} else 0  # the converter makes four of one convolution
    layers = sum(node.op_type in ("Conv", "Gemm") for node in model.graph.node) + groups
    assert convolutions == [True] * (layers - 1) + [False]  # the last one gives the model's result
    account = mnn_account(ran)
    assert len(account.steps) == sum(entry.kind in ("FloatToInt8", "Int8ToFloat") for entry in ran)
    assert (account.steps[0].kind, account.steps[0].why) == ("quantise", "the model's input is float")
    assert account.floating["BinaryOp", "MNN joins tensors faster in float, or it holds a scale back"] == len(joins)
    times = mnn_times(path, x[:1], runs=2)
    assert list(times.values()) == sorted(times.values(), reverse=True)
    assert "Convolution in int8" in times
    scaled = [kind for kind, _ in mnn_scaled(path)]
    assert sum(kind.startswith("Convolution") for kind in scaled) == layers - 1


def test_a_float_file_has_no_steps(tmp_path: Path) -> None:
    torch.manual_seed(0)
    exported(Mixed(), tmp_path)
    irtool.export_mnn(tmp_path / "float.onnx", tmp_path / "float.mnn")
    account = mnn_account(mnn_profile(tmp_path / "float.mnn", images(1), runs=1))
    assert (account.steps, account.integer) == ((), 0)
    assert mnn_scaled(tmp_path / "float.mnn") == ()
    with pytest.raises(OptionError, match="at least one run"):
        mnn_profile(tmp_path / "float.mnn", images(1), runs=0)
    with pytest.raises(FileError, match=r"Check the path|no such file"):
        mnn_profile(tmp_path / "none.mnn", images(1))


class Halves(nn.Module):
    """Blocks that cut a tensor in two, compute on the halves and put them together.

    Args:
        join: what becomes of the halves, of them and a layer.
    """

    def __init__(self, join: Join) -> None:
        super().__init__()
        self.join, self.stem, self.head = join, nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 1)
        self.whole = nn.ModuleList(nn.Conv2d(16, 16, 1) for _ in range(3))
        self.inner = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.stem(x))
        for whole, inner in zip(self.whole, self.inner, strict=True):
            first, second = F.silu(whole(x)).chunk(2, 1)
            x = self.join(first, second, lambda y, inner=inner: F.silu(inner(y)))
        out: Tensor = self.head(x)
        return out


HALVES: dict[str, Join] = {
    "one is added to": lambda first, second, layer: torch.cat([first, second + layer(second)], 1),
    "both are read": lambda first, second, layer: torch.cat([layer(first), second + layer(second)], 1),
    "across": lambda first, second, layer: torch.cat([first + layer(second), second + layer(first)], 1),
}


@pytest.mark.parametrize("name", HALVES)
def test_a_file_computes_the_same_each_time_that_it_is_loaded(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = int8(prepared(exported(Halves(HALVES[name]), tmp_path)), tmp_path / "int8.mnn")
    x = images(2, seed=9)
    assert len({MnnSession(path, 1).run(x)[0].tobytes() for _ in range(8)}) == 1
