"""Sizes of the example that a trace took for the model's own: found by running both at other sizes, told, and guarded."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from irtool.hosts.torch.modules import attribute, copy_module, empty_like, meta
from irtool.hosts.torch.tracing.checking.compare import (
    DECIDING_RULES,
    Change,
    equal,
    far_rules,
    larger_batch,
    observed,
    other_batches,
    other_images,
    rules_from,
)
from irtool.hosts.torch.tracing.checking.reference import Reference, sizes_of
from irtool.hosts.torch.tracing.state.sandbox import TraceNotes, untouched
from irtool.hosts.torch.tracing.state.write_back import put_back_writes
from irtool.modes import evaluating
from irtool.nests import map_tensors, tensors_in


@dataclass(frozen=True)
class Fixed:
    """Axes of which a graph holds the example's sizes, where the model takes others.

    Attributes:
        what: "batch" or "image".
        axes: by the number of the input tensor, the axes; those of images count from the end.
        silent: whether the graph runs at other sizes, and computes other numbers than the model.
        line: the line of the model that the size goes into, if that is known.
        branches: nodes by which the model decides, and what it decided on the example, where that alone is fixed and no size.
    """

    what: str
    axes: Mapping[int, tuple[int, ...]]
    silent: bool
    line: str = ""
    branches: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Program:
    """A traced program.

    Attributes:
        module: the program.
        inputs: the example.
        sized: nodes whose value the tracer made a plain number of, and the line of the model that asked for it.
        branches: those of them that the model decided by; None where the tracer cannot tell.
    """

    module: fx.GraphModule
    inputs: Sequence[Any]
    sized: Mapping[str, str]
    branches: Sequence[str] | None = ()


def fixed_axes(reference: Reference, program: Program) -> tuple[Fixed, ...]:
    """Compare a model and its program at another image size and at other batches: the axes where only the model goes along.

    A smaller image first, which costs least. Where that agrees, it is compared at other batches; where not, axis by axis.
    """
    pair, inputs = _Pair(reference, program), program.inputs
    taken = next((found for found in enumerate(other_images(inputs)) if pair.verdict(found[1]) is not None), None)
    image = None if taken is None else taken[1]
    if image is None or not pair.verdict(image):
        batches = _told(pair, pair.batches(image.inputs if image is not None else inputs))
        # each alone may be right: without another batch there are not both
        batches = batches and (_told(pair, pair.batches(inputs)) or batches)
        return (*batches, *(entry for entry in _otherwise(pair) if not batches or entry.what != batches[0].what))
    assert taken is not None
    rules = rules_from(taken[0])  # the model took this one, and may take none of those before
    told = [entry for axis in range(-1, -4, -1) for entry in _told(pair, other_images(inputs, axis, rules))]
    return (*_told(pair, pair.batches(inputs)), *(told or _told(pair, [image])))


class _Pair:
    """A model and its program side by side, compared once at each size."""

    def __init__(self, reference: Reference, program: Program) -> None:
        self.program, self._reference = program, reference
        self.few = len(program.module.graph.nodes) > _SMALL
        self._verdicts: dict[tuple[Any, ...], str | None] = {}

    def verdict(self, change: Change) -> str | None:
        """Empty where the program agrees, else how it does not: it `raises`, or it is silent and `differs`. None where the model raises."""
        sizes = sizes_of(change.inputs)
        if sizes not in self._verdicts:
            self._verdicts[sizes] = self._compared(change.inputs)
        return self._verdicts[sizes]

    def batches(self, inputs: Sequence[Any]) -> list[Change]:
        """Other batches of some inputs, at which this program may be wrong."""
        return other_batches(inputs, few=self.few)

    def _compared(self, inputs: Sequence[Any]) -> str | None:
        expected = self._reference.outputs(inputs)
        if expected is None:
            return None
        got = observed(self.program.module, inputs)
        if got is None:
            return "raises"
        agree = equal(self._reference.model, self.program.module, inputs, self._reference.decided, expected, got)
        return "" if agree else "differs"

    @cached_property
    def numbers(self) -> Mapping[str, Any]:
        """The numbers that were taken for the model's own, on the example."""
        values = _Values(self.program)
        values.follow(self.program.inputs)
        return values.found


