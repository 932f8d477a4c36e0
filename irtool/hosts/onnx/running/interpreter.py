"""An onnx-graphsurgeon graph as an ONNX model again, and running a model in onnxruntime."""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import ModelProto, TensorProto, helper, numpy_helper

from irtool.atomic_files import scratch_folder
from irtool.errors import GraphError
from irtool.hosts.onnx.files.file import is_large, write_draft
from irtool.hosts.onnx.files.normalize import LARGE
from irtool.hosts.onnx.running.evaluate import Array


def run_model(model: ModelProto, feed: Mapping[str, Array], values: Iterable[str] = (), loop_seconds: float | None = None) -> list[Array]:
    """Run a model in onnxruntime and return its outputs, or the values named.

    Args:
        model: the model; unchanged afterwards.
        feed: the inputs by name.
        values: what to return, by name; the outputs if left out.
        loop_seconds: stop a model with a Loop in it after this.

    Raises:
        GraphError: onnxruntime is absent, or refuses the model or the inputs; or the time is up.
    """
    names, given, ran = list(values), len(model.graph.output), len(model.graph.node)
    present = {output.name for output in model.graph.output}
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in present)
    try:
        session = _opened(model)
        strange = {output.name for output in session.get_outputs() if output.type in _STRANGE and output.name not in present}
        if strange:
            session, names = _opened(_with_casts(model, strange)), [_SHOWN.format(name) if name in strange else name for name in names]
        has_loop = any(node.op_type in ("Loop", "Scan") for node in model.graph.node)
        found = _run(session, names, feed, loop_seconds if has_loop else None)
    except GraphError:
        raise
    except Exception as error:  # onnxruntime's exceptions share no base class below Exception
        text = " ".join(str(error).split())[:200]
        if "terminate flag" in str(error):
            raise GraphError(
                f"its loop did not end in {loop_seconds:g} s", remedy="Check how often the loop runs, or give smaller example sizes."
            ) from error
        raise GraphError(f"onnxruntime cannot run the model: {text}", remedy=_remedy(text)) from error
    finally:
        del model.graph.output[given:], model.graph.node[ran:]
    return found


_STRANGE = frozenset({"tensor(bfloat16)"})
"""Types of which onnxruntime hands out nothing, since numpy has none; they are cast to float32, which holds all their numbers."""
_SHOWN = "{} as float32"


def _with_casts(model: ModelProto, names: Iterable[str]) -> ModelProto:
    """The model with values in float32 among its outputs, in place."""
    for name in names:
        model.graph.node.append(helper.make_node("Cast", [name], [_SHOWN.format(name)], to=TensorProto.FLOAT))
        model.graph.output.append(helper.make_empty_tensor_value_info(_SHOWN.format(name)))
    return model


def _remedy(text: str) -> str:
    """The remedy where onnxruntime refuses a model."""
    if "No corresponding Numpy type" in text:
        return "Export the model with inputs, outputs and layers in float32: of this type nobody hands out numbers."
    return "Run onnx.checker on the file."


def _opened(model: ModelProto) -> Any:
    with _loadable(model) as source:
        return _session(source)


def run_batches(model: ModelProto, feeds: Sequence[Mapping[str, Array]], values: Sequence[str]) -> list[list[Array]]:
    """Run a model in onnxruntime on several feeds, loading it once. Returns the outputs named, for each feed.

    Raises:
        GraphError: onnxruntime is absent, or refuses the model or the inputs.
    """
    try:
        session = _opened(model)
        return [_run(session, list(values), feed, None) for feed in feeds]
    except GraphError:
        raise
    except Exception as error:  # onnxruntime's exceptions share no base class below Exception
        text = " ".join(str(error).split())[:200]
        raise GraphError(f"onnxruntime cannot run a part of the model: {text}", remedy=_remedy(text)) from error


