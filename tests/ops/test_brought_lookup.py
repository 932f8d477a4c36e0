"""What is picked by a computed index, and maps that are stretched over channels: the channels go, at every batch and size."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from strange_nets.judge import zeroed_original
from torch import Tensor, nn

import irtool


class Net(nn.Module):
    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.h = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.map, self.function = nn.Conv2d(16, 1, 1), function
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.h(F.relu(self.b(self.function(self, F.relu(self.a(x))))))
        return y


def tokens(y: Tensor) -> Tensor:
    return y.flatten(2).transpose(1, 2)


def best(y: Tensor) -> Tensor:
    return tokens(y).sum(-1).topk(5, 1)[1]


def weighed(y: Tensor, picked: Tensor) -> Tensor:
    return y * picked.mean(1)[..., None, None]


FORMS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "expand": lambda s, y: y * s.map(y).sigmoid().expand(-1, y.shape[1], -1, -1),
    "expand to a number": lambda s, y: y * s.map(y).sigmoid().expand(-1, 16, -1, -1),
    "expand, then a gate": lambda s, y: y * s.map(y).expand(-1, 16, -1, -1).sigmoid(),
    "repeat": lambda s, y: s.map(y).sigmoid().repeat(1, y.size(1), 1, 1) * y,
    "repeat by a number": lambda s, y: y + s.map(y).repeat(1, 16, 1, 1),
    "broadcast_to": lambda s, y: y * torch.broadcast_to(s.map(y), y.shape),
    "ones of a number": lambda s, y: y * torch.sigmoid(torch.ones(y.shape[0], 16, y.shape[2], y.shape[3])) + y.new_full((16, 1, 1), 0.1),
    "the largest": lambda s, y: y - y.max(1, keepdim=True)[0].expand(-1, y.shape[1], -1, -1),
    "gather": lambda s, y: weighed(y, tokens(y).gather(1, best(y).unsqueeze(-1).expand(-1, -1, y.shape[1]))),
    "gather by a number": lambda s, y: weighed(y, tokens(y).gather(1, best(y).unsqueeze(-1).repeat(1, 1, 16))),
    "take_along_dim": lambda s, y: weighed(y, torch.take_along_dim(tokens(y), tokens(y).sum(-1, keepdim=True).argsort(1), 1)[:, :4]),
    "index of images": lambda s, y: weighed(y, tokens(y)[torch.arange(y.shape[0])[:, None], best(y)]),
    "index of places": lambda s, y: y + y[..., torch.arange(y.shape[3] - 1, -1, -1)],
    "index_select": lambda s, y: y + y.index_select(3, torch.arange(y.shape[3] - 1, -1, -1)),
    "a mask of places": lambda s, y: y * tokens(y)[tokens(y).sum(-1) > 0].mean(0)[:, None, None],
}


@pytest.mark.parametrize("form", FORMS)
def test_channels_go_and_numbers_are_those_of_the_zeroed_model(form: str) -> None:
    net = Net(FORMS[form])
    graph = irtool.trace(net, torch.randn(1, 3, 12, 12))
    plan = irtool.plan(graph, "random", 0.5, "local", seed=1)
    assert plan.removed / sum(layer.total for layer in plan.layers) > 0.4
    pruned, zeroed = irtool.prune(graph, plan, "drop"), zeroed_original(net, graph, plan).double()
    module = copy.deepcopy(pruned.module).double()
    for shape in ((1, 3, 12, 12), (3, 3, 10, 14)):
        x = torch.randn(shape, dtype=torch.float64)
        torch.testing.assert_close(module(x), zeroed(x), rtol=1e-9, atol=1e-9)
    assert irtool.check_prune(graph, plan, constants="absorb").ok


PINNED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "channels by what is computed": lambda s, y: y[:, y.mean((0, 2, 3)).argsort()],
    "channels by a mask": lambda s, y: y * y[:, y.mean((0, 2, 3)) > -10].mean(1, keepdim=True),
    "an index that numbers the channels": lambda s, y: weighed(
        y, tokens(y).gather(1, torch.arange(y.shape[1]).remainder(3).expand(y.shape[0], 5, -1))
    ),
}


@pytest.mark.parametrize("form", PINNED)
def test_an_index_of_channels_still_holds_them(form: str) -> None:
    graph = irtool.trace(Net(PINNED[form]), torch.randn(2, 3, 12, 12))
    plan = irtool.plan(graph, "l1", 0.5)
    (layer,) = (layer for layer in plan.layers if layer.name == "a")
    assert not layer.removed
    assert irtool.check_prune(graph, plan).ok


class Recurrent(nn.Module):
    """A recurrent convolution over the frames of a clip, whose first state is zeros of a written number of channels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gates, self.head = nn.Conv2d(3 + 16, 64, 3, padding=1), nn.Conv2d(16, 4, 1)

    def forward(self, clip: Tensor) -> Tensor:
        n, length, _, height, width = clip.size()
        hidden, cell = torch.zeros(n, 16, height, width, dtype=clip.dtype), torch.zeros(n, 16, height, width, dtype=clip.dtype)
        for frame in range(length):
            i, f, o, g = torch.split(self.gates(torch.cat([clip[:, frame], hidden], 1)), 16, 1)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * cell.tanh()
        out: Tensor = self.head(hidden)
        return out


