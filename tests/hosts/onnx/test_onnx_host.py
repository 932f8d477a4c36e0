"""The ONNX host: the same planning, slicing, folding and checking over .onnx files, with onnxruntime as the judge."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnx_judge import in_onnxruntime, real, relative
from onnx_nets import MIXING, NETS, Net, randomised
from onnxruntime import quantization
from torch import nn

import irtool
from irtool.errors import CheckError, IrtoolError, OptionError, PlanError
from irtool.hosts.onnx.files.load import from_model
from irtool.passmanager import Rewritten
from irtool.pruning.slicing.masked import masked_run
from irtool.pruning.slicing.plan_slicing import find_slicing

REAL = ["basic_pitch_nmp", "light_densenet121", "light_inception_v1", "light_resnet50", "light_shufflenet", "light_squeezenet", "mtcnn_pnet", "mtcnn_rnet",
        "ppocr_cls_mobilenetv3", "ppocr_v4_det", "super_resolution_opset11", "ultraface_rfb_320", "yunet_n_320"]  # fmt: skip


@pytest.mark.parametrize("ratio", [0.3, 0.6])
@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("name", NETS)
def test_sliced_equals_masked(name: str, scope: str, ratio: float, tmp_path: Path) -> None:
    model = NETS[name]()
    graph = from_model(model)
    plan = irtool.plan(graph, "l1", ratio, scope)
    check = irtool.check_prune(graph, plan)
    assert check.ok
    assert not check.unresolved
    assert plan.removed > 0
    smaller = irtool.prune(graph, plan, constants="drop")
    size = irtool.save_onnx(smaller, tmp_path / "small.onnx")
    assert size == os.path.getsize(tmp_path / "small.onnx")
    assert irtool.cost(smaller).params < irtool.cost(graph).params
    x = np.random.default_rng(1).normal(size=graph.inputs[0].sizes).astype(np.float32)
    slicing = find_slicing(graph, plan)
    masked = masked_run(graph, slicing.labels, torch.from_numpy(slicing.keep), (torch.from_numpy(x),), survivors=True).outputs[0].numpy()
    assert relative(masked, in_onnxruntime(tmp_path / "small.onnx", x)[0]) <= 1e-5
    if name != "selected":  # its lowest channels are those that nobody reads
        assert relative(masked, in_onnxruntime(model.SerializeToString(), x)[0]) > 1e-4  # the mask does something


@pytest.mark.parametrize("name", NETS)
def test_absorbed_constants_are_what_the_layers_make_of_them(name: str) -> None:
    graph = from_model(NETS[name]())
    check = irtool.check_prune(graph, irtool.plan(graph, "l1", 0.5, "local"), constants="absorb")
    assert check.relative <= 1e-5


@pytest.mark.parametrize("name", NETS)
def test_fold_batchnorm(name: str, tmp_path: Path) -> None:
    model = NETS[name]()
    graph = from_model(model)
    folded = irtool.fold_batchnorm(graph)
    assert not [node for node in folded.nodes if node.op == "BatchNormalization"]
    irtool.save_onnx(folded, tmp_path / "folded.onnx")
    x = np.random.default_rng(2).normal(size=graph.inputs[0].sizes).astype(np.float32)
    assert relative(in_onnxruntime(model.SerializeToString(), x)[0], in_onnxruntime(tmp_path / "folded.onnx", x)[0]) <= 1e-5


def test_free_axes_names_and_metadata_survive(tmp_path: Path) -> None:
    model = NETS["flatten_by_shape"]()
    graph = from_model(model)
    irtool.save_onnx(irtool.prune(graph, irtool.plan(graph, "l1", 0.5)), tmp_path / "a.onnx")
    saved = onnx.load(tmp_path / "a.onnx")
    assert saved.graph.input == model.graph.input
    assert saved.graph.output == model.graph.output
    assert saved.metadata_props == model.metadata_props
    for batch in (1, 3):
        assert in_onnxruntime(tmp_path / "a.onnx", np.ones((batch, 3, 6, 6), np.float32))[0].shape == (batch, 5)


@pytest.mark.parametrize("name", ["shape_chain", "halves_by_shape", "upsampled", "mobile", "tiled"])
def test_another_batch_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    """Sizes that became numbers are those of channels, never those of the example."""
    graph = from_model(NETS[name]())
    irtool.save_onnx(irtool.prune(graph, irtool.plan(graph, "l1", 0.5)), tmp_path / "a.onnx")
    x = np.random.default_rng(0).normal(size=(3, 3, 12, 12)).astype(np.float32)
    rows = [in_onnxruntime(tmp_path / "a.onnx", x[i : i + 1])[0] for i in range(3)]
    assert relative(np.concatenate(rows), in_onnxruntime(tmp_path / "a.onnx", x)[0]) <= 1e-5


def test_calibration_means_are_measured(tmp_path: Path) -> None:
    """With data the constant is the mean of what was removed: the first layer's output is then right on average."""
    n = Net()
    graph = from_model(n.model(n.head(n.conv(n.op("Relu", n.conv("x", 3, 16)), 16, 8, 1), 8)))
    plan = irtool.plan(graph, "l1", 0.5, ignore=["Conv_7"])
    x = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    full = graph.run(x)[0]
    errors = [
        float((irtool.prune(graph, plan, how, data).run(x)[0].mean(0) - full.mean(0)).abs().max())
        for how, data in (("drop", None), ("absorb", [x]))
    ]
    assert errors[1] < 1e-5 < errors[0]


