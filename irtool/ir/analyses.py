"""Results of analyses, kept with a graph until its next edit."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from irtool.ir.graph import Graph

H = TypeVar("H", bound="Graph")
T = TypeVar("T")


class Analyses:
    """The results that belong to one graph, each by the function that finds it; see `once`.

    A copy has none: its nodes are others.
    """

    def __init__(self) -> None:
        self._found: dict[Callable[..., Any], Any] = {}

    def of(self, find: Callable[[H], T], graph: H) -> T:
        """The result of `find` for the graph that these analyses belong to; found at the first call."""
        if find not in self._found:
            self._found[find] = find(graph)
        found: T = self._found[find]
        return found

    def clear(self) -> None:
        """Forget everything: the graph was edited."""
        self._found.clear()

    def __reduce__(self) -> tuple[type[Analyses], tuple[()]]:
        return Analyses, ()


def once(find: Callable[[H], T]) -> Callable[[H], T]:
    """Decorator of a function of a graph: its result is found once and kept with the graph, until that is edited."""

    @wraps(find)
    def found(graph: H) -> T:
        return graph.analyses.of(find, graph)

    return found
