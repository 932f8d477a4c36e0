"""Things that users bring in their own form: criteria, plans, checkpoints of other trainers, short names of models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import irtool
from irtool.errors import OptionError
from irtool.pruning import CRITERIA
from irtool.workflows.loading.criteria import criterion_name
from irtool.workflows.loading.spec import ModelSpec
from irtool.workflows.loading.weights import load_weights

Run = Callable[..., tuple[int, str, str]]
NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3), nn.ReLU())
        self.head = nn.Linear(width, 4)
    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))

def wide():
    return Net(16)

def last_first(groups, seed):
    import numpy as np
    return -np.arange(groups.labels.count, dtype=float)
"""
SHORT = ["--input", "2x3x16x16", "--runs", "1"]


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with a model and a criterion, in the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    return tmp_path / "net.py"


@pytest.fixture(autouse=True)
def _criteria(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("irtool.pruning.criteria.criteria.CRITERIA", dict(CRITERIA))
    for place in ("irtool.workflows.loading.criteria", "irtool.workflows.compress.smaller"):
        monkeypatch.setattr(f"{place}.CRITERIA", __import__("irtool.pruning.criteria.criteria", fromlist=["CRITERIA"]).CRITERIA)


def test_a_criterion_of_ones_own_ranks_the_channels(net: Path, cli: Run, tmp_path: Path) -> None:
    code, _, error = cli("compress", "net.py:Net", *SHORT, "--criterion", "net.py:last_first", "--round-to", "1", "--out", "small")
    assert code == 0, error
    plan = irtool.Plan.from_json("small/plan.json")
    assert plan.criterion == "last_first"
    assert plan.layers[0].removed == tuple(range(8 - len(plan.layers[0].removed), 8)) or plan.layers[1].removed[-1] == 7
    code, _, error = cli("compress", "net.py:Net", *SHORT, "--criterion", "net.py:first", "--out", "other")
    assert (code, error) == (1, "net.py: has no 'first'. Name a function or class that is in it.\n")


def test_a_function_is_a_criterion_in_python_and_a_name_is_given_once() -> None:
    def mine(groups: Any, seed: int) -> Any:
        return np.ones(groups.labels.count)

    assert criterion_name(mine) == "mine"
    assert criterion_name(mine) == "mine"
    assert criterion_name("l1") == "l1"
    assert criterion_name(None) is None

    def other(groups: Any, seed: int) -> Any:
        return np.zeros(groups.labels.count)

    other.__name__ = "l1"
    with pytest.raises(OptionError, match=r"a criterion is called 'l1' already\. Register this one under another name\."):
        criterion_name(other)


def test_an_installed_package_ships_a_criterion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "shipped.py").write_text("import irtool, numpy as np\n@irtool.criterion('shipped')\ndef shipped(groups, seed):\n    return np.ones(groups.labels.count)\n")  # fmt: skip
    (tmp_path / "shipped-1.0.dist-info").mkdir()
    (tmp_path / "shipped-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: shipped\nVersion: 1.0\n")
    (tmp_path / "shipped-1.0.dist-info" / "entry_points.txt").write_text("[irtool.criteria]\nshipped = shipped\n")
    graph = irtool.trace(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)).eval(), torch.zeros(1, 3, 4, 4))
    assert irtool.plan(graph, "shipped", ratio=0.5).criterion == "shipped"
    with pytest.raises(irtool.errors.PlanError, match="unshipped"):
        irtool.plan(graph, "unshipped")


def test_a_plan_is_replayed_from_the_shell(net: Path, cli: Run) -> None:
    torch.manual_seed(0)
    torch.save(ModelSpec.parse("net.py:Net").build().state_dict(), "net.pth")
    own = ["net.py:Net", "--weights", "net.pth", *SHORT]
    assert cli("compress", *own, "--ratio", "0.3", "--round-to", "1", "--out", "first")[0] == 0
    plan = json.loads(Path("first/plan.json").read_text())
    code, _, error = cli("compress", *own, "--plan", "first/plan.json", "--out", "second")
    assert code == 0, error
    assert json.loads(Path("second/plan.json").read_text()) == plan
    told, again = (json.loads(Path(run, "report.json").read_text())["options"] for run in ("first", "second"))
    assert {name: again[name] for name in ("ratio", "round_to", "scope", "criterion")} == {"ratio": 0.3, "round_to": 1, "scope": "global", "criterion": told["criterion"]}  # fmt: skip
    assert irtool.load("second/model.safetensors").text() == irtool.load("first/model.safetensors").text()
    assert cli("verify", "second")[0] == 0
    assert cli("compress", *own, "--plan", "first/plan.json", "--ratio", "0.2", "--out", "third")[2] == "--plan: a plan, and how to make one. Leave --ratio out.\n"  # fmt: skip
    code, _, error = cli("compress", "net.py:wide", *SHORT, "--plan", "first/plan.json", "--out", "third")
    assert (code, error.count("\n") >= 1) == (1, True)
    assert not Path("third").exists()


