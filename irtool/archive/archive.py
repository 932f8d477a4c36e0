"""Save and load."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.graph import _PyTreeCodeGen
from torch.utils import _pytree as pytree

from irtool.archive import container
from irtool.archive.allowed import NotData, Refused, check_identifier
from irtool.archive.container import DAMAGED, SAVE_AGAIN
from irtool.archive.functions import plain_functions
from irtool.archive.limits import check_header
from irtool.archive.program import decode_program, encode_program
from irtool.archive.replay import replay
from irtool.archive.state import (
    assign,
    decode_modules,
    decode_tensors,
    encode_modules,
    encode_tensors,
    named_tensors,
    set_training_flags,
    training_flags,
)
from irtool.archive.structures import plain_results
from irtool.archive.trial import Trial, check_program
from irtool.archive.values import decode_inputs, encode_inputs
from irtool.atomic_files import check_nesting
from irtool.errors import FileError, GraphError, IrtoolError, OptionError
from irtool.hosts.torch.graph import FxGraph
from irtool.hosts.torch.tracing.trace import trace
from irtool.tensor_defaults import plain_tensors

_CLASS_REMEDY = "Load it into the class: irtool.load(path, model=YourModel())."


@dataclass(frozen=True)
class ArchiveInfo:
    """The description that a file has of itself.

    Attributes:
        torch: the version that wrote it.
        tracer: which tracer made the graph.
        history: the steps from the traced model to the saved graph.
        example_inputs: positional inputs of the saved shapes and types; values are drawn at random.
        preprocessing, metadata: what was given to `save`.
        incomplete: why the file needs the user's class to load; None if it stands alone.
    """

    torch: str
    tracer: str
    history: tuple[Mapping[str, Any], ...]
    example_inputs: tuple[Any, ...]
    preprocessing: dict[str, Any] | None
    metadata: dict[str, Any] | None
    incomplete: str | None


@plain_tensors()
def save(
    graph: FxGraph,
    path: str | os.PathLike[str],
    *,
    preprocessing: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a graph: program, weights, history, flags. All of the file appears, or none.

    A program that calls a class or function of the user's own is saved too, with a warning: such a file loads into an
    instance of the class only. A result in a dataclass comes back as a dict of its fields that are not None, and one in a
    named tuple as a tuple, since the file names no class; loaded into an instance of the model it is of its own class again.

    Args:
        graph: what to save.
        path: the file, by custom `*.safetensors`.
        preprocessing: how images become inputs (mean, std, size ...), JSON data; `read_info` returns it.
        metadata: anything else that is JSON data.

    Raises:
        FileError: the place is not writable, or the graph's tensors or example inputs have no form as data.
        OptionError: `preprocessing` or `metadata` is not JSON data; or an ONNX graph, which is kept as an .onnx file.
    """
    if not isinstance(graph, FxGraph):
        raise OptionError(f"a {type(graph).__name__} is not a torch graph", where="save", remedy="Write an ONNX graph with save_onnx.")
    graph = plain_functions(plain_results(graph))
    try:
        table, data = encode_tensors(graph.module)
        inputs = encode_inputs(graph.example_inputs)
    except NotData as error:
        raise FileError(
            f"cannot be saved: {error}", where=str(path), remedy="Use dense tensors, and tuples, lists and dicts of them as inputs."
        ) from error
    header = {
        "torch": str(torch.__version__), "tracer": graph.tracer, "history": list(graph.history), "inputs": inputs, "tensors": table,
        "training": training_flags(graph.module), "preprocessing": _json("preprocessing", preprocessing), "metadata": _json("metadata", metadata),
    }  # fmt: skip
    try:
        modules = encode_modules(graph.module)
        program = encode_program(graph.module, {*modules, *table})
        check_program(graph)
        header |= {"modules": modules, "program": program, "incomplete": None}
    except NotData as error:
        header |= {"modules": None, "program": None, "incomplete": str(error)}
        warnings.warn(f"{path}: does not stand alone: {error}. {_CLASS_REMEDY}", stacklevel=2)
    container.write(path, header, data)


def _json(name: str, value: Mapping[str, Any] | None) -> Any:
    try:
        found = json.loads(json.dumps(None if value is None else dict(value), allow_nan=False))
        check_nesting(found)
        return found
    except (TypeError, ValueError, RecursionError) as error:
        raise OptionError(f"is not JSON data ({error})", where=name, remedy="Pass a dict of numbers, strings, lists and dicts.") from error


