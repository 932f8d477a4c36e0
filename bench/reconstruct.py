"""Accuracy that reconstruction gives on the published PreResNet-38, and on trained ONNX files.

    python bench/reconstruct.py [--shared ../shared] [--images 128] [--test 10000] [--parts published,noise,onnx] [--held-out]

Prints tables and writes them into bench/results/reconstruct.json. `published`: accuracy in % on the JPEG test images and agreement with the
unpruned net, for the published plan (bn_scale, global, select, ratio 0.7). `noise`: the same without images, beside absorbing, at three
ratios (bn_scale, and l2 for the net whose scales say nothing) and at three budgets planned without images. With --held-out the figures are
of 2,000 training images that are no calibration images, by which options were chosen. `onnx`: root mean square error of the
outputs against the original, relative to the outputs' own, on images that were not calibrated on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import irtool
from irtool.models import PreResNet
from irtool.train import load_data

ROOT = Path(__file__).resolve().parents[1]
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
FILES = ("super_resolution_opset11", "ppocr_cls_mobilenetv3", "ultraface_rfb_320")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--parts", default="published,noise,onnx")
    parser.add_argument("--nets", default="sparse,normal")
    parser.add_argument("--json", type=Path, default=ROOT / "bench" / "results" / "reconstruct.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = json.loads(options.json.read_text()) if options.json.exists() else {}
    parts: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "published": lambda: on_published(Images(options)),
        "noise": lambda: without_images(Images(options)),
        "onnx": lambda: on_onnx(options.shared),
    }
    for part in options.parts.split(","):
        found[part] = parts[part]()
        if not options.held_out:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(found, indent=1) + "\n")


class Images:
    """Images to calibrate on, and to score, of the published nets."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.nets, self._shared = options.nets.split(","), options.shared
        data = load_data(options.shared / "data" / "cifar10-jpeg.zip", mean=MEAN, std=STD)
        order = np.random.default_rng(0).permutation(len(data.train.labels))
        self.calibration = normalised(data, data.train, order[: options.images])
        shuffled = np.random.default_rng(1).permutation(len(data.test.labels))  # they lie class by class
        split, chosen = (data.train, order[-2000:]) if options.held_out else (data.test, shuffled)
        chosen = chosen[: options.test]
        self.images, self.labels = normalised(data, split, chosen), torch.as_tensor(np.asarray(split.labels)[chosen])

    def graph(self, name: str) -> irtool.FxGraph:
        """A published net."""
        net = PreResNet(38)
        net.load_state_dict(torch.load(self._shared / "data" / "preresnet38" / f"{name}.pth", weights_only=True)["state_dict"])
        return irtool.trace(net.eval(), torch.zeros(1, 3, 32, 32))

    def rows(self, name: str, graph: irtool.FxGraph, ways: dict[str, Callable[[], irtool.FxGraph]]) -> list[dict[str, Any]]:
        """Score the unpruned net and what each way gives."""
        answers = classes(graph.module, self.images)
        found = [row(f"{name}, unpruned", answers, answers, self.labels, 0.0)]
        for way, make in ways.items():
            start = time.process_time()
            pruned = make()
            seconds = time.process_time() - start
            found.append(row(f"{name}, {way}", classes(pruned.module, self.images), answers, self.labels, seconds))
        return found


def on_published(given: Images) -> list[dict[str, Any]]:
    """The published plan of the published net, and one like it of the other."""
    rows = []
    for name in given.nets:
        graph = given.graph(name)
        criterion, ratio = ("bn_scale", 0.7) if name == "sparse" else ("l2", 0.42)
        plan = irtool.plan(graph, criterion, ratio, "global", "select", round_to=1)
        rows += given.rows(name, graph, {
            "drop": partial(irtool.prune, graph, plan, "drop"),
            "absorb": partial(irtool.prune, graph, plan),
            "biases alone": partial(irtool.reconstruct, graph, plan, given.calibration, weights=False),
            "noise": partial(irtool.reconstruct, graph, plan),
            "least squares": partial(irtool.reconstruct, graph, plan, given.calibration),
        })  # fmt: skip
    return rows


