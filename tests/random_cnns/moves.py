"""More blocks: literal views, permutations, gathers, attention, learned scales."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from random_cnns.blocks import Plan, activation, block, conv


@block
class SpaceToDepth(nn.Module):
    """Patches to channels by a literal view, a convolution, and back."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.c, self.s = plan.channels, plan.size
        self.a, self.channels_first = conv(plan, 4 * self.c, 16), plan.coin()
        plan.channels, plan.size = 4, plan.size

    def forward(self, x: Tensor) -> Tensor:
        c, h = self.c, self.s // 2
        y = x.view(-1, c, h, 2, h, 2)
        y = y.permute(0, 1, 3, 5, 2, 4) if self.channels_first else y.permute(0, 3, 5, 1, 2, 4)
        y = self.a(y.reshape(-1, 4 * c, h, h))
        return y.reshape(-1, 2, 2, 4, h, h).permute(0, 3, 4, 1, 5, 2).reshape(y.shape[0], 4, 2 * h, 2 * h)


@block
class Order(nn.Module):
    """Channels in another order: flip, roll, a gather with constant indices, or a value added to its mirror."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        c = plan.channels
        self.kind, self.shift = plan.rng.choice(["flip", "roll", "select", "index", "mirror"]), plan.rng.randint(1, 3)
        self.register_buffer("order", torch.tensor(plan.rng.sample(range(c), c)))
        self.a = conv(plan, c, c)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "flip":
            return self.a(x.flip(1))
        if self.kind == "roll":
            return self.a(torch.roll(x, self.shift, dims=1))
        if self.kind == "select":
            return self.a(x.index_select(1, self.order))
        return self.a(x[:, self.order] if self.kind == "index" else x + x.flip(1))


@block
class Steps(nn.Module):
    """Overlapping slices with steps."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        c = plan.channels
        self.a, self.b, self.c = conv(plan, c // 2, 4), conv(plan, c // 2, 4), conv(plan, c - 1, 4)
        plan.channels = 12

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.a(x[:, ::2]), self.b(x[:, 1::2]), self.c(x[:, 1:])], 1)


@block
class Repeat(nn.Module):
    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.a, self.kind, c = conv(plan, plan.channels, 4), plan.rng.choice(["repeat", "interleave", "expand", "cat"]), plan.width()
        self.b, plan.channels = conv(plan, 8, c), c

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if self.kind == "repeat":
            y = y.repeat(1, 2, 1, 1)
        elif self.kind == "interleave":
            y = y.repeat_interleave(2, dim=1)
        elif self.kind == "expand":
            y = y.unsqueeze(1).expand(-1, 2, -1, -1, -1).flatten(1, 2)
        else:
            y = torch.cat([y, y], 1)
        return self.b(y)


@block
class Scale(nn.Module):
    """Learned scales and shifts of several shapes, buffers by arithmetic."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        c = plan.channels
        self.gamma, self.beta = nn.Parameter(torch.rand(1, c, 1, 1) + 0.5), nn.Parameter(torch.randn(c, 1, 1) * 0.3)
        self.register_buffer("mean", torch.rand(c))
        self.register_buffer("var", torch.rand(c) + 0.5)
        self.act, self.position = activation(plan, c), nn.Parameter(torch.randn(1, c, plan.size, plan.size) * 0.3) if plan.coin() else None

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean[:, None, None]) * (self.var + 1e-5).rsqrt().reshape(1, -1, 1, 1)
        x = self.act(self.gamma * x + self.beta)
        return x if self.position is None else x + self.position


@block
class Attention(nn.Module):
    """A non-local block: positions attend to each other, in one of three spellings."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        c = plan.channels
        self.q, self.k, self.v, self.kind = (
            nn.Conv2d(c, 8, 1),
            nn.Conv2d(c, 8, 1),
            nn.Conv2d(c, c, 1),
            plan.rng.choice(["bmm", "einsum", "sdpa"]),
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).flatten(2) for f in (self.q, self.k, self.v))
        if self.kind == "bmm":
            y = torch.bmm(v, torch.softmax(torch.bmm(q.transpose(1, 2), k), -1).transpose(1, 2))
        elif self.kind == "einsum":
            y = torch.einsum("bij,bcj->bci", torch.einsum("bci,bcj->bij", q, k).softmax(-1), v)
        else:
            y = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)
        return x + y.reshape(x.shape)


@block
class Tokens(nn.Module):
    """Fused queries, keys and values by one linear layer, heads by reshape, permute and unbind."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        c = plan.channels
        self.heads, self.qkv, self.proj, self.literal = plan.rng.choice([1, 2]), nn.Linear(c, 3 * c), nn.Linear(c, c), plan.coin()
        self.c, self.n = c, plan.size * plan.size

    def forward(self, x: Tensor) -> Tensor:
        t = x.flatten(2).transpose(1, 2)
        b, n, c = (-1, self.n, self.c) if self.literal else t.shape
        q, k, v = self.qkv(t).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        y = torch.softmax(q @ k.transpose(-2, -1) * 0.5, dim=-1) @ v
        y = self.proj(y.transpose(1, 2).reshape(b, n, c))
        return (t + y).transpose(1, 2).reshape(x.shape)


@block
class Inverted(nn.Module):
    """Channels-last linear layers in place of 1x1 convolutions."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        c = plan.channels
        self.depth, self.up, self.down, self.gamma = (
            nn.Conv2d(c, c, 3, padding=1, groups=c),
            nn.Linear(c, 16),
            nn.Linear(16, c),
            nn.Parameter(torch.rand(c)),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.depth(x).permute(0, 2, 3, 1)
        y = self.gamma * self.down(F.gelu(self.up(y)))
        return x + y.permute(0, 3, 1, 2)


@block
class Gates(nn.Module):
    """A recurrent cell's gates, and a gated linear unit."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        c = plan.channels
        self.first, self.gates = nn.Conv2d(c, 8, 1), nn.Conv2d(c + 8, 32, 3, padding=1)
        plan.channels = 8

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        i, f, o, g = torch.chunk(self.gates(torch.cat([x, h], 1)), 4, dim=1)
        return torch.sigmoid(o) * torch.tanh(torch.sigmoid(f) * h + torch.sigmoid(i) * torch.tanh(g))


@block
class Maximum(nn.Module):
    def __init__(self, plan: Plan) -> None:
        super().__init__()
        c = plan.channels
        self.a, self.b, self.kind = conv(plan, c, c), conv(plan, c, 2 * c, 1), plan.rng.choice(["max", "where", "view"])

    def forward(self, x: Tensor) -> Tensor:
        a, (p, q) = self.a(x), self.b(x).chunk(2, 1)
        if self.kind == "where":
            return torch.where(a > 0, p, q)
        if self.kind == "view":
            return torch.stack([a, p, q], 1).sum(1)
        return torch.max(torch.max(a, p), q)


@block
class Norms(nn.Module):
    """Norms over channels, over groups of them, and of one channel each; a softmax over channels."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        c = plan.channels
        self.conv, self.kind = conv(plan, c, c), plan.rng.choice(["group", "one", "instance", "last", "softmax"])
        groups = {"group": plan.rng.choice([2, 4]), "one": 1}.get(self.kind, c)
        self.norm = nn.InstanceNorm2d(c, affine=True) if self.kind == "instance" else nn.GroupNorm(groups, c)
        self.last = nn.LayerNorm(c)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.kind == "softmax":
            return x + torch.softmax(y, dim=1)
        if self.kind == "last":
            return x + self.last(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.norm(y)
