"""Boundaries between integers and floats in a model, with their reasons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnx import ModelProto

from irtool.quant.placement import DefUse, Placement


@dataclass(frozen=True)
class Step:
    """A border between float and integers.

    Attributes:
        kind: `quantise` or `dequantise`.
        tensor: what is converted; in MNN the operator for which it is.
        between: the node that makes it and those on the other side, for people.
        why: the reason.
    """

    kind: str
    tensor: str
    between: str
    why: str


@dataclass(frozen=True)
class Account:
    """An account of where a model computes in integers and where in float.

    Attributes:
        steps: the borders.
        integer: how many operators compute in integers.
        floating: how many do not, by operator and reason.
    """

    steps: tuple[Step, ...]
    integer: int
    floating: Mapping[tuple[str, str], int]

    def lines(self) -> list[str]:
        """For people: the totals, the steps, the operators in float."""
        head = f"{self.integer} operators in integers, {sum(self.floating.values())} in float, {len(self.steps)} steps between them"
        steps = [f"{step.kind:10} {step.tensor}: {step.between}: {step.why}" for step in self.steps]
        return [head, *steps, *(f"{'in float':10} {count} {op}: {reason}" for (op, reason), count in self.floating.items())]


def account(model: ModelProto, placement: Placement) -> Account:
    """The account of a file for onnxruntime, from where its integers are."""
    kinds = ((model.graph.node[index].op_type, reason) for index, reason in placement.floating.items())
    return Account(steps(model, placement), len(placement.integer), Counter(kinds))


def steps(model: ModelProto, placement: Placement) -> tuple[Step, ...]:
    """Every border that onnxruntime cannot drop: a tensor made in float and read in integers, or the other way round.

    Args:
        model: the float model that the placement was made for.
        placement: which nodes compute in integers.
    """
    wiring = DefUse(model)
    absorbed = {name for name in placement.tensors if name in wiring.producer}
    found = []
    for tensor in placement.tensors:
        maker = wiring.producer.get(tensor)
        integer_made = maker is not None and _integer(wiring, placement, maker, absorbed)
        readers = wiring.readers.get(tensor, [])
        inside = [index for index in readers if _integer(wiring, placement, index, absorbed)]
        outside = [index for index in readers if index not in inside]
        name = wiring.nodes[maker].op_type if maker is not None else "input"
        if not integer_made and inside:
            why = "the model's input is float" if maker is None else placement.floating.get(maker, "it is computed in float")
            found.append(Step("quantise", tensor, f"{name} -> {_names(wiring, inside)}", why))
        if integer_made and (outside or tensor in wiring.outputs):
            why = placement.floating.get(outside[0], "it is computed in float") if outside else "the model's output is float"
            found.append(Step("dequantise", tensor, f"{name} -> {_names(wiring, outside) or 'output'}", why))
    return tuple(found)


def _integer(wiring: DefUse, placement: Placement, index: int, absorbed: set[str]) -> bool:
    """Whether a node computes in integers, by itself or as the activation of one that does."""
    node = wiring.nodes[index]
    if index in placement.integer:
        return True
    source = wiring.producer.get(node.input[0]) if node.input else None
    return (
        node.op_type in ("Relu", "Clip") and node.output[0] in absorbed and source in placement.integer and index not in placement.floating
    )


def _names(wiring: DefUse, indices: Sequence[int]) -> str:
    return ", ".join(dict.fromkeys(wiring.nodes[index].op_type for index in indices))
