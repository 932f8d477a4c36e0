"""Branches that go as a whole: a constant stays in their place, and the same numbers come out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from random_norms import randomise
from torch import Tensor, nn

import irtool
from irtool.errors import DataError, PlanError
from irtool.pruning.branches import branches, constant_of, cut
from irtool.pruning.slicing.check import check_prune, check_refitted


class Block(nn.Module):
    """Two convolutions beside a stream, which a third one may project."""

    def __init__(self, width: int, out: int, *, inplace: bool = False) -> None:
        super().__init__()
        self.a, self.an = nn.Conv2d(width, 10, 3, padding=1, bias=False), nn.BatchNorm2d(10)
        self.b, self.bn = nn.Conv2d(10, out, 3, padding=1, bias=False), nn.BatchNorm2d(out)
        self.act = nn.ReLU(inplace=inplace)
        self.side = nn.Identity() if width == out else nn.Conv2d(width, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.side(x) + self.bn(self.b(self.act(self.an(self.a(x))))))


class Net(nn.Module):
    """Three blocks."""

    def __init__(self, *, inplace: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.one, self.two, self.three = (Block(a, b, inplace=inplace) for a, b in ((8, 8), (8, 12), (12, 12)))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.three(self.two(self.one(self.stem(x)))).mean((2, 3)))


class Odd(nn.Module):
    """Additions of which no branch can go: of one value, over an axis that is stretched, of what others read, of what is written over."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(3, 3, 1) for _ in range(4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.a(x)
        y = y + y
        y = y + self.b(y).mean((2, 3), keepdim=True)
        z = self.c(y)
        return y + z, self.d(z) * 2


def traced(inplace: bool = False) -> irtool.FxGraph:
    torch.manual_seed(0)
    return irtool.trace(randomise(Net(inplace=inplace)).eval(), torch.zeros(2, 3, 6, 6))


def names(graph: irtool.Graph) -> list[str]:
    return [branch.name for branch in branches(graph)]


@pytest.mark.parametrize("inplace", [False, True])
def test_what_can_go(inplace: bool) -> None:
    graph = traced(inplace)
    assert names(graph) == ["one_bn", "two_side", "two_bn", "three_bn"]
    assert branches(graph)[0].layers == ("one.b", "one.a")
    assert branches(graph)[0].macs == 2 * (8 * 10 * 9 * 36 + 10 * 8 * 9 * 36)
    left = cut(graph, ["two_bn", "three_bn"])
    assert not {"two_a", "two_b", "three_a", "three_b"} & {node.name for node in left.nodes}
    assert constant_of(left, branches(graph)[2]).sizes == (1, 12, 1, 1)  # type: ignore[union-attr]
    assert names(irtool.trace(Odd().eval(), torch.zeros(2, 3, 4, 4))) == []


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("gone", [["one_bn"], ["two_side"], ["two_bn", "three_bn"]])
def test_plans_with_branches_are_exact(gone: Sequence[str], inplace: bool) -> None:
    graph, x = traced(inplace), torch.randn(6, 3, 6, 6)
    plan = irtool.Plan.from_dict(irtool.plan(graph, "l2", 0.3, round_to=1, depth=gone).to_dict())
    assert plan.branches == tuple(gone)
    for options in ({}, {"constants": "drop"}, {"calibration": [x]}):
        found = check_prune(graph, plan, constants=options.pop("constants", "absorb"), **options)  # type: ignore[arg-type]
        assert found.ok
    refitted = irtool.reconstruct(graph, plan, x)
    assert check_refitted(graph, plan, refitted, (x,)).ok


def test_the_constant_is_the_mean_of_what_was_added() -> None:
    graph, x = traced(), torch.randn(40, 3, 6, 6)
    plan = irtool.plan(graph, "l2", 0.0, depth=["one_bn"])
    seen: list[Tensor] = []
    graph.observe((x,), {"one_bn"}, lambda name, value: seen.append(value.double()))
    measured = irtool.prune(graph, plan, calibration=[x[:30], x[30:]])
    torch.testing.assert_close(measured.params["constant_one_bn"].data, seen[0].mean((0, 2, 3), keepdim=True).float())
    by_norm = irtool.prune(graph, plan)
    torch.testing.assert_close(by_norm.params["constant_one_bn"].data.flatten(), graph.params["one.bn.bias"].data)
    assert not irtool.prune(graph, plan, constants="drop").params["constant_one_bn"].data.any()
    torch.manual_seed(0)
    net = randomise(Net()).eval()
    stream = torch.relu(net.stem(x) + seen[0].mean((0, 2, 3), keepdim=True).float())
    torch.testing.assert_close(measured.run(x), net.head(net.three(net.two(stream)).mean((2, 3))))


def test_archives_and_onnx(tmp_path: Path) -> None:
    graph, x = traced(), torch.randn(2, 3, 6, 6)
    plan = irtool.plan(graph, "l2", 0.3, round_to=1, depth=["one_bn", "three_bn"])
    pruned = irtool.prune(graph, plan)
    irtool.save(pruned, tmp_path / "small.irtool")
    torch.testing.assert_close(irtool.load(tmp_path / "small.irtool").run(x), pruned.run(x))
    irtool.export_onnx(pruned, tmp_path / "small.onnx")
    torch.testing.assert_close(irtool.load_onnx(tmp_path / "small.onnx").run(x)[0], pruned.run(x), rtol=1e-4, atol=1e-4)
    irtool.export_onnx(graph, tmp_path / "m.onnx")
    host = irtool.load_onnx(tmp_path / "m.onnx")
    known = branches(host)
    assert len(known) == 4
    other = irtool.plan(host, "l2", budget={"macs": 0.5}, round_to=1, depth=[known[0].name])
    small = irtool.prune(host, other)
    assert check_prune(host, other).ok
    assert 0.97 * 0.5 <= irtool.cost(small).macs / irtool.cost(host).macs <= 0.5


