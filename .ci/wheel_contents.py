"""Fail unless the wheel named on the command line holds each file of irtool exactly once, and nothing else."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).resolve().parent.parent


def sources() -> set[str]:
    """The names that a checkout gives to the files, `irtool/passes/...` for what lies in `passes/`."""
    found = {"irtool/py.typed", "irtool/__init__.pyi", "irtool/cli/surface.json"}
    for folder, name in (("irtool", "irtool"), ("passes", "irtool/passes"), ("models", "irtool/models")):
        found |= {f"{name}/{path.relative_to(ROOT / folder).as_posix()}" for path in (ROOT / folder).rglob("*.py")}
    page = ROOT / "irtool" / "page"
    return found | {f"irtool/page/{path.name}" for kind in ("css", "html", "js") for path in page.glob(f"*.{kind}")}


def main(wheel: str) -> str | None:
    """The complaint, or None."""
    with ZipFile(wheel) as archive:
        inside = Counter(name for name in archive.namelist() if ".dist-info/" not in name)
    expected = sources()
    wrong = {
        "missing": sorted(expected - inside.keys()),
        "unexpected": sorted(inside.keys() - expected),
        "repeated": [n for n, k in inside.items() if k > 1],
    }
    if any(wrong.values()):
        return f"{Path(wheel).name}: " + "; ".join(f"{kind}: {', '.join(names)}" for kind, names in wrong.items() if names)
    sys.stdout.write(f"{Path(wheel).name}: each of {len(expected)} files once\n")
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