def without_images(given: Images) -> list[dict[str, Any]]:
    """Absorbing beside noise: the same plan; and a budget planned by weights, and on noise."""
    rows = []
    for name in given.nets:
        graph, criterion = given.graph(name), "bn_scale" if name == "sparse" else "l2"
        ways: dict[str, Callable[[], irtool.FxGraph]] = {}
        for ratio in (0.3, 0.5, 0.7):
            plan = irtool.plan(graph, criterion, ratio, "global", "select", round_to=1)
            ways[f"{criterion} {ratio}, absorb"] = partial(irtool.prune, graph, plan)
            ways[f"{criterion} {ratio}, noise"] = partial(irtool.reconstruct, graph, plan)
        for share in (0.75, 0.5):
            plan = irtool.plan(graph, criterion, residual="select", round_to=1, budget={"macs": share})
            ways[f"MACs {share:.0%}, {criterion}, absorb"] = partial(irtool.prune, graph, plan)
            plan = irtool.plan(graph, residual="select", round_to=1, budget={"macs": share})
            ways[f"MACs {share:.0%}, {plan.criterion} on noise, noise"] = partial(irtool.reconstruct, graph, plan)
        rows += given.rows(name, graph, ways)
    return rows


def normalised(data: Any, split: Any, chosen: Any) -> Tensor:
    """Images of a split, prepared as for inference."""
    return data.preprocessing.normalise(next(iter(split.batches([np.asarray(chosen)]))))


def classes(module: torch.nn.Module, images: Tensor) -> Tensor:
    """The class that a net gives each image."""
    with torch.no_grad():
        return torch.cat([module.eval()(part).argmax(1) for part in images.split(250)])


def row(name: str, got: Tensor, answers: Tensor, labels: Tensor, seconds: float) -> dict[str, Any]:
    """Print and return one line."""
    right, same = (100 * float((got == other).double().mean()) for other in (labels, answers))
    print(f"{name:28} {right:6.2f} % right  {same:6.2f} % as unpruned  {seconds:6.2f} s CPU", flush=True)
    return {"name": name, "right": right, "same": same, "seconds": seconds}


def on_onnx(shared: Path) -> list[dict[str, Any]]:
    """Trained files, on crops of CIFAR images and of one photograph."""
    rows = []
    for name in FILES:
        graph = irtool.load_onnx(shared / "data" / "onnx" / f"{name}.onnx")
        images = photographs(shared, graph.example_inputs[0].shape, 192)
        calibration, test = images[:128], images[128:]
        wanted = runs(graph, test)
        for ratio in (0.3, 0.5):
            plan = irtool.plan(graph, "l2", ratio, "local", round_to=1)
            before = error(wanted, runs(irtool.prune(graph, plan), test))
            start = time.process_time()
            pruned = irtool.reconstruct(graph, plan, calibration)
            seconds = time.process_time() - start
            after = error(wanted, runs(pruned, test))
            print(f"{name:28} ratio {ratio}: error {before:.4f} -> {after:.4f}  {seconds:6.1f} s CPU", flush=True)
            rows.append({"name": name, "ratio": ratio, "before": before, "after": after, "seconds": seconds})
    return rows


def photographs(shared: Path, shape: tuple[int, ...], count: int) -> list[Tensor]:
    """Crops of the photograph and CIFAR images, enlarged to the input's size, about as wide in range as the nets are trained on."""
    from PIL import Image

    photo = torch.from_numpy(np.array(Image.open(shared / "data" / "onnx" / "cat.jpg").convert("RGB"))).permute(2, 0, 1)[None].float() / 255
    data = load_data(shared / "data" / "cifar10-jpeg.zip", limit=200)
    small = next(iter(data.train.batches([np.arange(count)])))
    small = small.float() / 255 if small.dtype == torch.uint8 else small
    generator, found = np.random.default_rng(0), []
    for number in range(count):
        source = small[number : number + 1]
        if number % 2:
            side = int(generator.integers(64, min(photo.shape[2:])))
            top, left = (int(generator.integers(0, size - side + 1)) for size in photo.shape[2:])
            source = photo[:, :, top : top + side, left : left + side]
        source = torch.nn.functional.interpolate(source, shape[2:], mode="bilinear", antialias=True)
        found.append(source.mean(1, keepdim=True) if shape[1] == 1 else (source - 0.5) / 0.5)
    return found


def runs(graph: irtool.OnnxGraph, images: list[Tensor]) -> list[Tensor]:
    """The outputs for each image, one vector each."""
    return [torch.cat([part.double().flatten() for part in graph.run(image)]) for image in images]


def error(wanted: list[Tensor], got: list[Tensor]) -> float:
    """Root mean square error over that of the outputs."""
    a, b = torch.stack(wanted), torch.stack(got)
    return float((a - b).square().mean().sqrt() / a.square().mean().sqrt())


if __name__ == "__main__":
    main()
