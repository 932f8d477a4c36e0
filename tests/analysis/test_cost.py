"""Parameters, MACs and bytes against numbers worked out by hand, and against torch's own counter."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from irtool.analysis.cost import Cost, cost
from irtool.errors import OptionError
from irtool.hosts.torch.tracing.trace import trace


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.function = function

    def forward(self, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        return self.function(a, b) if c is None else self.function(a, b, c)


def of(model: nn.Module, *shapes: tuple[int, ...]) -> Cost:
    return cost(trace(model.eval(), tuple(torch.zeros(shape) for shape in shapes)))


LAYERS = {
    # layer, input, MACs of one sample, parameters
    "conv1d": (nn.Conv1d(3, 5, 3, padding=1), (2, 3, 8), 5 * 8 * 3 * 3, 5 * 3 * 3 + 5),
    "conv2d grouped": (nn.Conv2d(4, 6, 3, padding=1, groups=2), (2, 4, 5, 5), 6 * 25 * 2 * 9, 6 * 2 * 9 + 6),
    "conv2d depthwise": (nn.Conv2d(4, 8, 3, stride=2, groups=4, bias=False), (2, 4, 7, 7), 8 * 9 * 9, 8 * 9),
    "conv2d same": (nn.Conv2d(2, 3, (3, 1), padding="same"), (2, 2, 4, 6), 3 * 24 * 2 * 3, 3 * 2 * 3 + 3),
    "conv3d": (nn.Conv3d(2, 3, 2), (2, 2, 3, 4, 5), 3 * (2 * 3 * 4) * 2 * 8, 3 * 2 * 8 + 3),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (2, 4, 5, 5), 4 * 25 * 3 * 9, 4 * 3 * 9 + 6),
    "linear over tokens": (nn.Linear(5, 3), (2, 7, 5), 7 * 3 * 5, 5 * 3 + 3),
    "batch norm": (nn.BatchNorm2d(6), (2, 6, 4, 4), 0, 12),
}


@pytest.mark.parametrize(("layer", "shape", "macs", "params"), LAYERS.values(), ids=LAYERS.keys())
def test_layers_by_hand(layer: nn.Module, shape: tuple[int, ...], macs: int, params: int) -> None:
    found = of(nn.Sequential(layer), shape)
    assert (found.macs, found.params, found.batch) == (macs, params, 2)


FUNCTIONS = {
    "matmul": (lambda a, b: a @ b, [(2, 3, 4), (2, 4, 5)], 3 * 4 * 5),
    "attention": (F.scaled_dot_product_attention, [(2, 3, 7, 4), (2, 3, 9, 4), (2, 3, 9, 5)], 3 * 7 * 9 * (4 + 5)),
    "einsum": (lambda a, b: torch.einsum("bij,bkj->bik", a, b), [(2, 3, 4), (2, 5, 4)], 3 * 5 * 4),
    "einsum summed before": (lambda a, b: torch.einsum("bij,bk->bk", a, b), [(2, 3, 4), (2, 5)], 5),
    "baddbmm, unknown to the table": (torch.baddbmm, [(2, 3, 5), (2, 3, 4), (2, 4, 5)], 3 * 4 * 5),
    "pooling and adding": (lambda a, b: F.max_pool2d(a + b, 2).relu(), [(2, 3, 4, 4), (2, 3, 4, 4)], 0),
}


@pytest.mark.parametrize(("function", "shapes", "macs"), FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_functions_by_hand(function, shapes: list[tuple[int, ...]], macs: int) -> None:  # type: ignore[no-untyped-def]
    assert of(Call(function), *shapes).macs == macs


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.unused = nn.Linear(100, 100)
        self.register_buffer("shift", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)) + self.shift


def test_shared_parameters_count_once_and_buffers_apart() -> None:
    found = of(Tied(), (3, 4))
    assert (found.params, found.buffers, found.macs, found.weight_bytes) == (16, 4, 2 * 16, 4 * (16 + 4))
    assert [node.params for node in found.nodes if node.op == "Gemm"] == [16, 0]


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x, x, x, need_weights=False)[0]


def test_children_of_a_module_kept_whole_count() -> None:
    model = Attending().eval()
    found = cost(trace(model, torch.zeros(2, 5, 8), leaf=(nn.MultiheadAttention,)))
    assert found.params == sum(p.numel() for p in model.parameters())
    assert found.macs == 5 * 8 * 24 + 2 * (5 * 5 * 8) + 5 * 8 * 8
    assert not found.uncounted


class Reluctant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + float(x.sum())


def test_what_cannot_be_counted_is_named() -> None:
    found = cost(trace(nn.Sequential(Reluctant()), torch.ones(1, 2), leaf=(Reluctant,)))
    assert found.uncounted == ("0",)
    assert "MACs not counted: 0" in found.text()


def test_peak_of_activations() -> None:
    # (4,) + (8,) alive while the first layer runs, (8,) + (2,) while the second does; float32, one sample
    assert of(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), (5, 4)).activation_bytes == (4 + 8) * 4


def test_bytes_follow_the_element_type() -> None:
    found = cost(trace(nn.Linear(4, 2).half(), torch.zeros(1, 4, dtype=torch.float16)))
    assert found.weight_bytes == 2 * 10


MODELS = ("resnet18", "mobilenet_v2", "densenet121", "shufflenet_v2_x1_0", "swin_t", "vit_b_16")


@pytest.mark.parametrize("name", MODELS)
def test_macs_as_torch_counts_flops(name: str) -> None:
    with torch.device("meta"):
        model, x = getattr(torchvision.models, name)().eval(), torch.zeros(2, 3, 224, 224)
        graph = trace(model, x)
        # the traced module: nn.MultiheadAttention's fused kernel in eval mode is invisible to the counter
        with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            graph.module(x)
    found = cost(graph)
    assert found.macs * 4 == counter.get_total_flops() > 0
    assert found.params == sum(p.numel() for p in model.parameters())
    assert found.buffers == sum(b.numel() for b in model.buffers() if b.dim())


def test_table_and_json() -> None:
    found = of(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 10)), (1, 3, 5, 5))
    lines = found.text().splitlines()
    assert [line.split() for line in lines[:4]] == [
        ["location", "op", "output", "params", "MACs"],
        ["0", "Conv", "1x4x3x3", "112", "972"],
        ["3", "Gemm", "1x10", "370", "360"],
        ["total", "482", "1,332"],
    ]
    assert len(found.text(every=True).splitlines()) == len(lines) + 3  # the input, the activation, the reshape
    data = json.loads(json.dumps(found.to_dict()))
    assert data["macs"] == 1332
    assert data["nodes"][1] == {"name": "_0", "op": "Conv", "location": "0", "shape": [1, 4, 3, 3], "params": 112, "macs": 972}


def test_batch_can_be_given() -> None:
    graph = trace(nn.Linear(4, 2), torch.zeros(6, 4))
    assert (cost(graph).macs, cost(graph, batch=1).macs) == (8, 48)
    with pytest.raises(OptionError, match="number of samples"):
        cost(graph, batch=0)
