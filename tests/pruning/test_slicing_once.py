"""The proof of a plan is a value: it is made once, handed to all that ask, and ends with the graph's next edit."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structures
import torch
from torch import nn

import irtool
from irtool.channels import groups
from irtool.ir.graph import Graph
from irtool.pruning.branches import branches
from irtool.pruning.slicing import slicing
from irtool.pruning.slicing.plan_slicing import find_slicing

Make = Callable[[str], Graph]


class Counts:
    """Counts the labellings of a graph and the proofs of a slicing."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.walks = self.proofs = 0
        label, replay = groups.label, slicing.Replay

        def labelling(graph: Graph) -> Any:
            self.walks += 1
            return label(graph)

        def proving(*args: Any, **options: Any) -> Any:
            self.proofs += 1
            return replay(*args, **options)

        patch.setattr(groups, "label", labelling)
        patch.setattr(slicing, "Replay", proving)


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counts:
    return Counts(monkeypatch)


class Stream(nn.Module):
    """A stream that two branches add to."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)
        self.first, self.second = nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x)
        y = y + self.first(self.a(y)).relu()
        return self.head(y + self.second(self.b(y)).relu())


def traced(name: str) -> irtool.FxGraph:
    """A structure's graph in float32, not the one that other tests share."""
    case = structures.CASES[name]
    return irtool.trace(copy.deepcopy(structures.module(name)).float(), case.inputs(), leaf=case.leaf)


