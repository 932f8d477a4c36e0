"""MNN's own offline quantiser, to compare with.

It reads image files and a configuration, and prefers to say nothing when it fails. Its weights get one scale a channel and
its activations one scale a tensor, chosen by KL divergence, a moving average, or ADMM.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from irtool.atomic_files import replacing, scratch_folder
from irtool.engines.mnn.process import in_child, meaning
from irtool.engines.session import model_file
from irtool.errors import ExportError, OptionError
from irtool.extras import needed

METHODS = ("KL", "EMA", "ADMM")


def mnn_own_int8(
    source: str | os.PathLike[str],
    path: str | os.PathLike[str],
    images: np.ndarray,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    method: str = "KL",
    timeout: float = 900.0,
) -> int:
    """Quantise a float .mnn file by MNN's own method.

    Args:
        source: the float file, with one image input of the images' size.
        path: the int8 file.
        images: uint8 (N, channels, H, W), RGB or grey.
        mean, std: of the preprocessing, black 0 and white 1, in RGB order like the images.
        method: `KL`, `EMA` or `ADMM`.
        timeout: seconds.

    Returns:
        The bytes written.

    Raises:
        OptionError: another method.
        ExportError: it wrote nothing.
        FileError: no such file, or `path` cannot be written.
    """
    if method not in METHODS:
        raise OptionError(f"method={method!r}", where="mnn_own_int8", remedy=f"Choose one of {', '.join(METHODS)}.")
    file = model_file(source, ".mnn").absolute()
    with replacing(path) as temporary, scratch_folder() as folder:
        written = _quantised(file, folder, images, _configuration(folder, images, mean, std, method), timeout)
        shutil.copyfile(written, temporary)
        return temporary.stat().st_size


def _quantised(file: Path, folder: Path, images: np.ndarray, configuration: dict[str, object], timeout: float) -> Path:
    """Run the quantiser in a folder. That it wrote a file is the only sign of its success; it leaves others beside it."""
    (folder / "images").mkdir()
    for number, image in enumerate(images):
        needed("PIL.Image").fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(
            folder / "images" / f"{number:06}.png"
        )
    written, settings, listing = folder / "int8.mnn", folder / "configuration.json", folder / "arguments.json"
    settings.write_text(json.dumps(configuration), encoding="utf-8")
    listing.write_text(json.dumps(["quantized.out", str(file), str(written), str(settings)]), encoding="utf-8")
    died, said = in_child(["quantise", str(listing)], folder, timeout)
    if died or not written.exists():
        raise ExportError(
            f"MNN's quantiser {died or 'wrote no file'}: {meaning(said)}", where=str(file), remedy="Use irtool's own scales instead."
        )
    return written


def _configuration(folder: Path, images: np.ndarray, mean: Sequence[float], std: Sequence[float], method: str) -> dict[str, object]:
    channels, height, width = images.shape[1:]
    return {
        "format": "GRAY" if channels == 1 else "RGB",
        "mean": [255 * value for value in mean],
        "normal": [1 / (255 * value) for value in std],
        "width": width,
        "height": height,
        "path": f"{folder / 'images'}/",
        "used_sample_num": len(images),
        "feature_quantize_method": method,
        "weight_quantize_method": "ADMM" if method == "ADMM" else "MAX_ABS",
        "batch_size": min(len(images), 32),
    }
