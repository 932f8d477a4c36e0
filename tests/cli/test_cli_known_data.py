"""Every command uses what a saved model says about its images; the same data by another name are the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from installed import LINKS
from PIL import Image
from torch import nn

import irtool
from irtool.cli.main import run
from irtool.engines.mnn.layers import mnn_operators
from irtool.errors import IrtoolError
from irtool.train import distill, load_data

NET = "VGG:depth=11,width=0.125,num_classes=2"
OWN = ["--image-size", "16", "--mean", "0.1,0.2,0.3", "--std", "0.9,0.9,0.9", "--epochs", "1", "--batch-size", "8", "--device", "cpu"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for label in "ab":
        (root / label).mkdir()
        for number in range(20):
            Image.fromarray(random.integers(0, 255, (20, 24, 3), np.uint8)).save(root / label / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def trained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "net"
    assert run(["train", NET, "--data", str(images), *OWN, "--out", str(out)]) == 0
    return out


def test_compress_prepares_images_as_training_did(trained: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"
    assert run(["compress", str(trained), "--data", str(images), "--limit", "20", "--runs", "1", "--out", str(out)]) == 0
    stored = irtool.read_info(trained / "model.safetensors").preprocessing
    assert stored is not None
    assert irtool.read_info(out / "model.safetensors").preprocessing == stored
    assert stored["mean"] == [0.1, 0.2, 0.3]
    report = json.loads((out / "report.json").read_text())
    assert [link["ok"] for link in report["chain"]] == [True] * (5 + len(LINKS))


def test_one_size_written_two_ways_resumes(images: Path, trained: Path, tmp_path: Path) -> None:
    out, words = (
        tmp_path / "fine",
        ["train", str(trained), "--stage", "finetune", "--data", str(images), "--epochs", "1", "--batch-size", "8"],
    )
    assert run([*words, "--image-size", "16", "--out", str(out)]) == 0
    assert run([*words, "--out", str(out), "--resume"]) == 0


def test_a_recipe_is_not_redone_where_the_data_moved(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, moved = tmp_path / "recipe.toml", shutil.copytree(images, tmp_path / "moved")
    recipe.write_text(
        f'model = "{NET}"\ndata = "{images}"\nimage_size = 16\n\n[[step]]\ndo = "train"\nepochs = 1\nbatch_size = 8\n', encoding="utf-8"
    )
    out = str(tmp_path / "run")
    assert run(["compress", "--recipe", str(recipe), "--out", out]) == 0
    recipe.write_text(recipe.read_text().replace(str(images), str(moved)), encoding="utf-8")
    capsys.readouterr()
    assert run(["compress", "--recipe", str(recipe), "--out", out]) == 0
    assert "done before" in "".join(capsys.readouterr())


class Masked(nn.Module):
    """Infinite where nothing is to be seen, as the mask of an attention is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 16, 1), nn.Linear(16, 4)
        self.register_buffer("mask", torch.zeros(16).masked_fill(torch.arange(16) > 12, -torch.inf).view(1, 16, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.conv(x).flatten(2).transpose(1, 2)
        return self.head(((tokens @ tokens.transpose(1, 2) + self.mask.transpose(1, 2)).softmax(2) @ tokens).mean(1))


def test_an_infinite_mask_is_no_broken_weight(tmp_path: Path) -> None:
    torch.manual_seed(0)
    graph = irtool.trace(Masked().eval(), torch.randn(2, 3, 4, 4))
    irtool.check_prune(graph, irtool.plan(graph, "l1", 0.5))
    with torch.no_grad():
        graph.module.conv.weight[0] = torch.inf
    with pytest.raises(IrtoolError, match="holds NaN or infinity"):
        irtool.plan(graph, "l1", 0.5)


def test_numbers_that_json_has_no_form_for_are_read_from_mnn(tmp_path: Path) -> None:
    torch.manual_seed(0)
    irtool.export_onnx(irtool.trace(Masked().eval(), torch.randn(2, 3, 4, 4)), tmp_path / "net.onnx")
    assert any("Convolution" in operator.kind for operator in mnn_operators(tmp_path / "net.onnx"))


def test_two_nets_may_share_a_relu_but_no_dropout(images: Path) -> None:
    data = load_data(images, image_size=16)
    relu, dropout = nn.ReLU(), nn.Dropout()

    def net(*layers: nn.Module) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(3, 8, 3), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))

    distill(net(relu), net(relu), data, epochs=1, batch_size=8)
    with pytest.raises(IrtoolError, match="shares"):
        distill(net(dropout), net(dropout), data, epochs=1, batch_size=8)
