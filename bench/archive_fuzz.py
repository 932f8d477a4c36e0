"""Archives that were altered: each must give a clear error or a graph that computes what it says, and touch nothing else.

    python bench/archive_fuzz.py               # 3,000 cases from a seed drawn now, which is printed
    python bench/archive_fuzz.py 150 --seed 7

Each case is loaded and run in a process of its own with 2 GiB of memory above what it starts with, under an audit hook that notes
imports, opened files and calls of the operating system. Exits with 1 if any case crashed, hung, touched anything, or computed
something else than its nodes say.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from archive_fuzz_cases import attempt, make, prepare  # noqa: E402
from audited import Watch  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", nargs="?", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    first = secrets.randbelow(2**31) if options.seed is None else options.seed
    print(f"seed {first}, {options.count} cases", flush=True)
    outcomes: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    clean, memory, seconds, began = 0, 0, 0.0, time.monotonic()
    with tempfile.TemporaryDirectory() as folder, Watch(prepare, folder) as watch:
        for seed in range(first, first + options.count):
            kind, content = make(seed, folder)
            said, report = attempt(watch, Path(folder) / "a.safetensors", content)
            kinds.update(kind.split("+"))
            outcomes["BUG" if said.startswith("BUG") else said] += 1
            clean += report.clean
            memory, seconds = max(memory, report.memory), max(seconds, report.seconds)
            if said.startswith("BUG"):
                print(f"{seed} {kind}: {said}", flush=True)
    print(*(f"{count:>6} {said}" for said, count in outcomes.most_common()), sep="\n")
    print("mutations: " + ", ".join(f"{kind} {count}" for kind, count in kinds.most_common()))
    print(f"imported nothing, opened nothing else, asked nothing of the system: {clean} of {options.count}")
    print(f"at most {memory / 2**20:.0f} MiB and {seconds:.1f} s of CPU a case; {time.monotonic() - began:.0f} s in all")
    return 1 if outcomes["BUG"] else 0


if __name__ == "__main__":
    sys.exit(main())
