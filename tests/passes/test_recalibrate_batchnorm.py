"""RecalibrateBatchNorm: statistics as torch would measure them, and refusals that say what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import irtool
from irtool.errors import DataError, GraphError, OptionError
from irtool.models import PreResNet
from irtool.passes import RecalibrateBatchNorm


class Functional(nn.Module):
    """Batch norms as a module, as a function, behind an operator that works in place, and one without affine values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=1e-3)
        self.register_buffer("mean", torch.full((4,), 0.7))
        self.register_buffer("var", torch.full((4,), 2.0))
        self.last = nn.BatchNorm2d(4, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu_(self.bn(self.conv(x)))
        y = functional.batch_norm(y + 1, self.mean, self.var)
        return self.last(y.add_(y))


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = PreResNet(11, width=0.25)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1, 1)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
    return model.eval()


NETS = {"preresnet": (net, (3, 16, 16)), "functional": (Functional, (3, 8, 8))}


def images(sizes: tuple[int, ...], count: int = 10) -> Tensor:
    return torch.randn(count, *sizes, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 + 1


def graph_of(name: str) -> irtool.FxGraph:
    make, sizes = NETS[name]
    return irtool.trace(make(), torch.zeros(2, *sizes)).to(torch.float64)


@pytest.mark.parametrize("cuts", [(3, 4, 3), (10,)], ids=["batches", "one batch"])
@pytest.mark.parametrize("name", NETS)
def test_exact_statistics_are_those_of_what_each_batch_norm_reads(name: str, cuts: tuple[int, ...]) -> None:
    graph, x = graph_of(name), images(NETS[name][1])
    result = RecalibrateBatchNorm([(part,) if index else part for index, part in enumerate(x.split(cuts))], "exact")(graph)
    seen = 0
    reads: dict[str, Tensor] = {}
    # The oracle is torch: run the result in eval mode, and measure what flows into each batch norm.
    for node in result.graph.nodes:
        if node.op == "BatchNormalization":
            reads[node.operands["running_mean"].name] = read_by(result.graph, node.name, x)
    for name_of, read in reads.items():
        var, mean = torch.var_mean(read, [0, 2, 3])
        node = next(n for n in result.graph.nodes if n.op == "BatchNormalization" and n.operands["running_mean"].name == name_of)
        torch.testing.assert_close(result.graph.params[name_of].data, mean, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(node.operands["running_var"].data, var, rtol=1e-9, atol=1e-9)
        seen += 1
    assert result.changed
    assert result.notes == (f"{seen} batch norms recalibrated",)


def read_by(graph: irtool.FxGraph, name: str, x: Tensor) -> Tensor:
    """Return the input of a node: torch.fx's own interpreter, stopped there."""
    kept: list[Tensor] = []

    class Watch(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            if n.name == name:
                kept.append(self.fetch_args_kwargs_from_env(n)[0][0].clone())
            return super().run_node(n)

    with torch.no_grad():
        Watch(graph.module.eval()).run(x.clone())
    return kept[0]


def test_pooled_statistics_are_those_of_training_mode() -> None:
    """One batch, momentum 1: torch's own training mode leaves the same statistics. The outputs then differ by n/(n-1) only."""
    graph, x = graph_of("preresnet"), images((3, 16, 16))
    found = RecalibrateBatchNorm([x])(graph).graph
    trained = graph.clone().module.train()
    for module in trained.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    trained(x)
    for name, buffer in trained.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            torch.testing.assert_close(found.module.get_buffer(name), buffer, rtol=1e-9, atol=1e-9)


def test_pooled_batches_count_by_their_images() -> None:
    """The first batch norm reads nothing normalised, so however the images are cut, its statistics are those of all of them."""
    graph, x = graph_of("functional"), images((3, 8, 8))
    parts = RecalibrateBatchNorm([x[:1], x[1:4], x[4:]])(graph).graph
    whole = RecalibrateBatchNorm([x])(graph).graph
    for name in ("bn.running_mean", "bn.running_var"):
        torch.testing.assert_close(parts.params[name].data, whole.params[name].data, rtol=1e-12, atol=1e-12)


def test_the_callers_graph_stays_and_weights_are_not_touched() -> None:
    graph, x = graph_of("preresnet"), images((3, 16, 16))
    before, text = {name: value.data.clone() for name, value in graph.params.items()}, graph.text()
    result = RecalibrateBatchNorm([x])(graph).graph
    assert result.text() == graph.text() == text  # golden: the program stays, only statistics change
    assert all(torch.equal(graph.params[name].data, data) for name, data in before.items())
    moved = {name for name, data in before.items() if not torch.equal(result.params[name].data, data)}
    assert moved == {name for name in before if "running" in name}
    assert result.history[-1] == {"step": "recalibrate_batchnorm", "method": "pooled"}


def test_a_pruned_and_recalibrated_net_goes_back_into_its_class(tmp_path) -> None:  # type: ignore[no-untyped-def]
    graph = irtool.trace(net(), torch.zeros(2, 3, 16, 16))
    small = irtool.prune(graph, irtool.plan(graph, "l1", 0.5))
    small = RecalibrateBatchNorm([images((3, 16, 16)).float()])(small).graph
    irtool.save(small, tmp_path / "net.safetensors")
    again = irtool.load(tmp_path / "net.safetensors", net(seed=5))
    x = images((3, 16, 16), 2).float()
    assert torch.equal(again.run(x), small.run(x))


class NoStatistics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(x)


def test_what_it_leaves_alone_and_refuses() -> None:
    bare = irtool.trace(NoStatistics().eval(), torch.zeros(2, 3, 4, 4))
    result = RecalibrateBatchNorm([torch.zeros(2, 3, 4, 4)])(bare)
    assert result.graph is bare
    assert result.notes == ("bn: it keeps no running statistics",)
    graph = graph_of("preresnet")
    with pytest.raises(OptionError, match=r"sample\(512\)"):
        RecalibrateBatchNorm([])(graph)
    with pytest.raises(OptionError, match="Choose pooled or exact"):
        RecalibrateBatchNorm([], "best")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="batches None hold no images"):
        RecalibrateBatchNorm(None)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="at least two images"):
        RecalibrateBatchNorm([torch.zeros(1, 3, 1, 1)])(irtool.trace(nn.BatchNorm2d(3).eval(), torch.zeros(2, 3, 1, 1)))
    with pytest.raises(GraphError, match="cannot run"):
        RecalibrateBatchNorm([torch.zeros(2, 5, 16, 16, dtype=torch.float64)])(graph)


@pytest.mark.parametrize("method", ["pooled", "exact"])
def test_a_file_is_recalibrated_as_the_model_is(method: str, tmp_path: Path) -> None:
    graph, x = graph_of("functional").to(torch.float32), images((3, 8, 8)).float()
    irtool.export_onnx(graph, tmp_path / "net.onnx")
    found = [RecalibrateBatchNorm(x.split(4), method)(one).graph for one in (graph, irtool.load_onnx(tmp_path / "net.onnx"))]  # type: ignore[arg-type]
    sides = [[node for node in one.nodes if node.op == "BatchNormalization"] for one in found]
    assert len(sides[0]) == len(sides[1]) == 3
    for one, other in zip(*sides, strict=True):
        for role in ("running_mean", "running_var"):
            torch.testing.assert_close(other.operands[role].data, one.operands[role].data, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["pooled", "exact"])
@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda x: x * torch.nan, "batch 1 gives values that are not finite"),
        (lambda x: x / 0, "batch 1 gives"),
        (lambda x: x[:0], "batch 1 is empty"),
    ],
)
def test_a_batch_that_gives_no_statistics_is_named(spoil: Callable[[Tensor], Tensor], what: str, method: str) -> None:
    graph, x = graph_of("preresnet"), images((3, 16, 16))
    with pytest.raises(OptionError, match=what):
        RecalibrateBatchNorm([x[:5], spoil(x[5:])], method)(graph)  # type: ignore[arg-type]


