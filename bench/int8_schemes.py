"""Int8 beside float in onnxruntime and MNN: the tables of docs/int8.md in one run.

    python bench/int8_schemes.py --shared ../shared
    python bench/int8_schemes.py --model "VGG-16 at 0.7=runs/vgg/model.safetensors" --data "VGG-16 at 0.7=/usr/share/datasets/fashion-mnist"

Models are the published PreResNet-38, pruned at 0.5 (--shared), files that irtool saved (--model NAME=FILE), and, for latency
alone, VGG-16 and PreResNet-38 with random weights. A saved model is scored with the dataset that --data NAME=PATH gives, normalised as
its file says; without --data, with CIFAR-10 (JPEG) of --shared. The published net has the experiments on the reasons, too.

Latency is taken in rounds that run every file once, and the ratio is the median over the rounds, so that other work on the
machine hits all alike. What is done is written after each model; with --resume a run goes on at the first that is not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from int8_bench import DEFAULTS, ORDERS, TITLES, Bench, Trial, scaled_kinds

import irtool
from irtool import progress
from irtool.models import VGG, PreResNet
from irtool.train import Data, load_data
from irtool.workflows.loading.data import DataOptions, known_preprocessing

PUBLISHED = "PreResNet-38, published, at 0.5"
RANDOM = {"VGG-16, random weights": lambda: VGG(16), "PreResNet-38, random weights": lambda: PreResNet(38)}
# Each row changes one thing of the default scheme.
TRIALS = {
    "our scheme": Trial({}),
    "ranges by KL": Trial({"method": "kl"}),
    "ranges by min-max": Trial({"method": "minmax"}),
    "ranges by percentile (99.99)": Trial({"method": "percentile"}),
    "ranges by moving average": Trial({"method": "moving_average"}),
    "weights by alternating scales (ADMM)": Trial({"weights": "admm"}),
    "no bias correction": Trial({"correct_bias": False}),
    "channels equalised between layers first": Trial({}, "equalised"),
    "one scale for each residual stream": Trial({}, one_scale=True),
    "uint8 activations, 8-bit weights": Trial({"weight_bits": 8}, engines=("onnx",)),
    "int8 activations with a zero point, 8-bit weights": Trial({"activations": "int8", "weight_bits": 8}, engines=("onnx",)),
}
ON_ALL_IMAGES = ("no bias correction", "channels equalised between layers first")
# How images are prepared for calibration, and for scoring.
MISTAKES = [("right", "right"), *((order, "right") for order in ORDERS if order != "right"), *(("right", order) for order in ORDERS if order != "right")]  # fmt: skip
ALLOWED_DROP, ALLOWED_BYTES = 0.3, 0.37


def graph_of(name: str, source: str | None, shared: Path) -> irtool.FxGraph:
    """A folded graph by its name in the table."""
    if source is not None:
        return irtool.fold_batchnorm(irtool.load(source))
    torch.manual_seed(0)
    example = torch.zeros(2, 3, 32, 32)
    if name in RANDOM:
        return irtool.fold_batchnorm(irtool.trace(RANDOM[name]().eval(), example))
    net = PreResNet(38)
    net.load_state_dict(torch.load(shared / "data" / "preresnet38" / "sparse.pth", weights_only=True)["state_dict"])
    graph = irtool.trace(net.eval(), example)
    return irtool.fold_batchnorm(irtool.prune(graph, irtool.plan(graph, "bn_scale", 0.5, "global", "select", round_to=1), "drop"))


def data_of(name: str, source: str | None, path: str | None, shared: Path) -> Data | None:
    """Load the images that a model is scored with, as its file says that they are prepared; nothing for random weights."""
    if name in RANDOM:
        return None
    images = str(path or shared / "data" / "cifar10-jpeg.zip")
    if source is None:
        return load_data(images)
    return known_preprocessing(source, DataOptions(images)).load(source, progress.Reporter())


def measure(bench: Bench, threads: Iterable[int], seconds: float) -> dict[str, Any]:
    """The main table's figures of one model."""
    files = bench.files()
    rows: dict[str, dict[str, Any]] = {}
    for name, path in files.items():
        rows[name] = {"bytes": path.stat().st_size, "accuracy": bench.accuracy(path)}
        print(f"  {name}: {rows[name]}", flush=True)
    return {
        "rows": rows,
        "latency": {str(n): bench.latency(files, n, seconds) for n in threads},
        "passes": bench.passes(),
        "int8_tensors": {name: scaled_kinds(path) for name, path in files.items() if path.suffix == ".mnn"},
        "profile_ms": {name: bench.profile(path) for name, path in files.items()},
    }


