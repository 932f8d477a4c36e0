"""An fx graph as JSON data and back. No line of Python is stored: fx writes the code anew from the nodes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import fx
from torch.fx.graph import CodeGen, _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from irtool.archive.allowed import ATTRIBUTES, NotData, Refused, check_identifier, check_method, check_path, function_called, function_name
from irtool.archive.values import decode, encode


def encode_program(module: fx.GraphModule, names: Collection[str]) -> dict[str, Any]:
    """A module's graph as data.

    Args:
        module: the program.
        names: the modules and tensors that are saved with it.

    Raises:
        NotData: the graph holds something that has no form as data; the text names the node.
    """
    nodes = []
    for node in module.graph.nodes:
        try:
            nodes.append(_encode_node(node, names))
        except NotData as error:
            raise NotData(f"{node.name} {error}") from error
    return {"name": type(module).__name__, "nodes": nodes, "nesting": _encode_nesting(module.graph._codegen)}


def decode_program(data: Mapping[str, Any], names: Collection[str]) -> fx.Graph:
    """The inverse of `encode_program`: a graph whose targets are `names`.

    Raises:
        Refused: the data names a function, method or path that no graph of irtool's has.
    """
    graph = fx.Graph()
    made: dict[str, fx.Node] = {}
    for entry in data["nodes"]:
        if entry["op"] not in _READ:
            raise Refused(f"holds a node of kind {entry['op']!r}")
        target = _READ[entry["op"]](entry["target"], names)
        args = tuple(decode(entry.get("args", []), made))
        kwargs = {check_identifier(key, Refused): decode(value, made) for key, value in entry.get("kwargs", {}).items()}
        _check_attribute(target, args, kwargs, Refused)
        node = graph.create_node(entry["op"], target, args, kwargs, name=check_identifier(entry["name"], Refused))
        if entry.get("at"):
            # Messages and plans call a function node by the module that runs it. torch.export wants a class's name there too.
            node.meta["nn_module_stack"] = {entry["at"]: (check_path(entry["at"], Refused), "torch.nn.modules.module.Module")}
        made[entry["name"]] = node
    nesting = data.get("nesting")
    if nesting is not None:
        graph.set_codegen(_decode_nesting(nesting))
    graph.lint()
    return graph


def _encode_node(node: fx.Node, names: Collection[str]) -> dict[str, Any]:
    found: dict[str, Any] = {"name": node.name, "op": node.op, "target": _WRITE[node.op](node.target, names)}
    _check_attribute(node.target, node.args, node.kwargs, NotData)
    if node.args:
        found["args"] = [encode(arg) for arg in node.args]
    if node.kwargs:
        found["kwargs"] = {check_identifier(key, NotData): encode(value) for key, value in node.kwargs.items()}
    stack = node.meta.get("nn_module_stack") or {}
    at = next((path for path, *_ in reversed(list(stack.values())) if path), None)
    if at and node.op in ("call_function", "call_method"):
        found["at"] = check_path(at, NotData)
    return found


def _check_attribute(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], error: type[Exception]) -> None:
    """`getattr` reads properties of tensors and nothing else."""
    if target is getattr and (kwargs or len(args) < 2 or not isinstance(args[1], str) or args[1] not in ATTRIBUTES):
        raise error(f"reads the attribute {args[1] if len(args) > 1 else None!r}")


def _path(error: type[Exception], wording: str) -> Callable[[Any, Collection[str]], str]:
    def check(target: Any, names: Collection[str]) -> str:
        if check_path(target, error) not in names:
            raise error(f"{wording} {target!r}, which is no tensor or module of the program")
        return str(target)

    return check


def _argument(error: type[Exception]) -> Callable[[Any, Collection[str]], str]:
    """A placeholder's target, which fx writes into the signature as it stands."""

    def check(target: Any, names: Collection[str]) -> str:
        check_identifier(str(target).removeprefix("**").removeprefix("*"), error)
        return str(target)

    return check


def _targets(error: type[Exception], function: Callable[[Any], Any]) -> dict[str, Callable[[Any, Collection[str]], Any]]:
    return {
        "placeholder": _argument(error),
        "get_attr": _path(error, "reads"),
        "call_module": _path(error, "calls"),
        "call_method": lambda target, _: check_method(target, error),
        "call_function": lambda target, _: function(target),
        "output": lambda target, _: "output",
    }


_WRITE = _targets(NotData, function_name)
_READ = _targets(Refused, function_called)


def _encode_nesting(codegen: CodeGen) -> Any:
    """How the flat inputs and outputs of an exported graph are nested: a nest of the same form that holds numbers."""
    if type(codegen) is CodeGen:
        return None
    if type(codegen) is not _PyTreeCodeGen:
        raise NotData(f"the graph's code is generated by {type(codegen).__name__}")
    info = codegen.pytree_info
    skeletons = [
        None if spec is None else encode(pytree.tree_unflatten(list(range(spec.num_leaves)), spec))
        for spec in (info.in_spec, info.out_spec)
    ]
    return {"arguments": [check_identifier(name, NotData) for name in info.orig_args], "inputs": skeletons[0], "outputs": skeletons[1]}


def _decode_nesting(data: Mapping[str, Any]) -> _PyTreeCodeGen:
    inputs, outputs = decode(data["inputs"]), decode(data["outputs"])
    # The keys of keyword arguments would be written into the code; irtool traces with positional ones only.
    if not isinstance(inputs, tuple) or len(inputs) != 2 or inputs[1] != {}:
        raise Refused("nests its inputs in a way that irtool does not write")
    names = [check_identifier(name, Refused) for name in data["arguments"]]
    return _PyTreeCodeGen(_PyTreeInfo(names, pytree.tree_structure(inputs), None if outputs is None else pytree.tree_structure(outputs)))
