"""Sizes and positions that a program states are rewritten by one rule an operator, whichever host it lies on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_nets
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import irtool
from irtool.engines import export_onnx
from irtool.ir.attributes import shown
from irtool.ir.graph import Node
from irtool.ir.sizes import Sizes
from irtool.nests import tensors_in
from irtool.ops import spec
from irtool.ops.facets import resize
from irtool.pruning.slicing.check import check_prune

Operator = Callable[[Tensor], Any]
SIDE = 6
SIZED = {op for op, row in spec.SPECS.items() if row.resize is not resize.nothing} - {"Constant"}
"""Operators that state sizes."""


class Between(nn.Module):
    """An operator between two convolutions; 16 channels go in."""

    def __init__(self, operator: Operator) -> None:
        super().__init__()
        self.conv, self.operator = nn.Conv2d(3, 16, 3, padding=1), operator
        made = operator(torch.zeros(2, 16, SIDE, SIDE))
        self.head = nn.Conv2d(made.shape[1], 4, 1) if made.dim() == 4 else nn.Linear(made.shape[-1], 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.operator(self.conv(x).relu()))


class Selected(nn.Module):
    """Channels in another order, one twice, some not at all."""

    index: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("index", torch.tensor([3, 1, 15, 7, 7, 0, 14, 9]))

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.index)


def mixed_parts(x: Tensor) -> Tensor:
    first, second, third = x.split([3, 9, 4], 1)
    return torch.cat([third, first.sigmoid(), second], 1)


def shuffled(x: Tensor) -> Tensor:
    return x.view(-1, 4, 4, SIDE, SIDE).transpose(1, 2).reshape(-1, 16, SIDE, SIDE)


CASES: dict[str, Operator] = {
    "a view to rows": lambda x: x.view(-1, 16 * SIDE * SIDE),
    "a shuffle in literals": shuffled,
    "uneven parts": mixed_parts,
    "even parts": lambda x: torch.cat(x.split([4, 4, 4, 4], 1)[::-1], 1),
    "a cut": lambda x: x[:, 2:13],
    "a cut to the end": lambda x: x[:, 5:],
    "a cut from the end": lambda x: x[:, -7:-1],
    "every other channel": lambda x: x[:, ::2],
    "narrow": lambda x: x.narrow(1, 4, 6),
    "a constant index": Selected(),
    "zeros before and after channels": lambda x: F.pad(x, (0, 0, 0, 0, 3, 2)),
    "padding of two axes": lambda x: F.pad(x, (1, 0, 0, 0, 3, 2)),
    "a depthwise convolution": nn.Conv2d(16, 32, 3, groups=16),
    "whole groups of a convolution": nn.Sequential(nn.Conv2d(16, 16, 3, groups=4), nn.Conv2d(16, 16, 1, groups=4)),
    "a transposed depthwise convolution": nn.ConvTranspose2d(16, 16, 3, groups=16),
    "a layer norm over channels": lambda x: F.layer_norm(x.flatten(2).transpose(1, 2), (16,)),
    "one place as large as others": lambda x: x.mean((2, 3), keepdim=True).expand(-1, 16, SIDE, SIDE) + x,
}


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Answers of the rules, with the operator, in the order in which they are asked."""
    found: list[tuple[str, Any]] = []

    def heard(op: str, rule: resize.Rule) -> resize.Rule:
        def asked(node: Node, sizes: Sizes) -> Any:
            new = rule(node, sizes)
            if any(node.attrs.get(name) != value for name, value in _plain(new).items()):
                found.append((op, _plain(new)))
            return new

        return asked

    for op, row in spec.SPECS.items():
        if row.resize is not resize.nothing:
            monkeypatch.setitem(spec.SPECS, op, replace(row, resize=heard(op, row.resize)))
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value.tolist() if isinstance(value, np.ndarray) else value


