"""Sizes in a file with free axes: pruned, it gives what the zeroed original gives at every size, or refuses it after a note."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_judge import relative, zeroed_original
from onnx_nets import Net

import irtool
from irtool.hosts.onnx.files.load import from_model

C = 16
SHAPES = [(1, 3, 16, 16), (3, 3, 16, 16), (1, 3, 16, 32), (2, 3, 32, 32), (4, 3, 8, 8), (1, 3, 8, 32), (2, 3, 32, 8), (2, 3, 20, 12)]
Part = Callable[[Net, str], str]


def _sizes(n: Net, x: str, *axes: int) -> list[str]:
    shape = n.op("Shape", x)
    return [n.op("Gather", shape, n.const([axis])) for axis in axes]


def _listed(n: Net, *parts: str | int) -> str:
    return str(n.op("Concat", *[part if isinstance(part, str) else n.const([part]) for part in parts], axis=0))


def _conv(n: Net, x: str) -> str:
    return n.conv(x, C, 8, 1)


def _line(n: Net, x: str) -> str:
    return _conv(n, n.op("Unsqueeze", x, n.const([3])))


def _linear(width: int) -> Part:
    return lambda n, x: str(n.op("Gemm", x, n.weight(4, width), transB=1))


def _windows(n: Net, x: str) -> str:
    return _conv(n, n.op("ReduceMean", x, axes=[3, 5], keepdims=0))


def _rows(n: Net, x: str) -> str:
    return str(n.op("MatMul", n.op("Transpose", x, perm=[0, 2, 1]), n.weight(C * 16, 4)))


def _view(sizes: Sequence[int], after: Part) -> Part:
    return lambda n, x: after(n, n.op("Reshape", x, n.const(sizes)))


def _shuffle(n: Net, x: str) -> str:
    x = n.op("Transpose", n.op("Reshape", x, n.const([-1, 4, 4, 16, 16])), perm=[0, 2, 1, 3, 4])
    return _conv(n, n.op("Reshape", x, n.const([-1, C, 16, 16])))


def _heads(n: Net, x: str) -> str:
    x = n.op("Transpose", n.op("Reshape", x, n.const([-1, C, 256])), perm=[0, 2, 1])
    q, k = (
        n.op("Transpose", n.op("Reshape", n.op("MatMul", x, n.weight(C, C)), n.const([-1, 256, 4, 4])), perm=[0, 2, 1, 3]) for _ in "qk"
    )
    x = n.op("MatMul", n.op("MatMul", q, n.op("Transpose", k, perm=[0, 1, 3, 2])), k)
    return str(n.op("MatMul", n.op("Reshape", n.op("Transpose", x, perm=[0, 2, 1, 3]), n.const([-1, 256, C])), n.weight(C, 4)))


def _half_computed(n: Net, x: str) -> str:
    return _conv(n, n.op("Reshape", x, _listed(n, -1, C, *_sizes(n, x, 2), 16)))


def _pooled(n: Net, x: str) -> str:
    return _linear(C)(n, n.op("Reshape", n.op("AveragePool", x, kernel_shape=[16, 16], strides=[16, 16]), n.const([-1, C])))


def _sliced(n: Net, x: str) -> str:
    x = n.op("Slice", n.op("Flatten", x), n.const([0]), n.const([C // 2 * 256]), n.const([1]))
    return n.conv(n.op("Reshape", x, n.const([-1, C // 2, 16, 16])), C // 2, 8, 1)


def _gathered(n: Net, x: str) -> str:
    x = n.op("Gather", n.op("Flatten", x), n.const(np.arange(256 * C)[::-1].copy()), axis=1)
    return _conv(n, n.op("Reshape", x, n.const([-1, C, 16, 16])))


REFUSED: dict[str, Part] = {
    "rows": _view([-1, C * 256], _linear(C * 256)),
    "windows": _view([-1, C, 4, 4, 4, 4], _windows),
    "other shape": _view([-1, C, 8, 32], _conv),
    "batch of one": _view([1, C, -1], _line),
    "all fixed": _view([1, C, 16, 16], _conv),
    "channels left open": _view([1, -1, 16, 16], lambda n, x: str(n.op("ReduceSum", x, n.const([1]), keepdims=0))),
    "channels with rows": _view([-1, C * 16, 16], _rows),
    "without a batch": _view([C, -1], lambda n, x: str(n.op("MatMul", n.weight(4, C), x))),
    "one axis": _view([-1], lambda n, x: str(n.op("ReduceSum", x, n.const([0])))),
    "shuffle": _shuffle,
    "heads": _heads,
    "half computed": _half_computed,
    "pooled": _pooled,
    "sliced": _sliced,
    "gathered": _gathered,
}
"""Views that run at sizes at which they mix channels with other axes."""


def _flat(n: Net, x: str) -> str:
    batch, height, width = _sizes(n, x, 0, 2, 3)
    count = n.op("Mul", n.op("Mul", height, width), n.const([C]))
    flat = n.op("Relu", n.op("Reshape", x, _listed(n, batch, count)))
    return _conv(n, n.op("Reshape", flat, _listed(n, batch, C, height, width)))


def _flat_rest(n: Net, x: str) -> str:
    batch, height, width = _sizes(n, x, 0, 2, 3)
    count = n.op("Mul", n.op("Mul", height, width), n.const([C]))
    flat = n.op("Relu", n.op("Reshape", x, _listed(n, -1, count)))
    return _conv(n, n.op("Reshape", flat, _listed(n, batch, C, height, width)))


def _by_count(n: Net, x: str) -> str:
    channels, height, width = _sizes(n, x, 1, 2, 3)
    count = n.op("Cast", n.op("Mul", channels, n.op("Mul", height, width)), to=TensorProto.FLOAT)
    return _conv(n, n.op("Sub", x, n.op("Div", n.op("ReduceSum", x, n.const([1, 2, 3])), count)))


def _by_size(n: Net, x: str) -> str:
    return _conv(n, n.op("Div", x, n.op("Sqrt", n.op("Cast", n.op("Size", x), to=TensorProto.FLOAT))))


def _last(n: Net, x: str) -> str:
    return str(n.op("MatMul", n.op("Reshape", n.op("Transpose", x, perm=[0, 2, 3, 1]), n.const([-1, C])), n.weight(C, 4)))


def _pairs(n: Net, x: str) -> str:
    return str(n.op("MatMul", n.op("Reshape", n.op("Transpose", x, perm=[0, 2, 3, 1]), n.const([-1, 2 * C])), n.weight(2 * C, 4)))


RIGHT: dict[str, Part] = {
    "batch kept": _view([0, C, -1], _line),
    "batch computed": lambda n, x: _line(n, n.op("Reshape", x, _listed(n, *_sizes(n, x, 0), C, -1))),
    "flat by a computed count": _flat,
    "the batch is the rest": _flat_rest,
    "divided by a count of channels and places": _by_count,
    "divided by the number of all entries": _by_size,
    "channels last": _last,
    "pairs of places": _pairs,
}
"""Views that are right at every size, and numbers computed from sizes."""


def _model(part: Part, shape: Sequence[int | str] = ("N", 3, "H", "W")) -> onnx.ModelProto:
    n = Net(17, shape)
    output = part(n, n.op("Relu", n.conv("x", 3, C)))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))
    weights = [numpy_helper.from_array(array, name) for name, array in n.weights.items()]
    graph = helper.make_graph(n.nodes, "net", [x], [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray | None:
    """The result; None if the size is refused."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    try:
        found: np.ndarray = session.run(None, {"x": x})[0]
    except Exception:  # onnxruntime's classes of errors share no base
        return None
    return found