def _session(source: bytes | str) -> Any:
    """onnxruntime's session without fusions, which round differently: this is a reference.

    Raises:
        GraphError: onnxruntime is absent.
    """
    try:
        ort = importlib.import_module("onnxruntime")  # importing irtool must not need it
    except ImportError as error:
        raise GraphError("onnxruntime is not installed", remedy="pip install onnxruntime") from error
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", 0))
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _run(session: Any, names: list[str], feed: Mapping[str, Array], seconds: float | None) -> list[Array]:
    limits = importlib.import_module("onnxruntime").RunOptions()
    timer = threading.Timer(seconds, setattr, (limits, "terminate", True)) if seconds is not None else None
    if timer is not None:
        timer.daemon = True
        timer.start()
    try:
        found: list[Array] = session.run(names or None, dict(feed), limits)
    finally:
        if timer is not None:
            timer.cancel()
    return found


@contextmanager
def _loadable(model: ModelProto) -> Iterator[bytes | str]:
    """Yield a model as onnxruntime takes it: its bytes, or a temporary file for a model that is too large for that."""
    if not is_large(model):
        yield model.SerializeToString()
        return
    with scratch_folder() as folder:
        path = folder / "model.onnx"
        write_draft(model, path)
        yield str(path)


@contextmanager
def showing(file: Path, values: Sequence[str]) -> Iterator[bytes | str]:
    """Return what onnxruntime loads to give some inner values among the outputs; the file itself if there are none."""
    if not values:
        yield str(file)
        return
    model = onnx.load(str(file))
    present = {output.name for output in model.graph.output}
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in values if name not in present)
    with _loadable(model) as source:
        yield source


def described(host: gs.Graph, header: ModelProto, filled: frozenset[str]) -> ModelProto:
    """The host as an ONNX model with the file's own description around it."""
    model: ModelProto = gs.export_onnx(host, do_type_check=False)
    for field in ("domain", "model_version", "doc_string", "producer_name", "producer_version"):
        setattr(model, field, getattr(header, field))
    model.metadata_props.extend(header.metadata_props)
    model.ir_version = max(header.ir_version, 4)  # before 4 every initializer has to be listed among the inputs
    for mine, theirs in ((model.graph.input, header.graph.input), (model.graph.output, header.graph.output)):
        described = {value.name: value for value in theirs}
        for value in mine:
            if value.name in described:
                value.CopyFrom(described[value.name])
    made = {name for node in model.graph.node for name in node.output} - {value.name for value in model.graph.output}
    model.graph.value_info.extend(value for value in header.graph.value_info if value.name in made)
    _fill(model.graph, filled)
    return model


def restated(header: ModelProto, outputs: Mapping[str, tuple[int, ...]]) -> ModelProto:
    """The file's description with other sizes of outputs, by name, where an edit changed those that it states; free axes stay free."""
    new: ModelProto | None = None
    for index, declared in enumerate(header.graph.output):
        dims, sizes = declared.type.tensor_type.shape.dim, outputs.get(declared.name)
        if sizes is None or not declared.type.tensor_type.HasField("shape"):
            continue
        fits = len(dims) == len(sizes)
        if fits and all(dim.dim_value in (0, size) for dim, size in zip(dims, sizes, strict=True)):
            continue
        if new is None:
            new = ModelProto()
            new.CopyFrom(header)
        stated = [size if dim.dim_value else dim.dim_param or None for dim, size in zip(dims, sizes, strict=False)]
        kind = declared.type.tensor_type.elem_type
        new.graph.output[index].CopyFrom(helper.make_tensor_value_info(declared.name, kind, stated if fits else [None] * len(sizes)))
    return header if new is None else new


def _fill(graph: onnx.GraphProto, filled: frozenset[str]) -> None:
    """Write constants that repeat one number as a ConstantOfShape node, where they came as one."""
    shapes: dict[tuple[int, ...], str] = {}
    for index in reversed(range(len(graph.initializer))):
        tensor = graph.initializer[index]
        if tensor.name not in filled or int(np.prod(tensor.dims)) <= LARGE:
            continue
        array = numpy_helper.to_array(tensor)
        if not (array == array.flat[0]).all():
            continue
        name = shapes.setdefault(array.shape, "fill_" + "x".join(map(str, array.shape)))
        value = numpy_helper.from_array(array.reshape(-1)[:1])
        graph.node.insert(0, helper.make_node("ConstantOfShape", [name], [tensor.name], value=value))
        del graph.initializer[index]
    graph.initializer.extend(numpy_helper.from_array(np.array(shape, np.int64), name) for shape, name in shapes.items())
