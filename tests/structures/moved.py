"""Movement of channels: views, permutations, slices, gathers, stacks, flattens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from structures.case import Head, case, cbr


@case("space_to_depth", removed=0.7)
class SpaceToDepth(nn.Module):
    """einops' `b c (h 2) (w 2) -> b (2 2 c) h w` and back, with literal and computed sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = cbr(3, 8), cbr(32, 16), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        b, c, h, w = x.shape
        x = x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(b, 4 * c, h // 2, w // 2)
        y = self.two(x).reshape(2, 2, 2, 4, 4, 4).permute(0, 3, 4, 1, 5, 2).reshape(2, 4, 8, 8)
        return self.three(y)


@case("strided_depth", removed=0.45, aligned=False)
class StridedDepth(nn.Module):
    """Channels become positions, of which a slice with steps takes every other one."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = cbr(3, 16), nn.Conv2d(4, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x).reshape(-1, 2, 2, 4, 8, 8).permute(0, 3, 4, 1, 5, 2).reshape(-1, 4, 16, 16)
        return self.two(F.relu(x[:, :, ::2, ::2] + x[:, :, 1::2, ::2]))


@case("windows", removed=0.5)
class Windows(nn.Module):
    """Window partition and reverse in channels-last form, with a linear layer in the window."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.fc, self.two = cbr(3, 12), nn.Linear(12, 12), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x).permute(0, 2, 3, 1)
        x = torch.roll(x, shifts=(-2, -2), dims=(1, 2))
        b, h, w, c = x.shape
        y = x.view(b, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, 16, c)
        y = self.fc(y).view(b, h // 4, w // 4, 4, 4, -1).permute(0, 1, 3, 2, 4, 5).contiguous().view(b, h, w, -1)
        return self.two((x + y).permute(0, 3, 1, 2))


@case("flips", removed=0.65)
class Flips(nn.Module):
    """Orders that change: flip, roll, index_select with a buffer, indexing with a list."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d, self.e, self.head = cbr(3, 12), cbr(12, 12), cbr(12, 8), cbr(8, 8), cbr(8, 8), Head(8)
        self.register_buffer("order", torch.tensor([3, 0, 2, 1, 5, 4, 7, 6]))
        self.register_buffer("other", torch.tensor([-1, 0, 3, 2, 1, 4, 6, 5]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).flip(1))
        x = self.c(torch.roll(x, 5, 1))
        x = self.d(torch.index_select(x, 1, self.order))
        x = self.e(x[:, self.other])
        return self.head(x[:, [7, 6, 5, -4, 0, 1, 2, 3]])


@case("flip_residual", removed=0.6)
class FlipResidual(nn.Module):
    """A value added to its own mirror: channel i is coupled with channel n - 1 - i."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = cbr(3, 12), cbr(12, 8), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.head(self.b(x + x.flip(1)))


@case("gather_repeated", removed=0.45, aligned=False)
class GatherRepeated(nn.Module):
    """Channels that are taken more than once, and others that nobody takes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = cbr(3, 8), nn.Conv2d(8, 4, 1)
        self.register_buffer("index", torch.tensor([0, 0, 5, 3, 1, 5, 2, 7]))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).index_select(1, self.index))


@case("slices", removed=0.55, aligned=False, pinned=("cannot be removed",))
class Slices(nn.Module):
    """Slices that overlap, with steps, with negative bounds, and narrow and select."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = cbr(3, 12), cbr(6, 6), cbr(6, 6), cbr(4, 6)
        self.e, self.f, self.head = cbr(4, 6), cbr(1, 6), Head(30)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        last = self.f(x[:, 7].unsqueeze(1))
        parts = [self.b(x[:, 3:9]), self.c(x[:, ::2]), self.d(x[:, -4:]), self.e(x.narrow(1, 2, 8)[:, 1::2]), last]
        return self.head(torch.cat(parts, 1))


@case("unequal_split", removed=0.6, aligned=False)
class UnequalSplit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = cbr(3, 16), cbr(3, 8), cbr(13, 8), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = self.a(x).split([3, 5, 8], dim=1)
        return self.head(self.b(first) * self.c(torch.cat([third, second], 1)))


@case("tensor_split", removed=0.65, aligned=False)
class TensorSplit(nn.Module):
    """Parts by number that do not divide: 10 into 4, 4, 2 (chunk) and 4, 3, 3 (tensor_split)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d, self.head = cbr(3, 10), cbr(2, 6), cbr(8, 10), cbr(10, 6), Head(6)

    def forward(self, x: Tensor) -> Tensor:
        one, two, three = self.a(x).chunk(3, 1)
        y = self.c(torch.cat([two, one], 1))
        p, q, r = y.tensor_split(3, dim=1)
        return self.head(self.b(three) + self.d(torch.cat([r, p, q], 1)))


@case("stacked", removed=0.65)
class Stacked(nn.Module):
    """Two maps interleaved channel by channel."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = cbr(3, 8), cbr(3, 8), cbr(16, 8), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.c(torch.stack([self.a(x), self.b(x)], 2).flatten(1, 2)))


@case("flatten_hw", removed=0.7)
class FlattenHw(nn.Module):
    """LeNet: each channel feeds H x W inputs of the linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3)
        self.fc1, self.fc2, self.fc3 = nn.Linear(12 * 16, 24), nn.Linear(24, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        x = F.relu(self.fc1(x.view(-1, 12 * 4 * 4)))
        return F.log_softmax(self.fc3(F.dropout(F.relu(self.fc2(x)), training=self.training)), dim=1)


@case("linear_to_map", removed=0.5)
class LinearToMap(nn.Module):
    """A generator: a linear layer's outputs become channels of a map, H x W of them each."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.bn, self.up, self.out = (
            nn.Linear(192, 8 * 4),
            nn.BatchNorm2d(8),
            nn.ConvTranspose2d(8, 8, 4, 2, 1),
            nn.Conv2d(8, 3, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x.flatten(1)).view(-1, 8, 2, 2)
        return torch.tanh(self.out(F.relu(self.up(self.bn(x)))))


@case("unflatten", removed=0.45, aligned=False)
class Unflatten(nn.Module):
    """Capsules: channels as (capsule, entry), squeezed to a norm per capsule."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.split, self.out = cbr(3, 16), cbr(16, 24), nn.Unflatten(1, (6, 4)), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.split(self.b(self.a(x))).mean((-2, -1))
        return self.out(F.relu(x).unflatten(1, (3, 2)).transpose(1, 2).reshape(2, -1))


@case("channels_last_mlp", removed=0.6, pinned=("mixes positions",))
class ChannelsLastMlp(nn.Module):
    """MLP-Mixer: linear layers over channels and over positions in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.tokens, self.channels = (
            nn.Conv2d(3, 16, 4, 4),
            nn.Linear(4, 4),
            nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)),
        )
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(x.transpose(1, 2)).transpose(1, 2)
        return self.fc((x + self.channels(x)).mean(dim=1))


