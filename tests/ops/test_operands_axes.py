"""Operators whose axes depend on the rank, or on how a call is written: what works along channels is never taken to leave them alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_nets import Middle, halved, small
from torch import Tensor, nn

import irtool
from irtool.hosts.torch.tracing import trace as fx_trace

ALONG = "works along an axis that carries channels"
ACROSS = {
    "avg_pool1d": lambda net, y: F.avg_pool1d(y.mean((2, 3)), 3, 1, 1),
    "max_pool1d": lambda net, y: F.max_pool1d(y.amax((2, 3)), 3, 1, 1),
    "avg_pool2d": lambda net, y: F.avg_pool2d(y.flatten(2), 3, 1, 1).mean(2),
    "max_pool3d": lambda net, y: F.max_pool3d(y, 3, 1, 1).mean((2, 3)),
    "adaptive": lambda net, y: F.adaptive_avg_pool1d(y.mean((2, 3)), 16),
    "module": lambda net, y: net.pool(y.mean((2, 3))),
    "module of volumes": lambda net, y: net.volume(y).mean((2, 3)),
    "triangle": lambda net, y: y.flatten(2).tril().mean(2),
}
"""Without a batch, or so it seems: the axis of channels is one of the space's."""


@pytest.mark.parametrize("name", ACROSS)
def test_a_window_over_channels_pins_them(name: str) -> None:
    found, gone, reason = halved(small(ACROSS[name], nn.LazyLinear, pool=nn.AvgPool1d(3, 1, 1), volume=nn.AdaptiveAvgPool3d((16, 8, 8))))
    assert found.ok
    assert (gone, ALONG in reason) == (0, True)


BESIDE: dict[str, Middle] = {
    "pool of one map each": lambda net, y: F.avg_pool1d(y.flatten(2), 3, 1, 1).mean(2),
    "pool without a batch": lambda net, y: torch.stack([F.max_pool2d(image, 2) for image in (y[0], y[1])]).mean((2, 3)),
    "instance norm": lambda net, y: F.instance_norm(y.flatten(2)).amax(2),
    "instance norm of batches": lambda net, y: net.norm(y.flatten(2).permute(1, 0, 2)).amax(2).t(),
    "instance norm without a batch": lambda net, y: torch.stack([net.plain(y[0]), net.plain(y[1])]).amax((2, 3)),
    "triangle": lambda net, y: y.tril().mean((2, 3)),
}


@pytest.mark.parametrize("name", BESIDE)
def test_a_window_beside_channels_does_not(name: str) -> None:
    graph = small(BESIDE[name], nn.LazyLinear, norm=nn.InstanceNorm1d(2, affine=True), plain=nn.InstanceNorm2d(16))
    found, gone, reason = halved(graph)
    assert found.ok
    assert (gone, reason, found.inexact) == (8, "", ())


MIXES: dict[str, tuple[Middle, str]] = {
    "instance norm of two axes": (lambda net, y: net.norm(y.mean((2, 3))), "normalises over channels"),
    "instance norm of three axes": (lambda net, y: net.images(y.flatten(2)).mean(2), "normalises over channels"),
    "softmax without an axis": (lambda net, y: F.softmax(y.flatten(2).permute(1, 0, 2), None).mean(2).t(), "softmax over channels"),
    "triangle before a mean": (lambda net, y: (y * y.tril().mean(1, keepdim=True)).mean((2, 3)), "mean over channels"),
    "var(False)": (lambda net, y: (y * y.var(False)).mean((2, 3)), "var over channels"),
    "std(y, False)": (lambda net, y: (y * torch.std(y, False)).mean((2, 3)), "std over channels"),
    "std(y, False), exported": (lambda net, y: (y * torch.ops.aten.std.default(y, False)).mean((2, 3)), "std over channels"),
    "norm(2.0)": (lambda net, y: (y / (y.norm(2.0) + 1)).mean((2, 3)), "norm over channels"),
    "norm(2, 1)": (lambda net, y: (y / (y.norm(2, 1, keepdim=True) + 1)).mean((2, 3)), "norm over channels"),
    "norm(p=2, dim=1)": (lambda net, y: (y / (torch.norm(y, p=2, dim=1, keepdim=True) + 1)).mean((2, 3)), "norm over channels"),
}


@pytest.mark.parametrize("name", MIXES)
def test_what_mixes_channels_says_so(name: str) -> None:
    middle, reason = MIXES[name]
    found, gone, _ = halved(small(middle, nn.LazyLinear, norm=nn.InstanceNorm1d(2), images=nn.InstanceNorm2d(2)))
    assert found.ok
    assert gone == 8
    assert reason in " ".join(found.inexact)


def test_places_of_what_is_positive_stay() -> None:
    found, gone, reason = halved(small(lambda net, y: y * torch.where(y > 0)[0].numel()))
    assert found.ok
    assert (gone, "gives positions of channels" in reason) == (0, True)