def test_defaults_are_the_same_in_prune_apply_and_compress() -> None:
    torch.manual_seed(0)
    x, model = torch.randn(2, 3, 16, 16), nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    for layer in model.eval():
        if isinstance(layer, nn.BatchNorm2d):
            layer.bias.data.normal_()
    graph = irtool.trace(model, x)
    plan = irtool.plan(graph, ratio=0.5, round_to=1)
    small = irtool.prune(graph, plan)
    irtool.apply(plan, model, x)
    assert torch.allclose(model(x), small.module(x), atol=1e-6)


def test_lightning_checkpoints_fit_by_their_prefix(net: Path) -> None:
    model = ModelSpec.parse("net.py:Net").build()
    state = {f"model.{name}": tensor + 1 for name, tensor in model.state_dict().items()} | {"loss.weight": torch.ones(4)}
    torch.save({"state_dict": state, "epoch": 3, "pytorch-lightning_version": "2.6.0"}, "last.ckpt")
    load_weights(model, Path("last.ckpt"))
    assert torch.equal(model.head.bias, state["model.head.bias"])


def test_a_whole_model_is_refused_unless_the_user_trusts_it(net: Path, cli: Run, tmp_path: Path) -> None:
    model = ModelSpec.parse("net.py:Net").build()
    model.__class__.__module__ = "net"  # as where the user's own script saved it
    monkey = pytest.MonkeyPatch()
    monkey.syspath_prepend(str(tmp_path))
    import importlib

    made = importlib.import_module("net").Net()
    torch.save(made, "whole.pth")
    monkey.undo()
    code, _, error = cli("inspect", "whole.pth", "--input", "1x3x16x16")
    assert code == 1
    assert error == "whole.pth: a whole model, pickled: loading it may run any code, so it is refused. If you trust whoever made it, write trust:whole.pth; else save the weights alone, and name the model.\n"  # fmt: skip
    code, printed, error = cli("inspect", "trust:whole.pth", "--input", "1x3x16x16", "--json")
    assert code == 0, error
    assert [layer["layer"] for layer in json.loads(printed)["layers"]] == ["body.0", "body.2", "head"]
    torch.save(made.state_dict(), "weights.pth")
    assert cli("inspect", "trust:weights.pth", "--input", "1x3x16x16")[2] == "weights.pth: holds weights alone, no model. Give it as --weights, and name the model.\n"  # fmt: skip


class _Bomb:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("ran"),)


def test_no_code_of_a_file_runs_before_it_is_trusted(net: Path, cli: Run) -> None:
    torch.save({"model": _Bomb()}, "bomb.pth")
    assert cli("inspect", "bomb.pth", "--input", "1x3x16x16")[0] == 1
    assert cli("inspect", "net.py:Net", "--weights", "bomb.pth", "--input", "1x3x16x16")[0] == 1
    assert not Path("ran").exists()


def test_a_file_alone_is_answered_with_what_it_holds(net: Path, cli: Run) -> None:
    assert cli("inspect", "net.py")[2] == "net.py: which of its models? It holds Net, wide, last_first. Write net.py:Net.\n"


def test_short_names_are_torchvisions_and_timms() -> None:
    assert ModelSpec.parse("resnet18").place == "torchvision.models"
    assert ModelSpec.parse("VGG:depth=11") == ModelSpec("", "VGG", {"depth": 11})
    assert ModelSpec.parse("timm/resnet10t:num_classes=3") == ModelSpec(
        "timm", "create_model", {"model_name": "resnet10t", "num_classes": 3}
    )
    with pytest.raises(OptionError, match="no built-in model is called 'resnet1'"):
        ModelSpec.parse("resnet1").build()
