"""Constants made in forward, and random numbers drawn in eval mode: both runs of a check see the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import irtool
from irtool.analysis.randomness import require_repeatable
from irtool.errors import CheckError


class Net(nn.Module):
    """Three convolutions with a function between the second and the third."""

    def __init__(self, middle: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.head, self.middle = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 3, 1), middle

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(torch.relu(self.second(torch.relu(self.first(x))))))


class Attending(nn.Module):
    """Four heads of two channels; attention that drops out in eval mode, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 3)
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x)).flatten(2).transpose(1, 2)
        q, k, v = (layer(x).reshape(2, 36, 4, 2).transpose(1, 2) for layer in (self.query, self.key, self.value))
        return self.head(F.scaled_dot_product_attention(q, k, v, dropout_p=0.5).transpose(1, 2).reshape(2, 36, 8))


def _written(x: Tensor) -> Tensor:
    made = torch.zeros(x.shape[0], 8, 6, 6)
    made[:] = x
    return made


def _warped(x: Tensor) -> Tensor:
    return F.grid_sample(
        x, F.affine_grid(torch.eye(2, 3).expand(x.shape[0], 2, 3), list(x.shape), align_corners=False), align_corners=False
    )


CONSTANTS: dict[str, Callable[[Tensor], Tensor]] = {
    "linspace": lambda x: x @ torch.linspace(0, 1, x.shape[3]).diag(),
    "eye": lambda x: torch.eye(x.shape[2]) @ x,
    "quotient": lambda x: x @ ((torch.arange(6)[:, None] + torch.arange(6)) / 7),
    "grid": _warped,
    "written": _written,
}
RANDOM: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda x: F.dropout(x, 0.5, True),
    "dropout2d": lambda x: F.dropout2d(x, 0.5, True),
    "noise": lambda x: x + torch.randn_like(x),
}
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("constants", ["drop", "absorb"])
@pytest.mark.parametrize("name", [*CONSTANTS, *RANDOM])
def test_the_check_sees_one_type_and_the_same_numbers(name: str, constants: str) -> None:
    graph = irtool.trace(Net((CONSTANTS | RANDOM)[name]).eval(), X)
    plan = irtool.plan(graph, "l1", 0.5, "local")
    check = irtool.check_prune(graph, plan, constants=constants)
    assert plan.removed >= 4
    assert check.ok
    assert check.relative <= 1e-9
    assert check.unresolved == ()


def test_numbers_drawn_for_each_head_are_the_same_in_both_runs() -> None:
    """Heads stay, and shrink within."""
    graph = irtool.trace(Attending().eval(), X)
    plan = irtool.plan(graph, "l1", 0.5, "local")
    check = irtool.check_prune(graph, plan)
    assert plan.removed >= 12
    assert check.unresolved == ()
    assert check.ok


def test_looking_for_what_draws_writes_nothing() -> None:
    class Averaging(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            self.mean.mul_(0.9).add_(x.mean((0, 2, 3), keepdim=True).detach(), alpha=0.1)
            return self.head(self.second(x - self.mean))

    model = Averaging(torch.relu)
    model.register_buffer("mean", torch.zeros(1, 8, 1, 1))
    graph = irtool.trace(model.eval(), X)
    assert irtool.check_prune(graph, irtool.plan(graph, "l1", 0.5, "local")).ok
    assert not model.mean.any()


def test_files_of_a_model_that_draws_are_not_compared() -> None:
    require_repeatable(irtool.trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Dropout()), X))
    graph = irtool.trace(Net(RANDOM["dropout"]).eval(), X)
    with pytest.raises(CheckError) as error:
        require_repeatable(graph)
    assert str(error.value) == (
        "dropout: torch.nn.functional.dropout draws random numbers in eval mode, so that files cannot be compared with the model. "
        "Export the model in eval mode, or take the operator out; torch.nn.Dropout is off in eval mode. irtool.prune compares nothing."
    )


def test_passes_comparison_and_classes_with_dropout_that_is_always_on() -> None:
    class Normed(Net):
        def __init__(self) -> None:
            super().__init__(lambda x: F.dropout(x, 0.5, True))
            self.second = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))

    model = Normed().eval()
    graph = irtool.trace(model, X)
    assert irtool.Pipeline([irtool.FoldBatchNorm()], check=True)(graph).notes == ("fold_batchnorm: 1 batch norms folded",)
    assert irtool.compare(graph, model, X).ok()
    assert irtool.apply(irtool.plan(graph, "l1", 0.5, "local"), model, X).head.in_channels == 4
