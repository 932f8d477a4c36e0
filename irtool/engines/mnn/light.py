"""MNN files whose weights alone are integers, fitted to images."""

from __future__ import annotations

from pathlib import Path

import onnx

from irtool.atomic_files import scratch_folder
from irtool.engines.engine import Feeds
from irtool.engines.mnn.export import export_mnn
from irtool.engines.onnxruntime.prepare import prepared
from irtool.engines.onnxruntime.refine import refined
from irtool.engines.onnxruntime.stored_weights import weights_restored
from irtool.quant import Scheme
from irtool.quant.scales import weights_recipe


def write_weights(source: Path, path: Path, scheme: Scheme, feeds: Feeds) -> None:
    """Write an MNN file with integer weights. Its converter chooses the integers: the nearest to the floats that it is given.

    Where there are images, these are the floats of fitted integers. A row keeps its least and its largest weight, from which the converter takes
    its scale, and so finds the same integers.

    Args:
        source: the float ONNX file.
        path: the file.
        scheme: says the number of bits.
        feeds: calibration images.
    """
    if not feeds:
        export_mnn(source, path, weight_bits=scheme.weight_bits)
        return
    model = prepared(onnx.load(str(source)))
    recipe = refined(model, weights_recipe(model, bits=scheme.weight_bits, from_least=True), feeds, shared=False)
    with scratch_folder() as folder:
        onnx.save(weights_restored(model, recipe), str(folder / source.name))
        export_mnn(folder / source.name, path, weight_bits=scheme.weight_bits)