def test_shared_weights_are_pruned_together() -> None:
    graph = from_model(NETS["shared"]())
    readers = [node for node in graph.nodes if node.op == "Conv" and node.operands["weight"].sizes == (8, 8, 3, 3)]
    assert len(readers) == 2
    assert readers[0].operands["weight"] is readers[1].operands["weight"]


def test_barriers_say_why() -> None:
    graph = from_model(NETS["branching"]())
    reasons = [layer.reason for layer in irtool.plan(graph, "l1", 0.5).layers]
    assert any(reason.startswith("flows into If") for reason in reasons)
    groups = irtool.channel_groups(from_model(NETS["recurrent"]()))
    assert "a recurrent layer ties its gates together" in groups.explain("Conv_11")


def test_ignore_and_text() -> None:
    graph = from_model(NETS["residual"]())
    plan = irtool.plan(graph, "l1", 0.5, ignore=["Conv_2"])
    assert plan.layers[0].removed == ()
    assert "%conv:1x16x12x12 = Conv(%input, @const_1:16x3x3x3)" in graph.text()
    with pytest.raises(PlanError, match="inspect lists"):
        irtool.plan(graph, "l1", 0.5, ignore=["nowhere"])


def test_the_given_graph_is_not_changed() -> None:
    graph = from_model(NETS["mobile"]())
    before = graph.proto.SerializeToString(deterministic=True)
    irtool.prune(irtool.fold_batchnorm(graph), irtool.plan(irtool.fold_batchnorm(graph), "l1", 0.5))
    irtool.prune(graph, irtool.plan(graph, "l1", 0.5))
    assert graph.proto.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("name", REAL)
def test_real_files(name: str, tmp_path: Path) -> None:
    graph = randomised(irtool.load_onnx(real(name)))
    for ratio in (0.3, 0.5):
        plan = irtool.plan(graph, "l1", ratio)
        check = irtool.check_prune(graph, plan)
        assert check.ok
        smaller = irtool.prune(graph, plan)
        irtool.save_onnx(smaller, tmp_path / "m.onnx")
        share = 1 - irtool.cost(smaller).params / irtool.cost(graph).params
    assert share >= (0.2 if name == "basic_pitch_nmp" else 0.25)
    before, after = onnx.load(real(name)), onnx.load(tmp_path / "m.onnx")
    assert [o.name for o in after.graph.output] == [o.name for o in before.graph.output]
    weights = {t.name for t in before.graph.initializer}
    assert [i.name for i in after.graph.input] == [i.name for i in before.graph.input if i.name not in weights]


def test_filled_constants_are_written_as_they_came(tmp_path: Path) -> None:
    path = real("light_resnet50")
    graph = irtool.load_onnx(path)
    assert irtool.save_onnx(graph, tmp_path / "m.onnx") < 2 * path.stat().st_size


