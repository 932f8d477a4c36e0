"""Nets with dense outputs, several inputs or outputs: U-Net, pyramids, super-resolution, detectors, twins."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from structures.case import Head, case, cbr


@case("unet", removed=0.7)
class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.d1, self.d2, self.mid = cbr(3, 8), cbr(8, 12), cbr(12, 16)
        self.u2, self.c2 = nn.ConvTranspose2d(16, 12, 2, 2), cbr(24, 12)
        self.u1, self.c1, self.out = nn.ConvTranspose2d(12, 8, 2, stride=2, bias=False), cbr(16, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        d1 = self.d1(x)
        d2 = self.d2(F.max_pool2d(d1, 2))
        y = self.u2(self.mid(F.max_pool2d(d2, 2)))
        y = self.u1(self.c2(torch.cat([d2, y], dim=1)))
        return self.out(self.c1(torch.cat([y, d1], dim=1)))


@case("fpn_pan", shapes=((2, 3, 16, 16),), removed=0.65)
class FpnPan(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c3, self.c4, self.c5 = cbr(3, 8, stride=2), cbr(8, 12, stride=2), cbr(12, 16, stride=2)
        self.lateral = nn.ModuleList(nn.Conv2d(c, 8, 1) for c in (8, 12, 16))
        self.down, self.up = nn.ModuleList(cbr(8, 8, stride=2) for _ in range(2)), nn.Upsample(scale_factor=2, mode="nearest")
        self.heads = nn.ModuleList(nn.Conv2d(8, 3, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        c3 = self.c3(x)
        c4 = self.c4(c3)
        p5 = self.lateral[2](self.c5(c4))
        p4 = self.lateral[1](c4) + F.interpolate(p5, size=c4.shape[-2:], mode="bilinear", align_corners=False)
        p3 = self.lateral[0](c3) + self.up(p4)
        n4 = p4 + self.down[0](p3)
        n5 = p5 + self.down[1](n4)
        return tuple(head(p) for head, p in zip(self.heads, (p3, n4, n5), strict=True))


@case("bifpn", removed=0.6)
class BiFpn(nn.Module):
    """Learned fusion weights, normalised: a parameter that carries no channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.w, self.out = cbr(3, 8), cbr(8, 8), nn.Parameter(torch.rand(2) + 0.5), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        w = F.relu(self.w)
        w = w / (w.sum() + 1e-4)
        return self.out(F.silu(w[0] * a + w[1] * self.b(a)))


@case("espcn", removed=0.6)
class Espcn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(1, 16, 5, padding=2), nn.Conv2d(16, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.three(torch.tanh(self.two(torch.tanh(self.one(x[:, :1]))))), 2)


@case("pixel_shuffle_inside", removed=0.65, aligned=False)
class PixelShuffleInside(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(cbr(3, 16), nn.PixelShuffle(2), cbr(4, 8), nn.PixelUnshuffle(2), cbr(32, 8), Head(8))


@case("detector_dict", removed=0.65)
class DetectorDict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.boxes, self.scores = nn.Sequential(cbr(3, 16), cbr(16, 16)), nn.Conv2d(16, 12, 1), nn.Conv2d(16, 6, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.body(x)
        boxes = self.boxes(x).view(x.shape[0], 3, 4, 8, 8).permute(0, 3, 4, 1, 2).reshape(x.shape[0], -1, 4)
        return OrderedDict(boxes=boxes, scores=self.scores(x).permute(0, 2, 3, 1).flatten(1, 2))


@case("detector_tuple", removed=0.65, inexact=("mean over channels",))
class DetectorTuple(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.boxes, self.scores = nn.Sequential(cbr(3, 16), cbr(16, 16)), nn.Sequential(cbr(16, 8), nn.Conv2d(8, 4, 1)), Head(16)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = self.body(x)
        return self.scores(x), [self.boxes(x), x.mean(1)]


@dataclass
class Found:
    boxes: Tensor
    features: Tensor


@case("detector_dataclass", removed=0.45)
class DetectorDataclass(nn.Module):
    """A dataclass that no one registered with torch: its fields are outputs all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.neck, self.boxes = cbr(3, 16), cbr(16, 8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Found:
        x = self.neck(self.body(x))
        return Found(boxes=self.boxes(x), features=x)


@case("siamese", shapes=((2, 3, 8, 8), (2, 3, 8, 8)), removed=0.65)
class Siamese(nn.Module):
    """One backbone called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Sequential(cbr(3, 8), cbr(8, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(16, 2)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.fc(torch.abs(self.body(a) - self.body(b)))


@case("siamese_concat", shapes=((2, 3, 8, 8), (2, 3, 8, 8)), removed=0.65)
class SiameseConcat(nn.Module):
    """The twins are concatenated, so that each channel arrives twice at one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Sequential(cbr(3, 8), cbr(8, 12)), nn.Conv2d(24, 3, 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.fc(torch.cat([self.body(a), self.body(b)], 1))


@case("two_inputs", shapes=((2, 3, 8, 8), (2, 5)), removed=0.45)
class TwoInputs(nn.Module):
    """An image and a vector that is broadcast over it (FiLM)."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.vector, self.out = cbr(3, 16), nn.Linear(5, 32), nn.Conv2d(16, 4, 1)

    def forward(self, image: Tensor, vector: Tensor) -> Tensor:
        scale, shift = self.vector(vector).chunk(2, dim=-1)
        return self.out(F.relu(self.image(image) * scale[:, :, None, None] + shift.unsqueeze(-1).unsqueeze(-1)))


@case("aspp", removed=0.65)
class Aspp(nn.Module):
    """Dilated branches and an image-pooling branch that is resized back."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.pooled = cbr(3, 12), cbr(12, 8, 1), cbr(12, 8, 1)
        self.wide, self.join, self.out = nn.Conv2d(12, 8, 3, padding=2, dilation=2), cbr(24, 8, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        pooled = F.interpolate(self.pooled(F.adaptive_avg_pool2d(y, 1)), size=y.shape[2:], mode="nearest")
        y = self.join(torch.cat([self.one(y), self.wide(y), pooled], 1))
        return F.interpolate(self.out(y), x.shape[-2:], mode="bilinear", align_corners=False)
