"""Running a program node by node with a say in what each gives: what references are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from irtool.ir.graph import Node, Value

Compute = Callable[[Mapping["Value", Tensor]], list[Tensor]]
"""Runs a node's own operator, with some of what it reads replaced; returns its tensors."""
Hook = Callable[["Node", Mapping["Value", Tensor], Compute], list[Tensor]]
"""Called in place of a node with what it reads and its operator; returns the tensors that flow on, in the order of its outputs.

They may be written in place, so that a write through a view reaches what it views.
"""