@case("repeats", removed=0.7, aligned=False)
class Repeats(nn.Module):
    """Channels repeated as a block and one by one, and expanded over a new axis."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d, self.head = cbr(3, 8), cbr(16, 8), cbr(16, 8), cbr(16, 8), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).repeat(1, 2, 1, 1))
        x = self.c(x.repeat_interleave(2, dim=1))
        return self.head(self.d(x.unsqueeze(2).expand(-1, -1, 2, -1, -1).reshape(2, 16, 8, 8)))


@case("cat_positions", removed=0.6)
class CatPositions(nn.Module):
    """Concatenation along height and width: the channels of both maps are coupled."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = cbr(3, 8), cbr(3, 8), cbr(8, 8), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.a(x), self.b(x)], dim=2)
        return self.head(self.c(torch.cat((y, y), -1)))


@case("constant_pad", removed=0.6, aligned=False)
class ConstantPad(nn.Module):
    """Channels of zeros before and after, as a module, uneven, and concatenated zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.pad, self.b, self.c, self.head = cbr(3, 8), nn.ConstantPad3d((0, 0, 0, 0, 1, 3), 0.0), cbr(12, 12), cbr(16, 8), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = self.b(self.pad(x))
        return self.head(self.c(torch.cat([x, torch.zeros_like(x[:, :4])], 1)))


@case("turned_pixels", removed=0.4, aligned=False)
class TurnedPixels(nn.Module):
    """Eight channels become neighbours along the width, these are moved by one, and channels again."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = cbr(3, 32), cbr(32, 16), Head(16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        b, c, h, w = y.shape
        y = y.view(b, c // 8, 8, h, w).permute(0, 1, 3, 4, 2).reshape(b, c // 8, h, w * 8).roll(1, 3)
        return self.head(self.b(y.view(b, c // 8, h, w, 8).permute(0, 1, 4, 2, 3).reshape(b, c, h, w)))


@case("folded_groups", removed=0.4, aligned=False)
class FoldedGroups(nn.Module):
    """Groups of channels in the batch's axis, each with a gate of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = cbr(3, 16), cbr(16, 16), Head(16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        z = y.reshape(x.shape[0] * 4, 4, *y.shape[2:])
        return self.head(self.b((z * torch.sigmoid(z.mean((2, 3), keepdim=True))).view(y.shape)))
