"""A tensor that is filled to a value's own sizes (zeros to append, a mask of ones) loses the channels that the value loses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_judge import in_onnxruntime, relative, zeroed_original
from onnx_nets import Net

import irtool
from irtool.hosts.onnx.files.load import from_model

Part = Callable[[Net, str], tuple[str, int]]
HALF = helper.make_tensor("half", TensorProto.FLOAT, [1], [0.5])


def _filled(n: Net, sizes: str) -> str:
    return str(n.op("ConstantOfShape", sizes, value=HALF))


def _appended(n: Net, x: str) -> tuple[str, int]:
    return n.op("Concat", x, _filled(n, n.op("Shape", x)), axis=1), 16


def _added(n: Net, x: str) -> tuple[str, int]:
    return n.op("Add", x, _filled(n, n.op("Shape", x))), 8


def _listed(n: Net, x: str) -> tuple[str, int]:
    shape = n.op("Shape", x)
    sizes = [n.op("Unsqueeze", n.op("Gather", shape, n.const(axis), axis=0), n.const([0])) for axis in range(4)]
    return n.op("Concat", _filled(n, n.op("Concat", *sizes, axis=0)), x, axis=1), 16


def _sliced(n: Net, x: str) -> tuple[str, int]:
    shape = n.op("Shape", x)
    first, last = (n.op("Slice", shape, n.const([a]), n.const([b]), n.const([0])) for a, b in ((0, 2), (2, 4)))
    return n.op("Where", n.op("Greater", x, n.const(0, np.float32)), x, _filled(n, n.op("Concat", first, last, axis=0))), 8


def _expanded(n: Net, x: str) -> tuple[str, int]:
    return n.op("Concat", x, n.op("Expand", n.const([0.5], np.float32), n.op("Shape", x)), axis=1), 16


def _twice(n: Net, x: str) -> tuple[str, int]:
    return n.op("Concat", x, _filled(n, n.op("Mul", n.op("Shape", x), n.const([1, 2, 1, 1]))), axis=1), 24


def _scaled(n: Net, x: str) -> tuple[str, int]:
    return n.op("Concat", x, n.op("Mul", _filled(n, n.op("Shape", x)), n.const(3, np.float32)), axis=1), 16


def _fixed(n: Net, x: str) -> tuple[str, int]:
    batch, image = (n.op("Slice", n.op("Shape", x), n.const([a]), n.const([b]), n.const([0])) for a, b in ((0, 1), (2, 4)))
    return n.op("Concat", x, _filled(n, n.op("Concat", batch, n.const([4]), image, axis=0)), axis=1), 12


PARTS: dict[str, Part] = {
    "appended": _appended, "added": _added, "sizes one by one": _listed, "sizes in slices": _sliced, "a number that is expanded": _expanded,
    "twice as many": _twice, "filled and scaled": _scaled, "as many as are stated": _fixed,
}  # fmt: skip


def _model(part: Part) -> onnx.ModelProto:
    n = Net(17, ("N", 3, "H", "W"))
    x, width = part(n, n.conv("x", 3, 8))
    return n.model(n.conv(x, width, 4, 1), ranks=[4])


@pytest.mark.parametrize("name", PARTS)
def test_filled_to_a_values_sizes(name: str) -> None:
    model = _model(PARTS[name])
    graph = from_model(model, [(1, 3, 8, 8)])
    plan = irtool.plan(graph, "random", 0.5)
    assert plan.removed == 4
    assert irtool.check_prune(graph, plan).ok
    small = irtool.prune(graph, plan, "drop").proto.SerializeToString()
    zeroed = zeroed_original(model, plan, 1, 3, 8, 8).SerializeToString()
    for shape in ((1, 3, 8, 8), (3, 3, 8, 8), (2, 3, 12, 10)):
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        assert relative(in_onnxruntime(zeroed, x)[0], in_onnxruntime(small, x)[0]) < 1e-5
