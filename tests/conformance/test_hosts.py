"""What every host does when its graph is edited: one list of behaviours, run for each host."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import irtool
from irtool.errors import GraphError
from irtool.ir.frontier import Stop
from irtool.ir.graph import Graph, Node, Value

TOLERANCE = 1e-5
"""Of float32, relative to the largest output."""
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Two layers with something between them, and a second reader of what the first gives."""

    def __init__(self, middle: Callable[[Tensor], Tensor] = lambda x: x, side: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1, bias=False)
        self.beside = nn.Conv2d(8, 4, 1)
        self.middle, self.side = middle, side

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        return self.second(self.middle(y)) + self.beside(self.side(y))


class Single(Net):
    """The same without the second reader."""

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.middle(self.first(x).relu()))


@dataclass(frozen=True)
class Host:
    """A host as the tests see it.

    Attributes:
        read: makes its graph of a model; the folder is for files.
        again: writes a graph into a file, and reads it.
    """

    read: Callable[[nn.Module, Path], Graph]
    again: Callable[[Graph, Path], Graph]


def _read_onnx(model: nn.Module, folder: Path) -> Graph:
    irtool.export_onnx(irtool.trace(model.eval(), X), folder / "net.onnx")
    return irtool.load_onnx(folder / "net.onnx", [tuple(X.shape)])


def _again_onnx(graph: Graph, folder: Path) -> Graph:
    irtool.save_onnx(graph, folder / "again.onnx")  # type: ignore[arg-type]
    return irtool.load_onnx(folder / "again.onnx", [tuple(X.shape)])


def _again_torch(graph: Graph, folder: Path) -> Graph:
    irtool.save(graph, folder / "again.safetensors")  # type: ignore[arg-type]
    return irtool.load(folder / "again.safetensors")


HOSTS = {
    "torch": Host(lambda model, folder: irtool.trace(model.eval(), X), _again_torch),
    "onnx": Host(_read_onnx, _again_onnx),
}


@pytest.fixture(params=HOSTS.values(), ids=HOSTS)
def host(request: pytest.FixtureRequest) -> Host:
    row: Host = request.param
    return row


@dataclass(frozen=True)
class Case:
    """An operator that is inserted behind the ReLU, or two where the first changes sizes, and what torch says of them."""

    function: Callable[[Tensor], Tensor]
    op: str
    attrs: Mapping[str, Any] = field(default_factory=dict)
    params: Sequence[Tensor] = ()
    twice: bool = False
    back: Mapping[str, Any] | None = None


def _drawn(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(2)) + 0.5


