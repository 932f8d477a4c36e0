"""Branches: what an addition adds to a stream, taken out as a whole with all layers that only it needs.

A branch that goes is a constant for each channel, as a removed channel is: `y = x + f(x)` becomes `y = x + c`. The constant is a
parameter of the graph, along the channels of the stream, so that everything else (labels, slicing, the proof) goes on as if it
had always been there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from irtool.analysis.cost import macs_of
from irtool.channels.groups import channel_groups
from irtool.errors import PlanError
from irtool.ir.graph import G, Graph, Node, Value
from irtool.ops.properties import LAYERS
from irtool.ops.spec import ELEMENTWISE
from irtool.pruning.absorb.moments import expectations


@dataclass(frozen=True)
class Branch:
    """One operand of an addition, and what computes it.

    Attributes:
        name: of the node whose output is added.
        addition: of the node that adds it.
        nodes: names of all nodes that nothing else needs.
        layers: module paths (or node names) of the layers among them.
        macs: their multiply-accumulates, for the whole example batch.
    """

    name: str
    addition: str
    nodes: frozenset[str]
    layers: tuple[str, ...]
    macs: int


def branches(graph: Graph) -> list[Branch]:
    """The branches that can go, in the order of the graph: their addition has two operands of the result's shape, what is left of it
    depends on the input, and all that would go does nothing but compute."""
    found: list[Branch] = []
    moving = _moving(graph)
    outputs = set(graph.outputs)
    for node in graph.nodes:
        values = [value for value in node.inputs if not value.is_param]
        plain = node.op == "Add" and len(values) == len(node.inputs) == 2 and node.attrs.get("alpha") in (None, 1)
        if not plain or values[0] is values[1] or any(value.shape != node.output.shape for value in values) or not graph.is_pure(node):
            continue
        for value, other in ((values[0], values[1]), (values[1], values[0])):
            maker = value.producer
            if maker is None or len(maker.outputs) != 1 or value in outputs or other not in moving or not _channels(graph, value):
                continue
            own = _only_for(graph, maker, node, outputs)
            layers = [each for each in own if each.op in LAYERS]
            if layers and _removable(graph, own):
                names = frozenset(each.name for each in own)
                macs = sum(macs_of(each) for each in own)
                found.append(Branch(maker.name, node.name, names, tuple(each.location for each in layers), macs))
    return found


_FRESH = LAYERS | {"BatchNormalization"}
"""Operators whose results share no memory with what they read."""
_IDLE = frozenset({"Dropout", "StochasticDepth"})
"""Operators that do nothing when the program is evaluated."""


def _removable(graph: Graph, own: Sequence[Node]) -> bool:
    """Whether nothing is lost with these nodes but their results: one that works in place must write on what another of them made."""
    names = {node.name for node in own}
    fresh = {node.name for node in own if node.op in _FRESH}
    for node in reversed(own):
        if graph.is_pure(node) or node.op in _IDLE:
            continue
        maker = next(value for value in node.inputs if not value.is_param).producer if node.inputs else None
        if node.op not in ELEMENTWISE or maker is None or maker.name not in fresh or maker.name not in names:
            return False
        fresh.add(node.name)
    return True


def _moving(graph: Graph) -> set[Value]:
    """The values that depend on an input."""
    found = set(graph.inputs)
    for node in graph.nodes:
        if node.op == "Input" or any(value in found for value in node.inputs):
            found.update(node.outputs)
    return found


def _channels(graph: Graph, value: Value) -> bool:
    """Whether a value holds real numbers, with channels along one axis at most: then a constant a channel can stand for it."""
    labels = channel_groups(graph).labels
    parts = labels.parts(value) if value in labels.values else ()
    real = value.dtype is not None and value.dtype.is_floating_point
    return real and len(parts) == 1 and sum(size > 1 for size in parts[0].shape) <= 1


def _only_for(graph: Graph, last: Node, addition: Node, outputs: set[Value]) -> list[Node]:
    """The nodes that nothing but an addition needs, by way of `last`; in reverse order."""
    if any(use is not addition for use in last.output.uses):
        return []
    found: dict[str, Node] = {}
    for node in reversed(graph.nodes):
        uses = [use for value in node.outputs for use in value.uses]
        needed = node is not last and not (uses and all(use.name in found for use in uses))
        if not needed and node.op != "Input" and not outputs.intersection(node.outputs):
            found[node.name] = node
    return list(found.values())


def chosen_branches(graph: Graph, names: Sequence[str]) -> list[Branch]:
    """The branches of these names.

    Raises:
        PlanError: there is no such branch, or two of them are all that an addition has.
    """
    known = {branch.name: branch for branch in branches(graph)} if names else {}
    found = []
    for name in names:
        if name not in known:
            remedy = f"Known are {', '.join(known) or 'none'}; use the plan with the model it was made for."
            raise PlanError(f"no branch is called {name!r}", where="branches", remedy=remedy)
        found.append(known[name])
    additions = [branch.addition for branch in found]
    twice = next((name for name in additions if additions.count(name) > 1), None)
    if twice is not None:
        raise PlanError("nothing would be left of an addition", where=twice, remedy="Leave one of its branches.")
    return found


def cut(graph: G, names: Sequence[str]) -> G:
    """A copy of the graph, over the same weights, without these branches: what they added is a constant a channel, 0 until it is set.

    Given:  %f = Conv(%relu, ...); %sum = Add(%x, %f)
    Result: %sum = Add(%x, @constant_f:1xCx1x1)
    """
    found = chosen_branches(graph, names)
    labels, new = channel_groups(graph).labels, graph.shared()
    nodes = {node.name: node for node in new.nodes}
    device = next((value.data.device for value in graph.params.values() if value.data is not None), torch.device("cpu"))
    for branch in found:
        for name in branch.nodes - {branch.name}:
            if not new.is_pure(nodes[name]):
                new.bypass(nodes[name])  # or it would not count as dead
    inner = {name for branch in found for name in branch.nodes - {branch.name}}
    for branch in found:
        if branch.name in inner:
            continue  # it goes with another one
        value = graph.node(branch.name).output
        zeros = torch.zeros(labels.of(value).shape, dtype=value.dtype, device=device)
        new.replace_uses(nodes[branch.name].output, new.add_param(f"constant_{branch.name}", zeros, trainable=False))
        if not new.is_pure(nodes[branch.name]):
            new.bypass(nodes[branch.name])
    new.drop_dead()
    new.commit()
    return new


def constant_of(graph: Graph, branch: Branch) -> Value | None:
    """The parameter that stands for a branch in the graph without it; None where that went with another branch."""
    node = next((node for node in graph.nodes if node.name == branch.addition), None)
    return None if node is None else next((value for value in node.inputs if value.is_param), None)


def mean_outputs(graph: Graph, found: Sequence[Branch], batches: Iterable[tuple[Any, ...]] | None) -> dict[str, Tensor]:
    """Measure what branches add on average, float64, of the shape of their labels, by name; NaN where nothing tells.

    Args:
        graph: the graph that has them.
        found: the branches.
        batches: what to measure it on; without them batch norm's statistics tell.
    """
    labels = channel_groups(graph).labels
    values = {branch.name: graph.node(branch.name).output for branch in found}
    if batches is None:
        known = expectations(graph) if found else {}
        return {name: known[value][0].expand(labels.of(value).shape) for name, value in values.items()}
    sums: dict[str, Tensor] = {}
    count = 0
    for batch in batches:
        size = len(batch[0])

        def seen(name: str, value: Tensor, size: int = size) -> None:
            shape = labels.of(values[name]).shape
            axes = [axis for axis, length in enumerate(shape) if length == 1]
            mean = value.detach().double().mean(axes, keepdim=True) if axes else value.detach().double()
            sums[name] = sums.get(name, torch.zeros_like(mean)) + size * mean

        graph.observe(batch, set(values), seen)
        count += size
    return {name: total.cpu() / max(count, 1) for name, total in sums.items()}


def set_constants(graph: Graph, found: Sequence[Branch], means: Mapping[str, Tensor]) -> list[str]:
    """Put what branches added on average in their place, in a graph without them, in place; 0 where it is unknown. Names of those."""
    unknown = []
    for branch in found:
        value = constant_of(graph, branch)
        if value is None or value.data is None:
            continue
        mean = means.get(branch.name, torch.full((), torch.nan, dtype=torch.float64))
        if bool(mean.isnan().any()):
            unknown.append(branch.name)
        graph.set_param(value.name, mean.nan_to_num().to(value.data).expand(value.sizes).clone())
    return unknown
