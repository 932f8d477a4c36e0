"""Layers whose weights are slices of one parameter: octave convolutions, the widths of a supernet."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import irtool


class Octave(nn.Module):
    """Two resolutions, four slices of one weight (after Chen et al. 2019)."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(cout, cin, 3, 3) * 0.2), nn.Parameter(torch.randn(cout) * 0.1)
        self.half_in, self.half_out = cin // 2, cout // 2

    def forward(self, high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        i, o, w, b = self.half_in, self.half_out, self.weight, self.bias
        to_high = F.conv2d(high, w[:o, :i], b[:o], padding=1) + F.interpolate(F.conv2d(low, w[:o, i:], padding=1), scale_factor=2)
        to_low = F.conv2d(F.avg_pool2d(high, 2), w[o:, :i], b[o:], padding=1) + F.conv2d(low, w[o:, i:], padding=1)
        return to_high, to_low


class Octaves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a, self.b = Octave(16, 24), Octave(24, 12)
        self.norms = nn.ModuleList([nn.BatchNorm2d(12), nn.BatchNorm2d(12)])
        self.classes = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        high, low = self.a(x, F.avg_pool2d(x, 2))
        high, low = self.b(F.relu(self.norms[0](high)), F.relu(self.norms[1](low)))
        out: Tensor = self.classes(torch.cat([high.mean((2, 3)), low.mean((2, 3))], 1))
        return out


class Slimmed(nn.Module):
    """A supernet at one of its widths: the weights are larger than what is used of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 24, 3), nn.Conv2d(24, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.first.weight[:16], self.first.bias[:16]))
        x = F.relu(F.conv2d(x, self.second.weight[:12, :16], self.second.bias[:12]))
        return F.conv2d(x, self.last.weight[:, :12], self.last.bias)


@pytest.mark.parametrize(("kind", "names"), [(Octaves, {"a", "b"}), (Slimmed, {"first", "second"})])
def test_layers_that_read_slices_of_a_weight_lose_channels(kind: type[nn.Module], names: set[str]) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    graph = irtool.trace(model, torch.rand(1, 3, 16, 16))
    plan = irtool.plan(graph, "l1", 0.5, round_to=1)
    layers = {layer.parameter.partition(".")[0]: layer for layer in plan.layers}
    for name in names:
        assert len(layers[name].removed) >= 0.4 * layers[name].total, layers[name]
    assert irtool.check_prune(graph, plan).ok
    again = irtool.prune(graph, type(plan).from_dict(plan.to_dict()), "drop")
    x = torch.rand(2, 3, 20, 24)
    torch.testing.assert_close(again.module(x), irtool.prune(graph, plan, "drop").module(x))


def test_no_slice_of_a_weight_is_emptied() -> None:
    torch.manual_seed(0)
    model = Octaves().eval()
    with torch.no_grad():
        model.a.weight[12:] *= 1e-3
    graph = irtool.trace(model, torch.rand(1, 3, 16, 16))
    plan = irtool.plan(graph, "l1", 0.8, scope="global", round_to=1)
    pruned = irtool.prune(graph, plan, "drop")
    assert pruned.module(torch.rand(1, 3, 16, 16)).isfinite().all()
    assert irtool.check_prune(graph, plan).ok
