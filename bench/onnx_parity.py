"""One network through both hosts: torchvision models traced, and exported to ONNX and loaded.

    python bench/onnx_parity.py

Batch norms get random statistics and are folded first, as exporters do. Same groups, same plan, same widths, and outputs
equal to 1e-4; exits with 1 if not.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from zoo import build  # noqa: E402

import irtool  # noqa: E402

MODELS = ("resnet18", "resnext50_32x4d", "densenet121", "googlenet", "squeezenet1_1", "mobilenet_v2", "mobilenet_v3_small", "mnasnet0_5",
          "shufflenet_v2_x1_0", "efficientnet_b0", "regnet_x_400mf")  # fmt: skip


def compare(name: str, folder: Path) -> tuple[str, bool]:
    """A table line, and whether both hosts agree."""
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    traced = irtool.fold_batchnorm(irtool.trace(build(name)[0], x))
    irtool.export_onnx(traced.module, folder / "m.onnx", example_inputs=x)
    loaded = irtool.load_onnx(folder / "m.onnx")
    groups = [irtool.channel_groups(graph).count for graph in (traced, loaded)]
    plans = [irtool.plan(graph, "l1", 0.5) for graph in (traced, loaded)]
    removed = [[layer.removed for layer in plan.layers] for plan in plans]
    small, other = irtool.prune(traced, plans[0], constants="drop"), irtool.prune(loaded, plans[1], constants="drop")
    expected = small.run(x)
    error = float((expected - other.run(x)[0]).abs().max() / expected.abs().max())
    params = [irtool.cost(graph).params for graph in (small, other)]
    same = groups[0] == groups[1] and removed[0] == removed[1] and params[0] == params[1] and error <= 1e-4
    return (
        f"| {name} | {groups[0]} | {groups[1]} | {len(removed[0])} | {removed[0] == removed[1]} | {params[0]:,} | {params[1]:,} | {error:.0e} |",
        same,
    )


def main() -> int:
    torch.set_num_threads(1)
    print(
        "| model | groups, torch | groups, ONNX | layers | same plan | parameters at 0.5, torch | ONNX | relative error |\n|" + "---|" * 8
    )
    agreed = True
    with tempfile.TemporaryDirectory() as folder:
        for name in MODELS:
            line, same = compare(name, Path(folder))
            agreed &= same
            print(line, flush=True)
    return 0 if agreed else 1


if __name__ == "__main__":
    sys.exit(main())
