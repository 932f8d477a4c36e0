"""The cost as a function of widths, against the cost of the sliced graph."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision

import irtool
from irtool.analysis.width_cost import width_cost
from irtool.channels.groups import channel_groups
from irtool.pruning.plan_rewrite import prepare


def counted(found: irtool.Cost) -> dict[str, float]:
    """What a cost is by kind; no time was given, so there is none."""
    return {"macs": found.macs, "params": found.params, "bytes": found.weight_bytes, "latency": 0.0}


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "densenet121", "squeezenet1_0", "regnet_y_400mf"])
@pytest.mark.parametrize("residual", ["couple", "select"])
def test_equals_the_cost_of_the_sliced_graph(name: str, residual: str) -> None:
    torch.manual_seed(0)
    graph = irtool.trace(torchvision.models.get_model(name, weights=None).eval(), torch.zeros(2, 3, 64, 64))
    prepared = prepare(graph, residual)
    groups = channel_groups(prepared)
    costs = width_cost(groups)
    keep = np.ones(groups.labels.count, bool)
    before = irtool.cost(prepared)
    assert costs.total(costs.widths(keep)) == counted(before)
    plan = irtool.plan(graph, "random", 0.4, residual=residual, seed=3)
    removed = {(layer.parameter, layer.axis): layer.removed for layer in plan.layers}
    for layer in groups.layers:
        axis = layer.key[1] if isinstance(layer.key[1], int) else layer.key[1][0]
        gone = groups.group[layer.labels.numpy()[list(removed[layer.key[0], axis])]]
        keep &= ~np.isin(groups.group, gone)
    after = irtool.cost(irtool.prune(graph, plan, "drop"))
    assert after.macs < before.macs
    assert costs.total(costs.widths(keep)) == counted(after)
