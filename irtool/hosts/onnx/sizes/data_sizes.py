"""Sizes that are data: how many detections a suppression keeps, how many entries are not zero.

No example tells such a size for another one. Of these values only the rank is kept, and those sizes that shape inference
knows whatever the data are; a 1 stands for each of the others. What reads one is a barrier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set

import onnx_graphsurgeon as gs

from irtool.hosts.onnx.files.subgraphs import bodies, captured
from irtool.ir.graph import Graph, Node, Value

PLACEHOLDER = 1
"""Size that stands for one that is data."""
SELECTING = frozenset({"NonMaxSuppression", "NonZero", "Compress", "Unique", "StringSplit", "Tokenizer"})
"""Operators whose results have as many entries as the data say."""
_SIZE_ARGUMENTS: Mapping[str, tuple[int, ...]] = {
    "Reshape": (1,), "Expand": (1,), "Tile": (1,), "ConstantOfShape": (0,), "Slice": (1, 2, 3, 4), "TopK": (1,), "Range": (0, 1, 2),
    "Pad": (1, 3), "Resize": (2, 3), "Upsample": (1,), "OneHot": (1,), "Split": (1,), "Squeeze": (1,), "Unsqueeze": (1,),
    "CenterCropPad": (1,), "MaxUnpool": (2,), "AffineGrid": (1,), "HannWindow": (0,), "HammingWindow": (0,), "BlackmanWindow": (0,),
    "DFT": (1,), "STFT": (1, 3), "MelWeightMatrix": (0, 1),
}  # fmt: skip
"""Inputs that state the sizes of a result, by operator."""


def makes_data_sizes(node: gs.Node, is_constant: Callable[[gs.Tensor], bool]) -> bool:
    """Whether a node's results have sizes that are data though its inputs have none.

    Args:
        node: a host node.
        is_constant: whether a tensor's value does not depend on the data.
    """
    if node.op in SELECTING:
        return True
    for index in _SIZE_ARGUMENTS.get(node.op, ()):
        if len(node.inputs) > index and node.inputs[index].name and not is_constant(node.inputs[index]):
            return True
    if node.op == "Loop" and not _rounds_are_fixed(node, is_constant):
        return True
    return any(_body_makes_sizes(body) for body in bodies(node))


def _rounds_are_fixed(node: gs.Node, is_constant: Callable[[gs.Tensor], bool]) -> bool:
    """Whether a Loop runs as often on all data: a known count, and a condition that its body hands on."""
    if not node.inputs[0].name or not is_constant(node.inputs[0]):
        return False
    (body,) = bodies(node)
    goes_on = body.outputs[0]
    while isinstance(goes_on, gs.Variable) and goes_on.inputs and goes_on.inputs[0].op in ("Identity", "Cast"):
        goes_on = goes_on.inputs[0].inputs[0]
    made = goes_on.inputs[0].op if isinstance(goes_on, gs.Variable) and goes_on.inputs else None
    return made in (None, "Constant")


def _body_makes_sizes(body: gs.Graph) -> bool:
    """Whether something in a body picks by the data. Sizes that a body computes from shapes count as known."""
    for node in body.nodes:
        if node.op in SELECTING or any(_body_makes_sizes(inner) for inner in bodies(node)):
            return True
    return False


def reads(node: gs.Node, outside: Set[str]) -> Iterator[gs.Tensor]:
    """All that a node reads, values that its bodies capture included."""
    yield from (tensor for tensor in node.inputs if tensor.name)
    if bodies(node):
        yield from captured(node, outside)


def instead_of_outputs(graph: Graph, data_sized: Set[str], foreign: Set[str] = frozenset()) -> list[str]:
    """Names of the values to compare two programs by: the outputs, and in the place of those that follow on a size that is
    data what goes into the operators that make such sizes.

    Two right programs round differently, so that one may keep a detection more than the other. What lies behind is the same
    operators with the same parameters in both. Where what goes in is a choice (a mask, an index), its arguments are named.

    Args:
        graph: an ONNX graph.
        data_sized: the names of its values whose sizes are data.
        foreign: the results of operators that cannot be run: what goes into these is compared, too.
    """
    behind, renewed = _behind(graph, data_sized)
    found = [value for value in graph.outputs if value not in behind or value in renewed]
    if len(found) < len(graph.outputs):
        for node in graph.nodes:
            if node.op == "Opaque" and any(value in behind for value in node.outputs):
                found += [value for value in _real_sources(node, behind) if value not in found]
    for node in graph.nodes:
        if any(value.name in foreign for value in node.outputs):
            found += [value for value in _real_sources(node, behind) if value not in found]
    return list(dict.fromkeys(value.name for value in found))


def _behind(graph: Graph, data_sized: Set[str]) -> tuple[set[Value], set[Value]]:
    """The values that follow on a size that is data, and those of them that operators make which may lose channels: of a fixed
    size again, such as an image into which detections are written, or one that is divided by their number.
    """
    behind: set[Value] = set()
    renewed: set[Value] = set()
    for node in graph.nodes:
        if node.op == "Output" or not (any(v in behind for v in node.inputs) or any(v.name in data_sized for v in node.outputs)):
            continue
        others = [value for value in node.inputs if value not in behind and value.dtype is not None and value.dtype.is_floating_point]
        if any(value in renewed for value in node.inputs) or (others and node.op != "Opaque"):
            renewed.update(node.outputs)
        behind.update(node.outputs)
    return behind, renewed


def _real_sources(node: Node, behind: Set[Value]) -> Iterator[Value]:
    """The computed real numbers that a node's inputs come from; values behind sizes that are data left out."""
    waiting, seen = list(reversed(node.inputs)), set()
    while waiting:
        value = waiting.pop()
        if value in seen or value in behind or value.is_param or value.producer is None or value.producer.op in ("Input", "Constant"):
            continue
        seen.add(value)
        if value.dtype is not None and value.dtype.is_floating_point:
            yield value
        else:
            waiting += reversed(value.producer.inputs)
