"""Diffs across hosts: a net against its own export, and what counts as a lowering."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from random_norms import randomise
from test_diff import IMAGE, kinds
from torch import Tensor, nn

from irtool.analysis.diff.diff import diff
from irtool.engines import export_onnx
from irtool.hosts.onnx.files.load import load_onnx
from irtool.hosts.onnx.graph import OnnxGraph
from irtool.hosts.torch.graph import FxGraph
from irtool.hosts.torch.tracing.trace import trace
from irtool.models import VGG, PreResNet
from irtool.passes import prune
from irtool.pruning import plan


def exported(model: nn.Module, size: int, folder: Path) -> tuple[FxGraph, OnnxGraph]:
    """A net with random batch norms through both hosts; the ONNX graph is read at its default sizes."""
    graph = trace(randomise(model).eval(), torch.zeros(2, 3, size, size))
    export_onnx(graph, folder / "net.onnx", verify=False)
    return graph, load_onnx(folder / "net.onnx")


HOSTS: dict[str, tuple[Callable[[], nn.Module], int, set[str]]] = {
    "preresnet": (lambda: PreResNet(20), 32, set()),
    "vgg": (lambda: VGG(11, width=0.25), 32, set()),
    "resnet18": (torchvision.models.resnet18, 32, set()),
    "mobilenet_v2": (torchvision.models.mobilenet_v2, 32, {"Dropout -> nothing"}),
    "shufflenet": (torchvision.models.shufflenet_v2_x0_5, 32, {"Split -> Slice + Slice (13 times)", "Identity -> nothing (16 times)"}),
    "densenet121": (torchvision.models.densenet121, 32, set()),
    "efficientnet": (
        torchvision.models.efficientnet_b0, 32, {"Swish -> Sigmoid + Mul (49 times)", "StochasticDepth -> nothing (9 times)", "Dropout -> nothing"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTS)
def test_a_net_and_its_export_differ_by_named_lowerings_only(name: str, tmp_path: Path) -> None:
    make, size, expected = HOSTS[name]
    graph, loaded = exported(make(), size, tmp_path)
    for found in (diff(graph, loaded), diff(loaded, graph)):
        assert found.same
        assert kinds(found) == set()
    told = {line.removeprefix("= lowering: ") for line in diff(graph, loaded).text().splitlines() if line.startswith("=")}
    assert told == expected
    if not expected:
        assert graph.text() == loaded.at({loaded.inputs[0].name: graph.inputs[0].sizes}).text()


def test_one_changed_number_is_found_across_hosts(tmp_path: Path) -> None:
    graph, loaded = exported(PreResNet(20), 32, tmp_path)
    data = graph.params["layer2.0.conv2.weight"].data
    assert data is not None
    data[0, 0, 0, 0] += 1.0
    found = diff(graph, loaded)
    assert kinds(found) == {"parameters"}
    assert [(delta.name, delta.norm) for delta in found.parameters] == [("layer2.0.conv2.weight", pytest.approx(1.0, rel=1e-5))]


def test_pruned_in_one_host_against_the_original_in_the_other(tmp_path: Path) -> None:
    graph, loaded = exported(VGG(11, width=0.25), 32, tmp_path)
    chosen = plan(graph, "l1", ratio=0.5)
    here, there = (diff(one, prune(graph, chosen, constants="drop")) for one in (graph, loaded))
    widths = [[(c.node.op, c.inputs, c.outputs) for c in found.channels] for found in (here, there)]
    assert widths[0] == widths[1]
    assert kinds(there) == kinds(here)


class Activated(nn.Module):
    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.act, self.b = nn.Conv2d(3, 4, 1), act, nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.act(self.a(x)))


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class NearlySwish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.01 * x)


def test_a_lowering_is_run_not_believed() -> None:
    x = torch.zeros(IMAGE)
    plain, equal, wrong = (trace(Activated(act).eval(), x) for act in (nn.SiLU(), Swish(), NearlySwish()))
    found = diff(plain, equal)
    assert found.same
    assert [([n.op for n in r.before], [n.op for n in r.after]) for r in found.lowered] == [(["Swish"], ["Sigmoid", "Mul"])]
    found = diff(plain, wrong)
    assert kinds(found) == {"replaced"}
    assert not found.lowered


@pytest.mark.parametrize(
    ("a", "b", "what"),
    [
        (nn.LeakyReLU(0.1), nn.LeakyReLU(0.2), ("alpha", 0.1, 0.2)),
        (nn.ReLU6(), nn.Hardtanh(0, 5), ("max", 6.0, 5.0)),
        (nn.MaxPool2d(3, 1, 1), nn.MaxPool2d(5, 1, 2), ("kernel_shape", 3, 5)),
        (nn.AvgPool2d(3, 1, 1), nn.AvgPool2d(3, 1, 1, count_include_pad=False), ("count_include_pad", True, False)),
        (nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=2, mode="bilinear"), ("mode", "nearest", "linear")),
    ],
)
def test_attributes_that_modules_hold(a: nn.Module, b: nn.Module, what: tuple[str, Any, Any]) -> None:
    found = diff(*(trace(Activated(act).eval(), torch.zeros(IMAGE)) for act in (a, b)))
    assert (found.attributes[0].what, found.attributes[0].before, found.attributes[0].after) == what
    assert diff(*(trace(Activated(act).eval(), torch.zeros(IMAGE)) for act in (a, a))).same
