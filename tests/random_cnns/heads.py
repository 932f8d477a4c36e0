"""How random CNNs begin and end: one or two inputs, one or two outputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from random_cnns.blocks import Plan, conv


class OneInput(nn.Module):
    shapes = ((2, 3, 8, 8),)

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.stem = conv(plan, 3, plan.channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.stem(x)


class TwoInputs(nn.Module):
    """Two images through one stem or two, added or concatenated."""

    shapes = ((2, 3, 8, 8), (2, 3, 8, 8))

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        c = plan.channels
        self.a = conv(plan, 3, c, 3)
        self.b = self.a if plan.coin() else conv(plan, 3, c, 3)
        self.join = conv(plan, 2 * c, c, 1) if plan.coin() else None

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        a, b = self.a(x), self.b(y)
        return a * b if self.join is None else self.join(torch.cat([a, b], 1))


class Pooled(nn.Module):
    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.fc = nn.Linear(plan.channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Flat(nn.Module):
    """Flatten to linear, by a literal view, a computed one or a module."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.features = plan.channels * plan.size**2
        self.kind, self.flatten = plan.rng.choice(["literal", "computed", "module"]), nn.Flatten()
        self.fc = nn.Sequential(nn.Linear(self.features, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "literal":
            return self.fc(x.view(-1, self.features))
        return self.fc(self.flatten(x) if self.kind == "module" else x.reshape(x.size(0), -1))


class TwoOutputs(nn.Module):
    """A dictionary: a dense map and logits."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.map, self.pooled = nn.Conv2d(plan.channels, 3, 1), Pooled(plan)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"map": self.map(x), "logits": self.pooled(x)}


class Raw(nn.Module):
    """The features themselves and logits of them: every channel is an output."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.last, self.pooled = conv(plan, plan.channels, 8), None
        plan.channels = 8
        self.pooled = Pooled(plan)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.last(x)
        return x, self.pooled(x)


STEMS: dict[str, type[OneInput] | type[TwoInputs]] = {"one": OneInput, "two": TwoInputs}
HEADS: dict[str, Callable[[Plan], nn.Module]] = {"flat": Flat, "pooled": Pooled, "raw": Raw, "two": TwoOutputs}
