"""Random CNNs by the thousand: each is pruned by a random plan and compared with its masked original in float64.

    python bench/random_cnns.py                # 5,000 nets from a seed drawn now, which is printed
    python bench/random_cnns.py 200 --seed 7   # the same 200 nets each time

Exits with 1 if any net fails, and prints its recipe; `--only SEED` runs one net again.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from random_cnns import draw  # noqa: E402
from random_cnns.net import failure  # noqa: E402


def check(seed: int) -> tuple[int, str]:
    """The reason for which the net of a seed fails; empty if it does not."""
    torch.set_num_threads(1)
    try:
        return seed, failure(draw(seed))
    except Exception as error:
        return seed, f"{type(error).__name__}: {error}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", nargs="?", type=int, default=5000, help="how many nets (default 5000)")
    parser.add_argument("--seed", type=int, default=None, help="first seed; drawn if left out")
    parser.add_argument("--workers", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--only", type=int, default=None, help="run the net of this one seed")
    options = parser.parse_args()
    first = options.only if options.only is not None else secrets.randbelow(1 << 31) if options.seed is None else options.seed
    count = 1 if options.only is not None else options.count
    print(f"{count} random CNNs, seed {first}", flush=True)
    started, failures = time.perf_counter(), []
    with ProcessPoolExecutor(options.workers) as pool:
        for done, (seed, why) in enumerate(pool.map(check, range(first, first + count), chunksize=20), 1):
            if why:
                failures.append((seed, why))
                print(f"seed {seed}: {why}\n  {draw(seed)}", flush=True)
            if done % 500 == 0:
                print(f"{done} nets, {len(failures)} failures, {time.perf_counter() - started:.0f} s", flush=True)
    blocks = Counter(name for seed in range(first, first + count) for name, _ in draw(seed).blocks)
    print(f"{len(blocks)} kinds of block: {', '.join(f'{name} {times}' for name, times in sorted(blocks.items()))}")
    print(f"{count} nets, {len(failures)} mismatches, {time.perf_counter() - started:.0f} s, seed {first}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
