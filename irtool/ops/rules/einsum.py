"""Einstein sums: each letter is an axis; channels along one letter meet in all operands that have it."""

from __future__ import annotations

from string import ascii_letters

import torch
from torch import Tensor

from irtool.ir.graph import Node, Value
from irtool.ops.rules.context import NONE, Context, is_none, none, varying
from irtool.ops.rules.opaque import barrier
from irtool.ops.rules.products import meeting

Entry = tuple[int, Tensor]
"""The number of an operand, and one of its label tensors over all letters."""


def einsum(node: Node, ctx: Context) -> None:
    """Labels along a letter are unified over the operands; those along a letter of the result pass on to it.

    Where labels lie along several letters (heads, or branches, and their channels) the last is the channels'.
    """
    parsed = _terms(node)
    if parsed is None:
        for value in node.inputs:
            for labels in ctx.parts(value):
                ctx.pin(node, labels.reshape(-1), f"einsum {node.attrs.get('equation')!r}")
        barrier(node, ctx, f"einsum {node.attrs.get('equation')!r}")
        return
    terms, result = parsed
    every = sorted(set("".join(terms)))
    found: dict[str, list[Entry]] = {}
    for index, (value, term) in enumerate(zip(node.inputs, terms, strict=True)):
        for number, labels in enumerate(ctx.parts(value)):
            along = [term[axis] for axis in varying(labels)]
            last = along[-1] if along else ""
            spread = _over_letters(labels, term, every)
            for letter in term:
                ends = letter not in result and last not in result
                if ctx.decide(node, f"{index} {number} {letter} beside", letter in along[:-1] and not ends):
                    spread = _beside(node, ctx, spread, every.index(letter), letter in result)
            for letter in term:
                if ctx.decide(node, f"{index} {number} {letter}", letter == last):
                    found.setdefault(letter, []).append((index, spread))
            if not last and not is_none(labels) and labels.numel() == 1:
                ctx.pin(node, labels.reshape(-1), "a single channel that is broadcast over others")
    met = {letter: _meet(node, ctx, letter, entries, terms, result) for letter, entries in sorted(found.items())}
    kept = [labels for letter, labels in met.items() if labels is not None and letter in result]
    order = [every.index(c) for c in result] + [every.index(c) for c in every if c not in result]
    parts = [labels.permute(order).reshape([labels.shape[every.index(c)] for c in result]) for labels in kept]
    ctx.put_parts(node.output, parts or [none(len(node.output.sizes))])


def _beside(node: Node, ctx: Context, labels: Tensor, axis: int, stays: bool) -> Tensor:
    """Labels that lie along another letter, too: rows of the result stay equally wide, rows that are summed are added up, each with its like."""
    if stays:
        ctx.balance(node, labels.movedim(axis, 0).reshape(labels.shape[axis], -1))
        return labels
    first = labels.narrow(axis, 0, 1)
    ctx.unify(node, first.expand(labels.shape).reshape(-1), labels.reshape(-1))
    return first


def _terms(node: Node) -> tuple[list[str], str] | None:
    """The operands' letters and the result's; None for what is not followed (diagonals)."""
    equation = str(node.attrs["equation"])
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    if len(terms) != len(node.inputs):
        return None
    if not arrow:
        result = "..." * ("..." in left) + "".join(sorted(c for c in set(left) - set(",.") if left.count(c) == 1))
    ranks = [len(value.sizes) - len(term.replace("...", "")) for value, term in zip(node.inputs, terms, strict=True)]
    free = "".join(c for c in ascii_letters if c not in equation)[: max(0, *ranks)]
    terms = [term.replace("...", free[len(free) - rank :]) for term, rank in zip(terms, ranks, strict=True)]
    result = result.replace("...", free)
    plain = all((part + "a").isalpha() and len(set(part)) == len(part) for part in (*terms, result))
    return (terms, result) if plain else None


def _over_letters(labels: Tensor, term: str, every: list[str]) -> Tensor:
    """A label tensor with an axis for each letter."""
    order = sorted(range(len(term)), key=lambda i: every.index(term[i]))
    return labels.permute(order).reshape([labels.shape[term.index(c)] if c in term else 1 for c in every])


def _meet(node: Node, ctx: Context, letter: str, entries: list[Entry], terms: list[str], result: str) -> Tensor | None:
    """Unify what lies along one letter; the labels that pass on, or None if they end here."""
    numbers = [index for index, _ in entries]
    having = [
        index
        for index, (value, term) in enumerate(zip(node.inputs, terms, strict=True))
        if letter in term and ctx.decide(node, f"{letter} in {index}", value.sizes[term.index(letter)] > 1)
    ]
    if len(set(numbers)) < len(numbers):
        sides = [[entry for entry in entries if entry[0] == number] for number in sorted(set(numbers))]
        matched = meeting(node, ctx, *[[labels for _, labels in side] for side in sides]) if len(sides) == 2 else None
        if matched is not None:
            return _meet(node, ctx, letter, [side[place] for side, place in zip(sides, matched, strict=True)], terms, result)
        for _, labels in entries:
            ctx.pin(node, labels.reshape(-1), "einsum over two channels along one axis")
        return None
    if set(having) - set(numbers):  # another operand has positions there, or weighs whole heads
        for _, labels in entries:
            ctx.unify(node, labels.reshape(-1), torch.full((labels.numel(),), NONE, dtype=torch.int64))
        return None
    if all(node.inputs[index].is_param for index in having) and letter not in result:
        for _, labels in entries:
            ctx.pin(node, labels.reshape(-1), "a sum over stored channels")
    first = entries[0][1]
    for _, labels in entries[1:]:
        x, y = torch.broadcast_tensors(first, labels)
        ctx.unify(node, x.reshape(-1), y.reshape(-1))
        first = x if first.numel() < labels.numel() else first
    weight = node.inputs[numbers[0]]
    if ctx.decide(node, f"makes {letter}", len(having) == 1 and _is_weight(weight) and any(not v.is_param for v in node.inputs)):
        ctx.produce(node, weight, terms[numbers[0]].index(letter))
    return first


def _is_weight(value: Value) -> bool:
    return value.is_param and sum(size > 1 for size in value.sizes) > 1
