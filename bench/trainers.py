"""The page on other trainers, with the packages themselves: its blocks for Lightning and Hugging Face's Trainer are run as they stand there.

pip install --no-deps pytorch-lightning torchmetrics accelerate transformers    # beside what they need; see the page
python bench/trainers.py
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import irtool

PAGE = Path(__file__).resolve().parents[1] / "docs" / "tutorials" / "trainers.md"
WRITTEN = {"lightning": "last.ckpt", "transformers": "out/model.safetensors"}


def package(name: str) -> Any:
    """Import a package; Lightning has two names."""
    if name == "lightning":
        import pytorch_lightning

        return pytorch_lightning
    import transformers

    return transformers


def run(name: str) -> None:
    """Prune a net, train it by the page's block, and say what came of it."""
    found = re.search(rf'^```python title="{name}"\n(.*?)^```$', PAGE.read_text(encoding="utf-8"), re.M | re.S)
    assert found is not None
    module = package(name)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4)).eval()
    graph = irtool.trace(net, torch.zeros(1, 3, 16, 16))
    small = irtool.prune(graph, irtool.plan(graph, ratio=0.5))
    labels = torch.arange(64) % 4
    images = torch.randn(64, 3, 16, 16) + labels.view(-1, 1, 1, 1)
    rows = [{"pixel_values": image, "labels": int(label)} for image, label in zip(images, labels, strict=True)]
    loader = DataLoader(TensorDataset(images, labels), batch_size=8)
    before = float(nn.functional.cross_entropy(small.module(images), labels).detach())
    exec(found[1], {"small": small, "loader": loader, "rows": rows, "torch": torch, name: module})
    after = float(nn.functional.cross_entropy(small.module.eval()(images), labels).detach())
    size = Path(WRITTEN[name]).stat().st_size
    print(f"{module.__name__} {module.__version__}: loss {before:.3f} -> {after:.3f} in one epoch; {WRITTEN[name]} has {size:,} bytes")


def main() -> None:
    """Run both."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for name in sys.argv[1:] or list(WRITTEN):
            run(name)


if __name__ == "__main__":
    main()
