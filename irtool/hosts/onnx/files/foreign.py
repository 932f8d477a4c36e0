"""Operators that onnxruntime does not run: plug-ins of other engines, extensions whose library is not there.

They are barriers. Their results' types are what the file declares. To run the rest, each result becomes an input of the same
name and type, filled with numbers drawn from its name; what follows on a result of unknown sizes is left out.
"""

from __future__ import annotations

import importlib
import math
import re
import zlib
from collections.abc import Iterator, Mapping
from functools import lru_cache

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto, helper

from irtool.errors import GraphError
from irtool.hosts.onnx.files.limits import bodies_of, names_read
from irtool.hosts.onnx.running.evaluate import Array, Open, check_size, closed
from irtool.hosts.onnx.trial import refusal

LARGEST_STANDINS = 1 << 30
"""Bytes of all the numbers that stand for results of operators that cannot be run."""
_STANDARD = ("", "ai.onnx")
_NO_KERNEL = re.compile(r"Could not find an implementation for (\w+)\(")


def foreign_operators(model: ModelProto) -> frozenset[tuple[str, str]]:
    """The domain and name of each operator of a model that onnxruntime does not have, or cannot run on a CPU."""
    used = {(_domain(node), node.op_type) for node in _nodes(model.graph)}
    known = _known()
    if known is None or not used:
        return frozenset()
    found = {operator for operator in used if operator not in known}
    if any(domain for domain, _ in used - found):
        found |= _without_kernel(model, used, found)
    return frozenset(found)


def _domain(node: NodeProto) -> str:
    return "" if node.domain in _STANDARD else str(node.domain)


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for inner in bodies_of(node):
            yield from _nodes(inner)


@lru_cache(maxsize=1)
def _known() -> frozenset[tuple[str, str]] | None:
    """All operators that onnxruntime has a description of; None without onnxruntime."""
    try:
        schemas = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state").get_all_operator_schema()
    except (ImportError, AttributeError):
        return None
    return frozenset(("" if schema.domain == "ai.onnx" else schema.domain, schema.name) for schema in schemas)


def _without_kernel(model: ModelProto, used: set[tuple[str, str]], found: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Operators that onnxruntime describes, and has no code for on a CPU (NhwcConv, GroupNorm of com.microsoft): it says so."""
    more: set[tuple[str, str]] = set()
    for _ in used:
        trial = ModelProto()
        trial.CopyFrom(model)
        without(trial, frozenset(found | more), {})
        match = _NO_KERNEL.search(refusal(trial))
        named = {operator for operator in used if match is not None and operator[1] == match[1] and operator[0]}
        if not named - more:
            break  # it loads, or there is another fault, which is told when the model is run
        more |= named
    return more


def is_foreign(node: NodeProto, foreign: frozenset[tuple[str, str]]) -> bool:
    """Whether a node, or one inside its bodies, is among the operators that cannot be run."""
    return (_domain(node), node.op_type) in foreign or any(is_foreign(inner, foreign) for body in bodies_of(node) for inner in body.node)


def declared_types(model: ModelProto, names: set[str], sizes: Mapping[str, tuple[int, ...]]) -> dict[str, Open]:
    """Read the sizes that a file states of some values: symbols that inputs have too are resolved by the example's sizes.

    Args:
        model: the description, with inputs, outputs and value_info.
        names: of the values.
        sizes: the example's sizes of each input.
    """
    symbols: dict[str, int] = {}
    for value in model.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, sizes.get(value.name, ()), strict=False):
            if dim.dim_param:
                symbols.setdefault(dim.dim_param, size)
    found: dict[str, Open] = {}
    for value in (*model.graph.value_info, *model.graph.output):
        kind = value.type.tensor_type
        if value.name in names and kind.HasField("shape"):
            found[value.name] = kind.elem_type, tuple(dim.dim_value or symbols.get(dim.dim_param) for dim in kind.shape.dim)
    return found


def kept_descriptions(model: ModelProto, foreign: frozenset[tuple[str, str]]) -> list[ValueInfoProto]:
    """The sizes that a file states of results of such operators, and of what follows on them: nothing else tells them."""
    behind: set[str] = set()
    for node in model.graph.node:
        if is_foreign(node, foreign) or any(name in behind for name in node.input):
            behind.update(name for name in node.output if name)
    return [value for value in model.graph.value_info if value.name in behind]


def without(model: ModelProto, foreign: frozenset[tuple[str, str]], types: Mapping[str, Open]) -> dict[str, Array]:
    """Take operators that cannot be run out of a model, in place, with what needs a result of unknown sizes.

    Args:
        model: the model.
        foreign: such operators.
        types: what is known of their results.

    Returns:
        Numbers for the inputs that stand for their results.

    Raises:
        GraphError: the file states sizes that fit no memory.
    """
    feed = _stand_ins(model, foreign, types)
    gone: set[str] = set()
    kept: list[NodeProto] = []
    for node in model.graph.node:
        if is_foreign(node, foreign):
            gone.update(name for name in node.output if name and name not in feed)
        elif any(name in gone for name in names_read(node)):
            gone.update(name for name in node.output if name)
        else:
            kept.append(node)
    outputs = [value for value in model.graph.output if value.name not in gone]
    inputs = [helper.make_tensor_value_info(name, types[name][0], array.shape) for name, array in feed.items()]
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in kept]
    infos = [ValueInfoProto.FromString(value.SerializeToString()) for value in outputs]
    del model.graph.node[:], model.graph.output[:]
    model.graph.node.extend(nodes)
    model.graph.output.extend(infos)
    model.graph.input.extend(inputs)
    model.graph.ClearField("value_info")
    return feed


def _stand_ins(model: ModelProto, foreign: frozenset[tuple[str, str]], types: Mapping[str, Open]) -> dict[str, Array]:
    """Numbers in the place of those results of foreign operators whose sizes are known. Raises GraphError where they fit no memory."""
    total = 0
    feed: dict[str, Array] = {}
    for node in model.graph.node:
        for name in node.output if is_foreign(node, foreign) else ():
            known = closed(types.get(name))
            if name and known is not None:
                total += _bytes(name, *known)
                if total > LARGEST_STANDINS:
                    what = f"the results of {node.op_type} are stated to take {total:,} bytes"
                    raise GraphError(what, where=name, remedy="Check the file's sizes.")
                feed[name] = _drawn(name, *known)
    return feed


def _bytes(name: str, kind: int, shape: tuple[int, ...]) -> int:
    check_size(shape, name)
    return math.prod(shape) * onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize


def _drawn(name: str, kind: int, shape: tuple[int, ...]) -> Array:
    """Draw numbers that are alike for a name in every run; indices and masks are zeros, which any reader takes."""
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    if not np.issubdtype(dtype, np.floating):
        return np.zeros(shape, dtype)
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(dtype)


def cannot_run(names: list[str], foreign: frozenset[tuple[str, str]]) -> GraphError:
    """Make the error for a value that such an operator keeps from being computed."""
    operators = ", ".join(f"{domain}.{name}" if domain else name for domain, name in sorted(foreign))
    return GraphError(
        f"onnxruntime does not run {operators}, and the file does not state the sizes of what it gives",
        where=names[0],
        remedy="State them in the file (value_info), or leave these values out.",
    )
