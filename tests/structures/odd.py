"""Rarer ways to write a net: writes through views, positions as values, windows, products with parameters."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from structures.case import Head, case, cbr


@case("inplace_views", removed=0.6)
class InplaceViews(nn.Module):
    """Parts of a map are changed through slices of it; the map itself is read afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1), cbr(12, 8), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y[:, :4].add_(self.b(x))
        F.relu_(y[:, 6:])
        return self.head(self.c(y))


@case("assigned_slice", removed=0.6)
class AssignedSlice(nn.Module):
    """An assignment to a slice, whose bounds move with the channels that go."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = cbr(3, 12), cbr(12, 24), Head(24)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).clone()
        y[:, :4] = 0.5
        return self.head(self.b(y))


@case("empty_slice", removed=0.6)
class EmptySlice(nn.Module):
    """A part of no positions, as rotary embeddings leave out no prefix tokens: nothing is left of it, and nothing was."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = cbr(3, 12), cbr(12, 24), Head(24)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.head(self.b(torch.cat([y[:, :, :0], y[:, :, 0:] * 2], dim=2)))


@case("statistics", removed=0.6)
class Statistics(nn.Module):
    """Instance norm by hand; with the channel masked its deviation is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 12, 3), cbr(12, 8), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        variance, mean = torch.var_mean(y, dim=(2, 3), keepdim=True)
        return self.head(self.b((y - mean) / (variance + 1e-3).sqrt()))


@case("windows_of_pixels", removed=0.55)
class WindowsOfPixels(nn.Module):
    """im2col as a function, and unfold as a method."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.out = cbr(3, 8), nn.Conv1d(32, 8, 1), cbr(8, 8), nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.a(x)
        columns = self.b(F.unfold(y, 2, stride=2)).mean(-1)
        patches = self.c(y).unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 1, 4, 5, 2, 3).reshape(x.shape[0], 32, 4, 4)
        return columns, self.out(patches)


@case("class_map", removed=0.5, reason="gives positions of channels")
class ClassMap(nn.Module):
    """Segmentation that returns classes: their numbers are positions of channels, so that all must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.classes, self.other, self.head = cbr(3, 16), nn.Conv2d(16, 6, 1), nn.Conv2d(16, 12, 1), Head(12)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body(x)
        score, where = self.classes(x).max(dim=1, keepdim=True)
        return self.head(self.other(x) * score), where


@case("sampled", removed=0.65, reason="says where to sample")
class Sampled(nn.Module):
    """A spatial transformer: the grid's two channels are coordinates."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.grid, self.b, self.head = cbr(3, 12), nn.Conv2d(3, 2, 1), cbr(12, 12), Head(12)

    def forward(self, x: Tensor) -> Tensor:
        grid = torch.tanh(self.grid(x)).permute(0, 2, 3, 1)
        return self.head(self.b(F.grid_sample(self.a(x), grid, align_corners=False)))


@case("picked", removed=0.45, reason="orders values by size")
class Picked(nn.Module):
    """The strongest channels of each image, by a gather whose index is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = cbr(3, 16), cbr(16, 8), cbr(4, 16), Head(16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x))
        index = y.mean((2, 3)).argsort(1)[:, :4]
        return self.head(self.c(torch.gather(y, 1, index[:, :, None, None].expand(-1, -1, 8, 8))))


@case("parameter_product", removed=0.55)
class ParameterProduct(nn.Module):
    """A linear layer as `x @ w + b`, in two dimensions and three."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.w, self.b = cbr(3, 12), nn.Parameter(torch.randn(12, 16) * 0.3), nn.Parameter(torch.randn(16))
        self.v, self.fc = nn.Parameter(torch.randn(16, 12) * 0.3), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.body(x).flatten(2).transpose(1, 2) @ self.w + self.b)
        return self.fc(torch.matmul(x.mean(1), self.v).relu())


@case("outer_product", removed=0.4, reason="", pinned=("one group",))
class OuterProduct(nn.Module):
    """Every channel meets every other: they can only go together, that is never."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = cbr(3, 16), cbr(16, 6), nn.Linear(36, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x)).mean((2, 3))
        return self.out((y[:, :, None] * y[:, None, :]).flatten(1))


@case("rotary", removed=0.45, aligned=False)
class Rotary(nn.Module):
    """Halves of each head change places and sign, and are scaled by constants."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 4)
        self.register_buffer("cos", torch.rand(4, 1, 8))
        self.register_buffer("sin", torch.rand(4, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).flatten(2).transpose(1, 2).view(2, 4, 2, 8)
        turned = torch.cat([-h[..., 4:], h[..., :4]], -1)
        return self.b((h * self.cos + turned * self.sin).flatten(2))


@case("scaled_by_its_width", removed=0.65)
class ScaledByItsWidth(nn.Module):
    """A number that is computed from a size keeps its value; halves by computed bounds."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = cbr(3, 16), cbr(16, 16), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y = self.b(y / y.size(1))
        half = y.shape[1] // 2
        return self.c(y[:, :half] * torch.sigmoid(y[:, half:]))


@case("transformer_layer", removed=0.6, inexact=("normalises over channels",), aligned=False)
class TransformerLayer(nn.Module):
    """torch's own encoder layer."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.layer, self.fc = (
            nn.Conv2d(3, 16, 4, 4),
            nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True),
            nn.Linear(16, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer(self.patch(x).flatten(2).transpose(1, 2)).mean(1))
