"""The published checkpoints: the same widths, the same outputs, fewer parameters. Skipped where they are not at hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import irtool
from irtool.analysis.compare import difference
from irtool.engines import MnnSession, OnnxSession
from irtool.models import PreResNet

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "preresnet38"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the published checkpoints are not beside this checkout")


@pytest.fixture(scope="module")
def graph() -> irtool.FxGraph:
    net = PreResNet(38)
    net.load_state_dict(torch.load(DATA / "sparse.pth", weights_only=True)["state_dict"], strict=True)
    return irtool.trace(net.eval(), torch.zeros(1, 3, 32, 32))


@pytest.fixture(scope="module")
def published() -> dict:
    return torch.load(DATA / "sparse_pruned_0.5_folded.pth", weights_only=True)


def published_forward(cfg: list[int], state: dict[str, Tensor], x: Tensor, kept: list[Tensor]) -> Tensor:
    """The published folded net in plain functions: full-width batch norm, then selection, then folded convolutions."""
    x = F.conv2d(x, state["conv1.weight"], padding=1)
    selections = iter(kept)
    for stage, block in ((s, b) for s in (1, 2, 3) for b in range(4)):
        at = f"layer{stage}.{block}"
        stride = 2 if stage > 1 and block == 0 else 1
        y = _select(_norm(x, state, f"{at}.bn1"), next(selections)).relu()
        y = F.conv2d(y, state[f"{at}.conv1.weight"], state[f"{at}.conv1.bias"]).relu()
        y = F.conv2d(y, state[f"{at}.conv2.weight"], state[f"{at}.conv2.bias"], stride, 1).relu()
        y = F.conv2d(y, state[f"{at}.conv3.weight"])
        x = y + (F.conv2d(x, state[f"{at}.downsample.0.weight"], stride=stride) if block == 0 else x)
    x = _select(_norm(x, state, "bn"), next(selections)).relu().mean((2, 3))
    return F.linear(x, state["fc.weight"], state["fc.bias"])


def _norm(x: Tensor, state: dict[str, Tensor], at: str) -> Tensor:
    return F.batch_norm(x, state[f"{at}.running_mean"], state[f"{at}.running_var"], state[f"{at}.weight"], state[f"{at}.bias"])


def _select(x: Tensor, index: Tensor) -> Tensor:
    return x[:, index]


def test_half_pruned_has_the_published_widths_and_outputs(graph: irtool.FxGraph, published: dict, tmp_path: Path) -> None:
    plan = irtool.plan(graph, "bn_scale", 0.5, "global", "select", round_to=1)
    inner = [layer.kept for layer in plan.layers if layer.name.startswith("select") or layer.name.endswith((".conv1", ".conv2"))]
    assert inner == published["cfg"]
    folded = irtool.fold_batchnorm(irtool.prune(graph, plan, "drop"))
    state = published["state_dict"]
    kept = [state[key].nonzero()[:, 0] for key in state if key.endswith("select.indexes")]
    assert [len(index) for index in kept] == [layer.kept for layer in plan.layers if layer.name.startswith("select")]
    x = torch.randn(16, 3, 32, 32)
    expected = published_forward(published["cfg"], state, x, kept)
    assert (folded.run(x) - expected).abs().max() <= 1e-4
    assert sum(p.numel() for p in folded.module.parameters()) <= 224_104  # the published 225,912 less its 1,808 selection entries
    assert irtool.check_prune(graph, plan).relative <= 1e-9
    irtool.export_onnx(folded, tmp_path / "m.onnx")
    irtool.export_mnn(tmp_path / "m.onnx", tmp_path / "m.mnn")
    array = x.numpy()
    assert abs(OnnxSession(tmp_path / "m.onnx").run(array)[0] - expected.numpy()).max() <= 1e-4
    assert abs(MnnSession(tmp_path / "m.mnn").run(array)[0] - expected.numpy()).max() <= 1e-3


@pytest.mark.parametrize("ratio", [0.7, 0.95])
@pytest.mark.parametrize("constants", ["drop", "absorb"])
def test_higher_ratios_run_without_emptying_a_layer(graph: irtool.FxGraph, ratio: float, constants: str) -> None:
    plan = irtool.plan(graph, "bn_scale", ratio, "global", "select", round_to=1)
    assert min(layer.kept for layer in plan.layers) >= 1
    assert irtool.check_prune(graph, plan, constants=constants).relative <= 1e-9
    smaller = irtool.prune(graph, plan, constants)
    x = torch.randn(2, 3, 32, 32)
    assert difference(smaller.run(x), irtool.fold_batchnorm(smaller).run(x))[1] <= 1e-4
