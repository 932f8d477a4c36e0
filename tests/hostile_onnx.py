"""Small .onnx files that ask for more than any machine has: each function writes one, and returns its path."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
Maker = Callable[[Path], Path]


def model(nodes: Iterable[NodeProto], constants: dict[str, Any] | None = None, **more: Any) -> onnx.ModelProto:
    """A model whose input is `x` (1, 8) and whose output is `y`; constants are int64 unless they are arrays."""
    held = [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()]
    inputs = more.pop("inputs", [helper.make_tensor_value_info("x", FLOAT, [1, 8])])
    outputs = more.pop("outputs", [helper.make_tensor_value_info("y", FLOAT, ["n", "m"])])
    graph = helper.make_graph(list(nodes), "g", inputs, outputs, held, **more.pop("graph", {}))
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("d", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9, **more)


def node(kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> NodeProto:
    return helper.make_node(kind, list(inputs), list(outputs), **attributes)


def write(folder: Path, made: onnx.ModelProto) -> Path:
    path = folder / "m.onnx"
    path.write_bytes(made.SerializeToString())
    return path


def shaped(constant: Sequence[NodeProto], constants: dict[str, Any]) -> onnx.ModelProto:
    """`y = x + big`, where the nodes make `big`."""
    return model([*constant, node("ReduceSum", ["big"], ["all"], keepdims=0), node("Add", ["x", "all"], ["y"])], constants)


def function(name: str, nodes: Sequence[NodeProto]) -> onnx.FunctionProto:
    return helper.make_function("d", name, ["x"], ["y"], list(nodes), [helper.make_opsetid("", 17), helper.make_opsetid("d", 1)])


def functions(depth: int, calls: int) -> onnx.ModelProto:
    """Functions, each of which calls the next so many times."""
    made = []
    for level in range(depth):
        kind, domain = (f"f{level + 1}", "d") if level + 1 < depth else ("Relu", "")
        names = ["x", *(f"t{call}" for call in range(1, calls)), "y"]
        body = [helper.make_node(kind, [a], [b], domain=domain) for a, b in itertools.pairwise(names)]
        made.append(function(f"f{level}", body))
    return model([helper.make_node("f0", ["x"], ["y"], domain="d")], functions=made)


def self_calling() -> onnx.ModelProto:
    first = function("f0", [helper.make_node("f1", ["x"], ["y"], domain="d")])
    second = function("f1", [helper.make_node("f0", ["x"], ["y"], domain="d")])
    return model([helper.make_node("f0", ["x"], ["y"], domain="d")], functions=[first, second])


def doubled(kind: str, times: int, start: Any, constants: dict[str, Any] | None = None) -> onnx.ModelProto:
    """A constant that a node makes twice as long, again and again."""
    step = {"Concat": lambda a: [a, a], "StringConcat": lambda a: [a, a]}.get(kind, lambda a: [a, "two"])
    attributes = {"axis": 0} if kind == "Concat" else {}
    nodes = [node(kind, step(f"c{i}"), [f"c{i + 1}"], **attributes) for i in range(times)]
    nodes.append(node("Identity", [f"c{times}"], ["big"]))
    return shaped(nodes, {"c0": start, **(constants or {})})


def many_fills(count: int, size: int) -> onnx.ModelProto:
    nodes = [node("ConstantOfShape", [f"s{i}"], [f"big{i}"]) for i in range(count)]
    nodes += [node("ReduceSum", [f"big{i}"], [f"r{i}"], keepdims=0) for i in range(count)]
    nodes.append(node("Sum", ["x", *(f"r{i}" for i in range(count))], ["y"]))
    return model(nodes, {f"s{i}": np.array([size + i]) for i in range(count)})


def from_shape(kind: str, *rest: str, **constants: Any) -> onnx.ModelProto:
    """A size that follows from the input's, times 10^9, as an operator's argument."""
    nodes = [node("Shape", ["x"], ["s"]), node("Mul", ["s", "billion"], ["sizes"]), node(kind, [*rest, "sizes"], ["big"])]
    return shaped(nodes, {"billion": np.array(10**9), **constants})


def ranged() -> onnx.ModelProto:
    nodes = [node("Size", ["x"], ["s"]), node("Mul", ["s", "billion"], ["stop"]), node("Range", ["zero", "stop", "one"], ["big"])]
    return shaped(nodes, {"billion": np.array(10**9), "zero": np.array(0), "one": np.array(1)})


def loop(rounds: int, *, growing: bool) -> onnx.ModelProto:
    """A Loop; growing, its state is twice as long after each round."""
    state = helper.make_tensor_value_info
    step = node("Concat", ["a", "a"], ["b"], axis=0) if growing else node("Abs", ["a"], ["b"])
    body = helper.make_graph(
        [step, node("Identity", ["c"], ["d"])],
        "body",
        [state("i", INT64, []), state("c", TensorProto.BOOL, []), state("a", FLOAT, ["n", "m"])],
        [state("d", TensorProto.BOOL, []), state("b", FLOAT, ["p", "m"])],
    )
    nodes = [node("Loop", ["rounds", "true", "x"], ["z"], body=body), node("ReduceSum", ["z"], ["all"], keepdims=0)]
    return model([*nodes, node("Add", ["x", "all"], ["y"])], {"rounds": np.array(rounds), "true": np.array(True)})


def in_a_branch(inner: Sequence[NodeProto], result: str = "r") -> onnx.ModelProto:
    """An If whose branch runs what is given."""
    value = helper.make_tensor_value_info(result, FLOAT, [])
    branches = {name: helper.make_graph(list(inner), name, [], [value]) for name in ("then_branch", "else_branch")}
    nodes = [node("ReduceSum", ["x"], ["sum"], keepdims=0), node("Greater", ["sum", "zero"], ["yes"])]
    nodes += [node("If", ["yes"], ["z"], **branches), node("Add", ["x", "z"], ["y"])]
    return model(nodes, {"zero": np.array(0, np.float32), "huge": np.array([10**6, 10**6])})


def heavy_branch() -> onnx.ModelProto:
    """Products of large matrices, hidden from shape inference."""
    side = numpy_helper.from_array(np.array([9000, 9000]))
    inner = [node("Constant", [], ["side"], value=side), node("ConstantOfShape", ["side"], ["m0"])]
    inner += [node("MatMul", ["m0", f"m{i}"], [f"m{i + 1}"]) for i in range(200)]
    return in_a_branch([*inner, node("ReduceSum", ["m200"], ["r"], keepdims=0)])


def nested(depth: int) -> onnx.ModelProto:
    value = helper.make_tensor_value_info("r", FLOAT, ["n", "m"])
    graph = helper.make_graph([node("Identity", ["x"], ["r"])], "leaf", [], [value])
    for _ in range(depth):
        graph = helper.make_graph([node("If", ["yes"], ["r"], then_branch=graph, else_branch=graph)], "b", [], [value])
    return model([node("If", ["yes"], ["y"], then_branch=graph, else_branch=graph)], {"yes": np.array(True)})


def deep_through_functions(levels: int, each: int) -> onnx.ModelProto:
    """Bodies within bodies, some in each function: a parser meets only a few of them at once."""
    value, made = helper.make_tensor_value_info("r", FLOAT, ["n", "m"]), []
    for level in range(levels):
        call = helper.make_node(f"f{level + 1}", ["x"], ["r"], domain="d") if level + 1 < levels else node("Relu", ["x"], ["r"])
        graph = helper.make_graph([call], "leaf", [], [value])
        for _ in range(each):
            graph = helper.make_graph([node("If", ["yes"], ["r"], then_branch=graph, else_branch=graph)], "b", [], [value])
        yes = node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True)))
        made.append(function(f"f{level}", [yes, node("If", ["yes"], ["y"], then_branch=graph, else_branch=graph)]))
    return model([helper.make_node("f0", ["x"], ["y"], domain="d")], functions=made)


def sparse_tensor(size: int) -> onnx.SparseTensorProto:
    values, places = numpy_helper.from_array(np.ones(1, np.float32), "v"), numpy_helper.from_array(np.zeros(1, np.int64), "i")
    return helper.make_sparse_tensor(values, places, [size])


def sparse(size: int, *, in_branch: bool) -> onnx.ModelProto:
    held = sparse_tensor(size)
    if in_branch:
        return in_a_branch([node("Constant", [], ["w"], sparse_value=held), node("ReduceSum", ["w"], ["r"], keepdims=0)])
    held.values.name = "big"
    return model([node("ReduceSum", ["big"], ["all"], keepdims=0), node("Add", ["x", "all"], ["y"])], graph={"sparse_initializer": [held]})


def gemms(count: int, size: int) -> onnx.ModelProto:
    """Layers that share one weight, each with a factor of its own."""
    nodes = [node("Gemm", ["x", "w"], [f"g{i}"], alpha=2.0 + i) for i in range(count)]
    return model([*nodes, node("Sum", [f"g{i}" for i in range(count)], ["y"])], {"w": np.zeros((8, size), np.float32)})


def slow_constant(kind: str) -> onnx.ModelProto:
    """Constants that take long to compute, each of a modest size."""
    fill = [node("ConstantOfShape", ["shape"], ["a"])]
    if kind == "Conv":
        made = [*fill, node("Conv", ["a", "a"], ["b"], pads=[500] * 4)]
        return shaped([*made, node("Identity", ["b"], ["big"])], {"shape": np.array([1, 1, 1000, 1000])})
    if kind == "Resize":
        made = [*fill, node("Resize", ["a", "", "scales"], ["big"], mode="cubic")]
        return shaped(made, {"shape": np.array([1, 1, 2000, 2000]), "scales": np.ones(4, np.float32)})
    chain = [node("MatMul", ["a", "a" if not i else f"m{i - 1}"], [f"m{i}"]) for i in range(50)]
    return shaped([*fill, *chain, node("Identity", ["m49"], ["big"])], {"shape": np.array([6000, 6000])})


def inputs(count: int, shape: Sequence[int]) -> onnx.ModelProto:
    described = [helper.make_tensor_value_info(f"x{i}", FLOAT, shape) for i in range(count)]
    return model([node("Sum", [f"x{i}" for i in range(count)], ["y"])], inputs=described)


def chain(count: int) -> onnx.ModelProto:
    names = ["x", *(f"t{i}" for i in range(count - 1)), "y"]
    return model([node("Relu", [a], [b]) for a, b in itertools.pairwise(names)])


def one_for_all(count: int) -> onnx.ModelProto:
    """A constant that very many nodes read."""
    names = ["x", *(f"t{i}" for i in range(count - 1)), "y"]
    first = node("Constant", [], ["c"], value=numpy_helper.from_array(np.ones(8, np.float32)))
    return model([first, *(node("Add", [a, "c"], [b]) for a, b in itertools.pairwise(names))])


def wide(count: int) -> onnx.ModelProto:
    first = node("Constant", [], ["c"], value=numpy_helper.from_array(np.ones((1, 8), np.float32)))
    return model([first, node("Concat", ["x", *["c"] * count], ["y"], axis=0)])


def many_outputs(count: int) -> onnx.ModelProto:
    outputs = [helper.make_tensor_value_info(f"y{i}", FLOAT, [1, 8]) for i in range(count)]
    return model([node("Relu", ["x"], [f"y{i}"]) for i in range(count)], outputs=outputs)


def many_branches(count: int) -> onnx.ModelProto:
    names, nodes = ["x", *(f"t{i}" for i in range(count - 1)), "y"], []
    for a, b in itertools.pairwise(names):
        value = helper.make_tensor_value_info(f"{b}r", FLOAT, [1, 8])
        graph = helper.make_graph([node("Abs", [a], [f"{b}r"])], f"g{b}", [], [value])
        other = helper.make_graph([node("Neg", [a], [f"{b}r"])], f"h{b}", [], [value])
        nodes.append(node("If", ["yes"], [b], then_branch=graph, else_branch=other))
    return model(nodes, {"yes": np.array(True)})


def same_bytes(folder: Path, count: int, length: bool) -> Path:
    """Weights that are all the same bytes of one file."""
    (folder / "w.bin").write_bytes(bytes(4 << 20))
    nodes = [node("ReduceSum", [f"w{i}"], [f"r{i}"], keepdims=0) for i in range(count)]
    made = model([*nodes, node("Sum", ["x", *(f"r{i}" for i in range(count))], ["y"])])
    for index in range(count):
        tensor = made.graph.initializer.add(name=f"w{index}", data_type=FLOAT, dims=[1 << 20], data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value="w.bin")
        if length:
            tensor.external_data.add(key="length", value=str(4 << 20))
    return write(folder, made)


def outside_by_function(folder: Path) -> Path:
    """A function's constant that lies in another file: wherever the process stands."""
    tensor = TensorProto(name="w", data_type=FLOAT, dims=[8], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "secret.bin"), ("length", "32")):
        tensor.external_data.add(key=key, value=value)
    body = [node("Constant", [], ["w"], value=tensor), node("Add", ["x", "w"], ["y"])]
    (folder / "secret.bin").write_bytes(bytes(32))
    return write(folder, model([helper.make_node("f", ["x"], ["y"], domain="d")], functions=[function("f", body)]))


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "m.onnx")
    return folder / "m.onnx"


