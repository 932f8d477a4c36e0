"""The ONNX host: an onnx-graphsurgeon graph behind the view, run, copied, edited."""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import torch
from onnx import ModelProto

from irtool.errors import GraphError, OptionError
from irtool.hosts.onnx.edits import OnnxEdits
from irtool.hosts.onnx.parameters import array_of, scalars_of
from irtool.hosts.onnx.reader import Fix, Reader
from irtool.hosts.onnx.running.evaluate import Array, Seen, proto_of, run_node
from irtool.hosts.onnx.running.frontier import OnnxFrontier
from irtool.hosts.onnx.running.hooked import run_hooked
from irtool.hosts.onnx.running.interpreter import described
from irtool.hosts.onnx.running.randomness import draws
from irtool.hosts.onnx.running.runnable import Runnable
from irtool.hosts.onnx.running.widths import other_widths, put_float32, stating_float32
from irtool.hosts.onnx.sizes.data_sizes import instead_of_outputs
from irtool.hosts.onnx.sizes.write_attrs import complete, resized
from irtool.ir import frontier
from irtool.ir.analyses import Analyses, once
from irtool.ir.graph import Graph, Node, Value
from irtool.ir.hooks import Hook
from irtool.ir.sizes import Sizes
from irtool.nests import tensors_in


