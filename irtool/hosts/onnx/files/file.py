"""Reading and writing .onnx files: nothing outside the model's folder is read, and nobody sees half a file."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto
from onnx.external_data_helper import load_external_data_for_model, uses_external_data

from irtool.atomic_files import replacing
from irtool.errors import FileError
from irtool.hosts.onnx.files.limits import check_extent
from irtool.hosts.onnx.files.repair import closed_outputs, repair
from irtool.temporary import folder_beside

INLINE_LIMIT = 2**31 - 2**24
"""A protobuf message cannot exceed 2 GiB; above this the weights go to a file beside the model."""
OLDEST = 7
"""The oldest operator set that is read: broadcasting was made explicit before it."""
_SHARED = 8
"""Weights that may be the same bytes of a file beside the model."""
_BROKEN = "Write the file again, or get a whole copy of it: onnx.checker names the fault too."


def read_model(path: str | os.PathLike[str]) -> ModelProto:
    """The model in a file, as `read_repaired` gives it."""
    return read_repaired(path)[0]


def read_repaired(path: str | os.PathLike[str]) -> tuple[ModelProto, list[str]]:
    """The model in a file, weights included, checked by onnx.checker; and what had to be repaired for that.

    Raises:
        FileError: no such file, not ONNX, cut off, malformed, without an operator set, or with weights outside its folder.
    """
    file = Path(path)
    model = read_description(file)
    _load_weights(model, file)
    return model, checked(model, str(file))


def checked(model: ModelProto, where: str) -> list[str]:
    """Repair what onnxruntime does not mind, in place, and run onnx.checker. Returns what was repaired; raises FileError."""
    notes = repair(model)
    with closed_outputs(model):
        check(model, where)
    return notes


def read_description(path: str | os.PathLike[str]) -> ModelProto:
    """The model in a file as it lies there: weights in other files are not read, nor is it checked in full.

    Raises:
        FileError: as `read_model`, or the model asks for more than any does: see `irtool.hosts.onnx.files.limits`.
    """
    file = Path(path)
    model = ModelProto()
    try:
        model.ParseFromString(_content(file))
    except DecodeError as error:
        raise FileError("not an ONNX file, or cut off", where=str(file), remedy=_BROKEN) from error
    _check_opset(model, str(file))
    check_extent(model, str(file))
    _check_locations(model, file)
    return model


def check_bounds(path: str | os.PathLike[str]) -> None:
    """Refuse a file that asks for more than any model does, or for weights outside its folder, before an engine is given it.

    Raises:
        FileError: see `read_description`.
    """
    file = Path(path)
    model = ModelProto()
    try:
        model.ParseFromString(_content(file))
    except DecodeError:
        return  # the engine says what it makes of it
    check_extent(model, str(file))
    _check_locations(model, file)


def _content(file: Path) -> bytes:
    remedy = "Give the path of an .onnx file."
    try:
        found = file.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for, a device never ends
            raise FileError("is a folder" if file.is_dir() else "is no regular file", where=str(file), remedy=remedy)
        if found.st_size >= 2**31:
            raise FileError(f"{found.st_size:,} bytes: no ONNX file has 2 GiB", where=str(file), remedy=remedy)
        data = file.read_bytes()
    except (OSError, ValueError) as error:
        raise FileError(f"cannot be read ({getattr(error, 'strerror', error)})", where=str(file), remedy=remedy) from error
    if not data:
        raise FileError("the file is empty", where=str(file), remedy=_BROKEN)
    return data


def is_large(model: ModelProto) -> bool:
    """Whether a model with its weights in it exceeds what a protobuf message can hold (which cannot even tell its size then)."""
    return sum(len(tensor.raw_data) for tensor in _tensors(model.graph)) >= INLINE_LIMIT


def check(model: ModelProto, where: str) -> None:
    """Run onnx.checker on a model in memory, or if that is too large on its file `where`. Raises FileError."""
    try:
        onnx.checker.check_model(where if is_large(model) else model)
    except (onnx.checker.ValidationError, ValueError, RuntimeError, TypeError) as error:
        raise FileError(f"malformed: {_first_line(error)}", where=where, remedy=_BROKEN) from error


def declared_shapes(model: ModelProto) -> dict[str, tuple[int | None, ...] | None]:
    """The sizes of each input by its name, None where an axis is free, and as a whole where the rank is not known."""
    held = {tensor.name for tensor in model.graph.initializer}
    found: dict[str, tuple[int | None, ...] | None] = {}
    for value in model.graph.input:
        if value.name not in held:
            kind = value.type.tensor_type
            known = tuple(dim.dim_value if dim.dim_value > 0 else None for dim in kind.shape.dim)
            found[value.name] = known if kind.HasField("shape") else None
    return found


def opset_of(model: ModelProto) -> int | None:
    """The version of the standard operators, or None if the file does not say."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None)


def _check_opset(model: ModelProto, where: str) -> None:
    if not model.graph.node:
        raise FileError("holds no operators", where=where, remedy="Give a model that computes something.")
    version = opset_of(model)
    if version is None:
        raise FileError(
            "does not say which operator set its operators belong to (no opset_import)",
            where=where,
            remedy="Export the model again with a current exporter, or use a version of the file that names its opset.",
        )
    newest = onnx.defs.onnx_opset_version()
    if not OLDEST <= version <= newest:
        raise FileError(
            f"operator set {version}", where=where, remedy=f"Convert it with onnx.version_converter to an opset from {OLDEST} to {newest}."
        )