class Computed(Functional):
    """A batch norm whose scale is computed, before one that reads what it gives."""

    def forward(self, x: Tensor) -> Tensor:
        y = functional.batch_norm(self.conv(x), self.mean, self.var, self.bn.weight * 2)
        return self.last(self.bn(y))


def test_a_computed_scale_is_left_alone_and_works_on() -> None:
    graph = irtool.trace(Computed().eval(), torch.zeros(2, 3, 8, 8)).to(torch.float64)
    x = images((3, 8, 8))
    result = RecalibrateBatchNorm([x], "exact")(graph)
    assert result.notes == ("2 batch norms recalibrated", "batch_norm: its weight is computed")
    assert torch.equal(result.graph.params["mean"].data, graph.params["mean"].data)
    read = read_by(result.graph, "bn", x)
    torch.testing.assert_close(result.graph.params["bn.running_mean"].data, read.mean((0, 2, 3)), rtol=1e-9, atol=1e-9)


def test_statistics_that_two_share_are_not_exact_and_it_says_so() -> None:
    norm = nn.BatchNorm2d(3)
    graph = irtool.trace(nn.Sequential(norm, nn.ReLU(), norm).eval(), torch.zeros(2, 3, 4, 4))
    assert RecalibrateBatchNorm([torch.randn(4, 3, 4, 4)], "exact")(graph).notes[1:] == (
        "0.running_mean serves 2 batch norms: in use none reads quite what was measured",
    )


def test_images_that_say_nothing_are_refused_where_means_and_variances_are_measured() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    graph = irtool.trace(net, torch.zeros(2, 3, 8, 8))
    black = [torch.zeros(4, 3, 8, 8)] * 2
    with pytest.raises(DataError, match="all 8 images hold one value in every position, which says nothing about the net"):
        RecalibrateBatchNorm(black)(graph)
    with pytest.raises(DataError, match="all 8 images hold one value in every position"):
        irtool.prune(graph, irtool.plan(graph, "l1", 0.5), calibration=black)