@pytest.fixture(params=["torch", "onnx"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Make a structure's graph, on either host."""

    def made(name: str) -> Graph:
        graph = traced(name)
        if request.param == "torch":
            return graph
        irtool.export_onnx(graph, tmp_path / "model.onnx")
        return irtool.load_onnx(tmp_path / "model.onnx")

    return made


def same(a: Graph, b: Graph) -> bool:
    if a.text() != b.text() or a.params.keys() != b.params.keys():
        return False
    pairs = [(value.data, b.params[name].data) for name, value in a.params.items()]
    return all(torch.equal(x, y) for x, y in pairs if x is not None and y is not None)


@pytest.mark.parametrize("residual", ["couple", "select"])
@pytest.mark.parametrize("constants", ["drop", "absorb"])
@pytest.mark.parametrize("name", ["resnet_projection", "preactivation"])
def test_plan_check_and_prune_label_and_prove_once(make: Make, counts: Counts, name: str, residual: Any, constants: Any) -> None:
    graph = make(name)
    plan = irtool.plan(graph, "l1", 0.5, "local", residual)
    proofs = counts.proofs  # planning may have to try more than once
    for _ in range(2):
        assert irtool.check_prune(graph, plan, constants=constants).ok
        irtool.prune(graph, plan, constants)
        irtool.prune(graph, plan, constants)
    assert (counts.walks, counts.proofs) == (1, proofs)


@pytest.mark.parametrize("first", ["check", "prune"])
def test_a_plan_from_a_file_is_proven_once(make: Make, counts: Counts, tmp_path: Path, first: str) -> None:
    irtool.plan(make("resnet_projection"), "l1", 0.5, "local").to_json(tmp_path / "plan.json")
    graph, plan = make("resnet_projection"), irtool.Plan.from_json(tmp_path / "plan.json")
    counts.walks = counts.proofs = 0
    steps: list[Callable[[], Any]] = [lambda: irtool.check_prune(graph, plan), lambda: irtool.prune(graph, plan)]
    for step in (steps if first == "check" else steps[::-1]) * 2:
        step()
    assert (counts.walks, counts.proofs) == (1, 1)


def test_branches_cost_the_labels_of_the_shorter_graph_alone(counts: Counts) -> None:
    torch.manual_seed(0)
    graph = irtool.trace(Stream().eval(), torch.zeros(1, 3, 6, 6))
    plan = irtool.plan(graph, "l1", 0.3, depth=[branches(graph)[0].name])
    proofs = counts.proofs
    assert irtool.check_prune(graph, plan, constants="absorb").ok
    irtool.prune(graph, plan)
    assert (counts.walks, counts.proofs) == (2, proofs)


def test_what_was_planned_on_noise_is_proven_of_the_graph_itself(make: Make, counts: Counts) -> None:
    graph = make("resnet_projection")
    plan = irtool.plan(graph, budget={"macs": 0.6})
    assert plan.criterion == ("fisher" if graph.trainable else "activation")
    done = (counts.walks, counts.proofs)
    assert irtool.check_prune(graph, plan).ok
    pruned = irtool.prune(graph, plan, "drop")
    irtool.reconstruct(graph, plan)
    assert (counts.walks, counts.proofs) == done
    assert same(pruned, irtool.prune(graph.clone(), plan, "drop"))


@pytest.mark.parametrize("constants", ["drop", "absorb"])
def test_pruning_twice_gives_equal_graphs_that_share_nothing(make: Make, constants: Any) -> None:
    graph = make("resnet_projection")
    plan = irtool.plan(graph, "l1", 0.5, "local")
    one, two = irtool.prune(graph, plan, constants), irtool.prune(graph, plan, constants)
    assert one is not two
    assert same(one, two)
    for name, value in one.params.items():
        assert value.data is not None
        one.set_param(name, torch.zeros_like(value.data))
    node = next(node for node in one.nodes if node.op == "Relu")
    one.bypass(node)
    one.commit()
    assert same(two, irtool.prune(graph, plan, constants))


def test_training_in_place_after_planning_counts() -> None:
    graph = traced("resnet_projection")
    plan = irtool.plan(graph, "l1", 0.5, "local")
    before = irtool.prune(graph, plan)
    with torch.no_grad():
        for parameter in graph.module.parameters():
            parameter.mul_(2)
    assert same(irtool.prune(graph, plan), irtool.prune(graph.clone(), plan))
    assert not same(before, irtool.prune(graph, plan))


@pytest.mark.parametrize("residual", ["couple", "select"])
def test_exchanged_weights_count(make: Make, residual: Any) -> None:
    graph = make("preactivation")
    plan = irtool.plan(graph, "l1", 0.5, "local", residual)
    irtool.prune(graph, plan)
    name, value = next((name, value) for name, value in graph.params.items() if value.shape is not None and len(value.shape) == 4)
    assert value.data is not None
    graph.set_param(name, 2 * value.data)
    assert same(irtool.prune(graph, plan), irtool.prune(graph.clone(), plan))


def test_an_edit_ends_what_was_proven(make: Make, counts: Counts) -> None:
    graph = make("resnet_projection")
    plan = irtool.plan(graph, "l1", 0.5, "local")
    known = find_slicing(graph, plan)
    graph.commit()
    counts.walks = counts.proofs = 0
    assert find_slicing(graph, plan) is not known
    assert (counts.walks, counts.proofs) == (1, 1)


def test_a_module_of_another_type_is_proven_again(counts: Counts) -> None:
    graph = traced("resnet_projection")
    plan = irtool.plan(graph, "l1", 0.5, "local")
    graph.module.double()
    counts.walks = counts.proofs = 0
    irtool.prune(graph, plan)
    assert (counts.walks, counts.proofs) == (1, 1)


def test_what_was_proven_goes_with_the_plan(make: Make) -> None:
    graph = make("preactivation")
    plan = irtool.plan(graph, "l1", 0.5, "local", "select")
    held = [weakref.ref(find_slicing(graph, plan)), weakref.ref(find_slicing(graph, plan).source)]
    gc.collect()
    assert all(ref() is not None for ref in held)
    del plan
    gc.collect()
    assert all(ref() is None for ref in held)


def test_a_plan_does_not_keep_its_graph() -> None:
    graph = traced("resnet_projection")
    plan = irtool.plan(graph, "l1", 0.5, "local")
    irtool.prune(graph, plan)
    held = weakref.ref(graph)
    del graph
    gc.collect()
    assert held() is None
    assert plan.removed


def test_a_plan_is_data_whatever_was_proven_of_it() -> None:
    graph = traced("resnet_projection")
    plan = irtool.plan(graph, "l1", 0.5, "local")
    for other in (copy.deepcopy(plan), pickle.loads(pickle.dumps(plan)), irtool.Plan.from_dict(plan.to_dict())):
        assert other == plan
        assert hash(other) == hash(plan)
        assert repr(other) == repr(plan)


@pytest.mark.parametrize("listed", [list, np.array])
def test_what_was_proven_of_a_plan_stays_true_of_it(listed: Callable[[Any], Any]) -> None:
    graph = traced("resnet_projection")
    plan = irtool.plan(graph, "l1", 0.5, "local")
    own = [listed(layer.removed) for layer in plan.layers]
    again = replace(plan, layers=[replace(layer, removed=removed) for layer, removed in zip(plan.layers, own, strict=True)])  # type: ignore[arg-type]
    assert again == plan
    own[0][0] = 0 if own[0][0] else 1
    assert again == plan
    assert same(irtool.prune(graph, again), irtool.prune(graph, plan))


def test_a_copied_graph_knows_nothing_of_the_other() -> None:
    graph = traced("resnet_projection")
    plan = irtool.plan(graph, "l1", 0.5, "local")
    other = copy.deepcopy(graph)
    assert find_slicing(other, plan).source is other
    assert irtool.channel_groups(other).graph is other


def test_a_rewrite_says_what_was_done_and_checks_it(make: Make, counts: Counts) -> None:
    graph = make("resnet_projection")
    plan = irtool.plan(graph, "l1", 0.5, "local")
    proofs, seen = counts.proofs, [tuple(torch.randn(part.shape) for part in graph.example_inputs)]
    done = irtool.rewrite(graph, plan, calibration=seen)
    assert isinstance(done, irtool.Rewrite)
    assert done.plan is plan
    assert f"{plan.removed} of" in done.notes[0]
    assert same(done.graph, irtool.prune(graph, plan, calibration=seen))
    assert done.check().ok
    assert (counts.walks, counts.proofs) == (1, proofs)