def _load_weights(model: ModelProto, file: Path) -> None:
    """Read external weights; their locations have been seen to lie in the model's folder."""
    if any(uses_external_data(tensor) for tensor in _tensors(model.graph)):
        try:
            load_external_data_for_model(model, str(file.parent))
        except (OSError, ValueError, RuntimeError, onnx.checker.ValidationError) as error:
            raise FileError(f"its weights cannot be read: {_first_line(error)}", where=str(file), remedy=_BROKEN) from error


def _check_locations(model: ModelProto, file: Path) -> None:
    """External weights lie in the model's folder, and are no more bytes than their files have.

    Raises:
        FileError: a place outside, or many weights that are the same bytes: each would be read.
    """
    for function in model.functions:
        for tensor in _node_tensors(function.node):
            if uses_external_data(tensor):  # once inlined, nobody would know which folder is meant
                raise FileError(f"the function {function.name!r} has weights in another file", where=str(file), remedy=_BROKEN)
    sizes: dict[Path, int] = {}
    total = 0
    for tensor in _tensors(model.graph):
        if uses_external_data(tensor):
            target, length = _check_location(tensor, file)
            sizes[target] = target.stat().st_size
            total += length
    if total > _SHARED * sum(sizes.values()) + 2**20:
        raise FileError(
            f"{total:,} bytes of weights in files of {sum(sizes.values()):,}", where=str(file), remedy="Save it with each weight once."
        )


def _check_location(tensor: TensorProto, file: Path) -> tuple[Path, int]:
    """A relative path to a regular file in the model's own folder that is long enough: the file, and the bytes that are read.

    Raises:
        FileError: absolute, with `..`, through a link that leads out, absent, or too short.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    folder = file.parent.resolve()
    lexical = PurePosixPath(location)
    if not location or "\0" in location or lexical.is_absolute() or ".." in lexical.parts or PureWindowsPath(location).anchor:
        raise _outside(tensor, location, file)
    target = Path(os.path.realpath(folder / location))
    if not target.is_relative_to(folder):
        raise _outside(tensor, location, file)
    if not os.path.isfile(target):  # nor is a name that is too long for one, or a link to itself
        raise FileError(
            f"the weights of {tensor.name!r} are missing: no file {location[:200]!r}", where=str(file), remedy="Put it beside the model."
        )
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", 0))
    except ValueError as error:
        raise FileError(f"malformed offset of {tensor.name!r}", where=str(file), remedy=_BROKEN) from error
    if offset < 0 or length < 0 or offset + length > target.stat().st_size:
        raise FileError(f"the weights of {tensor.name!r} go beyond the end of {location!r}", where=str(file), remedy=_BROKEN)
    return target, length or target.stat().st_size - offset


def _outside(tensor: TensorProto, location: str, file: Path) -> FileError:
    return FileError(
        f"the weights of {tensor.name!r} are said to be at {location!r}, outside the model's folder",
        where=str(file),
        remedy="Do not trust this file; if it is yours, save it with its weights beside it.",
    )


def stored_bytes(model: ModelProto) -> int:
    """Bytes of all weights and constants in a model."""
    return sum(tensor.ByteSize() for tensor in _tensors(model.graph))


def _tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    """Initializers and tensor attributes of a graph and of those inside its control-flow nodes."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors) if attribute.HasField("t") or attribute.tensors else ()
            for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") or attribute.graphs else ():
                yield from _tensors(inner)


def write_model(model: ModelProto, path: str | os.PathLike[str]) -> int:
    """Write a model, checked in full by onnx.checker first; weights of 2 GiB and more go to `<path>.data`. Returns bytes written.

    Raises:
        FileError: the file cannot be written, or the model does not pass the check.
    """
    target = Path(path)
    with replacing(target) as temporary, folder_beside(target.parent) as folder:
        draft = folder / target.name
        try:
            with closed_outputs(model) as unknown:
                write_draft(model, draft)
                onnx.checker.check_model(str(draft), full_check=True)
            if unknown and not is_large(model):  # nobody knows the shape: it stays unsaid
                write_draft(model, draft)
        except Exception as error:  # the checker raises types of its own and of its C++ part
            raise FileError(
                f"the graph does not pass onnx.checker: {_first_line(error)}", where=str(target), remedy="Please report it."
            ) from error
        weights, size = draft.with_name(f"{draft.name}.data"), draft.stat().st_size
        if weights.exists():
            size += weights.stat().st_size
            weights.chmod(draft.stat().st_mode)  # onnx lets nobody else read it
        move_with_weights(draft, temporary, target)
    return size


def move_with_weights(draft: Path, temporary: Path, target: Path) -> None:
    """Move a finished model to the temporary file that becomes `target`, and weights beside the draft to beside the target.

    A model that was there goes first: with the weights of another one it would compute something else.
    """
    weights = draft.with_name(f"{draft.name}.data")
    if weights.exists():
        Path(os.path.realpath(target)).unlink(missing_ok=True)
        with replacing(target.with_name(weights.name)) as beside:
            os.replace(weights, beside)
    os.replace(draft, temporary)


def write_draft(model: ModelProto, path: Path) -> None:
    """Write a model as it is; weights of 2 GiB and more go to `<path>.data`, and are no longer in the model then."""
    if is_large(model):
        onnx.save(model, str(path), save_as_external_data=True, all_tensors_to_one_file=True, location=f"{path.name}.data")
    else:
        onnx.save(model, str(path))


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
