"""Normalizes a program once, when its file is read: names, constants, linear layers. The program stays equal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from irtool.errors import GraphError
from irtool.hosts.onnx.edges import cleanup, redirect
from irtool.hosts.onnx.files.given import drop_empty_operands, take_branches
from irtool.hosts.onnx.files.sequences import unpack_sequences
from irtool.hosts.onnx.files.subgraphs import bodies
from irtool.hosts.onnx.running.evaluate import Budget, proto_of, run_constant

STANDARD = ("", "ai.onnx", None)
_KEPT = frozenset(
    {"DequantizeLinear", "QuantizeLinear", "If", "Loop", "Scan", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"}
)
_CONSTANTS = ("value_float", "value_floats", "value_int", "value_ints")
LARGE = 32
"""Filled constants of more entries are written as one ConstantOfShape node where they came as one."""


def normalize(graph: gs.Graph, stored: int, sizes: Mapping[str, list[int | None]] | None = None) -> frozenset[str]:
    """Settle a freshly imported graph in place. Returns the constants that came as fills (ConstantOfShape).

    - every node has a name of its own;
    - Constant nodes, and nodes whose inputs are all constants, become initialisers (an Identity becomes its source, so
      that two readers of one weight are seen to share it);
    - sequences of a known number of tensors become Split and Concat, branches that a constant chooses take the If's place;
    - constants without entries are taken out of Concat;
    - Gemm's alpha and beta are multiplied into its constants;
    - sizes noted between nodes go, since they are inferred anew and would be wrong after pruning.

    Args:
        graph: the program.
        stored: bytes of the weights in the file, which are a measure of what it may have computed.
        sizes: of what is split into sequences, where they are the same for every input.
    """
    _name_nodes(graph)
    budget = Budget(stored)
    filled = fold_constants(graph, budget)
    while unpack_sequences(graph, sizes or {}) or take_branches(graph):
        filled |= fold_constants(graph, budget)
    drop_empty_operands(graph)
    for node in graph.nodes:
        if node.op == "Gemm" and node.domain in STANDARD:
            _fold_factors(node, budget)
    cleanup(graph)
    edges = {tensor.name for tensor in (*graph.inputs, *graph.outputs)}
    for tensor in graph.tensors().values():
        if isinstance(tensor, gs.Variable) and tensor.name not in edges:
            tensor.dtype = tensor.shape = None
    return frozenset(filled)


def fold_constants(graph: gs.Graph, budget: Budget) -> set[str]:
    """Make initialisers of what Constant nodes, and nodes that read constants alone, give. Returns those that are fills."""
    filled: set[str] = set()
    outputs = {tensor.name for tensor in graph.outputs}
    for node in list(graph.nodes):
        if any(tensor.name in outputs for tensor in node.outputs):
            continue  # an output keeps the node that makes it
        if node.op == "Constant" and node.domain in STANDARD:
            become_constant(node, [_constant_value(node)], graph)
        elif _foldable(node, graph):
            _fold(graph, node, filled, budget)
    return filled


def _name_nodes(graph: gs.Graph) -> None:
    taken: set[str] = set()
    for index, node in enumerate(graph.nodes):
        name = node.name or f"{node.op}_{index}"
        while name in taken or name in ("input", "output"):
            name = f"{name}_{index}"
        taken.add(name)
        node.name = name


def _constant_value(node: gs.Node) -> np.ndarray:
    value = node.attrs.get("value")
    if isinstance(value, gs.Constant):
        return np.asarray(value.values)
    for key in _CONSTANTS:
        if key in node.attrs:
            return np.asarray(node.attrs[key], np.float32 if "float" in key else np.int64)
    if "sparse_value" in node.attrs and isinstance(node.attrs["sparse_value"], gs.Constant):
        return np.asarray(node.attrs["sparse_value"].values)
    raise GraphError("a constant of strings or sparse data", where=node.name, remedy="irtool reads dense numbers; remove the node.")


def _foldable(node: gs.Node, graph: gs.Graph) -> bool:
    if node.domain not in STANDARD or node.op in _KEPT or not node.inputs:
        return False
    if bodies(node):
        return False
    return all(isinstance(tensor, gs.Constant) or tensor.name == "" for tensor in node.inputs)


def _fold(graph: gs.Graph, node: gs.Node, filled: set[str], budget: Budget) -> None:
    if node.op == "Identity":
        redirect(node.outputs[0], node.inputs[0])
        node.outputs.clear()
        return
    arrays = {tensor.name: np.asarray(tensor.values) for tensor in node.inputs if tensor.name}
    try:
        results = run_constant(proto_of(node), arrays, graph.opset, budget)
    except GraphError:
        raise
    except Exception:  # an operator that the reference evaluator lacks stays a node, and a barrier
        return
    if results is None:
        return
    # A view of something filled is filled too: what the light test models do with every batch norm.
    uniform = node.op == "ConstantOfShape" or (node.op in ("Unsqueeze", "Reshape") and node.inputs[0].name in filled)
    if uniform and np.asarray(results[0]).size > LARGE:
        filled.add(node.outputs[0].name)
    become_constant(node, results, graph)


def become_constant(node: gs.Node, results: list[Any], graph: gs.Graph) -> None:
    """Constants in the place of a node's outputs; the node is left without any, for `cleanup` to take."""
    outputs = list(node.outputs)
    node.outputs.clear()
    for output, result in zip([o for o in outputs if o.name], results, strict=True):
        redirect(output, gs.Constant(output.name, np.asarray(result)))


def _fold_factors(node: gs.Node, budget: Budget) -> None:
    """alpha * A B + beta * C with constants: the factors go into B and C, unless these have other readers."""
    for key, index in (("alpha", 1), ("beta", 2)):
        factor = float(node.attrs.get(key, 1.0))
        if factor == 1.0 or len(node.inputs) <= index or not isinstance(node.inputs[index], gs.Constant):
            continue
        old = node.inputs[index]
        budget.spend(old.values.nbytes, old.values.nbytes, node.name)
        node.inputs[index] = gs.Constant(f"{node.name}.{key}.{old.name}", (old.values * factor).astype(old.values.dtype))
        node.attrs[key] = 1.0
