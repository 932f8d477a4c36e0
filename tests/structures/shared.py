"""Weights used twice, frozen, computed or unknown; time, volumes and recurrence."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from structures.case import Head, case, cbr


@case("recursive", removed=0.65)
class Recursive(nn.Module):
    """One convolution applied three times: its outputs are its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.bns, self.head = (
            cbr(3, 12),
            nn.Conv2d(12, 12, 3, padding=1),
            nn.ModuleList(nn.BatchNorm2d(12) for _ in range(3)),
            Head(12),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for bn in self.bns:
            x = F.relu(bn(self.conv(x)))
        return self.head(x)


@case("shared_linear", removed=0.5)
class SharedLinear(nn.Module):
    """Two layers with one weight and a bias each."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.a, self.b, self.out = (
            nn.Sequential(cbr(3, 12), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            nn.Linear(12, 12),
            nn.Linear(12, 12),
            nn.Linear(12, 4),
        )
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.out(torch.relu(self.a(x)) + torch.relu(self.b(torch.relu(self.a(x)))))


@case("shared_head", removed=0.65)
class SharedHead(nn.Module):
    """One head on every level of a pyramid (RetinaNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.l1, self.l2 = cbr(3, 8), cbr(8, 12, stride=2), nn.Conv2d(8, 8, 1), nn.Conv2d(12, 8, 1)
        self.head = nn.Sequential(cbr(8, 8), nn.Conv2d(8, 4, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        one = self.one(x)
        return [self.head(level) for level in (self.l1(one), self.l2(self.two(one)))]


@case("tied_decoder", removed=0.45)
class TiedDecoder(nn.Module):
    """The decoder uses the encoder's weight, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.encoder, self.mid, self.bias = (
            nn.Sequential(cbr(3, 32), cbr(32, 2), nn.Flatten()),
            nn.Linear(128, 12),
            nn.Linear(12, 12),
            nn.Parameter(torch.rand(128)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.mid(self.encoder(self.stem(x)).relu()), self.encoder.weight.t(), self.bias)


@case("rows_looked_up", removed=0.3, reason="rows are looked up by number")
class RowsLookedUp(nn.Module):
    """A second layer's weight is made of rows of the first one's, fetched by number: those must stay where they are."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mid, self.first = cbr(3, 32), cbr(32, 24), nn.Linear(24, 12)
        self.one, self.two = nn.Linear(12, 5), nn.Linear(12, 5)
        self.register_buffer("order", torch.tensor([3, 1, 11, 0, 5, 7, 9, 2, 4, 6, 8, 10]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.stem(x)).mean((2, 3))
        return self.one(self.first(x).relu()) + self.two(F.linear(x, self.first.weight[self.order]))


@case("shifted_weight", removed=0.3, reason="other values are computed from", pinned=("weight is computed",))
class ShiftedWeight(nn.Module):
    """A weight that is read as it is, and shifted by what flows in."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mid, self.first, self.one, self.two = cbr(3, 32), cbr(32, 32), nn.Linear(32, 12), nn.Linear(12, 5), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mid(self.stem(x)).mean((2, 3))
        return self.one(self.first(y).relu()) + self.two(F.linear(y, self.first.weight + x.mean()))


@case("frozen", removed=0.65)
class Frozen(nn.Module):
    """Frozen and unused parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.unused = nn.Sequential(cbr(3, 8), cbr(8, 12)), Head(12), nn.Linear(4, 4)
        self.body.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class FrozenBatchNorm(nn.Module):
    """torchvision's: buffers and arithmetic."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        w, b = self.weight.reshape(1, -1, 1, 1), self.bias.reshape(1, -1, 1, 1)
        rv, rm = self.running_var.reshape(1, -1, 1, 1), self.running_mean.reshape(1, -1, 1, 1)
        scale = w * (rv + 1e-5).rsqrt()
        return x * scale + (b - rm * scale)


@case("frozen_batchnorm", removed=0.65)
class FrozenBatchNormNet(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 12, 3), FrozenBatchNorm(12), nn.ReLU(), nn.Conv2d(12, 8, 3), FrozenBatchNorm(8), Head(8))


@case("functional", removed=0.5)
class Functional(nn.Module):
    """Everything by torch.nn.functional over parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.b1 = nn.Parameter(torch.randn(8, 3, 3, 3) * 0.3), nn.Parameter(torch.randn(8))
        self.w2, self.w3 = nn.Parameter(torch.randn(8, 1, 3, 3) * 0.3), nn.Parameter(torch.randn(12, 8, 1, 1) * 0.3)
        self.gamma, self.beta, self.fc = (
            nn.Parameter(torch.rand(12) + 0.5),
            nn.Parameter(torch.rand(12)),
            nn.Parameter(torch.randn(4, 12) * 0.3),
        )
        self.register_buffer("mean", torch.rand(12))
        self.register_buffer("var", torch.rand(12) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.w1, self.b1, padding=1))
        x = F.conv2d(x, self.w2, None, 1, 1, 1, 8)
        x = F.batch_norm(F.conv2d(x, self.w3), self.mean, self.var, self.gamma, self.beta, training=False)
        return F.linear(F.adaptive_avg_pool2d(F.leaky_relu(x, 0.1), 1).squeeze(-1).squeeze(-1), self.fc)


@case("layer_scale", removed=0.6)
class LayerScale(nn.Module):
    """Learned gates and positions, each of another broadcast form."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1), Head(12)
        self.gate, self.scale = nn.Parameter(torch.rand(12, 1, 1)), nn.Parameter(torch.rand(1, 12, 1, 1))
        self.position, self.one = nn.Parameter(torch.rand(1, 12, 8, 8)), nn.Parameter(torch.rand(1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x) + self.position
        return self.head(self.one * x + self.scale * self.b(torch.sigmoid(self.gate) * x))


@case("conv_lstm", shapes=((2, 3, 3, 8, 8),), removed=0.7, aligned=False)
class ConvLstm(nn.Module):
    """Four gates by chunk, unrolled over three frames."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.gates, self.head = cbr(3, 8), nn.Conv2d(8, 32, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1), Head(8)

    def forward(self, frames: Tensor) -> Tensor:
        i, f, o, g = self.first(self.stem(frames[:, 0])).chunk(4, dim=1)
        c = torch.sigmoid(i) * torch.tanh(g) + 0 * f
        h = torch.sigmoid(o) * torch.tanh(c)
        for t in (1, 2):
            i, f, o, g = torch.chunk(self.gates(torch.cat([self.stem(frames[:, t]), h], 1)), 4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.head(h)


@case("conv_lstm_state", shapes=((2, 3, 8, 8), (2, 8, 8, 8), (2, 8, 8, 8)), removed=0.4, pinned=("cannot be removed", "graph output"))
class ConvLstmState(nn.Module):
    """One step with its state as inputs and outputs, whose widths the caller knows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gates = nn.Sequential(cbr(3, 16), cbr(16, 16)), nn.Conv2d(24, 32, 3, padding=1)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        i, f, o, g = self.gates(torch.cat([self.stem(x), h], 1)).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


@case("conv1d", shapes=((2, 3, 20),), removed=0.65)
class Tcn(nn.Module):
    """Causal dilated convolutions, cropped, with a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.value, self.gate = (
            nn.Conv1d(3, 12, 3, padding=2),
            nn.Conv1d(12, 12, 3, padding=4, dilation=2),
            nn.Conv1d(12, 12, 3, padding=4, dilation=2),
        )
        self.bn, self.out = nn.BatchNorm1d(12), nn.Conv1d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)[:, :, :-2]
        y = torch.tanh(self.value(x)[..., :-4]) * torch.sigmoid(self.gate(x)[..., :-4])
        return self.out(self.bn(x + y)).mean(-1)


@case("conv3d", shapes=((2, 3, 4, 8, 8),), removed=0.6)
class Conv3d(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv3d(3, 8, (1, 3, 3)), nn.BatchNorm3d(8), nn.ReLU(), nn.Conv3d(8, 12, (3, 1, 1)), nn.BatchNorm3d(12), nn.MaxPool3d((1, 2, 2)),
                         nn.ConvTranspose3d(12, 8, (1, 2, 2)), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 4))  # fmt: skip


@case("temporal_shift", shapes=((4, 3, 8, 8),), removed=0.6, aligned=False)
class TemporalShift(nn.Module):
    """TSM: frames are folded into the batch; parts of the channels move to the next frame."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = cbr(3, 12), cbr(12, 8), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).view(2, 2, 12, 8, 8)
        left, right, rest = x[:, :, :3], x[:, :, 3:6], x[:, :, 6:]
        left = torch.cat([left[:, 1:], torch.zeros_like(left[:, :1])], 1)
        right = torch.cat([torch.zeros_like(right[:, :1]), right[:, :-1]], 1)
        return self.head(self.b(torch.cat([left, right, rest], 2).view(4, 12, 8, 8)))


@fx.wrap
def spectrum(x: Tensor) -> Tensor:
    """A function that irtool does not know; of the same name as nothing in its table."""
    return torch.linalg.eigvalsh(x @ x.mT)[..., None] + x


@case("unknown_function", removed=0.5, reason="which irtool does not know")
class UnknownFunction(nn.Sequential):
    class Part(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return spectrum(x)

    def __init__(self) -> None:
        super().__init__(cbr(3, 12), cbr(12, 12), UnknownFunction.Part(), cbr(12, 12), cbr(12, 8), Head(8))


class Sorted(nn.Module):
    """Sorts its channels: a leaf that the user names."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sort(x, dim=1).values


@case("unknown_leaf", removed=0.5, reason="flows into Sorted", leaf=("2",))
class UnknownLeaf(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(cbr(3, 12), cbr(12, 12), Sorted(), cbr(12, 12), cbr(12, 8), Head(8))


@case("sort", removed=0.5, reason="orders values by size")
class Sort(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(cbr(3, 12), cbr(12, 12), Sorted(), cbr(12, 12), cbr(12, 8), Head(8))


@case("lstm", removed=0.35)
class Crnn(nn.Module):
    """Convolutions, then a recurrent layer over the columns."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.lstm, self.fc = cbr(3, 16), cbr(16, 12), nn.LSTM(12, 8, batch_first=True, bidirectional=True), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x)).mean(2).transpose(1, 2)
        return self.fc(self.lstm(x)[0][:, -1])
