"""Cost of a graph: parameters, multiply-accumulates, bytes.

Counted are the operators that multiply and accumulate: convolution, transposed convolution, linear layers, matrix
products, einsum and attention. Biases, normalisation, activations, pooling, resizing and other element-wise work are not.
One MAC is two FLOPs of `torch.utils.flop_counter`, which counts the same operators. An operator that irtool does not know is
run on the meta device under that counter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from torch import Tensor

from irtool.errors import OptionError
from irtool.ir.graph import Graph, Node, Value
from irtool.ir.pictures import html_table
from irtool.ops.spec import spec_of
from irtool.tensor_defaults import plain_tensors


@dataclass(frozen=True, slots=True)
class NodeCost:
    """One line of the table.

    Attributes:
        name: the node.
        op: its operator.
        location: module path or source position.
        shape: the first output's sizes for the example inputs; None if it is not a tensor.
        params: parameters that this node is the first to read, so that the column adds up to the total.
        macs: multiply-accumulates for one sample.
    """

    name: str
    op: str
    location: str
    shape: tuple[int, ...] | None
    params: int
    macs: int


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a graph for its example inputs.

    Attributes:
        params: entries of all parameters that some node reads; a shared one counts once.
        buffers: entries of buffers and constants that some node reads (running statistics, indices), scalars left out.
        macs: multiply-accumulates for one sample: those of the example divided by its batch size, rounded node by node.
        weight_bytes: bytes of `params` and `buffers` in the element types they have.
        activation_bytes: peak bytes of values alive at once for one sample, each value freed after its last use and
            nothing computed in place. An estimate: engines reuse and fuse.
        batch: the batch size that was divided by.
        uncounted: locations of unknown operators that could not be run on the meta device either; `macs` lacks theirs.
        nodes: the table, in the graph's order.
    """

    params: int
    buffers: int
    macs: int
    weight_bytes: int
    activation_bytes: int
    batch: int
    uncounted: tuple[str, ...]
    nodes: tuple[NodeCost, ...]

    def __repr__(self) -> str:
        return f"<Cost: {self.params:,} parameters, {self.macs:,} MACs a sample, {self.weight_bytes:,} bytes of weights>"

    def _repr_html_(self) -> str:
        rows = [(node.location, node.op, node.params, node.macs) for node in self.nodes if node.params or node.macs]
        return html_table(("layer", "op", "parameters", "MACs"), rows, repr(self)[1:-1])

    def text(self, *, every: bool = False) -> str:
        """A table, one line a node that has parameters or MACs (or every node), and the totals.

        Args:
            every: list the nodes that cost nothing as well.
        """
        rows = [("location", "op", "output", "params", "MACs")]
        rows += [(n.location, n.op, _sizes(n.shape), f"{n.params:,}", f"{n.macs:,}") for n in self.nodes if every or n.params or n.macs]
        rows.append(("total", "", "", f"{self.params:,}", f"{self.macs:,}"))
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        lines = [
            "  ".join(
                cell.rjust(width) if column > 2 else cell.ljust(width) for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        lines.append(
            f"{self.buffers:,} buffer entries, {self.weight_bytes:,} bytes of weights, "
            f"{self.activation_bytes:,} bytes of activations at the peak; MACs and activations for one sample"
        )
        if self.uncounted:
            lines.append(f"MACs not counted: {', '.join(self.uncounted)}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the cost as JSON data."""
        return asdict(self)


@plain_tensors()
def cost(graph: Graph, *, batch: int | None = None) -> Cost:
    """Count parameters, multiply-accumulates and bytes.

    Args:
        graph: any graph; the sizes are those of its example inputs.
        batch: samples in the example; by default the size of the first input's first axis.

    Raises:
        OptionError: `batch` is less than 1.
    """
    if batch is not None and batch < 1:
        raise OptionError(f"batch={batch}", remedy="Give the number of samples in the example inputs.")
    samples = batch or next((value.sizes[0] for value in graph.inputs if value.shape), 1) or 1
    owned = _Ownership(graph)
    nodes, uncounted = [], []
    for node in graph.nodes:
        if node.op == "Output":
            continue
        whole = graph.counted_macs(node) if node.op == "Opaque" else macs_of(node)
        if whole is None:
            uncounted.append(node.location)
        macs = round((whole or 0) / samples)
        shape = node.output.shape if node.outputs else None
        nodes.append(NodeCost(node.name, node.op, node.location, shape, owned.claim(node), macs))
    return Cost(
        params=owned.params, buffers=owned.buffers, macs=sum(node.macs for node in nodes), weight_bytes=owned.bytes,
        activation_bytes=round(_peak(graph) / samples), batch=samples, uncounted=tuple(uncounted), nodes=tuple(nodes),
    )  # fmt: skip


def held_by(graph: Graph, node: Node) -> Iterator[tuple[str, str, Tensor]]:
    """The parameters, buffers and constants of a node: (role, qualified name, data).

    Those of the children of a module that was kept whole are among them; the view does not list these.
    """
    seen = set()
    for role, value in node.operands.items():
        if value.data is not None:
            seen.add(value.name)
            yield role, value.name, value.data
    module = getattr(graph, "module", None)
    if module is None or getattr(node.host, "op", None) != "call_module":
        return
    whole = module.get_submodule(str(node.host.target))
    if not any(True for _ in whole.children()):
        return
    for role, tensor in [*whole.named_parameters(), *whole.named_buffers()]:
        name = f"{node.host.target}.{role}"
        if name not in seen and tensor.dim() > 0:
            yield role, name, tensor.detach()


@dataclass(frozen=True, slots=True)
class Held:
    """A parameter, buffer or constant, and whether it counts as a parameter."""

    name: str
    data: Tensor
    trained: bool


def holdings(graph: Graph) -> list[Held]:
    """All that the nodes of a graph hold, each once, as `cost` counts it."""
    owned = _Ownership(graph)
    for node in graph.nodes:
        if node.op != "Output":
            owned.claim(node)
    return owned.held


class _Ownership:
    """Assigns each parameter to the node that reads it first."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.params = self.buffers = self.bytes = 0
        module = getattr(graph, "module", None)
        self._trainable = dict(module.named_parameters(remove_duplicate=False)) if module is not None else None
        self._claimed: set[int | str] = set()
        self.held: list[Held] = []

    def claim(self, node: Node) -> int:
        """Count what the node is the first to read; the number of parameters among it."""
        found = 0
        for role, name, data in held_by(self.graph, node):
            parameter = self._trainable.get(name) if self._trainable is not None else None
            key = name if parameter is None else id(parameter)
            if key in self._claimed:
                continue
            self._claimed.add(key)
            self.bytes += data.numel() * data.element_size()
            trained = parameter is not None or (self._trainable is None and _is_weight(node, role, data))
            self.held.append(Held(name, data, trained))
            if trained:
                found += data.numel()
            else:
                self.buffers += data.numel()
        self.params += found
        return found


def _is_weight(node: Node, role: str, data: Tensor) -> bool:
    """Whether a constant of an ONNX file, which does not tell, was trained: floats, but no statistics; integers that have a scale."""
    whole = role.removesuffix("_scale")
    if whole != role and whole in node.operands:
        return False
    return f"{role}_scale" in node.operands or (data.is_floating_point() and role not in ("running_mean", "running_var"))


def _peak(graph: Graph) -> int:
    """Peak bytes of the values between nodes when the graph runs in its order."""
    last = {value: index for index, node in enumerate(graph.nodes) for value in (*node.outputs, *node.inputs) if not value.is_param}
    ends: dict[int, list[Value]] = {}
    for value, index in last.items():
        ends.setdefault(index, []).append(value)
    alive = peak = 0
    for index, node in enumerate(graph.nodes):
        alive += sum(map(_bytes, node.outputs))
        peak = max(peak, alive)
        alive -= sum(map(_bytes, ends.get(index, ())))
    return peak


def _bytes(value: Value) -> int:
    return prod(value.shape) * value.dtype.itemsize if value.shape is not None and value.dtype is not None else 0


def macs_of(node: Node) -> int:
    """Multiply-accumulates of a node of a known operator, for the whole example batch."""
    return sum(prod(value.sizes[axis] for value, axis in product) for product in spec_of(node.op).products(node))


def _sizes(shape: tuple[int, ...] | None) -> str:
    return "x".join(map(str, shape)) if shape is not None else "?"
