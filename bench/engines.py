"""Seven nets by all engines: the table of docs/engines.md.

    python bench/engines.py --page docs/engines.md

For each net (`bench/engine_nets.py`) and installed engine: whether the engine takes the exported file, how far its outputs are from onnxruntime's on
noise, the largest difference over the largest output; the time of one image in float against onnxruntime's float, and of the int8 file
(all layers that the engine takes, calibrated on noise) against the engine's own float. Times are ratios in pairs of one thread, by the
processor's clock; `?` where the machine is too busy to know them to 5 %. torch and `torch.compile` stand beside them for time. Weights are random
but for the first net's, so nothing here speaks of accuracy: that is `bench/int8.py`'s. Results are written as they come; a run goes on where it
stopped, and measures again what was not known.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from engine_nets import NETS
from kept import Kept, into_page

import irtool
from irtool.engines import Session, TorchSession, export_onnx, latency_pairs
from irtool.engines.agreement import relative_error
from irtool.engines.engine import Engine
from irtool.engines.latency import is_known
from irtool.engines.onnxruntime.calibrate import calibrate
from irtool.engines.onnxruntime.prepare import prepared
from irtool.engines.speed.stopwatch import clock_of, load
from irtool.engines.table import ENGINES, REFERENCE
from irtool.errors import IrtoolError
from irtool.passes import LowerAffine, WidenSelects
from irtool.quant import make_recipe, place
from irtool.workflows.quantize.sensitivity import sqnr

CALIBRATION, ROUNDS, SECONDS = 16, 400, 20.0
COMPILED = "torch.compile"


def ratio(sessions: list[Session], x: np.ndarray) -> list[float] | None:
    """The second session's time over the first's, and the ends of its interval; None where it is not measurable now."""
    pairs = latency_pairs(sessions, [x], runs=ROUNDS, seconds=SECONDS, clock=clock_of(1))
    return [pairs.ratios[1], *pairs.intervals[1]] if is_known(pairs.ratios[1], pairs.intervals[1]) else None


class Bench:
    """One net in a folder.

    Args:
        graph: the net.
        folder: for its files.
    """

    def __init__(self, graph: irtool.FxGraph, folder: Path) -> None:
        self.folder, self.graph = folder, irtool.fold_batchnorm(graph)
        export_onnx(self.graph, folder / "net.onnx")
        self.shape = tuple(self.graph.example_inputs[0].shape[1:])
        self.images = np.random.default_rng(0).normal(size=(CALIBRATION, *self.shape)).astype(np.float32)
        self.reference = REFERENCE.session(folder / "net.onnx", 1)
        self.largest = max(float(np.abs(output).max()) for output in self.reference.run(self.images[:2]))

    def row(self, engine: Engine) -> dict[str, Any]:
        """Facts about the net in one engine."""
        try:
            file = engine.written(self.folder / "net.onnx")
        except IrtoolError as error:
            return {"refused": error.what}
        session, x = engine.session(file, 1), self.images[:2]
        pairs = zip(session.run(x), self.reference.run(x), strict=True)
        found: dict[str, Any] = {"largest": self.largest, "error": max(relative_error(got, expected) for got, expected in pairs)}
        if engine is not REFERENCE:
            found["float"] = ratio([self.reference, session], x[:1])
        return found | (self.int8(engine, session) if engine.integers is not None else {})

    def int8(self, engine: Engine, session: Session) -> dict[str, Any]:
        """The int8 file: its time, signal to noise of its outputs, and its bytes over the float file's."""
        try:
            path, missed = self.int8_file(engine)
            small = engine.session(path, 1)
            noise = sqnr(small.run(self.images[:2])[0], session.run(self.images[:2])[0])
        except IrtoolError as error:
            return {"int8_refused": error.what}
        size = path.stat().st_size / (self.folder / f"net{engine.suffix}").stat().st_size
        return {"int8": ratio([session, small], self.images[:1]), "int8_db": noise, "int8_bytes": size, "missed": missed}

    def int8_file(self, engine: Engine) -> tuple[Path, int]:
        """Write the int8 file: its path, and how many layers the engine could not take. Raises IrtoolError: the engine refuses it."""
        view = WidenSelects(0.5)(irtool.load_onnx(self.folder / "net.onnx", [(1, *self.shape)])).graph
        view = LowerAffine()(view).graph if engine.int8.lowers else view
        irtool.save_onnx(view, self.folder / "ready.onnx")
        model, path = prepared(onnx.load(str(self.folder / "ready.onnx"))), self.folder / f"int8{engine.suffix}"
        placement = place(model, engine.int8.policy)
        stats = calibrate(model, placement.tensors, np.array_split(self.images, 2), threads=1)
        return path, len(engine.int8.write(model, make_recipe(model, placement, stats, engine.int8.scheme), path))

    def torch(self, compiled: bool) -> dict[str, Any]:
        """The time of torch, as it is or compiled; a compiler that is missing is told."""
        begun = time.perf_counter()
        try:
            session = TorchSession(self.graph, compiled=compiled)
            got = session.run(self.images[:2])
        except IrtoolError as error:
            return {"refused": error.what}
        spent = time.perf_counter() - begun
        gap = max(relative_error(one, other) for one, other in zip(got, self.reference.run(self.images[:2]), strict=True))
        return {"error": gap, "float": ratio([self.reference, session], self.images[:1])} | ({"compile_s": spent} if compiled else {})