class Calibration(quantization.CalibrationDataReader):
    """Four random images."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.batches = iter([{"x": np.random.default_rng(i).normal(size=shape).astype(np.float32)} for i in range(4)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("name", ["residual", "mobile", "splits13", "heads", "grouped"])
def test_quantised_models_are_sliced_in_integers(name: str, per_channel: bool, tmp_path: Path) -> None:
    """onnxruntime's own QDQ files: integer weights lose channels, and so do their scales."""
    irtool.save_onnx(irtool.fold_batchnorm(from_model(NETS[name]())), tmp_path / "float.onnx")
    quantization.quantize_static(
        tmp_path / "float.onnx", tmp_path / "int8.onnx", Calibration((1, 3, 12, 12)), quant_format=quantization.QuantFormat.QDQ,
        per_channel=per_channel, weight_type=quantization.QuantType.QInt8,
    )  # fmt: skip
    graph = irtool.load_onnx(tmp_path / "int8.onnx")
    plan = irtool.plan(graph, "l1", 0.5, "local")
    assert plan.removed >= 0.25 * sum(layer.total for layer in plan.layers)
    assert irtool.check_prune(graph, plan).relative <= 1e-5
    smaller = irtool.prune(graph, plan)
    irtool.save_onnx(smaller, tmp_path / "small.onnx")
    weights = {name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "small.onnx").graph.initializer for name in [t.name]}
    for layer in plan.layers:
        assert weights[layer.parameter].dtype == np.int8
        assert weights[layer.parameter].shape[layer.axis] in (layer.kept, layer.total)
    x = np.random.default_rng(9).normal(size=(1, 3, 12, 12)).astype(np.float32)
    kept, gone = in_onnxruntime(tmp_path / "small.onnx", x)[0], in_onnxruntime(tmp_path / "int8.onnx", x)[0]
    assert kept.shape == gone.shape
    assert relative(gone, kept) > 1e-3


