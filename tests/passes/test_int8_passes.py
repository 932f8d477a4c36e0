"""The passes that make int8 worth it: equal in onnxruntime, refusing where they must."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import irtool
from irtool.analysis.compare import difference
from irtool.engines import OnnxSession
from irtool.engines.agreement import relative_error
from irtool.engines.onnxruntime.prepare import prepared
from irtool.errors import OptionError
from irtool.models import PreResNet
from irtool.passes import Equalise, FoldNormForward, LowerAffine, WidenSelects
from irtool.passmanager import make
from irtool.quant import place
from irtool.quant.boundaries import account, steps
from irtool.quant.search import fewest_float


def onnx_graph(folder: Path, nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], shape: tuple[int, ...]) -> irtool.OnnxGraph:
    """A graph of float32 `x` to `y`."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * len(shape))],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(folder / "made.onnx"))
    return irtool.load_onnx(folder / "made.onnx")


def norm(seed: int, channels: int) -> list[np.ndarray]:
    """Gamma, beta, mean and variance, never the identity."""
    draw = np.random.default_rng(seed)
    gamma, var = draw.uniform(0.5, 2, channels), draw.uniform(0.5, 2, channels)
    return [array.astype(np.float32) for array in (gamma, draw.normal(size=channels), draw.normal(size=channels), var)]


def same(before: irtool.OnnxGraph, after: irtool.OnnxGraph, folder: Path) -> float:
    """The relative difference of two graphs in onnxruntime, through their files."""
    irtool.save_onnx(before, folder / "before.onnx")
    irtool.save_onnx(after, folder / "after.onnx")
    x = np.random.default_rng(5).normal(size=before.inputs[0].sizes).astype(np.float32)
    return relative_error(OnnxSession(folder / "after.onnx", 1).run(x)[0], OnnxSession(folder / "before.onnx", 1).run(x)[0])


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> irtool.OnnxGraph:
    """A small pre-activation net with selections and batch norms that cannot be folded."""
    torch.manual_seed(0)
    net = PreResNet(11, width=0.5)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data, module.bias.data = torch.rand_like(module.weight) + 0.1, torch.randn_like(module.bias) * 0.3
            module.running_mean, module.running_var = torch.randn_like(module.bias) * 0.3, torch.rand_like(module.bias) + 0.5
    graph = irtool.trace(net.eval(), torch.zeros(2, 3, 16, 16))
    smaller = irtool.fold_batchnorm(irtool.prune(graph, irtool.plan(graph, "bn_scale", 0.4, "global", "select", round_to=1)))
    folder = tmp_path_factory.mktemp("pruned")
    irtool.export_onnx(smaller, folder / "pruned.onnx")
    return irtool.load_onnx(folder / "pruned.onnx", [(2, 3, 16, 16)])


def test_a_pre_activation_net_becomes_integers_throughout(pruned: irtool.OnnxGraph, tmp_path: Path) -> None:
    before = [node.op_type for node in pruned.proto.graph.node]
    widened = WidenSelects(0.0)(pruned)
    lowered = LowerAffine()(widened.graph)
    after = [node.op_type for node in lowered.graph.proto.graph.node]
    assert "Gather" in before
    assert "BatchNormalization" in before
    assert "Gather" not in after
    assert "BatchNormalization" not in after
    assert same(pruned, widened.graph, tmp_path) <= 1e-5
    assert same(pruned, lowered.graph, tmp_path) <= 1e-5
    model = prepared(lowered.graph.proto)
    borders = steps(model, place(model))
    assert [step.tensor for step in borders] == ["input"]
    plain = prepared(pruned.proto)
    found = steps(plain, place(plain))
    assert len(found) > len(borders)
    lines = account(plain, place(plain)).lines()
    assert any(line.startswith("dequantise") and line.endswith("BatchNormalization has no integer form") for line in lines)
    counts = Counter(node.op_type for node in plain.graph.node)
    assert f"in float   {counts['BatchNormalization']} BatchNormalization: BatchNormalization has no integer form" in lines


