"""`remove_identity` on both hosts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from onnx_nets import Net
from torch import Tensor, nn
from torch.nn import functional

import irtool
from irtool.hosts.onnx.files.load import from_model

BEFORE = """\
input  %input:1x3x4x4
%conv:1x8x4x4 = Conv(%input, @const_1:8x3x3x3, @const_2:8) {dilations=1, group=1, pads=1, strides=1}
%transpose:1x8x4x4 = Transpose(%conv) {perm=[0,1,2,3]}
%relu:1x8x4x4 = Relu(%transpose)
%identity:1x8x4x4 = Identity(%relu)
output %identity:1x8x4x4"""
AFTER = """\
input  %input:1x3x4x4
%conv:1x8x4x4 = Conv(%input, @const_1:8x3x3x3, @const_2:8) {dilations=1, group=1, pads=1, strides=1}
%relu:1x8x4x4 = Relu(%conv)
output %relu:1x8x4x4"""


def test_text_before_and_after() -> None:
    n = Net(17, ("N", 3, 4, 4))
    x = n.op("Relu", n.op("Transpose", n.conv("x", 3, 8), perm=[0, 1, 2, 3]))
    graph = from_model(n.model(n.op("Identity", x), ranks=[4]))
    assert graph.text() == BEFORE
    result = irtool.Pipeline([irtool.RemoveIdentity()], check=True)(graph)
    assert result.graph.text() == AFTER
    assert result.notes == ("remove_identity: 2 operators removed that return their input",)
    assert graph.text() == BEFORE


def chain(*, training: bool = False) -> onnx.ModelProto:
    """Every kind of operator that returns its input, and a transpose, a cast and a pad that do not."""
    n = Net(17)
    x = n.op("Cast", n.cbr("x", 3, 8), to=TensorProto.FLOAT)
    x = n.op("Concat", n.op("Pad", x, n.const([0] * 8)), axis=1)
    x = n.op("Slice", n.op("Clip", x), n.const([0]), n.const([2**31 - 1]), n.const([1]))
    flag = [n.const(0.5, np.float32), n.const(training, np.bool_)] if training else []
    x = n.op("Dropout", n.op("Identity", x), *flag)
    x = n.op("Cast", n.op("Cast", x, to=TensorProto.DOUBLE), to=TensorProto.FLOAT)
    x = n.op("Transpose", n.op("Transpose", n.op("Pad", x, n.const([0, 0, 1, 1, 0, 0, 1, 1])), perm=[0, 2, 3, 1]), perm=[0, 3, 1, 2])
    return n.model(n.head(x, 8))


def test_what_returns_its_input_goes_and_what_does_not_stays() -> None:
    graph = from_model(chain())
    new = irtool.Pipeline([irtool.RemoveIdentity()], check=True)(graph).graph
    ops = [node.op for node in new.nodes]
    assert (ops.count("Cast"), ops.count("Transpose"), ops.count("Pad")) == (2, 2, 1)
    assert not {"Identity", "Dropout", "Concat", "Slice", "Clip"} & set(ops)
    onnx.checker.check_model(new.proto, full_check=True)
    assert new.proto.graph.output == graph.proto.graph.output
    assert new.proto.graph.input == graph.proto.graph.input


def test_dropout_in_training_mode_stays() -> None:
    new = irtool.RemoveIdentity()(from_model(chain(training=True))).graph
    assert [node.op for node in new.nodes].count("Dropout") == 1


def test_outputs_keep_their_names() -> None:
    """An identity is all that gives a name to an input, and a second name to a value: these two stay."""
    n = Net(17, ("N", 8, 4, 4))
    y = n.op("Relu", "x")
    a, b, c = n.op("Identity", n.op("Identity", "x")), n.op("Identity", y), n.op("Identity", y)
    graph = from_model(n.model(a, b, c, ranks=[4, 4, 4]))
    new = irtool.Pipeline([irtool.RemoveIdentity()], check=True)(graph).graph
    assert [node.op for node in new.nodes].count("Identity") == 2
    assert [output.name for output in new.proto.graph.output] == [a, b, c]
    onnx.checker.check_model(new.proto, full_check=True)


class Torch(nn.Module):
    """An identity, dropout, and a copy that shields `x` from what works in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.same, self.drop, self.relu = nn.Conv2d(3, 4, 1), nn.Identity(), nn.Dropout(), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.same(self.conv(x))
        return self.drop(self.relu(torch.cat([y])) - y)