class Small(nn.Module):
    """Residual blocks, a depthwise convolution, a split and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.block = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)
        )
        self.wide = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Hardswish(), nn.Conv2d(16, 24, 1))
        self.fc = nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = self.wide(x + self.block(x))
        a, b = x.split([10, 14], 1)
        return self.fc(torch.cat([b, a], 1).mean((2, 3)))


def test_both_hosts_plan_and_slice_alike(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Small().eval(), torch.randn(2, 3, 16, 16)
    torch_graph = irtool.fold_batchnorm(irtool.trace(model, x))
    irtool.export_onnx(torch_graph.module, tmp_path / "m.onnx", example_inputs=x)
    onnx_graph = irtool.load_onnx(tmp_path / "m.onnx", {"input": x.shape})
    assert irtool.channel_groups(torch_graph).count == irtool.channel_groups(onnx_graph).count
    plans = [irtool.plan(graph, "l1", 0.5) for graph in (torch_graph, onnx_graph)]
    assert [layer.removed for layer in plans[0].layers] == [layer.removed for layer in plans[1].layers]
    a, b = irtool.prune(torch_graph, plans[0]), irtool.prune(onnx_graph, plans[1])
    assert [n.operands["weight"].sizes for n in a.nodes if n.op in ("Conv", "Gemm")] == [
        n.operands["weight"].sizes for n in b.nodes if n.op in ("Conv", "Gemm")
    ]
    assert relative(a.run(x).numpy(), b.run(x)[0].numpy()) <= 1e-4


def test_constants_are_kept_in_their_own_type() -> None:
    n = Net()
    x = n.op("Cast", n.cbr("x", 3, 8), to=onnx.TensorProto.FLOAT16)
    w = n.const(n.rng.normal(size=(8, 8, 1, 1)), np.float16)
    x = n.op("Cast", n.op("Conv", x, w), to=onnx.TensorProto.FLOAT)
    graph = from_model(n.model(n.head(x, 8)))
    smaller = irtool.prune(graph, irtool.plan(graph, "l1", 0.5))
    kinds = {numpy_helper.to_array(t).dtype for t in smaller.proto.graph.initializer}
    assert np.dtype(np.float16) in kinds


def preresnet() -> onnx.ModelProto:
    """Two blocks that begin with a batch norm: it reads the residual stream."""
    n = Net(13)
    x = n.conv("x", 3, 16)
    for _ in range(2):
        h = n.conv(n.op("Relu", n.bn(x, 16)), 16, 12)
        x = n.op("Add", x, n.conv(n.op("Relu", n.bn(h, 12)), 12, 16))
    return n.model(n.head(n.op("Relu", n.bn(x, 16)), 16))


@pytest.mark.parametrize("constants", ["drop", "absorb"])
def test_selections_let_the_stream_stay(constants: str, tmp_path: Path) -> None:
    graph = from_model(preresnet())
    plan = irtool.plan(graph, "bn_scale", 0.5, residual="select")
    widths = {layer.name: (layer.kept, layer.total) for layer in plan.layers}
    assert [name for name in widths if name.startswith("select_")] == ["select_0", "select_1", "select_2"]
    assert widths["Conv_3"] == (16, 16)
    assert irtool.check_prune(graph, plan, constants=constants).relative <= 1e-5
    smaller = irtool.prune(graph, irtool.Plan.from_dict(plan.to_dict()), constants)
    irtool.save_onnx(irtool.fold_batchnorm(smaller), tmp_path / "small.onnx")
    again = irtool.load_onnx(tmp_path / "small.onnx")
    assert [node.op for node in again.nodes].count("Gather") == 3
    x = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(3))
    assert relative(smaller.run(x)[0].numpy(), again.run(x)[0].numpy()) <= 1e-5
    assert irtool.check_prune(again, irtool.plan(again, "l1", 0.3)).relative <= 1e-5


@pytest.mark.parametrize("criterion", ["l1", "l2", "bn_scale", "random"])
def test_criteria(criterion: str) -> None:
    graph = from_model(NETS["mobile"]())
    plan = irtool.plan(graph, criterion, 0.4, seed=1)
    assert plan.removed > 0
    assert irtool.check_prune(graph, plan).relative <= 1e-5


def test_insert_selects_changes_no_output() -> None:
    result = irtool.Pipeline([irtool.InsertSelects()], check=True)(from_model(preresnet()))
    assert [node.op for node in result.graph.nodes].count("ChannelSelect") == 3


def test_a_pass_that_changes_an_onnx_graph_is_caught() -> None:
    class Lying(irtool.Pass):
        name = "lying"

        def rewrite(self, graph: irtool.OnnxGraph) -> Rewritten:
            new = graph.clone()
            name, value = next((n, v) for n, v in new.params.items() if len(v.sizes) == 4)
            new.set_param(name, value.data * 1.1)
            return Rewritten(new)

    with pytest.raises(CheckError, match=r"the pass lying changed the outputs.*first diverging node Conv_"):
        irtool.Pipeline([Lying()], check=True)(from_model(NETS["residual"]()))


def test_comparing_onnx_graphs() -> None:
    graph = from_model(NETS["residual"]())
    x = torch.randn(2, 3, 12, 12)
    found = irtool.compare(graph, irtool.fold_batchnorm(graph), x)
    assert found.ok(1e-5)
    assert found.first() is None  # the convolutions that took up their batch norms differ, what reads them agrees
    assert irtool.compare(graph, lambda y: graph.run(y), x).ok()
    with pytest.raises(OptionError, match="Leave dtype out"):
        irtool.compare(graph, graph, x, dtype=torch.float64)


@pytest.mark.parametrize("kind", MIXING)
def test_operators_that_mix_channels_are_compared_on_the_survivors(kind: str) -> None:
    graph = from_model(NETS[f"mixing_{kind}"]())
    check = irtool.check_prune(graph, irtool.plan(graph, "l1", 0.5, "local"))
    assert len(check.inexact) == 1
    assert check.relative <= 1e-5
    assert check.effect > 1e-5 or kind == "ReduceMax"  # a zero changes no maximum of what is not negative
    assert check.unresolved == ()


@pytest.mark.parametrize(("name", "reason"), [("recurrent", "a recurrent layer ties its gates together"), ("branching", "flows into If"),
                                              ("looping", "flows into Loop")])  # fmt: skip
def test_bodies_and_recurrent_layers_are_barriers(name: str, reason: str) -> None:
    plan = irtool.plan(from_model(NETS[name]()), "l1", 0.5)
    whole = [layer for layer in plan.layers if reason in layer.reason]
    assert whole
    assert not any(layer.removed for layer in whole)
    assert plan.removed > 0


def test_batch_norms_whose_parameters_are_constant_nodes_are_folded() -> None:
    n = Net(13)
    x = n.conv("x", 3, 8, bias=False)
    values = [n.rng.uniform(0.5, 1.5, 8) for _ in range(4)]
    x = n.op("BatchNormalization", x, *(n.const(value, np.float32, node=True) for value in values))
    graph = from_model(n.model(n.head(n.op("Relu", x), 8)))
    result = irtool.Pipeline([irtool.FoldBatchNorm()], check=True)(graph)
    assert result.notes == ("fold_batchnorm: 1 batch norms folded",)


def test_each_host_is_saved_by_its_own_function(tmp_path: Path) -> None:
    graph, traced = from_model(NETS["residual"]()), irtool.trace(nn.Conv2d(3, 4, 1), torch.zeros(1, 3, 4, 4))
    for work in (lambda: irtool.save(graph, tmp_path / "m.safetensors"), lambda: irtool.export_onnx(graph, tmp_path / "m.onnx")):  # type: ignore[arg-type]
        with pytest.raises(IrtoolError, match="save_onnx"):
            work()
    with pytest.raises(OptionError, match="with export_onnx"):
        irtool.save_onnx(traced, tmp_path / "m.onnx")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
