"""Results of a benchmark that go on where they stopped, and the table of a page that is made of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from irtool.engines.cpu import processor


class Kept:
    """Results in a JSON file, written whenever something is known.

    Args:
        path: the file; what it holds is taken up.
        facts: what holds for the whole run, beside the machine.

    Attributes:
        found: the results: `nets` by name, `machine`, and the facts.
    """

    def __init__(self, path: Path, **facts: Any) -> None:
        self.path = path
        self.found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"nets": {}}
        self.found |= {"machine": f"{processor()}, {os.cpu_count()} cores", **facts}

    def net(self, name: str) -> dict[str, Any]:
        """The rows of a net, to be filled."""
        rows: dict[str, Any] = self.found["nets"].setdefault(name, {})
        return rows

    def keep(self, *told: object) -> None:
        """Write the file, and tell what is new."""
        print(*told, flush=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.found, indent=1) + "\n")


def into_page(page: Path, script: str, text: str) -> None:
    """Put a table between its marks in a page of the documentation, which name the script that makes it."""
    begin, end = f"<!-- table of bench/{script} -->", "<!-- end of the table -->"
    before, rest = page.read_text(encoding="utf-8").split(begin)
    page.write_text(f"{before}{begin}\n{text}{end}{rest.split(end, 1)[1]}", encoding="utf-8")
