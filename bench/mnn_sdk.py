"""The C++ runner built against an MNN SDK with VNNI, beside the wheel's: the same numbers, the same refusals, and how long float and int8 take.

    python bench/mnn_sdk.py --mnn-root FOLDER --page docs/int8.md

FOLDER is an SDK: include/MNN and lib/libMNN.so. It is made from MNN's public source, of the wheel's version, outside of this repository:

    cmake -S MNN -B build -DCMAKE_BUILD_TYPE=Release -DMNN_AVX512=ON -DMNN_SEP_BUILD=OFF -DMNN_BUILD_TOOLS=OFF -DCMAKE_INSTALL_PREFIX=FOLDER
    cmake --build build --parallel
    cmake --install build

Each net of `bench/engine_nets.py` is written once in float and once in int8 (all layers that MNN takes, calibrated on noise and not fitted, as
`bench/engines.py` does), and both runners classify the same pictures of noise with both files. Their outputs stand beside those of MNN from Python,
which is the wheel: the runner of the wheel must give the same to the rounding of what is printed, that of the SDK in float to what irtool allows
between engines, and in int8 with no more noise than the wheel's by half a decibel. Times are processor times of one thread on one image, as ratios in
rounds that run all four; `?` where the machine is too busy to know them to 5 %. Weights are random but for the first net's. Ends with 1 where
something differs.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engine_nets import NETS
from engines import Bench
from kept import Kept, into_page
from PIL import Image

from irtool.engines import MnnSession
from irtool.engines.agreement import relative_error
from irtool.engines.cpu import holds_vnni
from irtool.engines.latency import is_known, median_interval
from irtool.engines.speed.stopwatch import load
from irtool.engines.table import ENGINES
from irtool.errors import IrtoolError
from irtool.train import Preprocessing
from irtool.train.data.image_files import FolderTree, decode
from irtool.workflows.quantize.sensitivity import sqnr

SOURCE = Path(__file__).resolve().parents[1] / "cpp"
PICTURES, ROUNDS, SECONDS, SLICE_MS = 4, 25, 40.0, 60.0
SPREAD = (0.2887, 0.2887, 0.2887)
"""Of evenly distributed pixels: normalised, they spread as the noise that calibrates."""
PRINTED, WORSE_DB = 1e-6, 0.5
CELLS = [(library, form) for library in ("wheel", "sdk") for form in ("float", "int8")]


def root_of(named: Path | None) -> Path:
    """The folder of the SDK that the command line or MNN_ROOT names."""
    found = named or (Path(os.environ["MNN_ROOT"]) if os.environ.get("MNN_ROOT") else None)
    if found is None:
        raise SystemExit("error: no MNN SDK is named. Give --mnn-root or set MNN_ROOT; --help tells how one is made from MNN's source.")
    return found.resolve()


def built(folder: Path, option: str) -> tuple[Path, Path]:
    """Build the runner with an option of its own: the program, and the library of MNN that cmake named."""
    if shutil.which("cmake") is None:
        raise SystemExit("error: cmake is missing. On Debian: apt install cmake g++ libstb-dev libjpeg-dev")
    said = ""
    for call in (["cmake", "-S", str(SOURCE), "-B", str(folder), option], ["cmake", "--build", str(folder), "--parallel", "2"]):
        done = subprocess.run(call, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"error: the runner cannot be built with {option}:\n{done.stderr.strip()}")
        said += done.stdout
    named = re.search(r"-- MNN [^:]*: (.+)", said)
    assert named is not None, said
    return folder / "irtool-run", Path(named[1])


def header_version(root: Path) -> str:
    """The version in an SDK's headers."""
    text = (root / "include" / "MNN" / "MNNDefine.h").read_text(encoding="utf-8")
    return ".".join(re.findall(r"#define MNN_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", text))


