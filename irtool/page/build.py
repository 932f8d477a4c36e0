"""Puts data, style and script into one HTML file.

Everything that is shown comes from the data and is written by the script as text, never as markup: names in a model are the
model's, and may be anything.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

SCRIPTS = ("dom.js", "tree.js", "layout.js", "cards.js", "graph.js", "explorer.js", "charts.js", "sections.js", "page.js")
"""In the order in which they are needed."""
_ESCAPES = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}
"""Inside a script element these could end it, or the string."""


def diff_page(diff: Mapping[str, Any], picture: Mapping[str, Any], text: str, names: tuple[str, str]) -> str:
    """A page that shows what changed between two graphs.

    Args:
        diff: `Diff.to_dict()`.
        picture: `Diff.picture`.
        text: `Diff.text()`.
        names: what the two are called.
    """
    return _page(f"{names[0]} against {names[1]}", {"kind": "diff", "names": list(names), "diff": diff, "picture": picture, "text": text})


def run_page(
    report: Mapping[str, Any],
    *,
    title: str,
    plan: Mapping[str, Any] | None = None,
    picture: Mapping[str, Any] | None = None,
    curves: Sequence[Mapping[str, Any]] = (),
    sensitivity: Mapping[str, Any] | None = None,
    missing: Sequence[str] = (),
) -> str:
    """A page that shows what a compress run did.

    Args:
        report: what report.json holds.
        title: what was compressed.
        plan: what plan.json holds.
        picture: what graphs.json holds.
        curves: training curves: `name` and `rows`, one an epoch.
        sensitivity: what sensitivity.json holds.
        missing: what the run folder lacks, in words.
    """
    data = {"kind": "run", "names": ["before", "after"], "title": title, "report": report, "plan": plan, "picture": picture}
    return _page(title, {**data, "curves": list(curves), "sensitivity": sensitivity, "missing": list(missing)})


def view_page(model: Mapping[str, Any], picture: Mapping[str, Any], title: str) -> str:
    """A page that shows one model.

    Args:
        model: its cost and its layers, as `irtool inspect --json` prints them.
        picture: `Diff.picture` of the graph with itself.
        title: what it is called.
    """
    return _page(title, {"kind": "view", "names": [title, title], "title": title, "model": model, "picture": picture})


def _page(title: str, data: Mapping[str, Any]) -> str:
    parts = {
        "title": html.escape(title),
        "style": _asset("page.css"),
        "script": "\n".join(_asset(name) for name in SCRIPTS),
        "data": json.dumps(_finite(data), ensure_ascii=True, allow_nan=False, separators=(",", ":")).translate(_ESCAPES),
    }
    # One pass over the template, so that a mark in the data is not taken for one of the template.
    pieces = _asset("page.html").split("@@")
    return "".join(piece if index % 2 == 0 else parts[piece] for index, piece in enumerate(pieces))


def _finite(value: Any) -> Any:
    """JSON has no infinity: such numbers become text."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and value - value != 0:
        return str(value)
    return value


@cache
def _asset(name: str) -> str:
    return files("irtool.page").joinpath(name).read_text(encoding="utf-8")
