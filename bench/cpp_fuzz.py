"""Feed the C++ runner damaged models, images, descriptions and command lines, and count how it ends.

It must end with 0, 1 or 2, with one line on stderr unless that is 0, and within the time limit. Build it with the sanitizers
first (cmake -S cpp -B build/asan -DSANITIZE=ON -DPython=.venv/bin/python && cmake --build build/asan).

The model may be an .mnn or an .onnx file with a description beside it.

Example: python bench/cpp_fuzz.py build/asan/irtool-run small/model.mnn cat.jpg cat.png --runs 2000 --seed 1
"""

from __future__ import annotations

import argparse
import collections
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

LEAKS = "leak:MNN::Interpreter::createFromBuffer\n"  # MNN keeps a model that it refuses
WORDS = [
    "--top",
    "--json",
    "--raw",
    "--batch",
    "--threads",
    "--bench",
    "--meta",
    "--",
    "-",
    "",
    "-1",
    "0",
    "1",
    "3",
    "9" * 30,
    "é\udcff",
    "nowhere.jpg",
]
SECONDS = 60


def damaged(content: bytes, draw: np.random.Generator) -> bytes:
    """The content with some bytes changed, cut off, doubled or inserted."""
    data = bytearray(content)
    for _ in range(int(draw.integers(1, 6))):
        at = int(draw.integers(0, max(1, min(len(data), 6000 if draw.random() < 0.5 else len(data)))))
        kind = int(draw.integers(0, 4))
        piece = draw.integers(0, 256, int(draw.integers(1, 9)), dtype=np.uint8).tobytes()
        if kind == 0:
            data[at : at + 1] = piece[:1]
        elif kind == 1:
            del data[at : None if draw.random() < 0.2 else at + len(piece)]
        elif kind == 2:
            data[at:at] = piece
        else:
            data[at : at + 4] = draw.choice([0, 1, 255, 127], 4).astype(np.uint8).tobytes()
    return bytes(data)


def trial(folder: Path, seeds: dict[str, list[Path]], draw: np.random.Generator) -> list[str]:
    """Arguments of one run, with one of the files damaged."""
    chosen = {kind: paths[int(draw.integers(len(paths)))] for kind, paths in seeds.items()}
    kind = str(draw.choice(["model", "image", "image", "description", "words"]))
    if kind != "words":
        hurt = folder / f"hurt{chosen[kind].suffix}"
        hurt.write_bytes(damaged(chosen[kind].read_bytes(), draw))
        chosen[kind] = hurt
    arguments = [str(chosen["model"]), str(chosen["image"]), "--meta", str(chosen["description"])]
    if kind == "words":
        for _ in range(int(draw.integers(1, 5))):
            arguments.insert(int(draw.integers(len(arguments) + 1)), str(draw.choice(WORDS)))
    return arguments


def verdict(done: subprocess.CompletedProcess[bytes]) -> str:
    """How a run ended, in a word; what is wrong begins with BAD."""
    if b"Sanitizer" in done.stderr or b"runtime error" in done.stderr:
        return "BAD sanitizer"
    if done.returncode not in (0, 1, 2):
        return f"BAD exit {done.returncode}"
    if (done.returncode == 0) != (done.stderr == b"") or done.stderr.count(b"\n") > 1:
        return "BAD complaint"
    return "the engine crashed, caught" if b"crashed on this model" in done.stderr else f"exit {done.returncode}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runner", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    own = options.model.with_suffix(".json")
    seeds = {"model": [options.model], "image": options.images, "description": [own if own.exists() else own.with_name("report.json")]}
    ends: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "leaks.txt").write_text(LEAKS)
        environment = {
            **os.environ,
            "LSAN_OPTIONS": f"suppressions={folder / 'leaks.txt'}:print_suppressions=0",
            "ASAN_OPTIONS": "allocator_may_return_null=1",
        }
        for number in range(options.runs):
            draw = np.random.default_rng([options.seed, number])
            arguments = [word.encode("utf-8", "surrogateescape") for word in trial(folder, seeds, draw)]
            try:
                end = verdict(subprocess.run([options.runner, *arguments], capture_output=True, timeout=SECONDS, env=environment))
            except subprocess.TimeoutExpired:
                end = "BAD too long"
            ends[end] += 1
            if end.startswith("BAD"):
                print(f"run {number}: {end}: {arguments}", flush=True)
    print(f"{options.runs} runs, seed {options.seed}: " + ", ".join(f"{count} {end}" for end, count in sorted(ends.items())))
    return int(any(end.startswith("BAD") for end in ends))


if __name__ == "__main__":
    sys.exit(main())
