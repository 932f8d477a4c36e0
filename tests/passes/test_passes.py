"""Passes: exact where they say so, refusing where they must, and never touching the caller's graph."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from random_norms import randomise
from torch import Tensor, nn
from torch.nn import functional

import irtool
from irtool.analysis.compare import difference
from irtool.errors import CheckError, OptionError
from irtool.models import PreResNet
from irtool.passmanager import REGISTRY, Rewritten, make

FOLDS = {
    "conv": (nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)), (2, 3, 8, 8)),
    "grouped": (nn.Sequential(nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6)), (2, 4, 8, 8)),
    "transposed": (nn.Sequential(nn.ConvTranspose2d(4, 6, 3, stride=2), nn.BatchNorm2d(6)), (2, 4, 5, 5)),
    "grouped transposed": (nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6)), (2, 4, 5, 5)),
    "1d": (nn.Sequential(nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6)), (2, 3, 9)),
    "3d": (nn.Sequential(nn.Conv3d(2, 4, 3), nn.BatchNorm3d(4)), (1, 2, 5, 5, 5)),
    "linear": (nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5)), (3, 7)),
}


@pytest.mark.parametrize("name", FOLDS)
def test_folding_is_exact(name: str) -> None:
    net, shape = FOLDS[name]
    graph = irtool.trace(randomise(net).eval(), torch.zeros(shape)).to(torch.float64)
    folded = irtool.fold_batchnorm(graph)
    x = torch.randn(shape, dtype=torch.float64)
    assert difference(graph.run(x), folded.run(x))[1] <= 1e-12
    assert [node.op for node in folded.nodes if node.op == "BatchNormalization"] == []
    assert [node.op for node in graph.nodes].count("BatchNormalization") == 1


class SharedConv(nn.Module):
    """Two batch norms behind one convolution: folding either into it would spoil the other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(self.conv(x)) + self.b(self.conv(x * 2))


class TwoReaders(SharedConv):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.a(y) + y


class NoStatistics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class Applied(nn.Module):
    """The pieces of a net whose batch norm is a function."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Arguments by name, which is where a new bias must go too."""
        return self.head(self.bn(functional.conv2d(x, weight=self.conv.weight)).relu())


class ComputedScale(Applied):
    def forward(self, x: Tensor) -> Tensor:
        bn = self.bn
        return self.head(functional.batch_norm(self.conv(x), bn.running_mean, bn.running_var, bn.weight * 2, bn.bias * 3))


class ByTheBatch(Applied):
    def forward(self, x: Tensor) -> Tensor:
        bn = self.bn
        return self.head(functional.batch_norm(self.conv(x), bn.running_mean, bn.running_var, bn.weight, bn.bias, True, 0.0))


