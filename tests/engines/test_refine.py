"""Fitting an int8 model's integers: the rounding, the windows, and the walk from layer to layer."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from quant_nets import Mixed, exported, images, sqnr
from torch import nn

from irtool.engines import OnnxSession
from irtool.engines.onnxruntime import refine
from irtool.engines.onnxruntime.calibrate import calibrate
from irtool.engines.onnxruntime.prepare import prepared
from irtool.engines.onnxruntime.qdq import to_qdq
from irtool.engines.onnxruntime.refine import refined
from irtool.engines.onnxruntime.windows import inputs_at, outputs_at
from irtool.quant import Scheme, layers_of, make_recipe, place, rounding
from irtool.quant.placement import DefUse
from irtool.quant.rounding import output_error, rounded_together


def correlated(groups: int, outputs: int, inputs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    reads = rng.normal(size=(groups, 4 * inputs, inputs)) @ rng.normal(size=(groups, inputs, inputs))
    blocks = rng.normal(size=(groups, outputs, inputs))
    return blocks, reads.transpose(0, 2, 1) @ reads, np.abs(blocks).max(2) / 7


@pytest.mark.parametrize("shape", [(1, 5, 30), (3, 2, 9), (1, 3, 150), (8, 1, 1)])
def test_weights_rounded_together_err_less_in_the_output(shape: tuple[int, int, int]) -> None:
    blocks, moment, scales = correlated(*shape)
    found = rounded_together(blocks, moment, scales, (-7, 7))
    nearest = np.clip(np.rint(blocks / scales[:, :, None]), -7, 7)
    assert np.array_equal(found, np.rint(found))
    assert np.abs(found).max() <= 7
    together, apart = (output_error(integers * scales[:, :, None] - blocks, moment) for integers in (found, nearest))
    assert together <= apart * {30: 0.6, 150: 0.6, 9: 0.95, 1: 1}[shape[2]]  # of few columns there is little to make up


def test_blocks_of_columns_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks, moment, scales = correlated(2, 4, 50)
    whole = rounded_together(blocks, moment, scales, (-63, 63))
    monkeypatch.setattr(rounding, "BLOCK", 7)
    assert np.array_equal(rounded_together(blocks, moment, scales, (-63, 63)), whole)


def test_nothing_read_rounds_to_the_nearest() -> None:
    blocks, moment, scales = correlated(1, 3, 8)
    assert np.array_equal(rounded_together(blocks, 0 * moment, scales, (-7, 7)), np.clip(np.rint(blocks / scales[:, :, None]), -7, 7))


LAYERS = {
    "plain": (nn.Conv2d(4, 6, 3), (2, 4, 9, 8)),
    "strided": (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0)), (2, 4, 9, 8)),
    "dilated in groups": (nn.Conv2d(4, 6, 3, dilation=2, padding=2, groups=2), (2, 4, 9, 8)),
    "depthwise": (nn.Conv2d(4, 4, 3, padding=1, groups=4), (2, 4, 9, 8)),
    "of sequences": (nn.Conv1d(4, 6, 3, stride=2), (2, 4, 9)),
    "linear": (nn.Linear(4, 6), (2, 4)),
    "linear of rows": (nn.Linear(4, 6), (2, 5, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_windows_times_weights_are_the_output(name: str, tmp_path: Path) -> None:
    layer, size = LAYERS[name]
    model = prepared(exported(layer, tmp_path, size))
    (found,) = layers_of(model)
    x, wiring = np.random.default_rng(0).normal(size=size).astype(np.float32), DefUse(model)
    (y,) = OnnxSession(tmp_path / "float.onnx", 1).run(x)
    weight = wiring.array(found.weight)
    places = partial(refine._places, seed=3)
    read = inputs_at(found, wiring.nodes[found.node], x, weight.shape, places)
    assert read is not None
    rows = found.rows(weight).reshape(found.groups, -1, read.shape[2])
    made = np.einsum("rgi,goi->rgo", read, rows).reshape(len(read), -1)
    bias = 0 if found.bias is None else wiring.array(found.bias)
    given = outputs_at(found, y, places)
    # torch exports a linear layer of rows as a product and an addition
    expected = given if name != "linear of rows" else given - layer.bias.detach().numpy()
    np.testing.assert_allclose(made + bias, expected, atol=1e-5)


@pytest.mark.parametrize("scheme", [Scheme(weight_bits=4), Scheme("int8", symmetric=True, weight_bits=4)], ids=["uint8", "int8"])
def test_a_refined_model_is_nearer_on_images_that_it_was_not_fitted_to(scheme: Scheme, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = prepared(exported(Mixed(), tmp_path))
    placement, batches = place(model), np.array_split(images(128), 8)
    recipe = make_recipe(model, placement, calibrate(model, placement.tensors, batches, threads=1), scheme)
    feeds = [{model.graph.input[0].name: batch} for batch in batches]
    done: list[int] = []
    better = refined(model, recipe, feeds, done.append)
    assert done == list(range(1, len(placement.layers) + 1))
    other = images(64, seed=1)
    (expected,) = OnnxSession(tmp_path / "float.onnx", 1).run(other)
    errors, means = [], []
    for some in (recipe, better):
        onnx.save(to_qdq(model, some), str(tmp_path / "int8.onnx"))
        (got,) = OnnxSession(tmp_path / "int8.onnx", 1).run(other)
        errors.append(sqnr(got, expected))
        means.append(float(np.abs((got - expected).mean(0)).mean()))
    assert errors[1] > errors[0] + 1.5
    assert means[1] < means[0]
    assert better.activations == recipe.activations
    for name, layer in better.layers.items():
        assert np.array_equal(layer.scales, recipe.layers[name].scales)
        assert np.abs(layer.weight).max() <= 7


def test_a_layer_whose_windows_cannot_be_told_stays(tmp_path: Path) -> None:
    model = prepared(exported(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1)), tmp_path))
    node = next(node for node in model.graph.node if node.op_type == "Conv")
    node.attribute.remove(next(a for a in node.attribute if a.name == "pads"))
    node.attribute.append(onnx.helper.make_attribute("auto_pad", "SAME_UPPER"))
    placement, batches = place(model), np.array_split(images(16), 2)
    recipe = make_recipe(model, placement, calibrate(model, placement.tensors, batches, threads=1), Scheme(weight_bits=7))
    better = refined(model, recipe, [{model.graph.input[0].name: batch} for batch in batches])
    first, second = (layer.name for layer in placement.layers)
    assert better.layers[first] is recipe.layers[first]
    assert better.layers[second] is not recipe.layers[second]
