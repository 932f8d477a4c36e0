"""The notebooks in examples/ run from the first cell to the last, and what they show can be drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))


def test_there_are_three() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["look_at_graphs", "prune_your_own_cnn", "train_prune_and_int8"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plain = json.loads(path.read_text(encoding="utf-8"))
    assert plain["nbformat"] == 4
    names: dict[str, Any] = {"__name__": "__main__"}
    shown = 0
    for cell in plain["cells"]:
        assert not cell.get("outputs"), "clear the outputs before committing"
        if cell["cell_type"] != "code":
            continue
        *body, last = "".join(cell["source"]).rstrip().split("\n")
        if last[:1].isalpha() and "=" not in last.split("(")[0] and not last.startswith(("print", "with", "assert")):
            exec("\n".join(body), names)
            value = eval(last.split("  #")[0], names)
            shown += 1
            drawn = getattr(value, "_repr_html_", lambda value=value: repr(value))()
            assert drawn.strip()
        else:
            exec("\n".join([*body, last]), names)
    assert shown
