"""Augmentation on tensors."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from irtool.train.data.augment import Augment


def test_crops_are_shifts_with_black_borders_and_flips_mirror() -> None:
    images = torch.randint(1, 256, (64, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    augment = Augment(crop=2, flip=True)
    draws = augment.draw(np.random.default_rng(0), 64)
    found = augment.apply(images, draws)
    padded = nn.functional.pad(images, (2, 2, 2, 2))
    for number in range(64):
        top, left = int(draws.top[number]), int(draws.left[number])
        expected = padded[number, :, top : top + 8, left : left + 8]
        assert torch.equal(found[number], expected.flip(2) if draws.mirror[number] else expected)
    assert {int(value) for value in draws.top} == set(range(5))
    assert 16 < int(draws.mirror.sum()) < 48
    assert torch.equal(Augment(crop=0, flip=False).apply(images, draws), images)


def test_mixup_blends_neighbours_and_their_labels() -> None:
    augment = Augment(crop=0, flip=False, mixup=1.0)
    draws = augment.draw(np.random.default_rng(0), 5)
    images, labels = torch.arange(5.0).view(5, 1, 1, 1), torch.tensor([0, 1, 2, 0, 1])
    mixed, targets = augment.mix(images, labels, 3, draws)
    mix = draws.mix
    assert 0 < mix < 1
    torch.testing.assert_close(mixed.flatten(), torch.tensor([1 - mix, mix, 2 * mix + 3 * (1 - mix), 3 * mix + 2 * (1 - mix), 4.0]))
    torch.testing.assert_close(targets[0], torch.tensor([mix, 1 - mix, 0]))
    torch.testing.assert_close(targets.sum(1), torch.ones(5))
