"""Choosing between files: the expected loss, the recommended form, and what is known of times."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from quant_nets import Mixed, exported, images

from irtool.engines.latency import is_known, latency_pairs
from irtool.engines.mnn.int8 import export_mnn_int8
from irtool.engines.mnn.int8_policy import MNN_POLICY
from irtool.engines.mnn.short_names import long_name, short_names
from irtool.engines.onnxruntime.calibrate import calibrate
from irtool.engines.onnxruntime.prepare import prepared
from irtool.engines.onnxruntime.qdq import to_qdq
from irtool.engines.session import cores
from irtool.engines.table import ENGINES
from irtool.quant import Scheme, make_recipe, place
from irtool.train import Preprocessing
from irtool.train.data.split import MemorySplit
from irtool.workflows.quantize.calibration_images import Images
from irtool.workflows.quantize.forms import Form, busy, recommended
from irtool.workflows.quantize.judge import expected_loss


def test_the_expected_loss_is_that_of_the_float_models_own_probabilities() -> None:
    exact = np.log(np.array([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.2, 0.2, 0.6]]))
    assert expected_loss(exact, exact + 5) == (0, 0)
    other = np.array([[1.0, 2.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    expected = pytest.approx((0.3 / 3, np.std([0.3, 0, 0]) / 3**0.5))
    assert expected_loss(exact, other) == expected
    assert expected_loss(np.exp(exact), other) == expected  # of a model that ends in a softmax


def form(name: str, size: int, expected: float, ratio: float | None) -> Form:
    return Form(name, size, 0.9, 0.0, 0.001, expected, 1.0, ratio)


def test_the_recommended_form_serves_the_goal_within_the_bound() -> None:
    found = [form("float", 100, 0, 1), form("half", 54, 1e-5, 1.01), form("weights8", 33, 1e-3, 0.99), form("int8", 31, 2e-3, 1.4)]
    assert recommended(found, "size", 0.003).name == "int8"
    assert recommended(found, "size", 0.0015).name == "weights8"
    assert recommended(found, "speed", 0.003).name == "weights8"  # what is as fast to 5 % is not slower
    assert recommended(found, "speed", 0).name == "float"
    faster = [*found[:3], form("int8", 31, 2e-3, 0.4)]
    assert recommended(faster, "speed", 0.003).name == "int8"
    unknown = [*found[:3], form("int8", 31, 2e-3, None)]
    assert recommended(unknown, "speed", 0.003).name == "int8"  # bytes decide


class Scripted:
    """A session whose runs take what it is told, by a clock of its own."""

    engine, inputs, outputs = "scripted", (), ()

    def __init__(self, clock: list[float], times: list[float]) -> None:
        self.clock, self.times, self.count = clock, times, 0

    def run(self, *arrays: np.ndarray) -> list[np.ndarray]:
        self.clock[0] += self.times[self.count % len(self.times)]
        self.count += 1
        return []


@pytest.mark.parametrize(("times", "known"), [([2.0, 2.02, 1.98], True), ([1.0, 2.0, 3.0, 4.0], False)])
def test_a_ratio_is_known_where_its_interval_is_narrow(times: list[float], known: bool) -> None:
    clock = [0.0]
    found = latency_pairs([Scripted(clock, [1.0]), Scripted(clock, times)], [], runs=60, warmup=0, clock=lambda: clock[0])
    assert found.intervals[0] == (1, 1)
    assert is_known(found.ratios[1], found.intervals[1]) == known
    low, high = found.intervals[1]
    assert low <= found.ratios[1] <= high
    few = latency_pairs([Scripted(clock, [1.0]), Scripted(clock, [1.0])], [], runs=5, warmup=0, clock=lambda: clock[0])
    assert few.intervals == ((1, 1), (0, np.inf))


def test_a_machine_with_more_work_than_cores_is_mentioned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (0.1, 0, 0))
    assert busy(1) == ""
    monkeypatch.setattr("os.getloadavg", lambda: (999.0, 0, 0))
    assert f"{999 / cores():.1f} programs want each core" in busy(1)
    assert "times of several threads mean little" in busy(2)


@pytest.mark.parametrize(
    ("there", "count", "calibrated", "chosen_by"), [(100, 64, 64, 36), (100, 512, 75, 25), (1, 8, 1, 1), (1000, 64, 64, 512)]
)
def test_images_that_choose_are_not_calibrated_with(there: int, count: int, calibrated: int, chosen_by: int) -> None:
    pixels = torch.arange(there, dtype=torch.int64)[:, None, None, None].expand(there, 1, 2, 2) % 251
    split = MemorySplit(pixels.to(torch.uint8), torch.arange(there) % 5, tuple("abcde"), Preprocessing((0.0,), (1 / 255,), (2, 2), 1))
    found = Images(split, count, split, labelled=True)
    assert (found.calibrated, found.chosen_by) == (calibrated, chosen_by)
    used = [float(image[0, 0, 0]) for batch in found.batches(32) for image in batch]
    choosing = [float(image[0, 0, 0]) for image in found.choosing()]
    assert (len(used), len(choosing)) == (calibrated, chosen_by)
    assert there in (1, 1000) or not set(used) & set(choosing)


def test_names_inside_are_short_in_the_file_and_long_in_the_account(tmp_path: Path) -> None:
    model = prepared(exported(Mixed(), tmp_path))
    placement, x = place(model, MNN_POLICY), images(8)
    recipe = make_recipe(model, placement, calibrate(model, placement.tensors, [x], threads=1), Scheme("int8", symmetric=True))
    done = export_mnn_int8(model, recipe, tmp_path / "int8.mnn")
    assert set(done.layers) | set(done.missed) == {layer.name for layer in placement.layers}
    content = (tmp_path / "int8.mnn").read_bytes()
    names = short_names(model)
    assert names
    assert not [name for name in names if len(name) > 8 and name.encode() in content]
    long, short = next(iter(names.items()))
    assert long_name(f"{short}.float", names) == f"{long}.float"
    account = ENGINES["mnn"].int8.account(tmp_path / "int8.mnn", model, placement, x[:1])
    assert {step.tensor.removesuffix(".float") for step in account.steps} & set(names)


def test_what_says_the_default_is_left_out_of_an_onnx_file(tmp_path: Path) -> None:
    model = prepared(exported(Mixed(), tmp_path))
    placement = place(model)
    recipe = make_recipe(model, placement, calibrate(model, placement.tensors, [images(8)], threads=1), Scheme(weight_bits=7))
    found = to_qdq(model, recipe)
    onnx.checker.check_model(found, full_check=True)
    said = [{a.name for a in node.attribute} for node in found.graph.node if node.op_type == "Conv"]
    assert {"pads", "kernel_shape"} == said[0]  # 3x3, padded
    assert {"kernel_shape"} in said  # 1x1
    assert {"group", "pads", "kernel_shape"} in said  # depthwise
    assert {"strides", "pads", "kernel_shape"} in said
    biases = [tensor for tensor in found.graph.initializer if tensor.name.startswith("b")]
    assert {tensor.data_type for tensor in biases} == {onnx.TensorProto.FLOAT}
