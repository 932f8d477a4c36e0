"""Training with int8 rounding against quantising afterwards, and against finetuning as long in float.

    python bench/qat.py --net "PreResNet-38=runs/a/model.safetensors" --data ../shared/data/cifar10-jpeg.zip --images 4000 --epochs 2

Each net is finetuned in float, with int8 rounding and with 4-bit weights for MNN, from the same weights, on the same images in the same
order, as many epochs at the same rate. Each result is written as a file of its engine and scored there on test images, which trained
and chose nothing; the original's files stand beside them. Results are written as they come (--out); with --resume a run goes on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

import irtool
from irtool.engines import MnnSession, OnnxSession, export_onnx
from irtool.engines.onnxruntime.calibrate import calibrate
from irtool.engines.onnxruntime.prepare import prepared
from irtool.engines.onnxruntime.qdq import to_qdq
from irtool.engines.onnxruntime.refine import refined
from irtool.engines.table import ENGINES
from irtool.passes import LowerAffine, WidenSelects
from irtool.progress import Reporter
from irtool.quant import Scheme, make_recipe, place
from irtool.train import Data
from irtool.train.stages import STAGES, train
from irtool.workflows.loading.data import DataOptions, known_preprocessing

STAGES_TRIED: dict[str, tuple[str, dict[str, Any]] | None] = {
    "as it was": None,
    "finetuned in float": ("finetune", {}),
    "trained with int8 rounding": ("qat", {"engine": "onnxruntime"}),
    "trained with 4-bit weights": ("qat", {"engine": "mnn", "weight_bits": 4, "weights_only": True}),
}


def int8_file(folder: Path, size: tuple[int, ...], images: np.ndarray) -> Path:
    """The int8 ONNX file, as `irtool quantize` makes it of all layers."""
    row = ENGINES["onnxruntime"]
    view = LowerAffine()(WidenSelects(0.5)(irtool.load_onnx(folder / "float.onnx", [size])).graph).graph
    irtool.save_onnx(view, folder / "ready.onnx")
    model = prepared(onnx.load(str(folder / "ready.onnx")))
    placement, batches = place(model, row.int8.policy), np.array_split(images, len(images) // 32)
    recipe = make_recipe(model, placement, calibrate(model, placement.tensors, batches, threads=1), row.int8.scheme)
    better = refined(model, recipe, [{model.graph.input[0].name: batch} for batch in batches])
    onnx.save(to_qdq(model, better), str(folder / "int8.onnx"))
    return folder / "int8.onnx"


def four_bits(folder: Path, images: np.ndarray | None) -> Path:
    """The MNN file with 4-bit weights, fitted to images if there are any."""
    path = folder / f"weights4-{'nearest' if images is None else 'fitted'}.mnn"
    name = irtool.load_onnx(folder / "float.onnx").inputs[0].name
    feeds = [] if images is None else [{name: batch} for batch in np.array_split(images, len(images) // 32)]
    ENGINES["mnn"].int8.write_weights(folder / "float.onnx", path, Scheme(weight_bits=4), feeds)
    return path


FILES: dict[str, Callable[[Path, tuple[int, ...], np.ndarray], Path]] = {
    "float": lambda folder, size, images: folder / "float.onnx",
    "int8, onnxruntime": int8_file,
    "4-bit weights, MNN": lambda folder, size, images: four_bits(folder, None),
    "4-bit weights fitted, MNN": lambda folder, size, images: four_bits(folder, images),
}


def scores(graph: irtool.FxGraph, data: Data, test: tuple[np.ndarray, np.ndarray]) -> dict[str, dict[str, float]]:
    """Per cent of test images that are right, and bytes, for each file of a graph."""
    found, size = {}, (2, *data.preprocessing.input_shape)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export_onnx(irtool.fold_batchnorm(graph), folder / "float.onnx")
        for title, write in FILES.items():
            path = write(folder, size, data.sample(256).numpy())
            session = (MnnSession if path.suffix == ".mnn" else OnnxSession)(path, 1)
            answers = np.concatenate([session.run(part)[0].argmax(1) for part in np.array_split(test[0], max(1, len(test[0]) // 64))])
            found[title] = {"accuracy": 100 * float((answers == test[1]).mean()), "bytes": path.stat().st_size}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", action="append", required=True, metavar="NAME=FILE", help="a model that irtool saved")
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=4000, help="training images")
    parser.add_argument("--test", type=int, default=2000, help="test images")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--lr", type=float, default=0.005)
    parser.add_argument("--resume", action="store_true", help="keep what --out holds")
    parser.add_argument("--out", type=Path, default=Path("bench/results/qat.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    given: dict[str, Any] = {name: getattr(options, name) for name in ("images", "test", "epochs", "lr")}
    given["data"] = Path(options.data).name
    results = json.loads(options.out.read_text()) if options.resume and options.out.is_file() else {"options": given, "nets": {}}
    for name, file in (text.split("=", 1) for text in options.net):
        data = known_preprocessing(file, DataOptions(options.data, limit=options.images)).load(file, Reporter())
        assert data is not None
        index = torch.linspace(0, len(data.test) - 1, min(options.test, len(data.test))).long()
        pixels = next(iter(data.test.batches([index])))
        test = data.preprocessing.normalise(pixels).numpy(), data.test.labels[index].numpy()
        rows = results["nets"].setdefault(name, {})
        for title, stage in STAGES_TRIED.items():
            if title in rows:
                continue
            graph = irtool.load(file)
            if stage is not None:
                graph = STAGES["qat"].begun(graph)  # all from the same, norms folded
                changes = {"epochs": options.epochs, "lr": options.lr, "batch_size": 32, "seed": 0, "evaluate_every": 0}
                train(stage[0], graph, data, changes, stage[1])
            rows[title] = scores(graph, data, test)
            print(name, title, rows[title], flush=True)
            options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
