"""`x[index] = value` in forward is followed by irtool's own tracers: what it leaves is what the model leaves, at other sizes too."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import irtool
from irtool.engines.onnxruntime.session import OnnxSession


class Writes(nn.Module):
    """Layers whose forward is a function of them."""

    def __init__(self, forward: Callable[[Writes, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 5, 1)
        self.four, self.other = nn.Conv2d(8, 4, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.call = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


def _zeros(net: Writes, x: Tensor) -> Tensor:
    y = net.b(F.relu(net.a(x)))
    y[:, :4] = 0
    return net.out(y)


def _two_halves(net: Writes, x: Tensor) -> Tensor:
    z = F.relu(net.a(x))
    n, c, h, w = z.shape
    y = torch.zeros(n, c, h, w)
    y[:, :4] = net.four(z)
    y[:, 4:] = net.other(z)
    return net.out(y)


def _temporal_shift(net: Writes, x: Tensor) -> Tensor:
    z = F.relu(net.a(x))
    y = torch.zeros_like(z)
    y[:, :2, 1:] = z[:, :2, :-1]
    y[:, 2:4, :-1] = z[:, 2:4, 1:]
    y[:, 4:] = z[:, 4:]
    return net.out(net.b(y))


def _augmented(net: Writes, x: Tensor) -> Tensor:
    y = net.b(F.relu(net.a(x)))
    y[:, 2:6] += net.four(F.relu(net.a(x)))
    return net.out(F.relu(y))


def _mask(net: Writes, x: Tensor) -> Tensor:
    y = net.b(F.relu(net.a(x)))
    y[y < 0] = 0.25
    return net.out(y)


def _mask_of_leading_axes(net: Writes, x: Tensor) -> Tensor:
    y = net.b(F.relu(net.a(x)))
    y[x.mean((1, 2, 3)) > 0] = 1.0
    return net.out(y)


def _windows(net: Writes, x: Tensor) -> Tensor:
    y = F.relu(net.a(x))
    image = torch.zeros((1, 1, y.shape[2], y.shape[3]))
    for number, rows in enumerate((slice(0, -4), slice(-4, -2), slice(-2, None))):
        image[:, :, rows] = number
    return net.out(net.b(y * image))


def _read_before(net: Writes, x: Tensor) -> Tensor:
    y = net.b(F.relu(net.a(x)))
    before = y[:, :4]
    y[:, :4] = 1.0
    return net.out(y) + net.out(torch.cat([before, before], 1))


def _axis_more_than_the_part(net: Writes, x: Tensor) -> Tensor:
    y = net.b(F.relu(net.a(x)))
    y[0] = net.b(y[:1])
    return net.out(y)


FORWARDS = (
    _zeros, _two_halves, _temporal_shift, _augmented, _mask, _mask_of_leading_axes, _windows, _read_before, _axis_more_than_the_part,
)  # fmt: skip


@pytest.mark.parametrize("forward", FORWARDS, ids=lambda forward: forward.__name__.strip("_"))
def test_item_assignment_is_traced_pruned_and_right_at_every_size(forward: Callable[[Writes, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model = Writes(forward).eval()
    graph = irtool.trace(model, torch.randn(1, 3, 12, 12))
    assert graph.tracer in ("symbolic", "concrete")
    assert not graph.fixed
    plan = irtool.plan(graph, "l1", 0.5, round_to=1)
    assert "a" in {layer.name for layer in plan.layers if layer.removed}
    for shape in ((1, 3, 12, 12), (3, 3, 16, 20)):
        x = torch.randn(shape)
        torch.testing.assert_close(graph.module(x.clone()), copy.deepcopy(model)(x.clone()))
        check = irtool.check_prune(graph, plan, (x,))
        assert check.ok
        assert check.relative < 1e-9


def test_places_that_are_computed_are_written_as_they_are() -> None:
    """Entries at a list of places are no view: the write is kept, and what flows into it with its channels."""

    def forward(net: Writes, x: Tensor) -> Tensor:
        y = net.b(F.relu(net.a(x)))
        y[:, x.mean((0, 2, 3)).topk(2)[1]] = 0.5
        return net.out(y)

    model = Writes(forward).eval()
    graph = irtool.trace(model, torch.randn(1, 3, 8, 8))
    plan = irtool.plan(graph, "l1", 0.5, round_to=1)
    reasons = {layer.name: layer.reason for layer in plan.layers if not layer.removed}
    assert "index_fill_" in str(reasons["b"])
    assert graph.tracer == "concrete"
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(graph.module(x), model(x))


@pytest.mark.parametrize("places", [torch.tensor([0, 3, 5]), [0, 3, 5]], ids=["tensor", "list"])
def test_places_that_are_known_stay_and_the_channels_between_them_go(places: Any, tmp_path: Path) -> None:
    def forward(net: Writes, x: Tensor) -> Tensor:
        y = net.b(F.relu(net.a(x)))
        y[:, places] = x
        y[..., places, :] = 0.5
        return net.out(y)

    model = Writes(forward).eval()
    graph = irtool.trace(model, torch.randn(1, 3, 8, 8))
    plan = irtool.plan(graph, "l1", 0.5, round_to=1)
    removed = {layer.name: layer.removed for layer in plan.layers}
    assert removed["b"]
    assert not {0, 3, 5} & set(removed["b"])
    x = torch.randn(2, 3, 12, 8)
    torch.testing.assert_close(graph.module(x), model(x))
    assert irtool.check_prune(graph, plan, (x,)).ok
    irtool.save(irtool.prune(graph, plan), tmp_path / "net.irtool")
    irtool.load(tmp_path / "net.irtool")


def test_the_models_own_tensor_is_not_written_into() -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
            self.register_buffer("seen", torch.zeros(1, 8, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            self.seen[:, :4] = y.mean((0, 2, 3)).view(1, -1, 1, 1)[:, :4]
            return self.b(y + 1)

    model = Keeps().eval()
    graph = irtool.trace(model, torch.randn(1, 3, 8, 8))
    assert not model.seen.any()
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(graph.module(x), model(x))


def test_a_model_that_writes_into_its_input_is_exported_as_what_it_computes(tmp_path: Path) -> None:
    """An engine's inputs are not written into: the file and its check work on copies."""

    def forward(net: Writes, x: Tensor) -> Tensor:
        x[:, 0] *= 2
        x -= 0.5
        return net.out(F.relu(net.a(x)))

    model = Writes(forward).eval()
    graph = irtool.trace(model, torch.randn(1, 3, 8, 8))
    plan = irtool.plan(graph, "l1", 0.5, round_to=1)
    assert irtool.check_prune(graph, plan).ok
    irtool.export_onnx(graph, tmp_path / "net.onnx")
    x = torch.randn(3, 3, 8, 8)
    (found,) = OnnxSession(tmp_path / "net.onnx").run(x.numpy())
    torch.testing.assert_close(torch.from_numpy(found), model(x.clone()), rtol=1e-4, atol=1e-4)


def test_a_traced_programs_code_can_be_read() -> None:
    model = Writes(_zeros).eval()
    assert "fill_(0)" in irtool.trace(model, torch.randn(1, 3, 8, 8)).module.code
