"""Plans as data: one altered by hand is refused with its place, and one that irtool made is carried out from a file as it was made."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structures
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import irtool
from irtool.errors import FileError, PlanError
from irtool.pruning import LayerPlan, Plan
from irtool.pruning.slicing.plan_slicing import find_slicing

X = torch.zeros(1, 3, 9, 9)


class Coupled(nn.Module):
    """Two convolutions that an addition joins, and one that reads the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.c0, self.c2, self.f = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c0(x)
        return self.f(F.relu(x + self.c2(x)))


@pytest.fixture(scope="module")
def graph() -> irtool.FxGraph:
    torch.manual_seed(0)
    return irtool.trace(Coupled().eval(), X)


@pytest.fixture
def data(graph: irtool.FxGraph) -> dict[str, Any]:
    return copy.deepcopy(irtool.plan(graph, "l1", 0.5).to_dict())


def put(place: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    """Set a field of the plan, or of its first layer."""
    layer, _, key = place.rpartition(".")
    return lambda data: (data["layers"][0] if layer else data).update({key: value})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (put("layers.removed", [1.9]), "layers[0].removed: [1.9] is not a list of whole numbers from 0 up"),
        (put("layers.removed", "12"), "layers[0].removed: '12' is not a list"),
        (put("layers.removed", {"3": 0}), "layers[0].removed: {'3': 0} is not a list"),
        (put("layers.removed", [True]), "layers[0].removed: [True] is not a list"),
        (put("layers.removed", [5, 5]), "layers[0].removed: the plan removes channel 5 twice. Name each channel once"),
        (put("layers.removed", [8]), "layers[0].removed: the plan removes channels that do not exist: 8 of 8, counted from 0"),
        (put("layers.removed", [-1]), "layers[0].removed: [-1] is not a list"),
        (put("layers.axis", [0]), "layers[0].axis: [0] is not a whole number from 0 up"),
        (put("layers.axis", True), "layers[0].axis: True is not"),
        (put("layers.total", "8"), "layers[0].total: '8' is not"),
        (put("layers.name", None), "layers[0].name: None is not a text"),
        (put("layers.width", 8), "layers[0].width: not a plan: no plan has this"),
        (lambda data: data["layers"][0].pop("total"), "layers[0].total: not a plan: missing"),
        (lambda data: data["layers"].append(3), "layers[3]: not a plan: 3 is no table"),
        (lambda data: data.pop("layers"), "layers: not a plan: missing"),
        (put("criterion", ["l1"]), "criterion: ['l1'] is not a text"),
        (put("residual", "cut"), "residual 'cut' does not exist. Choose one of couple, select, keep"),
        (put("scope", "layer"), "scope 'layer' does not exist. Choose one of global, local"),
        (put("ratio", "x"), "ratio: 'x' is not a number"),
        (put("ratio", 5), "ratio 5 is not a fraction"),
        (put("ratio", float("nan")), "ratio nan is not a fraction"),
        (put("ratio", 10**400), "is not a fraction"),
        (put("round_to", 0), "round_to 0 must be at least 1"),
        (put("seed", 1.5), "seed: 1.5 is not a whole number"),
        (put("ignore", "ab"), "ignore: 'ab' is not a list of names"),
        (put("ignore", [1]), "ignore: [1] is not a list of names"),
        (put("format", "1"), "plan format '1', expected 1"),
    ],
)
def test_altered_data_is_refused_with_its_place(data: dict[str, Any], tmp_path: Path, edit: Any, message: str) -> None:
    edit(data)
    with pytest.raises(PlanError, match=re.escape(message)) as caught:
        Plan.from_dict(data)
    assert caught.value.remedy
    (tmp_path / "plan.json").write_text(json.dumps(data))
    with pytest.raises(PlanError, match=re.escape(f"{tmp_path / 'plan.json'}")):
        Plan.from_json(tmp_path / "plan.json")


@pytest.mark.parametrize("value", [[1], 3, None, "plan"])
def test_what_is_no_table_is_refused(value: Any) -> None:
    with pytest.raises(PlanError, match=r"is no table of names and values\. Pass a file that Plan.to_json wrote"):
        Plan.from_dict(value)


def test_a_file_nested_too_deep_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("[" * 100_000)
    with pytest.raises(FileError, match="not JSON, or cut off"):
        Plan.from_json(tmp_path / "plan.json")


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([0], [5], "c0: the plan keeps channel 5 of this layer and removes channel 5 of c2"),
        ([0, 5], [5], "c2: the plan keeps channel 0 of this layer and removes channel 0 of c0"),
        ([], [3], "c0: the plan keeps channel 3 of this layer and removes channel 3 of c2"),
        ([3], None, "c2: the plan keeps channel 3 of this layer and removes channel 3 of c0"),
    ],
)
def test_coupled_layers_must_agree(graph: irtool.FxGraph, data: dict[str, Any], first: Any, second: Any, message: str) -> None:
    data["layers"][0]["removed"] = first
    data["layers"][1:2] = [] if second is None else [{**data["layers"][1], "removed": second}]
    with pytest.raises(PlanError, match=f"{message}.*Remove both or neither"):
        irtool.prune(graph, Plan.from_dict(data))


