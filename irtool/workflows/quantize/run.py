"""`irtool.quantize`: from a float model to an int8 file in a folder, with the accuracy, the bytes and the time of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from irtool.engines.table import ENGINES
from irtool.errors import OptionError
from irtool.hosts.onnx.files.given import Given
from irtool.progress import Reporter
from irtool.train import Data
from irtool.workflows.folders.output_folder import QUANTIZE, keep_inputs, model_files, output_folder
from irtool.workflows.loading.arrays import AsStored, stored_shapes
from irtool.workflows.loading.data import DataOptions, example_shapes, file_shapes
from irtool.workflows.loading.models import Shape, graph_of, onnx_file, saved_model
from irtool.workflows.options import read_options
from irtool.workflows.quantize.calibration_images import Images, load_images
from irtool.workflows.quantize.forms import WORDS
from irtool.workflows.quantize.graph import Outcome, Settings, quantize_graph
from irtool.workflows.quantize.options import QuantizeOptions
from irtool.workflows.quantize.report import verdict, write_report


@dataclass(frozen=True)
class Quantisation:
    """The result of `irtool.quantize`.

    Attributes:
        file: the int8 model.
        recommended: the file to use for the goal.
        outcome: what was measured before and after, where integers are, and which layers stayed in float.
        verdict: in a sentence, whether int8 is worth it here, and if not, why.
        images: what it was calibrated and scored on.
        settings: how.
    """

    file: Path
    recommended: Path
    outcome: Outcome
    verdict: str
    images: Images
    settings: Settings


def quantize(
    model: str | Path,
    out: str | Path,
    *,
    calib: str | Path | DataOptions | None = None,
    data: str | Path | None = None,
    weights: str | Path | None = None,
    inputs: Sequence[Shape] = (),
    values: Given | None = None,
    progress: Reporter | None = None,
    **options: Any,
) -> Quantisation:
    """Write an int8 model, and compare its accuracy, bytes and latency with the float model's.

    Args:
        model: what MODEL is on the command line: `net.py:Net`, an .onnx file, a saved model, a compress run's folder.
        out: the folder for the float file, its smaller forms and the int8 file, steps.txt, sensitivity.json and .png and report.json. It
            changes as one.
        calib: images to calibrate with: as `data` of `irtool.compress`, or a folder of images alone; or a .npy file of inputs as the model
            takes them, one a row. Weights alone need none: see `irtool.quantize_weights`.
        data: labelled images to score on, which choose nothing; by default the test split of `calib`.
        weights: a state dict's file.
        inputs: sizes of the inputs, where the data do not tell them.
        values: numbers for inputs of an .onnx file, by name, which are inputs no more.
        progress: is told what is being done.
        **options: the fields of `QuantizeOptions`: engine, max_drop, method, weights_only ...

    Raises:
        CheckError: a pass changed the numbers, or no mixture of int8 and float keeps the accuracy. Nothing is written.
        IrtoolError: a step cannot be taken, or an option can never work.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     done = quantize("VGG:depth=11,width=0.125", f"{folder}/int8", calib="digits", max_drop=0.3, sensitivity=False)
    >>> done.file.name
    'int8.onnx'
    >>> done.outcome.after.bytes < 0.3 * done.outcome.before.bytes
    True
    """
    if calib is None:
        remedy = "Give calib=DATA (a folder of images will do), or call irtool.quantize_weights."
        raise OptionError("integers between layers need images", where="calib", remedy=remedy)
    wanted = read_options(QuantizeOptions, options)
    settings, name, out, reporter = wanted.settings(), str(model), Path(out), progress or Reporter()
    own_weights = None if weights is None else Path(weights)
    suffixes = [engine.suffix for engine in ENGINES.values()]
    keep_inputs((out / f"{kind}{suffix}" for suffix in suffixes for kind in WORDS), model_files(name, own_weights))
    calibration = replace(calib if isinstance(calib, DataOptions) else DataOptions(str(calib)), last=True)
    with output_folder(out, QUANTIZE) as folder:
        images = load_images(name, calibration, None if data is None else str(data), wanted.images, reporter)
        with reporter.stage("trace"):
            source = onnx_file(name)
            if source is not None and not inputs:
                listed = stored_shapes if isinstance(images.preprocessing, AsStored) else file_shapes
                shapes: Sequence[Shape] = listed(source, images.preprocessing.input_shape, values or {})
            else:
                shapes = example_shapes(Data("", images.calibration, images.scored), inputs, own_batch=saved_model(name) is not None)
            graph = graph_of(name, own_weights, shapes, values=values)
        outcome = quantize_graph(graph, images, settings, folder, reporter)
        write_report(folder, outcome, images, settings)
        suffix = ENGINES[settings.engine].suffix
        judged = verdict(outcome, settings, folder / f"int8{suffix}")
    return Quantisation(out / f"int8{suffix}", out / f"{outcome.recommended}{suffix}", outcome, judged, images, settings)
