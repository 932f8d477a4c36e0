"""Weights that are stored in fewer bytes and computed in float."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from quant_nets import Mixed, exported, images, sqnr
from torch import nn

from irtool.engines import MnnSession, OnnxSession
from irtool.engines.mnn.light import write_weights
from irtool.engines.onnxruntime.prepare import prepared
from irtool.engines.onnxruntime.refine import refined
from irtool.engines.onnxruntime.stored_weights import weights_restored, weights_to_half, weights_to_integers
from irtool.quant import Scheme, layers_of
from irtool.quant.placement import DefUse, Layer
from irtool.quant.scales import weights_recipe
from irtool.quant.weights import channel_scales


def to_integers(model: ModelProto) -> ModelProto:
    """The nearest integers, as a file has them without images."""
    return weights_to_integers(model, weights_recipe(model))


def _outputs(model: ModelProto, x: np.ndarray) -> np.ndarray:
    """The first output, computed node by node as the file says."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


def _written(layers: list[tuple[str, str]], weights: dict[str, np.ndarray]) -> ModelProto:
    """A chain of operators (name, weight) on inputs (N, 6)."""
    names = ["x", *(f"y{index}" for index in range(len(layers)))]
    nodes = [helper.make_node(op, [names[index], weight], [names[index + 1]]) for index, (op, weight) in enumerate(layers)]
    held = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 6]) for name in (names[0], names[-1])]
    model = helper.make_model(helper.make_graph(nodes, "chain", ends[:1], ends[1:], held), opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model


@pytest.mark.parametrize("lighter", [weights_to_half, to_integers])
def test_what_restores_weights_is_gone_once_a_file_is_loaded(lighter: Callable[[ModelProto], ModelProto], tmp_path: Path) -> None:
    torch.manual_seed(0)
    onnx.save(lighter(prepared(exported(Mixed(), tmp_path))), str(tmp_path / "light.onnx"))
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    ort.InferenceSession(str(tmp_path / "light.onnx"), options, providers=["CPUExecutionProvider"])
    loaded = {node.op_type for node in onnx.load(str(tmp_path / "loaded.onnx")).graph.node}
    assert not loaded & {"Cast", "Mul", "DequantizeLinear"}
    assert loaded & {"Conv", "FusedConv"}


def test_integer_weights_are_the_nearest_multiples_of_their_scales(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = prepared(exported(Mixed(), tmp_path))
    light = to_integers(model)
    onnx.checker.check_model(light, full_check=True)
    read = [light.graph.node[layer.node].input[1] for layer in _behind(light, layers_of(model))]
    light.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in read)
    session = ort.InferenceSession(light.SerializeToString(), providers=["CPUExecutionProvider"])
    restored = session.run(read, {session.get_inputs()[0].name: images(1)})
    for layer, got in zip(layers_of(model), restored, strict=True):
        weight = DefUse(model).array(layer.weight)
        scales = channel_scales(layer.rows(weight))[:, None]
        expected = np.rint(layer.rows(weight).astype(np.float64) / scales.astype(np.float64)).astype(np.float32) * scales
        np.testing.assert_array_equal(got, layer.unrows(expected, weight.shape))


def _behind(model: ModelProto, layers: Sequence[Layer]) -> list[Layer]:
    """The layers at their places in a model that begins with what restores weights."""
    places = {name: index for index, node in enumerate(model.graph.node) for name in node.output}
    return [replace(layer, node=places[layer.name]) for layer in layers]


@pytest.mark.parametrize(("lighter", "least"), [(weights_to_half, 55), (to_integers, 30)])
def test_a_weight_that_layers_share_is_stored_once_for_each_axis(lighter: Callable[[ModelProto], ModelProto], least: float) -> None:
    weights = {"w": np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32)}
    model = _written([("MatMul", "w"), ("MatMul", "w"), ("Relu", ""), ("MatMul", "w")], weights)
    model.graph.node[2].input.pop()
    light = lighter(model)
    assert sum(list(tensor.dims) == [6, 6] for tensor in light.graph.initializer) == 1
    x = np.random.default_rng(1).normal(size=(5, 6)).astype(np.float32)
    assert sqnr(_outputs(light, x), _outputs(model, x)) > least


