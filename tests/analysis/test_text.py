"""Functions that one rule serves have texts of their own: a softmin is no softmax."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx_nets import Net
from torch import Tensor, nn

import irtool
from irtool.hosts.onnx.files.load import from_model

FUNCTIONS: dict[str, list[Callable[[Tensor], Tensor]]] = {
    "softmax": [lambda x: F.softmax(x, 3), lambda x: F.softmin(x, 3), lambda x: F.log_softmax(x, 3)],
    "cumsum": [lambda x: x.cumsum(3), lambda x: x.cumprod(3), lambda x: x.cumsum(2)],
    "triangles": [lambda x: x.tril(), lambda x: x.triu()],
    "turned": [lambda x: x.flip(3), lambda x: x.roll(3, 3), torch.fliplr, torch.flipud, lambda x: x.rot90(1, (2, 3))],
    "repeated": [lambda x: x.repeat(1, 1, 1, 2), lambda x: x.repeat_interleave(2, 3)],
    "transformed": [lambda x: torch.fft.fft(x).real, lambda x: torch.fft.ifft(x).real, lambda x: torch.fft.hfft(x, 8), lambda x: torch.fft.fftshift(x)],
}  # fmt: skip


class Acts(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.function = nn.Conv2d(3, 8, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.a(x))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_with_one_rule_have_texts_of_their_own(name: str) -> None:
    texts = [irtool.trace(Acts(function).eval(), torch.zeros(1, 3, 10, 10)).text() for function in FUNCTIONS[name]]
    for one, other in combinations(texts, 2):
        assert one != other


def _model(kind: str, *consts: int, **attrs: int) -> onnx.ModelProto:
    n = Net(13)
    return n.model(n.op(kind, n.conv("x", 3, 8), *map(n.const, consts), **attrs), ranks=[4])


def test_the_text_of_a_file_tells_them_apart_too() -> None:
    models = [
        _model("Softmax", axis=1),
        _model("LogSoftmax", axis=1),
        _model("Hardmax", axis=1),
        _model("CumSum", 1),
        _model("CumSum", 1, reverse=1),
    ]
    assert len({from_model(model).text() for model in models}) == len(models)


def test_both_hosts_write_the_same() -> None:
    torch_text = irtool.trace(nn.Sequential(nn.LogSoftmax(1), nn.Softmax(1)), torch.zeros(1, 3, 12, 12)).text()
    n = Net(13, (1, 3, 12, 12))
    model = n.model(n.op("Softmax", n.op("LogSoftmax", "x", axis=1), axis=1), ranks=[4])
    assert from_model(model).text().replace("%x", "%input") == torch_text.replace("%input_1", "%input")
