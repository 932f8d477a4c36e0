"""Parts that the reference nets share while they are built: scaled widths, the output layer, the first weights."""

from __future__ import annotations

import math

from torch import nn

BN_SCALE = 0.5
"""The first scale of every BN: Liu et al. (2017, arXiv:1708.06519, section 4.2) found it more accurate than 1, and an L1
penalty has half as far to go to zero."""


def scaled(channels: int, width: float) -> int:
    """`channels` times `width`, rounded to a whole number.

    Raises:
        ValueError: the width is not finite or leaves no channel.
    """
    if not math.isfinite(width) or (out := round(channels * width)) < 1:
        raise ValueError(f"width {width} leaves none of {channels} channels. Choose more than 1/{2 * channels}; 1, 1/2 and 1/4 are usual.")
    return out


def output_layer(features: int, num_classes: int) -> nn.Linear:
    """The linear layer that gives the logits.

    Raises:
        ValueError: there are no classes.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}. It must be 1 or more.")
    return nn.Linear(features, num_classes)


def initialise(model: nn.Module) -> None:
    """He's normal (arXiv:1502.01852) for convolutions, `BN_SCALE` for BN; the linear layer keeps torch's default."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, BN_SCALE)
