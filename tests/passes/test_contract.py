"""Promises of the base class of passes, whatever a pass does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

import irtool
from irtool.errors import CheckError, FileError, OptionError
from irtool.passes import DeadCode, Equalise, FoldConstants, FoldNormForward, RemoveIdentity
from irtool.passmanager import REGISTRY, Pass, Rewritten, register


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(self.norm(self.conv(x)).relu().mean((2, 3))))


@dataclass(frozen=True)
class Scale(Pass):
    """Multiply every weight; a pass of a user, with options."""

    name: ClassVar[str] = "scale_all"
    exact: ClassVar[bool] = False
    by: float = 2.0
    only: tuple[str, ...] = ()

    def rewrite(self, graph: irtool.FxGraph) -> Rewritten:
        return Rewritten(graph.clone(lambda tensor: tensor * self.by if tensor.is_floating_point() else tensor))


@pytest.fixture
def graph() -> irtool.FxGraph:
    return irtool.trace(Small().eval(), torch.zeros(1, 3, 8, 8))


@pytest.fixture
def known() -> type[Pass]:
    """`Scale` by its name, as long as a test runs."""
    yield register(Scale)
    del REGISTRY[Scale.name]


def test_a_pass_that_edits_the_callers_graph_is_refused(graph: irtool.FxGraph) -> None:
    class Careless(Pass):
        name = "careless"

        def rewrite(self, graph: irtool.FxGraph) -> Rewritten:
            graph.params["conv.weight"].data.mul_(2)
            return Rewritten(graph)

    with pytest.raises(CheckError, match=r"careless changed the graph that it was given.*graph.clone"):
        Careless()(graph)


def test_a_copy_that_equals_its_source_is_no_change(graph: irtool.FxGraph) -> None:
    result = Scale(1.0)(graph)
    assert not result.changed
    assert result.graph is graph


@pytest.mark.parametrize("made", [irtool.FoldBatchNorm(), RemoveIdentity(dropout=True), FoldNormForward(), DeadCode(), FoldConstants()])
def test_a_second_run_is_idle(made: Pass, graph: irtool.FxGraph) -> None:
    first = made(graph)
    second = made(first.graph)
    assert not second.changed
    assert second.graph is first.graph
    assert len(first.graph.history) == int(first.changed)


def test_options_are_recorded(graph: irtool.FxGraph) -> None:
    assert Scale(3.0)(graph).graph.history == ({"step": "scale_all", "by": 3.0, "only": []},)
    assert RemoveIdentity(dropout=True)(graph).graph.history == ({"step": "remove_identity", "dropout": True},)


def test_pipelines_nest_and_inner_passes_are_checked(graph: irtool.FxGraph) -> None:
    class Lying(Scale):
        name = "lying"
        exact = True

    inner = irtool.Pipeline([irtool.FoldBatchNorm()])
    result = irtool.Pipeline([inner, RemoveIdentity(dropout=True)], check=True)(graph)
    assert [step["step"] for step in result.graph.history] == ["fold_batchnorm", "remove_identity"]
    with pytest.raises(CheckError, match="lying changed the outputs"):
        irtool.Pipeline([irtool.Pipeline([Lying()])], check=True)(graph)


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("fold-batchnorm", [irtool.FoldBatchNorm()]),
        ("fold-batchnorm, remove-identity{dropout=true}", [irtool.FoldBatchNorm(), RemoveIdentity(dropout=True)]),
        ("equalise{rounds=5}", [Equalise(5)]),
        ('reduce-width{ratio=0.5, init="best", ignore=["a, b", "{c}"]}', [irtool.ReduceWidth(0.5, "best", ignore=("a, b", "{c}"))]),
        ('scale-all{by=0.5, only=["a"]}', [Scale(0.5, ("a",))]),
        ("", []),
    ],
)
@pytest.mark.usefixtures("known")
def test_text_and_back(text: str, passes: list[Pass]) -> None:
    read = irtool.Pipeline.parse(text)
    assert list(read.passes) == passes
    assert str(read) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fold", r"no pass is called 'fold'\. Passes are .*fold_batchnorm"),
        ("remove-identity{dropout=yes}", "options that cannot be read"),
        ("remove-identity{drop=true}", r"no option is called 'drop'\. Options are dropout"),
        ("remove-identity{dropout=1}", "another kind of value"),
        ("remove-identity{dropout=true", "a brace is not closed"),
        ("dead-code fold-batchnorm", "without a comma"),
        ("{}", "names no pass"),
        ("reduce-width", "cannot be written as text alone"),
        ("equalise{rounds=0}", "Give a whole number from 1 on"),
    ],
)
def test_text_that_is_wrong(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        irtool.Pipeline.parse(text)


def test_a_name_is_given_once() -> None:
    class Other(Pass):
        name = "dead_code"

        def rewrite(self, graph: irtool.Graph) -> Rewritten:
            return Rewritten(graph)

    with pytest.raises(OptionError, match="is called 'dead_code' already"):
        register(Other)


@pytest.mark.usefixtures("known")
def test_a_users_pass_goes_through_an_archive_into_the_users_class(graph: irtool.FxGraph, tmp_path: Path) -> None:
    made = irtool.Pipeline([Scale(0.5), irtool.FoldBatchNorm()])(graph).graph
    irtool.save(made, tmp_path / "net.safetensors")
    x = torch.randn(2, 3, 8, 8)
    loaded = irtool.load(tmp_path / "net.safetensors", model=Small().eval())
    assert torch.equal(loaded.run(x), made.run(x))
    del REGISTRY[Scale.name]
    try:
        with pytest.raises(FileError, match=r"the step 'scale_all' cannot be replayed.*install the package"):
            irtool.load(tmp_path / "net.safetensors", model=Small().eval())
    finally:
        REGISTRY[Scale.name] = Scale


def test_a_pass_without_a_rewrite_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Pass()
