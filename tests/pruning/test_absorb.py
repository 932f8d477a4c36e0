"""Absorbed constants against the model itself: channels that are exactly constant can be moved into a bias without a trace."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exchanged import exchange
from torch import Tensor, nn

import irtool

Function = Callable[..., Any]
X = (2, 3, 8, 8)


class Net(nn.Module):
    """A convolution and a batch norm of 16 channels, then whatever `function` does with them; every second one is constant."""

    def __init__(self, function: Function, **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.a, self.n, self.function = nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16), function
        for name, part in parts.items():
            setattr(self, name, part)
        for norm in self.modules():
            if isinstance(norm, nn.BatchNorm2d):
                nn.init.normal_(norm.bias)
                with torch.no_grad():
                    norm.weight[::2] = 0

    def forward(self, x: Tensor) -> Any:
        return self.function(self, self.n(self.a(x)))


class Absorbed:
    """A net pruned with constants absorbed: how far its outputs are from the net's own, in float64, and what was said."""

    def __init__(self, function: Function, **parts: nn.Module | nn.Parameter) -> None:
        net = Net(function, **parts).eval().double()
        x = torch.randn(X, dtype=torch.float64)
        self.graph = irtool.trace(net, torch.zeros(X, dtype=torch.float64))
        self.plan = irtool.plan(self.graph, "bn_scale", 0.5, "local")
        removed = {layer.name: layer.removed for layer in self.plan.layers}
        assert removed["a"] == tuple(range(0, 16, 2))
        result = irtool.Prune(self.plan, "absorb")(self.graph)
        self.notes, self.pruned, self.own = "; ".join(result.notes), result.graph, _leaves(net(x))
        self.off = [a - b for a, b in zip(self.own, _leaves(result.graph.run(x)), strict=True)]
        self.dropped = [a - b for a, b in zip(self.own, _leaves(irtool.prune(self.graph, self.plan, "drop").run(x)), strict=True)]
        self.check = irtool.check_prune(self.graph, self.plan, constants="absorb")

    @property
    def error(self) -> float:
        return _largest(self.off)

    def is_exact(self) -> bool:
        assert _largest(self.dropped) > 1e-2
        return self.error <= 1e-9 and self.check.ok and self.check.constants <= 1e-12


