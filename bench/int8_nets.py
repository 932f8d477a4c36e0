"""The nets of `bench/int8.py`: pruned PreResNet-38s from published weights, and a MobileNetV2 and a ResNet-18 that are trained here.

    python bench/int8_nets.py --fashion /usr/share/datasets/fashion-mnist --work runs/int8

trains the two on Fashion-MNIST at 64x64 pixels. Weights are kept after each epoch, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from quality_nets import SCARCE, train_epoch
from torch import Tensor, nn
from torchvision.models import mobilenet_v2, resnet18

import irtool
from irtool.models import PreResNet
from irtool.train import Data, load_data

SIZE = 64
TRAINED: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "MobileNetV2": (lambda: mobilenet_v2(num_classes=10, width_mult=0.5), 6, 18_000),
    "ResNet-18": (lambda: resnet18(num_classes=10), 1, 8_000),
}
"""The nets that are trained here, and how many epochs of how many images each gets. The MobileNetV2 has half of the usual width."""
FITTED = 256
"""Images that reconstruction sees."""


class PublishedFolded(nn.Module):
    """The net of the published file `sparse_pruned_0.5_folded.pth`: full-width batch norms, selections, folded convolutions.

    Args:
        state: its `state_dict`.
        kept: the channels of each selection.
    """

    def __init__(self, state: dict[str, Tensor], kept: list[Tensor]) -> None:
        super().__init__()
        self._names = {name: name.replace(".", "_") for name in state}
        for name, value in state.items():
            self.register_buffer(self._names[name], value)
        self._selections = [f"kept_{number}" for number in range(len(kept))]
        for name, index in zip(self._selections, kept, strict=True):
            self.register_buffer(name, index)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self._of("conv1.weight"), padding=1)
        for number, at in enumerate(f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(4)):
            stride = 2 if number in (4, 8) else 1
            y = self._selected(x, f"{at}.bn1", number).relu()
            y = F.conv2d(y, self._of(f"{at}.conv1.weight"), self._of(f"{at}.conv1.bias")).relu()
            y = F.conv2d(y, self._of(f"{at}.conv2.weight"), self._of(f"{at}.conv2.bias"), stride, 1).relu()
            y = F.conv2d(y, self._of(f"{at}.conv3.weight"))
            x = y + (F.conv2d(x, self._of(f"{at}.downsample.0.weight"), stride=stride) if number % 4 == 0 else x)
        return F.linear(self._selected(x, "bn", 12).relu().mean((2, 3)), self._of("fc.weight"), self._of("fc.bias"))

    def _of(self, name: str) -> Tensor:
        return getattr(self, self._names[name])

    def _selected(self, x: Tensor, at: str, number: int) -> Tensor:
        values = (self._of(f"{at}.{name}") for name in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *values)[:, getattr(self, self._selections[number])]


@dataclass
class Nets:
    """Graphs and their data by name.

    Args:
        shared: holds `data/cifar10-jpeg.zip` and `data/preresnet38`.
        fashion: holds Fashion-MNIST's idx files; None where it is not wanted.
        work: where nets that are trained here are kept.
    """

    shared: Path
    fashion: Path | None
    work: Path
    _data: dict[str, Data] = field(default_factory=dict)

    def data(self, name: str) -> Data:
        """The dataset of a net."""
        kind = "fashion" if name in TRAINED else "cifar"
        if kind not in self._data:
            if kind == "cifar":
                self._data[kind] = load_data(self.shared / "data" / "cifar10-jpeg.zip")
            elif self.fashion is None:
                raise SystemExit(f"error: {name} needs Fashion-MNIST. Give --fashion. {SCARCE}")
            else:
                self._data[kind] = load_data(self.fashion, image_size=SIZE, channels=3)
        return self._data[kind]

    def graph(self, name: str) -> irtool.FxGraph:
        """A net's graph, as it is quantised."""
        if name in TRAINED:
            return irtool.trace(self.trained(name), torch.zeros(2, 3, SIZE, SIZE))
        return PUBLISHED[name](self)

    def trained(self, name: str) -> nn.Module:
        """A net of `TRAINED`, trained where epochs are lacking."""
        build, epochs, count = TRAINED[name]
        torch.manual_seed(0)
        net, path = build(), self.work / f"{name.lower()}-fashion-{SIZE}.pth"
        held = torch.load(path, weights_only=True) if path.exists() else {"epochs": 0, "state_dict": net.state_dict()}
        net.load_state_dict(held["state_dict"])
        if held["epochs"] < epochs:
            train = self.data(name).train
            chosen = np.random.default_rng(0).permutation(len(train))[:18_000]
            chosen = chosen[np.random.default_rng(100).permutation(len(chosen))[:count]]
            x, labels = self.images(name, chosen), torch.as_tensor(np.asarray(train.labels)[chosen])
        for epoch in range(held["epochs"], epochs):
            train_epoch(net, x, labels, 0.05, seed=epoch, span=(epoch / epochs, (epoch + 1) / epochs))
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"state_dict": net.state_dict(), "epochs": epoch + 1}, path)
            print(f"{name}: epoch {epoch + 1} of {epochs}", flush=True)
        return net.eval()

    def images(self, name: str, chosen: Any) -> Tensor:
        """Training images of these places, normalised."""
        data = self.data(name)
        found: Tensor = data.preprocessing.normalise(next(iter(data.train.batches([torch.as_tensor(chosen)]))))
        return found

    def original(self, weights: str) -> irtool.FxGraph:
        """A published PreResNet-38, unpruned."""
        net = PreResNet(38)
        net.load_state_dict(torch.load(self._file(weights), weights_only=True)["state_dict"])
        return irtool.trace(net.eval(), torch.zeros(2, 3, 32, 32))

    def folded_file(self) -> irtool.FxGraph:
        """The published net that others pruned and folded."""
        held = torch.load(self._file("sparse_pruned_0.5_folded"), weights_only=True)
        kept = [value.nonzero()[:, 0] for name, value in held["state_dict"].items() if name.endswith("select.indexes")]
        return irtool.trace(PublishedFolded(held["state_dict"], kept).eval(), torch.zeros(2, 3, 32, 32))

    def refitted(self, weights: str, **options: Any) -> irtool.FxGraph:
        """A published net, pruned and reconstructed on training images, which plan it too where there is a budget."""
        graph = self.original(weights)
        images = self.images(weights, np.random.default_rng(0).permutation(len(self.data(weights).train))[:FITTED])
        seen = {"data": images} if "budget" in options else {}
        return irtool.reconstruct(graph, irtool.plan(graph, **options, **seen), images)

    def _file(self, name: str) -> Path:
        return self.shared / "data" / "preresnet38" / f"{name}.pth"


