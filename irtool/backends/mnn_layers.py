"""What MNN's converter makes of an ONNX file: its convolutions, by the names that it gives their tensors.

The converter fuses activations into convolutions, turns products into 1x1 convolutions, and renames tensors on the way. An
int8 file is made by naming output tensors, so they are read off the converter's own result: a file without weights,
written as JSON.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from irtool.backends.mnn_process import in_child, meaning
from irtool.backends.session import model_file
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
    """The operators that MNN's converter makes of a file, in order.

    Raises:
        ExportError: the converter fails.
        FileError: no such file.
    """
    source = model_file(onnx_path, ".onnx").absolute()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bare, text = folder / "bare.mnn", folder / "bare.json"
        _call(
            ["-f", "ONNX", "--modelFile", str(source), "--MNNModel", str(bare), "--bizCode", "irtool", "--benchmarkModel"],
            bare,
            source,
            timeout,
        )
        _call(["-f", "MNN", "--modelFile", str(bare), "--JsonFile", str(text)], text, source, timeout)
        return _read(json.loads(text.read_text(encoding="utf-8")))


def _call(arguments: list[str], written: Path, source: Path, timeout: float) -> None:
    listing = written.parent / "arguments.json"
    listing.write_text(json.dumps(["MNNConvert", *arguments]), encoding="utf-8")
    died, said = in_child(["convert", str(listing)], written.parent, timeout)
    if died or not written.exists():
        raise ExportError(
            f"MNN's converter {died or 'wrote no file'}: {meaning(said)}",
            where=str(source),
            remedy="Export the ONNX file again with opset 17 and check it with onnxruntime.",
        )


def _read(plain: dict[str, Any]) -> tuple[MnnOperator, ...]:
    names = plain["tensorName"]
    return tuple(
        MnnOperator(
            op["type"], tuple(names[i] for i in op.get("inputIndexes") or ()), tuple(names[i] for i in op.get("outputIndexes") or ())
        )
        for op in plain["oplists"]
    )
