"""Names that a user gives for parts of a model: a module's path, a node's name, a pattern."""

from __future__ import annotations

import fnmatch

from irtool.ir.graph import Node


def is_at(path: str, module: str) -> bool:
    """Whether a path is that of a module or lies below it: `layer1.0.conv1` is at `layer1`, and `layer10` is not."""
    return path == module or path.startswith(f"{module}.")


def names(name: str, node: Node) -> bool:
    """Whether a name is the node's own, or that of a module that the node is called from."""
    return node.name == name or is_at(node.location, name)


def fits(path: str, pattern: str) -> bool:
    """Whether a path is at a module, or meets a shell pattern: `layer3.*` has whatever lies below `layer3`. Case counts."""
    return is_at(path, pattern) or fnmatch.fnmatchcase(path, pattern)
