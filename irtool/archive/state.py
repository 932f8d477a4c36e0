"""Modules and tensors as data and back: what a graph's targets are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from irtool.archive.allowed import NotData, Refused, attributes_of, check_path, class_called, class_name
from irtool.archive.kinds import show
from irtool.archive.limits import DEPTH
from irtool.archive.values import decode, encode
from irtool.errors import GraphError
from irtool.hosts.torch.tracing.recording.autograd import OwnBackward

_BASE = frozenset(dir(nn.Module()))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_DERIVED = frozenset({"_flat_weights", "_flat_weight_refs"})
"""Attributes that a recurrent layer derives from its parameters."""


def named_tensors(module: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    """Every tensor under a module as (name, kind, tensor); one that is shared comes once for each name.

    Kinds: `parameter`, `buffer`, `transient` (a buffer outside the state dict), `attribute` (a plain constant).
    """
    for path, owner in module.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for key, parameter in owner._parameters.items():
            if parameter is not None:
                yield prefix + key, "parameter", parameter
        for key, buffer in owner._buffers.items():
            if buffer is not None:
                yield prefix + key, "transient" if key in owner._non_persistent_buffers_set else "buffer", buffer
        for key, held in vars(owner).items():
            if isinstance(held, Tensor):
                yield prefix + key, "attribute", held


def encode_tensors(module: nn.Module) -> tuple[dict[str, dict[str, Any]], dict[str, Tensor]]:
    """A description of every tensor by name, and the data of each distinct one under the first of its names.

    Raises:
        NotData: a tensor without values, or of a layout that safetensors does not have.
    """
    table: dict[str, dict[str, Any]] = {}
    data: dict[str, Tensor] = {}
    first: dict[int, str] = {}
    for name, kind, tensor in named_tensors(module):
        check_path(name, NotData)
        if tensor.is_meta or tensor.layout is not torch.strided or tensor.is_quantized:
            raise NotData(f"the tensor {name} {'has no values' if tensor.is_meta else 'is sparse or quantized'}")
        entry = table[name] = {"kind": kind, "data": first.setdefault(id(tensor), name)}
        if kind == "parameter":
            entry["requires_grad"] = tensor.requires_grad
        order = _order(tensor)
        if order != sorted(order):
            entry["order"] = order
        if entry["data"] == name:
            data[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return table, data


def _order(tensor: Tensor) -> list[int]:
    """The axes from the slowest in memory to the fastest (`channels_last` is 0, 2, 3, 1), on which kernels and rounding depend."""
    if tensor.is_contiguous():
        return list(range(tensor.dim()))
    return sorted(range(tensor.dim()), key=lambda axis: (-tensor.stride()[axis], axis))


def decode_tensors(table: Mapping[str, Mapping[str, Any]], data: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by name, one object for all the names that share it.

    Raises:
        KeyError: the file lacks the data of a name.
    """
    made: dict[str, Tensor] = {}
    for entry in table.values():
        key = entry["data"]
        if key not in made:
            order = entry.get("order") or range(data[key].dim())
            back = sorted(range(len(order)), key=list(order).__getitem__)
            tensor = data[key].permute(*order).contiguous().permute(*back) if len(back) else data[key]
            made[key] = nn.Parameter(tensor, requires_grad=bool(entry["requires_grad"])) if entry["kind"] == "parameter" else tensor
    return {name: made[entry["data"]] for name, entry in table.items()}


def encode_modules(module: fx.GraphModule) -> dict[str, dict[str, Any]]:
    """The modules that a graph calls, and all above and below them, by path; containers are plain `nn.Module`s.

    Raises:
        NotData: a module that is called is of a class that only the user has; the text names it.
    """
    called = {str(node.target) for node in module.graph.nodes if node.op == "call_module"}
    roots = called | {name for name, _, _ in named_tensors(module)}
    table: dict[str, dict[str, Any]] = {}
    for path, child in module.named_modules(remove_duplicate=False):
        if any(above in called for above in _above(path)):
            table[path] = _encode_module(path, child)
        elif path and any(name.startswith(f"{path}.") for name in roots):
            table[check_path(path, NotData)] = {}
    return table


