"""Converting an ONNX file to MNN, and showing that the two compute the same.

The converter is in MNN's wheel, as an extension module. It always reports success, prints its errors, and may abort, so it
runs in a child process with a time limit, and what counts is the file that it leaves.
"""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from irtool.atomic_files import replacing, scratch_folder
from irtool.engines.agreement import relative_error, sample_inputs
from irtool.engines.mnn.process import UNSUPPORTED, in_child, meaning
from irtool.engines.mnn.workarounds import converted
from irtool.engines.onnxruntime.session import OnnxSession
from irtool.engines.session import TensorSpec, model_file
from irtool.errors import BackendError, ExportError, FileError, OptionError
from irtool.extras import EXTRAS
from irtool.hosts.onnx.files.file import check_bounds
from irtool.tensor_defaults import plain_tensors

# MNN uses Winograd convolutions and approximate activations: allowed difference to onnxruntime, relative to the largest output.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class MnnExport:
    """The .mnn file that was written.

    Attributes:
        path, bytes: the file and its size.
        input_names, output_names: in the order of the ONNX file.
        max_error: the largest difference between MNN and onnxruntime on random inputs, relative to the largest output; None
            if it was not checked or the ONNX file does not run on made-up sizes.
    """

    path: Path
    bytes: int
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    max_error: float | None


@plain_tensors()
def export_mnn(
    onnx_path: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    fp16: bool = False,
    weight_bits: int | None = None,
    compression_params: str | os.PathLike[str] | None = None,
    verify: bool = True,
    timeout: float = 600.0,
) -> MnnExport:
    """Convert an ONNX file to MNN. The file appears at `path` only if MNN has opened it and run it.

    The converter fuses what it can (batch norm and ReLU into convolutions, for instance).

    Args:
        onnx_path: the .onnx file.
        path: the .mnn file.
        fp16: store weights as half floats; arithmetic stays float32.
        weight_bits: store weights with 2 to 8 bits, one scale per channel; arithmetic stays float32.
        compression_params: MNN's compression file (a protobuf), with the scales of an int8 model.
        verify: run the file in MNN and compare with onnxruntime. A plain float model must agree to 1e-3; for a compressed
            one the difference is only reported.
        timeout: seconds for the conversion, and for the run.

    Raises:
        ExportError: the converter fails, dies or takes too long, or the file's numbers are wrong.
        FileError: a file is missing, is not ONNX, or cannot be written.
        OptionError: `weight_bits` outside 2 to 8, or a timeout that is not positive.
        BackendError: MNN is not installed.
    """
    source = model_file(onnx_path, ".onnx")
    flags = _flags(fp16, weight_bits, compression_params, timeout)
    check_bounds(source)
    model = _read(source)
    _check_inputs(model, source)
    for module in ("MNN", "_tools"):
        if importlib.util.find_spec(module) is None:
            raise BackendError("MNN is not installed", where="export_mnn", remedy=f"{EXTRAS['MNN'].command}.")
    target = Path(path)
    with replacing(target) as temporary, scratch_folder() as folder:
        temporary.unlink()  # that the converter wrote it is the only sign of its success
        written = temporary.absolute()
        converted(model, source, folder, lambda file: _convert(file, source, written, flags, folder, timeout))
        error = _verify(source, temporary.absolute(), folder, timeout, exact=not flags) if verify else None
        size = temporary.stat().st_size
    return MnnExport(target, size, *_names(model), error)


def _flags(fp16: bool, weight_bits: int | None, compression: str | os.PathLike[str] | None, timeout: float) -> list[str]:
    if weight_bits is not None and weight_bits not in range(2, 9):
        raise OptionError(f"weight_bits={weight_bits}", where="export_mnn", remedy="Choose 2 to 8 bits, or leave it out for float weights.")
    if not timeout > 0:
        raise OptionError(f"timeout={timeout}", where="export_mnn", remedy="Give a positive number of seconds.")
    flags = ["--fp16"] if fp16 else []
    if weight_bits is not None:
        flags += ["--weightQuantBits", str(weight_bits)]
    if compression is not None:  # a missing file would be created by the converter, empty, without a word
        flags += ["--compressionParamsFile", str(model_file(compression, "MNN compression parameters").absolute())]
    return flags