def _leaves(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def _largest(tensors: list[Tensor]) -> float:
    return max(float(tensor.detach().abs().max()) for tensor in tensors)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


EXACT: dict[str, tuple[Function, int]] = {
    "product": (lambda y: torch.addcmul(y, y, y, value=2), 16),
    "crelu": (lambda y: torch.cat([F.relu(y), F.relu(-y)], 1), 32),
    "skip_before_activation": (lambda y: torch.cat([F.relu(y), y], 1), 32),
    "two_activations": (lambda y: torch.cat([y, torch.sigmoid(y)], 1), 32),
    "stacked_activations": (lambda y: torch.stack([y, y.tanh()], 1).flatten(1, 2), 32),
    "split_and_joined": (lambda y: torch.cat([y[:, 8:].relu(), y[:, :8].sigmoid()], 1), 16),
    "by_view": (lambda y: F.elu(y).flatten(2).view_as(y), 16),
    "add_alpha": (lambda y: torch.add(y, F.relu(y), alpha=3), 16),
    "sub_alpha": (lambda y: torch.sub(F.relu(y), y, alpha=0.5), 16),
    "rsub": (lambda y: torch.rsub(y, F.relu(y), alpha=2) + (1 - y), 16),
    "statement": (lambda y: y.relu().add_(y.sigmoid(), alpha=2), 16),
    "slope": (lambda y: F.leaky_relu(y, 0.3) + F.hardtanh(y, -0.1, 0.2) + F.elu(y, 0.7) + F.softplus(y, 2), 16),
    "scaled": (lambda y: (2 * y + 1).clamp(max=0.3) / 3, 16),
    "avg_pool": (lambda y: F.avg_pool2d(F.relu(y), 2), 16),
    "padding_left_out": (lambda y: F.avg_pool2d(F.relu(y), 3, 2, 1, count_include_pad=False), 16),
    "ceil_mode": (lambda y: F.avg_pool2d(F.relu(y), 3, 2, ceil_mode=True), 16),
    "divisor": (lambda y: F.avg_pool2d(F.relu(y), 2, divisor_override=1), 16),
    "max_pool": (lambda y: F.max_pool2d(y, 3, 2, 1), 16),
    "global_pool": (lambda y: F.adaptive_avg_pool2d(y, 1) + y.mean((2, 3), keepdim=True), 16),
    "summed": (lambda y: F.relu(y).sum((2, 3), keepdim=True) / 8, 16),
    "resized": (lambda y: F.interpolate(y, scale_factor=2.0, mode="bicubic"), 16),
    "moved": (lambda y: F.pixel_unshuffle(y.sigmoid(), 2), 64),
}


@pytest.mark.parametrize("name", EXACT)
def test_the_constant_is_that_of_the_entry_that_arrives(name: str) -> None:
    function, width = EXACT[name]
    assert Absorbed(lambda net, y: net.o(function(y)), o=nn.Conv2d(width, 4, 1)).is_exact()


UNKNOWN: dict[str, Function] = {
    "softmax": lambda y: F.softmax(y.flatten(2), 2).view_as(y),
    "normalize": lambda y: F.normalize(F.relu(y).flatten(2) + 0.1, dim=2).view_as(y),
    "power_pool": lambda y: F.lp_pool2d(y, 2, 2),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_understood_is_dropped_and_named(name: str) -> None:
    done = Absorbed(lambda net, y: net.o(UNKNOWN[name](y)), o=nn.Conv2d(16, 4, 1))
    assert "nothing tells the mean of what was removed before o: dropped" in done.notes
    assert done.error == _largest(done.dropped)
    assert done.check.ok


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_that_repeats_the_image_has_no_border(mode: Any) -> None:
    done = Absorbed(lambda net, y: net.o(y.relu()), o=nn.Conv2d(16, 4, 3, padding=1, padding_mode=mode))
    assert done.is_exact()
    assert "border" not in done.notes


BORDERS: dict[str, tuple[Function, nn.Module]] = {
    "zeros": (F.relu, nn.Conv2d(16, 4, 3, padding=1)),
    "same": (F.relu, nn.Conv2d(16, 4, (2, 4), padding="same", dilation=(1, 2))),
    "strided": (F.relu, nn.Conv2d(16, 6, 3, 2, padding=(2, 1), groups=2)),
    "transposed": (F.relu, nn.ConvTranspose2d(16, 4, 3)),
    "transposed_strided": (F.relu, nn.ConvTranspose2d(16, 6, 3, 2, padding=1, output_padding=1, groups=2)),
    "transposed_1d": (lambda y: y.relu().flatten(2), nn.ConvTranspose1d(16, 4, 4, 2, dilation=2)),
    "transposed_3d": (lambda y: y.relu().unsqueeze(2), nn.ConvTranspose3d(16, 4, (1, 2, 3), (1, 2, 1), bias=False)),
    "pooled_over_padding": (lambda y: F.avg_pool2d(y.relu(), 3, 1, 1), nn.Conv2d(16, 4, 1)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", BORDERS)
def test_at_borders_the_constant_is_right_on_average(name: str) -> None:
    function, layer = BORDERS[name]
    done = Absorbed(lambda net, y: net.o(function(y)), o=layer)
    average, dropped = (_largest([off.movedim(1, 0).flatten(1).mean(1) for off in found]) for found in (done.off, done.dropped))
    assert average <= 1e-9 < 1e-2 < dropped
    assert done.check.ok
    assert done.error > 1e-3
    assert ("not at the zero-padded border" in done.notes) != ("their mean is absorbed, in o" in done.notes)
    if name in ("zeros", "transposed"):
        inside = done.off[0][..., 2:-2, 2:-2]
        assert float(inside.detach().std((0, 2, 3)).max()) <= 1e-9


def test_a_transposed_convolution_of_one_tap_is_exact() -> None:
    done = Absorbed(lambda net, y: net.o(y.relu()), o=nn.ConvTranspose2d(16, 4, 1))
    assert done.is_exact()
    assert "border" not in done.notes


def _twice(net: Any, y: Tensor) -> Any:
    return net.o(y.relu()), net.o(y.flip(3).relu())


def _functions(net: Any, y: Tensor) -> Any:
    return F.conv2d(y, net.w, net.b), F.conv2d(input=y.flip(3), weight=net.w, bias=net.b)


def _raw(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def _sharing() -> dict[str, nn.Module]:
    """Two layers of different weights and one bias."""
    o, p = nn.Conv2d(16, 4, 1), nn.Conv2d(16, 4, 1)
    p.bias = o.bias
    return {"o": o, "p": p}


SHARED: dict[str, tuple[Function, dict[str, Any]]] = {
    "called_twice": (_twice, {"o": nn.Conv2d(16, 4, 1)}),
    "called_twice_without_bias": (_twice, {"o": nn.Conv2d(16, 4, 1, bias=False)}),
    "one_bias_of_two": (lambda net, y: (net.o(y.relu()), net.p(y.sigmoid())), _sharing()),
    "one_bias_of_two_twice": (lambda net, y: (net.o(y), net.p(y.abs()), net.o(y.flip(2)), net.p(y.abs().flip(3))), _sharing()),
    "bias_read_elsewhere": (lambda net, y: net.o(y) * net.o.bias.view(1, 4, 1, 1), {"o": nn.Conv2d(16, 4, 1)}),
    "functions": (_functions, {"w": _raw(4, 16, 1, 1), "b": _raw(4)}),
    "functions_without_bias": (
        lambda net, y: (F.conv2d(y, net.w), F.conv2d(y.relu(), weight=net.w)),
        {"w": _raw(4, 16, 1, 1)},
    ),
    "parameter_read_elsewhere": (
        lambda net, y: F.conv2d(y, net.w, net.b) * net.b.view(1, 4, 1, 1),
        {"w": _raw(4, 16, 1, 1), "b": _raw(4)},
    ),
    "computed_bias": (lambda net, y: F.conv2d(y, net.w, net.b * 2), {"w": _raw(4, 16, 1, 1), "b": _raw(4)}),
    "keywords": (lambda net, y: F.conv2d(input=y, weight=net.w), {"w": _raw(4, 16, 1, 1)}),
    "product": (lambda net, y: y.permute(0, 2, 3, 1) @ net.w, {"w": _raw(16, 5)}),
    "product_by_method": (lambda net, y: y.flatten(2).transpose(1, 2).matmul(net.w).relu(), {"w": _raw(16, 5)}),
    "linear": (lambda net, y: F.linear(y.movedim(1, 3), net.w).sum(1), {"w": _raw(5, 16)}),
    "method": (lambda net, y: net.o(y.mean((2, 3))), {"o": nn.Linear(16, 4)}),
}


@pytest.mark.parametrize("name", SHARED)
def test_every_call_gets_its_constant_once(name: str) -> None:
    function, parts = SHARED[name]
    assert Absorbed(function, **parts).is_exact()


@pytest.mark.parametrize("bias", [False, True])
def test_calls_whose_constants_differ_get_their_mean(bias: bool) -> None:
    def function(net: Any, y: Tensor) -> list[Tensor]:
        return [net.o(y.relu()), net.o(y.sigmoid())]

    done = Absorbed(function, o=nn.Conv2d(16, 4, 1, bias=bias))
    assert "differ between positions or calls, and their mean is absorbed, in o" in done.notes
    first, second = done.off
    torch.testing.assert_close(first, -second, rtol=0, atol=1e-9)
    assert done.check.ok
    assert done.check.border > 1e-3
    shared = dict(done.pruned.module.named_parameters())["o.bias"]
    assert shared.shape == (4,)


def test_where_one_call_is_unknown_none_is_guessed() -> None:
    done = Absorbed(lambda net, y: (net.o(y.relu()), net.o(y.softmax(3))), o=nn.Conv2d(16, 4, 1))
    assert "nothing tells the mean of what was removed before o" in done.notes
    assert done.error == _largest(done.dropped)


def _standardised(net: Any, y: Tensor) -> Tensor:
    return F.conv2d(y, net.w - net.w.mean(), net.b)


LEFT: dict[str, tuple[Function, dict[str, Any], str]] = {
    "computed_weight": (_standardised, {"w": _raw(4, 16, 1, 1), "b": _raw(4)}, "conv2d"),
    "recurrent": (lambda net, y: net.o(y.flatten(2).transpose(1, 2))[0], {"o": nn.GRU(16, 4, batch_first=True)}, "o"),
    "einsum": (lambda net, y: torch.einsum("bchw,cd->bdhw", y, net.w), {"w": _raw(16, 4)}, "einsum"),
    "sum_over_channels": (lambda net, y: y.sum(1), {}, "sum_1"),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_has_no_bias_is_named(name: str) -> None:
    function, parts, where = LEFT[name]
    done = Absorbed(function, **parts)
    assert f"what was removed before {where} is dropped: no bias that could take it up" in done.notes
    assert done.error == _largest(done.dropped)
    assert done.check.ok


def test_a_depthwise_layer_between_loses_nothing() -> None:
    done = Absorbed(lambda net, y: net.o(net.d(y)), d=nn.Conv2d(16, 16, 3, groups=16), o=nn.Conv2d(16, 4, 1))
    assert "is dropped" not in done.notes
    assert done.is_exact()


@pytest.mark.parametrize("op", ["Pool", "Relu", "Concat"])
def test_the_check_finds_constants_that_are_wrong(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The means are wrong in the pruned graph and in the reference alike: a model of constant channels tells."""

    def rule(graph: Any, node: Any, found: Any) -> Any:
        mean, _ = found[node.input]
        shape = [2 * size if axis == 1 and node.op == "Concat" else size for axis, size in enumerate(mean.shape)]
        return [(mean.repeat([a // b for a, b in zip(shape, mean.shape, strict=True)]), torch.zeros(shape, dtype=torch.float64))]

    exchange(monkeypatch, op, moments=rule)
    done = Absorbed(
        lambda net, y: net.o(torch.cat([F.avg_pool2d(y.relu(), 2, divisor_override=1), F.max_pool2d(-y, 2)], 1)), o=nn.Conv2d(32, 4, 1)
    )
    assert done.error > 1e-2
    assert done.check.relative <= 1e-9
    assert done.check.constants > 1e-2
    assert not done.check.ok


@pytest.mark.parametrize("name", ["called_twice_without_bias", "bias_read_elsewhere", "product", "one_bias_of_two"])
def test_new_biases_are_saved_and_replayed(name: str, tmp_path: Path) -> None:
    function, parts = SHARED[name]
    done, x = Absorbed(function, **parts), torch.randn(X, dtype=torch.float64)
    irtool.save(done.pruned, tmp_path / "a.irt")
    untouched = Net(function, **parts).eval().double()
    for loaded in (irtool.load(tmp_path / "a.irt"), irtool.load(tmp_path / "a.irt", irtool.trace(untouched, torch.zeros_like(x)))):
        assert all(torch.equal(a, b) for a, b in zip(_leaves(done.pruned.run(x)), _leaves(loaded.run(x)), strict=True))


@pytest.mark.parametrize("name", ["called_twice", "one_bias_of_two_twice", "called_twice_without_bias"])
def test_the_class_itself_gets_each_bias_once(name: str) -> None:
    function, parts = SHARED[name]
    net = Net(function, **copy.deepcopy(parts)).eval().double()
    x = torch.randn(X, dtype=torch.float64)
    expected = _leaves(net(x))
    plan = irtool.plan(irtool.trace(net, x), "bn_scale", 0.5, "local")
    irtool.apply(plan, net, x, "absorb")
    assert _largest([a - b for a, b in zip(expected, _leaves(net(x)), strict=True)]) <= 1e-9


def test_a_layer_given_by_keywords_is_calibrated() -> None:
    def function(net: Any, y: Tensor) -> Any:
        return F.conv2d(input=y.softmax(3), weight=net.w), y.transpose(1, 3).softmax(1) @ net.p

    net = Net(function, w=_raw(4, 16, 1, 1), p=_raw(16, 5)).eval().double()
    x = torch.randn(X, dtype=torch.float64)
    graph = irtool.trace(net, x)
    plan = irtool.plan(graph, "bn_scale", 0.5, "local")
    check = irtool.check_prune(graph, plan, constants="absorb", calibration=[x])
    assert check.ok
    measured = [a - b for a, b in zip(net(x), irtool.prune(graph, plan, "absorb", [x]).run(x), strict=True)]
    assert float(measured[0].detach().mean((0, 2, 3)).abs().max()) <= 1e-9
    assert float(measured[1].detach().mean((0, 1, 2)).abs().max()) <= 1e-9


def test_a_constant_of_zero_is_exact() -> None:
    """Batch norms as they are made, with no shift: what is added is 0, to the last bit."""
    net = nn.Sequential(nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(2), nn.Unflatten(2, (8, 8)), nn.Conv2d(16, 4, 1))
    graph = irtool.trace(net.eval(), torch.zeros(X))
    check = irtool.check_prune(graph, irtool.plan(graph, "l1", 0.5, "local"), constants="absorb")
    assert check.ok
    assert check.constants == 0


def test_images_that_say_nothing_are_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = irtool.trace(Net(lambda net, y: net.o(y), o=nn.Conv2d(16, 4, 1)).eval(), torch.randn(X))
    plan = irtool.plan(graph, "l1", 0.5)
    monkeypatch.setattr("irtool.pruning.absorb.calibration.absorption", lambda *_: pytest.fail("the model ran on them"))
    with pytest.raises(irtool.errors.DataError, match="says nothing about the net"):
        irtool.prune(graph, plan, "absorb", [torch.zeros(X), torch.zeros(X)])


@pytest.mark.parametrize(("kind", "allowed"), [(torch.float32, 1e-4), (torch.float16, 64 * torch.finfo(torch.float16).eps)])
def test_a_model_and_its_graph_may_be_apart_by_the_rounding_of_their_type(kind: torch.dtype, allowed: float) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval().to(kind)
    graph = irtool.trace(net, torch.randn(X, dtype=kind))
    found = irtool.check_prune(graph, irtool.plan(graph, "l1", 0.5))
    assert found.ok
    assert found.traced_tolerance == allowed
