"""Blocks from c channels to c channels, each with something in its forward that tracers and slicers find hard."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

BLOCKS: dict[str, Callable[[int], nn.Module]] = {}


def block(forward: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """Register a forward by its name; the module around it has the parts that the forwards share."""
    kind = type(forward.__name__, (Parts,), {"forward": forward, "__module__": __name__})
    BLOCKS[forward.__name__] = kind
    return forward


class Parts(nn.Module):
    """Layers, buffers, plain tensors and caches."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.a, self.b, self.p = nn.Conv2d(c, c, 3, padding=1), nn.Conv2d(c, c, 3, padding=1), nn.Conv2d(c, c, 1)
        self.few, self.wide, self.broad = nn.Conv2d(c + 3, c, 1), nn.Conv2d(2 * c, c, 1), nn.Conv2d(c, 2 * c, 1)
        self.lin, self.offset = nn.Linear(c, c), nn.Conv2d(c, 18, 3, padding=1)
        self.norm, self.instance = nn.BatchNorm2d(c), nn.InstanceNorm2d(c, affine=True, track_running_stats=True)
        for norm in (self.norm, self.instance):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2.0)
        self.token = nn.Parameter(torch.randn(1, 1, c))
        self.register_buffer("own", torch.randn(1, c, 1, 1))
        self.register_buffer("stored", torch.randn(1, 1, c))
        self.register_buffer("order", torch.randperm(c))
        self.register_buffer("pairs", torch.arange(c) // 2)
        self.plain, self.scale = torch.randn(1, c, 1, 1), torch.tensor(1.5)
        self.cache: dict[Any, Tensor] = {}
        self.grid, self.shape = torch.zeros(0), torch.Size()
        self.seen: list[Tensor] = []
        self.ready = False
        self.eval()


class Swish(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        gate = torch.sigmoid(ctx.saved_tensors[0])
        return grad * gate * (1 + ctx.saved_tensors[0] * (1 - gate))


class Clip(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, None, None


@block
def appended(s: Any, x: Tensor) -> Tensor:
    y = F.relu(s.a(x))
    n, _, h, w = y.shape
    return s.few(torch.cat([y, torch.zeros(n, 3, h, w)], 1))


@block
def appended_ones(s: Any, x: Tensor) -> Tensor:
    y = s.a(x)
    return s.wide(torch.cat([torch.ones(y.size(0), y.size(1), y.size(2), y.size(3)), y], 1))


@block
def swapped(s: Any, x: Tensor) -> Tensor:
    return s.p(torch.func.functional_call(s.a, dict(s.b.named_parameters()), (x,)).relu())


@block
def averaged(s: Any, x: Tensor) -> Tensor:
    mean = {name: (own + other) / 2 for (name, own), other in zip(s.a.named_parameters(), s.b.parameters(), strict=True)}
    return s.p(torch.func.functional_call(s.a, mean, (x,)).relu())


@block
def scattered(s: Any, x: Tensor) -> Tensor:
    y = s.a(x)
    index = s.pairs.view(1, -1, 1, 1).expand(y.shape[0], -1, y.shape[2], y.shape[3])
    return s.p(torch.zeros_like(y).scatter_add(1, index, y))


@block
def gathered(s: Any, x: Tensor) -> Tensor:
    y = s.a(x)
    return s.p(y.gather(1, s.order.view(1, -1, 1, 1).expand_as(y)))


@block
def mirrored(s: Any, x: Tensor) -> Tensor:
    y = s.a(x)
    index = torch.arange(y.shape[3] - 1, -1, -1).expand(y.shape[0], y.shape[1], y.shape[2], -1)
    return s.p(y + y.gather(3, index))


@block
def reordered(s: Any, x: Tensor) -> Tensor:
    return s.p(s.a(x).index_select(1, s.order) + s.b(x)[:, s.order])


@block
def added_at(s: Any, x: Tensor) -> Tensor:
    y = s.a(x)
    return s.p(torch.zeros_like(y).index_add(1, s.pairs, y))


@block
def with_token(s: Any, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    tokens = torch.cat([s.stored.expand(n, -1, -1), s.a(x).flatten(2).transpose(1, 2)], 1)
    return s.lin(tokens)[:, 1:].transpose(1, 2).reshape(n, c, h, w)


@block
def with_parameter_token(s: Any, x: Tensor) -> Tensor:
    n, _, h, w = x.shape
    tokens = torch.cat([s.token.repeat(n, 1, 1), s.a(x).flatten(2).transpose(1, 2)], 1)
    return s.lin(tokens)[:, 1:].transpose(1, 2).unflatten(2, (h, w))


@block
def cached_grid(s: Any, x: Tensor) -> Tensor:
    y = s.a(x)
    if s.shape != y.shape:
        s.shape = y.shape
        rows, columns = torch.meshgrid(torch.arange(y.shape[2]), torch.arange(y.shape[3]), indexing="ij")
        s.grid = (rows - columns).float() / 10
    return s.p(F.relu(y)) + s.grid


@block
def cached_by_size(s: Any, x: Tensor) -> Tensor:
    y = s.a(x)
    key = (y.shape[2], y.shape[3])
    if key not in s.cache:
        s.cache[key] = torch.linspace(0, 1, y.shape[3]).expand(y.shape[2], -1)
    return s.p(y * s.cache[key])


@block
def unfolded(s: Any, x: Tensor) -> Tensor:
    return s.p(F.fold(F.unfold(s.a(x), 3, padding=1), x.shape[-2:], 3, padding=1))


@block
def patch_weights(s: Any, x: Tensor) -> Tensor:
    y = s.a(x)
    n, c, h, w = y.shape
    patches = F.unfold(y, 3, padding=1).view(n, c, 9, h, w)
    return s.p((patches * patches.softmax(2)).sum(2))


@block
def patches_by_method(s: Any, x: Tensor) -> Tensor:
    return s.p(F.interpolate(s.a(x).unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5)), scale_factor=2))


@block
def unpooled(s: Any, x: Tensor) -> Tensor:
    y, index = F.max_pool2d(s.a(x), 2, return_indices=True)
    return s.p(F.max_unpool2d(s.b(y), index, 2))


@block
def own_backward(s: Any, x: Tensor) -> Tensor:
    return s.p(Swish.apply(s.b(Swish.apply(s.a(x)))))


@block
def own_clip(s: Any, x: Tensor) -> Tensor:
    return s.p(Clip.apply(s.a(x), -1.0, 0.5))


@block
def spectrum(s: Any, x: Tensor) -> Tensor:
    y = s.a(x)
    f = torch.fft.rfft2(y)
    return s.p(torch.fft.irfft2(f * f.abs().sigmoid(), s=y.shape[-2:]))


@block
def spectral_filter(s: Any, x: Tensor) -> Tensor:
    y = s.a(x)
    return s.p(torch.fft.irfft2(torch.fft.rfft2(y) * torch.fft.rfft2(s.b.weight[:, 0], s=y.shape[-2:]), s=y.shape[-2:]))


@block
def complex_pairs(s: Any, x: Tensor) -> Tensor:
    pairs = torch.view_as_real(torch.fft.fft(s.a(x)))
    return s.p(pairs[..., 0] - pairs[..., 1])


@block
def sound(s: Any, x: Tensor) -> Tensor:
    y = s.a(x)
    wave = y.flatten(2).mean(1)
    found = torch.stft(wave, 16, window=torch.hann_window(16), return_complex=True)
    back = torch.istft(found * found.abs().sigmoid(), 16, window=torch.hann_window(16), length=wave.shape[1])
    return s.p(y) + back.view(y.shape[0], 1, y.shape[2], y.shape[3])


@block
def recurrent_state(s: Any, x: Tensor) -> Tensor:
    y = s.a(x)
    state = torch.zeros(y.size(0), s.p.out_channels, y.size(2), y.size(3), dtype=y.dtype)
    for _ in range(2):
        state = torch.tanh(s.wide(torch.cat([y, state], 1)))
    return state


@block
def shuffled_pieces(s: Any, x: Tensor) -> Tensor:
    pieces = list(s.a(x).chunk(4, 1))
    return s.p(torch.cat(pieces[::-1], 1))


@block
def rows_in_turn(s: Any, x: Tensor) -> Tensor:
    return s.p(torch.stack([row * (1 + 0.1 * number) for number, row in enumerate(s.a(x).unbind(2))], 2))


@block
def positions(s: Any, x: Tensor) -> Tensor:
    y = s.a(x)
    return s.p(F.relu(y)) + torch.arange(y.shape[-1], dtype=y.dtype).sin()


@block
def option_a(s: Any, x: Tensor) -> Tensor:
    y = s.a(x)
    z = s.broad(F.relu(y))
    return s.wide(z + F.pad(y, (0, 0, 0, 0, 0, z.shape[1] - y.shape[1])))


@block
def option_a_by_zeros(s: Any, x: Tensor) -> Tensor:
    y = s.a(x)
    z = s.broad(F.relu(y))
    missing = (z.size(1) - y.size(1)) // 2
    sides = y.new_zeros(y.size(0), missing, y.size(2), y.size(3))
    return s.wide(z + torch.cat([sides, y, torch.zeros_like(sides)], 1))


@block
def rounded_sizes(s: Any, x: Tensor) -> Tensor:
    h, w = x.shape[2:]
    y = F.interpolate(s.a(x), size=(round(h * 0.75), max(int(w / 2), 2)))
    return F.interpolate(s.p(y) / float(h), size=(h, w))


@block
def padded_to_multiple(s: Any, x: Tensor) -> Tensor:
    h, w = x.shape[-2:]
    y = F.pad(s.a(x), (0, (5 - w % 5) % 5, 0, math.ceil(h / 5) * 5 - h))
    return s.p(F.avg_pool2d(y, 3, 1, 1))[..., :h, :w]


@block
def windows(s: Any, x: Tensor) -> Tensor:
    y = s.a(x).permute(0, 2, 3, 1)
    n, h, w, c = y.shape
    y = y.view(n, h // 4, 4, w // 4, 4, c).transpose(2, 3).reshape(-1, 16, c)
    y = s.lin(torch.softmax(y @ y.transpose(1, 2) / math.sqrt(c), -1) @ y)
    first = int(y.shape[0] / (h * w / 16))
    return y.view(first, h // 4, w // 4, 4, 4, -1).transpose(2, 3).reshape(n, h, w, -1).permute(0, 3, 1, 2)


@block
def masked(s: Any, x: Tensor) -> Tensor:
    y = s.a(x)
    keep = ((y > 0) & (y < 1)) | ~(y > -1)
    return s.p(torch.where(keep, y, y.new_full((1,), 0.5)).masked_fill(y > 2, s.scale))


@block
def by_matrix(s: Any, x: Tensor) -> Tensor:
    y = s.a(x)
    return s.p(
        torch.einsum("nchw,wv->nchv", y, torch.eye(y.shape[3]).roll(1, 0)) + y @ torch.ones(y.shape[3], y.shape[3]).tril() / y.shape[3]
    )


@block
def hooked(s: Any, x: Tensor) -> Tensor:
    if not s.ready:
        s.a.register_forward_hook(lambda module, inputs, output: s.seen.append(output))
        s.ready = True
    s.seen.clear()
    y = s.b(F.relu(s.a(x)))
    return s.wide(torch.cat([y, s.seen[0]], 1))


@block
def plain_tensors(s: Any, x: Tensor) -> Tensor:
    return s.p(s.a(x) * s.plain * s.scale.item() + s.scale.new_full((1,), 0.25))


@block
def deformed(s: Any, x: Tensor) -> Tensor:
    import torchvision

    y = s.a(x).relu()
    return s.p(torchvision.ops.deform_conv2d(y, s.offset(y), s.b.weight, s.b.bias, padding=(1, 1)))


@block
def normalised(s: Any, x: Tensor) -> Tensor:
    return s.p(s.instance(s.norm(s.a(x)).relu()))


@block
def attention(s: Any, x: Tensor) -> Tensor:
    y = s.a(x)
    n, c, h, w = y.shape
    q = F.max_pool2d(y, 2).flatten(2)
    return s.p(
        torch.bmm(torch.softmax(torch.bmm(y.flatten(2).transpose(1, 2), q) / math.sqrt(c), -1), q.transpose(1, 2))
        .transpose(1, 2)
        .view(n, c, h, w)
    )


@block
def sorted_places(s: Any, x: Tensor) -> Tensor:
    y = s.a(x)
    return s.p(y.sort(3).values + y.flatten(2).topk(3, 2)[0].mean(2)[..., None, None])


@block
def written_parts(s: Any, x: Tensor) -> Tensor:
    y = s.a(x)
    out = torch.zeros_like(y)
    out[:, :, ::2] = y[:, :, ::2] * 2
    out[..., 1:] += y[..., :-1]
    return s.p(out)


@block
def written_slot(s: Any, x: Tensor) -> Tensor:
    y = s.a(x)
    out = torch.zeros(y.shape[0], s.few.in_channels, y.shape[2], y.shape[3])
    out[:, : y.shape[1]] = y
    return s.few(out)


@block
def reshaped_weight(s: Any, x: Tensor) -> Tensor:
    weight = s.a.weight.flatten(1).tanh().view_as(s.a.weight)
    return s.p(F.conv2d(x, weight, s.a.bias, padding=1))


@block
def sampled(s: Any, x: Tensor) -> Tensor:
    y = s.a(x)
    theta = torch.tensor([[0.9, 0.1, 0.0], [-0.1, 0.9, 0.1]]).expand(y.shape[0], -1, -1)
    return s.p(F.grid_sample(y, F.affine_grid(theta, list(y.shape), align_corners=False), align_corners=False))


@block
def last_axis(s: Any, x: Tensor) -> Tensor:
    y = s.a(x).permute(0, 2, 3, 1)
    n, h, w, c = y.shape
    return s.wide(torch.cat([y, y.new_full((n, h, w, c), 3.0)], 3).permute(0, 3, 1, 2))


@block
def unset_memory(s: Any, x: Tensor) -> Tensor:
    y = s.a(x)
    return s.p(y + torch.empty(y.shape[0], y.shape[1], 1, y.shape[3]).fill_(0.5))


@block
def length_of_batch(s: Any, x: Tensor) -> Tensor:
    y = s.a(x)
    return s.p(y * (1 + len(y)) + s.own.expand(x.shape[0], -1, x.shape[2], x.shape[3]))


@block
def decided_by_size(s: Any, x: Tensor) -> Tensor:
    y = s.a(x)
    return s.p(y if x.shape[3] < 14 else y * 2)


@block
def one_by_one(s: Any, x: Tensor) -> Tensor:
    return torch.cat([s.p(s.a(x[i : i + 1])) for i in range(x.shape[0])])


@block
def running_sum(s: Any, x: Tensor) -> Tensor:
    return s.p(s.a(x).cumsum(2).flip(3).roll((1, 2), (2, 3)))
