"""Filters that are zero (a mask, made permanent) emit constants, whatever the batch norms' old statistics say: absorbing them is exact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as masks

import irtool


def _norm(size: int, kind: Any = nn.BatchNorm2d) -> nn.Module:
    norm = kind(size)
    for tensor, spread in ((norm.weight, 1.0), (norm.bias, 1.0), (norm.running_mean, 2.0)):
        nn.init.normal_(tensor, std=spread)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return norm


def _plain() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 16, 3), _norm(16), nn.ReLU(), nn.Conv2d(16, 4, 1))


def _sigmoid() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), _norm(16), nn.SiLU(), nn.Conv2d(16, 4, 3))


def _without_norm() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Hardswish(), nn.Conv2d(16, 4, 3))


def _two_norms() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 16, 3), _norm(16), _norm(16), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(16, 4, 1))


def _depthwise() -> nn.Sequential:
    """The depthwise filter is not zero: it makes another constant, which its own norm does not know of."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 1), _norm(16), nn.ReLU6(), nn.Conv2d(16, 16, 3, groups=16), _norm(16), nn.ReLU6(), nn.Conv2d(16, 4, 1)
    )


def _transposed() -> nn.Sequential:
    return nn.Sequential(nn.ConvTranspose2d(3, 16, 2, stride=2), _norm(16), nn.ReLU(), nn.Conv2d(16, 4, 1))


def _linear() -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 16), _norm(16, nn.BatchNorm1d), nn.ReLU(), nn.Linear(16, 4))


NETS = [_plain, _sigmoid, _without_norm, _two_norms, _depthwise, _transposed, _linear]


@pytest.mark.parametrize("build", NETS)
@pytest.mark.parametrize("host", ["torch", "onnx"])
def test_masked_filters_are_absorbed_exactly(build: Callable[[], nn.Sequential], host: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build().eval()
    layer = next(module for module in model if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear))
    masks.ln_structured(layer, "weight", 0.5, n=2, dim=1 if isinstance(layer, nn.ConvTranspose2d) else 0)
    masks.remove(layer, "weight")
    for module in model:
        if isinstance(module, nn.Conv2d) and module.groups > 1:  # alike, so that the plan takes what is masked
            module.weight.data /= module.weight.data.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    x = torch.randn(2, 3, 8, 8)
    graph: Any = irtool.trace(model, x)
    if host == "onnx":
        irtool.export_onnx(graph, tmp_path / "m.onnx")
        graph = irtool.load_onnx(tmp_path / "m.onnx")
    plan = irtool.plan(graph, "l2", 0.5)
    pruned = irtool.prune(graph, plan, constants="absorb")
    assert any(layer.removed for layer in plan.layers)
    found = irtool.check_prune(graph, plan, constants="absorb")
    assert found.ok, found
    with torch.no_grad():
        expected: Tensor = model(x)
    got = torch.as_tensor(pruned.run(x) if host == "torch" else pruned.run(x)[0])
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
