"""Errors by hand, where two graphs part, and that a run holds no more than it must."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from irtool.analysis.compare import FLOOR
from irtool.engines.compare import compare
from irtool.errors import CheckError, GraphError, OptionError
from irtool.hosts.torch.graph import FxGraph
from irtool.hosts.torch.running.interpreter import run_with
from irtool.hosts.torch.tracing.trace import trace

X = torch.ones(1)


def giving(*values: float) -> Any:
    return lambda x: torch.tensor(values)


def test_errors_by_hand() -> None:
    found = compare(giving(1.0, -4.0), giving(1.5, -3.0), X)
    assert (found.max_abs, found.relative, found.nonfinite) == (1.0, 0.25, 0)  # against 4, the largest of the reference
    assert compare(giving(1.5, -3.0), giving(1.0, -4.0), X).relative == pytest.approx(1 / 3)
    assert found.ok(0.25)
    assert not found.ok(0.2)


def test_zeros_are_measured_against_the_floor() -> None:
    assert compare(giving(0.0), giving(0.0), X).relative == 0
    assert compare(giving(0.0), giving(1e-9), X).relative == pytest.approx(1e-9 / FLOOR)


def test_each_output_has_its_own_scale() -> None:
    a, b = (
        (lambda x: (torch.tensor([100.0]), {"aux": [torch.tensor([1.0])]})),
        (lambda x: (torch.tensor([101.0]), {"aux": [torch.tensor([1.5])]})),
    )
    found = compare(a, b, X)
    assert [output.relative for output in found.outputs] == pytest.approx([0.01, 0.5])
    assert (found.max_abs, found.relative) == (1.0, 0.5)


def test_outputs_meet_by_path_not_by_order() -> None:
    a = lambda x: {"p": torch.tensor([1.0]), "q": torch.tensor([2.0])}  # noqa: E731
    b = lambda x: {"q": torch.tensor([2.0]), "p": torch.tensor([1.0])}  # noqa: E731
    assert compare(a, b, X).ok(0)


NAN, INF = float("nan"), float("inf")
NONFINITE = {
    "equal infinities agree": ((1.0, -INF), (1.0, -INF), 0.0, 0),
    "opposite infinities": ((1.0, INF), (1.0, -INF), INF, 1),
    "infinite in one": ((1.0, 2.0), (1.0, INF), INF, 1),
    "NaN in one": ((1.0, 2.0), (NAN, 2.0), INF, 1),
    "NaN in both shows nothing": ((1.0, NAN), (1.0, NAN), 0.0, 1),
}


@pytest.mark.parametrize(("a", "b", "largest", "count"), NONFINITE.values(), ids=NONFINITE.keys())
def test_not_finite(a: tuple[float, ...], b: tuple[float, ...], largest: float, count: int) -> None:
    found = compare(giving(*a), giving(*b), X)
    assert (found.max_abs, found.nonfinite, found.ok(1e9)) == (largest, count, count == 0)
    assert ("not finite" in found.text()) == bool(count)


def test_other_shapes_and_counts() -> None:
    found = compare(giving(1.0, 2.0), giving(1.0), X)
    assert not found.ok(1e9)
    assert "has shape (2,) against (1,)" in found.text()
    with pytest.raises(CheckError, match="Compare programs with the same outputs"):
        compare(lambda x: (x, x), lambda x: x, X)


class FakeSession:
    """A session as the engines have it."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def run(self, *arrays: np.ndarray) -> list[np.ndarray]:
        assert all(isinstance(array, np.ndarray) and array.dtype == np.float32 for array in arrays)
        with torch.no_grad():
            return [self.module(*map(torch.from_numpy, arrays)).numpy()]


