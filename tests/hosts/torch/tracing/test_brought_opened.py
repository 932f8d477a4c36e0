"""Known mathematics behind a closed door is pruned through, and a plan is one that prune carries out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from strange_nets.blocks import Swish
from torch import Tensor, nn
from torch.autograd import Function

import irtool
from irtool.hosts.torch.operators import by_element
from irtool.hosts.torch.tracing.errors import explained

X = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Rounded(Function):
    """With a context that is set up apart."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.mul(4).round() / 4

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class Gated(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        return x * y.tanh()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, grad


class Centred(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x - x.mean(1, keepdim=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class InPlace(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x.mul_(2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 2


class Net(nn.Module):
    def __init__(self, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c, self.o = (
            nn.Conv2d(3, 16, 3, padding=1),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.Conv2d(3, 16, 1),
            nn.Conv2d(16, 4, 1),
        )
        self.offset, self.mask = nn.Conv2d(16, 18, 3, padding=1), nn.Conv2d(16, 9, 3, padding=1)
        self.deform = torchvision.ops.DeformConv2d(16, 16, 3, padding=1)
        self.plain = torchvision.ops.DeformConv2d(16, 16, 3, padding=1, bias=False)
        self.register_buffer("window", torch.hann_window(16))
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def _gated_spectrum(net: Any, x: Tensor) -> Tensor:
    y = net.b(net.a(x))
    spectrum = torch.fft.rfft2(y) * torch.fft.rfft2(net.b.weight[:, 0], s=x.shape[-2:])
    return net.o(torch.fft.irfft2(spectrum * spectrum.abs().sigmoid(), s=x.shape[-2:]) + torch.fft.fft(y).real)


def _unpooled(net: Any, x: Tensor) -> Tensor:
    y, index = nn.functional.max_pool2d(net.a(x), 2, return_indices=True)
    return net.o(nn.functional.max_unpool2d(net.b(y), index, 2))


def _unpooled_by_layers(net: Any, x: Tensor) -> Tensor:
    y, index = nn.MaxPool2d(2, return_indices=True)(net.a(x))
    return net.o(nn.MaxUnpool2d(2)(y.relu(), index, output_size=x.shape[-2:]))


def _folded(net: Any, x: Tensor) -> Tensor:
    patches = nn.functional.unfold(net.a(x), 3, padding=1)
    weighed = patches.view(x.shape[0], 16, 9, -1) * patches.view(x.shape[0], 16, 9, -1).softmax(2)
    return net.o(nn.functional.fold(weighed.flatten(1, 2), x.shape[-2:], 3, padding=1))


def _columns(net: Any, x: Tensor) -> Tensor:
    return nn.functional.unfold(net.a(x), 3, padding=1)


def _as_image(net: Any, rows: Tensor) -> Tensor:
    return net.o(rows.unflatten(2, (16, 16)))


def _spectrum(net: Any, x: Tensor) -> Tensor:
    sound = net.b(net.a(x)).flatten(2).mean(1)
    return torch.istft(torch.stft(sound, 16, window=net.window, return_complex=True), 16, window=net.window)


OPENED: dict[str, Callable[[Any, Tensor], Any]] = {
    "memory-saving swish": lambda net, x: net.o(Swish.apply(net.b(Swish.apply(net.a(x))))),
    "rounding": lambda net, x: net.o(Rounded.apply(net.a(x))),
    "two arguments": lambda net, x: net.o(Gated.apply(net.a(x), net.c(x))),
    "deformable": lambda net, x: net.o(net.deform(y := net.a(x).relu(), net.offset(y)).relu()),
    "deformable without bias": lambda net, x: net.o(net.plain(y := net.a(x).relu(), net.offset(y)).relu()),
    "deformable with a mask": lambda net, x: net.o(net.deform(y := net.a(x).relu(), net.offset(y), net.mask(y).sigmoid())),
    "unfold and fold": lambda net, x: net.o(
        nn.functional.fold(nn.functional.unfold(net.b(net.a(x)), 3, padding=1), (16, 16), 3, padding=1)
    ),
    "fold of any size": _folded,
    "unfold and fold as layers": lambda net, x: net.o(nn.Fold(16, 2, stride=2)(nn.Unfold(2, stride=2)(net.a(x)))),
    "a flattened kernel times columns": lambda net, x: _as_image(net, net.b.weight.view(16, -1) @ _columns(net, x)),
    "columns times a flattened kernel": lambda net, x: _as_image(
        net, (_columns(net, x).transpose(1, 2) @ net.b.weight.flatten(1).t()).transpose(1, 2)
    ),
    "an Einstein sum of both": lambda net, x: _as_image(net, torch.einsum("ok,nkl->nol", net.b.weight.view(16, -1), _columns(net, x))),
    "a linear layer of both": lambda net, x: _as_image(
        net, nn.functional.linear(_columns(net, x).transpose(1, 2), net.b.weight.view(16, -1)).transpose(1, 2)
    ),
    "unpooling": _unpooled,
    "unpooling by layers": _unpooled_by_layers,
    "Fourier transforms": _gated_spectrum,
    "pairs of a complex number": lambda net, x: net.o(torch.view_as_real(torch.fft.fft2(net.a(x))).sum(-1)),
    "regions": lambda net, x: net.o(torchvision.ops.roi_align(net.a(x), [torch.tensor([[0.0, 0, 8, 8]])], 4)),
    "a mask by bits": lambda net, x: net.o((y := net.a(x)) * ((y > 0) | ~(y < 1) ^ (y > 0.5))),
    "a transform without a meta kernel": _spectrum,
}


@pytest.mark.parametrize("name", OPENED)
def test_half_of_the_channels_go(name: str) -> None:
    graph = irtool.trace(Net(OPENED[name]).eval(), X)
    plan = irtool.plan(graph, "l1", 0.5, "local", round_to=1)
    check = irtool.check_prune(graph, plan)
    assert len(plan.layers[0].removed) in (7, 8)
    assert check.ok
    assert check.relative <= 1e-9


@pytest.mark.parametrize("name", ["deformable", "deformable without bias", "deformable with a mask"])
def test_what_the_offsets_say_stays(name: str) -> None:
    plan = irtool.plan(irtool.trace(Net(OPENED[name]).eval(), X), "l1", 0.5, "local")
    offset = next(layer for layer in plan.layers if layer.parameter == "offset.weight")
    assert offset.reason.startswith("says where a deformable convolution looks")


def test_what_mixes_channels_or_writes_is_no_elementwise_function() -> None:
    assert [by_element(kind) is not None for kind in (Swish, Rounded, Gated, Centred, InPlace)] == [True, True, True, False, False]
    graph = irtool.trace(Net(lambda net, x: net.o(Centred.apply(net.a(x)))).eval(), X)
    assert irtool.plan(graph, "l1", 0.5, "local").layers[0].reason.startswith("flows into Centred.apply")


def test_the_backward_of_ones_own_serves_after_pruning() -> None:
    graph = irtool.trace(Net(OPENED["memory-saving swish"]).eval(), X)
    module = irtool.prune(graph, irtool.plan(graph, "l1", 0.5, "local")).module
    module(X).sum().backward()
    assert module.a.weight.grad.abs().sum() > 0


def test_channels_that_became_one_group_are_said_to_meet_somewhere() -> None:
    graph = irtool.trace(Net(lambda net, x: net.o((y := net.a(x)) + y.roll(1, 1))).eval(), X)
    assert irtool.plan(graph, "l1", 0.5, "local").layers[0].reason == "all its channels are one group, which cannot go: they meet (at add)"


def test_an_error_shows_no_colour_codes() -> None:
    error = explained(nn.Identity(), (X,), [("export", RuntimeError("\x1b[31mno\x1b[0m guard\nmore"))])
    assert "(export: no guard)" in str(error)


class Decides(nn.Module):
    """Asks for the sign of a number that it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return y if y.sum() > 0 else y * 2


def test_a_failed_trace_prints_nothing_but_its_error(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(irtool.errors.TraceError):
        irtool.trace(Decides().eval(), torch.randn(1, 3, 12, 12))
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.name == "torch.export._trace"]


class Points(nn.Module):
    """Places at which a map of heat is above a number: as many points as there are, told by the numbers of the weights too."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.n = nn.Conv2d(16, 1, 1), nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        found = (self.n(self.c(x))[0, 0] > 0.1).nonzero()
        return found if float(found.sum()) > -1 else found[:1]


class FindsPoints(nn.Module):
    """Layers in front of a part that no tracer can follow, and beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.points = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1), Points()
        self.o, self.f = nn.Conv2d(16, 16, 3), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.b(self.a(x).relu()).relu()
        return self.points(y), self.f(self.o(y).relu())


@pytest.mark.parametrize("bias", [0.0, 0.5, 2.0])
def test_what_a_part_finds_has_another_size_at_each_reading_and_the_plan_is_carried_out(bias: float) -> None:
    torch.manual_seed(0)
    model = FindsPoints().eval()
    nn.init.constant_(model.points.n.bias, bias)
    x = torch.randn(1, 3, 12, 12)
    graph = irtool.trace(model, x)
    plan = irtool.plan(graph, "l1", 0.5, round_to=1)
    assert plan.removed >= 16
    assert irtool.check_prune(graph, plan).ok
    small = irtool.prune(graph, plan, "drop")
    points, made = small.run(x)
    assert points.shape[1] == 2
    assert made.shape == (1, 4, 10, 10)