def test_half_weights_that_are_too_large_stay(tmp_path: Path) -> None:
    model = prepared(exported(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1)), tmp_path))
    large = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    large.CopyFrom(numpy_helper.from_array(1e6 * numpy_helper.to_array(large), large.name))
    onnx.save(model, str(tmp_path / "large.onnx"))
    half = weights_to_half(model)
    assert [node.op_type for node in half.graph.node].count("Cast") == 1
    onnx.checker.check_model(half)
    onnx.save(half, str(tmp_path / "half.onnx"))
    x = images(2)
    (expected,), (got,) = (OnnxSession(tmp_path / f"{name}.onnx", 1).run(x) for name in ("large", "half"))
    assert sqnr(got, expected) > 55


def test_integers_that_are_fitted_to_images_give_nearer_outputs_of_others(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = prepared(exported(Mixed(), tmp_path))
    recipe, name = weights_recipe(model, bits=5), model.graph.input[0].name
    better = refined(model, recipe, [{name: part} for part in np.array_split(images(64), 8)], shared=False)
    new = images(72)[64:]
    wanted = _outputs(model, new)
    nearest, fitted = (sqnr(_outputs(weights_to_integers(model, one), new), wanted) for one in (recipe, better))
    assert fitted > nearest + 3


def test_layers_that_share_a_weight_keep_one_where_integers_are_fitted() -> None:
    weights = {"w": np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32), "v": np.eye(6, dtype=np.float32) + 0.3}
    model = _written([("MatMul", "w"), ("MatMul", "w"), ("MatMul", "v")], weights)
    recipe = weights_recipe(model)
    feeds = [{"x": np.random.default_rng(seed).normal(size=(64, 6)).astype(np.float32)} for seed in range(4)]
    better = refined(model, recipe, feeds, shared=False)
    first, second, third = (layer.name for layer in recipe.placement.layers)
    assert better.layers[first] is recipe.layers[first]
    assert better.layers[second] is recipe.layers[second]
    assert better.layers[third] is not recipe.layers[third]
    assert sum(list(tensor.dims) == [6, 6] for tensor in weights_to_integers(model, better).graph.initializer) == 2


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_mnn_finds_the_integers_that_were_fitted(bits: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = prepared(exported(Mixed(), tmp_path))
    name = model.graph.input[0].name
    feeds = [{name: part} for part in np.array_split(images(64), 8)]
    recipe = refined(model, weights_recipe(model, bits=bits, from_least=True), feeds, shared=False)
    for layer in recipe.placement.layers:
        found, weight = recipe.layers[layer.name], layer.rows(DefUse(model).array(layer.weight))
        np.testing.assert_allclose(layer.rows(found.restored(layer)).min(1), weight.min(1), rtol=1e-6)
        np.testing.assert_allclose(layer.rows(found.restored(layer)).max(1), weight.max(1), rtol=1e-6)
    files = {kind: tmp_path / f"{kind}.mnn" for kind in ("nearest", "fitted")}
    for kind, path in files.items():
        write_weights(tmp_path / "float.onnx", path, Scheme(weight_bits=bits), feeds if kind == "fitted" else ())
    new = images(72)[64:]
    wanted = OnnxSession(tmp_path / "float.onnx", 1).run(new)[0]
    nearest, fitted = (MnnSession(path, 1).run(new)[0] for path in files.values())
    assert sqnr(fitted, _outputs(weights_restored(model, recipe), new)) > 50  # MNN's file has the same integers
    assert sqnr(fitted, wanted) > sqnr(nearest, wanted) + 3
