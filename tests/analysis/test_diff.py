"""Diffs of small edits whose answer is known, of the passes, of unrelated nets, and of long ones."""

from __future__ import annotations

import json
import math
import time
from collections import OrderedDict
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from random_norms import randomise
from torch import Tensor, nn

from irtool.analysis.diff import matching as node_matching
from irtool.analysis.diff.diff import Diff, NodeRef, diff
from irtool.analysis.diff.matching import match_nodes
from irtool.hosts.torch.graph import FxGraph
from irtool.hosts.torch.tracing.trace import trace
from irtool.models import PreResNet
from irtool.passes import fold_batchnorm, prune
from irtool.pruning import plan

IMAGE = (1, 3, 8, 8)
KINDS = ("added", "removed", "replaced", "attributes", "wiring", "channels", "shapes", "parameters")


def graph_of(shape: tuple[int, ...] = IMAGE, **layers: nn.Module) -> FxGraph:
    return trace(nn.Sequential(OrderedDict(layers)).eval(), torch.zeros(shape))


def base(**changes: nn.Module) -> FxGraph:
    """conv, bn, relu, conv with the same random weights each time; `changes` replaces layers."""
    torch.manual_seed(0)
    layers = {"c1": nn.Conv2d(3, 6, 3, padding=1), "bn": nn.BatchNorm2d(6), "act": nn.ReLU(), "c2": nn.Conv2d(6, 4, 1)}
    nn.init.normal_(layers["bn"].weight)  # type: ignore[arg-type]
    return graph_of(**{**layers, **changes})


def kinds(found: Diff) -> set[str]:
    return {name for name in KINDS if getattr(found, name)}


def names(nodes: tuple[NodeRef, ...]) -> list[str]:
    return [node.name for node in nodes]


def test_same() -> None:
    found = diff(base(), base().clone())
    assert found.same
    assert kinds(found) == set()
    assert found.text().splitlines()[0] == "no difference"
    assert found.to_dict()["same"] is True


def test_renamed_is_the_same() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1)]
    found = diff(graph_of(a=layers[0], b=layers[1], c=layers[2]), graph_of(p=layers[0], q=layers[1], r=layers[2]))
    assert found.same
    assert found.renamed == (("a", "p"), ("b", "q"), ("c", "r"))


def test_attribute() -> None:
    found = diff(base(), base(c1=nn.Conv2d(3, 6, 3, padding=1, stride=2)))
    (change,) = found.attributes
    assert (change.node.name, change.what, change.before, change.after) == ("c1", "strides", 1, 2)
    assert "~ Conv c1: strides 1 -> 2" in found.text()
    assert not found.same


def test_channels_before_and_after() -> None:
    found = diff(base(), base(c1=nn.Conv2d(3, 5, 3, padding=1), bn=nn.BatchNorm2d(5), c2=nn.Conv2d(5, 4, 1)))
    assert [(c.node.name, c.inputs, c.outputs) for c in found.channels] == [
        ("c1", (3, 3), (6, 5)),
        ("bn", (6, 5), (6, 5)),
        ("c2", (6, 5), (4, 4)),
    ]
    assert (found.before.params - found.after.params) == 27 + 1 + 2 + 4  # an output of c1, its bias, scale and shift, an input of c2
    lines = found.text().splitlines()
    assert lines[:3] == ["~ Conv c1: channels out 6 -> 5", "~ BatchNormalization bn: channels 6 -> 5", "~ Conv c2: channels in 6 -> 5"]


@pytest.mark.parametrize(
    ("layer", "shape", "smaller", "inputs", "outputs"),
    [
        (nn.Conv2d(6, 9, 1, groups=3), (1, 6, 4, 4), nn.Conv2d(6, 6, 1, groups=3), (6, 6), (9, 6)),
        (nn.ConvTranspose2d(6, 9, 2, groups=3), (1, 6, 4, 4), nn.ConvTranspose2d(6, 6, 2, groups=3), (6, 6), (9, 6)),
        (nn.Conv1d(4, 3, 1), (1, 4, 7), nn.Conv1d(4, 2, 1), (4, 4), (3, 2)),
        (nn.Linear(5, 4), (2, 5), nn.Linear(5, 3), (5, 5), (4, 3)),
    ],
)
def test_channels_of_groups_and_transposes(layer: nn.Module, shape: tuple[int, ...], smaller: nn.Module, inputs: Any, outputs: Any) -> None:
    (change,) = diff(graph_of(shape, layer=layer), graph_of(shape, layer=smaller)).channels
    assert (change.inputs, change.outputs) == (inputs, outputs)


def test_parameter_delta_by_hand() -> None:
    a = base()
    b = a.clone()
    weight = a.params["c2.weight"].data
    assert weight is not None
    changed = weight.clone()
    changed[0, 0] += 3.0
    changed[1, 2] -= 4.0
    b.set_param("c2.weight", changed)
    found = diff(a, b)
    assert kinds(found) == {"parameters"}
    (delta,) = found.parameters
    assert (delta.name, delta.other) == ("c2.weight", "c2.weight")
    assert (delta.norm, delta.max_abs) == pytest.approx((5.0, 4.0), rel=1e-5)
    assert delta.relative == pytest.approx(5.0 / weight.norm().item(), rel=1e-5)


