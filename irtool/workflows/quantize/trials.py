"""The int8 files that are tried: all layers in integers first, then the fewest in float with which little enough is lost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from onnx import ModelProto

from irtool.engines.engine import Engine, Feeds
from irtool.engines.onnxruntime.refine import HELD, images_that_fit, refined
from irtool.errors import CheckError
from irtool.progress import Reporter
from irtool.quant import Placement, Scheme, Statistics, layers_of, make_recipe, place
from irtool.quant.placement import DefUse
from irtool.quant.search import fewest_float
from irtool.train import Status
from irtool.workflows.loading.feeds import Feed
from irtool.workflows.quantize.calibration_images import Images
from irtool.workflows.quantize.judge import Judge
from irtool.workflows.quantize.sensitivity import Sensitivity, sensitivities

REFINED = 256
"""Calibration images at most that weights and biases are fitted to."""
SENSITIVITY_IMAGES = 64
"""Of those that choose: each layer's error is a share of power over all outputs, which few images tell."""


def fitting_feeds(model: ModelProto, images: Images, feed: Feed, batch: int | None) -> list[dict[str, np.ndarray]]:
    """Calibration images in batches, as many as memory takes, as a model's inputs by name. There are enough for some to be held back."""
    count = min(REFINED, images.calibrated, images_that_fit(model))
    size = batch or max(1, min(32, count // HELD))
    names = DefUse(model).inputs
    return [
        dict(zip(names, feed(np.resize(some, (batch or len(some), *some.shape[1:]))), strict=True))
        for some in islice(images.batches(size), max(1, count // size))
    ]


@dataclass(frozen=True)
class Chosen:
    """The int8 file that was chosen and written.

    Attributes:
        floating: the layers left in float for accuracy.
        expected: how much is expected to be lost, from the images that chose, and one standard error more.
        missed: the layers that the engine could not take in integers.
        sensitivity: of each layer, the most sensitive first; empty if it was not measured.
    """

    floating: tuple[str, ...]
    expected: float
    missed: tuple[str, ...]
    sensitivity: tuple[Sensitivity, ...]


@dataclass
class Trials:
    """The trials with one model in one engine.

    Attributes:
        engine: whose files are written.
        model: the prepared float model.
        stats: of its tensors.
        scheme: the options of quantisation.
        images: for calibration.
        judge: says how good a file is.
        folder: for the files.
        reporter: told of it.
        feed, batch: how the model takes images, and the batch that is written into it; None if it is free.
        threads: of the engine.
        feeds: images that weights and biases are fitted to; none where they are not fitted.
        judged: values that files are judged by, in place of outputs.
    """

    engine: Engine
    model: ModelProto
    stats: Mapping[str, Statistics]
    scheme: Scheme
    images: Images
    judge: Judge
    folder: Path
    reporter: Reporter
    feed: Feed
    batch: int | None
    threads: int
    feeds: Feeds
    judged: tuple[str, ...] = ()

    @property
    def file(self) -> Path:
        """Path of the int8 file."""
        return self.folder / f"int8{self.engine.suffix}"

    def placement(self, floating: tuple[str, ...]) -> Placement:
        """Place integers, with these layers in float."""
        return place(self.model, self.engine.int8.policy, floating)

    def choose(self, allowed: float, always: bool) -> Chosen:
        """Write the file with the fewest layers in float that is expected to lose little enough.

        Args:
            allowed: the loss, as a share.
            always: measure each layer alone even where all can be integers.

        Raises:
            CheckError: no mixture of integers and float loses so little.
        """
        losses, missed = dict[tuple[str, ...], float](), dict[tuple[str, ...], tuple[str, ...]]()

        def good(floating: tuple[str, ...]) -> bool:
            if floating not in losses:
                missed[floating] = self._write(floating)
                losses[floating] = self.judge.expected_drop(self.file)
            return losses[floating] <= allowed

        fine = good(())
        found = () if fine and not always else tuple(self._sensitivities())
        chosen = () if fine else fewest_float([entry.layer for entry in found], good)
        if chosen is None or (chosen and not self.placement(chosen).layers):  # with all in float it is no int8 file
            raise CheckError(
                f"int8 is expected to lose {100 * losses[()]:.2f} points, and no mixture with float layers loses less than {100 * allowed:.2f}",
                where=self.engine.name,
                remedy="Try the method percentile or minmax, more images, or a larger --max-drop (max_drop in a recipe).",
            )
        if chosen != next(reversed(losses)):
            self._write(chosen)
        return Chosen(chosen, losses[chosen], missed[chosen], found)

    def _write(self, floating: tuple[str, ...]) -> tuple[str, ...]:
        placement, total = self.placement(floating), len(layers_of(self.model))
        with self.reporter.stage(f"write int8, {total - len(placement.layers)} of {total} layers in float"):
            recipe = make_recipe(self.model, placement, self.stats, self.scheme)
            if self.feeds:
                recipe = refined(self.model, recipe, self.feeds, lambda done: self._told("fit the integers", done, len(placement.layers)))
            return self.engine.int8.write(self.model, recipe, self.file)

    def _sensitivities(self) -> list[Sensitivity]:
        answers = self.judge.answers
        return sensitivities(
            self.model,
            self.engine.int8.policy,
            self.stats,
            self.scheme,
            self.judge.choosing[:SENSITIVITY_IMAGES],
            None if answers is None else answers[:SENSITIVITY_IMAGES],
            feed=self.feed,
            batch=self.batch,
            threads=self.threads,
            values=self.judged,
            told=lambda done: self._told("sensitivity of each layer", done, len(self.placement(()).layers)),
        )

    def _told(self, task: str, done: int, total: int) -> None:
        self.reporter(Status(task, done, total))
