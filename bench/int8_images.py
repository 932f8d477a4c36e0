"""How many calibration images int8 needs: accuracy of the published PreResNet-38 at 0.5 in onnxruntime, by images and criterion.

Example: python bench/int8_images.py --shared ../shared --plot docs/int8-images.png
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch
from matplotlib.figure import Figure

import irtool
from irtool.engines import OnnxSession, export_onnx
from irtool.engines.onnxruntime.calibrate import calibrate
from irtool.engines.onnxruntime.prepare import prepared
from irtool.engines.onnxruntime.qdq import to_qdq
from irtool.models import PreResNet
from irtool.passes import LowerAffine, WidenSelects
from irtool.quant import Scheme, make_recipe, place
from irtool.train import load_data

COUNTS = (2, 8, 32, 128, 512)
METHODS = ("minmax", "mse", "kl")


def published(shared: Path, folder: Path) -> onnx.ModelProto:
    """The float model with the passes for int8."""
    net = PreResNet(38)
    net.load_state_dict(torch.load(shared / "data" / "preresnet38" / "sparse.pth", weights_only=True)["state_dict"])
    graph = irtool.trace(net.eval(), torch.zeros(2, 3, 32, 32))
    pruned = irtool.prune(graph, irtool.plan(graph, "bn_scale", 0.5, "global", "select", round_to=1), "drop")
    export_onnx(irtool.fold_batchnorm(pruned), folder / "float.onnx")
    base = irtool.load_onnx(folder / "float.onnx", [(1, 3, 32, 32)])
    irtool.save_onnx(LowerAffine()(WidenSelects(0.5)(base).graph).graph, folder / "passed.onnx")
    return prepared(onnx.load(str(folder / "passed.onnx")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--images", type=int, default=1000, help="test images")
    parser.add_argument("--draws", type=int, default=2, help="sets of calibration images for each count")
    parser.add_argument("--out", type=Path, default=Path("bench/results/int8_images.json"))
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    data = load_data(options.shared / "data" / "cifar10-jpeg.zip", limit=max(options.images, 2000))
    index = torch.linspace(0, len(data.test) - 1, options.images).long()
    x, labels = data.preprocessing.normalise(next(iter(data.test.batches([index])))).numpy(), data.test.labels[index].numpy()

    def accuracy(path: Path) -> float:
        session = OnnxSession(path, 1)
        return 100 * float(np.mean(np.concatenate([session.run(part)[0].argmax(1) for part in np.array_split(x, 10)]) == labels))

    found: dict[str, dict[str, list[float]]] = {method: {} for method in METHODS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = published(options.shared, folder)
        placement, float_accuracy = place(model), accuracy(folder / "float.onnx")
        for count in COUNTS:
            for draw in range(options.draws):
                images = data.sample(count, seed=draw).numpy()
                stats = calibrate(model, placement.tensors, np.array_split(images, max(1, count // 32)), threads=1)
                for method in METHODS:
                    onnx.save(
                        to_qdq(model, make_recipe(model, placement, stats, Scheme(weight_bits=7, method=method))), str(folder / "int8.onnx")
                    )
                    found[method].setdefault(str(count), []).append(accuracy(folder / "int8.onnx"))
            print(count, {method: rows[str(count)] for method, rows in found.items()}, flush=True)
    options.out.write_text(json.dumps({"images": options.images, "float": float_accuracy, "int8": found}, indent=1) + "\n")
    if options.plot is not None:
        draw_plot(found, float_accuracy, options.plot)


def draw_plot(found: dict[str, dict[str, list[float]]], expected: float, path: Path) -> None:
    """Accuracy over the number of images, a line a criterion, and every draw as a point."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.axhline(expected, color="black", linewidth=1, label="float")
    for method, rows in found.items():
        line = axes.plot([int(count) for count in rows], [float(np.mean(values)) for values in rows.values()], marker="o", label=method)[0]
        for count, values in rows.items():
            axes.scatter([int(count)] * len(values), values, s=8, color=line.get_color(), alpha=0.5)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("calibration images")
    axes.set_ylabel("accuracy, %")
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
