"""How good a file is: what is expected of it on images that choose, and its accuracy on images that chose nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from irtool.progress import Reporter
from irtool.train import Status
from irtool.train.data.split import in_batches
from irtool.train.evaluate import logits_of, scored_labels
from irtool.workflows.loading.feeds import agreement, in_parts, is_classifier
from irtool.workflows.quantize.calibration_images import Images

SCORE_BATCH = 64
Runner = Callable[[np.ndarray], list[np.ndarray]]
"""A file in its engine: from images to all its outputs."""


@dataclass(frozen=True)
class Score:
    """The result of a file on the images that chose nothing.

    Attributes:
        accuracy: as a share: of right answers, of the float model's answers, or the agreement of all outputs.
        drop: how much less than the float file's that is.
        error: the standard error of `drop`, which is of pairs: the same images in both; None of a single batch of outputs.
    """

    accuracy: float
    drop: float
    error: float | None


class Judge:
    """Judges files against the float file.

    Args:
        opened: opens a file.
        exact: the float file.
        images: those that choose, and those that are scored.
        reporter: told of it.

    Attributes:
        measure: what `Score.accuracy` is, in words.
        classifies: whether the model gives a row of scores for each image, and nothing else.
    """

    def __init__(self, opened: Callable[[Path], Runner], exact: Path, images: Images, reporter: Reporter) -> None:
        self._opened, self._reporter, self._images = opened, reporter, images
        self.choosing = images.choosing()
        self._exact = opened(exact)
        self._aims = in_parts(self._exact, self.choosing)
        self.classifies = is_classifier(self._aims, len(self.choosing))
        labelled = "accuracy" if images.labelled else "agreement with float"
        self.measure = labelled if self.classifies else "agreement of outputs"
        known = self.classifies and images.labelled
        self._truth = scored_labels(images.scored).numpy() if known else None  # without labels: the float file's answers, once it is scored
        self.float_score, self._right = self._scored(self._exact, "score float", None)

    @property
    def answers(self) -> np.ndarray | None:
        """The float model's answers on the images that choose; None of a model that is no classifier."""
        return self._aims[0].reshape(len(self.choosing), -1).argmax(1) if self.classifies else None

    def expected_drop(self, path: Path) -> float:
        """Estimate from the images that choose how much a file loses, without labels.

        Of a classifier: how much less likely its answers are than the float model's, by the float model's own probabilities, on
        average, and one standard error more, since few images tell. That is what its accuracy loses if those probabilities are right; where the two
        answer alike it is nothing. Of another model: the share of noise in its outputs.
        """
        found = in_parts(self._opened(path), self.choosing)
        if not self.classifies:
            return 1 - agreement(found, self._aims)
        mean, error = expected_loss(self._aims[0].reshape(len(self.choosing), -1), found[0].reshape(len(self.choosing), -1))
        return mean + error

    def score(self, path: Path, task: str) -> Score:
        """Score a file on the images that chose nothing."""
        return self._scored(self._opened(path), task, self._right)[0]

    def _scored(self, run: Runner, task: str, exact: np.ndarray | None) -> tuple[Score, np.ndarray]:
        """The score, and for each image (of other models: each batch) how right it is, with `exact` as the float file's."""
        split, found, sizes = self._images.scored, list[np.ndarray](), list[int]()
        for pixels in split.batches(in_batches(len(split), SCORE_BATCH)):
            images = split.preprocessing.normalise(pixels).numpy()
            outputs = run(images)
            if self.classifies:
                found.append(self._answers(outputs[0], len(images)))
            else:
                found.append(np.array([1.0 if exact is None else agreement(outputs, self._exact(images))]))
            sizes.append(len(images))
            self._reporter(Status(task, sum(sizes), len(split)))
        right = np.concatenate(found)
        if self.classifies:
            self._truth = right if self._truth is None else self._truth
            right = (right == self._truth).astype(np.float64)
        weights = np.ones(len(right)) if self.classifies else np.array(sizes, float)
        accuracy = float(np.average(right, weights=weights))
        if exact is None:
            return Score(accuracy, 0.0, 0.0), right
        lost = exact - right
        error = float(lost.std(ddof=1) / len(lost) ** 0.5) if len(lost) > 1 else None
        return Score(accuracy, float(np.average(lost, weights=weights)), error), right

    def _answers(self, scores: np.ndarray, count: int) -> np.ndarray:
        """The class with the largest score of each image; where there are labels, scores must be of their classes."""
        rows = scores.reshape(scores.shape[:2])
        found: np.ndarray = (logits_of(rows, count, len(self._images.scored.classes)).numpy() if self._images.labelled else rows).argmax(1)
        return found


def expected_loss(exact: np.ndarray, found: np.ndarray) -> tuple[float, float]:
    """Estimate the accuracy that other scores lose: the mean difference of the exact scores' probabilities at both answers, and its standard error.

    Args:
        exact: scores (images, classes); probabilities where all rows are non-negative and add up to one, else logits.
        found: other scores of the same images.
    """
    values = exact.astype(np.float64)
    if not ((values >= 0).all() and (np.abs(values.sum(1) - 1) < 1e-3).all()):
        values = np.exp(values - values.max(1, keepdims=True))
        values /= values.sum(1, keepdims=True)
    rows = np.arange(len(values))
    lost = values[rows, exact.argmax(1)] - values[rows, found.argmax(1)]
    return float(lost.mean()), float(lost.std() / len(lost) ** 0.5)