def test_selections_of_few_channels_stay(pruned: irtool.OnnxGraph) -> None:
    result = WidenSelects(1.0)(pruned)
    assert not result.changed
    assert "select less than 100 % of the channels" in result.notes[0]


def test_chains_of_scale_and_shift_merge(tmp_path: Path) -> None:
    constants = dict(zip(("g", "b", "m", "v"), norm(0, 4), strict=True))
    draw = np.random.default_rng(1)
    constants |= {name: draw.normal(size=(1, 4, 1, 1)).astype(np.float32) + 2 for name in ("c", "d")} | {"e": np.float32(3)}
    nodes = [
        helper.make_node("BatchNormalization", ["x", "g", "b", "m", "v"], ["t"]),
        helper.make_node("Mul", ["t", "c"], ["u"]),
        helper.make_node("Sub", ["u", "d"], ["w"]),
        helper.make_node("Div", ["w", "e"], ["q"]),
        helper.make_node("Relu", ["q"], ["y"]),
    ]
    graph = onnx_graph(tmp_path, nodes, constants, (2, 4, 5, 5))
    result = LowerAffine()(graph)
    assert [node.op_type for node in result.graph.proto.graph.node] == ["Conv", "Relu"]
    assert same(graph, result.graph, tmp_path) <= 1e-6


@pytest.mark.parametrize(
    ("node", "constant", "shape"),
    [
        ("Mul", np.float32(2), (2, 4, 5, 5)),  # one number: engines fold it
        ("Mul", np.ones((1, 1, 5, 1), np.float32) * 2, (2, 4, 5, 5)),  # along another axis
        ("Mul", np.ones((4, 1), np.float32) * 2, (2, 4, 5)),  # not an image
    ],
)
def test_what_is_no_scale_of_channels_is_left_alone(tmp_path: Path, node: str, constant: np.ndarray, shape: tuple[int, ...]) -> None:
    graph = onnx_graph(tmp_path, [helper.make_node(node, ["x", "c"], ["y"])], {"c": constant}, shape)
    result = LowerAffine()(graph)
    assert not result.changed
    assert result.graph is graph


def test_a_norm_with_other_readers_of_its_result_is_not_merged_past_them(tmp_path: Path) -> None:
    constants = dict(zip(("g", "b", "m", "v"), norm(0, 4), strict=True)) | {"c": np.full((1, 4, 1, 1), 2, np.float32)}
    nodes = [
        helper.make_node("BatchNormalization", ["x", "g", "b", "m", "v"], ["t"]),
        helper.make_node("Mul", ["t", "c"], ["u"]),
        helper.make_node("Add", ["t", "u"], ["y"]),
    ]
    graph = onnx_graph(tmp_path, nodes, constants, (2, 4, 5, 5))
    result = LowerAffine()(graph)
    assert [node.op_type for node in result.graph.proto.graph.node] == ["Conv", "Conv", "Add"]
    assert same(graph, result.graph, tmp_path) <= 1e-6


def _selection(folder: Path, index: list[int], *, groups: int = 1, shared: bool = False) -> irtool.OnnxGraph:
    draw = np.random.default_rng(2)
    constants: dict[str, np.ndarray] = {"i": np.array(index, np.int64)}
    constants |= {"w": draw.normal(size=(4, len(index) // groups, 3, 3)).astype(np.float32)}
    nodes = [
        helper.make_node("Gather", ["x", "i"], ["s"], "pick", axis=1),
        helper.make_node("Relu", ["s"], ["r"]),
        helper.make_node("Conv", ["r", "w"], ["z"], pads=[1, 1, 1, 1], group=groups),
    ]
    last = helper.make_node("Add", ["z", "z" if not shared else "k"], ["y"])
    if shared:
        nodes.append(helper.make_node("Conv", ["s", "w"], ["k"], pads=[1, 1, 1, 1]))
    return onnx_graph(folder, [*nodes, last], constants, (2, 6, 5, 5))


def test_a_selection_in_any_order_widens(tmp_path: Path) -> None:
    graph = _selection(tmp_path, [5, 0, -3, 2])
    result = WidenSelects()(graph)
    assert result.changed
    assert same(graph, result.graph, tmp_path) <= 1e-6


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"index": [1, 1, 2, 3]}, "select a channel twice"),
        ({"index": [0, 1, 2, 3], "groups": 2}, "Conv follows"),
        ({"index": [0, 1, 2, 3], "shared": True}, "several operators read the result"),
    ],
)
def test_selections_that_no_weight_can_take_over_stay(tmp_path: Path, options: dict, reason: str) -> None:
    graph = _selection(tmp_path, **options)
    result = WidenSelects()(graph)
    assert not result.changed
    assert reason in result.notes[0]


