"""Masked against sliced: the numerical check of a prune, in float64 from end to end."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from irtool.analysis.compare import difference
from irtool.analysis.randomness import dropouts, without
from irtool.channels.groups import channel_groups
from irtool.errors import GraphError, IrtoolError
from irtool.ir.graph import Graph, Node
from irtool.nests import cast, map_tensors
from irtool.pruning.absorb.bias import add_biases
from irtool.pruning.absorb.calibration import listed, measured
from irtool.pruning.absorb.reference import added_by_layers, deviation
from irtool.pruning.branches import chosen_branches, cut, set_constants
from irtool.pruning.plan import Plan
from irtool.pruning.reconstruct.restored import restored
from irtool.pruning.slicing.masked import held_run, masked_run
from irtool.pruning.slicing.plan_slicing import find_slicing, put_constants
from irtool.pruning.slicing.slicing import Slicing
from irtool.tensor_defaults import plain_tensors, seeded

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-5}
"""The relative difference that counts as equal, by the arithmetic: float32 sums in another order when there are fewer channels."""
TOLERANCE = TOLERANCES[torch.float64]


@dataclass(frozen=True)
class MaskedCheck:
    """Distance of the sliced graph from the masked original.

    Attributes:
        max_abs: largest absolute difference of any output element. Operators that mix channels are computed from the
            surviving channels in the reference, as they are in the sliced graph.
        relative: that, over the largest absolute output of the masked original.
        inexact: steps that mix removed channels with others (norms, softmax, means over channels), with the reason.
        effect: relative difference if those steps are computed over the removed channels as zeros too: what the removal
            costs there. 0 if there are none.
        border: for absorbed constants: relative effect of zero padding, where the constant is not what it is elsewhere, and of
            calls of one layer whose constants differ. 0 if none.
        constants: for absorbed constants that batch norms tell: relative difference between what removed channels are taken to
            be, and what they are in the same model with constant channels. 0 if none.
        unresolved: steps without a reference: inexact ones that could not be computed from the survivors, and those that draw
            random numbers of other sizes in eval mode; `relative` holds their effect. Dropout that is always on is left out of
            both runs.
        tolerance: the largest relative difference that counts as equal: 1e-9 in float64, 1e-5 in onnxruntime's float32.
        traced: relative difference between the traced model and its graph, in the model's own type; 0 if there is no model.
        traced_tolerance: the largest such difference that rounding explains, in that type.
        fixed: the trace decided by the example's sizes: at other ones it raises, or does not agree with the model.
        wrong: it computes other numbers than the model there, and says nothing.
    """

    max_abs: float
    relative: float
    inexact: tuple[str, ...] = ()
    effect: float = 0.0
    border: float = 0.0
    unresolved: tuple[str, ...] = ()
    tolerance: float = TOLERANCE
    traced: float = 0.0
    fixed: bool = False
    wrong: bool = False
    constants: float = 0.0
    traced_tolerance: float = 1e-4

    @property
    def ok(self) -> bool:
        """Whether the sliced graph is shown to be right: never where a step has no reference of its own."""
        return (
            max(self.relative, self.constants) <= self.tolerance
            and self.traced <= self.traced_tolerance
            and not self.unresolved
            and not self.wrong
        )


@plain_tensors()
def check_prune(
    graph: Graph,
    plan: Plan,
    inputs: tuple[Any, ...] | None = None,
    constants: str = "drop",
    calibration: Iterable[Any] | None = None,
    seed: int = 0,
) -> MaskedCheck:
    """Prune a float64 copy of `graph` and compare it with the same copy masked. An ONNX graph is compared in onnxruntime, in float32.

    Args:
        graph: the graph that the plan was made for.
        plan: the plan.
        inputs: what to run on; random normal tensors of the example's shapes if left out.
        constants: as in `prune`.
        calibration: as in `prune`.
        seed: of the random inputs.
    """
    given = _fitting(graph, random_inputs(graph.example_inputs, seed) if inputs is None else inputs)
    batches = None if calibration is None else [_like_example(graph, batch) for batch in listed(calibration)]
    found = _compared(graph, plan, given, constants, batches)
    fixed = graph.fixed_elsewhere(given)
    return dataclasses.replace(
        found,
        traced=graph.against_model(given),
        traced_tolerance=graph.model_tolerance(),
        fixed=bool(fixed),
        wrong=any(entry.silent for entry in fixed),
    )


def _compared(graph: Graph, plan: Plan, inputs: tuple[Any, ...], constants: str, batches: list[Any] | None) -> MaskedCheck:
    """Masked against sliced, the model that the graph came from left aside."""
    slicing, always = find_slicing(graph, plan), dropouts(graph)
    put_constants(slicing, plan, _tuples(batches), drop=constants == "drop")
    labels, keep = slicing.labels, slicing.keep
    found = measured(labels, keep, batches) if constants == "absorb" else None
    # Slicing picks entries, so that it may come before the change of type; what is absorbed is added after it.
    sliced = without(slicing.fill(), always).widened()
    if found is not None and found.biases:
        sliced = add_biases(sliced, labels, keep, found.biases)
    there = _read_there(graph, plan, slicing, inputs)
    labels, keep = there.labels, there.keep
    reference = without(labels.graph, always).widened()
    inputs = _fitting(reference, inputs)
    added = added_by_layers(reference, found) if found is not None else None
    places = _places(graph)
    masked = partial(seeded, masked_run, reference, labels, torch.from_numpy(keep), inputs, places=places)
    with _explained():
        expected, got = masked(added, survivors=True), seeded(_run, sliced, inputs, places)
    inexact, effect, border, off = tuple(slicing.inexact()), 0.0, 0.0, 0.0
    if inexact:
        effect = difference(masked(added).outputs, got)[1]
    if found is not None and (found.padded or found.averaged):
        border = difference(masked(fills=found.fills, survivors=True).outputs, expected.outputs)[1]
    if found is not None and found.fills and batches is None:
        off = deviation(reference, found.fills, inputs)
    apart = _larger(difference(expected.outputs, got), _cut_difference(graph, plan, inputs, always))
    tolerance = TOLERANCES[graph.arithmetic]
    unresolved = (*expected.unresolved, *(_drawn(graph, sliced, always) if apart[1] > tolerance else ()))
    return MaskedCheck(*apart, inexact, effect, border, unresolved, tolerance, constants=off)


def _read_there(graph: Graph, plan: Plan, slicing: Slicing[Any], inputs: tuple[Any, ...]) -> Slicing[Any]:
    """Slice the program as it is read on inputs of other sizes than the example's.

    Where channels lie among pixels (behind a pixel shuffle, or a view of both), masks fit one size alone.
    """
    if plan.branches:  # what stands for them is set in the one slicing
        return slicing
    try:
        elsewhere = graph.read_on(inputs)
        return slicing if elsewhere is graph else find_slicing(elsewhere, plan)
    except IrtoolError:  # there, the program is refused or is another one: the example's masks are tried
        return slicing


def _places(graph: Graph) -> list[str]:
    """Names of the values to compare; none for the outputs as they are, which tell all in float64."""
    return [] if graph.arithmetic is torch.float64 else before_saturation(graph)


def before_saturation(graph: Graph) -> list[str]:
    """Names of what to compare in float32: the outputs (or what stands for them), or what goes into a sigmoid or softmax that makes one.

    A float32 sigmoid is right to 1e-7 absolute, which is no measure where all of its results are near 0; a softmax that is sure of
    itself hides any difference.
    """
    makers = {value.name: node for node in graph.nodes for value in node.outputs}
    found = [(name, makers.get(name)) for name in graph.compared()]
    return [node.input.name if node is not None and node.op in ("Sigmoid", "Softmax") else name for name, node in found]


def _run(graph: Graph, inputs: tuple[Any, ...], places: list[str]) -> Any:
    return graph.values(inputs, places) if places else graph.run(*inputs)


def _drawn(graph: Graph, sliced: Graph, always: Collection[str]) -> list[str]:
    """The operators that draw random numbers in eval mode, and whose sizes the slicing changed: they draw others then."""
    sizes = {node.name: _sizes(node) for node in sliced.nodes}
    drawing = [node for node in graph.drawing() if node.name not in always]
    return [f"{node.location} (draws random numbers)" for node in drawing if sizes.get(node.name) != _sizes(node)]


def _sizes(node: Node) -> list[Any]:
    return [value.shape for value in (*node.inputs, *node.outputs) if not value.is_param]


@contextmanager
def _explained() -> Iterator[None]:
    """Turn errors of a model on inputs that it does not take into irtool's."""
    try:
        yield
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError, AssertionError) as error:
        raise GraphError(
            f"cannot run on these inputs: {(str(error).strip().splitlines() or [type(error).__name__])[0][:160]}",
            remedy="Trace with inputs that the model itself accepts, and check on inputs like them.",
        ) from error