def _refusals(part: Part, rounds: int = 1) -> tuple[int, irtool.OnnxGraph]:
    """Prune by half, as often as asked; how many sizes are refused that the original takes."""
    original, refused = _model(part), 0
    graph, model, zeroed = from_model(original, [SHAPES[0]]), original, original
    for _ in range(rounds):
        plan = irtool.plan(graph, "random", 0.5, seed=1)
        assert plan.removed
        assert irtool.check_prune(graph, plan).ok
        zeroed = zeroed_original(model, plan, *SHAPES[0])
        graph = irtool.prune(graph, plan, "drop")
        model = graph.proto
    for shape in SHAPES:
        x = np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)
        expected, found = _run(zeroed, x), _run(graph.proto, x)
        if expected is not None and found is not None:
            assert relative(expected, found) < 1e-4, shape
        refused += found is None and _run(original, x) is not None
    assert _run(graph.proto, np.zeros(SHAPES[0], np.float32)) is not None
    return refused, graph


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("name", REFUSED)
def test_a_size_at_which_channels_would_mix_is_refused_and_told(name: str, rounds: int) -> None:
    refused, graph = _refusals(REFUSED[name], rounds)
    assert refused
    assert any("refused at sizes" in note for note in graph.notes)


@pytest.mark.parametrize("name", RIGHT)
def test_every_size_stays_right(name: str) -> None:
    refused, graph = _refusals(RIGHT[name])
    assert not refused
    assert not any("refused at sizes" in note for note in graph.notes)


@pytest.mark.parametrize("name", REFUSED)
def test_nothing_is_put_into_a_file_whose_images_have_one_size(name: str) -> None:
    graph = from_model(_model(REFUSED[name], (1, 3, 16, 16)))
    pruned = irtool.prune(graph, irtool.plan(graph, "random", 0.5), "drop")
    assert not any("guard" in node.name for node in pruned.host.nodes)
    assert not any("refused at sizes" in note for note in pruned.notes)


def test_a_guard_outlives_simplification() -> None:
    model = _model(REFUSED["batch of one"])
    graph = from_model(model, [SHAPES[0]])
    pruned = irtool.prune(graph, irtool.plan(graph, "random", 0.5), "drop")
    pruned.simplify_sizes()
    pruned.commit()
    assert _run(pruned.proto, np.zeros(SHAPES[0], np.float32)) is not None
    assert _run(pruned.proto, np.zeros(SHAPES[1], np.float32)) is None