def test_sessions_modules_graphs_and_arrays() -> None:
    model = net()
    x = torch.randn(2, 3, 8, 8)
    graph = trace(model, x)
    for other in (FakeSession(model), graph, model, model.forward):
        assert compare(model, other, x).ok(1e-6)
        assert compare(graph, other, x.numpy(), dtype=torch.float64).ok(1e-5)
    with pytest.raises(OptionError, match=r"Pass a graph, an nn\.Module, a session"):
        compare(model, 3, x)


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = OrderedDict[str, nn.Module]()
    for i, (a, b) in enumerate([(3, 6), (6, 6), (6, 4)]):
        layers[f"conv{i}"], layers[f"bn{i}"], layers[f"relu{i}"] = nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(inplace=True)
        nn.init.uniform_(layers[f"bn{i}"].running_var, 0.5, 2.0)  # type: ignore[arg-type]
        nn.init.normal_(layers[f"bn{i}"].running_mean, std=0.3)  # type: ignore[arg-type]
    return nn.Sequential(layers).eval()


def weight(graph: FxGraph, name: str) -> Tensor:
    data = graph.params[name].data
    assert data is not None
    return data


def test_first_diverging_node() -> None:
    x = torch.randn(2, 3, 8, 8)
    graph = trace(net(), x)
    assert compare(graph, graph.clone(), x).first() is None
    other = graph.clone()
    other.set_param("conv1.weight", weight(graph, "conv1.weight") * 1.01)
    found = compare(graph, other, x, dtype=torch.float64)
    first = found.first()
    assert first is not None
    assert (first.name, first.where) == ("conv1", "conv1")
    assert first.relative == pytest.approx(0.01, rel=0.2)  # the bias is as it was
    assert "differ at tolerance 1e-09" in found.text()
    assert "first diverging node conv1" in found.text()
    assert len(found.text().splitlines()) == 1


def folded(graph: FxGraph, factor: float = 1.0) -> FxGraph:
    """Batch norms folded by hand, with an error in the last one if `factor` is not 1."""
    new = graph.clone(lambda t: t.double() if t.is_floating_point() else t.clone())
    for i in range(3):
        conv, bn = new.module.get_submodule(f"conv{i}"), new.module.get_submodule(f"bn{i}")
        scale = bn.weight / (bn.running_var + bn.eps).sqrt() * (factor if i == 2 else 1.0)
        conv.bias.data = (conv.bias - bn.running_mean) * scale + bn.bias
        conv.weight.data = conv.weight * scale[:, None, None, None]
        host = next(node for node in new.module.graph.nodes if node.name == f"bn{i}")
        host.replace_all_uses_with(host.args[0])
        new.module.graph.erase_node(host)
    new.module.recompile()
    new.refresh()
    return new


def test_a_folded_convolution_is_not_blamed() -> None:
    x = torch.randn(2, 3, 8, 8)
    graph = trace(net(), x)
    found = compare(graph, folded(graph), x, dtype=torch.float64)
    assert found.ok(1e-12)
    assert found.first() is None
    assert {node.name for node in found.nodes if node.relative > 1e-3} == {"conv0", "conv1", "conv2"}
    broken = compare(graph, folded(graph, factor=1.1), x, dtype=torch.float64)
    first = broken.first()
    assert first is not None
    assert first.name == "conv2"


class Branches(nn.Module):
    """Two branches; `swap` computes them in the other order."""

    def __init__(self, swap: bool) -> None:
        super().__init__()
        self.swap = swap
        torch.manual_seed(0)
        self.left, self.right, self.lrelu, self.rrelu = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        if self.swap:
            right = self.rrelu(self.right(x))
            return self.lrelu(self.left(x)) + right
        left = self.lrelu(self.left(x))
        return left + self.rrelu(self.right(x))


@pytest.mark.parametrize("swap", [(False, True), (True, False)])
def test_nodes_in_another_order_with_work_in_place(swap: tuple[bool, bool]) -> None:
    x = torch.randn(2, 3, 5, 5)
    a, b = (trace(Branches(one), x) for one in swap)
    found = compare(a, b, x)
    assert found.ok(0)
    assert {node.name: node.max_abs for node in found.nodes} == dict.fromkeys(["x", "left", "lrelu", "right", "rrelu", "add"], 0.0)
    assert [node.name for node in found.nodes] == [node.name for node in a.nodes if node.op != "Output"]


