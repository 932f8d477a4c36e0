"""Attributes of nodes: one vocabulary, whichever host a graph lies on, and whatever way a call was written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import irtool
from irtool.engines import export_onnx
from irtool.ir.attributes import plain

Operator = Callable[[Tensor], Any]


class Behind(nn.Module):
    """A convolution, and operators behind it."""

    def __init__(self, operator: Operator) -> None:
        super().__init__()
        self.conv, self.operator = nn.Conv2d(3, 8, 3, padding=1), operator

    def forward(self, x: Tensor) -> Any:
        return self.operator(self.conv(x))


def attrs(graph: Any) -> list[tuple[str, Any]]:
    """Operators behind the convolution with their attributes, numbers at float32's precision."""
    inner = [node for node in graph.nodes if node.op not in ("Input", "Output", "Constant")]
    return [(node.op, plain(node.attrs)) for node in inner[1:]]


BOTH: dict[str, Operator] = {
    "a convolution with other ends": nn.Conv2d(8, 4, (3, 4), stride=(1, 2), padding=(2, 1), dilation=(1, 2), groups=2),
    "a convolution as wide as its input": nn.Conv2d(8, 4, (3, 4), padding="same"),
    "a transposed convolution": nn.ConvTranspose2d(8, 4, 3, stride=2, padding=1, output_padding=1, groups=2),
    "a linear layer": lambda x: F.linear(x.flatten(1), torch.ones(5, 8 * 12 * 12)),
    "a pool": nn.MaxPool2d(3, 2, 1),
    "a pool that counts padding": nn.AvgPool2d(3, 2, 1),
    "a pool that does not": nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "a pool of everything": nn.AdaptiveAvgPool2d(1),
    "a pool to a size": nn.AdaptiveAvgPool2d(4),
    "a batch norm": nn.BatchNorm2d(8, eps=1e-3),
    "a layer norm over two axes": nn.LayerNorm([12, 12], eps=1e-4),
    "softmax": lambda x: x.softmax(-3),
    "the logarithm of softmax": nn.LogSoftmax(1),
    "a mean": lambda x: x.mean((-1, 2), keepdim=True),
    "a maximum": lambda x: x.amax(1),
    "the place of a maximum": lambda x: x.argmax(1),
    "a permutation": lambda x: x.permute(0, 2, 3, 1),
    "two axes exchanged": lambda x: x.transpose(1, -1),
    "one axis moved": lambda x: x.movedim(1, -1),
    "two axes moved": lambda x: x.movedim((1, 2), (3, 1)),
    "the last two axes exchanged": lambda x: x.mT,
    "a cut": lambda x: x[:, 2:5],
    "a cut to the end": lambda x: x[:, :, 3:],
    "a cut from the end": lambda x: x[:, -3:],
    "a cut by steps": lambda x: x[:, :, ::2],
    "a concatenation": lambda x: torch.cat([x, x.relu()], -3),
    "padding": lambda x: F.pad(x, (1, 2, 3, 4), value=0.5),
    "padding by what is there": nn.ReflectionPad2d((1, 2, 3, 4)),
    "bounds": lambda x: x.clamp(-1.5, 2),
    "one bound": lambda x: x.clamp(max=2),
    "a leaky activation": nn.LeakyReLU(0.2),
    "a cumulative sum": lambda x: x.cumsum(-3),
    "pixels dealt out": nn.PixelShuffle(2),
    "resized": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True),
    "a sum with a number": lambda x: x + 0.5,
    "divided by a number": lambda x: x / 2.0,
    "an equation": lambda x: torch.einsum("n c h w, n c h w -> n c", x, x),
}


@pytest.mark.parametrize("name", BOTH)
def test_a_call_and_its_export_have_the_same_attributes(name: str, tmp_path: Path) -> None:
    graph = irtool.trace(Behind(BOTH[name]).eval(), torch.zeros(2, 3, 12, 12))
    export_onnx(graph, tmp_path / "net.onnx", verify=False)
    loaded = irtool.load_onnx(tmp_path / "net.onnx", {"input": (2, 3, 12, 12)})
    stored = {"transB", "broadcast"}
    found = [[(op, {key: value for key, value in held.items() if key not in stored}) for op, held in attrs(one)] for one in (graph, loaded)]
    assert found[0] == found[1]
    assert found[0]


SAME: dict[str, tuple[Operator, Operator]] = {
    "an axis by name or by place": (lambda x: x.softmax(1), lambda x: torch.softmax(x, dim=-3)),
    "one number or one an axis": (nn.MaxPool2d(2), nn.MaxPool2d((2, 2), stride=(2, 2))),
    "a module or a function": (nn.LayerNorm([12, 12], elementwise_affine=False), lambda x: F.layer_norm(x, (12, 12))),
    "unbind along an axis, by place or by name": (lambda x: x.unbind(1)[0], lambda x: x.unbind(dim=1)[0]),
    "narrow or a slice": (lambda x: x.narrow(1, 2, 3), lambda x: x[:, 2:5]),
    "narrow by names": (lambda x: x.narrow(start=2, length=3, dim=1), lambda x: x[:, 2:5]),
    "axes by names": (lambda x: x.transpose(dim1=3, dim0=1), lambda x: x.movedim((1, 3), (3, 1))),
    "bounds of relu6": (nn.ReLU6(), lambda x: F.hardtanh(x, 0.0, 6.0)),
    "same padding or its amounts": (nn.Conv2d(8, 4, 3, padding="same"), nn.Conv2d(8, 4, 3, padding=1)),
}


@pytest.mark.parametrize("name", SAME)
def test_ways_to_write_a_call_have_the_same_attributes(name: str) -> None:
    one, other = (attrs(irtool.trace(Behind(way).eval(), torch.zeros(2, 3, 12, 12))) for way in SAME[name])
    assert [held for _, held in one] == [held for _, held in other]


DIFFERENT: dict[str, tuple[Operator, Operator]] = {
    "a spread with and without correction": (lambda x: x.std((2, 3)), lambda x: x.std((2, 3), unbiased=False)),
    "lengths of two kinds": (lambda x: torch.norm(x, 1, (2, 3)), lambda x: torch.norm(x, 2, (2, 3))),
    "the smallest and the largest shares": (lambda x: F.softmin(x, 1), lambda x: F.softmax(x, 1)),
    "a cumulative product and a sum": (lambda x: x.cumprod(1), lambda x: x.cumsum(1)),
    "padding with two numbers": (lambda x: F.pad(x, (1, 1)), lambda x: F.pad(x, (1, 1), value=1.0)),
    "to a place and to the end": (lambda x: x[:, :8], lambda x: x[:, :]),
    "unbind along two axes": (lambda x: x.unbind(1)[0].sum(), lambda x: x.unbind(2)[0].sum()),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_calls_that_differ_have_other_texts(name: str) -> None:
    one, other = (irtool.trace(Behind(way).eval(), torch.zeros(2, 3, 8, 8)).text() for way in DIFFERENT[name])
    assert one != other


def test_the_spread_of_everything_is_no_spread_along_an_axis() -> None:
    """`x.std(False)` gives its correction by place, where another call gives its axis."""
    graph = irtool.trace(Behind(lambda x: x.flatten(1) / x.std(False)).eval(), torch.zeros(2, 3, 8, 8))
    node = next(node for node in graph.nodes if node.op == "Reduce")
    assert node.attrs == {"kind": "std", "axes": (0, 1, 2, 3), "keepdims": False, "correction": 0}
