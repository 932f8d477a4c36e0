"""Kind (iv): in train mode a graph does what its model does, whichever tracer served, or a note says that it does not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import irtool
from irtool.hosts.torch.tracing import trace as tracing

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "instance norm with statistics": lambda: nn.InstanceNorm2d(8, track_running_stats=True),
    "affine instance norm with statistics": lambda: nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
    "instance norm": lambda: nn.InstanceNorm2d(8),
    "batch norm": lambda: nn.BatchNorm2d(8),
    "batch norm that averages over all": lambda: nn.BatchNorm2d(8, momentum=None),
    "batch norm without statistics": lambda: nn.BatchNorm2d(8, track_running_stats=False),
    "random slope": nn.RReLU,
    "dropout": nn.Dropout,
    "feature alpha dropout": nn.FeatureAlphaDropout,
}


class Own(nn.Module):
    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.register_buffer("middle", torch.zeros(8))
        self.register_buffer("spread", torch.ones(8))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


FUNCTIONS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "batch norm": lambda own, x: F.batch_norm(x, own.middle, own.spread, training=own.training),
    "instance norm": lambda own, x: F.instance_norm(x, own.middle, own.spread, use_input_stats=own.training),
    "random slope": lambda own, x: F.rrelu(x, training=own.training),
    "feature alpha dropout": lambda own, x: F.feature_alpha_dropout(x, 0.5, own.training),
}


def check_same_in_both_modes(middle: nn.Module, tracer: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), middle, nn.Conv2d(8, 4, 1)).eval()
    graph = irtool.trace(model, X)
    assert graph.tracer == tracer
    assert graph.notes == ()
    twin, reference = copy.deepcopy(graph.module).train(), copy.deepcopy(model).train()
    for mode in (True, True, False):  # the third run sees the statistics that the first two left
        twin.train(mode)
        reference.train(mode)
        torch.manual_seed(1)
        expected = reference(X)
        torch.manual_seed(1)
        torch.testing.assert_close(twin(X), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tracer", ["symbolic", "export"])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_follow_the_mode(name: str, tracer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "ATTEMPTS", ((tracer, tracer != "export"),))
    check_same_in_both_modes(LAYERS[name](), tracer)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_follow_the_mode_after_an_export(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "ATTEMPTS", (("export", False),))
    check_same_in_both_modes(Own(FUNCTIONS[name]), "export")


def test_a_branch_on_the_mode_is_noted_after_an_export(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "ATTEMPTS", (("export", False),))
    graph = irtool.trace(nn.Sequential(nn.Conv2d(3, 8, 1), Own(lambda own, x: x * 2 if own.training else x)).eval(), X)
    assert graph.notes == ("Sequential computes something else in train mode: the graph follows torch's own layers alone",)


class TwoHeads(nn.Module):
    """A detector's head: what it returns depends on the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Any:
        y = self.b(self.a(x))
        return y if self.training else (y.flatten(2).sigmoid(), y)


@pytest.mark.parametrize("training", [True, False])
def test_a_model_is_checked_in_the_mode_that_it_was_traced_in(training: bool) -> None:
    graph = irtool.trace(TwoHeads().train(training), X)
    plan = irtool.plan(graph, "l1", 0.5, "local")
    check = irtool.check_prune(graph, plan)
    assert check.ok
    assert check.traced <= 1e-6
    assert plan.removed == 4
    assert any("decide by self.training" in note for note in graph.notes)


def test_a_model_that_was_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    graph = irtool.trace(model, torch.randn(1, 3, 8, 8))
    plan = irtool.plan(graph, "l1", 0.5, "local")
    assert plan.removed == 4
    assert irtool.check_prune(graph, plan).ok