def both(net: nn.Module, path: Path) -> list[Any]:
    """A net through both hosts."""
    graph = irtool.trace(net.eval(), torch.zeros(2, 3, SIDE, SIDE))
    export_onnx(graph, path, verify=False)
    return [graph, irtool.load_onnx(path, {"input": (2, 3, SIDE, SIDE)})]


def only(results: Any) -> Tensor:
    """The one tensor of a program's results."""
    (found,) = tensors_in(results)
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_program_and_its_export_get_the_same_new_attributes(name: str, answers: list[tuple[str, Any]], tmp_path: Path) -> None:
    torch.manual_seed(0)
    said, removed, results, states = [], [], [], []
    x = torch.randn(2, 3, SIDE, SIDE)
    for graph in both(Between(CASES[name]), tmp_path / "net.onnx"):
        plan = irtool.plan(graph, "l1", 0.4)
        answers.clear()
        pruned = irtool.prune(graph, plan)
        said.append([one for one in answers if one[0] != "Slice"])  # torch reads entries from the call
        removed.append([layer.removed for layer in plan.layers])
        results.append(only(pruned.run(x)))
        states.append([(node.op, shown(node.attrs), node.output.shape) for node in pruned.nodes if node.op in SIZED])
        check_prune(graph, plan)
    assert any(removed[0])
    assert removed[0] == removed[1]
    assert said[0] == said[1]
    assert states[0] == states[1]
    assert states[0]
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


def test_entries_between_which_no_even_steps_lead_are_gathered(tmp_path: Path) -> None:
    """Three slices by threes, of whose channels different ones go."""
    torch.manual_seed(0)
    shapes = []
    for graph in both(Between(lambda x: torch.cat([x[:, ::3], x[:, 1::3], x[:, 2::3]], 1)), tmp_path / "net.onnx"):
        weight = next(
            value for name, value in graph.params.items() if value.data is not None and value.data.dim() == 4 and "head" not in name
        )
        assert weight.data is not None
        data = weight.data.clone()
        data[[0, 4, 6, 7, 9]] *= 1e-3
        graph.set_param(weight.name, data)
        graph.commit()
        plan = irtool.plan(graph, "l1", 0.32)
        assert plan.layers[0].removed == (0, 4, 6, 7, 9)
        check_prune(graph, plan)
        shapes.append([node.output.sizes[1] for node in irtool.prune(graph, plan).nodes if node.op in ("Slice", "Gather")])
    assert shapes == [[3, 3, 5], [3, 3, 5]]


class Computed(nn.Module):
    """Layers whose groups are computed from their channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 4, 1)
        self.weight = nn.Parameter(torch.randn(32, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = F.conv2d(x, self.weight, None, 1, 0, 1, x.size(1) // 8)
        return self.head(F.group_norm(x, num_groups=x.size(1) // 8).relu())


def test_groups_that_are_computed_from_channels_stay_as_many() -> None:
    torch.manual_seed(0)
    graph = irtool.trace(Computed().eval(), torch.zeros(2, 3, SIDE, SIDE))
    plan = irtool.plan(graph, "l1", 0.5)
    pruned = irtool.prune(graph, plan)
    found = {node.op: node for node in pruned.nodes if node.attrs.get("group", node.attrs.get("num_groups", 1)) > 1}
    assert found["Conv"].attrs["group"] == 4
    assert found["GroupNormalization"].attrs["num_groups"] == 4
    assert found["Conv"].input.sizes[1] < 32
    assert found["GroupNormalization"].input.sizes[1] < 32
    check_prune(graph, plan)


class Unbound(nn.Module):
    """Takes apart the last axis, and a norm over sizes that are computed one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Conv1d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = F.layer_norm(x, [x.size(1), x.size(2), x.size(3)])
        first, *_, last = x.unbind(-1)
        return self.head(first + last)