@pytest.mark.parametrize("dropout", [False, True])
def test_torch_graphs_stay_trainable_unless_asked(dropout: bool) -> None:
    graph = irtool.trace(Torch().eval(), torch.zeros(1, 3, 4, 4))
    result = irtool.Pipeline([irtool.RemoveIdentity(dropout=dropout)], check=True)(graph)
    ops = [node.op for node in result.graph.nodes]
    assert "Identity" not in ops
    assert ("Dropout" in ops) is not dropout
    assert "Concat" in ops


class Then(nn.Module):
    """A convolution, and an operator behind it."""

    def __init__(self, operator: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.operator = nn.Conv2d(3, 4, 1), operator

    def forward(self, x: Tensor) -> Tensor:
        return self.operator(self.conv(x))


STAY = {
    "relu6": nn.ReLU6(),
    "hardtanh": nn.Hardtanh(),
    "hardtanh_": functional.hardtanh_,
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "transpose": lambda x: x.transpose(1, 2),
    "swapaxes": lambda x: x.swapaxes(2, 3),
    "movedim": lambda x: x.movedim(1, 3),
    "pad to a size": lambda x: functional.pad(x, (0, x.shape[-1] % 2)),
    "a tuple": lambda x: torch.cat(x.split(8, 1), 1),
    "dropout in eval mode": lambda x: functional.dropout(x, 0.5, True),
    "its flag by position": lambda x: torch.dropout(x, 0.5, True),
    "bounds that are tensors": lambda x: torch.clamp(x, torch.tensor(-0.1), torch.full((4, 1, 1), 0.2)),
    "the last two axes exchanged": lambda x: x.mT,
    "a cut to the size that the example has": lambda x: x[:, :4],
}


@pytest.mark.parametrize("name", STAY)
def test_what_only_looks_like_an_identity_stays(name: str) -> None:
    """Bounds that nobody wrote, orders written one by one, and sizes that are 0 for the example alone."""
    graph = irtool.trace(Then(STAY[name]).eval(), torch.zeros(1, 3, 4, 4))
    assert not irtool.RemoveIdentity(dropout=True)(graph).changed


@pytest.mark.parametrize("move", [lambda x: x.transpose(1, -3), lambda x: x.permute((0, 1, 2, 3)), lambda x: x[:, :], nn.ZeroPad2d(0)])
def test_what_moves_nothing_goes(move: Callable[[Tensor], Tensor]) -> None:
    graph = irtool.trace(Then(move).eval(), torch.zeros(1, 3, 4, 4))
    assert [node.op for node in irtool.Pipeline([irtool.RemoveIdentity()], check=True)(graph).graph.nodes] == ["Input", "Conv", "Output"]


def test_a_pad_to_a_free_size_stays() -> None:
    n = Net(17, ("N", 3, 6, "W"))
    width = n.op("Gather", n.op("Shape", "x"), n.const([3]), axis=0)
    pads = n.op("Concat", n.const([0] * 7), n.op("Mod", width, n.const([2])), axis=0)
    graph = from_model(n.model(n.op("Pad", n.op("Relu", "x"), pads), ranks=[4]), {"x": (1, 3, 6, 6)})
    assert not irtool.RemoveIdentity()(graph).changed


def test_nothing_to_do_gives_the_same_graph() -> None:
    graph = irtool.trace(nn.Conv2d(3, 4, 1), torch.zeros(1, 3, 4, 4))
    result = irtool.RemoveIdentity()(graph)
    assert (result.graph is graph, result.changed) == (True, False)
