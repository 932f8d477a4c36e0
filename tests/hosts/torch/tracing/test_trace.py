"""Tracing: three tries, parts of a whole, flags that were frozen, and models that cannot be traced."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import irtool
from irtool.errors import TraceError
from irtool.hosts.torch.tracing.trace import SymbolicTracer

IMAGE = torch.zeros(2, 3, 8, 8)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.relu(self.conv1(x)))


class Branches(Plain):
    """Python control flow on shapes: only values can resolve it."""

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x[:, :, : x.shape[2] // 2] if x.shape[2] > 4 else x


class Dependent(Plain):
    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x * 2 if bool(x.sum() > 0) else x


class Functional(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = F.batch_norm(x, self.bn.running_mean, self.bn.running_var, self.bn.weight, self.bn.bias, self.training)
        return self.conv2(F.dropout(x, 0.5, self.training))


class Detector(nn.Module):
    """Boxes that depend on the data around a backbone that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = Plain(), nn.Linear(4, 2)
        self.backbone.stride = 1

    def forward(self, x: Tensor) -> Tensor:
        features = self.backbone(x) * self.backbone.stride
        found = features.mean((2, 3))
        return self.head(found[found[:, 0] > -1e9])


@pytest.mark.parametrize(("model", "tracer"), [(Plain, "symbolic"), (Branches, "concrete")])
def test_the_tracer_that_served_is_named_and_agrees(model: type[nn.Module], tracer: str) -> None:
    net = model().eval()
    graph = irtool.trace(net, IMAGE)
    x = torch.randn(2, 3, 8, 8)
    assert graph.tracer == tracer
    assert torch.equal(graph.run(x), net(x))


def test_tracing_shares_weights_and_leaves_the_model_alone() -> None:
    net = Plain().train()
    graph = irtool.trace(net, IMAGE)
    assert graph.module.conv1.weight is net.conv1.weight
    assert net.training


def test_data_dependent_control_flow_names_the_line_and_the_remedy() -> None:
    with pytest.raises(TraceError, match=r"test_trace.py:\d+.*leaf=, or trace the part before it"):
        irtool.trace(Dependent(), IMAGE)


def test_the_line_is_found_wherever_the_user_keeps_it(tmp_path: Path) -> None:
    folder = tmp_path / "torch" / "irtool"
    folder.mkdir(parents=True)
    code = "\n\n".join(map(inspect.getsource, (Plain, Dependent)))
    (folder / "mine.py").write_text(f"import torch.nn.functional as F\nfrom torch import Tensor, nn\n\n\n{code}")
    spec = importlib.util.spec_from_file_location("mine", folder / "mine.py")
    assert spec is not None
    assert spec.loader is not None
    mine = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mine)
    with pytest.raises(TraceError, match=r"mine.py:\d+.*leaf=, or trace the part before it"):
        irtool.trace(mine.Dependent(), IMAGE)


class Called(nn.Module):
    """Functions, methods, operators and properties of tensors, called in each of the ways that Python has."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([x, torch.relu(x)], dim=1)
        y = y.add(1.0) + torch.add(input=y, other=y)
        z = F.gelu(torch.split(y, 2, 1)[0]).transpose(2, 3)
        return torch.stack((z, z.mT)).mean(0).flatten(1) * F.adaptive_avg_pool2d(y, 1).sum()


def test_calls_are_recorded_as_torch_records_them() -> None:
    own, theirs = (
        [(node.op, node.target, node.name, str(node.args), str(node.kwargs)) for node in tracer.trace(Called()).nodes]
        for tracer in (SymbolicTracer(given=1), torch.fx.Tracer())
    )
    assert own == theirs
    assert {op for op, *_ in own} >= {"call_function", "call_method"}
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(irtool.trace(Called(), IMAGE).run(x), Called()(x))


@pytest.mark.parametrize("wrong", [torch.zeros(2, 5, 8, 8), torch.zeros(2, 3)])
def test_inputs_that_the_model_refuses_are_an_error_with_a_remedy(wrong: Tensor) -> None:
    with pytest.raises(irtool.errors.IrtoolError, match="the model does not run on the example"):
        irtool.trace(Plain(), wrong)


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(TraceError, match="Load the weights into an instance"):
        irtool.trace({"weight": torch.zeros(1)}, IMAGE)  # type: ignore[arg-type]


def test_frozen_training_flags_are_mended() -> None:
    net = Functional().train()
    graph = irtool.trace(net, IMAGE)
    before = graph.module.bn.running_mean.clone()
    x = torch.randn(4, 3, 8, 8)
    graph.module.train()
    assert not torch.equal(graph.module(x), graph.module(x))  # dropout draws anew
    assert not torch.equal(graph.module.bn.running_mean, before)
    graph.module.eval()
    assert torch.equal(graph.module(x), graph.module(x))


def test_a_named_leaf_is_a_barrier_with_a_reason() -> None:
    graph = irtool.trace(nn.Sequential(Plain(), nn.Conv2d(4, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1)), IMAGE, leaf=["0"])
    assert [node.callee for node in graph.nodes if node.op == "Opaque"] == ["Plain"]
    assert irtool.plan(graph, ratio=0.5).removed == 3


def test_a_part_is_traced_within_the_whole_and_put_back() -> None:
    model = Detector().eval()
    graph = irtool.trace(model, IMAGE, within="backbone")
    smaller = irtool.prune(graph, irtool.plan(graph, ratio=0.5), "drop")
    whole = irtool.put_back(model, "backbone", smaller)
    assert whole.backbone.conv1.weight.shape[0] == 4
    assert model.backbone.conv1.weight.shape[0] == 8
    assert whole(torch.randn(2, 3, 8, 8)).shape == (2, 2)


@pytest.mark.parametrize(("path", "remedy"), [("neck", "Its parts are backbone, head"), ("head.extra", "Its parts are")])
def test_a_part_that_does_not_exist_is_an_error(path: str, remedy: str) -> None:
    with pytest.raises(TraceError, match=remedy):
        irtool.trace(Detector(), IMAGE, within=path)


@pytest.mark.parametrize(
    ("wrap", "remedy"),
    [
        (nn.utils.parametrizations.spectral_norm, "remove_parametrizations"),
        (nn.utils.parametrizations.weight_norm, "remove_parametrizations"),
        (nn.utils.spectral_norm, "remove_spectral_norm"),
    ],
)
def test_computed_weights_are_refused_with_the_remedy(wrap: object, remedy: str) -> None:
    net = Plain()
    wrap(net.conv1)  # type: ignore[operator]
    with pytest.raises(TraceError, match=f"conv1.*{remedy}"):
        irtool.trace(net, IMAGE)


def test_the_text_form_is_stable_and_shows_shapes() -> None:
    text = irtool.trace(Plain(), IMAGE).text()
    assert text == irtool.trace(Plain(), IMAGE).text()
    assert text.splitlines()[0] == "input  %input:2x3x8x8"
    assert "%conv1:2x8x8x8 = Conv(%input, @conv1.weight:8x3x3x3, @conv1.bias:8)" in text


def test_a_program_of_torch_export_is_asked_for_as_a_module() -> None:
    program = torch.export.export(Plain().eval(), (IMAGE,))
    with pytest.raises(
        TraceError, match=r"got ExportedProgram. Trace the module that was exported.* or torch.nn.Sequential\(program.module\(\)\)"
    ):
        irtool.trace(program, IMAGE)  # type: ignore[arg-type]
    graph = irtool.trace(nn.Sequential(program.module()), IMAGE)
    assert irtool.check_prune(graph, irtool.plan(graph, ratio=0.5)).ok
