"""Wrappers of `forward` in libraries: decorators with `**kwargs`, hooks that collect what blocks give, results that are dicts with fields."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import irtool

X = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LARGER = torch.rand(3, 3, 24, 32, generator=torch.Generator().manual_seed(1))
COLLECTED: ContextVar[list[Tensor] | None] = ContextVar("COLLECTED", default=None)


@dataclass
class Result(OrderedDict):  # type: ignore[type-arg]
    """A dict whose keys are the fields that are not None."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    states: tuple[Tensor, ...] | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) is not None:
                self[field.name] = getattr(self, field.name)


def _wrapped(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that hands on what it is given, and reads options of its own."""

    @functools.wraps(forward)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.pop("plain", False):
            return forward(self, *args, **kwargs)["logits"]
        return forward(self, *args, **kwargs)

    return call


def _keeps(module: nn.Module, args: Any, output: Any) -> None:
    collected = COLLECTED.get()
    if collected is not None:
        collected.append(output[0] if isinstance(output, tuple) else output)


class Block(nn.Module):
    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(cin, cout, 3, padding=1), nn.BatchNorm2d(cout)

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        return torch.relu(self.norm(self.conv(x)))


class Collects(nn.Module):
    """A trunk whose states are collected by hooks that its first forward sets, and a head on them."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(3, 8), Block(8, 12)])
        self.head = nn.Linear(20, 4)
        self.width, self.ready = 3, False

    @_wrapped
    def forward(self, x: Tensor, labels: Tensor | None = None, *, scale: float = 2.0, **options: Any) -> Result:
        if x.shape[1] != self.width:
            raise ValueError("channels")
        if not self.ready:
            for block in self.blocks:
                block.register_forward_hook(_keeps)
            self.ready = True
        states: list[Tensor] = []
        token = COLLECTED.set(states)
        for block in self.blocks:
            x = block(x, **options)
        COLLECTED.reset(token)
        logits = self.head(torch.cat([state.mean((2, 3)) for state in states], 1)) * scale
        return Result(logits=logits, states=tuple(states[1:]))


def _model() -> Collects:
    torch.manual_seed(0)
    model = Collects().eval()
    for block in model.blocks:
        nn.init.normal_(block.norm.running_mean)
    return model


def test_forwards_behind_decorators_keep_batch_and_size_free() -> None:
    model = _model()
    graph = irtool.trace(model, X)
    assert graph.tracer == "concrete"
    assert not graph.fixed
    assert not model.ready
    for image in (X, LARGER):
        expected, found = model(image), graph.module(image)
        assert type(found) is Result
        torch.testing.assert_close(found["logits"], expected["logits"])
        torch.testing.assert_close(found.states[0], expected.states[0])


def test_what_hooks_collect_is_pruned_with_its_block(tmp_path: Path) -> None:
    graph = irtool.trace(_model(), X)
    plan = irtool.plan(graph, "l1", 0.5, "local")
    assert [layer.kept for layer in plan.layers if layer.name == "blocks.0.conv"] == [4]
    assert irtool.check_prune(graph, plan).ok
    pruned = irtool.prune(graph, plan, "drop")
    irtool.save(pruned, tmp_path / "net.irtool")
    loaded = irtool.load(tmp_path / "net.irtool").module(LARGER)
    assert set(loaded) == {"logits", "states"}
    torch.testing.assert_close(loaded["logits"], pruned.module(LARGER)["logits"])


class Options(nn.Module):
    """Arguments by keyword alone, and any others, without a decorator."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor, *, twice: bool = False, **others: Any) -> Tensor:
        y = self.b(torch.relu(self.a(x)))
        return y * 2 if twice or others.get("more") else y


class OptionsAndMore(Options):
    def forward(self, *xs: Tensor, twice: bool = False, **others: Any) -> Tensor:  # type: ignore[override]
        return super().forward(xs[0] + xs[1], twice=twice, **others)


@pytest.mark.parametrize(("kind", "count"), [(Options, 1), (OptionsAndMore, 2)])
def test_arguments_by_keyword_keep_what_they_are_left_at(kind: type[nn.Module], count: int) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    graph = irtool.trace(model, (X,) * count)
    assert graph.tracer == "symbolic"
    torch.testing.assert_close(graph.module(*(LARGER,) * count), model(*(LARGER,) * count))
    assert irtool.plan(graph, "l1", 0.5, "local").removed == 4