def test_branches_are_chosen_where_they_lose_least() -> None:
    """A branch that gives next to nothing goes before any channel does; one that is to stay does not."""
    graph, x = traced(), torch.randn(96, 3, 6, 6)
    for name in ("one.bn.weight", "three.bn.weight"):
        graph.set_param(name, torch.full_like(graph.params[name].data, 1e-3))
    plan = irtool.plan(graph, budget={"macs": 0.3}, data=x, round_to=1, depth=True)
    assert set(plan.branches) & {"one_bn", "three_bn"}
    assert not set(plan.branches) & {"two_bn"}
    assert "without" in plan.notes[-1]
    assert "goes, with all that only it needs" in plan.summary()
    assert irtool.cost(irtool.prune(graph, plan)).macs <= 0.3 * irtool.cost(graph).macs
    kept = irtool.plan(graph, budget={"macs": 0.6}, data=x, round_to=1, depth=True, ignore="one", limits={"three.a": 0.5})
    assert not set(kept.branches) & {"one_bn", "three_bn"}


def test_stages_after_a_branch() -> None:
    graph, x = traced(), torch.randn(64, 3, 6, 6)
    plan = irtool.plan(graph, budget={"macs": 0.4}, data=x, round_to=1, depth=["three_bn"], stages=2)
    assert plan.branches == ("three_bn",)
    pruned = irtool.prune(graph, plan)
    assert 0.9 * 0.4 <= irtool.cost(pruned).macs / irtool.cost(graph).macs <= 0.4
    assert check_prune(graph, irtool.Plan.from_dict(plan.to_dict())).ok


def test_streams_are_tried_unless_the_user_says() -> None:
    graph, x = traced(), torch.randn(96, 3, 6, 6)
    plan = irtool.plan(graph, budget={"macs": 0.6}, data=x, round_to=1, residual="auto")
    assert plan.residual in ("couple", "select")
    assert "residual couple" in plan.notes[-1]
    assert "residual select" in plan.notes[-1]
    assert irtool.plan(graph, "l2", budget={"macs": 0.6}, residual="auto").residual == "couple"


def test_what_cannot_be_asked_for() -> None:
    graph = traced()
    with pytest.raises(PlanError, match="Known are one_bn"):
        irtool.plan(graph, "l2", depth=["four_bn"])
    with pytest.raises(PlanError, match="nothing would be left of an addition"):
        irtool.plan(graph, "l2", depth=["two_bn", "two_side"])
    with pytest.raises(PlanError, match="out of ignore"):
        irtool.plan(graph, "l2", depth=["one_bn"], ignore="one.a")
    with pytest.raises(PlanError, match="Give a budget, or name the branches"):
        irtool.plan(graph, depth=True, data=torch.randn(8, 3, 6, 6))
    with pytest.raises(DataError, match="Give data=images"):
        irtool.plan(graph, "l2", depth=True, budget={"macs": 0.5})
    with pytest.raises(DataError, match="Give more, or name the branches"):
        irtool.plan(graph, depth=True, budget={"macs": 0.5}, data=torch.randn(8, 3, 6, 6))
    with pytest.raises(PlanError, match="forward adds it"):
        irtool.apply(irtool.plan(graph, "l2", depth=["one_bn"]), Net().eval(), torch.zeros(2, 3, 6, 6))


def test_an_onnx_graph_is_tried_too(tmp_path: Path) -> None:
    irtool.export_onnx(traced(), tmp_path / "m.onnx")
    graph, x = irtool.load_onnx(tmp_path / "m.onnx"), torch.randn(96, 3, 6, 6)
    plan = irtool.plan(graph, budget={"macs": 0.35}, data=list(x.split(2)), round_to=1, depth=True)
    assert plan.criterion == "activation"
    assert "residual couple" in plan.notes[-1]
    assert "without" in plan.notes[-1]
    refitted = irtool.reconstruct(graph, plan, list(x.split(2)))
    assert irtool.cost(refitted).macs <= 0.35 * irtool.cost(graph).macs


def test_refitting_without_images_leaves_the_constants() -> None:
    graph, x = traced(), torch.randn(4, 3, 6, 6)
    plan = irtool.plan(graph, "l2", budget={"macs": 0.4}, round_to=1, depth=["three_bn"])
    refitted = irtool.reconstruct(graph, plan, None)
    told = irtool.prune(graph, plan).params["constant_three_bn"].data
    torch.testing.assert_close(refitted.params["constant_three_bn"].data, told, rtol=1e-3, atol=1e-3)
    assert check_refitted(graph, plan, refitted, (x,)).ok


def test_a_net_without_branches_loses_channels_alone_on_both_hosts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(40, 3, 8, 8)
    graph = irtool.trace(nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3)).eval(), x[:2])
    irtool.export_onnx(graph, tmp_path / "net.onnx")
    for one in (graph, irtool.load_onnx(tmp_path / "net.onnx")):
        plan = irtool.plan(one, budget={"macs": 0.5}, data=x, depth=True)
        assert plan.branches == ()
        assert plan.removed > 0