class WrittenInPlace(Applied):
    """The batch norm's input is another one when the layer behind it runs."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = self.bn(y)
        y.relu_()
        return self.head(z) + y.mean()


@pytest.mark.parametrize(
    ("net", "why"),
    [
        (SharedConv, "the weight of conv is shared"),
        (TwoReaders, "conv has another reader"),
        (NoStatistics, "no running statistics"),
        (ComputedScale, "its weight and bias are computed"),
        (ByTheBatch, "own statistics in eval mode too"),
    ],
)
def test_what_cannot_be_folded_exactly_stays_and_says_why(net: type[nn.Module], why: str) -> None:
    graph = irtool.trace(randomise(net()).eval() if net is not NoStatistics else net(), torch.zeros(2, 3, 4, 4))
    result = irtool.FoldBatchNorm()(graph)
    assert not result.changed
    assert result.graph is graph
    assert any(why in note for note in result.notes)


@pytest.mark.parametrize(
    ("net", "why"),
    [
        (ComputedScale, "its weight and bias are computed"),
        (ByTheBatch, "own statistics in eval mode too"),
        (WrittenInPlace, "relu_, before head, may write over what it reads"),
    ],
)
def test_what_cannot_be_folded_forward_exactly_stays_and_says_why(net: type[nn.Module], why: str) -> None:
    graph = irtool.trace(randomise(net()).eval(), torch.zeros(2, 3, 4, 4))
    result = irtool.passes.FoldNormForward()(graph)
    assert not result.changed
    assert any(why in note for note in result.notes)


def test_a_new_bias_of_a_function_goes_by_its_name() -> None:
    graph = irtool.trace(randomise(Applied()).eval(), torch.zeros(2, 3, 4, 4))
    result = irtool.Pipeline([irtool.FoldBatchNorm()], check=True)(graph)
    assert result.notes == ("fold_batchnorm: 1 batch norms folded",)


class WrittenThroughAView(Applied):
    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        y[:, :].relu_()
        return self.head(y)


@pytest.mark.parametrize("net", [ComputedScale, WrittenThroughAView])
def test_means_that_the_stored_values_do_not_tell_are_unknown(net: type[nn.Module]) -> None:
    graph = irtool.trace(randomise(net()).eval(), torch.zeros(2, 3, 4, 4)).to(torch.float64)
    plan, x = irtool.plan(graph, "l1", 0.5), torch.randn(64, 3, 4, 4, dtype=torch.float64)
    without = irtool.Prune(plan)(graph)
    assert any("nothing tells the mean of what was removed before head" in note for note in without.notes)
    assert torch.equal(without.graph.module.head.bias, graph.module.head.bias)
    measured = irtool.prune(graph, plan, calibration=[x])
    torch.testing.assert_close(measured.run(x).mean((0, 2, 3)), graph.run(x).mean((0, 2, 3)), rtol=1e-9, atol=1e-9)


class TwoHeads(Applied):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).relu()
        return self.head(y) - self.other(y) * 2


def test_a_mean_that_two_layers_need_is_measured_once() -> None:
    torch.manual_seed(0)
    graph = irtool.trace(TwoHeads().eval(), torch.zeros(2, 3, 4, 4)).to(torch.float64)
    x = torch.randn(64, 3, 4, 4, dtype=torch.float64)
    small = irtool.prune(graph, irtool.plan(graph, "l1", 0.5), calibration=[x])
    torch.testing.assert_close(small.run(x).mean((0, 2, 3)), graph.run(x).mean((0, 2, 3)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: irtool.passes.Equalise(rounds=0), "rounds 0"),
        (lambda: irtool.passes.Equalise(rounds=1.5), "rounds 1.5"),
        (lambda: irtool.passes.WidenSelects(share="x"), "share 'x'"),
        (lambda: irtool.passes.WidenSelects(share=2), "share 2"),
    ],
)
def test_options_that_can_never_work(make: Callable[[], irtool.Pass], what: str) -> None:
    with pytest.raises(OptionError, match=what):
        make()


def test_selections_change_nothing_and_the_pipeline_checks_it() -> None:
    graph = irtool.trace(randomise(PreResNet(11, width=0.5)).eval(), torch.zeros(1, 3, 8, 8)).to(torch.float64)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    seen: list[str] = []
    pipeline = irtool.Pipeline(
        [irtool.InsertSelects(), irtool.FoldBatchNorm()], check_inputs=(x,), on_pass=lambda step, _: seen.append(step.name)
    )
    result = pipeline(graph)
    assert seen == ["insert_selects", "fold_batchnorm"]
    assert result.changed
    assert difference(graph.run(x), result.graph.run(x))[1] <= 1e-12


def test_a_pass_that_lies_about_being_exact_is_caught() -> None:
    class Lying(irtool.Pass):
        name = "lying"

        def rewrite(self, graph: irtool.FxGraph) -> Rewritten:
            return Rewritten(graph.clone(lambda tensor: tensor + 0.1 if tensor.is_floating_point() else tensor))

    graph = irtool.trace(nn.Conv2d(3, 4, 1), torch.zeros(1, 3, 4, 4))
    with pytest.raises(CheckError, match="the pass lying changed the outputs"):
        irtool.Pipeline([Lying()], check_inputs=(torch.randn(1, 3, 4, 4),))(graph)


def test_passes_are_made_by_name() -> None:
    assert set(REGISTRY) >= {"prune", "fold_batchnorm", "insert_selects"}
    assert make("fold_batchnorm") == irtool.FoldBatchNorm()
    with pytest.raises(OptionError, match=r"no pass is called 'fold'\. Passes are"):
        make("fold")
    with pytest.raises(OptionError, match="See the pass's fields"):
        make("fold_batchnorm", depth=3)


@pytest.mark.parametrize("residual", ["couple", "select", "keep"])
def test_residual_modes_are_right_and_pruning_leaves_the_original_alone(residual: str) -> None:
    net = randomise(PreResNet(20, width=0.5)).eval()
    graph = irtool.trace(net, torch.zeros(1, 3, 16, 16))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    plan = irtool.plan(graph, "bn_scale", 0.5, residual=residual)
    for constants in ("drop", "absorb"):
        assert irtool.check_prune(graph, plan, constants=constants).relative <= 1e-9
    smaller = irtool.prune(graph, plan)
    widths = {layer.name: layer.kept for layer in plan.layers}
    assert (widths["layer1.0.conv3"] == 32) == (residual != "couple")
    assert any(name.startswith("select") for name in widths) == (residual == "select")
    assert sum(p.numel() for p in smaller.module.parameters()) < sum(p.numel() for p in net.parameters())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_absorbing_a_constant_channel_without_padding_changes_nothing() -> None:
    """A channel with gamma 0 is exactly relu(beta): absorbed, the outputs are those of the original."""
    net = randomise(
        nn.Sequential(
            nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 2, 1)
        )
    ).eval()
    net[1].weight.data[:4] = 0
    net[4].weight.data[:2] = 0
    net[1].bias.data[:4] = torch.tensor([0.5, -0.3, 1.0, 0.1])
    graph = irtool.trace(net, torch.zeros(1, 3, 6, 6)).to(torch.float64)
    plan = irtool.plan(graph, "bn_scale", 0.4)
    x = torch.randn(3, 3, 6, 6, dtype=torch.float64)
    assert plan.removed == 6
    assert difference(graph.run(x), irtool.prune(graph, plan, "absorb").run(x))[1] <= 1e-12
    assert difference(graph.run(x), irtool.prune(graph, plan, "drop").run(x))[1] > 1e-3


def test_calibration_tells_where_no_batch_norm_does() -> None:
    torch.manual_seed(0)
    graph = irtool.trace(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1)), torch.zeros(1, 3, 6, 6))
    plan = irtool.plan(graph, "l1", 0.5, "local")
    data = torch.randn(64, 3, 6, 6)
    without, result = irtool.Prune(plan, "absorb")(graph), irtool.Prune(plan, "absorb", [data])(graph)
    assert any("nothing tells the mean" in note for note in without.notes)
    expected = graph.run(data).mean((0, 2, 3))
    assert (result.graph.run(data).mean((0, 2, 3)) - expected).abs().max() < 1e-5
    assert (without.graph.run(data).mean((0, 2, 3)) - expected).abs().max() > 1e-3


def test_a_wrong_choice_of_constants_is_refused() -> None:
    with pytest.raises(OptionError, match="Choose absorb or drop"):
        irtool.Prune(irtool.Plan(()), "keep")  # type: ignore[arg-type]


def test_a_pipeline_checks_in_float64_whatever_the_weights_are_stored_in() -> None:
    graph = irtool.trace(randomise(PreResNet(20)).eval(), torch.zeros(1, 3, 32, 32))  # float32: folded weights are rounded to 1e-8
    result = irtool.Pipeline([irtool.FoldBatchNorm()], check_inputs=(torch.randn(2, 3, 32, 32),))(graph)
    assert result.changed


def test_the_mean_of_a_part_of_a_split_is_measured() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.left, self.right = nn.Conv2d(3, 16, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            left, right = self.conv(x).relu().split(8, 1)
            return self.left(left) + self.right(right)

    torch.manual_seed(0)
    graph = irtool.trace(Parts().eval(), torch.zeros(2, 3, 6, 6)).to(torch.float64)
    plan, x = irtool.plan(graph, "l1", 0.5), torch.randn(32, 3, 6, 6, dtype=torch.float64)
    measured = irtool.prune(graph, plan, calibration=[x])
    torch.testing.assert_close(measured.run(x).mean((0, 2, 3)), graph.run(x).mean((0, 2, 3)), rtol=1e-9, atol=1e-9)
