"""Small ONNX models for the tests of quantisation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import irtool


class Mixed(nn.Module):
    """Every kind of layer and join: a stem, a depthwise convolution, a residual addition, a pool, a concat, linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.pointwise = nn.Conv2d(16, 16, 1)
        self.left, self.right = nn.Conv2d(16, 8, 3, stride=2, padding=1), nn.Conv2d(16, 12, 1, stride=2, bias=False)
        self.hidden, self.out = nn.Linear(20, 24), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.pointwise(F.relu6(self.depthwise(x))))
        x = torch.cat([F.relu(self.left(x)), self.right(x)], 1)
        x = F.max_pool2d(x, 2).mean((2, 3))
        return self.out(F.relu(self.hidden(x)))


def exported(module: nn.Module, folder: Path, size: tuple[int, ...] = (2, 3, 16, 16)) -> onnx.ModelProto:
    """The module as an ONNX model, batch norms folded; the file is folder/float.onnx."""
    graph = irtool.fold_batchnorm(irtool.trace(module.eval(), torch.zeros(size)))
    irtool.export_onnx(graph, folder / "float.onnx")
    return onnx.load(str(folder / "float.onnx"))


def images(count: int, size: tuple[int, int, int] = (3, 16, 16), seed: int = 0) -> np.ndarray:
    """Smooth random pictures, float32 (count, *size): white noise is no test of a net with pooling."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, size[0], max(1, size[1] // 4), max(1, size[2] // 4), generator=generator)
    return F.interpolate(coarse, size=size[1:], mode="bilinear").numpy()


def sqnr(result: np.ndarray, reference: np.ndarray) -> float:
    """Signal to quantisation noise in decibels."""
    noise = float(((result.astype(np.float64) - reference) ** 2).sum())
    return float(10 * np.log10((reference.astype(np.float64) ** 2).sum() / max(noise, 1e-30)))
