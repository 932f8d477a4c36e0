"""`dead_code` on both hosts."""

from __future__ import annotations

import torch
from onnx_nets import Net
from torch import Tensor, nn

import irtool
from irtool.archive import load, save
from irtool.hosts.onnx.files.load import from_model

BEFORE = """\
input  %input:1x3x4x4
%b:1x4x4x4 = Conv(%input, @b.weight:4x3x1x1, @b.bias:4) {dilations=1, group=1, pads=0, strides=1}
%relu:1x4x4x4 = Relu(%b)
%a:1x4x4x4 = Conv(%input, @a.weight:4x3x1x1, @a.bias:4) {dilations=1, group=1, pads=0, strides=1}
output %a:1x4x4x4"""
AFTER = """\
input  %input:1x3x4x4
%a:1x4x4x4 = Conv(%input, @a.weight:4x3x1x1, @a.bias:4) {dilations=1, group=1, pads=0, strides=1}
output %a:1x4x4x4"""


class Dead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.b(x).relu()
        return self.a(x)


class InPlace(Dead):
    """Nobody reads what relu_ and the module give, yet the output depends on them."""

    def forward(self, x: Tensor) -> Tensor:
        y, z = self.a(x), self.b(x)
        y.relu_()
        nn.functional.relu(z, True)
        z[:, 0] = 1
        y += z
        return y


def test_text_before_and_after() -> None:
    graph = irtool.trace(Dead().eval(), torch.zeros(1, 3, 4, 4))
    assert graph.text() == BEFORE
    result = irtool.Pipeline([irtool.DeadCode()], check=True)(graph)
    assert result.graph.text() == AFTER
    assert result.notes == ("dead_code: 2 dead operators removed: b, relu",)
    assert "b.weight" not in dict(result.graph.module.named_parameters())
    assert graph.text() == BEFORE


def test_what_works_in_place_is_alive() -> None:
    graph = irtool.trace(InPlace().eval(), torch.zeros(1, 3, 4, 4))
    result = irtool.DeadCode()(graph)
    assert not result.changed
    assert result.graph is graph


def test_a_saved_step_is_replayed_on_the_class(tmp_path) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    graph = irtool.trace(Dead().eval(), torch.zeros(1, 3, 4, 4))
    small = irtool.DeadCode()(graph).graph
    save(small, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors", model=Dead().eval())
    x = torch.randn(1, 3, 4, 4)
    assert torch.equal(again.run(x), graph.run(x))


def test_an_onnx_file_is_read_without_dead_code() -> None:
    n = Net()
    x = n.cbr("x", 3, 8)
    n.cbr(x, 8, 4)
    graph = from_model(n.model(n.head(x, 8)))
    assert [node.op for node in graph.nodes].count("Conv") == 1
    assert not irtool.DeadCode()(graph).changed
