"""Int8 beside float in onnxruntime and MNN: accuracy on all test images, bytes, latency by pairs; and experiments on the reasons.

Models are the published PreResNet-38, pruned at 0.5 (../shared), any model files given with --model NAME=FILE, and, for
latency alone, VGG-16 and PreResNet-38 with random weights. Latency is taken in rounds that run every file once, and the ratio
is the median over the rounds, so that other work on the machine hits all alike.

Example: python bench/int8.py --shared ../shared --out bench/results/int8.json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

import irtool
from irtool.backends import MnnSession, OnnxSession, Session, export_mnn, export_onnx, latency_pairs
from irtool.backends.onnx_profile import operator_times
from irtool.models import VGG, PreResNet
from irtool.passes import Equalise, LowerAffine, WidenSelects
from irtool.quant import Scheme, calibrate, export_mnn_int8, make_recipe, mnn_own_int8, place, to_qdq
from irtool.quant.prepare import prepared
from irtool.quant.steps import steps
from irtool.train import Data, load_data

SESSIONS: dict[str, Callable[[Path, int], Session]] = {".onnx": OnnxSession, ".mnn": MnnSession}
ONNX, MNN = Scheme(weight_bits=7), Scheme("int8", symmetric=True)
# Each row of the experiments changes one thing of the default scheme.
SCHEMES: dict[str, dict[str, Scheme]] = {
    "onnx": {
        "ours": ONNX,
        "uint8, 8-bit weights": Scheme(),
        "int8 activations, 8-bit weights": Scheme("int8"),
        "ranges by KL": Scheme(weight_bits=7, method="kl"),
        "ranges by min-max": Scheme(weight_bits=7, method="minmax"),
        "ranges by percentile": Scheme(weight_bits=7, method="percentile"),
        "ranges by moving average": Scheme(weight_bits=7, method="moving_average"),
        "weights by ADMM": Scheme(weight_bits=7, weights="admm"),
        "no bias correction": Scheme(weight_bits=7, correct_bias=False),
    },
    "mnn": {
        "ours": MNN,
        "ranges by KL": Scheme("int8", True, "kl"),
        "ranges by min-max": Scheme("int8", True, "minmax"),
        "weights by ADMM": Scheme("int8", True, weights="admm"),
        "no bias correction": Scheme("int8", True, correct_bias=False),
    },
}


def graph_of(name: str, source: str | None, shared: Path) -> irtool.FxGraph:
    """A folded graph by its name in the table."""
    if source is not None:
        return irtool.fold_batchnorm(irtool.load(source))
    torch.manual_seed(0)
    example = torch.zeros(2, 3, 32, 32)
    if name.startswith("published"):
        net = PreResNet(38)
        net.load_state_dict(torch.load(shared / "data" / "preresnet38" / "sparse.pth", weights_only=True)["state_dict"])
        graph = irtool.trace(net.eval(), example)
        return irtool.fold_batchnorm(irtool.prune(graph, irtool.plan(graph, "bn_scale", 0.5, "global", "select"), "drop"))
    net = {"VGG-16": VGG(16), "PreResNet-38": PreResNet(38)}[name]
    return irtool.fold_batchnorm(irtool.trace(net.eval(), example))


class Bench:
    """The files of one model, in a folder."""

    def __init__(self, graph: irtool.FxGraph, data: Data | None, folder: Path, calibration: int, images: int) -> None:
        self.folder, self.data = folder, data
        export_onnx(graph, folder / "float.onnx")
        export_mnn(folder / "float.onnx", folder / "float.mnn")
        base = irtool.load_onnx(folder / "float.onnx", [(1, 3, 32, 32)])
        passed = LowerAffine()(WidenSelects(0.5)(base).graph).graph
        irtool.save_onnx(passed, folder / "passed.onnx")
        irtool.save_onnx(Equalise()(passed).graph, folder / "equalised.onnx")
        names = {"plain": "float", "passed": "passed", "equalised": "equalised"}
        self.models = {kind: prepared(onnx.load(str(folder / f"{name}.onnx"))) for kind, name in names.items()}
        if data is not None:
            self.pixels = data.sample(calibration).numpy()
            chosen = np.random.default_rng(0).permutation(len(data.test))[:images]
            index = torch.from_numpy(np.sort(chosen))
            self.labels = data.test.labels[index].numpy()
            self.test = next(iter(data.test.batches([index])))
        else:
            self.pixels = np.random.default_rng(0).normal(size=(64, 3, 32, 32)).astype(np.float32)
        self.stats = {}
        for kind, model in self.models.items():
            names = dict.fromkeys(name for engine in ("onnx", "mnn") for name in place(model, engine).tensors)
            self.stats[kind] = calibrate(model, names, np.array_split(self.pixels, max(1, len(self.pixels) // 32)), threads=1)

    def write(self, name: str, kind: str, engine: str, scheme: Scheme) -> Path:
        """An int8 file; `kind` says whether of the graph as it was or as the passes made it."""
        model, path = self.models[kind], self.folder / f"{name}.{engine}"
        recipe = make_recipe(model, place(model, engine), self.stats[kind], scheme)
        if engine == "onnx":
            onnx.save(to_qdq(model, recipe), str(path))
        else:
            export_mnn_int8(model, recipe, path, bits=scheme.weight_bits)
        return path

    def accuracy(self, path: Path, images: int | None = None) -> float | None:
        """Per cent of the test images, or of so many of them, evenly spread."""
        if self.data is None:
            return None
        session, right = SESSIONS[path.suffix](path, 1), 0
        chosen = np.linspace(0, len(self.labels) - 1, min(images or len(self.labels), len(self.labels))).astype(int)
        for start in range(0, len(chosen), 100):
            some = chosen[start : start + 100]
            x = self.data.preprocessing.normalise(self.test[some]).numpy()
            right += int((session.run(x)[0].argmax(1) == self.labels[some]).sum())
        return 100 * right / len(chosen)

    def files(self) -> dict[str, Path]:
        """The files of the main table, by row."""
        found = {"onnxruntime float": self.folder / "float.onnx", "MNN float": self.folder / "float.mnn"}
        for engine, title, scheme in (("onnx", "onnxruntime", ONNX), ("mnn", "MNN", MNN)):
            found[f"{title} int8, graph as it was"] = self.write("plain8", "plain", engine, scheme)
            found[f"{title} int8"] = self.write("int8", "passed", engine, scheme)
        if self.data is not None:
            pre = self.data.preprocessing
            pixels = np.rint((self.pixels * np.reshape(pre.std, (1, 3, 1, 1)) + np.reshape(pre.mean, (1, 3, 1, 1))) * 255)
            for method in ("KL", "EMA"):
                found[f"MNN's own {method}"] = self.folder / f"own_{method}.mnn"
                mnn_own_int8(
                    self.folder / "float.mnn",
                    found[f"MNN's own {method}"],
                    pixels.clip(0, 255).astype(np.uint8),
                    pre.mean,
                    pre.std,
                    method=method,
                )
        found["MNN, 8-bit weights alone"] = self.folder / "weights8.mnn"
        export_mnn(self.folder / "float.onnx", found["MNN, 8-bit weights alone"], weight_bits=8)
        return found

    def latency(self, files: Mapping[str, Path], threads: int, seconds: float) -> dict[str, dict[str, float]]:
        """Median and ratio to float, engine by engine."""
        found: dict[str, dict[str, float]] = {}
        for suffix, session in SESSIONS.items():
            rows = {name: path for name, path in files.items() if path.suffix == suffix}
            pairs = latency_pairs([session(path, threads) for path in rows.values()], [self.pixels[:1]], runs=100000, seconds=seconds)
            for name, one, ratio in zip(rows, pairs.latencies, pairs.ratios, strict=True):
                found[name] = {"median_ms": one.median_ms, "p10_ms": one.p10_ms, "ratio": ratio, "rounds": one.runs}
        return found


def measure(bench: Bench, threads: list[int], seconds: float, experiments: int) -> dict[str, Any]:
    """All figures of one model."""
    files = bench.files()
    rows: dict[str, dict[str, Any]] = {}
    for name, path in files.items():
        rows[name] = {"bytes": path.stat().st_size, "accuracy": bench.accuracy(path)}
        print(f"  {name}: {rows[name]}", flush=True)
    found: dict[str, Any] = {"rows": rows, "latency": {str(n): bench.latency(files, n, seconds) for n in threads}}
    found["steps"] = {kind: len(steps(model, place(model))) for kind, model in bench.models.items()}
    x = [bench.pixels[:1]]
    found["profile_ms"] = {name: operator_times(path, x) for name, path in files.items() if path.suffix == ".onnx"}
    if experiments:
        found["experiments"] = {
            engine: {name: bench.accuracy(bench.write("trial", "passed", engine, scheme), experiments) for name, scheme in schemes.items()}
            for engine, schemes in SCHEMES.items()
        }
        for engine, scheme in (("onnx", ONNX), ("mnn", MNN)):
            found["experiments"][engine]["channels equalised"] = bench.accuracy(
                bench.write("trial", "equalised", engine, scheme), experiments
            )
        found["experiments"]["onnx"]["float"] = bench.accuracy(bench.folder / "float.onnx", experiments)
        print(f"  {found['experiments']}", flush=True)
    return found


def table(results: Mapping[str, Any]) -> str:
    """The main tables in Markdown."""
    lines = []
    for model, found in results["models"].items():
        threads = list(found["latency"])
        head = "".join(f" of float, {n} thread{'s' * (n != '1')} |" for n in threads)
        lines += [f"### {model}", "", f"| file | accuracy | bytes | of float |{head}", "|---|---|---|---|" + "---|" * len(threads)]
        for name, row in found["rows"].items():
            base = found["rows"]["onnxruntime float" if name.startswith("onnx") else "MNN float"]["bytes"]
            accuracy = "" if row["accuracy"] is None else f"{row['accuracy']:.2f} %"
            times = "".join(f" {found['latency'][n][name]['ratio']:.2f} |" for n in threads)
            lines.append(f"| {name} | {accuracy} | {row['bytes']:,} | {row['bytes'] / base:.3f} |{times}")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--model", action="append", default=[], metavar="NAME=FILE", help="a model that irtool saved, for 32x32 images")
    parser.add_argument("--only", action="append", help="leave out all other models")
    parser.add_argument("--images", type=int, default=10000)
    parser.add_argument("--calibration", type=int, default=512)
    parser.add_argument("--experiments", type=int, default=2000, help="images for the experiments on the published net; 0: none")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=20.0, help="of latency rounds, for each engine and number of threads")
    parser.add_argument("--out", type=Path, default=Path("bench/results/int8.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    given = dict(text.split("=", 1) for text in options.model)
    data = load_data(options.shared / "data" / "cifar10-jpeg.zip") if options.shared.is_dir() else None
    published = ["published PreResNet-38 at 0.5"] if data is not None else []
    wanted = [*published, *given, "VGG-16", "PreResNet-38"]
    results: dict[str, Any] = {"machine": machine(), "versions": irtool.__version__, "models": {}}
    for name in options.only or wanted:
        print(name, flush=True)
        begun = time.perf_counter()
        scored = data if name in given or name.startswith("published") else None
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(graph_of(name, given.get(name), options.shared), scored, Path(folder), options.calibration, options.images)
            results["models"][name] = measure(
                bench, options.threads, options.seconds, options.experiments if name.startswith("published") else 0
            )
        results["models"][name]["seconds"] = time.perf_counter() - begun
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


def machine() -> dict[str, Any]:
    """What the latency depends on."""
    flags = (
        next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "")
        if sys.platform == "linux"
        else ""
    )
    return {"cores": os.cpu_count(), "avx2": "avx2" in flags, "avx512_vnni": "avx512_vnni" in flags, "avx_vnni": "avx_vnni" in flags}


if __name__ == "__main__":
    main()
