"""A run folder as a page: what is there is shown, what is missing is said.

docs/reference/formats.md describes the files: report.json, plan.json, graphs.json, sensitivity.json, and training histories.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from irtool.analysis.diff.diff import diff
from irtool.analysis.diff.picture import FORMAT
from irtool.atomic_files import LARGEST_TEXT, parse_json, read_text, replacing
from irtool.commit import restore
from irtool.errors import FileError
from irtool.ir.graph import Graph
from irtool.page import run_page
from irtool.workflows.folders.record import read_record

GRAPHS = "graphs.json"
PAGE = "report.html"
SENSITIVITY = "sensitivity.json"
_LARGEST_HISTORY = 2**20
"""Bytes of a history as CSV: a line of an epoch has about a hundred."""
_HISTORIES = ("history.json", "train.json", "history.csv", "log.csv")
_REMEDY = "Run irtool compress again, or remove the file."


def write_run_page(folder: Path, before: Graph, after: Graph, title: str) -> None:
    """Write both graphs as graphs.json and the page, beside the report and the plan of the run that `folder` holds.

    Raises:
        FileError: a file cannot be read or written.
    """
    _write(folder / GRAPHS, json.dumps({**diff(before, after).picture, "title": title}, separators=(",", ":")))
    _write(folder / PAGE, page_of(folder))


def page_of(folder: Path) -> str:
    """The page of a run folder.

    Raises:
        FileError: there is no report, or a file is malformed.
    """
    restore(folder)
    report = read_record(folder / "report.json")
    picture, plan = _graphs(folder / GRAPHS), _object(folder / "plan.json")
    missing = [] if picture is not None else [f"{GRAPHS} is missing, so there is no graph: an older irtool made this run."]
    title = (picture or {}).get("title") or report.get("source", {}).get("model") or folder.resolve().name
    try:
        return run_page(
            report,
            title=str(title),
            plan=plan,
            picture=picture,
            curves=[{"name": "", "rows": rows} for rows in (_history(path) for path in _histories(folder)) if rows],
            sensitivity=_sensitivity(folder / SENSITIVITY),
            missing=missing,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileError(f"malformed ({type(error).__name__}: {error})", where=str(folder), remedy="Run irtool compress again.") from error


def write_page(folder: Path, target: Path) -> None:
    """Make the page anew from the folder's files. Raises FileError."""
    _write(target, page_of(folder))


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _object(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > LARGEST_TEXT:
            raise FileError("too large to be shown", where=str(path), remedy=_REMEDY)
        found = parse_json(read_text(path))
    except (OSError, ValueError) as error:
        raise FileError("cannot be read as JSON", where=str(path), remedy=_REMEDY) from error
    if not isinstance(found, dict):
        raise FileError("holds no JSON object", where=str(path), remedy=_REMEDY)
    return found


def _graphs(path: Path) -> dict[str, Any] | None:
    found = _object(path)
    if found is None:
        return None
    nodes = found.get("nodes")
    if found.get("format") != FORMAT or not isinstance(nodes, list) or not nodes:
        raise FileError("no graphs of this version", where=str(path), remedy=_REMEDY)
    for name in ("edges_before", "edges_after"):
        edges = found.get(name)
        if not isinstance(edges, list) or not all(_is_edge(edge, len(nodes)) for edge in edges):
            raise FileError(f"{name} does not fit the nodes", where=str(path), remedy=_REMEDY)
    return found


def _is_edge(edge: Any, count: int) -> bool:
    return isinstance(edge, list) and len(edge) == 2 and all(isinstance(end, int) and 0 <= end < count for end in edge)


def _sensitivity(path: Path) -> dict[str, Any] | None:
    found = _object(path)
    if found is None:
        return None
    found = found if "format" in found else _quantised(found)
    layers = found.get("layers")
    named = isinstance(layers, list) and all(
        isinstance(layer, Mapping) and "name" in layer and ("value" in layer or "points" in layer) for layer in layers
    )
    if found.get("format") != 1 or not isinstance(found.get("what"), str) or not named:
        raise FileError("no sensitivity of this version", where=str(path), remedy=_REMEDY)
    return found


def _quantised(found: Mapping[str, Any]) -> dict[str, Any]:
    """Read the sensitivities that `irtool quantize` writes, as any others."""
    layers = [entry for entry in found.get("layers", ()) if isinstance(entry, Mapping)]
    what = f"Accuracy with one layer in int8 and all else in float, on {found.get('images')} images"
    values = [
        {"name": entry.get("layer"), "value": entry["accuracy"]} for entry in layers if isinstance(entry.get("accuracy"), int | float)
    ]
    return {"format": 1, "what": what, "metric": "accuracy", "layers": values}


def keep_history(source: Path, folder: Path) -> None:
    """Copy the training history of the run that a model comes from, if `source` is its folder and has one.

    Raises:
        FileError: the history cannot be copied.
    """
    for path in _histories(source) if source.is_dir() else ():
        with replacing(folder / path.name) as temporary:
            shutil.copyfile(path, temporary)


def _histories(folder: Path) -> list[Path]:
    """Training histories: as JSON (`History.to_dict`) or as CSV (`History.write_csv`)."""
    found = [path for path in (folder / name for name in _HISTORIES) if path.is_file()]
    return found[:1]


def _history(path: Path) -> list[dict[str, Any]]:
    """Rows, one an epoch, with numbers where there are numbers."""
    if path.suffix == ".json":
        records = (_object(path) or {}).get("records", [])
        return [{**{k: v for k, v in row.items() if k != "extra"}, **row.get("extra", {})} for row in records if isinstance(row, dict)]
    try:
        rows = csv.DictReader(io.StringIO(read_text(path, _LARGEST_HISTORY), newline=""))
        return [{key: _number(text) for key, text in row.items() if key is not None} for row in rows]
    except (OSError, ValueError, csv.Error) as error:
        raise FileError("cannot be read as CSV", where=str(path), remedy=_REMEDY) from error


def _number(text: str | None) -> float | str | None:
    if text is None or text == "":
        return None
    try:
        return float(text)
    except ValueError:
        return text
