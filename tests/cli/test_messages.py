"""Wrong arguments in Python end in one line of ours that says what is wrong and what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import irtool
from irtool.errors import IrtoolError, LayerError, TraceError
from irtool.hosts.torch.tracing.submodule import put_back

X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
BATCHES = "Give a list of batches, each a tensor of the example's sizes (any batch size), or a tuple of the arguments of forward."
NAMES = "Give a name, or a list of names; leave it out for none."


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.depthwise, self.grouped = nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 16, 1, groups=4)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.grouped(self.depthwise(self.stem(x)))))


@pytest.fixture(scope="module")
def graph() -> irtool.FxGraph:
    return irtool.trace(Net().eval(), X)


EXPLAINED = {
    "depthwise": "depthwise: a depthwise convolution, whose channels are those of stem.0",
    "stem": "stem: a module in which stem.0 makes channels",
    "stem.2": "stem.2: Relu, whose channels are those of stem.0",
    "grouped": "grouped: 16 channels in 16 groups",
}


@pytest.mark.parametrize("name", EXPLAINED)
def test_any_part_of_a_model_is_explained(graph: irtool.FxGraph, name: str) -> None:
    assert irtool.channel_groups(graph).explain(name) == EXPLAINED[name]


@pytest.mark.parametrize(("name", "remedy"), [("steem.0", "Did you mean stem.0, stem.2, stem.1?"), ("?", "The layers that make channels are stem.0, grouped, head.")])  # fmt: skip
def test_an_unknown_name_is_answered_with_near_ones(graph: irtool.FxGraph, name: str, remedy: str) -> None:
    with pytest.raises(LayerError) as error:
        irtool.channel_groups(graph).explain(name)
    assert isinstance(error.value, KeyError)
    assert str(error.value) == f"explain: no layer {name!r}. {remedy}"


WRONG: dict[str, tuple[Callable[[irtool.FxGraph], Any], str]] = {
    "ignore=None": (lambda g: irtool.plan(g, ignore=None), f"ignore: None is not a list of names. {NAMES}"),  # type: ignore[arg-type]
    "ignore=[None]": (lambda g: irtool.plan(g, ignore=[None]), f"ignore: [None] is not a list of names. {NAMES}"),  # type: ignore[list-item]
    "ignore": (lambda g: irtool.plan(g, ignore="steam"), "ignore: no layer is called 'steam'. Did you mean stem, stem.2, stem.1?"),
    "seed": (lambda g: irtool.plan(g, "random", seed=-1), "seed -1 is negative. Give 0 or a larger number."),
    "ratio": (lambda g: irtool.plan(g, ratio="0.5"), "ratio: '0.5' is not a number. Give a number."),  # type: ignore[arg-type]
    "one tensor": (lambda g: irtool.prune(g, irtool.plan(g), "absorb", X), f"calibration: a Tensor is no list of batches. {BATCHES}"),
    "a number": (lambda g: irtool.check_prune(g, irtool.plan(g), None, "absorb", 3), f"calibration: a int is no list of batches. {BATCHES}"),  # type: ignore[arg-type]
    "a batch": (lambda g: irtool.prune(g, irtool.plan(g), "absorb", [torch.rand(1, 5, 8, 8)]), "calibration: the model does not run on a batch (Given groups=1, "
                f"weight of size [16, 3, 3, 3], expected input[1, 5, 8, 8] to have 3 channels, but got 5 channels instead). {BATCHES}"),
    "put_back": (lambda g: put_back(Net(), "stem", g.module), "put_back: a Net is no graph. Pass what trace or prune returned, not its module."),  # type: ignore[arg-type]
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_told_in_a_line(graph: irtool.FxGraph, name: str) -> None:
    call, text = WRONG[name]
    with pytest.raises(IrtoolError) as error:
        call(graph)
    assert str(error.value) == text


def test_one_name_is_as_good_as_a_list(graph: irtool.FxGraph) -> None:
    assert irtool.plan(graph, ignore="grouped") == irtool.plan(graph, ignore=["grouped"])
    assert irtool.prune(graph, irtool.plan(graph), "absorb", [X, (X,)]).run(X).shape == (1, 4, 6, 6)


@pytest.mark.parametrize(("layer", "removed", "text"), [
    (0, range(16), "stem.0: the plan removes all 16 channels. Leave at least one in each layer."),
    (1, (0, 1, 4), "grouped: the plan cannot be carried out: it removes 2, 1, 0, 0 channels of its groups, which must lose equally many."),
])  # fmt: skip
def test_a_plan_that_was_changed_by_hand_is_no_fault_of_ours(graph: irtool.FxGraph, layer: int, removed: Any, text: str) -> None:
    data = irtool.plan(graph, ratio=0).to_dict()
    data["layers"][layer]["removed"] = list(removed)
    with pytest.raises(IrtoolError) as error:
        irtool.prune(graph, irtool.Plan.from_dict(data))
    assert str(error.value).startswith(text)
    assert "report" not in str(error.value)


GIVE = "Give inputs that the model itself accepts: a tensor, or a tuple of the arguments of forward."
CONV = "Parameter, Parameter, tuple, tuple, tuple, int)"


@pytest.mark.parametrize(("example", "text"), [
    (torch.zeros(1, 4, 8, 8), f"Given groups=1, weight of size [16, 3, 3, 3], expected input[1, 4, 8, 8] to have 3 channels, but got 4 channels instead. {GIVE}"),
    (X.numpy(), f"conv2d() received an invalid combination of arguments - got (numpy.ndarray, {CONV}. {GIVE}"),
    ("x", f"conv2d() received an invalid combination of arguments - got (str, {CONV}. {GIVE}"),
    (None, f"conv2d() received an invalid combination of arguments - got (NoneType, {CONV}. {GIVE}"),
])  # fmt: skip
def test_what_the_model_itself_says_to_a_wrong_example(example: Any, text: str) -> None:
    given = "[1, 4, 8, 8]" if isinstance(example, torch.Tensor) else f"a {type(example).__name__}"
    with pytest.raises(TraceError) as error:
        irtool.trace(nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU()), example)
    assert str(error.value) == f"Sequential: the model does not run on the example ({given}): {text}"


def test_a_layer_without_sizes_is_named() -> None:
    with pytest.raises(TraceError) as error:
        irtool.trace(nn.Sequential(nn.ReLU(), nn.LazyConv2d(8, 3)), X)
    remedy = "Run the model once on an example first, or write the sizes into its layers."
    assert str(error.value) == f"1: a LazyConv2d has no weights yet. {remedy}"
