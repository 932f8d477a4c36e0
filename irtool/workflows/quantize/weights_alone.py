"""Smaller weights without images: nothing between layers is rounded, so nothing has to be calibrated; and nothing is known of the accuracy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from irtool.engines.agreement import sample_inputs
from irtool.engines.engine import Engine
from irtool.engines.onnxruntime.prepare import prepared
from irtool.engines.onnxruntime.session import OnnxSession
from irtool.engines.table import ENGINES
from irtool.errors import CheckError, ExportError, OptionError
from irtool.hosts.onnx.files.given import Given
from irtool.progress import Reporter
from irtool.quant.placement import layers_of
from irtool.workflows.folders.output_folder import QUANTIZE, keep_inputs, model_files, output_folder
from irtool.workflows.loading.data import stored_preprocessing
from irtool.workflows.loading.models import Shape, graph_of
from irtool.workflows.options import read_options
from irtool.workflows.quantize.forms import WORDS
from irtool.workflows.quantize.graph import Settings
from irtool.workflows.quantize.options import QuantizeOptions
from irtool.workflows.quantize.prepare import write_float
from irtool.workflows.quantize.sensitivity import sqnr

BATCH = 8
"""Random inputs that outputs are compared on, where the batch is free."""


@dataclass(frozen=True)
class StoredForm:
    """One file of the model.

    Attributes:
        bytes: of the file.
        snr_db: power of the float file's output over power of the difference, in decibels, on random inputs; 200 where there is none.
    """

    bytes: int
    snr_db: float


@dataclass(frozen=True)
class WeightsAlone:
    """The result of `irtool.quantize_weights`.

    Attributes:
        file: the model whose weights are integers.
        forms: what each file came to: `float`, `half`, `int8`.
        engine: whose files they are.
        bits: of the integers.
        notes: forms that the engine refused, with the reason.
    """

    file: Path
    forms: dict[str, StoredForm]
    engine: str
    bits: int
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return what was found as JSON data. Nothing is known of the accuracy, so that is None."""
        head = {"engine": self.engine, "weights_only": True, "weight_bits": self.bits, "accuracy": None, "notes": list(self.notes)}
        return head | {name: asdict(form) for name, form in self.forms.items()}

    @property
    def verdict(self) -> str:
        """The verdict that is possible without images, and how to learn more, in a sentence."""
        form, whole = self.forms["int8"], self.forms["float"]
        return (
            f"{self.bits}-bit weights: {100 * form.bytes / whole.bytes:.0f} % of the bytes, outputs on random inputs {form.snr_db:.1f} dB above the "
            "difference. There were no images, so no accuracy is known: give --calib DATA to measure it."
        )


def quantize_weights(
    model: str | Path,
    out: str | Path,
    *,
    weights: str | Path | None = None,
    inputs: Sequence[Shape] = (),
    values: Given | None = None,
    progress: Reporter | None = None,
    **options: Any,
) -> WeightsAlone:
    """Write a model with its weights as integers, and as half floats, without images; both are computed in float.

    Args:
        model, out, weights, inputs, values, progress: see `irtool.quantize`.
        **options: the fields of `QuantizeOptions` that concern weights: engine, weight_bits, weight_method, opset.

    Raises:
        CheckError: there is no layer with weights, or a file's numbers are not finite. Nothing is written.
        IrtoolError: a step cannot be taken, or an option can never work.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     done = quantize_weights("VGG:depth=11,width=0.125", f"{folder}/small", inputs=[(1, 3, 32, 32)])
    >>> sorted(done.forms, key=lambda name: done.forms[name].bytes)
    ['int8', 'half', 'float']
    """
    settings = read_options(QuantizeOptions, {**options, "weights_only": True}).settings()
    name, out, reporter, engine = str(model), Path(out), progress or Reporter(), ENGINES[settings.engine]
    own = None if weights is None else Path(weights)
    suffixes = [row.suffix for row in ENGINES.values()]
    keep_inputs((out / f"{kind}{suffix}" for suffix in suffixes for kind in WORDS), model_files(name, own))
    with output_folder(out, QUANTIZE) as folder:
        with reporter.stage("trace"):
            graph = graph_of(name, own, inputs, values=values)
        known = stored_preprocessing(name)
        described = {} if known is None else {"irtool.preprocessing": json.dumps(known.to_dict())}
        with reporter.stage("write the float model"):
            source = folder / "float.onnx"
            write_float(graph, source, described, settings.opset)
            if not layers_of(prepared(onnx.load(str(source)))):
                raise CheckError("no layer has a constant float weight", where=settings.engine, remedy="Nothing here can be quantised.")
            engine.written(source)
        found = _written(engine, source, folder, settings, reporter)
        done = WeightsAlone(out / f"int8{engine.suffix}", *found)
        (folder / "report.json").write_text(json.dumps(done.to_dict(), indent=1) + "\n", encoding="utf-8")
        if engine.convert is not None:  # its file has no place for metadata
            source.unlink()
            if known is not None:
                beside = json.dumps({"preprocessing": known.to_dict(), "classes": []}, indent=1) + "\n"
                for kind in done.forms:
                    (folder / f"{kind}.json").write_text(beside, encoding="utf-8")
    return done


def _written(
    engine: Engine, source: Path, folder: Path, settings: Settings, reporter: Reporter
) -> tuple[dict[str, StoredForm], str, int, tuple[str, ...]]:
    """Write the smaller files, and compare each with the float one on random inputs."""
    reference = OnnxSession(source)
    arrays = sample_inputs(reference.inputs, batch=BATCH)
    wanted = reference.run(*arrays)
    forms, notes = {"float": StoredForm((folder / f"float{engine.suffix}").stat().st_size, 200.0)}, []
    writers = {"half": engine.int8.write_half, "int8": lambda onnx, path: engine.int8.write_weights(onnx, path, settings.scheme, ())}
    for name, write in writers.items():
        with reporter.stage(f"write {name}"):
            path = folder / f"{name}{engine.suffix}"
            try:
                write(source, path)
            except ExportError as error:
                if name == "int8":
                    raise
                notes.append(f"{WORDS[name]}: left out ({error})")
                continue
            ratio = _ratio(wanted, engine.session(path, settings.threads).run(*arrays))
            if ratio is None and name == "half":
                notes.append(f"{WORDS[name]}: left out (a weight or a product is too large for half floats)")
                path.unlink()
                continue
            if ratio is None:
                raise CheckError(
                    "outputs are no numbers, with weights as integers", where=engine.name, remedy="Look for weights that are huge."
                )
            forms[name] = StoredForm(path.stat().st_size, ratio)
    return forms, engine.name, settings.scheme.weight_bits, tuple(notes)


def _ratio(wanted: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float | None:
    """The least ratio of signal to noise of any output of real numbers, in decibels; None where one of them is not finite."""
    pairs = [(a, b) for a, b in zip(wanted, found, strict=True) if a.shape == b.shape and a.size and np.issubdtype(a.dtype, np.floating)]
    if not pairs:
        raise OptionError(
            "no output of real numbers of one size", where="--weights-only", remedy="Give --calib DATA, to compare on images."
        )
    if not all(np.isfinite(b).all() for _, b in pairs):
        return None
    return min(sqnr(b, a) for a, b in pairs)
