"""How long planning and slicing take for an ONNX graph of a thousand nodes, on one core.

    python bench/onnx_speed.py                 # a chain of residual blocks, 1,000 nodes and more
    python bench/onnx_speed.py --blocks 300

Prints seconds for reading the model, planning, slicing (with its proof) and folding; each is the median of three. Beside the
wall time of both stands the CPU time, which other work on the machine does not lengthen as much.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from onnx_nets import Net  # noqa: E402

import irtool  # noqa: E402
from irtool.hosts.onnx.files.load import from_model  # noqa: E402


def chain(blocks: int) -> Any:
    """A stem, residual blocks of two convolutions with batch norms, a head: 7 nodes a block."""
    n = Net(17, ("N", 3, 16, 16))
    x = n.cbr("x", 3, 32)
    for _ in range(blocks):
        h = n.bn(n.conv(n.cbr(x, 32, 32), 32, 32, bias=False), 32)
        x = n.op("Relu", n.op("Add", x, h))
    return n.model(n.head(x, 32))


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Median seconds of three runs by the clock and of CPU, and the last result."""
    wall, cpu, result = [], [], None
    for _ in range(3):
        start, used = time.perf_counter(), time.process_time()
        result = work()
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - used)
    return statistics.median(wall), statistics.median(cpu), result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=143)
    model = chain(parser.parse_args().blocks)
    torch.set_num_threads(1)
    read, _, graph = timed(lambda: from_model(model))

    def fresh() -> irtool.Plan:
        graph.analyses.clear()
        return irtool.plan(graph, "l1", 0.5)

    planned, plan_cpu, plan = timed(fresh)
    sliced, slice_cpu, small = timed(lambda: irtool.prune(graph, irtool.Plan.from_dict(plan.to_dict()), constants="drop"))
    folded, _, _ = timed(lambda: irtool.fold_batchnorm(small))
    print(f"{len(model.graph.node):,} nodes, {plan.removed} of {sum(layer.total for layer in plan.layers)} channels removed")
    print(f"read {read:.2f} s, plan {planned:.2f} s, slice {sliced:.2f} s, fold {folded:.2f} s; plan and slice {planned + sliced:.2f} s")
    print(f"CPU: plan and slice {plan_cpu + slice_cpu:.2f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
