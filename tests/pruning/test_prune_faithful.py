"""Pruned nets compute what the masked model computes, for models with odd but legal code."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from odd_nets import Net, X, make
from torch import Tensor, nn

import irtool
from irtool.errors import GraphError, PlanError


def _first_channel(y: Tensor) -> None:
    y[:, 3].zero_()


def _every_fourth(y: Tensor) -> None:
    y[:, ::4].mul_(3)


def _selected(y: Tensor) -> None:
    y.select(1, 3).zero_()


def _run_of_channels(y: Tensor) -> None:
    y[:, 3:6].mul_(3)


@pytest.mark.parametrize("write", [_first_channel, _every_fourth, _selected, _run_of_channels])
@pytest.mark.parametrize("weakest", [0, 3, 4])
def test_a_write_to_some_channels_reaches_them_after_pruning(write: Callable[[Tensor], None], weakest: int) -> None:
    def function(net: Net, x: Tensor) -> Tensor:
        y = net.a(x)
        write(y)
        return net.head(y)

    model = make(function).double()
    with torch.no_grad():
        model.a.weight[weakest] *= 0.01
    graph = irtool.trace(model, X.double())
    plan = irtool.plan(graph, "l1", 0.1, "local")
    sliced = irtool.prune(graph, plan, "drop")
    masked = copy.deepcopy(model)
    with torch.no_grad():
        for layer in plan.layers:
            if layer.parameter == "a.weight":
                masked.a.weight[list(layer.removed)] = 0
                masked.a.bias[list(layer.removed)] = 0
        torch.testing.assert_close(sliced.module(X.double()), masked(X.double()), rtol=1e-9, atol=1e-12)


def _mean(net: Net, y: Tensor) -> Tensor:
    return y / (y.numel() / y.shape[0]) * 1000


def _per_channel(net: Net, y: Tensor) -> Tensor:
    return y / y.size(1)


def _mixed(net: Net, y: Tensor) -> Tensor:
    return y * (y.size(1) + y.size(2))


def _of_a_part(net: Net, y: Tensor) -> Tensor:
    return y / (y[0].numel() + 1)


@pytest.mark.parametrize("scale", [_mean, _per_channel, _mixed, _of_a_part])
def test_numbers_of_pruned_sizes_hold_at_other_image_sizes(scale: Callable[[Net, Tensor], Tensor]) -> None:
    model = make(lambda net, x: net.head(scale(net, net.a(x)))).double()
    graph = irtool.trace(model, X.double())
    plan = irtool.plan(graph, "l1", 0.3, "local")
    sliced, masked = irtool.prune(graph, plan, "drop"), copy.deepcopy(model)
    with torch.no_grad():
        gone = next(layer.removed for layer in plan.layers if layer.parameter == "a.weight")
        assert gone
        masked.a.weight[list(gone)], masked.a.bias[list(gone)] = 0, 0
        for side in (16, 24):
            x = torch.randn(3, 3, side, side, dtype=torch.float64)
            torch.testing.assert_close(sliced.module(x), masked(x), rtol=1e-9, atol=1e-12)


def test_bfloat16_weights_are_ranked() -> None:
    model = make(lambda net, x: net.head(net.b(net.a(x))))
    wide = irtool.plan(irtool.trace(model, X), "l1", 0.25)
    for criterion in ("l1", "l2"):
        found = irtool.plan(irtool.trace(copy.deepcopy(model).bfloat16(), X.bfloat16()), criterion, 0.25)
        assert [len(layer.removed) for layer in found.layers] == [len(layer.removed) for layer in wide.layers]


def test_weights_without_numbers_are_refused() -> None:
    with torch.device("meta"):
        model = Net(lambda net, x: net.head(net.a(x))).eval()
    graph = irtool.trace(model, X.to("meta"))
    for criterion in ("l1", "random"):
        with pytest.raises(PlanError, match="to_empty"):
            irtool.plan(graph, criterion, 0.5)


def test_a_blur_kernel_that_takes_its_type_from_the_activations() -> None:
    def function(net: Net, x: Tensor) -> Tensor:
        y = net.a(x).relu()
        return net.head(F.conv2d(y, net.kernel.to(y).expand(y.shape[1], -1, -1, -1), groups=y.shape[1]))

    graph = irtool.trace(make(function, kernel=torch.ones(1, 1, 3, 3) / 9), X)
    plan = irtool.plan(graph, "l1", 0.5, "local")
    assert irtool.check_prune(graph, plan).ok


def test_weights_standardised_in_forward() -> None:
    def function(net: Net, x: Tensor) -> Tensor:
        for conv in (net.a, net.b):
            weight = conv.weight - conv.weight.mean((1, 2, 3), keepdim=True)
            x = F.conv2d(x, weight, conv.bias, padding=1).relu()
        return net.head(x)

    graph = irtool.trace(make(function), X)
    found = irtool.check_prune(graph, irtool.plan(graph, "l1", 0.5, "local"))
    assert found.relative <= 1e-9
    assert found.inexact


def test_a_net_without_weights_is_checked() -> None:
    graph = irtool.trace(nn.Sequential(nn.ReLU()).eval(), X)
    assert irtool.check_prune(graph, irtool.plan(graph, "l1", 0.5)).ok


def test_inputs_that_the_model_does_not_take() -> None:
    graph = irtool.trace(make(lambda net, x: net.head(net.a(x))), X)
    with pytest.raises(GraphError, match="cannot run on these inputs"):
        irtool.check_prune(graph, irtool.plan(graph, "l1", 0.5), ({"x": X},))


def test_training_between_plans_reaches_the_selected_graph() -> None:
    model = irtool.models.PreResNet(20).eval()
    graph = irtool.trace(model, torch.zeros(1, 3, 32, 32))
    x = torch.randn(2, 3, 32, 32)
    irtool.plan(graph, "bn_scale", 0.5, residual="select")
    with torch.no_grad():
        for parameter in graph.module.parameters():
            parameter.mul_(1.1)
    sliced = irtool.prune(graph, irtool.plan(graph, "bn_scale", 0.0, residual="select"))
    torch.testing.assert_close(sliced.run(x), graph.run(x), rtol=1e-5, atol=1e-5)


def _moved(module: nn.Module) -> None:
    module.to(memory_format=torch.channels_last)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(3)


def _assigned(module: nn.Module) -> None:
    module.load_state_dict({key: held * 3 for key, held in module.state_dict().items()}, assign=True)


@pytest.mark.parametrize("exchange", [_moved, _assigned])
def test_tensors_that_the_user_exchanged_are_what_is_pruned(exchange: Callable[[nn.Module], None]) -> None:
    graph = irtool.trace(make(lambda net, x: net.head(net.b(net.a(x)))), X)
    exchange(graph.module)
    sliced = irtool.prune(graph, irtool.plan(graph, "l1", 0.0))
    torch.testing.assert_close(sliced.run(X), graph.run(X))


def test_means_are_those_after_a_write() -> None:
    """A statement `y.relu_()` changes what its own name stands for; absorbed constants must be those of the relu."""
    torch.manual_seed(0)
    bn = nn.BatchNorm2d(16)
    nn.init.normal_(bn.weight, std=0.01)
    nn.init.normal_(bn.bias)

    def stated(net: Net, x: Tensor) -> Tensor:
        y = net.bn(net.a(x))
        y.relu_()
        return net.head(y)

    def returned(net: Net, x: Tensor) -> Tensor:
        return net.head(net.bn(net.a(x)).relu())

    def through_a_view(net: Net, x: Tensor) -> Tensor:
        y = net.bn(net.a(x))
        y[:, :].relu_()
        return net.head(y)

    found = []
    for function in (stated, returned, through_a_view):
        graph = irtool.trace(make(function, bn=copy.deepcopy(bn)), X)
        plan = irtool.plan(graph, "bn_scale", 0.5)
        assert plan.removed
        assert irtool.check_prune(graph, plan, constants="absorb").ok
        found.append(irtool.Prune(plan, "absorb")(graph))
    first, second, third = (dict(done.graph.module.named_parameters())["head.bias"] for done in found)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(third, dict(graph.module.named_parameters())["head.bias"])  # unknown, and so dropped


def test_a_write_along_another_axis_keeps_no_channel() -> None:
    def function(net: Net, x: Tensor) -> Tensor:
        y = net.a(x)
        y[:, :, 0].mul_(2)
        y[0].add_(1)
        return net.head(y)

    graph = irtool.trace(make(function), X)
    plan = irtool.plan(graph, "l1", 0.5, "local")
    assert len(plan.layers[0].removed) == 8
    assert irtool.check_prune(graph, plan).ok


def test_large_and_small_weights_of_two_types_are_sliced_by_the_same_entries() -> None:
    """Large ones go a few rows at a time, through memory that all weights share."""
    sizes = (40, 700, 1500, 900, 30)
    layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    layers[1].double()
    net = nn.Sequential(*layers)
    graph = irtool.trace(net, torch.zeros(2, 40))
    plan = irtool.plan(graph, "random", 0.4, "local", round_to=1)
    pruned = irtool.prune(graph, plan, "drop").module
    kept = [torch.arange(40)]
    for layer, size in zip(plan.layers, sizes[1:], strict=False):
        kept.append(torch.tensor(sorted(set(range(size)) - set(layer.removed))))
    for index, (before, rows, columns) in enumerate(zip(layers, [*kept[1:4], torch.arange(30)], kept, strict=False)):
        after = pruned.get_submodule(str(index)).weight
        assert after.dtype == before.weight.dtype
        assert torch.equal(after, before.weight[rows][:, columns])
    assert [len(rows) for rows in kept[1:4]] == [420, 900, 540]