def _sparse_half(nets: Nets) -> irtool.FxGraph:
    graph = nets.original("sparse")
    return irtool.prune(graph, irtool.plan(graph, "bn_scale", 0.5, "global", "select", round_to=1), "drop")


PUBLISHED: dict[str, Callable[[Nets], irtool.FxGraph]] = {
    "PreResNet-38, sparse, pruned at 0.5": _sparse_half,
    "PreResNet-38, normal, 45 % of the parameters": lambda nets: nets.refitted("normal", budget={"params": 0.45}),
    "PreResNet-38, sparse, pruned at 0.65": lambda nets: nets.refitted(
        "sparse", criterion="bn_scale", ratio=0.65, residual="select", round_to=1
    ),
    "PreResNet-38, pruned and folded by others": Nets.folded_file,
}
"""The nets from published weights, by name: how each is made. The first loses nothing that its training had left; the next two are refitted."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fashion", type=Path, required=True, help="the folder of Fashion-MNIST's idx files")
    parser.add_argument("--work", type=Path, default=Path("runs/int8"))
    parser.add_argument("--only", action="append", choices=list(TRAINED))
    options = parser.parse_args()
    torch.set_num_threads(1)
    nets = Nets(Path("../shared"), options.fashion, options.work)
    for name in options.only or TRAINED:
        nets.trained(name)


if __name__ == "__main__":
    main()