def test_an_altered_plan_that_agrees_is_carried_out(graph: irtool.FxGraph, data: dict[str, Any]) -> None:
    for layer in data["layers"][:2]:
        layer["removed"] = [5, 0]
    made = Plan.from_dict(data)
    assert made.layers[0].removed == (0, 5)
    assert irtool.prune(graph, made).module.c0.out_channels == made.layers[0].kept == 6


def test_channels_that_do_not_exist_are_refused_in_a_plan_made_by_hand(graph: irtool.FxGraph) -> None:
    with pytest.raises(PlanError, match="c0: the plan removes channels that do not exist: 9 of 8"):
        irtool.prune(graph, Plan((LayerPlan("c0", "c0.weight", 0, 8, (9,)),)))


def test_a_criterion_that_another_process_registered_is_no_fault(data: dict[str, Any]) -> None:
    assert Plan.from_dict({**data, "criterion": "of_my_own"}).criterion == "of_my_own"


@pytest.mark.parametrize("option", [{"ratio": "x"}, {"ratio": None}, {"min_channels": 1.5}, {"round_to": "2"}])
def test_options_of_another_kind_are_refused(graph: irtool.FxGraph, option: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match="is not a"):
        irtool.plan(graph, **option)


@pytest.mark.parametrize("again", [{}, {"removed": [1]}, {"name": "f"}])
def test_a_layer_is_named_once(graph: irtool.FxGraph, data: dict[str, Any], again: dict[str, Any], tmp_path: Path) -> None:
    layer = data["layers"][0]
    data["layers"].append({**layer, **again})
    with pytest.raises(PlanError, match=r"the plan names c0\.weight twice\. Name each layer once"):
        Plan.from_dict(data)
    made = irtool.plan(graph, "l1", 0.5)
    with pytest.raises(PlanError, match=r"names c0\.weight twice"):
        irtool.prune(graph, dataclasses.replace(made, layers=(*made.layers, made.layers[0])))
    (tmp_path / "p.json").write_text('{"format": 1, "layers": [], "layers": []}')
    with pytest.raises(FileError, match="'layers' is named twice"):
        Plan.from_json(tmp_path / "p.json")


def test_a_layer_that_is_called_twice_is_named_once() -> None:
    made = irtool.plan(structures.graph("siamese"), "l1", 0.5)
    assert len({(layer.parameter, layer.axis) for layer in made.layers}) == len(made.layers)


def test_numbers_of_numpy_become_data(graph: irtool.FxGraph) -> None:
    made = irtool.plan(graph, ratio=np.float32(0.5), min_channels=np.int64(2), round_to=np.int32(2), seed=np.int64(3))  # type: ignore[arg-type]
    assert Plan.from_dict(json.loads(json.dumps(made.to_dict()))) == made


@pytest.mark.parametrize("residual", ["couple", "select", "keep"])
@pytest.mark.parametrize("name", sorted(structures.CASES))
def test_a_plan_is_carried_out_from_a_file_as_it_was_made(name: str, residual: Any) -> None:
    source = structures.graph(name)
    for scope in ("global", "local"):
        made = irtool.plan(source, "l1", 0.6, scope, residual)  # type: ignore[arg-type]
        again = Plan.from_dict(json.loads(json.dumps(made.to_dict())))
        assert again == made
        own, anew = find_slicing(source, made), find_slicing(source.clone(), again)  # not the one that planning proved
        assert np.array_equal(own.keep, anew.keep)


class Joined(nn.Module):
    """A grouped convolution, one group of which reads a stored tensor that no layer makes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.stored = nn.Conv2d(3, 4, 3, padding=1), nn.Parameter(torch.randn(1, 4, 1, 1))
        self.grouped, self.last = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.Conv2d(8, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        stored = self.stored.expand(y.shape[0], 4, y.shape[2], y.shape[3])
        return self.last(self.grouped(torch.cat([y, stored], 1)).relu()).mean((2, 3))


@pytest.mark.parametrize("seed", range(6))
def test_what_goes_is_all_in_the_data(seed: int) -> None:
    torch.manual_seed(0)
    graph = irtool.trace(Joined().eval(), torch.randn(2, 3, 8, 8))
    made = irtool.plan(graph, "random", 0.5, seed=seed)
    assert made.removed
    read = irtool.Plan.from_dict(made.to_dict())
    assert irtool.prune(graph, read).text() == irtool.prune(graph, made).text()
