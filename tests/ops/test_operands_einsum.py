"""Einstein sums over branches and over groups of channels, and with an ellipsis."""

from __future__ import annotations

import pytest
import torch
from small_nets import Middle, halved, small
from torch import Tensor, nn

import irtool


class Experts(nn.Module):
    """A mixture of branches, weighted for each image."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Conv2d(3, 12, 3) for _ in range(3)])
        self.router, self.head = nn.Linear(3, 3), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.softmax(self.router(x.mean((2, 3))), 1)
        return self.head(torch.einsum("bk,bkchw->bchw", weights, torch.stack([expert(x) for expert in self.experts], 1)))


def test_a_mixture_of_branches_loses_the_same_of_each() -> None:
    torch.manual_seed(0)
    graph = irtool.trace(Experts().eval(), torch.randn(2, 3, 8, 8))
    plan = irtool.plan(graph, "l1", 0.5, "local")
    found = irtool.check_prune(graph, plan)
    assert found.ok
    assert found.inexact == ()
    assert {layer.name: layer.total - layer.kept for layer in plan.layers if layer.name != "head"} == {
        "router": 0, "experts.0": 6, "experts.1": 6, "experts.2": 6,
    }  # fmt: skip


HALF: dict[str, Middle] = {
    "sum over groups": lambda net, y: torch.einsum("bgcxy->bcxy", y.unflatten(1, (4, 4))),
    "groups are kept": lambda net, y: torch.einsum("bgcxy,bgc->bgcxy", y.unflatten(1, (4, 4)), y.mean((2, 3)).unflatten(1, (4, 4))).flatten(
        1, 2
    ),
    "groups are weighed": lambda net, y: torch.einsum("bgcxy,g->bgcxy", y.unflatten(1, (4, 4)), net.four).flatten(1, 2),
    "channels of a group are summed": lambda net, y: torch.einsum("bgcxy->bgxy", y.unflatten(1, (4, 4))),
    "both are summed": lambda net, y: y * torch.einsum("bgcxy,bgcxy->bxy", y.unflatten(1, (4, 4)), y.unflatten(1, (4, 4)))[:, None],
    "groups are mixed": lambda net, y: torch.einsum("bgcxy,gk->bkcxy", y.unflatten(1, (4, 4)), net.square).flatten(1, 2),
    "ellipsis": lambda net, y: torch.einsum("b...,->b...", y, torch.tensor(2.0)),
    "ellipsis of two": lambda net, y: torch.einsum("bc...,bc->bc...", y, y.mean((2, 3))),
    "ellipsis in front": lambda net, y: torch.einsum("...d,cd->...c", y.flatten(2).mT, net.weight).mT.unflatten(2, (8, 8)),
    "ellipsis that is summed": lambda net, y: y * torch.einsum("bc...->bc", y)[..., None, None],
    "ellipsis without an arrow": lambda net, y: torch.einsum("b...c", y.permute(0, 2, 3, 1)).permute(2, 3, 0, 1),
    "ellipsis that is broadcast": lambda net, y: torch.einsum("b...,b...->b...", y, y.mean(1, keepdim=True)),
}


@pytest.mark.parametrize("name", HALF)
def test_half_of_the_channels_go(name: str) -> None:
    parts = {"four": torch.rand(4), "square": torch.rand(4, 4), "weight": nn.Parameter(torch.randn(16, 16))}
    found, gone, reason = halved(small(HALF[name], **parts))
    assert found.ok
    assert (gone, reason) == (8, "")


def test_a_sum_over_stacked_branches() -> None:
    found, gone, _ = halved(small(lambda net, y: torch.einsum("bkchw->bchw", torch.stack([y, y.tanh()], 1))))
    assert found.ok
    assert gone == 8


def test_a_diagonal_says_that_it_is_not_followed() -> None:
    found, gone, reason = halved(small(lambda net, y: y * torch.einsum("bcc->bc", y.flatten(2)[:, :, :16])[..., None, None]))
    assert found.ok
    assert (gone, "einsum 'bcc->bc'" in reason) == (0, True)


class Heads(nn.Module):
    """Attention with more heads than channels a head, in three ways of writing it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, 32) for _ in range(3))
        self.out, self.how = nn.Linear(32, 5), how

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(2, (8, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if self.how == "fused":
            mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        elif self.how == "einsum":
            mixed = torch.einsum("bhnm,bhmd->bhnd", torch.einsum("bhnd,bhmd->bhnm", q, k).softmax(-1), v)
        else:
            mixed = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("how", ["fused", "einsum", "product"])
def test_heads_stay_where_there_are_more_of_them_than_channels_in_each(how: str) -> None:
    torch.manual_seed(0)
    graph = irtool.trace(Heads(how).eval(), torch.randn(2, 7, 6))
    plan = irtool.plan(graph, "random", 0.5, "local", seed=3)
    assert irtool.check_prune(graph, plan).ok
    assert [layer.kept for layer in plan.layers] == [16, 16, 16, 5]
    assert all(len({channel // 4 for channel in set(range(32)) - set(layer.removed)}) == 8 for layer in plan.layers[:3])
