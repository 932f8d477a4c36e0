"""Gates, norms and attention: values that multiply channels, steps that mix them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from structures.case import Head, case, cbr


class Wrapped(nn.Module):
    """Two convolutions around a part."""

    def __init__(self, part: nn.Module, channels: int = 16) -> None:
        super().__init__()
        self.one, self.part, self.two, self.head = cbr(3, channels), part, cbr(channels, 8), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.part(self.one(x))))


class SE(nn.Module):
    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))


class LinearSE(nn.Module):
    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(channels, inner, bias=False), nn.ReLU(), nn.Linear(inner, channels, bias=False), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        return x * self.fc(x.mean((2, 3)).view(b, c)).view(b, c, 1, 1).expand_as(x)


@case("se", removed=0.65)
class SENet(Wrapped):
    def __init__(self) -> None:
        super().__init__(nn.Sequential(SE(16, 8), LinearSE(16, 4)))


class ECA(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool, self.conv = nn.AdaptiveAvgPool2d(1), nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.pool(x).squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return x * torch.sigmoid(y).expand_as(x)


@case("eca", removed=0.6, inexact=("a convolution over channels",))
class ECANet(Wrapped):
    """A convolution along the channel axis: who is whose neighbour changes when channels go."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(cbr(16, 16), ECA(), cbr(16, 16)))


class CBAM(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mlp, self.spatial = nn.Sequential(nn.Linear(channels, 4), nn.ReLU(), nn.Linear(4, channels)), nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.mlp(F.adaptive_avg_pool2d(x, 1).flatten(1)) + self.mlp(F.adaptive_max_pool2d(x, 1).flatten(1))
        x = x * torch.sigmoid(gate)[..., None, None]
        both = torch.cat([torch.mean(x, dim=1, keepdim=True), torch.max(x, dim=1, keepdim=True)[0]], dim=1)
        return x * torch.sigmoid(self.spatial(both))


@case("cbam", removed=0.6, inexact=("mean over channels", "max over channels"))
class CBAMNet(Wrapped):
    def __init__(self) -> None:
        super().__init__(CBAM(16))


@case("group_norm", removed=0.5, inexact=("groups of channels",), aligned=False)
class GroupNormNet(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.GroupNorm(1, 16), nn.ReLU(), Head(16)
        )


@case("instance_norm", removed=0.65)
class InstanceNormNet(nn.Sequential):
    """Norms of one channel each are exact: instance norm, and group norm with as many groups as channels."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3),
            nn.InstanceNorm2d(8, affine=True),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, padding=1),
            nn.GroupNorm(12, 12),
            nn.ReLU(),
            Head(12),
        )


@case("prelu", removed=0.6)
class PReluNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.act, self.two, self.single = nn.Conv2d(3, 12, 3), nn.PReLU(12), nn.Conv2d(12, 8, 3), nn.PReLU()
        self.slope, self.head = nn.Parameter(torch.rand(8) + 0.1), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.single(self.two(self.act(self.one(x))))
        return self.head(F.prelu(x, self.slope))


class ConvNeXtBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv, self.norm = nn.Conv2d(channels, channels, 3, padding=1, groups=channels), nn.LayerNorm(channels)
        self.up, self.down, self.gamma = (
            nn.Linear(channels, 2 * channels),
            nn.Linear(2 * channels, channels),
            nn.Parameter(torch.rand(channels) + 0.1),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.down(F.gelu(self.up(y)))
        return x + y.permute(0, 3, 1, 2)


class LayerNorm2d(nn.Module):
    """Layer norm over axis 1, written out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(channels) + 0.5), nn.Parameter(torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        u = x.mean(1, keepdim=True)
        s = (x - u).pow(2).mean(1, keepdim=True)
        return self.weight[:, None, None] * ((x - u) / torch.sqrt(s + 1e-6)) + self.bias[:, None, None]


@case("convnext", removed=0.65, inexact=("mean over channels", "normalises over channels"))
class ConvNeXt(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 16, 2, 2), LayerNorm2d(16), ConvNeXtBlock(16), ConvNeXtBlock(16), nn.Conv2d(16, 24, 1), Head(24))


