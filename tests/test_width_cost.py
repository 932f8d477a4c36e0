"""The cost as a function of widths, against the cost of the sliced graph."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision

import irtool
from irtool.analysis.width_cost import KINDS, WidthCost, width_cost
from irtool.channels.groups import channel_groups
from irtool.pruning.slicing.plan_slicing import prepare


def counted(costs: WidthCost, keep: np.ndarray) -> dict[str, float]:
    """By kind, but for the time, of which nothing is known here."""
    return {kind: value for kind, value in costs.total(costs.widths(keep)).items() if kind in KINDS}


def small_vit() -> torch.nn.Module:
    """Attention of four heads, whose axes a box of labels fills together."""
    return torchvision.models.VisionTransformer(
        image_size=64, patch_size=16, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=48, num_classes=5
    )


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "densenet121", "squeezenet1_0", "regnet_y_400mf", "small_vit"]
)
@pytest.mark.parametrize("residual", ["couple", "select", "keep"])
def test_equals_the_cost_of_the_sliced_graph(name: str, residual: str) -> None:
    torch.manual_seed(0)
    model = small_vit() if name == "small_vit" else torchvision.models.get_model(name, weights=None)
    graph = irtool.trace(model.eval(), torch.zeros(2, 3, 64, 64))
    prepared = prepare(graph, residual)
    groups = channel_groups(prepared)
    costs = width_cost(groups)
    keep = np.ones(groups.labels.count, bool)
    before = irtool.cost(prepared)
    assert counted(costs, keep) == {"macs": before.macs, "params": before.params, "bytes": before.weight_bytes}
    plan = irtool.plan(graph, "random", 0.4, residual=residual, seed=3)
    removed = {(layer.parameter, layer.axis): layer.removed for layer in plan.layers}
    for layer in groups.layers:
        axis = layer.key[1] if isinstance(layer.key[1], int) else layer.key[1][0]
        gone = groups.group[layer.labels.numpy()[list(removed[layer.key[0], axis])]]
        keep &= ~np.isin(groups.group, gone)
    after = irtool.cost(irtool.prune(graph, plan, "drop"))
    assert after.macs < before.macs
    assert counted(costs, keep) == {"macs": after.macs, "params": after.params, "bytes": after.weight_bytes}


def test_a_budget_on_attention_is_met_as_it_was_counted() -> None:
    torch.manual_seed(0)
    graph = irtool.trace(small_vit().eval(), torch.zeros(2, 3, 64, 64))
    plan = irtool.plan(graph, "l2", residual="keep", budget={"macs": 0.75}, round_to=1)
    assert any(0 < layer.kept < layer.total for layer in plan.layers if "linear" in layer.name)  # heads lose dimensions
    again = irtool.prune(irtool.trace(small_vit().eval(), torch.zeros(2, 3, 64, 64)), plan, "drop")
    assert 0.97 * 0.75 <= irtool.cost(again).macs / irtool.cost(graph).macs <= 0.75