@pytest.mark.parametrize("name", ["lower_affine", "widen_selects"])
def test_torch_graphs_are_sent_to_onnx_first(name: str) -> None:
    with pytest.raises(OptionError, match="Export the model"):
        make(name)(irtool.trace(nn.Conv2d(3, 4, 1), torch.zeros(1, 3, 4, 4)))


@pytest.mark.parametrize("count", [0, 1, 5, 20])
def test_the_search_finds_the_fewest_layers(count: int) -> None:
    order, tried = [f"l{i}" for i in range(20)], []

    def good(floating: tuple[str, ...]) -> bool:
        tried.append(floating)
        return set(order[:count]) <= set(floating)

    assert fewest_float(order, good) == tuple(order[:count])
    assert len(tried) <= 12


def test_the_search_says_when_nothing_helps_and_puts_back_what_it_can() -> None:
    assert fewest_float(["a", "b"], lambda floating: False) is None
    assert fewest_float(["a", "b", "c"], lambda floating: "c" in floating) == ("c",)


FORWARD = {
    "1x1": (nn.Conv2d(6, 4, 1), (2, 6, 5, 5)),
    "unpadded": (nn.Conv2d(6, 4, 3, stride=2, bias=False), (2, 6, 8, 8)),
    "grouped": (nn.Conv2d(6, 4, 3, groups=2), (2, 6, 7, 7)),
    "depthwise": (nn.Conv2d(6, 6, 3, groups=6, bias=False), (2, 6, 7, 7)),
    "linear": (nn.Linear(6, 4), (3, 6)),
}


@pytest.mark.parametrize("host", ["torch", "onnx"])
@pytest.mark.parametrize("name", FORWARD)
def test_a_norm_before_a_layer_folds_exactly(name: str, host: str, tmp_path: Path) -> None:
    layer, shape = FORWARD[name]
    before = nn.BatchNorm2d(6) if len(shape) == 4 else nn.BatchNorm1d(6)
    before.weight.data, before.bias.data, before.running_mean, before.running_var = map(torch.from_numpy, norm(3, 6))
    graph = irtool.trace(nn.Sequential(before, layer).eval(), torch.zeros(shape))
    if host == "onnx":
        irtool.export_onnx(graph, tmp_path / "net.onnx")
        read = irtool.load_onnx(tmp_path / "net.onnx", [shape])
        result = FoldNormForward()(read)
        assert same(read, result.graph, tmp_path) <= 2e-6
    else:
        graph = graph.to(torch.float64)
        result = FoldNormForward()(graph)
        x = torch.randn(shape, dtype=torch.float64)
        assert difference(graph.run(x), result.graph.run(x))[1] <= 1e-12
    assert "BatchNormalization" not in [node.op for node in result.graph.nodes]


