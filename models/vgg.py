"""VGG with batch norm for 32x32 images (Simonyan and Zisserman, 2015), at any width."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from irtool.models.construction import initialise, output_layer, scaled

STAGES: dict[int, tuple[tuple[int, ...], ...]] = {
    11: ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    13: ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)),
    16: ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)),
    19: ((64, 64), (128, 128), (256, 256, 256, 256), (512, 512, 512, 512), (512, 512, 512, 512)),
}
"""The convolutions' widths by depth; a 2x2 max pool stands between two stages."""


class VGG(nn.Module):
    """Convolution, BN, ReLU in five stages (`features`), a global average, and one linear layer (`classifier`).

    The three linear layers of the ImageNet net have no use at ten classes. Their two hidden ones are left out, as is
    the pool after the last stage, so a 32x32 image arrives at the average with 2x2 pixels.

    Args:
        depth: 11, 13, 16 or 19, counted as the paper counts.
        width: multiplies every layer's channels, rounded; 1/2 has a quarter of the parameters, 1/4 a sixteenth.
        num_classes: the outputs.

    Raises:
        ValueError: a depth that is not in `STAGES`, a width that leaves a layer without a channel, or no classes.
    """

    def __init__(self, depth: int, width: float = 1.0, num_classes: int = 10) -> None:
        super().__init__()
        if depth not in STAGES:
            raise ValueError(f"VGG has no depth {depth}. Choose one of: {', '.join(map(str, STAGES))}.")
        layers: list[nn.Module] = []
        channels = 3
        for number, stage in enumerate(STAGES[depth]):
            if number:
                layers.append(nn.MaxPool2d(2))
            for full in stage:
                out = scaled(full, width)
                # BN subtracts the mean, and a bias with it.
                layers += [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
                channels = out
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = output_layer(channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) images, H and W of 16 and more, to (N, num_classes) logits."""
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))
