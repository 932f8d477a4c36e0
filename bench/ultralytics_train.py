"""A detector of Ultralytics': pruned with its class kept, trained on by its own trainer, exported to ONNX and MNN, boxes compared with torch's.

    python bench/ultralytics_train.py        # needs the package ultralytics; eight generated images, one epoch, no network

docs/tutorials/trainers.md explains each step.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

import irtool
from irtool.engines import MnnSession, OnnxSession

SIZE, IMAGES = 160, {"train": 8, "val": 4}


def draw_shapes(folder: Path) -> Path:
    """Images of balls and boxes, with labels as Ultralytics reads them; returns the data set's description."""
    random = np.random.default_rng(0)
    for split, count in IMAGES.items():
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for number in range(count):
            image, lines = Image.fromarray(random.integers(0, 80, (SIZE, SIZE, 3), dtype=np.uint8)), []
            for _ in range(3):
                (x, y), (w, h), kind = random.integers(10, 100, 2), random.integers(20, 50, 2), int(random.integers(2))
                pen = ImageDraw.Draw(image)
                (pen.rectangle if kind else pen.ellipse)([int(x), int(y), int(x + w), int(y + h)], fill=(255, 60, 60))
                lines.append(f"{kind} {(x + w / 2) / SIZE:.4f} {(y + h / 2) / SIZE:.4f} {w / SIZE:.4f} {h / SIZE:.4f}")
            image.save(folder / "images" / split / f"{number}.png")
            (folder / "labels" / split / f"{number}.txt").write_text("\n".join(lines))
    described = folder / "shapes.yaml"
    described.write_text(f"path: {folder}\ntrain: images/train\nval: images/val\nnames: {{0: ball, 1: box}}\n")
    return described


def prune(net: torch.nn.Module, x: torch.Tensor) -> irtool.Plan:
    """Prune a detector in place. The layers whose channels `chunk` halves stay, as do those of the head."""
    from ultralytics.nn.modules import C2f

    halves = [f"{path}.cv1" for path, part in net.named_modules() if isinstance(part, C2f)]
    head = f"model.{len(net.model) - 1}"
    plan = irtool.plan(irtool.trace(net, x), "l1", ratio=0.3, ignore=[head, *halves])
    irtool.apply(plan, net, x)
    return plan


def main() -> None:
    """Print what each step gave."""
    os.environ["YOLO_OFFLINE"] = "1"
    work = Path(tempfile.mkdtemp())
    os.environ["YOLO_CONFIG_DIR"] = str(work / "settings")
    from ultralytics import YOLO
    from ultralytics.models.yolo.detect import DetectionTrainer
    from ultralytics.nn.tasks import DetectionModel

    torch.set_num_threads(1)
    net, x = DetectionModel("yolov8n.yaml", nc=2, verbose=False).eval(), torch.zeros(1, 3, SIZE, SIZE)
    before = sum(parameter.numel() for parameter in net.parameters())
    print(repr(prune(net, x)))
    print(f"{before:,} parameters became {sum(parameter.numel() for parameter in net.parameters()):,}; the class is {type(net).__name__}")

    class Trainer(DetectionTrainer):
        """Trains the net that it is given: by itself it would build a new one from the yaml file."""

        def get_model(self, cfg: object = None, weights: object = None, verbose: bool = True) -> torch.nn.Module:
            return net.requires_grad_(True)

    options = {"epochs": 1, "imgsz": SIZE, "batch": 4, "workers": 0, "device": "cpu", "plots": False, "amp": False, "verbose": False}
    YOLO("yolov8n.yaml").train(trainer=Trainer, data=str(draw_shapes(work / "shapes")), project=str(work), name="run", **options)

    trained = YOLO(work / "run" / "weights" / "last.pt").model.float().eval()
    graph = irtool.fold_batchnorm(irtool.trace(trained, x))
    irtool.export_onnx(graph, work / "small.onnx")
    irtool.export_mnn(work / "small.onnx", work / "small.mnn")
    image = torch.rand(1, 3, SIZE, SIZE)
    with torch.no_grad():
        boxes = trained(image)[0].numpy()
    for session in (OnnxSession(work / "small.onnx"), MnnSession(work / "small.mnn")):
        found = next(array for array in session.run(image.numpy()) if array.shape == boxes.shape)
        print(f"{type(session).__name__}: boxes {boxes.shape}, largest difference {abs(found - boxes).max():.2e} of {abs(boxes).max():.1f}")


if __name__ == "__main__":
    main()