def _cut_difference(graph: Graph, plan: Plan, inputs: tuple[Any, ...], always: Collection[str]) -> tuple[float, float]:
    """The largest difference, absolute and relative, between the graph without the plan's branches and the original in which they give
    constants; both with random ones. 0 without branches."""
    if not plan.branches:
        return 0.0, 0.0
    labels, draw, found = channel_groups(graph).labels, torch.Generator().manual_seed(0), chosen_branches(graph, plan.branches)
    shapes = {branch.name: labels.of(graph.node(branch.name).output).shape for branch in found}
    constants = {name: torch.randn(shape, generator=draw, dtype=torch.float64) for name, shape in shapes.items()}
    whole, left = (without(one, always).widened() for one in (graph, cut(graph, plan.branches)))
    set_constants(left, found, constants)
    places = _places(graph)
    return difference(seeded(held_run, whole, constants, inputs, places), seeded(_run, left, inputs, places))


def _larger(*found: tuple[float, float]) -> tuple[float, float]:
    """The worst of some differences, absolute and relative."""
    return max(apart for apart, _ in found), max(relative for _, relative in found)


def _tuples(batches: list[Any] | None) -> list[tuple[Any, ...]] | None:
    return None if batches is None else [tuple(batch) if isinstance(batch, tuple | list) else (batch,) for batch in batches]


