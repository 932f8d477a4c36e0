"""Images for `irtool quantize`: what to calibrate with, what to choose by, and what to score on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from irtool.errors import DataError, OptionError
from irtool.progress import Reporter
from irtool.train import Preprocessing, load_data
from irtool.train.data.dataset import balanced
from irtool.train.data.split import MemorySplit, Split, in_batches
from irtool.workflows.loading.arrays import is_arrays, stored_inputs
from irtool.workflows.loading.data import DataOptions, known_preprocessing
from irtool.workflows.loading.unlabelled import flat_images, is_flat

BATCH = 32
"""Images at a time in calibration."""
CHOOSING = 512
"""Images at most that choose between files."""


@dataclass(frozen=True)
class Images:
    """Data for calibration and scoring.

    Attributes:
        calibration: normalised as the split says, in its order.
        count: how many of them to use, at most: where there are few, a quarter of them is kept for choosing.
        scored: labelled images to score on; or unlabelled ones, whose labels are yet to be the float model's answers.
        labelled: whether the labels are true ones.
    """

    calibration: Split
    count: int
    scored: Split
    labelled: bool

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names; none where nothing says what an image shows."""
        return self.scored.classes if self.labelled else ()

    @property
    def preprocessing(self) -> Preprocessing:
        """Preprocessing of pictures to inputs."""
        return self.calibration.preprocessing

    @property
    def calibrated(self) -> int:
        """How many images are calibrated with."""
        there = len(self.calibration)
        return max(1, min(self.count, there - there // 4))

    @property
    def chosen_by(self) -> int:
        """How many images choose."""
        return min(CHOOSING, len(self.calibration) - self.calibrated) or min(CHOOSING, self.calibrated)

    def choosing(self) -> np.ndarray:
        """Images that choose which layers stay in float, float32: of the calibration split, but neither calibrated with nor scored.

        A split of a single image has no others: it chooses too.
        """
        used = torch.zeros(len(self.calibration), dtype=torch.bool)
        used[balanced(self.calibration.labels, self.calibrated, 0)] = True
        others = (~used).nonzero()[:, 0]
        others = others if len(others) else used.nonzero()[:, 0]
        mixed = others[torch.randperm(len(others), generator=torch.Generator().manual_seed(1))[:CHOOSING]]
        return self.preprocessing.normalise(next(iter(self.calibration.batches([mixed])))).numpy()

    def batches(self, size: int = BATCH) -> Iterator[np.ndarray]:
        """Calibration images, float32, spread evenly over the classes; whole batches if there are that many."""
        chosen = balanced(self.calibration.labels, self.calibrated, 0)
        chosen = chosen[
            torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))
        ]  # one class after another would bias averages
        indices = [chosen[index] for index in in_batches(len(chosen), size)]
        for pixels in self.calibration.batches(indices):
            yield self.preprocessing.normalise(pixels).numpy()

    def pixels(self) -> np.ndarray:
        """The calibration images as uint8 (N, C, H, W)."""
        return next(iter(self.calibration.batches([balanced(self.calibration.labels, self.calibrated, 0)]))).numpy()


def load_images(model: str, calibration: DataOptions, scored: str | None, count: int, reporter: Reporter) -> Images:
    """Read `--calib` and, if it is given, `--data`.

    The normalisation is `--mean` and `--std` if they are given, else what the model's file says, else the images' own.

    Raises:
        DataError: missing, empty or damaged images.
        OptionError: a count below 1.
    """
    if count < 1:
        raise OptionError(f"--images {count}", remedy="Calibrate with at least one image; a few hundred are usual.")
    if is_arrays(calibration.source):
        return _stored(calibration, scored, count)
    calibration = known_preprocessing(model, calibration)
    if is_flat(calibration.source):
        return _unlabelled(model, calibration, scored, count, reporter)
    data = calibration.load(model, reporter)
    assert data is not None
    test = data.test
    if scored is not None:
        test = _scored(scored, data.preprocessing, calibration.limit, reporter)
    return Images(data.train, count, test, labelled=True)


def _stored(options: DataOptions, scored: str | None, count: int) -> Images:
    """Inputs of a .npy file: the last fifth is scored, unless another such file is."""
    said = [name for name in ("mean", "std", "image_size") if getattr(options, name) is not None]
    if said:
        flag = f"--{said[0].replace('_', '-')}"
        raise OptionError("stored inputs are taken as they are", where=flag, remedy="Leave it out, or give pictures.")
    rows, preprocessing = stored_inputs(str(options.source), options.limit)
    cut = min(count, max(1, len(rows) - max(1, len(rows) // 5))) if scored is None else len(rows)
    rest = rows[cut:]
    if scored is not None:
        if not is_arrays(scored):
            raise OptionError("pictures, and --calib stored inputs", where="--data", remedy="Give a .npy file of inputs, or leave it out.")
        rest, other = stored_inputs(scored, options.limit)
        if other.shape != preprocessing.shape:
            raise DataError(
                f"inputs of {other.shape}, those of --calib are of {preprocessing.shape}", where=scored, remedy="Give alike ones."
            )
    parts = [MemorySplit(part, torch.zeros(len(part), dtype=torch.int64), ("",), preprocessing) for part in (rows[:cut], rest)]
    return Images(parts[0], count, parts[1], labelled=False)


def _unlabelled(model: str, options: DataOptions, scored: str | None, count: int, reporter: Reporter) -> Images:
    pixels, preprocessing = flat_images(model, options, reporter)
    labels = torch.zeros(len(pixels), dtype=torch.int64)
    cut = min(count, max(1, len(pixels) - len(pixels) // 5))
    whole = MemorySplit(pixels[:cut], labels[:cut], ("",), preprocessing)
    if scored is not None:
        return Images(whole, count, _scored(scored, preprocessing, options.limit, reporter), labelled=True)
    rest = pixels[cut:] if cut < len(pixels) else pixels
    return Images(whole, count, MemorySplit(rest, labels[: len(rest)], ("",), preprocessing), labelled=False)


def _scored(source: str, preprocessing: Preprocessing, limit: int | None, reporter: Reporter) -> Split:
    found = load_data(
        source,
        mean=preprocessing.mean,
        std=preprocessing.std,
        image_size=preprocessing.size,
        channels=preprocessing.channels,
        limit=limit,
        progress=reporter,
    )
    if not len(found.test):
        raise DataError("no images to score on", where=source, remedy="Give a folder with a test split.")
    return found.test


def _text(values: tuple[float, ...]) -> str:
    return ",".join(map(repr, values))
