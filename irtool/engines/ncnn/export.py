"""Converting an ONNX file to ncnn's two files, and showing that they compute the same.

The converter is pnnx, a program in a wheel of its own. It says little of what it cannot take, so what it leaves is loaded in ncnn, run
in another process, and compared.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from irtool.atomic_files import replacing, scratch_folder
from irtool.engines.agreement import relative_error, sample_inputs
from irtool.engines.isolated import in_process
from irtool.engines.ncnn.param import Layer, read_param, renamed, write_param
from irtool.engines.ncnn.selections import widened
from irtool.engines.ncnn.session import ncnn_module, run_apart
from irtool.engines.onnxruntime.session import OnnxSession
from irtool.engines.session import TensorSpec, model_file
from irtool.errors import BackendError, ExportError, FileError
from irtool.extras import needed

TOLERANCE = 1e-3
"""Of ncnn's Winograd convolutions against onnxruntime, relative to the largest output."""
_LONGEST = 200
"""Characters of a blob's name: ncnn keeps 256."""


def export_ncnn(source: Path, path: Path, *, verify: bool = True, timeout: float = 600.0) -> None:
    """Write `path`, a `.param` file, and the `.bin` file beside it; they appear only if ncnn has loaded them and run them.

    Selections of channels become convolutions first, since ncnn loses them. Samples run one by one: axis 0 is free. Other axes must be known.

    Args:
        source: the ONNX file.
        path: the .param file.
        verify: compare with onnxruntime on random inputs, too.
        timeout: seconds for the conversion, and for the run.

    Raises:
        ExportError: pnnx fails, ncnn lacks a layer of it, or the numbers are wrong.
        BackendError: ncnn or pnnx is not installed.
        FileError: a file is missing, is not ONNX, or cannot be written.
    """
    ncnn_module()
    program = Path(needed("pnnx", BackendError).EXEC_PATH)
    session = OnnxSession(model_file(source, ".onnx"))
    samples = {_name(spec.name, f"in{place}"): _sample(spec, source) for place, spec in enumerate(session.inputs)}
    with scratch_folder() as folder:
        onnx.save(widened(onnx.load(str(source))), str(folder / "model.onnx"))
        shapes = ",".join(f"[{','.join(map(str, (1, *shape)))}]f32" for shape in samples.values())
        died, said = in_process([str(program), "model.onnx", f"inputshape={shapes}", "fp16=0"], folder, timeout)
        made, weights = folder / "model.ncnn.param", folder / "model.ncnn.bin"
        if died or not made.is_file() or not weights.is_file():
            raise ExportError(f"pnnx {died or 'wrote no file'}: {_meaning(said)}", where=str(source), remedy=_REMEDY)
        layers = _read(made, source)
        names = dict(zip((f"in{place}" for place in range(len(samples))), samples, strict=True)) | _outputs(layers, session.outputs)
        write_param(renamed(layers, names, samples), folder / "model.param")
        weights.rename(folder / "model.bin")
        _require_right(session, folder / "model.param", source, timeout, compared=verify)
        with replacing(path.with_suffix(".bin")) as beside, replacing(path) as temporary:
            shutil.copyfile(folder / "model.bin", beside)
            shutil.copyfile(folder / "model.param", temporary)


_REMEDY = "Replace the operator in the model, export with another opset, or use another engine."


def _read(made: Path, source: Path) -> tuple[Layer, ...]:
    try:
        return read_param(made)
    except FileError as error:
        raise ExportError("pnnx wrote what is no ncnn model", where=str(source), remedy=_REMEDY) from error


def _outputs(layers: Sequence[Layer], specs: Sequence[TensorSpec]) -> dict[str, str]:
    """The model's names of outputs by pnnx's; none where ncnn would list them in another order, which pnnx's numbers tell."""
    wanted = {f"out{place}": _name(spec.name, f"out{place}") for place, spec in enumerate(specs)}
    return wanted if [name for layer in layers for name in layer.outputs if name in wanted] == list(wanted) else {}


def _name(name: str, otherwise: str) -> str:
    """A name that ncnn's text can hold."""
    return name if name and len(name) <= _LONGEST and not any(c.isspace() for c in name) else otherwise


def _sample(spec: TensorSpec, source: Path) -> tuple[int, ...]:
    """The shape of one sample of an input."""
    if spec.dtype != "float32":
        raise ExportError(f"its input {spec.name!r} is {spec.dtype}: ncnn takes float32", where=str(source), remedy="Export it in float32.")
    sizes = [] if spec.shape is None else [size for size in spec.shape[1:] if size is not None]
    if spec.shape is None or len(sizes) != len(spec.shape) - 1 or not 1 <= len(sizes) <= 4:
        what = f"its input {spec.name!r} has free sizes beside the batch, or none or too many axes: {spec}"
        raise ExportError(what, where=str(source), remedy="Export it with fixed sizes: ncnn's converter must know them.")
    return tuple(sizes)


def _require_right(session: OnnxSession, path: Path, source: Path, timeout: float, *, compared: bool) -> None:
    """Run the new file in another process on two samples, and compare it with onnxruntime; without `compared` shapes alone, and numbers that are none."""
    arrays = sample_inputs(session.inputs)
    expected = _expected(session, arrays)
    try:
        results = run_apart(path, arrays, timeout)
    except FileError as error:
        raise ExportError(f"the file was converted but {error.what}", where=str(source), remedy=_REMEDY) from error
    found, wanted = [result.shape for result in results], [one.shape for one in expected]
    if found != wanted:
        raise ExportError(f"ncnn gives shapes {found}, onnxruntime {wanted}", where=str(source), remedy=_REMEDY)
    if not all(np.isfinite(result).all() for result, one in zip(results, expected, strict=True) if np.isfinite(one).all()):
        raise ExportError("ncnn gives no numbers where onnxruntime does", where=str(source), remedy=_REMEDY)
    gap = max((relative_error(result, one) for result, one in zip(results, expected, strict=True)), default=0.0)
    if compared and not gap <= TOLERANCE:
        raise ExportError(f"ncnn's numbers differ from onnxruntime's by {gap:.3g} of the largest output", where=str(source), remedy=_REMEDY)


def _expected(session: OnnxSession, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Results of onnxruntime for the samples; one by one where the batch is written into the file."""
    if all(spec.shape is None or spec.shape[0] is None for spec in session.inputs):
        return session.run(*arrays)
    if any(len(array) != 1 for array in arrays):
        raise ExportError(
            "a batch of more than one is written into the file", where=str(session.path), remedy="Export it with a free batch, or of 1."
        )
    return session.run(*arrays)


def _meaning(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith("#")]
    telling = [line for line in lines if "not support" in line or "unsupported" in line or "fail" in line or "rror" in line]
    return (telling or lines or ["it said nothing"])[-1][:300]