def table(results: Mapping[str, Any]) -> str:
    """All that was found, in Markdown."""
    lines = [
        f"Made by `python bench/engines.py` on {results['machine']}. `?`: not known to 5 %: the machine was busy, or what ran in turn drove the other's data out of the caches.",
        "",
        "| net | engine | accepted | equal to within | float, of onnxruntime's time | int8, of its own float's time | int8: outputs, dB | of float's bytes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for net, rows in results["nets"].items():
        for engine in (name for name in (*ENGINES, "torch", COMPILED) if name in rows):
            row, first = rows[engine], net if engine == REFERENCE.name else ""
            if "refused" in row:
                lines.append(f"| {first} | {engine} | no: {row['refused']} | | | | | |")
                continue
            own = "1" if engine == REFERENCE.name else _ratio(row["float"])
            small = ["no: " + row["int8_refused"], "", ""] if "int8_refused" in row else ["", "", ""]
            if "int8_db" in row:
                small = [_ratio(row["int8"]), f"{row['int8_db']:.1f}", f"{row['int8_bytes']:.3f}"]
            lines.append(f"| {first} | {engine} | yes | {row['error']:.0e} | {own} | {' | '.join(small)} |")
    return "\n".join(lines) + "\n"


def _ratio(found: list[float] | None) -> str:
    return "?" if found is None else f"{found[0]:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="holds the published checkpoints")
    parser.add_argument("--only", action="append", choices=list(NETS), metavar="NAME", help="leave out all other nets")
    parser.add_argument("--engine", action="append", choices=["torch", COMPILED, *ENGINES], metavar="NAME", help="leave out all others")
    parser.add_argument("--out", type=Path, default=Path("bench/results/engines.json"))
    parser.add_argument("--page", type=Path, help="a page whose table is written anew, as docs/engines.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    versions = {row.name: row.version for row in ENGINES.values() if row.installed} | {"torch": torch.__version__}
    results = Kept(options.out, versions=versions)
    for name in options.only or NETS:
        rows = results.net(name)
        work: dict[str, Callable[[Bench], dict[str, Any]]] = {
            **{row.name: lambda bench, row=row: bench.row(row) for row in ENGINES.values() if row.installed},
            "torch": lambda bench: bench.torch(False),
            COMPILED: lambda bench: bench.torch(True),
        }
        left = [
            engine for engine in work if None in rows.get(engine, {"": None}).values() and (not options.engine or engine in options.engine)
        ]
        if not left:
            continue
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(NETS[name](options.shared), Path(folder))
            for engine in left:
                rows[engine] = work[engine](bench) | {"load": load()}
                results.keep(name, engine, rows[engine])
    print(table(results.found))
    if options.page is not None:
        into_page(options.page, "engines.py", table(results.found))


if __name__ == "__main__":
    main()