def test_a_shift_before_zero_padding_stays_and_a_scale_alone_folds() -> None:
    before = nn.BatchNorm2d(6)
    before.weight.data, before.bias.data, before.running_mean, before.running_var = map(torch.from_numpy, norm(3, 6))
    net = nn.Sequential(before, nn.Conv2d(6, 4, 3, padding=1)).eval()
    result = FoldNormForward()(irtool.trace(net, torch.zeros(2, 6, 5, 5)))
    assert not result.changed
    assert "pads with zeros" in result.notes[0]
    before.bias.data, before.running_mean = torch.zeros(6), torch.zeros(6)
    graph = irtool.trace(net, torch.zeros(2, 6, 5, 5)).to(torch.float64)
    result = FoldNormForward()(graph)
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    assert result.changed
    assert difference(graph.run(x), result.graph.run(x))[1] <= 1e-12


def test_padding_at_the_end_alone_is_seen(tmp_path: Path) -> None:
    constants = dict(zip(("g", "b", "m", "v"), norm(0, 4), strict=True)) | {"w": np.ones((2, 4, 3, 3), np.float32)}
    nodes = [
        helper.make_node("BatchNormalization", ["x", "g", "b", "m", "v"], ["t"]),
        helper.make_node("Conv", ["t", "w"], ["y"], pads=[0, 0, 1, 1]),
    ]
    assert not FoldNormForward()(onnx_graph(tmp_path, nodes, constants, (2, 4, 6, 6))).changed


class Chain(nn.Module):
    """Convolutions whose channels differ in size by orders of magnitude."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.c, self.d = nn.Conv2d(8, 6, 1, bias=False), nn.Conv2d(6, 4, 3)
        size = torch.logspace(-2, 2, 8)
        self.a.weight.data *= size.reshape(-1, 1, 1, 1)
        self.a.bias.data *= size
        self.c.weight.data /= size.reshape(1, -1, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.max_pool2d(self.b(self.a(x).relu()), 2)
        return self.d(torch.nn.functional.leaky_relu(self.c(x), 0.1)).clamp(0, 6)


def test_equalising_is_exact_and_evens_the_channels_out() -> None:
    torch.manual_seed(1)
    graph = irtool.trace(Chain().eval(), torch.zeros(2, 3, 12, 12)).to(torch.float64)
    result = Equalise(rounds=10)(graph)
    assert result.notes == ("3 pairs of layers equalised",)
    x = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    assert difference(graph.run(x), result.graph.run(x))[1] <= 1e-12

    def spread(net: irtool.FxGraph) -> float:
        reach = net.params["a.weight"].data.abs().flatten(1).amax(1)
        return float(reach.max() / reach.min())

    assert spread(result.graph) < 0.01 * spread(graph)


def test_layers_with_other_readers_or_bounds_are_not_equalised() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU6(), nn.Conv2d(4, 4, 1)).eval()
    assert not Equalise()(irtool.trace(net, torch.zeros(1, 3, 4, 4))).changed

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            return self.b(y) + y

    assert not Equalise()(irtool.trace(Twice().eval(), torch.zeros(1, 3, 4, 4))).changed


class Ahead(nn.Module):
    """Batch norms before convolutions, one of them with a shift that zero padding forbids to fold; then a pair to equalise."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1, bias=False)
        self.kept, self.padded = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.padded(self.kept(self.conv(self.norm(x)).sigmoid())).relu())


def test_what_these_passes_made_can_be_saved_and_loaded_into_the_class(tmp_path: Path) -> None:
    net = Ahead().eval()
    for module, channels in ((net.norm, 3), (net.kept, 4)):
        module.weight.data, module.bias.data, module.running_mean, module.running_var = map(torch.from_numpy, norm(4, channels))
    graph = irtool.trace(net, torch.zeros(2, 3, 6, 6))
    made = Equalise()(FoldNormForward()(graph).graph).graph
    assert [node.op for node in made.nodes].count("BatchNormalization") == 1
    irtool.save(made, tmp_path / "made.safetensors")
    x = torch.randn(2, 3, 6, 6)
    for loaded in (irtool.load(tmp_path / "made.safetensors"), irtool.load(tmp_path / "made.safetensors", model=Ahead().eval())):
        assert torch.equal(loaded.run(x), made.run(x))
