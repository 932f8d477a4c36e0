"""Products of channels, weights that are computed in the graph, and channels beside constants."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from structures.case import Head, case, cbr


class Tokens(nn.Module):
    """Patches, one mixer beside a skip, a head."""

    def __init__(self, mixer: nn.Module, width: int = 16) -> None:
        super().__init__()
        self.patch, self.mixer, self.fc = nn.Conv2d(3, width, 2, 2), mixer, nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        return self.fc((x + self.mixer(x)).mean(1))


class HeadsOf(nn.Module):
    """One linear layer for queries, keys and values of two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).reshape(x.shape[0], x.shape[1], 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def merged(self, x: Tensor) -> Tensor:
        return self.out(x.transpose(1, 2).reshape(x.shape[0], x.shape[2], 16))


@case("cross_covariance", removed=0.6, inexact=("softmax over channels",), aligned=False, rows=True)
class CrossCovariance(Tokens):
    """Channels attend to channels, within each head, with a temperature a head (XCiT)."""

    class Mixer(HeadsOf):
        def __init__(self) -> None:
            super().__init__()
            self.temperature = nn.Parameter(torch.rand(2, 1, 1) + 0.5)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (t.transpose(-2, -1) for t in self.heads(x))
            weights = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.temperature).softmax(dim=-1)
            return self.merged((weights @ v).transpose(-2, -1))

    def __init__(self) -> None:
        super().__init__(CrossCovariance.Mixer())