def _read(source: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(str(source), load_external_data=False)
    except (DecodeError, ValueError, RuntimeError) as error:
        raise _foreign(source) from error
    if not model.HasField("graph") or not model.graph.output:
        raise _foreign(source)
    if not model.opset_import:
        raise ExportError(
            "the file names no operator set", where=str(source), remedy="Export it again; without an opset its operators have no meaning."
        )
    return model


_TAKEN = (onnx.TensorProto.FLOAT, onnx.TensorProto.INT32, onnx.TensorProto.INT64, onnx.TensorProto.UINT8)
"""Element types of inputs that MNN's Python interface writes; of 64-bit integers the converter makes 32-bit ones."""


def _check_inputs(model: onnx.ModelProto, source: Path) -> None:
    """Refuse inputs that MNN cannot be given. Raises ExportError."""
    names, _ = _names(model)
    for value in model.graph.input:
        kind = value.type.tensor_type.elem_type
        if value.name in names and kind not in _TAKEN:
            told = _TYPES.get(kind, onnx.TensorProto.DataType.Name(kind).lower())
            raise ExportError(
                f"its input {value.name!r} is {told}: MNN takes float32, int32, int64 and uint8",
                where=str(source),
                remedy=_INPUT_REMEDIES.get(kind, "Export the model with an input of one of these types, and a Cast behind it."),
            )


_TYPES = {onnx.TensorProto.DOUBLE: "float64", onnx.TensorProto.UNDEFINED: "no tensor"}
_INPUT_REMEDIES = {
    onnx.TensorProto.FLOAT16: "Export the model in float32; fp16=True then stores its weights as half floats.",
    onnx.TensorProto.DOUBLE: "Export the model in float32 (model.float()).",
    onnx.TensorProto.BOOL: "Export it with a float or uint8 input, and a Cast to bool behind it.",
}


def _names(model: onnx.ModelProto) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The graph's inputs (without weights, which old files list too) and outputs."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return tuple(v.name for v in model.graph.input if v.name not in weights), tuple(v.name for v in model.graph.output)


def _foreign(source: Path) -> FileError:
    return FileError(
        "not an ONNX model, or a truncated one", where=str(source), remedy="Export it again, or give the path of an .onnx file."
    )


def _convert(file: Path, source: Path, written: Path, flags: list[str], folder: Path, timeout: float) -> None:
    arguments = ["MNNConvert", "-f", "ONNX", "--modelFile", str(file.absolute()), "--MNNModel", str(written), "--bizCode", "irtool", *flags]
    listing = folder / "arguments.json"
    listing.write_text(json.dumps(arguments), encoding="utf-8")
    died, said = in_child(["convert", str(listing)], folder, timeout)
    if died or not written.exists() or not written.stat().st_size:
        reason = meaning(said)
        remedy = (
            "Replace the operator in the model, or export with another opset."
            if UNSUPPORTED.search(reason)
            else "Export the ONNX file again with opset 17 and check it with onnxruntime."
        )
        raise ExportError(f"MNN's converter {died or 'wrote no file'}: {reason}", where=str(source), remedy=remedy)


def _verify(source: Path, written: Path, folder: Path, timeout: float, *, exact: bool) -> float | None:
    """Run the new file once, in a child process; its difference to the ONNX file in onnxruntime, if that runs."""
    session = OnnxSession(source)
    arrays = sample_inputs(session.inputs)
    try:
        expected = session.run(*arrays)
    except BackendError:
        expected = None  # sizes that we made up for free axes need not suit the model
    results = _run(written, session.inputs, arrays, source, folder, timeout, sound=expected is not None)
    if expected is None or results is None:
        return None
    if [r.shape for r in results] != [e.shape for e in expected]:
        raise ExportError(
            f"MNN gives shapes {[r.shape for r in results]}, onnxruntime {[e.shape for e in expected]}",
            where=str(source),
            remedy="Export with a fixed batch (dynamic_batch=False), or report the model.",
        )
    error = max((relative_error(r, e) for r, e in zip(results, expected, strict=True)), default=0.0)
    if exact and not error <= TOLERANCE:
        raise ExportError(
            f"MNN's numbers differ from onnxruntime's by {error:.3g} of the largest output",
            where=str(source),
            remedy="Export the ONNX file with another opset; pass verify=False only if you know why they differ.",
        )
    return error


def _run(
    written: Path, specs: tuple[TensorSpec, ...], arrays: list[np.ndarray], source: Path, folder: Path, timeout: float, *, sound: bool
) -> list[np.ndarray] | None:
    """MNN's outputs; None if the sizes were made up and MNN refused them, or died of what onnxruntime refused (not `sound`)."""
    given, results = folder / "in.npz", folder / "out.npz"
    # MNN has no 64-bit integers: the converter makes such inputs 32 bits wide
    narrow = [array.astype(np.int32) if array.dtype == np.int64 else array for array in arrays]
    np.savez(given, *narrow)
    died, said = in_child(["run", str(written), str(given), str(results)], folder, timeout)
    if results.exists() and not died:
        with np.load(results) as held:
            arrays = [held[f"arr_{index}"] for index in range(len(held.files))]
        if arrays:  # on an error inside, MNN returns no outputs and says why on the screen
            return arrays
    if not (died and sound) and any(spec.shape is None or None in spec.shape[1:] for spec in specs):
        return None
    raise ExportError(
        f"the file was converted but MNN {died or 'cannot run it'}: {meaning(said)}",
        where=str(source),
        remedy="Export with fixed sizes if it slices backwards along a free one, or report the model."
        if died
        else "Export with a fixed batch (dynamic_batch=False), or report the model.",
    )
