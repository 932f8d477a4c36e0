"""Every structure, pruned in many ways: what is left computes what the masked original computes."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

import pytest
import torch
from structures import CASES, graph, module
from structures.surviving import surviving_error
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils import _pytree as pytree

import irtool
from irtool.analysis.compare import difference
from irtool.channels.groups import channel_groups
from irtool.pruning.slicing.check import check_prune

NAMES = sorted(CASES)
OUTPUT = ("is a graph output",)


def tensors(result: object) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def size(found: irtool.FxGraph) -> int:
    return sum(p.numel() for p in found.module.parameters()) + sum(b.numel() for b in found.module.buffers())


@cache
def halved(name: str) -> irtool.FxGraph:
    return irtool.prune(graph(name), irtool.plan(graph(name), "l1", 0.5), constants="drop")


@pytest.mark.parametrize("criterion", ["l1", "random"])
@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("name", NAMES)
def test_sliced_equals_masked(name: str, ratio: float, scope: str, criterion: str) -> None:
    case, source = CASES[name], graph(name)
    plan = irtool.plan(source, criterion, ratio, scope, seed=int(10 * ratio) + 1)
    assert plan.removed > 0
    found = check_prune(source, plan)
    assert found.ok
    assert found.relative <= 1e-9
    assert not found.unresolved
    assert found.inexact or found.effect == 0
    for message in found.inexact:
        assert any(part in message for part in case.inexact), message
    pruned = irtool.prune(source, plan, constants="drop")
    assert size(pruned) < size(source)
    before, after = (tensors(g.run(*source.example_inputs)) for g in (source, pruned))
    assert [t.shape for t in before] == [t.shape for t in after]
    assert difference(before, after)[1] > 1e-6, "the channels that went had no effect: the net is no test"


@pytest.mark.parametrize("name", [name for name in NAMES if CASES[name].inexact and not CASES[name].rows])
def test_inexact_steps_equal_the_same_steps_on_what_survives(name: str) -> None:
    source = graph(name)
    for scope, ratio in (("local", 0.5), ("global", 0.3)):
        plan = irtool.plan(source, "l1", ratio, scope)
        assert check_prune(source, plan).inexact
        assert surviving_error(source, irtool.plan(source, "l1", ratio, scope)) <= 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_coverage_and_reasons(name: str) -> None:
    """Half of each layer goes wherever nothing forbids it, and what stays says why."""
    case, source = CASES[name], graph(name)
    plan = irtool.plan(source, "l1", 0.5, "local", round_to=1)
    pruned = irtool.prune(source, plan, constants="drop")
    gone = 1 - sum(p.numel() for p in pruned.module.parameters()) / sum(p.numel() for p in source.module.parameters())
    assert gone >= case.removed
    reasons = [layer.reason for layer in plan.layers if layer.reason]
    if case.reason:
        assert any(case.reason in reason for reason in reasons), reasons
    allowed = (
        *OUTPUT,
        *case.pinned,
        *([case.reason] if case.reason else []),
        *(["nothing can go that leaves"] if not case.aligned else []),
    )
    for layer in plan.layers:
        assert not layer.reason or any(part in layer.reason for part in allowed), layer
        assert layer.removed or layer.reason or layer.total < 2, f"{layer.name} stays without a reason"


@pytest.mark.parametrize("name", [name for name in NAMES if CASES[name].reason])
def test_barriers_explain_themselves(name: str) -> None:
    groups = channel_groups(graph(name))
    texts = [groups.explain(layer.node.location) for layer in groups.layers]
    pattern = rf"must stay: .*{re.escape(CASES[name].reason)}.* \(at [\w.]+.*\)"
    assert any(re.search(pattern, text) for text in texts), texts


@pytest.mark.parametrize("parametrise", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_a_computed_weight_is_refused_with_the_remedy(parametrise: Callable[[nn.Module], nn.Module]) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), parametrise(nn.Conv2d(8, 8, 3)))
    with pytest.raises(irtool.errors.TraceError, match="remove_parametrizations"):
        irtool.trace(net, torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("name", NAMES)
def test_widths_are_rounded_and_minima_hold(name: str) -> None:
    case, source = CASES[name], graph(name)
    plan = irtool.plan(source, "random", 0.6, "local", round_to=4, min_channels=3, seed=1)
    assert check_prune(source, plan).ok
    if case.aligned:
        assert not [layer for layer in plan.layers if layer.kept % 4 and layer.kept != layer.total]
    assert all(layer.kept >= min(3, layer.total) for layer in plan.layers)


@pytest.mark.parametrize("name", NAMES)
def test_training_goes_on(name: str) -> None:
    """The pruned module trains: gradients reach what they reached before, and frozen parameters stay frozen."""
    source, pruned = graph(name), halved(name).clone()
    pruned.module.train()
    sum(t.square().mean() for t in tensors(pruned.module(*source.example_inputs)) if t.is_floating_point()).backward()
    frozen = {key for key, p in module(name).named_parameters() if not p.requires_grad}
    reached = 0
    for key, parameter in pruned.module.named_parameters():
        assert parameter.requires_grad == (key not in frozen)
        if parameter.grad is not None:
            assert parameter.grad.shape == parameter.shape
            assert torch.isfinite(parameter.grad).all()
            reached += 1
    assert reached > 0


@pytest.mark.parametrize("name", NAMES)
def test_folding_agrees(name: str) -> None:
    source, pruned = graph(name), halved(name)
    folded = irtool.fold_batchnorm(pruned)
    assert difference(pruned.run(*source.example_inputs), folded.run(*source.example_inputs))[1] <= 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_pruning_twice(name: str) -> None:
    """A pruned graph is a graph like any other."""
    once = halved(name)
    plan = irtool.plan(once, "random", 0.3, "local", seed=2)
    found = check_prune(once, plan)
    assert found.ok
    assert size(irtool.prune(once, plan, constants="drop")) <= size(once)


@pytest.mark.parametrize("name", NAMES)
def test_streams_can_be_selected_from(name: str) -> None:
    source = graph(name)
    assert check_prune(source, irtool.plan(source, "l1", 0.5, residual="select")).ok


@pytest.mark.parametrize("name", ["option_a", "preactivation", "resnet_projection", "shufflenet_v1", "convnext"])
def test_streams_can_be_kept(name: str) -> None:
    source = graph(name)
    plan = irtool.plan(source, "l1", 0.5, residual="keep")
    assert check_prune(source, plan).ok
    assert any("residual stream" in layer.reason for layer in plan.layers)


@pytest.mark.parametrize("name", NAMES)
def test_the_source_is_not_changed(name: str) -> None:
    source = graph(name)
    text, before = source.text(), {key: value.clone() for key, value in source.module.state_dict().items()}
    irtool.fold_batchnorm(irtool.prune(source, irtool.plan(source, "l1", 0.5)))
    assert source.text() == text
    assert all(torch.equal(value, before[key]) for key, value in source.module.state_dict().items())
