"""Settings of `irtool demo`: measured settings, so that the demo and whoever copies it need not search for their own.

On scikit-learn's digits at 32x32 (1,438 to train on, 359 to test), seeds 0, 1, 2: 99.7, 98.9, 99.4 % after 20 epochs, with
81 to 82 % of the batch norm scales within 5 % of zero; with half of all channels masked (gamma and beta to zero) the same, and
with 70 % masked 99.7, 98.6, 98.9 %. 32 s on one free core. A strength of 1e-2 gives 98.3, 98.9, 99.4 %, unchanged at 70 %.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from irtool.models import VGG
from irtool.progress import Progress, silent
from irtool.train.data.dataset import Data, load_data
from irtool.train.settings import Settings


@dataclass(frozen=True)
class Demo:
    """The demo's ingredients.

    Args:
        settings: for `sparse`.
        strength: of the L1 penalty. Seventy times the usual 1e-4, since the run has 900 steps and not 60,000.
        depth, width: of the `VGG`.
        seed: of the model's first weights; `settings.seed` is that of the training.
    """

    settings: Settings
    strength: float = 7e-3
    depth: int = 11
    width: float = 0.25
    seed: int = 0

    def data(self, progress: Progress = silent) -> Data:
        """scikit-learn's digits as (3, 32, 32) images."""
        return load_data("digits", channels=3, progress=progress)

    def model(self) -> VGG:
        """The untrained network, the same each time; the caller's random state is left alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return VGG(self.depth, width=self.width)


def demo_settings(*, quick: bool = False, **changes: Any) -> Demo:
    """The demo, or a shorter one (6 epochs, 97 %, right only up to half of the channels) to show that everything works. `changes` are training options (`out`, say)."""
    full = Demo(Settings(epochs=20, lr=0.1, batch_size=32, channels_last=True, evaluate_every=5, device="cpu"))
    short = replace(full, settings=replace(full.settings, epochs=6, evaluate_every=0), strength=1e-2)
    chosen = short if quick else full
    return replace(chosen, settings=Settings.merged(chosen.settings, changes))