ORDER = torch.tensor([7, 0, 1, 2, 3, 6, 5, 4])
CASES = {
    "Relu": Case(torch.relu, "Relu"),
    "Sigmoid": Case(torch.sigmoid, "Sigmoid"),
    "Tanh": Case(torch.tanh, "Tanh"),
    "Exp": Case(lambda y: (0 * y + y).exp(), "Exp"),
    "Sqrt": Case(torch.sqrt, "Sqrt"),
    "Abs": Case(torch.abs, "Abs"),
    "Neg": Case(torch.neg, "Neg"),
    "Identity": Case(lambda y: y, "Identity"),
    "HardSwish": Case(F.hardswish, "HardSwish"),
    "LeakyRelu": Case(lambda y: F.leaky_relu(y, 0.3), "LeakyRelu", {"alpha": 0.3}),
    "Elu": Case(F.elu, "Elu"),
    "Clip": Case(lambda y: y.clamp(0.1, 0.7), "Clip", {"min": 0.1, "max": 0.7}),
    "Clip below": Case(lambda y: y.clamp(max=0.5), "Clip", {"max": 0.5}),
    "Softmax": Case(lambda y: y.softmax(1), "Softmax", {"axis": 1}),
    "Add": Case(lambda y: y + _drawn(1, 8, 1, 1), "Add", params=[_drawn(1, 8, 1, 1)]),
    "Add to itself": Case(lambda y: y + y, "Add", twice=True),
    "Sub": Case(lambda y: y - _drawn(8, 1, 1), "Sub", params=[_drawn(8, 1, 1)]),
    "Mul": Case(lambda y: y * _drawn(1, 8, 1, 1), "Mul", params=[_drawn(1, 8, 1, 1)]),
    "Div": Case(lambda y: y / _drawn(1, 8, 1, 1), "Div", params=[_drawn(1, 8, 1, 1)]),
    "Max": Case(lambda y: y.maximum(_drawn(1, 8, 1, 1)), "Max", params=[_drawn(1, 8, 1, 1)]),
    "Min": Case(lambda y: y.minimum(_drawn(1, 8, 1, 1)), "Min", params=[_drawn(1, 8, 1, 1)]),
    "MatMul": Case(lambda y: y @ _drawn(8, 8), "MatMul", params=[_drawn(8, 8)]),
    "Transpose": Case(lambda y: y.transpose(2, 3), "Transpose", {"perm": [0, 1, 3, 2]}),
    "Conv": Case(
        lambda y: F.conv2d(y, _drawn(8, 1, 3, 3), _drawn(8), padding=1, groups=8),
        "Conv", {"group": 8, "pads": [1, 1, 1, 1]}, [_drawn(8, 1, 3, 3), _drawn(8)],
    ),
    "BatchNormalization": Case(
        lambda y: F.batch_norm(y, _drawn(8), _drawn(8), _drawn(8), _drawn(8), eps=1e-3),
        "BatchNormalization", {"epsilon": 1e-3}, [_drawn(8)] * 4,
    ),
    "Gather": Case(lambda y: y[:, ORDER], "Gather", {"axis": 1}, [ORDER]),
    "ChannelSelect": Case(lambda y: y[:, ORDER], "ChannelSelect", params=[ORDER]),
    "Concat": Case(lambda y: y, "Concat", {"axis": 1}, twice=True, back={"starts": [8], "ends": [16], "axes": [1]}),
    "Pad": Case(lambda y: y, "Pad", {"pads": [0, 2, 0, 0, 0, 1, 0, 0]}, back={"starts": [2], "ends": [10], "axes": [1]}),
    "Reshape": Case(lambda y: y, "Reshape", {"shape": [2, 8, 64]}, back={"shape": [2, 8, 8, 8]}),
}  # fmt: skip


def node_of(graph: Graph, op: str) -> Node:
    """The first node of an operator."""
    return next(node for node in graph.nodes if node.op == op)


def far(a: Any, b: Any) -> float:
    """How far two graphs' only outputs are apart, relative to the larger's largest entry."""
    a, b = (value[0] if isinstance(value, tuple) else value for value in (a, b))
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max())


def inserted(graph: Graph, case: Case) -> Node:
    """Put a case behind the ReLU; all that read that read it now."""
    relu = node_of(graph, "Relu")
    params = [graph.add_param(f"inserted_{index}", data) for index, data in enumerate(case.params)]
    new = graph.insert(case.op, [relu.output] * (2 if case.twice else 1) + params, case.attrs, after=relu, name="inserted")
    last = new
    if case.back is not None:
        last = graph.insert("Reshape" if "shape" in case.back else "Slice", [new.output], case.back, after=new, name="back")
    graph.replace_uses(relu.output, last.output, [use for use in relu.output.uses if use is not new])
    return new


@pytest.mark.parametrize("name", CASES)
def test_an_inserted_operator_computes_what_torch_does(host: Host, name: str, tmp_path: Path) -> None:
    case = CASES[name]
    graph = host.read(Single(), tmp_path)
    new = inserted(graph, case)
    sizes = new.output.shape
    graph.commit()
    with torch.no_grad():
        expected = Single(case.function).eval()(X)
    assert far(graph.run(X), expected) <= TOLERANCE
    found = next(node for node in graph.nodes if node.name == new.name)
    assert found.op in (case.op, "Gemm" if case.op == "MatMul" else "")  # a product with a stored matrix is a linear layer
    assert found.output.shape == sizes, "its sizes are known when it is inserted"
    copy = graph.clone()
    assert copy.text() == graph.text()
    assert far(copy.run(X), expected) <= TOLERANCE
    again = host.again(graph, tmp_path)
    assert far(again.run(X), expected) <= TOLERANCE


@pytest.mark.parametrize("name", ["Add", "Mul", "Relu", "Concat", "ChannelSelect", "Pad"])
def test_a_graph_with_an_inserted_operator_is_planned_and_pruned(host: Host, name: str, tmp_path: Path) -> None:
    graph = host.read(Single(), tmp_path)
    inserted(graph, CASES[name])
    graph.commit()
    plan = irtool.plan(graph, "l1", 0.5, round_to=1)
    assert plan.removed > 0
    assert irtool.check_prune(graph, plan, (X,)).ok


