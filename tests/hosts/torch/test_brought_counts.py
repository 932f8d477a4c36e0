"""Kind (v): a number that is a channel count stays tied to the channels it was read from, wherever it goes; own tracers record factories."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import irtool

X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.o = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(32, 16, 1), nn.Conv2d(16, 4, 1)
        self.few, self.wide = nn.Conv2d(20, 4, 1), nn.Conv2d(32, 4, 1)
        self.broad = nn.Conv2d(16, 32, 3, padding=1)
        self.grid: Tensor | None = None
        self.register_buffer("own", torch.randn(1, 16, 1, 1))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def _appended(net: Any, x: Tensor) -> Tensor:
    y = torch.relu(net.a(x))
    n, _, h, w = y.shape
    return net.few(torch.cat([y, torch.zeros(n, 4, h, w)], 1))


def _sizes_in_one(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    rows = y.permute(0, 2, 3, 1).unflatten(3, (4, 4)).contiguous()
    return net.o(rows.view(rows.size()[:-2] + (16,)).permute(0, 3, 1, 2))  # noqa: RUF005 (one tuple, not its members)


def _sizes_by_name(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.o(torch.reshape(y.flatten(2), shape=y.shape[:1] + (16,) + y.shape[2:]))  # noqa: RUF005


def _doubled(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.o(net.b(torch.cat([y, torch.zeros((y.size(0), y.size(1), y.size(2), y.size(3)))], 1)))


def _ones(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    n, c, h, w = y.shape
    return net.o(net.b(torch.cat([y, torch.ones(n, c, h, w)], 1)))


def _filled(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.o(net.b(torch.cat([y, torch.full(y.shape, 2.0)], 1)))


def _twice(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    n, c, h, w = y.shape
    return net.wide(torch.zeros(n, c * 2, h, w) + torch.cat([y, y], 1))


def _joined(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.o(net.b(torch.cat([y, torch.zeros(y.shape[:2] + y.shape[2:])], 1)))


def _listed(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.o(net.b(torch.cat([y, torch.zeros([y.size(0), y.size(1), *list(y.shape[2:])])], 1)))


def _last(net: Any, x: Tensor) -> Tensor:
    y = net.a(x).permute(0, 2, 3, 1)
    n, h, w, c = y.shape
    return net.o(net.b(torch.cat([y, y.new_full((n, h, w, c), 3.0)], 3).permute(0, 3, 1, 2)))


def _state(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    state = torch.zeros(y.size(0), 16, y.size(2), y.size(3), dtype=y.dtype)
    for _ in range(2):
        state = torch.tanh(net.b(torch.cat([y, state], 1)))
    return net.o(state)


def _fill_value(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    n, c, h, w = y.shape
    return net.o(y + torch.full((n, c, h, w), 1 / c))


def _keyword(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.o(torch.mul(y, other=y.shape[1]))


def _root(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    n, c, h, w = y.shape
    tokens = y.flatten(2)
    return net.o(torch.bmm(tokens, torch.bmm(tokens.transpose(1, 2), tokens) / math.sqrt(c)).view(n, c, h, w))


def _expanded(net: Any, x: Tensor) -> Tensor:
    return net.o(net.a(x) + net.own.expand(x.shape[0], -1, x.shape[2], x.shape[3]))


def _cached(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    if net.grid is None or net.grid.shape != y.shape[2:]:
        net.grid = torch.arange(y.shape[2], dtype=torch.float32).view(-1, 1) + torch.zeros(y.shape[2], y.shape[3])
    return net.o(y) + net.grid


def _whole(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    n, c, h, w = (int(y.shape[axis]) for axis in range(4))
    return net.o(net.b(torch.cat([y, torch.zeros(n, c, h, w)], 1)))


def _rounded(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    h, w = y.shape[2:]
    y = nn.functional.interpolate(y, size=(round(h * 0.75), max(int(w / 2), 2)), mode="bilinear")
    return net.o(y) / float(len(x) * h)


def _missing(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    y = nn.functional.pad(y, (0, 0, 0, 0, 0, 32 - y.shape[1]))
    return net.o(net.b(y))


def _shortcut(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    z = net.broad(torch.relu(y))
    return net.wide(z + nn.functional.pad(y, (0, 0, 0, 0, 0, z.shape[1] - y.shape[1])))


def _filled_shortcut(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    z = net.broad(torch.relu(y))
    return net.wide(z + torch.cat([y, y.new_zeros(y.size(0), z.size(1) - y.size(1), y.size(2), y.size(3))], 1))


def _told(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.o(y * torch.tensor([y.shape[2], y.shape[3]]).sum())


def _unset(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.o(y + torch.empty(y.shape).fill_(1.0))


def _mixed_places(net: Any, x: Tensor) -> Tensor:
    return net.o(net.a(x) @ torch.eye(x.shape[-1]))


TIED = [
    _whole,
    _rounded,
    _missing,
    _shortcut,
    _filled_shortcut,
    _told,
    _unset,
    _mixed_places,
    _sizes_in_one,
    _sizes_by_name,
    _appended,
    _doubled,
    _ones,
    _filled,
    _twice,
    _joined,
    _listed,
    _last,
    _state,
    _fill_value,
    _keyword,
    _root,
    _expanded,
    _cached,
]


@pytest.mark.parametrize("function", TIED)
def test_channels_go_and_every_size_follows(function: Callable[[Any, Tensor], Tensor]) -> None:
    model = Net(function).eval()
    graph = irtool.trace(model, X)
    plan = irtool.plan(graph, "l1", 0.5, "local")
    check = irtool.check_prune(graph, plan)
    assert graph.tracer in ("symbolic", "concrete")
    assert plan.removed >= 8
    assert check.ok
    assert check.relative <= 1e-9
    for shape in ((3, 3, 8, 8), (2, 3, 6, 10)):
        x = torch.randn(shape)
        assert torch.equal(graph.module(x), model(x))


def _numbered(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    c = y.shape[1]
    return net.o(y * torch.arange(c).view(1, c, 1, 1))


def _mixed(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.o(torch.einsum("nchw,cd->ndhw", y, torch.eye(y.shape[1])))


@pytest.mark.parametrize("function", [_numbered, _mixed])
def test_channels_that_are_numbered_stay(function: Callable[[Any, Tensor], Tensor]) -> None:
    graph = irtool.trace(Net(function).eval(), X)
    plan = irtool.plan(graph, "l1", 0.5, "local")
    assert plan.layers[0].reason.startswith("its channels are numbered")
    assert irtool.check_prune(graph, plan).ok


def test_zeros_of_another_type_are_of_that_type() -> None:
    graph = irtool.trace(Net(lambda net, x: net.o(net.a(x)) + torch.zeros_like(x[:, :1], dtype=torch.long)).eval(), X)
    assert next(node for node in graph.nodes if "zeros_like" in node.callee).output.dtype == torch.long
