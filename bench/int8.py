"""Files of every form in every engine: the first table of docs/int8.md.

    python bench/int8.py --fashion /usr/share/datasets/fashion-mnist
    python bench/int8.py --model "mine=runs/a/model.safetensors" --data ../shared/data/cifar10-jpeg.zip --only mine

For each net (`bench/int8_nets.py`, and --model) and engine: float, 8-bit weights alone, int8 of all layers to the nearest and fitted, and int8
after the guard, which leaves layers in float until at most 0.3 points are expected to be lost. 512 training images calibrate, 256 of them fit
the integers, 512 more choose for the guard. Accuracy, its difference to float with the standard error of the paired difference, agreement with
float and signal to noise of the logits are of test images, which chose nothing. Times are ratios to float in pairs, of one run of one image,
at 1 thread (processor time) and 2 (wall time); `?` where the machine is too busy to know them to 5 %. Results are written as they
come; a run goes on where it stopped, and measures the times again that were not known.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from int8_nets import PUBLISHED, TRAINED, Nets
from kept import Kept, into_page

import irtool
from irtool.engines import latency_pairs
from irtool.engines.engine import Engine
from irtool.engines.latency import is_known
from irtool.engines.speed.stopwatch import clock_of, is_disturbed, load
from irtool.engines.table import ENGINES
from irtool.errors import CheckError, IrtoolError
from irtool.ir import Graph
from irtool.progress import Reporter
from irtool.train import Data
from irtool.train.data.split import Part
from irtool.workflows.loading.data import DataOptions, known_preprocessing
from irtool.workflows.quantize.calibration_images import Images
from irtool.workflows.quantize.graph import Outcome, quantize_graph
from irtool.workflows.quantize.options import QuantizeOptions
from irtool.workflows.quantize.sensitivity import sqnr

ALLOWED = 0.3
"""Points that the guard lets int8 lose."""
TITLES = {
    "float": "float",
    "weights8": "8-bit weights alone",
    "nearest": "int8, all layers, to the nearest",
    "int8": "int8, all layers, fitted",
    "guarded": "int8, guarded",
}
BATCH, ROUNDS, SECONDS = 50, 200, 20.0


class Scored:
    """Test images that nothing else sees.

    Args:
        data: the dataset.
        count: how many, evenly spread.
    """

    def __init__(self, data: Data, count: int) -> None:
        index = torch.linspace(0, len(data.test) - 1, min(count, len(data.test))).long()
        self.data, self.labels = data, np.asarray(data.test.labels)[index.numpy()]
        self._parts = index.split(BATCH)

    def logits(self, engine: Engine, path: Path) -> np.ndarray:
        """The outputs of a file for all of them."""
        session, normalise = engine.session(path, 1), self.data.preprocessing.normalise
        return np.concatenate([session.run(normalise(pixels).numpy())[0] for pixels in self.data.test.batches(self._parts)])

    def row(self, got: np.ndarray, exact: np.ndarray) -> dict[str, float]:
        """Figures of one file beside the float file's outputs."""
        right, before = (np.asarray(one.argmax(1) == self.labels, float) for one in (got, exact))
        lost = before - right
        return {
            "accuracy": 100 * float(right.mean()),
            "lost": 100 * float(lost.mean()),
            "error": 100 * float(lost.std(ddof=1) / len(lost) ** 0.5),
            "agreement": 100 * float((got.argmax(1) == exact.argmax(1)).mean()),
            "sqnr_db": sqnr(got, exact),
        }


