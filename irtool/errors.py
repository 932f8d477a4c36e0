"""The exception tree: what went wrong, where, and what to do about it.

Every error that a user can meet is an `IrtoolError`. Its text is one line: the fact, the place, the remedy.
The command line prints that line and exits with 1; it never shows a traceback for one of these.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
"""Codes that colour text in a terminal: libraries write them into their errors, which ours may quote."""
_SHOWN: dict[str, str] = {}
"""Paths of temporary files that are in use, with the names that users know. No two are alike, whichever thread made them."""


@contextmanager
def shown_as(path: object, name: object) -> Iterator[None]:
    """Have errors call a temporary file, or a folder and what lies in it, by a name that the user knows, for the length of the block.

    An error takes the name when it is made, so that a note that quotes it has the name too.
    """
    _SHOWN[str(path)] = str(name)
    try:
        yield
    finally:
        del _SHOWN[str(path)]


def _shown(text: str) -> str:
    """A text with the names that the user knows; those in a temporary folder first, which may itself stand for another."""
    for path, name in sorted(_SHOWN.items(), key=lambda pair: -len(pair[0])):
        text = text.replace(path, name)
    return text


class IrtoolError(Exception):
    """A failure with a place and a remedy.

    Args:
        what: the fact, in a few words, with the offending value.
        where: the node, file, layer or option concerned.
        remedy: what the user can do now.

    Attributes:
        what, where, remedy: as given, with the names that the user knows (`shown_as`).
        place: `where` as given, which may be a temporary file.
    """

    def __init__(self, what: str, *, where: str | None = None, remedy: str | None = None) -> None:
        self.place = where
        what, where, remedy = _shown(_COLOURS.sub("", what)), where and _shown(where), remedy and _shown(remedy)
        self.what, self.where, self.remedy = what, where, remedy
        text = what if where is None else f"{where}: {what}"
        super().__init__(text if remedy is None else f"{text.removesuffix('.')}. {remedy}")


class TraceError(IrtoolError):
    """A model could not be turned into a graph."""


class GraphError(IrtoolError):
    """A graph is malformed, or an edit would make it so."""


class LayerError(GraphError, KeyError):
    """No layer has that name."""

    __str__ = Exception.__str__  # that of KeyError quotes the text


class PlanError(IrtoolError):
    """A pruning plan cannot be made, or does not belong to this graph."""


class ProofError(IrtoolError):
    """A rewrite could not be proven: labels meet that did not meet before. Nothing is returned."""


class CheckError(IrtoolError):
    """Two programs that must be equal differ in numbers."""


class ExportError(IrtoolError):
    """A graph could not be written in a foreign format."""


class BackendError(IrtoolError):
    """An inference engine refused a model or an input."""


class FileError(IrtoolError):
    """A file is missing, truncated, foreign, unsafe or not writable."""


class DataError(IrtoolError):
    """A dataset is missing, empty or of the wrong shape."""


class TrainError(IrtoolError):
    """A training run cannot start or must stop (a loss that is not finite, say)."""


class OptionError(IrtoolError):
    """An option has a value that can never work."""


class MissingPackageError(IrtoolError, ImportError):
    """A package that a part of irtool needs is not installed."""

    __str__ = Exception.__str__


class Interrupted(IrtoolError):
    """Ctrl-C in a command that keeps what it has finished."""
