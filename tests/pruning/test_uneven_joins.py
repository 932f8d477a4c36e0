"""Grouped convolutions behind joins whose parts do not end where the groups do, and shuffles that cannot be followed beside them."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import irtool


def shuffled(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class Joined(nn.Module):
    """The stem's 6 channels and 54 more in groups of 20 (the first unit of a ShuffleNet's stage)."""

    def __init__(self, gated: bool) -> None:
        super().__init__()
        self.gated = gated
        self.stem, self.wide = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 54, 1, groups=3)
        self.narrow, self.deep = nn.Conv2d(60, 27, 1, groups=3), nn.Conv2d(27, 27, 3, padding=1, groups=27)
        self.merge, self.evolve = nn.Conv2d(27, 8, 1), nn.Conv2d(8, 27, 1)
        self.back, self.head = nn.Conv2d(27, 60, 1, groups=3), nn.Conv2d(60, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.stem(x))
        z = F.relu(torch.cat([self.wide(y), y], 1))
        u = shuffled(F.relu(self.narrow(z)), 3)
        v = self.deep(u)
        if self.gated:  # the shuffled channels meet others in their order: equally many of each group are not enough
            v = v * torch.sigmoid(self.evolve(F.relu(self.merge(u))))
        out: Tensor = self.head(F.relu(z + self.back(v)))
        return out


@pytest.mark.parametrize("gated", [False, True])
def test_a_join_of_other_widths_than_the_groups_behind_it_loses_half(gated: bool) -> None:
    torch.manual_seed(0)
    graph = irtool.trace(Joined(gated).eval(), torch.rand(1, 3, 8, 8))
    plan = irtool.plan(graph, "l1", 0.5, round_to=1)
    left = {layer.name: (layer.total, layer.total - len(layer.removed)) for layer in plan.layers}
    assert 24 <= left["back"][1] <= 36
    assert left["wide"][1] + left["stem"][1] == left["back"][1]
    assert left["narrow"][1] < 27
    assert irtool.check_prune(graph, plan).ok


class Reversible(nn.Module):
    """The image itself, rearranged, is the residual stream (iRevNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(12, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.pixel_unshuffle(x, 2)
        out: Tensor = self.head(y + self.b(F.relu(self.a(y))))
        return out


def test_what_is_added_to_the_image_stays_and_is_said_to() -> None:
    graph = irtool.trace(Reversible().eval(), torch.rand(1, 3, 8, 8))
    reasons = {layer.name: layer.reason for layer in irtool.plan(graph, "l1", 0.5, round_to=1).layers}
    assert reasons["a"] == ""
    assert reasons["b"].startswith("meets a value whose channels cannot be removed: they are the input's own (at ")