class Files:
    """One net's files in a folder: float.mnn and int8.mnn with their descriptions, and pictures of noise.

    Args:
        net: ready to be written.
        folder: for all of it.
    """

    def __init__(self, net: Bench, folder: Path) -> None:
        engine = ENGINES["mnn"]
        int8, self.missed = net.int8_file(engine)
        self.models = {"float": engine.written(folder / "net.onnx"), "int8": int8}
        channels, height, width = net.shape
        self.preprocessing = Preprocessing((0.5,) * channels, SPREAD[:channels], (height, width))
        for model in self.models.values():
            model.with_suffix(".json").write_text(json.dumps({"preprocessing": self.preprocessing.to_dict()}))
        self.pictures = folder / "pictures"
        self.pictures.mkdir()
        draw = np.random.default_rng(1)
        for number in range(PICTURES):
            Image.fromarray(draw.integers(0, 256, (height, width, channels), np.uint8)).save(self.pictures / f"{number}.png")

    def by_python(self, form: str) -> np.ndarray:
        """Outputs for all pictures of MNN in Python, one image at a time."""
        tree, session = FolderTree(self.pictures), MnnSession(self.models[form], 1)
        shape = self.preprocessing.channels, self.preprocessing.size
        pixels = [torch.from_numpy(decode(tree, name, *shape))[None] for name in tree.names()]
        return np.stack([session.run(self.preprocessing.normalise(image).numpy())[0].ravel() for image in pixels])

    def by_runner(self, runner: Path, form: str) -> np.ndarray:
        """The same of a runner."""
        said = subprocess.run([runner, self.models[form], self.pictures, "--raw"], capture_output=True, text=True, check=True).stdout
        return np.array([np.array(line.split(), np.float64) for line in said.splitlines()])

    def processor_ms(self, runner: Path, form: str, runs: int) -> float:
        """Processor time of a run, the median of several."""
        call = [runner, self.models[form], self.pictures / "0.png", "--bench", str(runs), "--json"]
        found: float = json.loads(subprocess.run(call, capture_output=True, text=True, check=True).stdout)["processor_ms"]
        return found


def outputs(files: Files, runners: Mapping[str, Path]) -> dict[str, Any]:
    """How far each runner's outputs are from Python's, and the noise of int8 beside the wheel's float in decibels."""
    python = {form: files.by_python(form) for form in ("float", "int8")}
    got = {f"{library} {form}": files.by_runner(runners[library], form) for library, form in CELLS}
    errors = {cell: relative_error(values, python[cell.split()[1]]) for cell, values in got.items()}
    noise = {library: sqnr(got[f"{library} int8"], python["float"]) for library in runners}
    return {"errors": errors, "int8_db": noise, "same_answers": {
        cell: float((values.argmax(1) == python[cell.split()[1]].argmax(1)).mean()) for cell, values in got.items()
    }}  # fmt: skip


def faults(found: Mapping[str, Any]) -> list[str]:
    """What is not as it must be, in lines; none if all holds."""
    errors, noise = found["errors"], found["int8_db"]
    allowed = {"wheel float": PRINTED, "wheel int8": PRINTED, "sdk float": ENGINES["mnn"].tolerance}
    lines = [
        f"{cell}: differs from Python by {errors[cell]:.0e} of the largest output" for cell in allowed if not errors[cell] <= allowed[cell]
    ]
    if not noise["sdk"] >= noise["wheel"] - WORSE_DB:
        lines.append(f"sdk int8: {noise['sdk']:.1f} dB, the wheel's {noise['wheel']:.1f}")
    return lines


def times(files: Files, runners: Mapping[str, Path]) -> dict[str, list[float] | None]:
    """Ratios of processor times, each with the ends of its interval; None where it is not measurable now."""
    runs = {cell: max(5, min(2000, int(SLICE_MS / files.processor_ms(runners[cell[0]], cell[1], 3)))) for cell in CELLS}
    rounds, end = [], time.perf_counter() + SECONDS
    while len(rounds) < ROUNDS and (len(rounds) < 6 or time.perf_counter() < end):
        order = [CELLS[(step + len(rounds)) % len(CELLS)] for step in range(len(CELLS))]
        rounds.append({cell: files.processor_ms(runners[cell[0]], cell[1], runs[cell]) for cell in order})

    def ratio(over: tuple[str, str], under: tuple[str, str]) -> list[float] | None:
        quotients = np.array([row[over] / row[under] for row in rounds])
        middle, interval = float(np.median(quotients)), median_interval(quotients)
        return [middle, *interval] if is_known(middle, interval) else None

    return {
        "int8 of float, wheel": ratio(("wheel", "int8"), ("wheel", "float")),
        "int8 of float, sdk": ratio(("sdk", "int8"), ("sdk", "float")),
        "sdk of wheel, float": ratio(("sdk", "float"), ("wheel", "float")),
        "sdk of wheel, int8": ratio(("sdk", "int8"), ("wheel", "int8")),
    }


