"""Nets of strange forwards by the thousand: each is traced at batch 1, pruned by half and compared with its zeroed original.

    python bench/strange_nets.py                          # 2,000 nets from a seed drawn now, which is printed
    python bench/strange_nets.py 500 --seed 7 --json found.json

Compared at three batches and two image sizes. A mismatch that nothing told of counts as silent, and the exit code is 1.
`--only SEED` runs one net again.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import time
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from strange_nets import draw, judge  # noqa: E402


def check(seed: int) -> dict[str, Any]:
    """The verdict on the net of a seed, as plain data."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    net = draw(seed)
    found: dict[str, Any] = {"seed": seed, "blocks": list(net.names)}
    try:
        return found | asdict(judge(net, seed))
    except Exception as error:
        return found | {"tracer": "", "share": 0.0, "refused": [], "mismatches": [f"{type(error).__name__}: {error}"], "inexact": False}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts over all nets, and over those of each block."""
    blocks = Counter(name for row in rows for name in set(row["blocks"]))
    return {
        "nets": len(rows),
        "tracers": dict(Counter(row["tracer"] or "none" for row in rows)),
        "refused": sum(bool(row["refused"]) for row in rows),
        "inexact": sum(row["inexact"] for row in rows),
        "silent mismatches": sum(bool(row["mismatches"]) for row in rows),
        "mean share removed": round(sum(row["share"] for row in rows) / max(len(rows), 1), 3),
        "blocks": {
            name: {
                "nets": count,
                "refused": sum(bool(row["refused"]) for row in rows if name in row["blocks"]),
                "mismatches": sum(bool(row["mismatches"]) for row in rows if name in row["blocks"]),
            }
            for name, count in sorted(blocks.items())
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", nargs="?", type=int, default=2000, help="how many nets (default 2000)")
    parser.add_argument("--seed", type=int, default=None, help="first seed; drawn if left out")
    parser.add_argument("--workers", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--only", type=int, default=None, help="run the net of this one seed")
    parser.add_argument("--json", type=Path, default=None, help="write all verdicts to this file")
    options = parser.parse_args()
    first = options.only if options.only is not None else secrets.randbelow(1 << 31) if options.seed is None else options.seed
    count = 1 if options.only is not None else options.count
    print(f"{count} nets, seed {first}", flush=True)
    started, rows = time.perf_counter(), []
    with ProcessPoolExecutor(options.workers) as pool:
        for row in pool.map(check, range(first, first + count), chunksize=10):
            rows.append(row)
            if row["mismatches"]:
                print(f"seed {row['seed']} {row['blocks']}: {row['mismatches'][0][:300]}", flush=True)
            if len(rows) % 100 == 0:
                print(f"{len(rows)} nets, {sum(bool(each['mismatches']) for each in rows)} with a mismatch", file=sys.stderr, flush=True)
    found = summary(rows)
    print(f"{'block':24s} {'nets':>6s} {'refused':>8s} {'mismatches':>11s}")
    for name, line in found["blocks"].items():
        print(f"{name:24s} {line['nets']:6d} {line['refused']:8d} {line['mismatches']:11d}")
    print({key: value for key, value in found.items() if key != "blocks"}, f"{time.perf_counter() - started:.0f} s")
    if options.json is not None:
        options.json.write_text(json.dumps({"seed": first, "summary": found, "nets": rows}, indent=1) + "\n")
    return 1 if found["silent mismatches"] else 0


if __name__ == "__main__":
    sys.exit(main())
