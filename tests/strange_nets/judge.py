"""A traced and pruned net beside the original with the removed entries zeroed, at three batches and two sizes."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import irtool
from irtool.pruning.plan import Plan
from irtool.pruning.planner import plan as make_plan

SHAPES = ((1, 3, 12, 12), (2, 3, 12, 12), (5, 3, 12, 12), (1, 3, 16, 20), (3, 3, 16, 20))
TOLERANCE = 1e-4


@dataclass
class Verdict:
    """What became of a net.

    Attributes:
        tracer: which one served; empty if none did.
        share: which part of its channels went.
        refused: sizes that the model takes and the graph refuses with an error, after a note.
        mismatches: what is wrong without a word; must be empty.
        inexact: whether a step mixes channels, so that zeros are no reference.
    """

    tracer: str = ""
    share: float = 0.0
    refused: list[str] = field(default_factory=list)
    mismatches: list[str] = field(default_factory=list)
    inexact: bool = False


def judge(net: nn.Module, seed: int = 0) -> Verdict:
    """Trace at batch 1, prune by half, compare."""
    verdict, original = Verdict(), copy.deepcopy(net)
    example = _image(SHAPES[0])
    try:
        graph = irtool.trace(net, example)
    except irtool.errors.TraceError as error:
        verdict.refused.append(str(error))
        return verdict
    plan = make_plan(graph, "random", 0.5, "local", seed=seed)
    check = irtool.check_prune(graph, plan, constants="drop")
    verdict.tracer, verdict.inexact = graph.tracer, bool(check.inexact)
    verdict.share = plan.removed / max(sum(layer.total for layer in plan.layers), 1)
    if not check.ok:
        verdict.mismatches.append("check_prune is not ok")
    pruned, zeroed = irtool.prune(graph, plan, "drop"), zeroed_original(original, graph, plan)
    for shape in SHAPES:
        _compare(verdict, shape, "traced", original, graph)
        if not verdict.inexact:
            _compare(verdict, shape, "pruned", zeroed, pruned)
    if verdict.refused and not graph.fixed:
        verdict.mismatches.append(f"refuses without a note: {verdict.refused[0]}")
    return verdict


def zeroed_original(model: nn.Module, graph: Any, plan: Plan) -> nn.Module:
    """A copy of the model with zeros for every entry of every tensor that slicing takes away.

    Which these are is read off the sliced tensors themselves: of a graph whose tensors hold the numbers of their entries.
    """
    numbered = graph.clone()
    olds, tensors = _tensors(graph.module), _tensors(numbered.module)
    news = _tensors(irtool.prune(graph, plan, "drop").module)
    changed = [name for name, new in news.items() if new.is_floating_point() and new.shape != olds[name].shape]
    with torch.no_grad():
        for name in changed:
            tensors[name].data = torch.arange(tensors[name].numel(), dtype=torch.float32).view(tensors[name].shape)
    numbered.refresh()
    kept = _tensors(irtool.prune(numbered, Plan.from_dict(plan.to_dict()), "drop").module)
    zeroed = copy.deepcopy(model)
    for name in changed:
        owner = zeroed.get_submodule(name.rpartition(".")[0])
        held = getattr(owner, name.rpartition(".")[2])
        stays = torch.zeros(held.numel(), dtype=torch.bool)
        stays[kept[name].reshape(-1).long()] = True
        if not name.endswith("running_var"):
            held.data = held.data * stays.view(held.shape)
    return zeroed


def _compare(verdict: Verdict, shape: tuple[int, ...], what: str, model: nn.Module, graph: Any) -> None:
    x = _image(shape)
    with torch.no_grad():
        try:
            expected = copy.deepcopy(model)(x)
        except RuntimeError:
            return  # the model takes no such size
        try:
            found = graph.module.forward(x)  # the module itself prints what it raises
        except (RuntimeError, AssertionError, IndexError, ValueError) as error:
            verdict.refused.append(f"{what} at {shape}: {str(error).splitlines()[0][:120]}")
            return
    off = _apart(expected, found)
    if off > TOLERANCE:
        verdict.mismatches.append(f"{what} at {shape}: {off:.1e}")


def _image(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return dict([*module.named_parameters(), *module.named_buffers()])


def _apart(expected: Any, found: Any) -> float:
    first, second = pytree.tree_leaves(expected), pytree.tree_leaves(found)
    if [a.shape for a in first] != [b.shape for b in second]:
        return float("inf")
    scale = max(float(a.abs().max()) for a in first)
    return max(float((a - b).abs().max()) for a, b in zip(first, second, strict=True)) / max(scale, 1e-6)