def test_one_reader_alone_may_change_over(host: Host, tmp_path: Path) -> None:
    graph = host.read(Net(), tmp_path)
    relu = node_of(graph, "Relu")
    wide = next(use for use in relu.output.uses if use.operands["weight"].sizes[2:] == (3, 3))
    new = graph.insert("Tanh", [relu.output], before=wide)
    graph.replace_uses(relu.output, new.output, [wide])
    assert wide.input is new.output
    assert new.output.uses == [wide]
    graph.commit()
    with torch.no_grad():
        assert far(graph.run(X), Net(torch.tanh).eval()(X)) <= TOLERANCE


def test_edges_are_true_between_two_edits(host: Host, tmp_path: Path) -> None:
    graph = host.read(Single(), tmp_path)
    relu, (conv,) = node_of(graph, "Relu"), node_of(graph, "Relu").output.uses
    values: list[Value] = [relu.output]
    for op in ("Tanh", "Sigmoid", "Neg"):
        made = graph.insert(op, [values[-1]], before=conv)
        graph.replace_uses(values[-1], made.output)
        assert conv.input is made.output
        assert values[-1].uses == [made]
        values.append(made.output)
    tanh = values[1].producer
    assert tanh is not None
    for node in (tanh, relu):  # two in a row, without a commit between them
        graph.bypass(node)
    graph.commit()
    assert [node.op for node in graph.nodes if node.op not in ("Input", "Output")] == ["Conv", "Sigmoid", "Neg", "Conv"]
    net = Single().eval()
    with torch.no_grad():
        assert far(graph.run(X), net.second(-net.first(X).sigmoid())) <= TOLERANCE


def test_outputs_keep_their_names(host: Host, tmp_path: Path) -> None:
    graph = host.read(Single(), tmp_path)
    names = [value.name for value in graph.outputs]
    new = graph.insert("Neg", [graph.outputs[0]], before=graph.nodes[-1])
    graph.replace_uses(graph.outputs[0], new.output)
    assert graph.outputs == (new.output,)
    graph.commit()
    with torch.no_grad():
        assert far(graph.run(X), -Single().eval()(X)) <= TOLERANCE
    if isinstance(graph, irtool.OnnxGraph):
        assert [value.name for value in graph.outputs] == names
    graph.bypass(node_of(graph, "Neg"))
    graph.commit()
    with torch.no_grad():
        assert far(graph.run(X), Single().eval()(X)) <= TOLERANCE
    if isinstance(graph, irtool.OnnxGraph):
        assert [value.name for value in graph.outputs] == names


def test_an_output_may_be_an_input(host: Host, tmp_path: Path) -> None:
    graph = host.read(Single(), tmp_path)
    graph.replace_uses(graph.outputs[0], graph.inputs[0])
    graph.commit()
    assert far(graph.run(X), X) == 0
    assert not any(node.op == "Conv" for node in graph.nodes), "what edits left unread is gone"


def test_a_parameter_gives_way_to_one_of_another_shape(host: Host, tmp_path: Path) -> None:
    graph = host.read(Single(), tmp_path)
    conv = node_of(graph, "Relu").output.uses[0]
    weight, name = conv.operands["weight"], conv.operands["weight"].name
    wider = _drawn(6, 8, 3, 3)
    graph.replace_uses(weight, graph.add_param("wider", wider))
    assert conv.operands["weight"].name == name
    graph.commit()
    assert graph.params[name].shape == (6, 8, 3, 3)
    net = Single().eval()
    net.second.weight = nn.Parameter(wider)
    with torch.no_grad():
        assert far(graph.run(X), net(X)) <= TOLERANCE
    assert far(host.again(graph, tmp_path).run(X), graph.run(X)) <= TOLERANCE


def test_a_constant_takes_the_place_of_an_operator(host: Host, tmp_path: Path) -> None:
    graph = host.read(Net(), tmp_path)
    second = next(node for node in graph.nodes if node.op == "Conv" and node.get("bias") is None)
    graph.replace_uses(second.output, graph.add_param("constant", _drawn(1, 4, 1, 1), trainable=False))
    graph.commit()
    assert sum(node.op == "Conv" for node in graph.nodes) == 2
    net = Net().eval()
    with torch.no_grad():
        assert far(graph.run(X), _drawn(1, 4, 1, 1) + net.beside(net.first(X).relu())) <= TOLERANCE


