"""The folder that a recipe leaves: a folder for each step, told from the folder of an `irtool compress` run."""

from __future__ import annotations

from pathlib import Path

from irtool.atomic_files import parse_json, read_text
from irtool.engines.table import ENGINES
from irtool.errors import FileError

SUMMARY = "recipe.json"
STATE = "step.json"
_FILES = ("model.safetensors", *dict.fromkeys(f"model{row.suffix}" for row in ENGINES.values()))


def require_finished(folder: Path) -> None:
    """Refuse the folder of a step that is still to be done: its files may be of any part of it.

    Raises:
        FileError: it is one.
    """
    state = folder / STATE
    if not state.is_file():
        return
    try:
        found = parse_json(read_text(state))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or not found.get("done"):
        raise FileError("a step of a recipe that was not finished", where=str(folder), remedy="Run the recipe again: it goes on there.")


def step_folders(folder: Path) -> list[Path]:
    """The steps of a recipe, in order; of one step those beside it; none if no recipe made the folder."""
    if (folder / STATE).is_file():
        folder = folder.resolve().parent if folder.name in ("", "..") else folder.parent
    if not (folder / SUMMARY).is_file():
        return []
    return sorted(path.parent for path in folder.glob(f"*/{STATE}") if (path.parent / _FILES[0]).is_file())


def instead_of_run(folder: Path) -> str:
    """Say what to give a command that wants a compress run; empty if no recipe made the folder."""
    steps = step_folders(folder)
    if not steps:
        return ""
    last = next((step for step in reversed(steps) if (step / _FILES[1]).is_file()), None)
    files = " ".join(str(last / name) for name in _FILES if (last / name).is_file()) if last is not None else ""
    verify = f"verify a step's files (irtool verify {files}), or " if files else ""
    pages = f"compare two steps on a page (irtool diff {steps[0]} {steps[-1]} --html FILE)."
    return f"A recipe made it: {verify}{pages}"