def _otherwise(pair: _Pair) -> list[Fixed]:
    """Find the sizes at which the model decides otherwise than on the example (`if height % 32`), and the program does not follow.

    The decisions are computed without the tensors' values, which costs little; model and program are run where one of them differs.
    """
    program, inputs = pair.program, pair.program.inputs
    if program.branches is None:
        return [entry for changes in _deciding(inputs, few=pair.few) for entry in _told(pair, changes, few=False)]
    if not program.branches:
        return []
    bare = Program(copy_module(program.module, empty_like), inputs, dict.fromkeys(program.branches, ""), program.branches)
    made = _decisions(bare, inputs)
    told: dict[str, Fixed] = {}
    for changes in _deciding(inputs, far_rules(inputs), few=pair.few) if made else ():
        known: set[str] = set()
        for change in changes:
            there = _decisions(bare, change.inputs)
            differing = {name for name, found in made.items() if there.get(name, found) != found} - known
            verdict = pair.verdict(change) if differing else None
            if verdict is None:  # nothing is decided otherwise, or the model takes no such size
                continue
            known |= differing
            if verdict:
                before = told.get(change.what, Fixed(change.what, change.axes, False))
                branches = {**before.branches, **{name: made[name] for name in made if name in differing}}
                lines = dict.fromkeys(program.sized.get(name, "") for name in branches)
                silent = before.silent or verdict == "differs"
                told[change.what] = Fixed(change.what, change.axes, silent, ", ".join(list(lines)[:3]), branches)
    return list(told.values())


def _deciding(inputs: Sequence[Any], far: Sequence[Any] = (), *, few: bool) -> Iterator[Iterable[Change]]:
    """Sizes at which a model may decide otherwise: other widths, heights, both (these alone, if they are to be few), and larger batches.

    Args:
        inputs: the example.
        far: further rules, for width and height together.
        few: whether the sizes are to be few.
    """
    for only in (None,) if few else (-1, -2, None):
        yield other_images(inputs, only, (*DECIDING_RULES, *far) if only is None else DECIDING_RULES)
    yield [change for more in (14, 62) if (change := larger_batch(inputs, more)) is not None]


def _decisions(bare: Program, inputs: Sequence[Any]) -> dict[str, bool]:
    """Compute the decisions of a program without values for some inputs, as far as it runs."""
    values = _Values(bare)
    values.follow(map_tensors(tuple(inputs), meta))
    return {name: bool(found) for name, found in values.found.items() if isinstance(found, int)}


_SMALL = 300
"""Nodes of a program that is compared at all sizes that its model takes; a larger one, which takes long to run, at the first of them."""


def _told(pair: _Pair, changes: Iterable[Change], *, few: bool | None = None) -> list[Fixed]:
    """Decide whether some sizes of the same axes are fixed: they are, if the program is wrong at one of them.

    Args:
        pair: the model and the program.
        changes: the sizes.
        few: look at the first alone that the model takes; by default where the program is large.
    """
    wrong: dict[str, Change] = {}
    for change in changes:
        verdict = pair.verdict(change) if any(change.axes.values()) else None
        if verdict:
            wrong.setdefault(verdict, change)
        if "differs" in wrong or ((pair.few if few is None else few) and verdict is not None):
            break
    if not wrong:
        return []
    change = wrong.get("differs") or wrong["raises"]
    return [Fixed(change.what, change.axes, "differs" in wrong, _line(pair, change))]


def _line(pair: _Pair, change: Change) -> str:
    """The line of the model that made a number of what is another one at this size, else that at which the program fails, or that
    first states a size."""
    program, there = pair.program, _Values(pair.program)
    last = there.follow(change.inputs)
    differing = [line for name, line in program.sized.items() if pair.numbers.get(name) != there.found.get(name)]
    if differing:
        return ", ".join(list(dict.fromkeys(differing))[:3])
    if last is not None:
        return _source(last)
    stated = (node for node in program.module.graph.nodes if node.op == "call_function" and _states_sizes(node))
    return next((line for node in stated if (line := _source(node))), "")


class _Values(fx.Interpreter):
    """The numbers that were taken for the model's own, as they are for some inputs."""

    def __init__(self, program: Program) -> None:
        super().__init__(program.module)
        self._sized = program.sized
        self.found: dict[str, Any] = {}
        self.last: fx.Node | None = None

    def follow(self, inputs: Sequence[Any]) -> fx.Node | None:
        """Run; the node that fails, if one does."""
        with untouched(self.module, TraceNotes(), flags=False), evaluating(self.module), torch.no_grad():
            with put_back_writes(self.module):
                try:
                    graph: Any = self.module.graph
                    self.run(*graph.process_inputs(*map_tensors(tuple(inputs), torch.clone)), enable_io_processing=False)
                except Exception:  # the user's code, on sizes that it was not traced for
                    return self.last
        return None

    def run_node(self, n: fx.Node) -> Any:
        self.last = n
        value = super().run_node(n)
        if n.name in self._sized:
            self.found[n.name] = value
        return value