def test_removed_channels_are_skipped_and_said_so() -> None:
    x = torch.randn(1, 3, 4, 4)
    a, b = (trace(nn.Sequential(OrderedDict(c=nn.Conv2d(3, n, 1), d=nn.Conv2d(n, 2, 1))), x) for n in (5, 4))
    found = compare(a, b, x)
    assert found.skipped == ("c",)
    first = found.first()
    assert first is not None
    assert first.name == "d"
    assert "1 nodes of other shapes not compared" in found.text()


class Narrow(nn.Module):
    """Writes a type into the program, in three ways."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.float().to(torch.float32)) + torch.zeros(8, dtype=torch.float32)


def test_float64_is_float64_throughout() -> None:
    x = torch.randn(4, 8, dtype=torch.float64)
    model = Narrow().eval()
    graph = trace(model, x.float())
    exact = x @ model.fc.weight.double().T + model.fc.bias.double()
    result = run_with(graph, (x,), dtype=torch.float64)
    assert result.dtype == torch.float64
    assert (result - exact).abs().max() < 1e-14
    assert model.fc.weight.dtype == torch.float32


def test_hook_masks_channels() -> None:
    x = torch.randn(2, 3, 8, 8)
    model = net()
    graph = trace(model, x)
    seen = []

    def mask(node: Any, host: Any, value: Any) -> Any:
        seen.append(None if node is None else node.op)
        return value * torch.tensor([1.0, 0, 1, 0, 1, 1])[:, None, None] if node is not None and node.name == "conv0" else value

    result = run_with(graph, (x,), mask)
    with torch.no_grad():
        for parameter in (model.conv0.weight, model.conv0.bias):
            parameter[[1, 3]] = 0
        expected = model(x)
    assert torch.equal(result, expected)
    assert seen == ["Input", *["Conv", "BatchNormalization", "Relu"] * 3]


def test_a_run_frees_what_it_no_longer_needs() -> None:
    graph = trace(nn.Sequential(*(nn.Linear(4, 4) for _ in range(30))), torch.zeros(1, 4))
    refs: list[weakref.ref[Tensor]] = []
    alive = []

    def watch(node: Any, host: Any, value: Tensor) -> Tensor:
        refs.append(weakref.ref(value))
        alive.append(sum(ref() is not None for ref in refs))
        return value

    run_with(graph, (torch.zeros(1, 4),), watch)
    assert len(alive) == 31
    assert max(alive) == 2


def test_modes_and_inputs_stay_as_they_were() -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Dropout(0.5), nn.BatchNorm1d(4))
    model.train()
    model[2].eval()
    x = -torch.ones(2, 4)
    graph = trace(model, x)
    before = model[2].running_mean.clone()
    assert compare(graph, model, x).ok(0)
    assert torch.equal(x, -torch.ones(2, 4))
    assert torch.equal(model[2].running_mean, before)
    assert [child.training for child in graph.module.children()] == [True, True, False]
    assert [child.training for child in model] == [True, True, False]


class Several(nn.Module):
    def forward(self, pair: tuple[Tensor, Tensor]) -> dict[str, Any]:
        first, second = torch.split(pair[0] + pair[1], 2)
        return {"first": first, "rest": (second, second.sum())}


@pytest.mark.parametrize("tracer", ["symbolic", "export"])
def test_structures_of_inputs_and_outputs(tracer: str) -> None:
    from irtool.hosts.torch.tracing.state.sandbox import TraceNotes
    from irtool.hosts.torch.tracing.trace import TRACERS

    given = ((torch.arange(4.0), torch.ones(4)),)
    graph = FxGraph(TRACERS[tracer](Several(), given, (), TraceNotes()), given)
    result = run_with(graph, given)
    assert result["first"].tolist() == [1, 2]
    assert (result["rest"][0].tolist(), result["rest"][1].item()) == ([3, 4], 7)
    assert compare(Several(), graph, given).ok(0)


def test_wrong_inputs_name_the_node_and_the_remedy() -> None:
    graph = trace(net(), torch.zeros(1, 3, 8, 8))
    with pytest.raises(GraphError, match=r"conv0: cannot run.*Pass inputs of the sizes"):
        run_with(graph, (torch.zeros(1, 5, 8, 8),))
    with pytest.raises(GraphError, match="Pass one for each argument"):
        run_with(graph, ())