@plain_tensors()
def load(path: str | os.PathLike[str], model: nn.Module | FxGraph | None = None) -> FxGraph:
    """Read what `save` wrote, on the CPU; outputs are bit-equal to those of the graph that was saved.

    Args:
        path: the file. It may come from anyone: it calls operators of a closed table only, and nothing is imported. Loading takes
            at most three times the file's size and 2 GiB of memory; what asks for more is refused.
        model: an untouched instance of the class that was traced (or its graph, if it was traced with `leaf=`). The history
            is replayed on it; it is not changed itself. Without it the file alone gives the graph.

    Raises:
        FileError: the file is missing, truncated, foreign, newer, unsafe, does not stand alone, or belongs to another model.
        PlanError: the model is not the one whose channels were removed.
        TraceError: the model cannot be traced.
    """
    header, data = container.read(path)
    with _guarded(path):
        check_header(header)
        tensors = decode_tensors(header["tensors"], data)
        graph = _alone(path, header, tensors) if model is None else _into(path, header, tensors, model)
        set_training_flags(graph.module, header["training"])
    return graph


def read_info(path: str | os.PathLike[str]) -> ArchiveInfo:
    """Read the description that a file has of itself, without its weights. Raises FileError as `load` does."""
    header = container.read_header(path)
    with _guarded(path):
        check_header(header)
        return ArchiveInfo(
            header["torch"], header["tracer"], tuple(header["history"]), tuple(decode_inputs(header["inputs"])), header["preprocessing"],
            header["metadata"], header["incomplete"],
        )  # fmt: skip


@contextmanager
def _guarded(path: str | os.PathLike[str]) -> Iterator[None]:
    """A file that was changed by hand fails with one line, wherever it does."""
    try:
        yield
    except Refused as error:
        raise FileError(
            f"refused: it {error}", where=str(path), remedy="Do not use this file, or load it into your class: load(path, model=...)."
        ) from error
    except IrtoolError:
        raise
    except Exception as error:  # what such a file can provoke in torch and fx has no list
        text = next(iter(str(error).strip().splitlines()), "")
        raise FileError(f"{DAMAGED} ({type(error).__name__}: {text[:120]})", where=str(path), remedy=SAVE_AGAIN) from error


def _alone(path: str | os.PathLike[str], header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> FxGraph:
    if header["program"] is None:
        raise FileError(f"does not stand alone: {header['incomplete']}", where=str(path), remedy=_CLASS_REMEDY)
    names = {*header["modules"], *header["tensors"]}
    module = fx.GraphModule({}, fx.Graph(), check_identifier(header["program"]["name"], Refused))
    inputs = decode_inputs(header["inputs"])
    try:
        decode_modules(header["modules"], module)
        assign(module, header["tensors"], tensors)
        module.graph = decode_program(header["program"], names)
        _check_nesting(module.graph, inputs)
        Trial(module, inputs)
    except GraphError as error:
        raise FileError(f"{DAMAGED} ({error.where}: {error.what})", where=str(path), remedy=SAVE_AGAIN) from error
    return FxGraph(module, inputs, tracer=header["tracer"], history=header["history"])


def _check_nesting(graph: fx.Graph, inputs: tuple[Any, ...]) -> None:
    """The inputs of an exported program are nested as its arguments, and what its nodes read are as many. Raises GraphError."""
    if not isinstance(graph._codegen, _PyTreeCodeGen):
        return
    info = graph._codegen.pytree_info
    read = sum(node.op == "placeholder" for node in graph.nodes)
    forms: tuple[Any, ...] = (inputs, (inputs, {}))  # arguments by position, and torch.export's pair of these and of those by name
    nested = any(info.in_spec == pytree.tree_structure(form) for form in forms)
    if not nested or info.in_spec.num_leaves != read or len(info.orig_args) != len(inputs):
        raise GraphError("are nested in another way than the program's", where="the example inputs", remedy="Save it again.")


def _into(path: str | os.PathLike[str], header: Mapping[str, Any], tensors: Mapping[str, Tensor], model: nn.Module | FxGraph) -> FxGraph:
    traced = model if isinstance(model, FxGraph) else trace(model, decode_inputs(header["inputs"]))
    graph = replay(traced, header["history"])
    have = {name: (kind, tuple(tensor.shape)) for name, kind, tensor in named_tensors(graph.module)}
    want = {name: (header["tensors"][name]["kind"], tuple(tensor.shape)) for name, tensor in tensors.items()}
    odd = [name for name in (*want, *have) if want.get(name) != have.get(name)]
    if odd:
        there, here = (_describe(table.get(odd[0])) for table in (want, have))
        more = f" (and {len(set(odd)) - 1} more)" if len(set(odd)) > 1 else ""
        remedy = "Pass an untouched instance of the class that was saved, made with the same arguments."
        raise FileError(
            f"belongs to another model: {odd[0]} is {there} in the file and {here} in the model{more}", where=str(path), remedy=remedy
        )
    assign(graph.module, header["tensors"], tensors)
    graph.refresh()
    return graph


def _describe(entry: tuple[str, tuple[int, ...]] | None) -> str:
    return "absent" if entry is None else f"{'a ' + entry[0] + ' of '}{'x'.join(map(str, entry[1])) or 'no axes'}"