def files(graph: Graph, data: Data, engine: Engine, folder: Path, calibration: int) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Write all forms of a net for an engine; with each what else is known of it. A form that the engine refuses has its reason alone."""
    images = Images(data.train, calibration, Part(data.test, torch.arange(min(64, len(data.test)))), labelled=True)
    options = QuantizeOptions(engine=engine.name, images=calibration, sensitivity=False, runs=1)

    def made(name: str, **changes: Any) -> Outcome:
        (folder / name).mkdir()
        begun = time.process_time()
        outcome = quantize_graph(graph, images, replace(options.settings(), **changes), folder / name, Reporter())
        spent[name] = time.process_time() - begun
        return outcome

    spent: dict[str, float] = {}
    found: dict[str, tuple[Path, dict[str, Any]]] = {}
    made("nearest", max_drop=1.0, refine=False)
    fitted = made("int8", max_drop=1.0)
    own, total = engine.suffix, len(fitted.placement.layers)
    for name, place in {"float": "int8/float", "weights8": "int8/weights8", "nearest": "nearest/int8", "int8": "int8/int8"}.items():
        if (path := folder / f"{place}{own}").exists():
            found[name] = (path, {"layers": total, "cpu_s": spent.get(name)})
    if fitted.after.expected <= ALLOWED / 100:  # the guard takes the same file
        found["guarded"] = (found["int8"][0], {"in_float": 0, "layers": total, "cpu_s": spent["int8"], "same": "int8"})
        return found
    try:
        guarded = made("guarded", max_drop=ALLOWED / 100)
        found["guarded"] = (folder / f"guarded/int8{own}", {"in_float": len(guarded.floating), "layers": total, "cpu_s": spent["guarded"]})
    except CheckError as error:
        found["guarded"] = (Path(), {"refused": error.what})
    return found


def scored_rows(graph: Graph, data: Data, engine: Engine, scored: Scored, calibration: int, folder: Path) -> dict[str, dict[str, Any]]:
    """A row for each form of a net in an engine, all but its times. The files stay in `folder`, which is made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    made = files(graph, data, engine, folder, calibration)
    rows: dict[str, dict[str, Any]] = {form: dict(known) for form, (_, known) in made.items()}
    exact = scored.logits(engine, made["float"][0])
    for form, (path, known) in made.items():
        if not known.keys() & {"refused", "same"}:
            found = scored.row(exact if form == "float" else scored.logits(engine, path), exact)
            rows[form] |= found | {"bytes": path.stat().st_size, "file": str(path.relative_to(folder))}
    for row in rows.values():
        row |= {key: value for key, value in rows.get(row.get("same", ""), {}).items() if key not in row}
    return rows


def untimed(rows: Mapping[str, Any]) -> list[str]:
    """The forms with a file whose times are not known at some number of threads."""
    if "refused" in rows:
        return []
    files = {form: row for form, row in rows.items() if "file" in row and "same" not in row}
    return [form for form, row in files.items() if None in row.get("time", {"1": None}).values()]


def add_times(rows: dict[str, Any], engine: Engine, x: np.ndarray, folder: Path) -> None:
    """Measure the times that are not known: for each form and number of threads the ratio to float and the ends of its interval, None
    where it is not measurable now. What was known stays."""
    forms = list(dict.fromkeys(["float", *untimed(rows)]))
    for threads in (1, 2):
        sessions = [engine.session(folder / rows[form]["file"], threads) for form in forms]
        pairs = latency_pairs(sessions, [x], runs=ROUNDS, seconds=SECONDS, clock=clock_of(threads))
        for form, ratio, interval in zip(forms, pairs.ratios, pairs.intervals, strict=True):
            known = is_known(ratio, interval) and not is_disturbed(threads)
            held = rows[form].setdefault("time", {})
            held[str(threads)] = held.get(str(threads)) or ([ratio, *interval] if known else None)
            rows[form]["load"] = load()
    for row in rows.values():
        if "same" in row:
            row["time"] = rows[row["same"]]["time"]