def experiments(bench: Bench, images: int) -> dict[str, Any]:
    """One thing changed at a time, on so many test images; some of it on all."""

    def score(trial: Trial, count: int | None) -> dict[str, float | None]:
        return {engine: bench.accuracy(bench.write(engine, trial), count, trial.scored) for engine in trial.engines}

    found: dict[str, Any] = {
        "images": images,
        "float": bench.accuracy(bench.folder / "float.onnx", images),
        "some": {},
        "all": {},
        "order": [],
    }
    for title, trial in TRIALS.items():
        found["some"][title] = score(trial, images)
        print(f"  {title}: {found['some'][title]}", flush=True)
    found["all"] = {title: score(TRIALS[title], None) for title in ON_ALL_IMAGES}
    for calibrated, scored in MISTAKES:
        row = score(Trial({}, calibrated=calibrated, scored=scored), images)
        row["float"] = bench.accuracy(bench.folder / "float.onnx", images, scored)
        row["own"] = bench.accuracy(bench.own("KL", calibrated), images, scored)
        found["order"].append({"calibrated": calibrated, "scored": scored, **row})
        print(f"  {found['order'][-1]}", flush=True)
    return found


def tables(results: Mapping[str, Any]) -> str:
    """All that was found, in Markdown."""
    lines = []
    for model, found in results["models"].items():
        lines += [f"## {model}", "", *_main_table(found), "", *_judged(found["rows"]), *_passes_table(found)]
        if "experiments" in found:
            lines += _experiments_tables(found["experiments"])
    return "\n".join(lines)


def _main_table(found: Mapping[str, Any]) -> list[str]:
    threads = list(found["latency"])
    head = "".join(f" time, {n} thread{'s' * (n != '1')} |" for n in threads)
    lines = [f"| file | accuracy | bytes | of float |{head}", "|---|---|---|---|" + "---|" * len(threads)]
    for name, row in found["rows"].items():
        base = found["rows"][_float_row(name)]["bytes"]
        times = "".join(f" {found['latency'][n][name]['ratio']:.2f} |" for n in threads)
        lines.append(f"| {name} | {_percent(row['accuracy'])} | {row['bytes']:,} | {row['bytes'] / base:.3f} |{times}")
    return lines


def _float_row(name: str) -> str:
    return "onnxruntime, float" if name.startswith("onnx") else "MNN, float"


