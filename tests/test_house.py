"""The house keeps its order: what may know a host, and what may stand where. Each list here may only shrink."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
HOST_LIBRARIES = ("torch.fx", "onnx_graphsurgeon")
HOST_CHECK = re.compile(r"isinstance\([^)]*(FxGraph|OnnxGraph)")
HOST_CHECKS = 5
"""Questions outside of the hosts which host a graph lies on: all of them in workflows."""
LARGEST = 18
"""Files of a folder; `cli/` has one a command."""
READS_A_HOST: set[str] = set()
"""Files outside of the hosts, and of the archive that stores fx programs, that import a host's library."""

OPERATOR_TABLES = {
    "irtool.archive.layers": ["LAYERS"],  # classes of torch, some of which are called as operators are
}
"""Tables that name three operators or more, outside of `ops/`, `hosts/` and `engines/`."""


def _modules() -> list[Path]:
    files = [*(ROOT / "irtool").rglob("*.py"), *(ROOT / "passes").glob("*.py")]
    return [file for file in files if not {"hosts", "archive"} & set(file.parts) and not file.is_relative_to(ROOT / "irtool" / "passes")]


def _imports(file: Path) -> set[str]:
    """Every module, and every name of a module, that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_the_libraries_of_hosts_are_read_by_hosts() -> None:
    reads = {
        file.relative_to(ROOT).as_posix()
        for file in _modules()
        if any(name == library or name.startswith(f"{library}.") for name in _imports(file) for library in HOST_LIBRARIES)
    }
    assert reads == READS_A_HOST, "an algorithm reads a host's library, or no longer does and can be taken off the list"


def test_questions_for_the_host_become_fewer() -> None:
    asked = {file: len(HOST_CHECK.findall(file.read_text(encoding="utf-8"))) for file in _modules()}
    assert sum(asked.values()) <= HOST_CHECKS
    assert [file for file, count in asked.items() if count and not file.is_relative_to(ROOT / "irtool" / "workflows")] == []


def test_tables_of_operators_stand_in_ops_hosts_and_engines(house: ModuleType) -> None:
    trees = house.sources(ROOT)
    tables = house.operator_tables(trees, house.vocabulary(trees))
    found = {module: names for module, names in tables.items() if house.folder(module) not in house.HOME_OF_TABLES}
    assert found == OPERATOR_TABLES, "a property of operators belongs into irtool/ops/properties.py, a rule into its family"


@pytest.mark.parametrize(("section", "roots"), [("trace", ("irtool", "irtool/hosts/torch/tracing")), ("prune", ("irtool", "."))])
def test_routes_name_files_that_are_there_each_once(section: str, roots: tuple[str, ...]) -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    found = re.search(rf"## Where a \w+ goes in `{section}`\n(.*?)\n## ", text, re.S)
    assert found is not None
    named = re.findall(r"`([\w/]+\.py)`", found[1])
    assert len(named) > 10
    assert len(named) == len(set(named))
    assert [name for name in named if not any((ROOT / root / name).is_file() for root in roots)] == []


FOLDERS = "analysis|archive|channels|engines|hosts|ir|ops|page|passes|pruning|quant|train|workflows"


def test_documents_name_files_that_are_there() -> None:
    lost = []
    for document in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")):
        for name in re.findall(rf"`(?:irtool/)?((?:{FOLDERS})/[\w/]+\.py)`", document.read_text(encoding="utf-8")):
            if not any((ROOT / root / name).is_file() for root in ("", "irtool")) and name != "passes/x.py":  # a pass yet to be written
                lost.append(f"{document.relative_to(ROOT)}: {name}")
    assert lost == []


def test_folders_hold_one_subject_each(house: ModuleType) -> None:
    files = house.files_by_folder(set(house.sources(ROOT)))
    assert [name for name, count in files.items() if count > LARGEST and name != "irtool.cli"] == [], "split it by subject"


@pytest.fixture(scope="module")
def house() -> ModuleType:
    """The script that measures the house."""
    spec = importlib.util.spec_from_file_location("house", ROOT / "bench" / "house.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_temporary_folders_are_made_in_one_place() -> None:
    """Elsewhere errors would call what lies there by a path that nobody knows (`scratch_folder`, `folder_beside`, `replacing`)."""
    files = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "irtool").rglob("*.py"))}
    made = {path.name for path, text in files.items() for line in text.splitlines() if re.search(r"TemporaryDirectory\(|mkdtemp\(|NamedTemporary", line) and ">>>" not in line and "..." not in line}  # fmt: skip
    assert made == {"atomic_files.py"}
