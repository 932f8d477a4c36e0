"""The nets of `bench/quality.py`, the images that tools see, that choose and that score, and how nets are trained here."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from quality_tools import EXAMPLE
from torch import Tensor, nn
from torchvision.models import mobilenet_v2

from irtool.errors import DataError
from irtool.models import VGG, PreResNet
from irtool.train import load_data

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
CALIBRATION, VALIDATION = 512, 2000
TRAINED_ON, EPOCHS = 20_000, 3
"""Fashion-MNIST images, and how often each is seen, when the bench trains a net. The published nets were trained on all of CIFAR-10."""
EPOCH_IMAGES = 5000
"""Of the one epoch that follows pruning."""
SCARCE = "Debian's package dataset-fashion-mnist has the files (in /usr/share/datasets/fashion-mnist), as has github.com/zalandoresearch."


class World:
    """One dataset: training images that tools see, others of them that choose, test images that score.

    Args:
        source: see `load_data`.
        options: of `load_data`.
    """

    def __init__(self, source: Path, **options: Any) -> None:
        self.data = load_data(source, **options)
        order = np.random.default_rng(0).permutation(len(self.data.train.labels))
        self._order = order[: TRAINED_ON - VALIDATION]
        self.validation = self._of(self.data.train, order[TRAINED_ON - VALIDATION : TRAINED_ON])
        shuffled = np.random.default_rng(1).permutation(len(self.data.test.labels))  # they lie class by class
        self.test = self._of(self.data.test, shuffled)

    def calibration(self, seed: int) -> Tensor:
        """Images that every tool sees, of another draw each seed."""
        return self._of(self.data.train, self._order[np.random.default_rng(seed).permutation(len(self._order))[:CALIBRATION]])[0]

    def labelled(self, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Training images with labels; all of them fit where a net is trained from the beginning."""
        return self._of(self.data.train, self._order[np.random.default_rng(100 + seed).permutation(len(self._order))[:count]])

    def _of(self, split: Any, chosen: Any) -> tuple[Tensor, Tensor]:
        chosen = np.asarray(chosen)
        images: Tensor = self.data.preprocessing.normalise(next(iter(split.batches([chosen]))))
        return images, torch.as_tensor(np.asarray(split.labels)[chosen])


class Nets:
    """Nets by name, and their worlds.

    Args:
        shared: holds `data/cifar10-jpeg.zip` and `data/preresnet38`.
        fashion: holds Fashion-MNIST's idx files; None where it is not wanted.
        work: where nets that are trained here are kept.
    """

    def __init__(self, shared: Path, fashion: Path | None, work: Path) -> None:
        self.shared, self.fashion, self.work = shared, fashion, work
        self._worlds: dict[str, World] = {}
        self._models: dict[str, nn.Module] = {}

    def world(self, name: str) -> World:
        """The dataset of a net."""
        kind = "cifar" if name in PUBLISHED else "fashion"
        if kind not in self._worlds:
            if kind == "cifar":
                self._worlds[kind] = World(self.shared / "data" / "cifar10-jpeg.zip", mean=MEAN, std=STD)
            elif self.fashion is None:
                raise DataError("no Fashion-MNIST", where="--data", remedy=f"Give the folder of its idx files. {SCARCE}")
            else:
                self._worlds[kind] = World(self.fashion, image_size=32, channels=3)
        return self._worlds[kind]

    def model(self, name: str) -> nn.Module:
        """A net, trained if it is none of the published ones and was not trained before."""
        if name not in self._models:
            self._models[name] = self._published(name) if name in PUBLISHED else self._trained(name)
        return self._models[name]

    def _published(self, name: str) -> nn.Module:
        net = PreResNet(38)
        net.load_state_dict(torch.load(self.shared / "data" / "preresnet38" / f"{name}.pth", weights_only=True)["state_dict"])
        return net.eval()

    def _trained(self, name: str) -> nn.Module:
        torch.manual_seed(0)
        net, path = FRESH[name](), self.work / f"{name}.pth"
        done = 0
        if path.exists():
            held = torch.load(path, weights_only=True)
            net.load_state_dict(held["state_dict"])
            done = held["epochs"]
        images, labels = self.world(name).labelled(TRAINED_ON) if done < EPOCHS else (torch.zeros(0), torch.zeros(0))
        for epoch in range(done, EPOCHS):
            train_epoch(net, images, labels, 0.05, seed=epoch, span=(epoch / EPOCHS, (epoch + 1) / EPOCHS))
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"state_dict": net.state_dict(), "epochs": epoch + 1}, path)
            print(f"{name}: epoch {epoch + 1} of {EPOCHS}", flush=True)
        return net.eval()


def _mobile() -> nn.Module:
    """MobileNetV2 at half width whose first convolution has stride 1: at 32x32 pixels the usual one leaves a single pixel at the end."""
    net = mobilenet_v2(num_classes=10, width_mult=0.5)
    net.features[0][0].stride = (1, 1)
    return net


PUBLISHED = ("sparse", "normal")
FRESH = {"vgg16": lambda: VGG(16, 0.25), "mobilenetv2": _mobile}
"""Nets that the bench trains on Fashion-MNIST, enlarged to 32x32 pixels and three channels."""
assert EXAMPLE[1:] == (3, 32, 32)


def train_epoch(
    net: nn.Module, images: Tensor, labels: Tensor, rate: float, *, seed: int = 0, span: tuple[float, float] = (0.0, 1.0)
) -> None:
    """One epoch of SGD (Nesterov 0.9, weight decay 5e-4, batches of 64, images mirrored at random, one-cycle rate); the same for every net.

    Args:
        rate: the largest.
        seed: of order and mirroring.
        span: which part of the cycle this is.
    """
    optimizer = torch.optim.SGD(net.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=5e-4)
    generator = torch.Generator().manual_seed(seed)
    batches = torch.randperm(len(images), generator=generator).split(64)
    net.train()
    for number, chosen in enumerate(batches):
        part = span[0] + (span[1] - span[0]) * number / len(batches)
        share = part / 0.3 if part < 0.3 else 0.5 + 0.5 * math.cos(math.pi * (part - 0.3) / 0.7)
        for group in optimizer.param_groups:
            group["lr"] = rate * max(share, 0.01)
        batch = images[chosen]
        mirrored = torch.rand(len(batch), generator=generator) < 0.5
        batch = torch.where(mirrored[:, None, None, None], batch.flip(3), batch).contiguous(memory_format=torch.channels_last)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(batch), labels[chosen]).backward()
        optimizer.step()
    net.eval()
