"""Training with int8 rounding: it rounds where the file does, trains in place, and helps where few bits are left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from quant_nets import Mixed, images, sqnr
from torch import nn

import irtool
from irtool.engines import MnnSession, OnnxSession, export_mnn, export_onnx
from irtool.engines.onnxruntime.calibrate import calibrate
from irtool.engines.onnxruntime.prepare import prepared
from irtool.engines.onnxruntime.qdq import to_qdq
from irtool.engines.table import ENGINES
from irtool.errors import OptionError
from irtool.hosts.onnx.running.interpreter import run_model
from irtool.models import PreResNet
from irtool.passes import LowerAffine, WidenSelects
from irtool.quant import Scheme, make_recipe, place
from irtool.quant.fake import rounded_weight
from irtool.train import load_data
from irtool.train.qat import RoundedNet, folded, qat
from irtool.train.settings import Settings


def pruned() -> irtool.FxGraph:
    """Selections, norms that cannot be folded, additions."""
    torch.manual_seed(0)
    net = PreResNet(20)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, 0, 0.2)
    graph = irtool.trace(net.eval(), torch.zeros(2, 3, 16, 16))
    return irtool.prune(graph, irtool.plan(graph, "bn_scale", 0.3, "global", "select", round_to=1), "drop")


NETS = {"every kind of layer": lambda: irtool.trace(Mixed().eval(), torch.zeros(2, 3, 16, 16)), "a pruned residual net": pruned}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("engine", ["onnxruntime", "mnn"])
def test_it_rounds_where_the_file_does(name: str, engine: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    row, graph = ENGINES[engine], folded(NETS[name]())
    assert isinstance(graph, irtool.FxGraph)
    export_onnx(graph, tmp_path / "float.onnx")
    view = WidenSelects(0.5)(irtool.load_onnx(tmp_path / "float.onnx", [(2, 3, 16, 16)])).graph
    irtool.save_onnx(LowerAffine()(view).graph if row.int8.lowers else view, tmp_path / "ready.onnx")
    model, x = prepared(onnx.load(str(tmp_path / "ready.onnx"))), images(32)
    placement = place(model, row.int8.policy)
    scheme = Scheme(row.int8.scheme.activations, row.int8.scheme.symmetric, weight_bits=row.int8.scheme.weight_bits, correct_bias=False)
    recipe = make_recipe(model, placement, calibrate(model, placement.tensors, [x], threads=1), scheme)
    onnx.save(to_qdq(model, recipe), str(tmp_path / "int8.onnx"))
    net = RoundedNet(graph, row).eval()
    net.observe(torch.from_numpy(x))
    assert [layer.op for layer in net.placement.layers] == [layer.op for layer in placement.layers]
    own = [recipe.activations[name] for name in placement.observed]
    found = [net.ranges[name] for name in net.placement.observed]
    np.testing.assert_allclose(
        [params.scale for params in found], [params.scale for params in own], rtol=0.1
    )  # seen behind rounded weights
    net.ranges = dict(zip(net.placement.observed, own, strict=True))
    with torch.no_grad():
        rounded = net(torch.from_numpy(x)).numpy()
    (exact,) = OnnxSession(tmp_path / "float.onnx", 1).run(x)
    (file,) = run_model(onnx.load(str(tmp_path / "int8.onnx")), {model.graph.input[0].name: x})  # without fusions, which round once more
    assert sqnr(file, exact) < 50
    assert sqnr(rounded, file) > sqnr(file, exact) + 15  # the same rounding, but for ties


def test_mnn_stores_few_bits_as_training_rounds_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 8, 1, bias=False)
    export_onnx(irtool.trace(layer.eval(), torch.zeros(2, 16, 4, 4)), tmp_path / "layer.onnx")
    export_mnn(tmp_path / "layer.onnx", tmp_path / "layer.mnn", weight_bits=4)
    x = np.ascontiguousarray(np.broadcast_to(np.eye(16, dtype=np.float32)[:, :, None, None], (16, 16, 4, 4)))
    (y,) = MnnSession(tmp_path / "layer.mnn", 1, exact=True).run(x)
    expected = rounded_weight(layer.weight, 0, 4, ENGINES["mnn"].int8.weights_from_least).detach()[:, :, 0, 0]
    np.testing.assert_allclose(y[:, :, 0, 0].T, expected.numpy(), atol=1e-5)


def test_gradients_pass_as_if_nothing_were_rounded() -> None:
    for from_least in (False, True):
        weight = torch.randn(4, 3, 3, 3, requires_grad=True)
        rounded_weight(weight, 0, 4, from_least).sum().backward()
        assert torch.equal(weight.grad, torch.ones_like(weight))


def test_it_trains_in_place_and_the_file_has_what_was_trained() -> None:
    torch.manual_seed(0)
    data = load_data("digits", limit=200, channels=3)
    graph = irtool.trace(Mixed().eval(), torch.zeros(2, *data.preprocessing.input_shape))
    before = {name: value.data.clone() for name, value in graph.params.items()}
    history = qat(graph, data, Settings(epochs=3, lr=0.05, batch_size=16, crop=0), weight_bits=3, weights_only=True)
    assert history.facts["weight_bits"] == 3
    assert history.last.train_loss < history.records[0].train_loss
    assert any(not torch.equal(before[name], value.data) for name, value in graph.params.items())
    net = RoundedNet(graph, ENGINES["onnxruntime"], 3, weights_only=True).eval()
    x = data.sample(64)
    with torch.no_grad():
        assert not torch.equal(net(x), graph.run(x))


def test_norms_that_stay_measure_in_the_first_half_and_keep_in_the_second() -> None:
    data, graph = load_data("digits", limit=100, channels=3, image_size=16), folded(pruned())
    assert isinstance(graph, irtool.FxGraph)
    norms = [part for part in graph.module.modules() if isinstance(part, nn.BatchNorm2d)]
    counted = [int(norm.num_batches_tracked) for norm in norms]
    qat(graph, data, Settings(epochs=2, lr=0.001, batch_size=16, crop=0))
    steps = 2 * (len(data.train) // 16)
    assert norms
    assert [int(norm.num_batches_tracked) - before for norm, before in zip(norms, counted, strict=True)] == [steps // 2] * len(norms)


def test_what_cannot_be_trained_is_told() -> None:
    data = load_data("digits", limit=60, channels=3)
    with pytest.raises(OptionError, match="Trace it first"):
        qat(Mixed(), data, Settings(epochs=1))
    graph = irtool.trace(Mixed().eval(), torch.zeros(2, *data.preprocessing.input_shape))
    with pytest.raises(OptionError, match="Choose 2 to 8"):
        qat(graph, data, Settings(epochs=1), weight_bits=9)
    with pytest.raises(OptionError, match="Choose 2 to 8"):
        qat(graph, data, Settings(epochs=1), weight_bits=0)
    with pytest.raises(OptionError, match="Choose onnxruntime"):
        qat(graph, data, Settings(epochs=1), engine="tensorflow")
