"""Convolutions of an MNN file, by the names that its converter gives their tensors.

The converter fuses activations into convolutions, turns products into 1x1 convolutions, and renames tensors on the way. An
int8 file is made by naming output tensors, so they are read off the converter's own result: a file without weights,
written as JSON.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from irtool.atomic_files import scratch_folder
from irtool.engines.mnn.process import in_child, meaning
from irtool.engines.mnn.workarounds import converted
from irtool.engines.session import model_file
from irtool.errors import ExportError

_CONVOLUTIONS = frozenset({"Convolution", "ConvolutionDepthwise"})


@dataclass(frozen=True)
class MnnOperator:
    """One operator of an MNN graph.

    Attributes:
        kind: MNN's name of the operator.
        inputs, outputs: tensor names.
    """

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def is_convolution(self) -> bool:
        """Whether MNN has it in int8 with scales of its own."""
        return self.kind in _CONVOLUTIONS and len(self.inputs) == 1


def mnn_operators(onnx_path: str | os.PathLike[str], timeout: float = 600.0) -> tuple[MnnOperator, ...]:
    """The operators that MNN's converter makes of a file as `export_mnn` gives it to it, in order.

    Raises:
        ExportError: the converter fails.
        FileError: no such file.
    """
    source = model_file(onnx_path, ".onnx").absolute()
    with scratch_folder() as folder:
        bare, text = folder / "bare.mnn", folder / "bare.json"
        model = onnx.load(str(source), load_external_data=False)

        def convert(file: Path) -> None:
            arguments = ["-f", "ONNX", "--modelFile", str(file), "--MNNModel", str(bare), "--bizCode", "irtool", "--benchmarkModel"]
            _call(arguments, bare, source, timeout)

        converted(model, source, folder, convert)
        return _read(_json(bare, text, source, timeout))


def mnn_scaled(path: str | os.PathLike[str], timeout: float = 600.0) -> tuple[tuple[str, str], ...]:
    """The tensors of an MNN file that have int8 scales: the kind of the operator that makes each, and the tensor's name.

    Raises:
        ExportError: the converter fails.
        FileError: no such file.
    """
    source = model_file(path, ".mnn").absolute()
    with scratch_folder() as folder:
        plain = _json(source, folder / "model.json", source, timeout)
    makers = {output: op["type"] for op in plain["oplists"] for output in op.get("outputIndexes") or ()}
    described = [entry["index"] for entry in plain.get("extraTensorDescribe") or () if "quantInfo" in entry]
    return tuple((makers.get(index, "Input"), plain["tensorName"][index]) for index in described)


def _json(model: Path, text: Path, source: Path, timeout: float) -> dict[str, Any]:
    """An MNN file as its converter writes it out."""
    _call(["-f", "MNN", "--modelFile", str(model), "--JsonFile", str(text)], text, source, timeout)
    written = _BARE.sub(lambda found: found[1] + _NAMES[found[2].lower()], text.read_text(encoding="utf-8"))
    plain: dict[str, Any] = json.loads(written)
    return plain


_BARE = re.compile(r"([:\[,]\s*-?)(inf|nan)(?=\s*[,\]}])", re.IGNORECASE)
_NAMES = {"inf": "Infinity", "nan": "NaN"}
"""MNN's words for numbers that JSON has no form for, and Python's."""


def _call(arguments: list[str], written: Path, source: Path, timeout: float) -> None:
    listing = written.parent / "arguments.json"
    listing.write_text(json.dumps(["MNNConvert", *arguments]), encoding="utf-8")
    died, said = in_child(["convert", str(listing)], written.parent, timeout)
    if died or not written.exists():
        raise ExportError(
            f"MNN's converter {died or 'wrote no file'}: {meaning(said)}",
            where=str(source),
            remedy="Export the file again (ONNX: with opset 17, and check it with onnxruntime).",
        )


def _read(plain: dict[str, Any]) -> tuple[MnnOperator, ...]:
    names = plain["tensorName"]
    return tuple(
        MnnOperator(
            op["type"], tuple(names[i] for i in op.get("inputIndexes") or ()), tuple(names[i] for i in op.get("outputIndexes") or ())
        )
        for op in plain["oplists"]
    )
