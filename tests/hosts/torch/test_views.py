"""Sizes written into a view: where the model itself reads its numbers in another way at another image size, a pruned graph refuses it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from strange_nets.judge import zeroed_original
from torch import Tensor, nn
from torch.nn import functional as F

import irtool


class Net(nn.Module):
    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.f = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 1), nn.Linear(16, 8)
        self.flat, self.scale = nn.Linear(16 * 16 * 16, 8), nn.Parameter(torch.randn(16))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, self.a(x).relu())


def _windows(net: Any, y: Tensor) -> Tensor:
    return net.b(y.view(-1, 16, 4, 4, 4, 4).mean((3, 5)))


def _function(net: Any, y: Tensor) -> Tensor:
    return net.b(torch.reshape(y, (-1, 16, 8, 32)))


def _rows(net: Any, y: Tensor) -> Tensor:
    return net.flat(y.view(-1, 16 * 16 * 16))


def _pooled(net: Any, y: Tensor) -> Tensor:
    return net.f(F.avg_pool2d(y, 16).view(-1, 16))


def _joined(net: Any, y: Tensor) -> Tensor:
    return net.b(y.view(1, 16, -1)[..., None])


def _computed(net: Any, y: Tensor) -> Tensor:
    return net.b(y.view(y.shape[0], 16, -1)[..., None] * net.scale.view(1, -1, 1, 1))


def _by_count(net: Any, y: Tensor) -> Tensor:
    n, c, h, w = y.shape
    return net.b(y.view(n, c, h // 4, 4, w // 4, 4).mean((3, 5)))


def _patches(net: Any, y: Tensor) -> Tensor:
    n, c, h, w = y.shape
    rows, columns = h // 2, w // 2
    patches = y.reshape(n * c * rows, 2, columns, 2).transpose(1, 2).reshape(n, c, rows * columns, 4)
    mixed = patches.transpose(1, 3).reshape(n * 4, rows * columns, -1).softmax(1).view(n, 4, rows * columns, -1)
    back = mixed.transpose(1, 3).reshape(n * c * rows, columns, 2, 2).transpose(1, 2)
    return net.b(back.reshape(n, c, rows * 2, columns * 2))


SHAPES = [(1, 3, 16, 16), (3, 3, 16, 16), (1, 3, 16, 32), (2, 3, 32, 32), (4, 3, 8, 8)]


def _pruned(function: Callable[[Any, Tensor], Tensor]) -> tuple[nn.Module, irtool.FxGraph]:
    torch.manual_seed(0)
    model = Net(function).eval()
    graph = irtool.trace(model, torch.randn(1, 3, 16, 16))
    plan = irtool.plan(graph, "l1", 0.5)
    assert plan.removed >= 8
    return zeroed_original(copy.deepcopy(model), graph, plan), irtool.prune(graph, plan, "drop")


@pytest.mark.parametrize("function", [_windows, _function, _rows, _pooled, _joined])
def test_a_size_at_which_channels_would_mix_is_refused_and_told(function: Callable[[Any, Tensor], Tensor]) -> None:
    zeroed, pruned = _pruned(function)
    assert any("refused at sizes" in note for note in pruned.notes)
    refused = 0
    for shape in SHAPES:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            try:
                found = pruned.module.forward(x)
            except (RuntimeError, AssertionError):
                refused += 1
                continue
            torch.testing.assert_close(found, zeroed(x))
    assert 0 < refused < len(SHAPES)


@pytest.mark.parametrize("function", [_computed, _by_count])
def test_sizes_that_are_computed_need_no_word(function: Callable[[Any, Tensor], Tensor]) -> None:
    zeroed, pruned = _pruned(function)
    assert pruned.notes == ()
    assert not [node for node in pruned.module.graph.nodes if node.target is torch._assert]
    for shape in SHAPES:
        x = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(pruned.module.forward(x), zeroed(x))


def test_channels_merged_with_a_batch_that_is_computed_are_told_apart_at_any_batch() -> None:
    torch.manual_seed(0)
    model = Net(_patches).eval()
    graph = irtool.trace(model, torch.randn(1, 3, 16, 16))
    plan = irtool.plan(graph, "l1", 0.5)
    pruned = irtool.prune(graph, plan, "drop")
    assert plan.removed >= 8
    for shape in SHAPES:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
        alone = irtool.prune(irtool.trace(model, x), plan, "drop")
        with torch.no_grad():
            found = pruned.module.forward(x)
            torch.testing.assert_close(found, torch.cat([pruned.module.forward(image[None]) for image in x]))
            torch.testing.assert_close(found, alone.module.forward(x))
            assert found.std() > 1e-3


def test_pruned_again_saved_and_exported(tmp_path: Path) -> None:
    pruned = _pruned(_windows)[1]
    again = irtool.prune(pruned, irtool.plan(pruned, "l1", 0.5))
    assert len([node for node in again.module.graph.nodes if node.target is torch._assert]) == 1
    irtool.save(again, tmp_path / "m.irt")
    x = torch.randn(2, 3, 16, 16)
    loaded = irtool.load(tmp_path / "m.irt")
    torch.testing.assert_close(loaded.run(x), again.run(x))
    with pytest.raises(AssertionError, match="mixed with other axes"):
        loaded.module.forward(torch.randn(1, 3, 16, 32))
    irtool.export_onnx(again, tmp_path / "m.onnx")


class Fixed(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, self.a(x).relu() * (2 if x.shape[-1] in (16, 32) else 1))


def test_what_the_trace_told_is_told_of_the_pruned_graph_and_what_is_made_of_it() -> None:
    torch.manual_seed(0)
    graph = irtool.trace(Fixed(_joined).eval(), torch.randn(1, 3, 16, 16))
    assert any("the image is fixed" in note for note in graph.notes)
    done = irtool.Prune(irtool.plan(graph, "l1", 0.5))(graph)
    folded = irtool.fold_batchnorm(done.graph)
    for made in (done.graph, irtool.RemoveIdentity()(done.graph).graph, folded):
        assert set(graph.notes) < set(made.notes)
        assert any("refused at sizes" in note for note in made.notes)
    assert any("refused at sizes" in note for note in done.notes)
    assert not set(graph.notes) & set(done.notes)
