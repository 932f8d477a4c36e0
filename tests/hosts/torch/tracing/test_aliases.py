"""Functions, methods and arguments that torch has several names for: a graph has the first, so that each is read like its canonical one."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import irtool
from irtool.hosts.torch.operators import FUNCTIONS
from irtool.hosts.torch.tracing.recording.aliases import canonical

_SAYS = re.compile(r"[Aa]lias (?:for|of)\s+:?\w*:?:?`?~?\.?([\w.]+)")


def documented() -> list[tuple[str, str, str]]:
    """The aliases that torch's own documentation names: where, the alias, what it stands for."""
    found = []
    for space in ("torch", "torch.special", "torch.Tensor"):
        owner: Any = {"torch": torch, "torch.special": torch.special, "torch.Tensor": torch.Tensor}[space]
        for name in dir(owner):
            text = getattr(getattr(owner, name), "__doc__", None)
            says = _SAYS.search(text) if isinstance(text, str) and callable(getattr(owner, name)) else None
            if says is not None and name != "_TypeAlias":
                found.append((space, name, says.group(1).rpartition(".")[2]))
    return found


def test_torch_names_aliases() -> None:
    assert len(documented()) > 40, "a list that is empty tests nothing"


@pytest.mark.parametrize(("space", "alias", "name"), documented())
def test_an_alias_has_the_operator_of_its_canonical_name(space: str, alias: str, name: str) -> None:
    owner: Any = {"torch": torch, "torch.special": torch.special, "torch.Tensor": torch.Tensor}[space]
    called, _ = canonical("call_method", alias, {}) if space == "torch.Tensor" else canonical("call_function", getattr(owner, alias), {})
    found = called if isinstance(called, str) else called.__name__
    first = name.removesuffix("_") if alias.endswith("_") else name
    if first in FUNCTIONS or found.removesuffix("_") in FUNCTIONS:
        assert FUNCTIONS.get(found.removesuffix("_")) == FUNCTIONS.get({"expit": "sigmoid"}.get(first, first)), (alias, found)


class Pair(nn.Module):
    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.head, self.function = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 4, 1),
            function,
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self.a(x), self.b(x)).float())


NAMES: list[tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = [
    (lambda x, y: torch.multiply(x, y), lambda x, y: torch.mul(x, y)),
    (lambda x, y: torch.subtract(x, y, alpha=2), lambda x, y: torch.sub(x, y, alpha=2)),
    (lambda x, y: torch.divide(x, y.exp(), rounding_mode="floor"), lambda x, y: torch.div(x, y.exp(), rounding_mode="floor")),
    (lambda x, y: torch.true_divide(x, y.exp()), lambda x, y: torch.div(x, y.exp())),
    (lambda x, y: torch.greater(x, y), lambda x, y: torch.gt(x, y)),
    (lambda x, y: torch.clip(x, max=0.5) + y, lambda x, y: torch.clamp(x, max=0.5) + y),
    (lambda x, y: torch.concat([x, y]).chunk(2)[0], lambda x, y: torch.cat([x, y]).chunk(2)[0]),
    (lambda x, y: torch.arctan2(x, y), lambda x, y: torch.atan2(x, y)),
    (lambda x, y: torch.swapaxes(x, axis0=2, axis1=3) + y.mT, lambda x, y: torch.transpose(x, dim0=2, dim1=3) + y.mT),
    (lambda x, y: torch.special.expit(x) * y, lambda x, y: torch.sigmoid(x) * y),
    (lambda x, y: x.multiply(y).subtract(1).absolute(), lambda x, y: x.mul(y).sub(1).abs()),
    (lambda x, y: x.swapdims(2, 3) + y.moveaxis(2, 3), lambda x, y: x.transpose(2, 3) + y.movedim(2, 3)),
    (lambda x, y: x.multiply_(y).subtract_(1).absolute_().clip_(0, 1), lambda x, y: x.mul_(y).sub_(1).abs_().clamp_(0, 1)),
    (lambda x, y: x.arctan_().divide_(y.exp()).fix_() + x, lambda x, y: x.atan_().div_(y.exp()).trunc_() + x),
    (lambda x, y: x.mean(axis=(2, 3), keepdims=True) + y, lambda x, y: x.mean(dim=(2, 3), keepdim=True) + y),
    (lambda x, y: torch.sum(x, axis=3, keepdims=True) + y, lambda x, y: torch.sum(x, dim=3, keepdim=True) + y),
]


@pytest.mark.parametrize("tracer", ["own", "export"])
@pytest.mark.parametrize(("alias", "name"), NAMES)
def test_graphs_of_both_names_are_the_same(
    alias: Callable[..., Tensor], name: Callable[..., Tensor], tracer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from irtool.hosts.torch.tracing import trace as tracing

    if tracer == "export":
        monkeypatch.setattr(tracing, "ATTEMPTS", (("export", False),))
    torch.manual_seed(0)
    first, second = Pair(alias).eval(), Pair(name).eval()
    second.load_state_dict(first.state_dict())
    x = torch.randn(2, 3, 8, 8)
    graphs = [irtool.trace(net, x) for net in (first, second)]
    assert [node.op for node in graphs[0].nodes] == [node.op for node in graphs[1].nodes]
    removed = [irtool.plan(graph, "random", 0.5).removed for graph in graphs]
    assert removed[0] == removed[1] > 0
    assert irtool.check_prune(graphs[0], irtool.plan(graphs[0], "random", 0.5)).ok
    assert torch.equal(first(x), graphs[0].module(x))


OWN = [
    lambda x, y: x * torch.cosine_similarity(x1=x, x2=y, dim=1)[:, None],
    lambda x, y: x * torch.trapezoid(y, x=torch.arange(8.0))[..., None],
    lambda x, y: x + torch.fake_quantize_per_channel_affine(y, torch.full((8,), 0.1), torch.zeros(8), axis=1, quant_min=-8, quant_max=7),
]


@pytest.mark.parametrize("function", OWN)
def test_arguments_that_a_function_calls_so_itself_stay(function: Callable[..., Tensor]) -> None:
    net, x = Pair(function).eval(), torch.randn(2, 3, 8, 8)
    graph = irtool.trace(net, x)
    assert graph.tracer == "symbolic"
    assert torch.equal(graph.module(x), net(x))


ELEMENTWISE = """
tan asinh acosh atanh exp2 erfc erfinv logit sinc digamma lgamma i0 sgn signbit deg2rad rad2deg isposinf isneginf positive
special.entr special.erfcx special.log_ndtr special.ndtr special.i0e special.i1 special.i1e
logaddexp logaddexp2 xlogy ldexp float_power nextafter isclose special.xlog1py
""".split()


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_functions_that_onnx_lacks_let_channels_go(name: str) -> None:
    owner: Any = torch.special if name.startswith("special.") else torch
    function = getattr(owner, name.removeprefix("special."))
    try:
        function(torch.ones(1), torch.ones(1))
        pair = name not in ("logit", "positive")
    except TypeError:
        pair = False

    def both(x: Tensor, y: Tensor) -> Tensor:
        u, v = x.sigmoid(), y.sigmoid()
        return function(u, v) if pair else function(u * 0.8 + (1.0 if name == "acosh" else 0.1)) * v

    net = Pair(both).eval()
    graph = irtool.trace(net, torch.randn(1, 3, 6, 6))
    plan = irtool.plan(graph, "random", 0.5)
    assert plan.removed == 8, name
    assert irtool.check_prune(graph, plan).ok