def refusals(files: Files, runners: Mapping[str, Path], folder: Path) -> dict[str, list[str]]:
    """What each runner says, with its exit code, of damaged models and pictures and of wrong command lines."""
    model, picture = files.models["float"], files.pictures / "0.png"
    whole, drawn = model.read_bytes(), picture.read_bytes()
    damaged = {"empty.mnn": b"", "foreign.mnn": b"PK\3\4" + bytes(500), "half.mnn": whole[: len(whole) // 2], "alone.mnn": whole}
    damaged |= {"empty.png": b"", "text.png": b"hello, world", "half.png": drawn[: len(drawn) // 2], "text.json": b"[1, 2]"}
    paths = {name: folder / name for name in damaged}
    for name, content in damaged.items():
        paths[name].write_bytes(content)
    calls = [[path, picture] for path in paths.values() if path.suffix == ".mnn"]
    calls += [[model, path] for path in paths.values() if path.suffix == ".png"]
    calls += [[model, picture, "--meta", paths["text.json"]], [folder / "none.mnn", picture], [model], [model, picture, "--top", "0"]]
    done = {name: [subprocess.run([runner, *call], capture_output=True, text=True) for call in calls] for name, runner in runners.items()}
    return {
        name: [f"{one.returncode}: {one.stderr.strip().replace(f'{folder}{os.sep}', '')}" for one in rows] for name, rows in done.items()
    }


def table(results: Mapping[str, Any]) -> str:
    """All that was found, in Markdown."""
    wheel, sdk = results["wheel"], results["sdk"]
    lines = [
        f"Made by `python bench/mnn_sdk.py` on {results['machine']}: MNN {wheel['version']} from its wheel ({_holds(wheel)}) and MNN "
        f"{sdk['version']} built from source ({_holds(sdk)}). `?`: not known to 5 %: the machine was busy, or what ran in turn drove the other's data out of the caches.",
        "",
        "| net | float outputs: wheel | SDK | int8 outputs, dB: wheel | SDK | int8 of float's time: wheel | SDK | SDK of wheel's time: float | int8 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for net, row in results["nets"].items():
        if "refused" in row:
            lines.append(f"| {net} | no: {row['refused']} |" + " |" * 7)
            continue
        shown = [f"{row['errors'][f'{library} float']:.0e}" for library in ("wheel", "sdk")]
        shown += [f"{row['int8_db'][library]:.1f}" for library in ("wheel", "sdk")]
        shown += ["?" if ratio is None else f"{ratio[0]:.2f}" for ratio in row["times"].values()]
        lines.append(f"| {net} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def _holds(library: Mapping[str, Any]) -> str:
    return "with VNNI" if library["vnni"] else "no VNNI"


def measured(name: str, options: argparse.Namespace, runners: Mapping[str, Path]) -> dict[str, Any]:
    """All facts about one net."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        files = Files(Bench(NETS[name](options.shared), folder), folder)
        (folder / "damaged").mkdir()
        said = refusals(files, runners, folder / "damaged")
        row = outputs(files, runners) | {"missed": files.missed, "refused_alike": said["wheel"] == said["sdk"], "refusals": said["wheel"]}
        row["faults"] = faults(row) + ([] if row["refused_alike"] else [f"refused otherwise: {said}"])
        return row | {"times": times(files, runners), "load": load()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnn-root", type=Path, help="the SDK's folder; MNN_ROOT of the environment if left out")
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="holds the published checkpoints")
    parser.add_argument(
        "--only", action="append", choices=list(NETS), metavar="NAME", help="measure no other net; the others' results are kept"
    )
    parser.add_argument("--out", type=Path, default=Path("bench/results/mnn_sdk.json"))
    parser.add_argument("--page", type=Path, help="a page whose table is written anew, as docs/int8.md")
    options = parser.parse_args()
    root = root_of(options.mnn_root)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        wheel, library = built(Path(folder) / "wheel", f"-DPython={sys.executable}")
        sdk, own = built(Path(folder) / "sdk", f"-DMNN_ROOT={root}")
        kept = Kept(
            options.out,
            wheel={"version": importlib.metadata.version("MNN"), "vnni": holds_vnni(library)},
            sdk={"version": header_version(root), "vnni": holds_vnni(own)},
        )
        for name in options.only or NETS:
            try:
                kept.found["nets"][name] = measured(name, options, {"wheel": wheel, "sdk": sdk})
            except IrtoolError as error:
                kept.found["nets"][name] = {"refused": error.what, "faults": []}
            kept.keep(name, kept.found["nets"][name])
    print(table(kept.found))
    if options.page is not None:
        into_page(options.page, "mnn_sdk.py", table(kept.found))
    wrong = [f"{name}: {line}" for name, row in kept.found["nets"].items() for line in row["faults"]]
    print("\n".join(wrong) or "All outputs agree, and all refusals.")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