def _states_sizes(node: fx.Node) -> bool:
    return any(isinstance(arg, tuple | list) and arg and all(type(item) is int for item in arg) and len(arg) > 2 for arg in node.args)


def _source(node: fx.Node | None) -> str:
    lines = [
        line.strip() for line in ((node.stack_trace if node is not None else None) or "").splitlines() if line.strip().startswith("File ")
    ]
    if not lines:
        return f"node {node.name}" if node is not None else ""
    parts = lines[-1].split('"')
    number = "".join(filter(str.isdigit, parts[2].split(",")[1])) if len(parts) > 2 else ""
    return f"{parts[1].rsplit('/', 1)[-1]}:{number}"


def note_of(fixed: Fixed, inputs: Sequence[Any]) -> str:
    """A line for people."""
    tensors = tensors_in(tuple(inputs))
    places = [f"{tensors[n].shape[axis]} (axis {axis % tensors[n].dim()} of input {n})" for n, axes in fixed.axes.items() for axis in axes]
    line = f", by {fixed.line}" if fixed.line else ""
    if fixed.branches:
        return f"the model decides by the size of the {fixed.what}{line}: this graph is for sizes at which it decides as on the example"
    return f"the {fixed.what} is fixed at {', '.join(dict.fromkeys(places))}{line}: the model takes other sizes, this graph does not"


def guard(module: fx.GraphModule, fixed: Sequence[Fixed], inputs: Sequence[Any]) -> bool:
    """Let the program refuse sizes at which it would compute other numbers than the model. True if it changed."""
    holders = _holders(module, inputs)
    last = [node for node in module.graph.nodes if node.op == "placeholder"][-1:]
    changed = False
    for entry in (entry for entry in fixed if entry.silent):
        changed |= _guard_branches(module, entry)
        for number, axes in entry.axes.items():
            if number not in holders or entry.branches:
                continue
            place, tensor = holders[number]
            for axis in axes:
                with module.graph.inserting_after(last[0]):
                    size = module.graph.call_method("size", (place, axis % tensor.dim()))
                with module.graph.inserting_after(size):
                    equal = module.graph.call_function(operator.eq, (size, tensor.shape[axis]))
                with module.graph.inserting_after(equal):
                    text = f"this graph was traced for {note_of(entry, inputs).partition(':')[0].removeprefix('the ')}"
                    module.graph.call_function(torch._assert, (equal, text))
                changed = True
    if changed:
        module.recompile()
    return changed


def _guard_branches(module: fx.GraphModule, entry: Fixed) -> bool:
    """Let the program refuse sizes at which the model decides otherwise. True if it changed."""
    nodes = [node for node in module.graph.nodes if node.name in entry.branches]
    for node in nodes:
        with module.graph.inserting_after(node):
            same = module.graph.call_function(operator.ne if entry.branches[node.name] else operator.eq, (node, 0))
        with module.graph.inserting_after(same):
            text = f"the model decides otherwise at this size{f', by {entry.line}' if entry.line else ''}"
            module.graph.call_function(torch._assert, (same, text))
    return bool(nodes)


def _holders(module: fx.GraphModule, inputs: Sequence[Any]) -> dict[int, tuple[fx.Node, Tensor]]:
    """The placeholder of each input tensor, by its number, where one stands for it alone."""
    flat = isinstance(module.graph._codegen, fx.graph._PyTreeCodeGen)
    given = pytree.tree_leaves(tuple(inputs)) if flat else list(inputs)
    found: dict[int, tuple[fx.Node, Tensor]] = {}
    number = 0
    for node, item in zip([node for node in module.graph.nodes if node.op == "placeholder"], given, strict=False):
        if isinstance(item, Tensor):
            found[number] = (node, item)
        number += len(tensors_in(item))
    return found


def decided_by(model: nn.Module, asked: Sequence[str]) -> dict[str, bool]:
    """The modes of modules that decide by them, by path; a root is named after its class."""
    found = {}
    for name in asked:
        path = "" if name == type(model).__name__ else name
        try:
            found[path] = bool(attribute(model, path).training if path else model.training)
        except AttributeError:
            continue
    return found
