"""Large ONNX programs: the work grows like the program, whatever hangs on one value; what would not is refused before it is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper
from onnx_nets import Net

import irtool
from irtool.errors import FileError
from irtool.hosts.onnx.files.load import from_model

COUNT = 600


def readers_alike(n: Net, x: str) -> str:
    """Many operators that compute the same of one value."""
    return n.op("Sum", *(n.op("Relu", x) for _ in range(COUNT)))


def dead_readers(n: Net, x: str) -> str:
    for _ in range(COUNT):
        n.op("Relu", x)
    return n.op("Relu", x)


def one_constant(n: Net, x: str) -> str:
    """A constant that is computed, and read everywhere."""
    half = n.op("Neg", n.op("Identity", n.const(-0.5, np.float32)))
    for _ in range(COUNT):
        x = n.op("Add", n.op("Mul", x, half), half)
    return x


def folded_readers(n: Net, x: str) -> str:
    """Operators on one constant, all of which can be computed while reading."""
    two = n.const(2.0, np.float32)
    return n.op("Mul", x, n.op("Max", *(n.op("Sqrt", two) for _ in range(COUNT))))


def decided_branches(n: Net, x: str) -> str:
    yes = n.const(True, np.bool_)
    for number in range(COUNT // 10):
        bodies = {}
        for name, kind in (("then_branch", "Relu"), ("else_branch", "Neg")):
            result = helper.make_tensor_value_info(f"{name}_{number}", TensorProto.FLOAT, None)
            bodies[name] = helper.make_graph([helper.make_node(kind, [x], [result.name])], name, [], [result])
        x = n.op("If", yes, **bodies)
    return x


KINDS: dict[str, Callable[[Net, str], str]] = {
    "readers alike": readers_alike,
    "dead readers": dead_readers,
    "one constant": one_constant,
    "folded readers": folded_readers,
    "decided branches": decided_branches,
}


@pytest.mark.parametrize("kind", KINDS)
def test_no_node_is_looked_for_among_all(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """graphsurgeon finds a node in a list by comparing it with each: a square of the program's length."""
    n = Net(17, (1, 3, 8, 8))
    model = n.model(n.head(n.conv(KINDS[kind](n, n.cbr("x", 3, 8)), 8, 6), 6))
    compared = 0

    def equal(node: gs.Node, other: Any) -> bool:
        nonlocal compared
        compared += 1
        return node is other

    monkeypatch.setattr(gs.Node, "__eq__", equal)
    graph = from_model(model)
    simple = irtool.simplify(graph)
    pruned = irtool.prune(graph, irtool.plan(graph, "l1", ratio=0.5))
    assert len(simple.host.nodes) <= len(graph.host.nodes)
    assert len(pruned.nodes) == len(graph.nodes)
    assert compared < COUNT


def test_the_last_of_a_hundred_thousand_operators_is_one_too_many() -> None:
    nodes = [helper.make_node("Relu", [f"v{i}"], [f"v{i + 1}"]) for i in range(100_001)]
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("v0", "v100001")]
    model = helper.make_model(helper.make_graph(nodes, "g", value[:1], value[1:]), opset_imports=[helper.make_opsetid("", 17)])
    with pytest.raises(FileError, match=r"100,001 operators, its functions inlined: irtool reads at most 100,000"):
        from_model(model)


def test_many_bodies_in_a_large_graph_are_refused_before_they_are_read() -> None:
    info = helper.make_tensor_value_info("r", TensorProto.FLOAT, [1, 4])
    body = helper.make_graph([helper.make_node("Relu", ["x"], ["r"])], "body", [], [info])
    nodes = [helper.make_node("If", ["yes"], [f"a{i}"], then_branch=body, else_branch=body) for i in range(8_000)]
    model = helper.make_model(
        helper.make_graph(
            [*nodes, helper.make_node("Sum", [f"a{i}" for i in range(8_000)], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4]), helper.make_tensor_value_info("yes", TensorProto.BOOL, [])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
    )
    assert onnx.checker.check_model(model) is None
    with pytest.raises(FileError, match=r"operators around bodies of control flow"):
        from_model(model)
