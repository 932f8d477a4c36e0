"""The page on other trainers: its blocks for Lightning and Hugging Face's Trainer run, with look-alikes that make the same calls."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lookalike_trainers as lookalike
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import irtool
from irtool.workflows.loading.models import graph_of

PAGE = Path(__file__).parents[2] / "docs" / "tutorials" / "trainers.md"
PACKAGES = {
    "lightning": SimpleNamespace(LightningModule=lookalike.LightningModule, Trainer=lookalike.Trainer),
    "transformers": SimpleNamespace(TrainingArguments=lookalike.TrainingArguments, Trainer=lookalike.HuggingFaceTrainer),
}
WRITTEN = {"lightning": "last.ckpt", "transformers": "out/model.safetensors"}
NET = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self, width=WIDTH):
        super().__init__(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))
"""


def block(package: str) -> str:
    """The page's code for a package."""
    found = re.search(rf'^```python title="{package}"\n(.*?)^```$', PAGE.read_text(encoding="utf-8"), re.M | re.S)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_pruned_net_is_trained_and_its_checkpoint_read(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, width in (("net.py", 16), ("small_net.py", 8)):
        Path(name).write_text(NET.replace("WIDTH", str(width)))
    names: dict[str, Any] = {}
    exec(Path("net.py").read_text(), names)
    net = names["Net"]().eval()
    graph = irtool.trace(net, torch.zeros(1, 3, 16, 16))
    small = irtool.prune(graph, irtool.plan(graph, "l1", ratio=0.5, round_to=1))
    before = copy.deepcopy(small.module.state_dict())
    images, labels = torch.randn(32, 3, 16, 16), torch.arange(32) % 4
    images += labels.view(-1, 1, 1, 1)
    rows = [{"pixel_values": image, "labels": int(label), "path": "x.png"} for image, label in zip(images, labels, strict=True)]
    loader = DataLoader(TensorDataset(images, labels), batch_size=8)
    exec(block(package), {"small": small, "loader": loader, "rows": rows, "torch": torch, package: PACKAGES[package]})
    trained = small.module.eval()
    moved = {name for name, tensor in trained.state_dict().items() if not torch.equal(before[name], tensor)}
    assert moved >= {name for name in before if name.endswith(("weight", "running_mean", "running_var"))}
    folded = irtool.fold_batchnorm(small)  # the graph sees the trained weights
    assert torch.allclose(folded.module(images), trained(images), atol=1e-4)
    read = graph_of("small_net.py:Net", Path(WRITTEN[package]), ((2, 3, 16, 16),))
    assert torch.allclose(read.module(images), trained(images), atol=1e-5)  # without the prefix that the wrapper put before the names
    assert isinstance(trained, nn.Module)
