"""Named fields, results in classes of their own, absent arguments, and writes into parameters."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from odd_nets import Net, X, make
from torch import Tensor, nn

import irtool
from irtool.errors import TraceError


class Out(NamedTuple):
    logits: Tensor
    side: Tensor


def _values(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.head(y.max(2, keepdim=True).values + torch.median(y, dim=2, keepdim=True).values + y.cummax(3).values)


def _indices(net: Net, x: Tensor) -> Tensor:
    found = net.a(x).min(2, keepdim=True)
    return net.head(found.values + found.indices)


@pytest.mark.parametrize("function", [_values, _indices])
def test_a_field_of_a_result_is_the_member_that_it_names(function: Callable[[Any, Tensor], Any]) -> None:
    model = make(function)
    graph = irtool.trace(model, X)
    plan = irtool.plan(graph, "l1", 0.5, "local")
    assert "getattr" not in plan.summary()
    assert irtool.check_prune(graph, plan).ok
    with torch.no_grad():
        torch.testing.assert_close(graph.module(X), model(X))
        irtool.prune(graph, plan).module(X)


def _positional(net: Net, x: Tensor) -> Out:
    y = net.b(net.a(x))
    return Out(net.head(y), y)


def _named(net: Net, x: Tensor) -> Out:
    y = net.a(x)
    return Out(side=net.b(y), logits=net.head(y))


def _ordered(net: Net, x: Tensor) -> Any:
    y = net.b(net.a(x))
    return OrderedDict([("side", y), ("more", OrderedDict(out=net.head(y)))])


@pytest.mark.parametrize("function", [_positional, _named, _ordered])
def test_results_keep_their_class(function: Callable[[Any, Tensor], Any], tmp_path: Path) -> None:
    model = make(function)
    graph = irtool.trace(model, X)
    plan = irtool.plan(graph, "l1", 0.5, "local")
    assert plan.removed == 8
    assert "is a graph output" in plan.summary()
    assert "does not know" not in plan.summary()
    assert irtool.check_prune(graph, plan).ok
    expected = model(X)
    for found in (graph.module(X), irtool.prune(graph, irtool.plan(graph, "l1", 0.0)).module(X)):
        assert type(found) is type(expected)
        torch.testing.assert_close(found, expected)
    if isinstance(expected, OrderedDict):
        path = tmp_path / "net.safetensors"
        irtool.save(irtool.prune(graph, plan), path)
        assert type(irtool.load(path).run(X)["more"]) is OrderedDict


def test_an_absent_argument_stays_absent_and_is_archived(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    class Masked(Net):
        def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 2.0) -> Tensor:
            y = self.a(x) * scale
            return self.head(y if mask is None else y * mask)

    model = Masked(lambda net, x: x).eval()
    path = tmp_path / "net.safetensors"
    for example in ((X, None), (X,)):
        irtool.save(irtool.trace(model, example), path)
        with torch.no_grad():
            module = irtool.load(path).module
            torch.testing.assert_close(module(X, None, 2.0), model(X))
            with pytest.raises(AssertionError, match="None"):
                module(X, torch.ones(1), 2.0)
    assert not [warning for warning in recwarn if "stand alone" in str(warning.message)]


class Causal(nn.Conv2d):
    """A convolution that masks its weight in place, as PixelCNN's does."""

    def __init__(self, *args: Any, assign: bool) -> None:
        super().__init__(*args)
        self.assign = assign
        self.register_buffer("mask", (torch.rand_like(self.weight) > 0.5).float())

    def forward(self, x: Tensor) -> Tensor:
        if self.assign:
            self.weight.data = self.weight.data * self.mask
        else:
            self.weight.data *= self.mask
        return super().forward(x)


@pytest.mark.parametrize("assign", [False, True])
def test_what_a_model_writes_into_its_weights_the_graph_writes(assign: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), Causal(8, 8, 3, assign=assign), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)).eval()
    before = copy.deepcopy(model)
    graph = irtool.trace(model, X)
    assert torch.equal(model[1].weight, before[1].weight)
    plan = irtool.plan(graph, "l1", 0.5, "local")
    copies = [irtool.prune(graph, plan), irtool.fold_batchnorm(graph), graph.clone()]
    assert irtool.check_prune(graph, plan).ok
    with torch.no_grad():
        expected = before(X)
        for made in copies:
            torch.testing.assert_close(made.module(X), expected)


class Sized(nn.Module):
    """Decides by a size, so that the second tracer serves."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.part, self.head = nn.Conv2d(3, 8, 3), nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU()), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.part(self.first(x if x.shape[2] > 4 else x * 2))
        return self.head(x)


@pytest.mark.parametrize(("leaf", "kept"), [(["part"], 8), (["part.0"], 8), ([], 4)])
def test_named_parts_are_barriers_whatever_is_known_of_their_class(leaf: list[str], kept: int) -> None:
    graph = irtool.trace(Sized().eval(), torch.zeros(1, 3, 8, 8), leaf=leaf)
    assert graph.tracer == "concrete"
    first = irtool.plan(graph, "l1", 0.5, "local").layers[0]
    assert first.kept == kept
    assert ("part" in first.reason) == bool(leaf)


@pytest.mark.parametrize(
    ("leaf", "said"), [(["prt"], "no module is called 'prt'. Did you mean part"), ("part", "is no list"), ([Sized()], "is no list")]
)
def test_names_that_no_part_has_are_refused(leaf: Any, said: str) -> None:
    with pytest.raises(TraceError, match=said):
        irtool.trace(Sized().eval(), torch.zeros(1, 3, 8, 8), leaf=leaf)