def test_the_first_state_of_a_recurrent_convolution_is_as_wide_as_the_next() -> None:
    net = Recurrent().eval()
    graph = irtool.trace(net, torch.randn(1, 3, 3, 8, 8))
    plan = irtool.plan(graph, "l1", 0.5)
    assert {layer.name: len(layer.removed) for layer in plan.layers} == {"gates": 32, "head": 0}
    pruned, zeroed = irtool.prune(graph, plan, "drop"), zeroed_original(net, graph, plan)
    for shape in ((1, 3, 3, 8, 8), (3, 3, 3, 10, 6)):
        clip = torch.randn(shape)
        torch.testing.assert_close(pruned.module(clip), zeroed(clip))


class Turned(nn.Module):
    """Attention whose queries and keys are turned by angles that grow with the position, as language models do it."""

    def __init__(self, angles: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.qkv, self.out, self.head = nn.Conv2d(3, 32, 4, 4), nn.Linear(32, 96), nn.Linear(32, 32), nn.Linear(32, 4)
        self.register_buffer("inverse", 1 / 100 ** (torch.arange(0, 8, 2).float() / 8))
        self.angles = angles

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        n, length, width = tokens.shape
        q, k, v = self.qkv(tokens).view(n, length, 3, 4, 8).permute(2, 0, 3, 1, 4)
        angle = self.angles(torch.arange(length).to(self.inverse), self.inverse)
        both = torch.cat((angle, angle), -1)

        def turned(y: Tensor) -> Tensor:
            first, second = y.chunk(2, -1)
            return y * both.cos() + torch.cat((-second, first), -1) * both.sin()

        found = F.scaled_dot_product_attention(turned(q), turned(k), v)
        out: Tensor = self.head(self.out(found.transpose(1, 2).reshape(n, length, width)).mean(1))
        return out


@pytest.mark.parametrize("angles", [torch.outer, lambda place, inverse: torch.einsum("i , j -> i j", place, inverse)])
def test_heads_that_are_turned_by_position_lose_pairs(angles: Callable[[Tensor, Tensor], Tensor]) -> None:
    net = Turned(angles).eval()
    graph = irtool.trace(net, torch.randn(1, 3, 16, 16))
    plan = irtool.plan(graph, "l1", 0.5, "local")
    assert next(len(layer.removed) for layer in plan.layers if layer.name == "qkv") == 48
    assert irtool.check_prune(graph, plan).ok
    pruned = irtool.prune(graph, plan, "drop")
    for shape in ((3, 3, 16, 16), (2, 3, 12, 24)):
        assert irtool.check_prune(graph, plan, (torch.randn(shape),)).ok
    assert pruned.module.get_buffer("inverse").numel() == 2
