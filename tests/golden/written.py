"""A graph from its text: what `Graph.text()` printed, as a model with random weights that prints the same.

Values and parameters are told by name. A layer that reads `@conv1.weight` becomes a module called `conv1`; lines that read the same
parameters call the same module. Parameters that belong to no layer are parameters of the model.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from irtool.hosts.torch.channel_select import ChannelSelect

LINE = re.compile(r"(?P<results>%[^=]*) = (?P<op>[\w\[\].]+)\((?P<operands>[^)]*)\)(?: \{(?P<attrs>.*)\})?$")


@dataclass(frozen=True)
class Line:
    """One operator: names of results and operands without their sizes, attributes as Python data."""

    results: tuple[str, ...]
    op: str
    operands: tuple[str, ...]
    attrs: Mapping[str, Any]


class Written(nn.Module):
    """The model that a text tells of.

    Args:
        text: lines as `Graph.text()` prints them.
        seed: of the weights.

    Raises:
        ValueError: a line cannot be read, or has an operator that is not among `MODULES` and `FUNCTIONS`.
    """

    def __init__(self, text: str, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        lines = [line for line in text.strip().splitlines() if line.strip()]
        given = [_sized(line.split()[1]) for line in lines if line.startswith("input")]
        self.names = [name for name, _ in given]
        self.inputs = tuple(torch.randn(sizes) for _, sizes in given)
        self.ends = [_sized(line.split()[1])[0] for line in lines if line.startswith("output")]
        sizes = dict(_sized(word) for line in lines for word in re.findall(r"[%@][\w.]+:[\dx]+", line))
        self.program = [_line(line) for line in lines if not line.startswith(("input", "output"))]
        for line in self.program:
            self._hold(line, sizes)
        self.eval()

    def _hold(self, line: Line, sizes: Mapping[str, Sequence[int]]) -> None:
        """The module that holds a line's parameters; or parameters of the model's own."""
        held = {name: sizes[name] for name in line.operands if name.startswith("@")}
        if not held:
            return
        if line.op in MODULES:
            path = next(iter(held))[1:].rpartition(".")[0]
            if not _has(self, path):
                _put(self, path, _randomised(MODULES[line.op](list(held.values()), line.attrs, sizes[line.results[0]])))
            return
        for name, size in held.items():
            if not _has(self, name[1:]):
                self.register_parameter(name[1:], nn.Parameter(torch.randn(size)))

    def forward(self, *given: Tensor) -> Any:
        values = dict(zip(self.names, given, strict=True))
        for line in self.program:
            read = [values[name] if name.startswith("%") else None for name in line.operands]
            if line.op in MODULES and line.operands[1:] and line.operands[1].startswith("@"):
                made = self.get_submodule(line.operands[1][1:].rpartition(".")[0])(read[0])
            else:
                tensors = [value if value is not None else getattr(self, name[1:]) for name, value in zip(line.operands, read, strict=True)]
                made = FUNCTIONS[line.op](tensors, line.attrs)
            values.update(zip(line.results, made if len(line.results) > 1 else (made,), strict=True))
        found = tuple(values[name] for name in self.ends)
        return found[0] if len(found) == 1 else found


def _sized(word: str) -> tuple[str, tuple[int, ...]]:
    name, _, sizes = word.partition(":")
    return name, tuple(int(size) for size in sizes.split("x") if size)


def _line(line: str) -> Line:
    found = LINE.match(line.strip())
    if found is None:
        raise ValueError(f"cannot be read: {line!r}")
    if found["op"] not in MODULES and found["op"] not in FUNCTIONS:
        raise ValueError(f"no operator {found['op']!r} here: {line!r}")
    results, operands = (
        tuple(_sized(word.strip())[0] for word in found[part].split(",") if word.strip()) for part in ("results", "operands")
    )
    attrs = dict(re.findall(r"(\w+)=(\[[^\]]*\]|[^,]+)", found["attrs"] or ""))
    return Line(results, found["op"], operands, {name: _data(value) for name, value in attrs.items()})


def _data(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _has(module: nn.Module, path: str) -> bool:
    try:
        module.get_submodule(path)
    except AttributeError:
        return hasattr(module, path)
    return True


def _put(module: nn.Module, path: str, child: nn.Module) -> None:
    """Hang a module at a dotted path, with plain modules above it."""
    *above, name = path.split(".")
    for part in above:
        if part not in module._modules:
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    module.add_module(name, child)


def _randomised(layer: nn.Module) -> nn.Module:
    """Batch norms as training leaves them, not as they begin."""
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        assert layer.running_mean is not None
        assert layer.running_var is not None
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
        if layer.affine:
            nn.init.uniform_(layer.weight, 0.5, 2)
            nn.init.normal_(layer.bias)
    return layer


Shapes = list[Sequence[int]]


def _conv(held: Shapes, attrs: Mapping[str, Any], _made: Sequence[int]) -> nn.Module:
    rows, columns, *kernel = held[0]
    options = {ours: attrs[name] for ours, name in (("stride", "strides"), ("padding", "pads"), ("dilation", "dilations"))}
    kinds = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
    return kinds[len(kernel)](columns * attrs["group"], rows, tuple(kernel), groups=attrs["group"], bias=len(held) > 1, **options)


def _norm(held: Shapes, attrs: Mapping[str, Any], made: Sequence[int]) -> nn.Module:
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[len(made)]
    return kind(held[0][0], eps=attrs["epsilon"], affine=len(held) > 2)


MODULES: dict[str, Callable[[Shapes, Mapping[str, Any], Sequence[int]], nn.Module]] = {
    "Conv": _conv,
    "BatchNormalization": _norm,
    "Gemm": lambda held, attrs, made: nn.Linear(held[0][1], held[0][0], bias=len(held) > 1),
    **dict.fromkeys(("ChannelSelect", "Gather"), lambda held, attrs, made: ChannelSelect(torch.arange(held[0][0]))),  # of files: Gather
}
"""Operators that a layer with parameters carries out, from its parameters' sizes, its attributes and its result's sizes."""


def _pool(tensors: list[Tensor], attrs: Mapping[str, Any]) -> Tensor:
    (x,) = tensors
    if attrs["kernel_shape"] == "all":
        return F.adaptive_avg_pool2d(x, 1) if attrs["kind"] == "average" else F.adaptive_max_pool2d(x, 1)
    function = F.avg_pool2d if attrs["kind"] == "average" else F.max_pool2d
    return function(x, attrs["kernel_shape"], attrs["strides"], attrs["pads"])


def _reduce(tensors: list[Tensor], attrs: Mapping[str, Any]) -> Tensor:
    assert attrs["kind"] == "mean"
    return tensors[0].mean(attrs["axes"], keepdim=attrs["keepdims"])


def _numbers(function: Callable[..., Tensor], tensors: list[Tensor], attrs: Mapping[str, Any]) -> Tensor:
    return function(*tensors, *(attrs[name] for name in ("other",) if name in attrs))


FUNCTIONS: dict[str, Callable[[list[Tensor], Mapping[str, Any]], Any]] = {
    "Relu": lambda tensors, attrs: F.relu(tensors[0]),
    "Sigmoid": lambda tensors, attrs: torch.sigmoid(tensors[0]),
    "Tanh": lambda tensors, attrs: torch.tanh(tensors[0]),
    "Exp": lambda tensors, attrs: torch.exp(tensors[0]),
    "Dropout": lambda tensors, attrs: F.dropout(tensors[0], 0.1, training=False),
    "Identity": lambda tensors, attrs: tensors[0].contiguous(),
    "Clip": lambda tensors, attrs: torch.clamp(tensors[0], attrs.get("min"), attrs.get("max")),
    "Add": partial(_numbers, torch.add),
    "Sub": partial(_numbers, torch.sub),
    "Mul": partial(_numbers, torch.mul),
    "Concat": lambda tensors, attrs: torch.cat(tensors, attrs["axis"]),
    "Transpose": lambda tensors, attrs: tensors[0].permute(*attrs["perm"]),
    "Reshape": lambda tensors, attrs: tensors[0].flatten(1),
    "Softmax": lambda tensors, attrs: torch.softmax(tensors[0], attrs["axis"]),
    "Pool": _pool,
    "Reduce": _reduce,
    "Split": lambda tensors, attrs: torch.chunk(tensors[0], attrs["parts"], attrs["axis"]),
}
"""Operators without a layer, as torch computes them from tensors and attributes. A Reshape flattens all but the batch."""
