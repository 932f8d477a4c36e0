"""The other process of tests/archive/test_archive.py. Loading a file alone, it does not know the classes of archive_nets."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from exported import by_export
from torch import nn

import irtool


def trained_once(module: nn.Module, inputs: tuple[Any, ...]) -> dict[str, Any]:
    """What one step of SGD does: parameters without gradient, and whether weights and BN statistics moved."""
    for child in module.modules():
        child.training = True
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    result = module(*inputs)
    loss = sum(leaf.square().mean() for leaf in torch.utils._pytree.tree_leaves(result))
    loss.backward()
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    torch.optim.SGD(trainable.values(), lr=0.1).step()
    after = module.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    return {
        "without_gradient": [name for name, p in trainable.items() if p.grad is None],
        "frozen": [name for name, p in module.named_parameters() if not p.requires_grad],
        "still": sorted(
            name for name in before if name.endswith(("running_mean", "running_var", "num_batches_tracked")) and name not in moved
        ),
        "moved": len(moved & set(trainable)),
    }


def main(folder: str, way: str) -> None:
    """In a fresh process: load every archive in a folder one way, and write down what it gives."""
    torch.set_num_threads(1)
    untouched: dict[str, Any] = {}
    if way == "model":
        from archive_nets import CASES

        untouched.update(CASES)
    report = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        inputs = torch.load(path.with_suffix(".inputs"), weights_only=True)
        with by_export() if untouched and untouched[path.stem].exported else nullcontext():
            graph = irtool.load(path, untouched[path.stem].model() if untouched else None)
        torch.save(graph.run(*inputs), path.with_suffix(f".{way}"))
        report[path.stem] = {
            "tracer": graph.tracer,
            "text": graph.text(),
            "training": graph.module.training,
            **trained_once(graph.module, inputs),
        }
        if way == "alone":
            for child in graph.module.modules():
                child.training = False
            program = torch.export.export(graph.module, graph.example_inputs, strict=False)
            report[path.stem]["exported"] = len(list(program.graph.nodes))
    Path(folder, f"{way}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