def _judged(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Whether int8 keeps what is asked of it."""
    lines = []
    for title in TITLES.values():
        before, after = rows[f"{title}, float"], rows[f"{title}, int8"]
        share = after["bytes"] / before["bytes"]
        drop = None if before["accuracy"] is None else before["accuracy"] - after["accuracy"]
        fine = share <= ALLOWED_BYTES and (drop is None or drop <= ALLOWED_DROP)
        loses = "" if drop is None else f"loses {drop:.2f} points of {ALLOWED_DROP} allowed, "
        lines.append(f"{'holds' if fine else 'FAILS'}: {title} int8 {loses}has {share:.3f} of float's bytes of {ALLOWED_BYTES} allowed  ")
    return [*lines, ""]


def _passes_table(found: Mapping[str, Any]) -> list[str]:
    lines = [
        "| graph | operators in MNN | steps, onnxruntime | steps, MNN | bytes, onnxruntime | bytes, MNN |",
        "|---|---|---|---|---|---|",
    ]
    for graph, row in found["passes"].items():
        figures = [*row["steps"].values(), *(f"{size:,}" for size in row["bytes"].values())]
        lines.append(f"| {graph} | {row['mnn_operators']} | {' | '.join(map(str, figures))} |")
    lines += ["", "| MNN file | tensors with int8 scales | made by |", "|---|---|---|"]
    for name, kinds in found["int8_tensors"].items():
        made = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items(), key=lambda item: -item[1]))
        lines.append(f"| {name} | {sum(kinds.values())} | {made} |")
    lines += ["", "| file | ms by operator, one thread |", "|---|---|"]
    for name, times in found["profile_ms"].items():
        lines.append(f"| {name} | {', '.join(f'{op} {ms:.2f}' for op, ms in list(times.items())[:6])} |")
    return [*lines, ""]


def _experiments_tables(found: Mapping[str, Any]) -> list[str]:
    lines = [f"| {found['images']:,} images, float {_percent(found['float'])} | onnxruntime | MNN |", "|---|---|---|"]
    lines += [f"| {title} | {_percent(row.get('onnx'))} | {_percent(row.get('mnn'))} |" for title, row in found["some"].items()]
    lines += ["", "| all images | onnxruntime | MNN |", "|---|---|---|"]
    lines += [f"| {title} | {_percent(row['onnx'])} | {_percent(row['mnn'])} |" for title, row in found["all"].items()]
    lines += ["", "| calibrated with | scored with | float | onnxruntime | MNN | MNN's own KL |", "|---|---|---|---|---|---|"]
    for row in found["order"]:
        figures = " | ".join(_percent(row[key]) for key in ("float", *DEFAULTS, "own"))
        lines.append(f"| {row['calibrated']} | {row['scored']} | {figures} |")
    return [*lines, ""]


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="the published checkpoints and CIFAR-10 (JPEG)")
    parser.add_argument("--model", action="append", default=[], metavar="NAME=FILE", help="a model that irtool saved")
    parser.add_argument("--data", action="append", default=[], metavar="NAME=PATH", help="the dataset of a --model")
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="leave out all other models; with --resume those that the file has stay"
    )
    parser.add_argument("--images", type=int, default=10000, help="test images")
    parser.add_argument("--calibration", type=int, default=256, help="training images")
    parser.add_argument("--experiments", type=int, default=2000, help="images for the experiments on the published net; 0: none")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=20.0, help="of latency rounds, for each engine and number of threads")
    parser.add_argument("--resume", action="store_true", help="keep what --out holds of the same models and options")
    parser.add_argument("--out", type=Path, default=Path("bench/results/int8_schemes.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    given, datasets = (dict(text.split("=", 1) for text in texts) for texts in (options.model, options.data))
    published = [PUBLISHED] if options.shared.is_dir() else []
    before = json.loads(options.out.read_text())["models"] if options.resume and options.out.is_file() else {}
    results: dict[str, Any] = {"machine": machine(), "versions": irtool.__version__, "models": before if options.only else {}}
    for name in options.only or [*published, *given, *RANDOM]:
        key = _key(options, given.get(name), datasets.get(name))
        if before.get(name, {}).get("key") == key:
            results["models"][name] = before[name]
        else:
            print(name, flush=True)
            results["models"][name] = {"key": key, **one(name, given.get(name), datasets.get(name), options)}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(tables(results))


def one(name: str, source: str | None, data: str | None, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one model."""
    begun, scored = time.perf_counter(), data_of(name, source, data, options.shared)
    shape = (1, *(scored.preprocessing.input_shape if scored is not None else (3, 32, 32)))
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(graph_of(name, source, options.shared), scored, Path(folder), shape, options.calibration, options.images)
        found = measure(bench, options.threads, options.seconds)
        if name == PUBLISHED and options.experiments:
            found["experiments"] = experiments(bench, options.experiments)
    images = {"images": min(options.images, len(scored.test))} if scored is not None else {}
    return {**images, "calibration": options.calibration, **found, "seconds": time.perf_counter() - begun}


def _key(options: argparse.Namespace, source: str | None, data: str | None) -> str:
    """Equal for the same options and the same file."""
    names = ("images", "calibration", "experiments", "threads", "seconds")
    content = hashlib.sha256(Path(source).read_bytes()).hexdigest() if source is not None else None
    return hashlib.sha256(json.dumps([content, data, [getattr(options, name) for name in names]]).encode()).hexdigest()[:16]


def machine() -> dict[str, Any]:
    """Facts that the latency depends on."""
    flags = (
        next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "")
        if sys.platform == "linux"
        else ""
    )
    return {"cores": os.cpu_count(), "avx2": "avx2" in flags, "avx512_vnni": "avx512_vnni" in flags, "avx_vnni": "avx_vnni" in flags}


if __name__ == "__main__":
    main()