def test_nan_agrees_with_nan() -> None:
    a = base()
    weight = a.params["c2.weight"].data
    assert weight is not None
    weight[0, 0] = float("nan")
    b = a.clone()
    assert diff(a, b).same
    data = b.params["c2.weight"].data
    assert data is not None
    data[1, 0] += 2.0
    assert diff(a, b).parameters[0].norm == pytest.approx(2.0, rel=1e-5)
    data[1, 0] = float("nan")
    assert math.isnan(diff(a, b).parameters[0].norm)


def test_bias_and_type_and_input_shape() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 2)
    bare = nn.Linear(4, 2, bias=False)
    bare.weight = layer.weight
    found = diff(graph_of((1, 4), fc=layer), graph_of((1, 4), fc=bare))
    assert [(s.what, s.before, s.after) for s in found.shapes] == [("bias", "float32[2]", None)]
    found = diff(graph_of((1, 4), fc=layer), graph_of((3, 4), fc=layer))
    assert [(s.what, s.before, s.after) for s in found.shapes] == [
        ("input 0", "float32[1x4]", "float32[3x4]"),
        ("output 0", "float32[1x2]", "float32[3x2]"),
    ]
    half = graph_of((1, 4), fc=layer).clone(lambda t: t.half())
    assert {s.what for s in diff(graph_of((1, 4), fc=layer), half).shapes} >= {"weight", "bias"}


def test_added_removed_and_replaced() -> None:
    found = diff(base(), base(end=nn.Softmax(1)))
    assert (kinds(found), names(found.added)) == ({"added"}, ["end"])
    found = diff(base(end=nn.Softmax(1)), base())
    assert (kinds(found), names(found.removed)) == ({"removed"}, ["end"])
    found = diff(base(), base(act=nn.Hardswish()))
    assert kinds(found) == {"replaced"}
    assert [(names(r.before), names(r.after)) for r in found.replaced] == [(["act"], ["act"])]
    assert "~ Relu act -> HardSwish act" in found.text()


def test_an_inserted_block_shifts_names_not_partners() -> None:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()) for _ in range(6)]
    before, after = nn.Sequential(*blocks[:2], *blocks[3:]), nn.Sequential(*blocks)
    x = torch.zeros(1, 4, 8, 8)
    found = diff(trace(before.eval(), x), trace(after.eval(), x))
    assert kinds(found) == {"added"}
    assert [node.location for node in found.added] == ["2.0", "2.1", "2.2"]
    assert ("_2_0", "_3_0") in found.renamed