class OnnxGraph(OnnxEdits):
    """A `Graph` over an onnx-graphsurgeon graph.

    Args:
        host: the program. It is shared, not copied; passes copy before they edit.
        sizes: a concrete shape for each input.
        header: the file's own description: inputs and outputs with their free axes, metadata, producer.
        filled: constants that came as one number, repeated; they are written so again where they still are.
        selects: the indices of channel selections that passes inserted (Gather), by name: passes own them.
        scalars: constants of one entry. They are arguments of elementwise operators, and stay so after slicing.
        empty: the types of parameters whose data is still to come, by name.
        history: the steps (JSON data) that made this graph out of the file's.
        fix: called before each host node is read; it may change the node's inputs.
        apart: whether nobody knows yet what the program does when it is run: if it must be, then in a process of its own.
        foreign: the operators (domain, name) that onnxruntime does not run.
        notes: what was repaired in the file, or must be known of it, a line each.

    Raises:
        GraphError: the program does not fit the example's sizes.
    """

    def __init__(self, host: gs.Graph, sizes: Mapping[str, tuple[int, ...]], header: ModelProto, *, filled: frozenset[str] = frozenset(),
                 selects: frozenset[str] = frozenset(), scalars: frozenset[str] | None = None, empty: frozenset[str] = frozenset(), history: Sequence[Mapping[str, Any]] = (),
                 fix: Fix | None = None, apart: bool = False, foreign: frozenset[tuple[str, str]] = frozenset(), notes: Sequence[str] = ()) -> None:  # fmt: skip
        self.host, self.sizes, self.header, self.filled, self.empty = host, dict(sizes), header, filled, set(empty)
        self.selects, self._foreign, self.notes = set(selects), foreign, tuple(notes)
        self.history: tuple[Mapping[str, Any], ...] = tuple(history)
        self.scalars = scalars_of(host) if scalars is None else scalars
        self.operators = len(host.nodes)
        """Number of operators in the file; of a graph that a pass made, in its program."""
        self._apart = apart
        self.analyses = Analyses()
        self.refresh(fix)
        self._apart = False

    def refresh(self, fix: Fix | None = None) -> None:
        """Read the host again after an edit."""
        self.analyses.clear()
        self._begin()
        self._runnable = Runnable(self.host, self.header, self.sizes, self._foreign)
        self.foreign, declared = self._runnable.foreign, self._runnable.declared
        reader = self._reader = Reader(self.host, self.sizes, self.scalars, self.selects, self.empty, self._observe, fix, declared)
        self.nodes, self.inputs, self.outputs, self.params = tuple(reader.nodes), tuple(reader.inputs), tuple(reader.outputs), reader.params
        self.known, self._values, self.opset = reader.known, reader.values, reader.opset
        self.data_sized = frozenset(reader.data_sized)
        self.types = reader.output_types()
        self._quantised = {node.inputs[0].name: node for node in reader.quantised.values()}
        # A mask means something where it is true: of zeros nothing would come through.
        self.example_inputs = tuple(torch.full(v.sizes, v.dtype == torch.bool, dtype=v.dtype) for v in self.inputs)
        self.tracer = f"ONNX, opset {self.opset}"

    def clone(self) -> OnnxGraph:
        """A copy; the arrays of parameters are shared, since an edit puts a new one in their place."""
        return self.with_host(self.host.copy())

    def __reduce__(self) -> Any:
        state = {"filled": self.filled, "selects": frozenset(self.selects), "scalars": self.scalars, "history": self.history,
                 "foreign": self._foreign, "notes": self.notes}  # fmt: skip
        return _unpickled, (self.proto.SerializeToString(), self.header.SerializeToString(), self.sizes, state)

    def at(self, sizes: Mapping[str, tuple[int, ...]]) -> OnnxGraph:
        """Read the same program for other example sizes."""
        return OnnxGraph(self.host.copy(), sizes, self.header, filled=self.filled, scalars=self.scalars, history=self.history,
                         foreign=self._foreign, notes=self.notes)  # fmt: skip

    def read_on(self, inputs: Sequence[Any]) -> OnnxGraph:
        """Read the same program on inputs of other sizes; see `Graph.read_on`.

        Raises:
            IrtoolError: the program does not take them.
        """
        sizes = {value.name: tuple(x.shape) for value, x in zip(self.inputs, tensors_in(tuple(inputs)), strict=True)}
        return self if all(sizes[value.name] == value.shape for value in self.inputs) else self.at(sizes)

    def with_host(self, host: gs.Graph, *, empty: frozenset[str] = frozenset(), fix: Fix | None = None) -> OnnxGraph:
        """Return the same description over another program."""
        return OnnxGraph(
            host,
            self.sizes,
            self.header,
            filled=self.filled,
            selects=frozenset(self.selects),
            scalars=self.scalars,
            empty=empty,
            history=self.history,
            fix=fix,
            foreign=self._foreign,
            notes=self.notes,
        )

    def constant(self, value: Value) -> torch.Tensor | None:
        """Return the entries of a value that no input can change; see `Graph.constant`."""
        known = self.known.get(value.name) if value.data is None else None
        return value.data if known is None else torch.from_numpy(np.asarray(known))

    def widened(self) -> OnnxGraph:
        """A copy in float32, the type that onnxruntime has all operators in; the graph itself if it computes in nothing else."""
        if not other_widths(self.host):
            return self
        host = self.host.copy()
        put_float32(host)
        return OnnxGraph(host, self.sizes, stating_float32(self.header), filled=self.filled, selects=frozenset(self.selects),
                         scalars=self.scalars, history=self.history, foreign=self._foreign, notes=self.notes)  # fmt: skip

    def drawing(self) -> Sequence[Node]:
        """The nodes that draw random numbers each time."""
        return [node for node in self.nodes if node.host is not None and draws(node.host)]

    def observe_inputs(self, batch: frontier.Batch, nodes: Sequence[Node], seen: frontier.Seen) -> None:
        """Run the program on one batch, and call `seen` with the name and first input of each node."""
        values = list(dict.fromkeys(node.input.name for node in nodes))
        found = dict(zip(values, self.run(*batch, values=values), strict=True)) if values else {}
        for node in nodes:
            seen(node.name, found[node.input.name])

    def evaluate(self, node: Node, values: Mapping[Value, torch.Tensor]) -> Sequence[torch.Tensor]:
        """Run one node's own operator on other tensors, by onnx's reference evaluator. Used on labels."""
        inputs: dict[str, Array] = {}
        double = any(value.dtype == torch.float64 for value in values.values())
        for tensor in node.host.inputs:
            if not tensor.name:
                continue
            value = self.params.get(tensor.name) if isinstance(tensor, gs.Constant) else self._values.get(tensor.name)
            if value is not None and value in values:
                inputs[tensor.name] = values[value].numpy()
            else:
                constant = np.asarray(tensor.values) if isinstance(tensor, gs.Constant) else self.known[tensor.name]
                inputs[tensor.name] = constant.astype(np.float64) if double and constant.dtype.kind == "f" else constant
        try:
            with np.errstate(all="ignore"):  # an unknown mean is NaN on purpose
                results = run_node(proto_of(node.host), inputs, self.opset)
        except Exception as error:  # whatever the evaluator raises on sizes that do not fit
            text = " ".join(str(error).split())[:160]
            raise GraphError(
                f"{node.callee} cannot be run ({text})", where=node.location, remedy="Check the model with onnx.checker."
            ) from error
        return [torch.from_numpy(np.asarray(found, order="C")) for found in results]

    @property
    def proto(self) -> ModelProto:
        """The graph as an ONNX model: inputs, outputs, free axes, metadata and producer as in the file it came from."""
        return described(self.host, self.header, self.filled)

    def run(self, *inputs: torch.Tensor, values: Sequence[str] = ()) -> tuple[torch.Tensor, ...]:
        """Run the graph in onnxruntime. Returns the outputs, or the host tensors named in `values`.

        Raises:
            GraphError: onnxruntime is absent, or refuses the model or the inputs.
        """
        feed = {tensor.name: array_of(data) for tensor, data in zip(self.host.inputs, inputs, strict=True)}
        names = list(values) or [value.name for value in self.outputs]
        found = self._runnable.run(self.proto, feed, names)
        return tuple(torch.from_numpy(np.array(found[name])) for name in names)

    def run_as(self, inputs: Sequence[Any], dtype: torch.dtype | None = None) -> Any:
        """Run the graph in onnxruntime; see `Graph.run_as`.

        Raises:
            OptionError: a type: an ONNX graph states its own.
        """
        if dtype is not None:
            raise OptionError(f"an ONNX graph computes in the types that it states, not in {dtype}", remedy="Leave dtype out.")
        return self.run(*tensors_in(tuple(inputs)))

    def run_nodes(
        self, inputs: Sequence[Any], names: Collection[str] | None = None, dtype: torch.dtype | None = None
    ) -> Generator[tuple[Node, list[torch.Tensor]], None, Any]:
        """Run the graph once in onnxruntime, and yield each node with the tensors that it gave; see `Graph.run_nodes`.

        Nodes whose results onnxruntime cannot give are left out. What is returned is what programs are compared by: see `compared`.
        """
        if dtype is not None:
            raise OptionError(f"an ONNX graph computes in the types that it states, not in {dtype}", remedy="Leave dtype out.")
        shown = [node for node in self.nodes if node.host is not None and (names is None or node.name in names)]
        able = set(self.runnable([value.name for node in shown for value in node.outputs]))
        wanted = [value.name for node in shown for value in node.outputs if value.name in able]
        ends = self.compared()
        every = list(dict.fromkeys([*ends, *wanted]))
        found = dict(zip(every, self.run(*tensors_in(tuple(inputs)), values=every), strict=True))
        for node in shown:
            given = [found[value.name] for value in node.outputs if value.name in able]
            if given:
                yield node, given
        return tuple(found[name] for name in ends)

    def run_hooked(self, inputs: Sequence[Any], hook: Hook, names: Sequence[str] = ()) -> list[torch.Tensor]:
        """Run the graph node by node in onnxruntime, with a hook in the place of each; see `Graph.run_hooked`."""
        arrays = tensors_in(tuple(inputs))
        sizes = {tensor.name: tuple(x.shape) for tensor, x in zip(self.host.inputs, arrays, strict=True)}
        return run_hooked(self, arrays, hook, names or self.compared(), *self._runnable.given(self.proto, sizes))

    def values(self, inputs: Sequence[Any], names: Sequence[str]) -> list[torch.Tensor]:
        """Run the graph in onnxruntime, and return values inside, by name."""
        return list(self.run(*tensors_in(tuple(inputs)), values=names)) if names else []

    def layer(self, node: Node, x: torch.Tensor) -> torch.Tensor:
        """Compute a layer for another input, in onnxruntime and the layer's own type; returned in float64."""
        return OnnxFrontier(self, [], []).output(node, x.to(node.input.dtype or torch.float32)).double()

    def like(self, other: Graph) -> OnnxGraph:
        """Read the same program at another graph's example sizes, where its free axes allow that."""
        sizes = [value.shape for value in other.inputs]
        if len(sizes) != len(self.inputs) or sizes == [value.shape for value in self.inputs]:
            return self
        for shape, declared in zip(sizes, self.header.graph.input, strict=True):
            dims = declared.type.tensor_type.shape.dim
            if shape is None or len(dims) != len(shape) or any(d.dim_value not in (0, size) for d, size in zip(dims, shape, strict=True)):
                return self
        return self.at({value.name: shape for value, shape in zip(self.inputs, sizes, strict=True) if shape is not None})

    def resized(self, shapes: Mapping[str, tuple[int, ...]], sizes: Sizes) -> tuple[OnnxGraph, list[str]]:
        """A copy for parameters of other shapes; see `Graph.resized`."""
        return resized(self, shapes, sizes)

    def complete(self, source: Graph) -> None:
        """Fill in what no node reads."""
        assert isinstance(source, OnnxGraph)
        complete(source, self)

    def runs_on(self, *inputs: torch.Tensor) -> bool:
        """Whether the program runs on inputs of these sizes, as far as onnxruntime has its operators."""
        try:
            self.run(*inputs, values=self.compared())
        except (RuntimeError, ValueError, AssertionError, GraphError):
            return False
        return True

    def runnable(self, names: Sequence[str]) -> list[str]:
        """Those of some values that `run` can give: not what follows on an operator that onnxruntime does not have."""
        return self._runnable.left(self.proto, names) if self.foreign else list(names)

    def behind_foreign(self) -> set[str]:
        """The names of the values that hang on an operator which onnxruntime does not have."""
        return self._runnable.behind()

    def observe(self, batch: frontier.Batch, names: Collection[str], seen: frontier.Seen) -> None:
        """Run the program on one batch, and call `seen` with the name and output of each node named."""
        observed = [node for node in self.nodes if node.name in names]
        values = self.run(*batch, values=[node.output.name for node in observed]) if observed else []  # no names would mean the outputs
        for node, value in zip(observed, values, strict=True):
            seen(node.name, value)

    def side_by_side(self, batches: Sequence[frontier.Batch], stops: Sequence[frontier.Stop]) -> OnnxFrontier:
        """Run the program on several batches at once, stopping before some nodes."""
        return OnnxFrontier(self, batches, stops)

    def _observe(self, names: list[str]) -> Mapping[str, Seen]:
        """Types of the example's values by running the whole model on ones, parameters that are still empty included."""
        return self._runnable.observe(self.proto, names, apart=self._apart)

    def compared(self) -> list[str]:
        """The values by which this graph and another form of it are compared: its outputs, as far as no size of theirs is data,
        and what goes into operators that onnxruntime does not run.
        """
        return _compared(self)

    def hidden_outputs(self) -> tuple[str, ...]:
        """The outputs that are not among `compared`."""
        return tuple(dict.fromkeys(value.name for value in self.outputs if value.name not in self.compared()))

    def real(self, name: str) -> torch.Tensor | None:
        """A parameter in real numbers: a quantised weight is (integers - zero point) * scale."""
        node = self._quantised.get(name)
        if node is None:
            return super().real(name)
        data, scale, *rest = (torch.from_numpy(np.array(tensor.values)).double() for tensor in node.inputs if tensor.name)
        if scale.numel() > 1:
            shape = [-1 if axis == node.attrs.get("axis", 1) % data.dim() else 1 for axis in range(data.dim())]
            scale, rest = scale.reshape(shape), [zero.reshape(shape) for zero in rest]
        return (data - rest[0] if rest else data) * scale

    def program_size(self) -> int:
        """The number of nodes of the ONNX graph."""
        return len(self.host.nodes)

    def paths(self) -> list[str]:
        """Names by which a user may speak of parts of the model: node names and the scopes before their slashes."""
        found = dict.fromkeys(node.name for node in self.nodes)
        for name in list(found):
            found.update(dict.fromkeys(str(parent) for parent in Path(name).parents if str(parent) not in (".", "/")))
        return list(found)


@once
def _compared(graph: OnnxGraph) -> list[str]:
    return instead_of_outputs(graph, graph.data_sized, frozenset(graph._runnable.declared))


def _unpickled(program: bytes, header: bytes, sizes: Mapping[str, tuple[int, ...]], state: dict[str, Any]) -> OnnxGraph:
    """A graph from what `OnnxGraph.__reduce__` gave."""
    return OnnxGraph(gs.import_onnx(ModelProto.FromString(program)), sizes, ModelProto.FromString(header), **state)