def _above(path: str) -> Iterator[str]:
    parts = path.split(".")
    return (".".join(parts[: count + 1]) for count in range(len(parts)))


def _encode_module(path: str, module: nn.Module) -> dict[str, Any]:
    try:
        if isinstance(module, OwnBackward):  # see functions.py
            raise NotData("is a function whose backward is code of your own")
        found: dict[str, Any] = {"class": class_name(type(module))}
        if any(vars(module).get(hooks) for hooks in _HOOKS):
            raise NotData("has hooks")
        known = attributes_of(type(module)).by_name  # others may hang there, and are read by nobody
        attributes = {key: value for key, value in vars(module).items() if key in known}
        odd = next((key for key, value in attributes.items() if not known[key].takes(value)), None)
        if odd is not None:
            raise NotData(f"has a {odd} of an unknown kind")
        found["attributes"] = {key: encode(value) for key, value in attributes.items()}
    except NotData as error:
        raise NotData(f"{path} {error}") from error
    found["absent"] = [[key for key, value in slot.items() if value is None] for slot in (module._parameters, module._buffers)]
    check_path(path, NotData)
    return found


def decode_modules(table: Mapping[str, Mapping[str, Any]], root: nn.Module) -> None:
    """Build the modules below `root`. Constructors do not run: a pruned layer is what its attributes say.

    Raises:
        Refused: a class that no graph of irtool's holds, or an attribute that would replace a method.
        GraphError: an attribute of another kind than its class has.
    """
    for path in sorted(table, key=lambda path: path.count(".")):
        entry = table[check_path(path, Refused)]
        prefix, _, name = path.rpartition(".")
        above = root.get_submodule(prefix)
        if path.count(".") >= DEPTH or type(above) not in (type(root), nn.Module, nn.Sequential):
            raise Refused(f"holds a module {path} below one that has none")
        above.add_module(name, _decode_module(path, entry) if entry else nn.Module())


def _decode_module(path: str, entry: Mapping[str, Any]) -> nn.Module:
    kind = class_called(entry["class"])
    module = kind.__new__(kind)
    nn.Module.__init__(module)
    known = attributes_of(kind).by_name
    for key, data in entry["attributes"].items():
        value = decode(data)
        if key in known:
            if not known[key].takes(value):
                raise GraphError(f"has {show(value)} as {key}, which no {kind.__name__} has", where=path, remedy="Save it again.")
            module.__dict__[key] = value
        elif key in _BASE or not key.isidentifier() or hasattr(kind, key):
            raise Refused(
                f"sets {path}.{key}, which is no attribute of {kind.__name__}"
            )  # any other plain value is left out: nobody reads it
    parameters, buffers = entry["absent"]
    for key in parameters:
        module.register_parameter(key, None)
    for key in buffers:
        module.register_buffer(key, None)
    return module


def assign(root: nn.Module, table: Mapping[str, Mapping[str, Any]], tensors: Mapping[str, Tensor]) -> None:
    """Put tensors in their places, in place of those that are there."""
    for name, tensor in tensors.items():
        prefix, _, key = check_path(name, Refused).rpartition(".")
        owner, kind = root.get_submodule(prefix), table[name]["kind"]
        if kind == "parameter":
            owner.register_parameter(key, tensor)  # type: ignore[arg-type]
        elif kind in ("buffer", "transient"):
            owner.register_buffer(key, tensor, persistent=kind == "buffer")
        elif hasattr(owner, key) and not isinstance(getattr(owner, key), Tensor):
            raise Refused(f"replaces {name} by a tensor")
        else:
            setattr(owner, key, tensor)
    for module in root.modules():
        if isinstance(module, nn.RNNBase):
            module._init_flat_weights()


def training_flags(root: nn.Module) -> dict[str, bool]:
    """Whether each module is in training mode, by path."""
    return {path: module.training for path, module in root.named_modules(remove_duplicate=False)}


def set_training_flags(root: nn.Module, flags: Mapping[str, bool]) -> None:
    """Put saved flags back; a module that was not saved follows the root."""
    for path, module in root.named_modules(remove_duplicate=False):
        module.training = bool(flags.get(path, flags.get("", False)))
