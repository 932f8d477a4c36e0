"""Reading an .onnx file as a graph, and writing a graph as one."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs
from onnx import ModelProto, inliner

from irtool.errors import FileError, GraphError, IrtoolError, OptionError
from irtool.hosts.onnx.files.file import read_repaired, stored_bytes, write_model
from irtool.hosts.onnx.files.foreign import foreign_operators, kept_descriptions
from irtool.hosts.onnx.files.given import Given, dense_initialisers, set_inputs
from irtool.hosts.onnx.files.limits import check_extent
from irtool.hosts.onnx.files.normalize import normalize
from irtool.hosts.onnx.files.repair import declare_outputs
from irtool.hosts.onnx.files.sequences import axis_sizes
from irtool.hosts.onnx.graph import OnnxGraph
from irtool.hosts.onnx.running.evaluate import check_size
from irtool.tensor_defaults import plain_tensors

gs.logger.G_LOGGER.severity = gs.logger.G_LOGGER.ERROR  # it prints of types that numpy lacks, which irtool reads itself

LARGEST_INPUTS = 1 << 30
"""Bytes of all inputs of the example together."""
FREE = 64
"""Size of a free axis other than the first in the example, unless the caller says otherwise."""


Sizes = Mapping[str, Sequence[int | None]] | Sequence[Sequence[int | None]]
"""Shapes of inputs, by name or in order."""


_LOG = logging.getLogger(__name__)


@plain_tensors()
def load_onnx(path: str | os.PathLike[str], sizes: Sizes | None = None, values: Given | None = None) -> OnnxGraph:
    """Read an .onnx file as a graph.

    Args:
        path: the file; weights beside it are read too, weights outside its folder never.
        sizes: a shape for each input with free axes that the defaults do not suit, by name or in the file's order; None in a
            shape is the default of that axis: the file's size, or where that is free 1 for the first axis and 64 for others.
        values: numbers for inputs by name, such as a sample rate: such an input becomes a constant, and a branch that hangs on it
            takes the place of its If.

    Raises:
        FileError: the file is missing, malformed, of an unknown operator set, or unsafe.
        OptionError: `sizes` or `values` names an input that does not exist, or contradicts the file.
        GraphError: the model does not fit the sizes.
    """
    model, repaired = read_repaired(path)
    try:
        graph = from_model(model, sizes, values)
        graph.notes = (*repaired, *graph.notes)
        _LOG.info("%s was read: %d nodes", path, len(graph.nodes))
        return graph
    except IrtoolError as error:
        where = f"{path}: {error.where}" if error.where else str(path)
        raise type(error)(error.what, where=where, remedy=error.remedy) from error
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RuntimeError, OverflowError, MemoryError) as error:
        # A malformed file can go wrong in any of onnx's parts; what a sound file does wrong here is a bug, and says so.
        text = " ".join(str(error).split())[:160]
        raise FileError(
            f"cannot be read ({type(error).__name__}: {text})", where=str(path), remedy="Run onnx.checker; if it passes, report this file."
        ) from error


def from_model(model: ModelProto, sizes: Sizes | None = None, values: Given | None = None) -> OnnxGraph:
    """Read a model in memory; it is not changed."""
    for value in (*model.graph.input, *model.graph.output):
        if value.type.WhichOneof("value") not in ("tensor_type", None):
            raise GraphError(
                "an input or output that is no tensor", where=value.name, remedy="Export the part that takes and gives tensors."
            )
    check_extent(model, "the model")
    if model.functions:
        model = inliner.inline_local_functions(model)
    given: list[str] = []
    if values or model.graph.sparse_initializer:
        model = _copy(model)
        given = set_inputs(model, values or {})
        dense_initialisers(model)
    foreign = foreign_operators(model)
    host = gs.import_onnx(model)
    filled = normalize(host, stored_bytes(model), axis_sizes(model))
    header = ModelProto()
    header.CopyFrom(
        ModelProto(ir_version=model.ir_version, domain=model.domain, model_version=model.model_version, doc_string=model.doc_string)
    )
    header.producer_name, header.producer_version = model.producer_name, model.producer_version
    header.metadata_props.extend(model.metadata_props)
    header.graph.input.extend(model.graph.input)
    header.graph.output.extend(model.graph.output)
    header.graph.value_info.extend(kept_descriptions(model, foreign))
    graph = OnnxGraph(host, _concrete(host, _by_name(host, sizes or {})), header, filled=filled, foreign=foreign, apart=True)
    graph.operators = len(model.graph.node)
    known = {value.name: graph.types[value.name] for value in graph.outputs if value.name in graph.types}
    graph.notes = (*given, *declare_outputs(model, header, known), *_notes(foreign))
    return graph


def _copy(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


def _notes(foreign: frozenset[tuple[str, str]]) -> list[str]:
    names = ", ".join(f"{domain}.{name}" if domain else name for domain, name in sorted(foreign))
    what = "the rest is compared by what goes into them, and neither timed nor scored"
    return [f"onnxruntime does not run {names}: {what}"] if foreign else []


def _by_name(host: gs.Graph, sizes: Sizes) -> dict[str, Sequence[int | None]]:
    if isinstance(sizes, Mapping):
        return dict(sizes)
    names = [tensor.name for tensor in host.inputs]
    if len(sizes) > len(names):
        raise OptionError(
            f"{len(sizes)} sizes for {len(names)} input{'s' * (len(names) != 1)}",
            where="sizes",
            remedy=f"The inputs are {', '.join(names)}.",
        )
    return dict(zip(names, sizes, strict=False))


def _is_numeric(dtype: np.dtype) -> bool:
    return np.issubdtype(dtype, np.number) or dtype == np.bool_


def _concrete(host: gs.Graph, given: dict[str, Sequence[int | None]]) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for tensor in host.inputs:
        if tensor.dtype is None or tensor.shape is None or not _is_numeric(np.dtype(tensor.dtype)):
            raise GraphError(
                "an input that is no tensor of numbers with a known rank", where=tensor.name, remedy="Export it with a typed input."
            )
        free = [not isinstance(size, int) or size <= 0 for size in tensor.shape]
        default = [
            (1 if axis == 0 else FREE) if is_free else size for axis, (is_free, size) in enumerate(zip(free, tensor.shape, strict=True))
        ]
        asked = tuple(given.pop(tensor.name, default))
        wanted = tuple(int(known if size is None else size) for size, known in zip(asked, default, strict=False))
        if (
            len(asked) != len(default)
            or any(not f and a != b for f, a, b in zip(free, wanted, default, strict=True))
            or min(wanted, default=1) < 1
        ):
            raise OptionError(
                f"sizes {asked} for an input of {tuple(tensor.shape)}", where=tensor.name, remedy="Give a size for each free axis."
            )
        found[tensor.name] = wanted
    _check_inputs(host, found)
    if given:
        raise OptionError(f"no input is called {next(iter(given))!r}", where="sizes", remedy=f"The inputs are {', '.join(found)}.")
    return found


def _check_inputs(host: gs.Graph, sizes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse inputs that fit no memory together: each is made once, for the example. Raises GraphError."""
    for name, shape in sizes.items():
        check_size(shape, name)
    total = sum(math.prod(sizes[tensor.name]) * np.dtype(tensor.dtype).itemsize for tensor in host.inputs)
    if total > LARGEST_INPUTS:
        raise GraphError(
            f"its inputs take {total:,} bytes: irtool makes at most {LARGEST_INPUTS:,}",
            where=host.inputs[0].name,
            remedy="Give smaller example sizes.",
        )


@plain_tensors()
def save_onnx(graph: OnnxGraph, path: str | os.PathLike[str]) -> int:
    """Write a graph as an .onnx file that passes onnx.checker in full. Returns the bytes written.

    Raises:
        FileError: the file cannot be written, or the graph does not pass.
        OptionError: a torch graph, which must be exported.
    """
    if not isinstance(graph, OnnxGraph):
        raise OptionError(
            f"a {type(graph).__name__} is not an ONNX graph", where="save_onnx", remedy="Export a torch graph with export_onnx."
        )
    return write_model(graph.proto, path)
