"""Random crops, mirroring and mixup on whole batches, as tensor operations. No image library in the loop."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Draws:
    """The random numbers of one batch, per image, on the CPU.

    They are drawn for the batch of *all* processes and then cut, so that several processes see what one would.
    """

    top: Tensor
    left: Tensor
    mirror: Tensor
    mix: float
    """Mixup's coefficient: the share of an image's own label."""

    def part(self, rows: slice) -> Draws:
        """The draws of some of the images."""
        return Draws(self.top[rows], self.left[rows], self.mirror[rows], self.mix)


@dataclass(frozen=True)
class Augment:
    """Changes to each training image.

    Args:
        crop: pixels of black padding, then a random window of the old size (per image); 0 is off.
        flip: mirror each image left to right with probability 1/2.
        mixup: alpha of the Beta distribution; 0 is off.
    """

    crop: int
    flip: bool
    mixup: float = 0.0

    def draw(self, random: np.random.Generator, count: int) -> Draws:
        """The random numbers for `count` images. The same number is consumed whatever is switched on."""
        offsets = torch.from_numpy(random.integers(0, 2 * self.crop + 1, size=(2, count)))
        mirror = torch.from_numpy(random.random(count) < 0.5)
        mix = float(random.beta(self.mixup, self.mixup)) if self.mixup else 1.0
        return Draws(offsets[0], offsets[1], mirror, mix)

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """Crop and mirror uint8 images (N, C, H, W), on whichever device they are."""
        count, _, height, width = images.shape
        if self.crop:
            # Windows are a strided view of the padded batch: picking one an image copies each pixel once.
            windows = functional.pad(images, (self.crop,) * 4).unfold(2, height, 1).unfold(3, width, 1)
            device = images.device
            images = windows[torch.arange(count, device=device), :, draws.top.to(device), draws.left.to(device)]
        if self.flip:
            images = torch.where(draws.mirror.to(images.device).view(-1, 1, 1, 1), images.flip(3), images)
        return images

    def mix(self, images: Tensor, labels: Tensor, classes: int, draws: Draws) -> tuple[Tensor, Tensor]:
        """Mixup (Zhang et al., 2018) of normalised images with their neighbours.

        Returns:
            images, and targets as probabilities (N, classes); both untouched where mixup is off (targets: labels).
        """
        if not self.mixup:
            return images, labels
        # Neighbours in a shuffled order are random partners, and a pair never lies across two processes.
        partner = torch.arange(len(labels), device=labels.device).bitwise_xor(1).clamp(max=len(labels) - 1)
        targets = functional.one_hot(labels, classes).to(images.dtype)
        return images.lerp(images[partner], 1 - draws.mix), targets.lerp(targets[partner], 1 - draws.mix)