class FusedAttention(nn.Module):
    """One projection for queries, keys and values, split by reshape, permute and unbind."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.norm, self.qkv, self.proj = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        attention = ((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        return x + self.proj((attention @ v).transpose(1, 2).reshape(b, n, c))


@case("fused_attention", removed=0.6, inexact=("normalises over channels",), aligned=False)
class FusedAttentionNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.position = nn.Conv2d(3, 16, 4, 4), nn.Parameter(torch.randn(1, 4, 16) * 0.1)
        self.attention, self.fc = FusedAttention(16, 2), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.position
        return self.fc(self.attention(x).mean(1))


@case("multihead_attention", removed=0.6, inexact=("normalises over channels",), aligned=False)
class MultiheadNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.token, self.norm = nn.Conv2d(3, 16, 4, 4), nn.Parameter(torch.randn(1, 1, 16)), nn.LayerNorm(16)
        self.attention, self.mlp = (
            nn.MultiheadAttention(16, 2, batch_first=True),
            nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)),
        )
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return self.fc((x + self.mlp(x))[:, 0])


@case("scaled_dot_product", removed=0.55, aligned=False)
class ScaledDotProduct(nn.Module):
    """Separate projections, torch's own attention with its default scale."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.q, self.k, self.v, self.out = (
            nn.Conv2d(3, 16, 4, 4),
            nn.Linear(16, 16),
            nn.Linear(16, 16),
            nn.Linear(16, 24),
            nn.Linear(24, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        q, k, v = (t.view(2, 4, 2, -1).transpose(1, 2) for t in (self.q(x), self.k(x), self.v(x)))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(2, 4, 24).mean(1))


@case("position_bias", removed=0.5, aligned=False, reason="an attention mask weighs all channels of a head")
class PositionBias(nn.Module):
    """A small net makes a bias for each head from where two tokens are (Swin V2); each head weighs many channels."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.qkv, self.out = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 36), nn.Linear(12, 5)
        self.bias = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 3))
        self.register_buffer("offsets", torch.randn(4, 4, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x).view(2, 4, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.bias(self.offsets).permute(2, 0, 1).unsqueeze(0)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.out(y.transpose(1, 2).reshape(2, 4, 12).mean(1))


@case("channel_attention", inexact=("softmax over channels",))
class ChannelAttention(Wrapped):
    """A product over positions leaves channels on both axes (DANet)."""

    class Part(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            b, c, h, w = x.shape
            flat = x.view(b, c, -1)
            energy = torch.bmm(flat, flat.transpose(1, 2))
            return torch.bmm(torch.softmax(energy, dim=-1), flat).view(b, c, h, w) + x

    def __init__(self) -> None:
        super().__init__(nn.Sequential(cbr(16, 16), ChannelAttention.Part(), cbr(16, 16)))


@case("position_attention", removed=0.65)
class PositionAttention(Wrapped):
    """Non-local block: queries and keys are contracted over channels, values keep theirs."""

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.gamma = (
                nn.Conv2d(16, 8, 1),
                nn.Conv2d(16, 8, 1),
                nn.Conv2d(16, 16, 1),
                nn.Parameter(torch.rand(1) + 0.5),
            )

        def forward(self, x: Tensor) -> Tensor:
            b, _, h, w = x.shape
            q, k, v = (f(x).view(b, -1, h * w) for f in (self.q, self.k, self.v))
            attention = torch.softmax(torch.bmm(q.permute(0, 2, 1), k), -1)
            return self.gamma * torch.bmm(v, attention.permute(0, 2, 1)).view(b, -1, h, w) + x

    def __init__(self) -> None:
        super().__init__(PositionAttention.Part())


@case("einsum", removed=0.45)
class Einsum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(3, 12, 1), nn.Conv1d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).flatten(2) for f in (self.q, self.k, self.v))
        return self.out(torch.einsum("bij,bcj->bci", torch.einsum("bci,bcj->bij", q, k).sigmoid(), v))


@case("glu", removed=0.65)
class Glu(Wrapped):
    """Gated linear units, written out and as torch's function."""

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(16, 24, 1), nn.Conv2d(12, 32, 1)

        def forward(self, x: Tensor) -> Tensor:
            value, gate = self.one(x).chunk(2, 1)
            return F.glu(self.two(value * torch.sigmoid(gate)), dim=1)

    def __init__(self) -> None:
        super().__init__(Glu.Part())


@case("normalize", removed=0.65, inexact=("normalize over channels",))
class Normalize(Wrapped):
    class Part(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.normalize(x, dim=1)

    def __init__(self) -> None:
        super().__init__(Normalize.Part())


@case("select_kernel", removed=0.7)
class SelectKernel(nn.Module):
    """SKNet: a softmax over branches, that are stacked on an axis of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = cbr(3, 8), cbr(8, 12), cbr(8, 12, 5)
        self.down, self.up, self.head = nn.Linear(12, 8), nn.ModuleList(nn.Linear(8, 12) for _ in range(2)), Head(12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        branches = torch.stack([self.a(x), self.b(x)], dim=1)
        squeezed = self.down(branches.sum(1).mean((-2, -1)))
        weights = torch.softmax(torch.stack([up(squeezed) for up in self.up], dim=1), dim=1)
        return self.head((branches * weights[:, :, :, None, None]).sum(dim=1))


@case("stacked_sum", removed=0.7)
class StackedSum(nn.Module):
    """Branches that are stacked on an axis of their own and added up, with nothing else to tie their channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = cbr(3, 8), cbr(8, 12), cbr(8, 12, 5), Head(12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(torch.stack([self.a(x), self.b(x)], dim=1).sum(dim=1))
