"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

LARGEST_SEED = (1 << 63) - 1
"""The largest seed that torch's generators take."""

MODEL_HELP = (
    "What to build or load: a built-in (PreResNet:depth=38, VGG:depth=16,width=0.5), one of torchvision's (resnet18) or timm's "
    "(timm/NAME), a function or class in a module (package.module:build) or in a file (net.py:Net:classes=10), an .onnx file, a model "
    "that irtool saved, or trust:FILE, a whole model that torch.save wrote, whose pickle may run code."
)

ModelArgument = Annotated[str, typer.Argument(help=MODEL_HELP, metavar="MODEL")]
OptionalModelArgument = Annotated[str | None, typer.Argument(help=MODEL_HELP, metavar="MODEL")]
Weights = Annotated[
    Path | None, typer.Option("--weights", "-w", help="A state dict: .pth (read without running code) or .safetensors.", metavar="FILE")
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        "-i",
        help="The size of an input, e.g. 1x3x224x224; once for each input. With --data it is known; an .onnx file needs it for free axes only.",
        metavar="SIZES",
    ),
]
Values = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="A value for an input of an .onnx file, e.g. sr=16000: it is that for good, and no input any more.",
        metavar="NAME=VALUE",
    ),
]
Data = Annotated[
    str | None,
    typer.Option("--data", "-d", help="An ImageFolder, a zip of one, or digits, CIFAR10, CIFAR100, MNIST, FashionMNIST.", metavar="DATA"),
]
Mean = Annotated[str | None, typer.Option(help="Normalisation, R,G,B from 0 to 1; default: that of the training images.", metavar="R,G,B")]
Std = Annotated[str | None, typer.Option(help="Likewise.", metavar="R,G,B")]
Limit = Annotated[int | None, typer.Option(help="Use at most so many images of each split.")]
ImageSize = Annotated[int | None, typer.Option(help="Resize and crop images to so many pixels; default: their own size.")]
Opset = Annotated[int, typer.Option(help="ONNX operator set, 11 to 26; an .onnx file keeps its own.")]


class Scope(StrEnum):
    """The layers that a ratio applies to together."""

    GLOBAL = "global"
    LOCAL = "local"
    ISOMORPHIC = "isomorphic"


class Residual(StrEnum):
    """The treatment of residual streams."""

    SELECT = "select"
    COUPLE = "couple"
    KEEP = "keep"


class Constants(StrEnum):
    """The treatment of the constants that removed channels emit."""

    ABSORB = "absorb"
    DROP = "drop"
