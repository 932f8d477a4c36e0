"""Operators and forwards that people's models have: traced by the own tracers, pruned, and right at other sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

import irtool
from irtool.hosts.torch.operators import function_spec


class Net(nn.Module):
    """A stem, and a tail that is a function of it."""

    def __init__(self, tail: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 5, 1)
        self.theta, self.wide, self.linear = nn.Linear(8, 6), nn.Conv2d(8, 32, 1), nn.Linear(8, 3)
        self.tail = tail

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self, F.relu(self.b(F.relu(self.a(x)))))


class Reversed(Function):
    """A gradient reversal layer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return -ctx.scale * grad, None


def _transformer(net: Net, y: Tensor) -> Tensor:
    grid = F.affine_grid(net.theta(y.mean((2, 3))).view(-1, 2, 3), y.size(), align_corners=False)
    return net.out(F.grid_sample(y, grid, align_corners=False))


def _reversal(net: Net, y: Tensor) -> Tensor:
    return net.out(Reversed.apply(y, 0.5))


def _fake_quantised(net: Net, y: Tensor) -> Tensor:
    return net.out(torch.fake_quantize_per_tensor_affine(y, 0.05, 3, -128, 127))


def _upscaled(net: Net, y: Tensor) -> Tensor:
    return net.out(F.pixel_shuffle(net.wide(y), 2))


def _flat(net: Net, y: Tensor) -> Tensor:
    return net.out(y) * y.flatten(1).sum(1).view(-1, 1, 1, 1)


TAILS = (_transformer, _reversal, _fake_quantised, _upscaled, _flat)


@pytest.mark.parametrize("tail", TAILS, ids=lambda tail: tail.__name__.strip("_"))
def test_a_tail_is_pruned_through_and_checked_at_other_sizes(tail: Callable[[Net, Tensor], Tensor]) -> None:
    """Masks of the check, where channels lie among pixels, are those of the size that it runs at."""
    torch.manual_seed(0)
    model = Net(tail).eval()
    graph = irtool.trace(model, torch.randn(1, 3, 12, 12))
    assert graph.tracer in ("symbolic", "concrete")
    plan = irtool.plan(graph, "l1", 0.5, round_to=1)
    assert len(next(layer.removed for layer in plan.layers if layer.name == "b")) >= 3
    for shape in ((1, 3, 12, 12), (3, 3, 16, 20)):
        x = torch.randn(shape)
        torch.testing.assert_close(graph.module(x), model(x))
        check = irtool.check_prune(graph, plan, (x,))
        assert check.ok
        assert check.relative < 1e-9


def test_names_that_exported_programs_have_mean_the_same() -> None:
    for name, op in ((torch.ops.aten.numpy_T.default, "Transpose"), (torch.ops.aten.grid_sampler.default, "RoiPool")):
        assert function_spec(name) is not None
        assert function_spec(name).op == op


def test_a_compiled_part_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), torch.compile(nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU())), nn.Conv2d(8, 4, 1)).eval()
    before = {path: sorted(vars(part)) for path, part in model.named_modules()}
    irtool.trace(model, torch.randn(1, 3, 12, 12))
    assert {path: sorted(vars(part)) for path, part in model.named_modules()} == before


def test_a_mode_that_forward_sets_is_told() -> None:
    """A batch norm that forward freezes: the graph's takes the mode of the whole."""

    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            self.norm.eval()
            return self.b(self.norm(self.a(x)))

    train = nn.Module.train
    notes = irtool.trace(Frozen().eval(), torch.randn(1, 3, 12, 12)).notes
    assert notes == ("norm put into eval or train mode by forward: in the graph they have the mode of the whole",)
    assert nn.Module.train is train
    assert irtool.trace(Net(_upscaled).eval(), torch.randn(1, 3, 12, 12)).notes == ()


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_dropout_inside_of_attention_is_told_and_follows_the_mode_that_was_traced(training: bool) -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.heads, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.MultiheadAttention(8, 2, 0.5, batch_first=True), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.a(x).flatten(2).transpose(1, 2)
            return self.b(self.heads(tokens, tokens, tokens, need_weights=False)[0])

    x = torch.randn(2, 3, 6, 6)
    model = Attends().train(training)
    graph = irtool.trace(model, x)
    assert any(note.startswith("heads decide by self.training") for note in graph.notes)
    assert torch.equal(graph.module(x), graph.module(x)) is not training