def check_refitted(graph: Graph, plan: Plan, refitted: Graph, inputs: tuple[Any, ...]) -> MaskedCheck:
    """Compare a refitted graph with the masked original that has its values: in float64, ONNX graphs in onnxruntime.

    Args:
        graph, plan: what the refitted graph was made from.
        refitted: what `reconstruct` returned for them, or `load` for its archive.
        inputs: what to run on.
    """
    given = _fitting(graph, inputs)
    slicing, places, always = find_slicing(graph, plan), _places(graph), dropouts(graph)
    restored_graph, added = restored(slicing, refitted)
    reference, there = without(restored_graph, always).widened(), _read_there(graph, plan, slicing, given)
    labels, keep = there.labels, torch.from_numpy(there.keep)
    given = _fitting(reference, given)
    expected = seeded(masked_run, reference, labels, keep, given, added, survivors=True, places=places)
    got = seeded(_run, without(refitted, always).widened(), given, places)
    apart = _larger(difference(expected.outputs, got), _cut_difference(graph, plan, given, always))
    return MaskedCheck(*apart, tuple(slicing.inexact()), unresolved=expected.unresolved, tolerance=TOLERANCES[graph.arithmetic])


def _fitting(graph: Graph, inputs: Any) -> Any:
    """Arguments in float64 where the host computes in it, else in the types of the example's."""
    if graph.arithmetic is torch.float64:
        return cast(inputs, torch.float64)
    given = inputs if isinstance(inputs, tuple | list) else (inputs,)
    return tuple(x.to(like.dtype) if isinstance(x, Tensor) else x for x, like in zip(given, graph.example_inputs, strict=True))


def _like_example(graph: Graph, batch: Any) -> Any:
    """A batch in the types of the example, in which the graph itself computes; what does not fit is left for the run to refuse."""
    given = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
    if len(given) != len(graph.example_inputs):
        return batch
    pairs = zip(given, graph.example_inputs, strict=True)
    return tuple(x.to(like.dtype) if isinstance(x, Tensor) and isinstance(like, Tensor) else x for x, like in pairs)


def random_inputs(example: Any, seed: int = 0) -> tuple[Any, ...]:
    """Normal float64 tensors in place of floating ones; others stay, since they may be indices."""
    generator = torch.Generator().manual_seed(seed)
    made: tuple[Any, ...] = map_tensors(
        tuple(example), lambda t: torch.randn(t.shape, generator=generator, dtype=torch.float64) if t.is_floating_point() else t
    )
    return made
