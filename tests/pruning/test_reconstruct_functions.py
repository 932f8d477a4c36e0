"""Layers that forward calls as functions, with weights that it fetches, are refitted as modules are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import irtool


class Modules(nn.Module):
    """Three convolutions in a row, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3 if not n else 12, 12, 3, padding=1) for n in range(3))
        self.classes = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = conv(x).relu()
        made: Tensor = self.classes(x.mean((2, 3)))
        return made


class Functions(Modules):
    """A net with all weights fetched before the first of them is used."""

    def forward(self, x: Tensor) -> Tensor:
        for weight, bias in [(conv.weight, conv.bias) for conv in self.convs]:
            x = F.conv2d(x, weight, bias, padding=1).relu()
        return F.linear(x.mean((2, 3)), self.classes.weight, self.classes.bias)


def test_a_weight_that_was_fetched_before_it_was_refitted_is_the_refitted_one() -> None:
    torch.manual_seed(0)
    modules, functions = Modules().eval(), Functions().eval()
    functions.load_state_dict(modules.state_dict())
    images, others = torch.randn(32, 3, 10, 10), torch.randn(8, 3, 10, 10)
    made = []
    for net in (modules, functions):
        graph = irtool.trace(net, images[:2])
        made.append(irtool.reconstruct(graph, irtool.plan(graph, "l1", 0.5), images).run(others))
    torch.testing.assert_close(made[0], made[1], rtol=1e-5, atol=1e-6)
