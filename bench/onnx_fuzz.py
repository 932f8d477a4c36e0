"""Malformed ONNX files: each must give a clear error or a right result, without a crash, a hang or a file read outside its folder.

    python bench/onnx_fuzz.py                  # 2,000 cases from a seed drawn now, which is printed
    python bench/onnx_fuzz.py 200 --seed 7

Each case runs in a child process with a time limit of 10 s. A "right result" is a graph that loads, prunes at 0.5 and is saved
past onnx.checker. Exits with 1 if any case crashed, hung or raised anything but an IrtoolError.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from onnx_fuzz_cases import Child, make  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", nargs="?", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    first = secrets.randbelow(2**31) if options.seed is None else options.seed
    print(f"seed {first}, {options.count} cases", flush=True)
    found: Counter[str] = Counter()
    child = Child()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        for seed in range(first, first + options.count):
            name, data = make(seed)
            path.write_bytes(data)
            outcome = child.run(str(path))
            found[outcome if not outcome.startswith("BUG") else "BUG"] += 1
            if outcome.startswith("BUG"):
                print(f"{seed} {name}: {outcome}", flush=True)
                if "died" in outcome or "no answer" in outcome:
                    child = Child()
    print(*(f"{count:>6} {outcome}" for outcome, count in found.most_common()), sep="\n")
    return 1 if found["BUG"] else 0


if __name__ == "__main__":
    sys.exit(main())