def pipe_of_weights(folder: Path) -> Path:
    path = same_bytes(folder, 1, True)
    (folder / "w.bin").unlink()
    os.mkfifo(folder / "w.bin")
    return path


def long_file(folder: Path) -> Path:
    path = write(folder, chain(3))
    os.truncate(path, 3 << 30)
    return path


def _in_memory(make: Callable[..., onnx.ModelProto], *arguments: Any, **named: Any) -> Maker:
    return lambda folder: write(folder, make(*arguments, **named))


HUGE = np.array([10**6, 10**6])
CASES: dict[str, Maker] = {
    "functions that call each other twice": _in_memory(functions, 30, 2),
    "functions in a long chain": _in_memory(functions, 3000, 1),
    "functions of many calls": _in_memory(functions, 3, 3000),
    "functions that call themselves": _in_memory(self_calling),
    "bodies in functions in bodies": _in_memory(deep_through_functions, 20, 5),
    "a fill": _in_memory(shaped, [node("ConstantOfShape", ["s"], ["big"])], {"s": HUGE}),
    "many fills": _in_memory(many_fills, 40, 1 << 26),
    "a long range": _in_memory(shaped, [node("Range", ["a", "b", "c"], ["big"])], {"a": np.array(0), "b": np.array(10**12), "c": np.array(1)}),
    "a wide expansion": _in_memory(shaped, [node("Expand", ["a", "s"], ["big"])], {"a": np.ones((1, 1), np.float32), "s": HUGE}),
    "many tiles": _in_memory(shaped, [node("Tile", ["a", "s"], ["big"])], {"a": np.ones((1, 1), np.float32), "s": HUGE}),
    "tiles of tiles": _in_memory(doubled, "Tile", 40, np.ones(1, np.float32), {"two": np.array([2])}),
    "lists of lists": _in_memory(doubled, "Concat", 40, np.ones(1, np.float32)),
    "wide padding": _in_memory(shaped, [node("Pad", ["a", "s"], ["big"])], {"a": np.ones((1, 1), np.float32), "s": np.array([0, 0, 10**6, 10**6])}),
    "one hot of many": _in_memory(
        shaped, [node("OneHot", ["a", "s", "v"], ["big"])], {"a": np.arange(9), "s": np.array(10**11), "v": np.array([0, 1], np.float32)}
    ),
    "random numbers": _in_memory(shaped, [node("RandomNormal", [], ["big"], shape=[10**6, 10**6])], {}),
    "random numbers in a branch": _in_memory(
        in_a_branch, [node("RandomNormal", [], ["n"], shape=[10**5, 10**5]), node("ReduceSum", ["n"], ["r"], keepdims=0)]
    ),
    "a fill in a branch": _in_memory(in_a_branch, [node("ConstantOfShape", ["huge"], ["n"]), node("ReduceSum", ["n"], ["r"], keepdims=0)]),
    "a fill by the input's size": _in_memory(from_shape, "ConstantOfShape"),
    "an expansion by the input's size": _in_memory(from_shape, "Expand", "a", a=np.ones(1, np.float32)),
    "a range by the input's size": _in_memory(ranged),
    "slow products in a branch": _in_memory(heavy_branch),
    "a loop without end": _in_memory(loop, 2**60, growing=False),
    "a loop that grows": _in_memory(loop, 60, growing=True),
    "a sparse weight": _in_memory(sparse, 10**12, in_branch=False),
    "a sparse weight in a branch": _in_memory(sparse, 10**12, in_branch=True),
    "one weight with many factors": _in_memory(gemms, 3000, 100_000),
    "many large inputs": _in_memory(inputs, 40, [1, 1 << 26]),
    "inputs of many axes": _in_memory(inputs, 1, [1] * 1000),
    "too many operators": _in_memory(chain, 200_000),
    "too wide an operator": _in_memory(wide, 200_000),
    "the same bytes": lambda folder: same_bytes(folder, 2000, True),
    "the same bytes to the end": lambda folder: same_bytes(folder, 2000, False),
    "weights of a function": outside_by_function,
    "a pipe": pipe,
    "a pipe of weights": pipe_of_weights,
    "3 GiB of zeros": long_file,
}  # fmt: skip
"""What must be refused, by what it is."""
LARGE: dict[str, Maker] = {
    "a long chain": _in_memory(chain, 20_000),
    "one constant for all": _in_memory(one_for_all, 10_000),
    "a wide operator": _in_memory(wide, 3000),
    "many outputs": _in_memory(many_outputs, 3000),
    "nested bodies": _in_memory(nested, 12),
    "slow products": _in_memory(slow_constant, "MatMul"),
    "a slow convolution": _in_memory(slow_constant, "Conv"),
    "a slow scaling": _in_memory(slow_constant, "Resize"),
    "many branches": _in_memory(many_branches, 1000),
}
"""What is large, or would be slow to compute, and sound: it is read, and what is slow is left where it is."""