def test_parts_without_their_axis_and_sizes_of_other_axes_stay_as_they_are() -> None:
    graph = irtool.trace(Unbound().eval(), torch.zeros(2, 3, SIDE, SIDE))
    plan = irtool.plan(graph, "l1", 0.5)
    assert plan.layers[0].removed
    pruned = irtool.prune(graph, plan)
    check_prune(graph, plan)
    x = torch.randn(2, 3, SIDE + 2, SIDE)
    assert only(pruned.run(x)).shape == only(graph.run(x)).shape


def test_padding_of_listed_axes_has_fewer_channels(tmp_path: Path) -> None:
    """Since operator set 18 a Pad may list the axes that it widens."""
    net = onnx_nets.Net(18)
    x = net.cbr("x", 3, 12)
    wide = net.op("Pad", x, net.const([2, 0, 4, 0]), "", net.const([1, 3]))
    x = net.op("Add", wide, net.cbr(x, 12, 18))
    onnx.save(net.model(net.head(net.cbr(x, 18, 8), 8)), tmp_path / "net.onnx")
    graph = irtool.load_onnx(tmp_path / "net.onnx")
    plan = irtool.plan(graph, "l1", 0.6)
    padded = next(node for node in irtool.prune(graph, plan).nodes if node.op == "Pad")
    pads = padded.attrs["pads"]
    assert pads[1] + pads[5] < 6
    assert padded.input.sizes[1] < 12
    assert padded.output.sizes[1] == padded.input.sizes[1] + pads[1] + pads[5]
    check_prune(graph, plan)


CUTS: tuple[tuple[tuple[int | None, int | None, int], list[int], tuple[int, int | None, int] | list[int]], ...] = (
    ((2, 5, 1), [0, 2, 3, 7], (1, 3, 1)),
    ((0, 8, 1), [0, 2, 3, 7], (0, 4, 1)),
    ((5, None, 1), [0, 2, 3, 7], (3, None, 1)),
    ((0, None, 2), [0, 2, 4, 6], (0, None, 1)),
    ((0, None, 2), [0, 1, 2, 3, 4], (0, None, 2)),
    ((0, None, 2), [0, 2, 4, 5, 7], (0, 3, 1)),
    ((0, None, 2), [0, 1, 2, 4], [0, 2, 3]),
    ((-1, None, -1), [0, 2, 3, 7], (3, None, -1)),
    ((5, 1, -2), [1, 3, 4, 5], (3, 0, -2)),
    ((4, 6, 1), [0, 1, 2], (0, 0, 1)),
    ((None, None, 3), [3, 4, 5], (0, 1, 1)),
)


@pytest.mark.parametrize(("given", "kept", "expected"), CUTS)
def test_a_cut_takes_the_entries_that_stay(
    given: tuple[int | None, int | None, int], kept: list[int], expected: tuple[int, int | None, int] | list[int]
) -> None:
    found = resize.cut(*given, 8, np.array(kept))
    assert _plain(found) == expected
    taken = np.array(kept)[found if isinstance(found, np.ndarray) else slice(*found)]
    assert taken.tolist() == [entry for entry in np.arange(8)[slice(*given)] if entry in kept]


def test_a_norm_without_weights_states_the_channels_that_are_left(recwarn: pytest.WarningsRecorder) -> None:
    norm = nn.InstanceNorm2d(16)
    graph = irtool.trace(nn.Sequential(nn.Conv2d(3, 16, 3), norm, nn.ReLU(), nn.Conv2d(16, 4, 1)).eval(), torch.rand(1, 3, SIDE, SIDE))
    small = irtool.prune(graph, irtool.plan(graph, "l1", ratio=0.5))
    small.module(torch.rand(2, 3, SIDE, SIDE))
    left = [part.num_features for part in small.module.modules() if isinstance(part, nn.InstanceNorm2d)]
    assert left == [8]
    assert norm.num_features == 16
    assert not [warning for warning in recwarn if "num_features" in str(warning.message)]