def table(results: Mapping[str, Any]) -> str:
    """All that was found, in Markdown."""
    lines = [
        f"Made by `python bench/int8.py` on {results['machine']}. `?`: not known to 5 %: the machine was busy, or what ran in turn drove the other's data out of the caches.",
        "",
        "| net, test images | engine | file | accuracy | lost | agreement | logits, dB | of float's bytes | time, 1 thread | 2 threads |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, net in results["nets"].items():
        first = f"{name}, {net['test']:,}"
        for engine in (name for name in ENGINES if name in net["engines"]):
            rows = net["engines"][engine]
            if "refused" in rows:
                lines.append(f"| {first} | {engine} | refused: {rows['refused']} |" + " |" * 7)
                continue
            for form, title in TITLES.items():
                if form in rows:
                    lines.append(f"| {first} | {engine if form == 'float' else ''} | {_row(title, form, rows)}")
                    first = ""
    return "\n".join(lines) + "\n"


def _row(title: str, form: str, rows: Mapping[str, Any]) -> str:
    row, base = rows[form], rows["float"]
    if "refused" in row:
        return f"{title}: {row['refused']} |" + " |" * 7
    if row.get("in_float") is not None:
        title += f" ({row['in_float']} of {row['layers']} in float)"
    if form == "float":
        return f"{title} | {row['accuracy']:.2f} % | | | | 1 | 1 | 1 |"
    ratios = (row.get("time", {}).get(threads) for threads in ("1", "2"))
    shown = " | ".join("?" if ratio is None else f"{ratio[0]:.2f}" for ratio in ratios)
    lost = f"{row['lost']:+.2f} ± {row['error']:.2f}"
    return (
        f"{title} | {row['accuracy']:.2f} % | {lost} | {row['agreement']:.1f} % | {row['sqnr_db']:.1f} | "
        f"{row['bytes'] / base['bytes']:.3f} | {shown} |"
    )


def given(texts: Sequence[str], data: str | None) -> dict[str, tuple[str, Data]]:
    """Saved models by name, with their data."""
    found = {}
    for name, file in (text.split("=", 1) for text in texts):
        loaded = known_preprocessing(file, DataOptions(data)).load(file, Reporter())
        if loaded is None:
            raise SystemExit("error: --model needs --data.")
        found[name] = (file, loaded)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="the published checkpoints and CIFAR-10 (JPEG)")
    parser.add_argument("--fashion", type=Path, help="the folder of Fashion-MNIST's idx files")
    parser.add_argument("--work", type=Path, default=Path("runs/int8"), help="where trained nets and all files are kept")
    parser.add_argument("--model", action="append", default=[], metavar="NAME=FILE", help="a model that irtool saved")
    parser.add_argument("--data", help="the dataset of the --model")
    parser.add_argument("--only", action="append", metavar="NAME", help="leave out all other nets")
    parser.add_argument("--engine", action="append", choices=list(ENGINES))
    parser.add_argument("--test", type=int, default=10_000, help="test images")
    parser.add_argument("--calibration", type=int, default=512, help="training images")
    parser.add_argument("--no-times", dest="times", action="store_false", help="score alone; a later run without this adds times")
    parser.add_argument("--out", type=Path, default=Path("bench/results/int8.json"))
    parser.add_argument("--page", type=Path, help="a page whose table is written anew, as docs/int8.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    nets, saved = Nets(options.shared, options.fashion, options.work), given(options.model, options.data)
    results = Kept(options.out, irtool=irtool.__version__, calibration=options.calibration)
    for name in options.only or [*PUBLISHED, *TRAINED, *saved]:
        data = saved[name][1] if name in saved else nets.data(name)
        scored = Scored(data, options.test)
        rows = results.net(name)
        rows |= {"test": len(scored.labels), "engines": rows.get("engines", {})}
        x = data.preprocessing.normalise(next(iter(data.train.batches([torch.arange(1)])))).numpy()
        graph = None
        for engine in options.engine or [row.name for row in ENGINES.values() if row.installed and row.integers is not None]:
            folder, found = options.work / "files" / name.replace("%", "per cent") / engine, rows["engines"]
            if engine not in found:
                graph = graph or (irtool.load(saved[name][0]) if name in saved else nets.graph(name))
                try:
                    found[engine] = scored_rows(graph, data, ENGINES[engine], scored, options.calibration, folder)
                except IrtoolError as error:
                    found[engine] = {"refused": error.what}
                results.keep(name, engine, found[engine])
            if options.times and untimed(found[engine]):
                add_times(found[engine], ENGINES[engine], x, folder)
                results.keep(name, engine, {form: row.get("time") for form, row in found[engine].items()})
    print(table(results.found))
    if options.page is not None:
        into_page(options.page, "int8.py", table(results.found))


if __name__ == "__main__":
    main()
