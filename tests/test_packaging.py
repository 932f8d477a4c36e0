"""What is declared in pyproject.toml is what lies on disk, and the models stand on torch alone."""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
MAPPED = {"irtool/models": "models", "irtool/passes": "passes"}


def packages_on_disk() -> set[str]:
    """Import names of all folders with an `__init__.py`, under the names that the links give them."""
    found = set()
    for name, folder in {"irtool": "irtool", **MAPPED}.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            found.add((Path(name) / init.parent.relative_to(ROOT / folder)).as_posix().replace("/", "."))
    return found


def test_every_package_is_listed_once() -> None:
    listed = SETUPTOOLS["packages"]
    assert sorted(listed) == sorted(packages_on_disk())


def test_every_folder_with_modules_is_a_package() -> None:
    without = {
        module.parent.relative_to(ROOT).as_posix()
        for folder in ("irtool", "models", "passes")
        for module in (ROOT / folder).rglob("*.py")
        if not (module.parent / "__init__.py").is_file()
    }
    assert without == set()


@pytest.mark.parametrize(("link", "folder"), MAPPED.items())
def test_links_and_package_dir_agree(link: str, folder: str) -> None:
    assert SETUPTOOLS["package-dir"][link.replace("/", ".")] == folder
    assert (ROOT / link).is_symlink(), f"{link} must be a link: check out with core.symlinks true"
    assert (ROOT / link).readlink() == Path("..") / folder


def test_types_are_shipped() -> None:
    assert {"py.typed", "*.pyi"} <= set(SETUPTOOLS["package-data"]["irtool"])
    assert (ROOT / "irtool/py.typed").is_file()


@pytest.mark.parametrize("module", sorted((ROOT / "models").glob("*.py")), ids=lambda path: path.stem)
def test_models_import_torch_alone(module: Path) -> None:
    allowed = sys.stdlib_module_names | {"torch"}
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "a relative import"]
        else:
            continue
        foreign = [name for name in names if name.split(".")[0] not in allowed and not name.startswith("irtool.models.")]
        assert foreign == [], f"line {node.lineno}"
