"""Images without a batch: their channels are axis 0."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import irtool


class Normed(nn.Module):
    """A batch norm, which wants a batch, between convolutions that do without."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 4, 1)
        self.norm.bias.data.uniform_(0.5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.conv(x).unsqueeze(0))).squeeze(0))


class OneByOne(Normed):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.head(torch.relu(self.conv(image))) for image in x.unbind(0)])


def chain(kind: type[nn.Module], turned: type[nn.Module]) -> nn.Module:
    return nn.Sequential(kind(8, 8, 3, padding=1), nn.ReLU(), kind(8, 8, 3, padding=1, groups=8), nn.ReLU(),
                         kind(8, 8, 3, padding=1, groups=2), nn.ReLU(), turned(8, 8, 3), nn.ReLU(), kind(8, 4, 3))  # fmt: skip


CASES = [
    (chain(nn.Conv1d, nn.ConvTranspose1d), (8, 8), "drop"),
    (chain(nn.Conv2d, nn.ConvTranspose2d), (8, 8, 8), "drop"),
    (chain(nn.Conv3d, nn.ConvTranspose3d), (8, 6, 6, 6), "drop"),
    (OneByOne(), (2, 3, 8, 8), "drop"),
    (Normed(), (3, 8, 8), "drop"),
    (Normed(), (3, 8, 8), "absorb"),
]


@pytest.mark.parametrize(("model", "shape", "constants"), CASES)
def test_half_of_the_channels_go(model: nn.Module, shape: tuple[int, ...], constants: str) -> None:
    graph = irtool.trace(model.eval(), torch.randn(shape))
    plan = irtool.plan(graph, "l1", 0.5, "local")
    assert [layer.kept for layer in plan.layers if not layer.reason] == [layer.total // 2 for layer in plan.layers if not layer.reason]
    assert {layer.reason for layer in plan.layers} == {"", "is a graph output (at output)"}
    assert irtool.check_prune(graph, plan, constants=constants).ok
    pruned = irtool.prune(graph, plan, constants).module
    pruned.train()(torch.randn(shape)).sum().backward()
    assert all(parameter.grad is not None for parameter in pruned.parameters())


def test_constants_are_absorbed_without_a_batch() -> None:
    model = Normed().eval().double()
    model.norm.weight.data[:8] = 0  # constant channels
    graph = irtool.trace(model, torch.randn(3, 8, 8).double())
    plan = irtool.plan(graph, "bn_scale", 0.5, "local")
    pruned = irtool.prune(graph, plan, "absorb").module
    x = torch.randn(3, 8, 8).double()
    assert plan.layers[0].removed == tuple(range(8))
    with torch.no_grad():
        torch.testing.assert_close(pruned(x), model(x), rtol=0, atol=1e-12)