class Wired(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how, self.a, self.b, self.c = how, nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(a)
        c = self.c(a if self.how == "skipping" else b)
        return {"swapped": lambda: c + b, "subtracted": lambda: b - c, "reversed": lambda: c - b}.get(self.how, lambda: b + c)()


def test_wiring() -> None:
    plain, skipping, swapped, subtracted, reversed_ = (trace(Wired(how), torch.zeros(IMAGE)) for how in ("plain", "skipping", "swapped", "subtracted", "reversed"))  # fmt: skip
    found = diff(plain, skipping)
    assert kinds(found) == {"wiring"}
    assert [(w.node.name, w.what, w.before, w.after) for w in found.wiring] == [("c", "input", "b", "a")]
    assert diff(plain, swapped).same  # a sum does not care
    assert kinds(diff(subtracted, reversed_)) == {"wiring"}


class Branches(nn.Module):
    def __init__(self, swap: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.swap = swap
        self.left, self.right = (nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        if self.swap:
            right = self.right(x)
            return torch.cat([self.left(x), right], 1)
        left = self.left(x)
        return torch.cat([left, self.right(x)], 1)


def test_branches_computed_in_another_order() -> None:
    assert diff(*(trace(Branches(swap), torch.zeros(IMAGE)) for swap in (False, True))).same


def test_original_pruned_folded() -> None:
    graph = trace(randomise(torchvision.models.resnet18()).eval(), torch.zeros(1, 3, 32, 32))
    pruned = prune(graph, plan(graph, "l1", ratio=0.5), constants="drop")
    found = diff(graph, pruned)
    assert kinds(found) <= {"channels", "shapes", "parameters"}
    kept = {node.name: node.operands["weight"].sizes[0] for node in pruned.nodes if node.op == "Conv"}
    told = {change.node.name: change.outputs[1] for change in found.channels if change.node.op == "Conv"}
    assert told == {name: width for name, width in kept.items() if name in told}
    assert len(told) > 10
    found = diff(pruned, fold_batchnorm(pruned))
    assert kinds(found) == {"replaced"}
    assert len(found.replaced) == 20
    assert found.text().splitlines()[0] == "~ Conv conv1 + BatchNormalization bn1 -> Conv conv1"
    assert all(
        [node.op for node in r.before] == ["Conv", "BatchNormalization"] and [node.op for node in r.after] == ["Conv"]
        for r in found.replaced
    )


def test_a_wrong_fold_is_no_fold() -> None:
    graph = base(bn=randomise(nn.Sequential(nn.BatchNorm2d(6))).eval()[0])  # type: ignore[index]
    folded = fold_batchnorm(graph)
    assert kinds(diff(graph, folded)) == {"replaced"}
    data = folded.params["c1.weight"].data
    assert data is not None
    data[0, 0, 0, 0] += 1.0
    found = diff(graph, folded)
    assert kinds(found) == {"removed", "parameters"}
    assert [delta.name for delta in found.parameters] == ["c1.weight", "c1.bias"]


def test_selects_are_added() -> None:
    graph = trace(randomise(PreResNet(20)).eval(), torch.zeros(1, 3, 32, 32))
    found = diff(graph, prune(graph, plan(graph, "l1", ratio=0.5, residual="select"), constants="drop"))
    assert {node.op for node in found.added} == {"ChannelSelect"}
    assert not found.removed
    assert not found.wiring
    assert not found.replaced


def test_unrelated_nets_are_told_apart() -> None:
    x = torch.zeros(1, 3, 32, 32)
    a, b = trace(torchvision.models.densenet121().eval(), x), trace(torchvision.models.mobilenet_v3_small().eval(), x)
    found = diff(a, b)
    assert not found.same
    assert all(len(r.before) <= 8 and len(r.after) <= 8 for r in found.replaced)
    pairs = match_nodes(a, b)
    assert len(set(pairs.values())) == len(pairs)
    assert all(x.op == y.op for x, y in pairs.items())
    told = {*names(found.removed), *(node.name for r in found.replaced for node in r.before), *(node.name for node in pairs)}
    assert told == {node.name for node in a.nodes}


class Long(nn.Module):
    """2,000 nodes without a module: names are counters, as they are after `torch.export`."""

    def __init__(self, extra: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(4, 4, 1, 1)) for _ in range(1000)])
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        for index, weight in enumerate(self.weights):
            x = F.conv2d(x, weight)
            x = F.hardswish(x) if index % 7 == 3 else F.relu(x)
            x = torch.sigmoid(x) if index == self.extra else x
        return x


@pytest.fixture(scope="module")
def long() -> tuple[FxGraph, FxGraph]:
    x = torch.zeros(1, 4, 2, 2)
    return trace(Long(), x), trace(Long(extra=500), x)


def test_two_thousand_nodes(long: tuple[FxGraph, FxGraph]) -> None:
    assert len(long[0].nodes) > 2000
    started = time.process_time()
    found = diff(*long)
    assert time.process_time() - started < 5
    assert (kinds(found), names(found.added)) == ({"added"}, ["sigmoid"])


def test_lists_too_long_for_one_table_are_cut(long: tuple[FxGraph, FxGraph], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_matching, "CELLS", 1000)
    found = diff(*long)
    assert (kinds(found), names(found.added)) == ({"added"}, ["sigmoid"])


def test_the_picture_holds_both_graphs() -> None:
    graph = base(bn=randomise(nn.Sequential(nn.BatchNorm2d(6))).eval()[0])  # type: ignore[index]
    found = diff(graph, fold_batchnorm(graph)).picture
    assert [(node["op"], node["status"], node["after"] is None) for node in found["nodes"]] == [
        ("Input", "same", False), ("Conv", "changed", False), ("BatchNormalization", "replaced", True), ("Relu", "same", False), ("Conv", "same", False),
        ("Output", "same", False),
    ]  # fmt: skip
    assert found["edges_before"] == [[0, 1], [1, 2], [2, 3], [3, 4], [4, 5]]
    assert found["edges_after"] == [[0, 1], [1, 3], [3, 4], [4, 5]]
    assert found["nodes"][1]["notes"] == ["replaced: Conv + BatchNormalization -> Conv"]
    assert found["nodes"][1]["before"]["channels"] == (3, 6)
    json.dumps(found)


def test_text_and_json() -> None:
    found = diff(base(), base(act=nn.Hardswish(), c2=nn.Conv2d(6, 2, 1), end=nn.Softmax(1)))
    data = json.loads(found.to_json())
    assert data["format"] == 1
    assert data["same"] is False
    assert [node["op"] for node in data["added"]] == ["Softmax"]
    assert data["replaced"][0]["before"][0]["location"] == "act"
    assert data["totals"]["params"] == [found.before.params, found.after.params]
    assert found.text().splitlines() == [
        "+ Softmax end [1x2x8x8]",
        "~ Relu act -> HardSwish act",
        "~ Conv c2: channels out 4 -> 2",
        "~ Output output: output 0 float32[1x4x8x8] -> float32[1x2x8x8]",
        "parameters: 208 -> 194 (-6.7%)",
        "buffer entries: 12",
        "MACs: 11,904 -> 11,136 (-6.5%)",
        "bytes of weights: 880 -> 824 (-6.4%)",
    ]
    assert "\x1b" not in found.text()
    assert found.text(color=True).splitlines()[0] == "\x1b[32m+ Softmax end [1x2x8x8]\x1b[0m"