def test_a_table_of_vectors_of_limited_length_stays() -> None:
    model, tokens = (
        nn.Sequential(nn.Embedding(20, 16, max_norm=1.0), nn.Linear(16, 8), nn.Linear(8, 5)).eval(),
        torch.randint(0, 20, (2, 7)),
    )
    graph = irtool.trace(model, tokens)
    plan = irtool.plan(graph, "l1", 0.5, "local")
    assert irtool.check_prune(graph, plan).ok
    assert plan.removed == 4
    assert any("largest norm" in reason for _, _, reason in irtool.channel_groups(graph).labels.pins)


NAMED: dict[str, Middle] = {
    "mean": lambda net, y: y * torch.mean(input=y, dim=1, keepdim=True),
    "std": lambda net, y: y * torch.std(input=y, dim=1, keepdim=True),
    "softmax": lambda net, y: y * torch.softmax(input=y, dim=1),
    "mean, as in NumPy": lambda net, y: y * torch.mean(x=y, axis=1, keepdims=True),
    "softmax, as in NumPy": lambda net, y: torch.softmax(y.permute(0, 2, 3, 1), axis=3).permute(0, 3, 1, 2),
    "sum, as in NumPy": lambda net, y: torch.add(x1=y, x2=y.sum(axis=(-1,), keepdims=True)),
    "unflatten": lambda net, y: torch.unflatten(input=y, dim=1, sizes=(4, 4)).flatten(1, 2),
    "narrow": lambda net, y: torch.cat([torch.narrow(input=y, dim=1, start=0, length=8), y[:, 8:]], 1),
    "split": lambda net, y: torch.cat(torch.split(tensor=y, split_size_or_sections=8, dim=1), 1),
    "where": lambda net, y: torch.where(condition=y > 0, input=y, other=-y),
    "pad": lambda net, y: F.pad(input=y, pad=(1, 1)),
}


@pytest.mark.parametrize("name", NAMED)
def test_an_operand_given_by_name(name: str) -> None:
    found, gone, reason = halved(small(NAMED[name]))
    assert found.ok
    assert (gone, reason) == (8, "")


def test_a_convolution_whose_operands_have_names() -> None:
    def middle(net: nn.Module, y: Tensor) -> Tensor:
        return F.conv2d(input=net.norm(y), weight=net.kernel)

    found, gone, _ = halved(small(middle, norm=nn.BatchNorm2d(16), kernel=nn.Parameter(torch.randn(8, 16, 1, 1))), "absorb")
    assert found.ok
    assert gone == 8


PADS: dict[str, nn.Module] = {
    "circular": nn.CircularPad2d(1),
    "reflected": nn.ReflectionPad2d((1, 0, 2, 1)),
    "zeros": nn.ZeroPad2d(1),
}


@pytest.mark.parametrize("name", PADS)
def test_padding_in_space_leaves_channels_alone(name: str) -> None:
    found, gone, reason = halved(small(lambda net, y: net.pad(y), pad=PADS[name]))
    assert found.ok
    assert (gone, reason) == (8, "")


@pytest.mark.parametrize(("pad", "gone"), [(nn.CircularPad3d((0, 0, 0, 0, 1, 1)), 0), (nn.ConstantPad3d((0, 0, 0, 0, 1, 1), 0.5), 8)])
def test_padding_along_channels_copies_them_or_makes_new_ones(pad: nn.Module, gone: int) -> None:
    found, lost, reason = halved(small(lambda net, y: net.pad(y[:, None])[:, 0], pad=pad))
    assert found.ok
    assert (lost, "along an axis that carries channels" in reason) == (gone, gone == 0)


PLACES: dict[str, Middle] = {
    "argmax": lambda net, y: y * (torch.ops.aten.argmax.default(y, 1, True) + 1),
    "max": lambda net, y: y * (torch.ops.aten.max.dim(y, 1, True)[1] + 1),
}


@pytest.mark.parametrize("name", PLACES)
def test_places_of_extrema_in_an_exported_program(name: str) -> None:
    found, gone, reason = halved(small(PLACES[name]))
    assert found.ok
    assert (gone, f"{name} gives positions of channels" in reason) == (0, True)


STORED: dict[str, Middle] = {
    "sum over channels": lambda net, y: y * net.scale.view(1, -1, 1, 1) / net.scale.square().sum(),
    "a sum over stored channels": lambda net, y: y * net.scale.view(1, -1, 1, 1) / torch.einsum("c,c->", net.scale, net.scale),
    "in a layer": lambda net, y: (y.mean((2, 3)) + net.scale + net.layer(net.scale))[:, :, None, None],
}


@pytest.mark.parametrize("name", STORED)
def test_a_sum_over_what_is_stored_is_no_sum_over_zeros(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fx_trace, "TRACERS", {"export": fx_trace.TRACERS["export"]})  # others compute with parameters while they trace
    graph = small(STORED[name], scale=nn.Parameter(torch.rand(16) + 0.5), layer=nn.Linear(16, 16))
    found, gone, reason = halved(graph)
    assert found.ok
    said = reason or " ".join(found.inexact)
    assert gone == (0 if reason else 8)
    assert "stored channels" in said or "sum over channels" in said
