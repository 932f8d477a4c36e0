"""Files that `irtool quantize` makes of nets that nobody tuned for: every form of the file, in every engine.

    python bench/forms.py --model "PreResNet-38 at 0.5=runs/a/model.safetensors" --data ../shared/data/cifar10-jpeg.zip

For each net and engine: float, half-float weights, 8-bit weights alone, int8 of all layers without and with fitted integers; accuracy on test
images, which choose nothing, with the standard error of its difference; agreement with float; signal to noise of the logits; bytes; and
processor time of one thread in pairs, where it can be measured. Results are written as they come (--out); with --resume a run goes on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import irtool
from irtool.engines.table import ENGINES
from irtool.progress import Reporter
from irtool.train.data.split import Part
from irtool.workflows.loading.data import DataOptions, known_preprocessing
from irtool.workflows.quantize.calibration_images import Images
from irtool.workflows.quantize.graph import quantize_graph
from irtool.workflows.quantize.options import QuantizeOptions
from irtool.workflows.quantize.sensitivity import sqnr


def outputs(engine: str, path: Path, x: np.ndarray) -> np.ndarray:
    """The logits of a file for all images."""
    session = ENGINES[engine].session(path, 1)
    return np.concatenate([session.run(part)[0] for part in np.array_split(x, max(1, len(x) // 64))])


def measure(graph: irtool.FxGraph, images: Images, engine: str) -> list[dict[str, Any]]:
    """A row for each form of a net in an engine."""
    index = torch.arange(min(1000, len(images.scored)))
    x = images.preprocessing.normalise(next(iter(images.scored.batches([index])))).numpy()
    rows = []
    for refine in (False, True):
        settings = replace(QuantizeOptions(engine=engine, sensitivity=False, refine=refine, runs=200).settings(), max_drop=1.0)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            outcome = quantize_graph(graph, images, settings, folder, Reporter())
            exact = outputs(engine, folder / f"float{ENGINES[engine].suffix}", x)
            for form in outcome.forms:
                if form.name == "int8" or refine:
                    got = outputs(engine, folder / f"{form.name}{ENGINES[engine].suffix}", x)
                    title = "int8, to the nearest" if form.name == "int8" and not refine else form.name
                    told = {"agreement": 100 * float((got.argmax(1) == exact.argmax(1)).mean()), "sqnr_db": sqnr(got, exact)}
                    rows.append({**asdict(form), **told, "name": title})
    return rows


def tables(results: Mapping[str, Any]) -> str:
    """All that was found, in Markdown."""
    lines = []
    for name, engines in results["nets"].items():
        lines += [f"{name}, {results['options']['test']:,} test images:", ""]
        lines += [
            "| engine | file | accuracy | lost | agreement | logits, dB | of float's bytes | time |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for engine, rows in engines.items():
            base = next(row for row in rows if row["name"] == "float")
            for row in sorted(rows, key=lambda row: -row["bytes"]):
                first = row is base
                lost = "" if first else f"{100 * row['drop']:+.2f} ± {100 * (row['error'] or 0):.2f}"
                ratio = "1" if first else "?" if row["ratio"] is None else f"{row['ratio']:.2f}"
                noise = "" if first else f"{row['sqnr_db']:.1f}"
                lines.append(
                    f"| {engine} | {row['name']} | {100 * row['accuracy']:.2f} % | {lost} | {row['agreement']:.1f} % | {noise} | "
                    f"{row['bytes'] / base['bytes']:.3f} | {ratio} |"
                )
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", required=True, metavar="NAME=FILE", help="a model that irtool saved")
    parser.add_argument("--data", required=True)
    parser.add_argument("--test", type=int, default=10000, help="test images")
    parser.add_argument("--calibration", type=int, default=512, help="training images")
    parser.add_argument("--engine", action="append", choices=list(ENGINES))
    parser.add_argument("--resume", action="store_true", help="keep what --out holds")
    parser.add_argument("--out", type=Path, default=Path("bench/results/forms.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    given = {"test": options.test, "calibration": options.calibration, "data": Path(options.data).name}
    results = json.loads(options.out.read_text()) if options.resume and options.out.is_file() else {"options": given, "nets": {}}
    for name, file in (text.split("=", 1) for text in options.model):
        data = known_preprocessing(file, DataOptions(options.data)).load(file, Reporter())
        assert data is not None
        scored = Part(data.test, torch.linspace(0, len(data.test) - 1, min(options.test, len(data.test))).long())
        images = Images(data.train, options.calibration, scored, labelled=True)
        for engine in options.engine or [row.name for row in ENGINES.values() if row.installed]:
            rows = results["nets"].setdefault(name, {})
            if engine not in rows:
                rows[engine] = measure(irtool.load(file), images, engine)
                print(name, engine, [(row["name"], round(100 * row["drop"], 2), row["ratio"]) for row in rows[engine]], flush=True)
                options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(tables(results))


if __name__ == "__main__":
    main()