@case("many_heads", removed=0.3, aligned=False)
class ManyHeads(Tokens):
    """More heads than channels in each: heads stay all the same, since queries and values may lose different ones."""

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (layer(x).unflatten(2, (8, 2)).transpose(1, 2) for layer in (self.q, self.k, self.v))
            return self.out(((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).flatten(2))

    def __init__(self) -> None:
        super().__init__(ManyHeads.Mixer())


@case("linear_attention", removed=0.45, aligned=False)
class LinearAttention(Tokens):
    """k^T v first; a column of ones beside the values gives the denominator (EfficientViT)."""

    class Mixer(HeadsOf):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.heads(x)
            found = q.relu() @ (k.relu().transpose(-1, -2) @ F.pad(v, (0, 1), value=1.0))
            return self.merged(found[..., :-1] / (found[..., -1:] + 1e-3))

    def __init__(self) -> None:
        super().__init__(LinearAttention.Mixer())


@case("talking_heads", removed=0.5, reason="weighs several channels at once", pinned=("positions",), aligned=False)
class TalkingHeads(Tokens):
    """A linear layer over the heads of the attention map (CaiT): heads stay, the channels within them need not."""

    class Mixer(HeadsOf):
        def __init__(self) -> None:
            super().__init__()
            self.talk = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.heads(x)
            weights = self.talk((q @ k.transpose(-2, -1)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2).softmax(dim=-1)
            return self.merged(weights @ v)

    def __init__(self) -> None:
        super().__init__(TalkingHeads.Mixer())


@case("attention_bias", removed=0.5, reason="an attention mask weighs all channels of a head", aligned=False)
class AttentionBias(Tokens):
    """A small net makes a bias for each head, which torch's attention adds."""

    class Mixer(HeadsOf):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(2, 12), nn.Linear(12, 2)
            self.register_buffer("offsets", torch.randn(16, 16, 2))

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.heads(x)
            bias = self.two(self.one(self.offsets).relu()).permute(2, 0, 1).unsqueeze(0)
            return self.merged(F.scaled_dot_product_attention(q, k, v, attn_mask=bias))

    def __init__(self) -> None:
        super().__init__(AttentionBias.Mixer())


@case("cosine_attention", removed=0.45, inexact=("over channels",), aligned=False, rows=True)
class CosineAttention(Tokens):
    """Queries and keys of length one, the length taken by hand (Swin V2)."""

    class Mixer(HeadsOf):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.heads(x)
            q, k = (t / torch.linalg.vector_norm(t, dim=-1, keepdim=True).clamp_min(1e-6).expand_as(t) for t in (q, k))
            return self.merged((q @ k.transpose(-2, -1) * 5).softmax(dim=-1) @ v)

    def __init__(self) -> None:
        super().__init__(CosineAttention.Mixer())


@case("cross_attention", removed=0.45, aligned=False)
class CrossAttention(nn.Module):
    """torch's own attention from one value to another, through one projection."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 16, 4, 4), nn.Conv2d(3, 16, 2, 2), nn.Linear(16, 4)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        q, k = (f(x).flatten(2).transpose(1, 2) for f in (self.a, self.b))
        return self.fc(self.attention(q, k, k, need_weights=False)[0].mean(1))


class StandardisedConv(nn.Conv2d):
    """A convolution whose filters have mean 0 and variance 1 (Qiao et al. 2019), scaled by a gain (NFNet)."""

    def __init__(self, inputs: int, outputs: int, groups: int = 1) -> None:
        super().__init__(inputs, outputs, 3, padding=1, groups=groups)
        self.gain = nn.Parameter(torch.rand(outputs, 1, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        scale = (self.gain * 0.5).view(-1)
        weight = F.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, weight=scale, training=True, momentum=0.0)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias, 1, 1, 1, self.groups)


@case("standardised", removed=0.6, inexact=("normalises over channels",), rows=True)
class Standardised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = StandardisedConv(3, 16), StandardisedConv(16, 16, groups=4), StandardisedConv(16, 24)
        self.head = Head(24)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.c(self.b(self.a(x).relu()).relu()).relu())


@case("zeros_beside", removed=0.6, aligned=False)
class ZerosBeside(nn.Module):
    """Channels of zeros, made in the graph and held as a constant, before an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = cbr(3, 8), cbr(3, 12), cbr(12, 16), Head(16)
        self.register_buffer("rest", torch.zeros(2, 4, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y = torch.cat([y, y.new_zeros(y.shape[0], 4, y.shape[2], y.shape[3])], 1) + torch.cat([y, self.rest], 1)
        return self.head(self.c(y + self.b(x)))


@case("selected_by_mask", removed=0.6, aligned=False)
class SelectedByMask(nn.Module):
    """A constant mask picks channels; the first convolution has filters of their own for each channel of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.each, self.a, self.norm, self.b = nn.Conv2d(3, 12, 3, padding=1, groups=3), cbr(12, 16), nn.BatchNorm2d(16), cbr(8, 12)
        self.register_buffer("mask", torch.arange(16) % 2 == 0)
        self.head = Head(12)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.norm(self.a(self.each(x)))[:, self.mask]))


@case("layer_norm_of_maps", removed=0.55, inexact=("normalises over channels",), rows=True)
class LayerNormOfMaps(nn.Module):
    """Layer norm over channels, rows and columns, with a parameter for each entry."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.head = nn.Conv2d(3, 12, 3, padding=1), nn.LayerNorm([12, 8, 8]), cbr(12, 12), Head(12)

    def forward(self, *xs: Tensor) -> Tensor:
        return self.head(self.b(self.norm(self.a(xs[0]))))


@case("einsum_heads", removed=0.4, aligned=False)
class EinsumHeads(Tokens):
    """Attention as Einstein sums, heads by their own letter, the projections parameters of two and three axes."""

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Parameter(torch.randn(16, 16) * 0.3) for _ in range(3))
            self.out = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (torch.einsum("bnc,cd->bnd", x, w).reshape(x.shape[0], -1, 2, 8) for w in (self.q, self.k, self.v))
            weights = torch.einsum("bnhd, bmhd -> bhnm", q, k).softmax(-1)
            return self.out(torch.einsum("bhnm,bmhd->bnhd", weights, v).flatten(2))

    def __init__(self) -> None:
        super().__init__(EinsumHeads.Mixer())