def test_a_bias_is_seen_when_it_is_given(host: Host, tmp_path: Path) -> None:
    graph = host.read(Single(), tmp_path)
    conv = node_of(graph, "Relu").output.uses[0]
    graph.give_bias(conv, _drawn(4), "given")
    bias = conv.operands["bias"]
    assert bias.data is not None
    graph.set_param(bias.name, 2 * bias.data)
    graph.commit()
    with torch.no_grad():
        assert far(graph.run(X), Single().eval()(X) + 2 * _drawn(4).reshape(-1, 1, 1)) <= TOLERANCE


ATTRIBUTES: dict[str, tuple[Case, str, Any, Callable[[Tensor], Tensor]]] = {
    "LeakyRelu": (CASES["LeakyRelu"], "alpha", 0.6, lambda y: F.leaky_relu(y, 0.6)),
    "Elu": (CASES["Elu"], "alpha", 2.0, lambda y: F.elu(y, 2.0)),
    "Clip": (CASES["Clip"], "max", 0.4, lambda y: y.clamp(0.1, 0.4)),
    "Softmax": (CASES["Softmax"], "axis", 3, lambda y: y.softmax(3)),
    "BatchNormalization": (CASES["BatchNormalization"], "epsilon", 0.5, lambda y: F.batch_norm(y, *[_drawn(8)] * 4, eps=0.5)),
}


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_an_attribute_can_be_changed(host: Host, name: str, tmp_path: Path) -> None:
    case, attribute, value, function = ATTRIBUTES[name]
    graph = host.read(Single(lambda y: y), tmp_path)
    new = inserted(graph, case)
    graph.commit()
    graph.set_attr(next(node for node in graph.nodes if node.name == new.name), attribute, value)
    graph.commit()
    with torch.no_grad():
        assert far(graph.run(X), Single(function).eval()(X)) <= TOLERANCE


def test_sizes_follow_an_attribute_of_a_layer(host: Host, tmp_path: Path) -> None:
    graph = host.read(Single(), tmp_path)
    graph.set_attr(node_of(graph, "Conv"), "pads", [0, 0, 0, 0])
    graph.commit()
    assert graph.outputs[0].shape == (2, 4, 6, 6)
    net = Single().eval()
    net.first.padding = (0, 0)
    with torch.no_grad():
        assert far(graph.run(X), net(X)) <= TOLERANCE


