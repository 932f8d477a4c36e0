"""A call of torch as the rules of `attributes` see it: its arguments by name, and those that its module keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from irtool.ir.attributes import Attrs
from irtool.ir.graph import Node
from irtool.ops.rules.opaque import short_name

_SILENT = frozenset(
    {"inplace", "training", "tensors", "momentum", "memory_format", "dtype", "requires_grad", "in_features", "out_features"}
)
_RENAMED = {"keepdim": "keepdims", "eps": "epsilon", "dim": "axis"}


@dataclass(frozen=True, slots=True)
class Call:
    """A call as the rules below see it.

    Attributes:
        node: its view, without attributes yet.
        given: its arguments by name.
        module: the module that is called, if one is.
    """

    node: Node
    given: Mapping[str, Any]
    module: nn.Module | None

    def get(self, *names: str, default: Any = None) -> Any:
        """The first of these arguments that is there and not None: of the call, then of its module."""
        for held in (self.given, vars(self.module) if self.module is not None else {}):
            for name in names:
                if held.get(name) is not None:
                    return held[name]
        return default

    def listed(self, *names: str) -> list[Any]:
        """The arguments behind the first one: those given by place, then those of `names` that are given by name."""
        placed = [value for key, value in self.given.items() if key in ("arguments", "dims") or key.startswith("arg")]
        return placed + [self.given[name] for name in names if name in self.given]

    @property
    def name(self) -> str:
        """The plain name of what is called, in small letters."""
        return short_name(self.node.callee).lower()


def others(call: Call) -> Attrs:
    """All arguments that have an effect, where an operator has no rule of its own."""
    return {_RENAMED.get(key, key): value for key, value in call.given.items() if key not in _SILENT and value is not None}
