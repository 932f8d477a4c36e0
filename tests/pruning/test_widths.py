"""Widths that engines like: multiples by a layer's total channels, as many channels gone as asked for, finer where they must be."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

import irtool
from irtool.errors import PlanError
from irtool.pruning.allocation.widths import steps_of


def chain(*widths: int, groups: int = 1) -> irtool.FxGraph:
    """3x3 convolutions of these widths after three channels, the inner ones in groups, and a 1x1 to four."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for number, (a, b) in enumerate(zip((3, *widths), (*widths, 4), strict=True)):
        layers += [nn.Conv2d(a, b, 3, padding=1, groups=groups if 0 < number < len(widths) else 1), nn.ReLU()]
    return irtool.trace(nn.Sequential(*layers).eval(), torch.zeros(1, 3, 8, 8))


def steps(graph: irtool.FxGraph, finer: int = 1) -> list[int]:
    return steps_of(irtool.channel_groups(graph), "auto", finer).tolist()


def test_steps_follow_the_width() -> None:
    assert steps(chain(128, 64, 48, 32, 16, 8, 6)) == [16, 16, 16, 16, 4, 4, 1, 1]
    assert steps(chain(128, 32, 8), finer=4) == [4, 4, 1, 1]


@pytest.mark.parametrize(("width", "groups", "expected"), [(128, 4, 64), (128, 32, 32), (64, 4, 32), (24, 3, 12)])
def test_groups_lose_equally_many_and_the_layer_keeps_a_multiple(width: int, groups: int, expected: int) -> None:
    """128 channels in four groups: 16 a group; in 32 groups of 4: one a group is 32 of the layer, which is a multiple of 16 too."""
    found = steps(chain(width, width, groups=groups))
    assert found[0] == found[1] == expected


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "resnext50_32x4d", "shufflenet_v2_x1_0", "regnet_y_400mf"])
@pytest.mark.parametrize("wish", [{"ratio": 0.5}, {"budget": {"macs": 0.5}}])
def test_default_widths_are_those_that_engines_like(name: str, wish: dict[str, object]) -> None:
    torch.manual_seed(0)
    graph = irtool.trace(torchvision.models.get_model(name, weights=None).eval(), torch.zeros(1, 3, 64, 64))
    plan = irtool.plan(graph, "l2", **wish)  # type: ignore[arg-type]
    assert plan.round_to == "auto"
    if name == "regnet_y_400mf" and "ratio" in wish:  # 55 groups of 8 can lose four each or none, and that misses half of the channels
        assert "finer multiples" in plan.notes[0]
        return
    assert not plan.notes
    found = dict(zip([layer.node.location for layer in irtool.channel_groups(graph).layers], steps(graph), strict=True))
    if name == "regnet_y_400mf":  # whole groups of 8 go
        found = dict.fromkeys(found, 8)
    for layer in plan.layers:
        assert not layer.removed or layer.kept % found[layer.name] == 0
        assert not layer.removed or layer.total < 32 or layer.kept % 8 == 0
    if "ratio" in wish:
        assert plan.removed == pytest.approx(irtool.plan(graph, "l2", 0.5, round_to=1).removed, rel=0.1)
    else:
        assert 0.9 <= irtool.cost(irtool.prune(graph, plan)).macs / (0.5 * irtool.cost(graph).macs) <= 1


def test_finer_steps_and_a_note_where_the_budget_needs_them() -> None:
    graph = chain(12, 12)
    plan = irtool.plan(graph, "l2", budget={"macs": 0.04})
    assert irtool.cost(irtool.prune(graph, plan)).macs <= 0.04 * irtool.cost(graph).macs
    assert "finer multiples" in plan.notes[0]
    assert "finer multiples" in plan.summary()
    assert irtool.Plan.from_dict(plan.to_dict()) == plan


def test_finer_steps_and_a_note_where_the_ratio_needs_them() -> None:
    plan = irtool.plan(chain(8, 8), "l2", 0.125, "local")
    assert [layer.kept for layer in plan.layers] == [7, 7, 4]
    assert "finer multiples" in plan.notes[0]


def test_one_number_for_all_is_as_it_was() -> None:
    plan = irtool.plan(chain(12, 12), "l2", 0.25, "local", round_to=1)
    assert [layer.kept for layer in plan.layers] == [9, 9, 4]
    assert not plan.notes


@pytest.mark.parametrize("value", ["fast", "8", 0, -1, 1.5, None])
def test_what_is_no_rounding_is_refused(value: object) -> None:
    with pytest.raises(PlanError, match="round_to"):
        irtool.plan(chain(8), round_to=value)  # type: ignore[arg-type]