REFUSALS: dict[str, Callable[[Graph, Node], object]] = {
    "an operator that nobody knows": lambda graph, relu: graph.insert("Frobnicate", [relu.output], after=relu),
    "an attribute that the operator does not have": lambda graph, relu: graph.insert("Relu", [relu.output], {"axis": 1}, after=relu),
    "operands that do not fit": lambda graph, relu: graph.insert("Add", [relu.output, graph.add_param("c", _drawn(5))], after=relu),
    "no place": lambda graph, relu: graph.insert("Relu", [relu.output]),
    "two places": lambda graph, relu: graph.insert("Relu", [relu.output], before=relu, after=relu),
    "a node that is read": lambda graph, relu: graph.erase(relu),
    "an input": lambda graph, relu: graph.erase(graph.nodes[0]),
    "the output": lambda graph, relu: graph.erase(graph.nodes[-1]),
    "an attribute that is not there": lambda graph, relu: graph.set_attr(relu, "alpha", 1.0),
    "a parameter of another shape": lambda graph, relu: graph.set_param(node_of(graph, "Conv").operands["weight"].name, _drawn(2)),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_done_is_refused_and_leaves_the_graph_as_it_was(host: Host, name: str, tmp_path: Path) -> None:
    graph = host.read(Single(), tmp_path)
    text = graph.text()
    with pytest.raises(GraphError) as told:
        REFUSALS[name](graph, node_of(graph, "Relu"))
    assert told.value.remedy
    assert "\n" not in str(told.value)
    graph.commit()
    assert graph.text() == text
    with torch.no_grad():
        assert far(graph.run(X), Single().eval()(X)) <= TOLERANCE


def _read_too_early(graph: Graph) -> None:
    """Let the ReLU read something that is made of what it gives."""
    relu = node_of(graph, "Relu")
    new = graph.insert("Tanh", [relu.output.uses[0].output], before=relu)
    graph.replace_uses(relu.input, new.output, [relu])
    graph.commit()


def test_what_is_read_before_it_is_made_is_refused(host: Host, tmp_path: Path) -> None:
    with pytest.raises(GraphError, match=r"not made before|made after"):
        _read_too_early(host.read(Single(), tmp_path))


def test_an_operator_may_stand_right_behind_an_input(host: Host, tmp_path: Path) -> None:
    graph = host.read(Single(), tmp_path)
    shift = graph.add_param("shift", _drawn(3, 1, 1))
    new = graph.insert("Sub", [graph.inputs[0], shift], after=graph.nodes[0])
    graph.replace_uses(graph.inputs[0], new.output)
    graph.commit()
    with torch.no_grad():
        assert far(graph.run(X), Single().eval()(X - _drawn(3, 1, 1))) <= TOLERANCE
    assert [value.shape for value in graph.inputs] == [X.shape]


class Halves(Single):
    """Channels in two halves, of which one is read, or both in another order."""

    def __init__(self, both: bool) -> None:
        super().__init__()
        self.both = both

    def forward(self, x: Tensor) -> Tensor:
        first, other = self.first(x).relu().split([4, 4], 1)
        return self.second(torch.cat([other, first] if self.both else [first, first], 1))


@pytest.mark.parametrize("both", [True, False], ids=["both", "one"])
def test_a_part_of_a_result_is_read_alone(host: Host, both: bool, tmp_path: Path) -> None:
    graph = host.read(Halves(both), tmp_path)
    split, join = node_of(graph, "Split"), node_of(graph, "Concat")
    new = graph.insert("Tanh", [split.outputs[1]], after=split)
    if both:
        graph.replace_uses(split.outputs[1], new.output)
    else:
        total = graph.insert("Add", [join.output, graph.insert("Concat", [new.output] * 2, {"axis": 1}, after=new).output], after=join)
        graph.replace_uses(join.output, total.output)
    graph.commit()
    net = Halves(both).eval()
    with torch.no_grad():
        first, other = net.first(X).relu().split([4, 4], 1)
        other = other.tanh()
        expected = net.second(torch.cat([other, first], 1) if both else torch.cat([first + other] * 2, 1))
    assert far(graph.run(X), expected) <= TOLERANCE


def test_only_a_reader_that_nothing_accompanies_reads_alone(host: Host, tmp_path: Path) -> None:
    graph = host.read(Net(), tmp_path)
    conv, relu = node_of(graph, "Conv"), node_of(graph, "Relu")
    assert graph.only_reader(conv.output) is relu
    assert graph.only_reader(relu.output) is None
    assert graph.only_reader(graph.outputs[0]) is None


def test_a_long_series_of_edits_takes_time_like_its_length(host: Host, tmp_path: Path) -> None:
    """Nothing walks over the whole program for an edit more than a list does: 400 edits of 400 operators, in one commit."""
    graph = host.read(Single(lambda y: functools.reduce(lambda x, _: x.tanh().sigmoid(), range(200), y)), tmp_path)
    inner = [node for node in graph.nodes if node.op in ("Tanh", "Sigmoid")]
    for node in inner[::2]:
        new = graph.insert("Neg", [node.output], after=node)
        graph.replace_uses(node.output, new.output)
        graph.bypass(node)
    graph.commit()
    assert sum(node.op == "Neg" for node in graph.nodes) == 200
    assert sum(node.op == "Tanh" for node in graph.nodes) == 0


def test_batches_side_by_side_take_what_a_stop_gives(host: Host, tmp_path: Path) -> None:
    graph = host.read(Single(), tmp_path)
    relu = node_of(graph, "Relu")
    (conv,) = relu.output.uses
    frontier = graph.side_by_side([(X,), (2 * X,)], [Stop(node, [(node.input, node)]) for node in (relu, conv)])
    with frontier.running(), torch.no_grad():
        frontier.advance(relu)
        read = frontier.value(1, relu.input).clone()
        frontier.give(0, relu, -frontier.value(0, relu.input))
        frontier.give(1, relu, read.tanh())
        frontier.advance(conv)
        seen = [frontier.value(batch, conv.input).clone() for batch in range(2)]
    net = Single().eval()
    with torch.no_grad():
        assert far(seen[0], -net.first(X)) <= TOLERANCE
        assert far(seen[1], net.first(2 * X).tanh()) <= TOLERANCE
        assert far(graph.run(X), net(X)) <= TOLERANCE, "the graph itself stays"
