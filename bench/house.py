"""The order of the house, measured: sizes, imports across walls, questions for the host, operator tables, cycles.

    python bench/house.py [--json bench/results/house.json]

Everything is read from the source with `ast`; nothing is imported. A second checkout can be measured with `--root`.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import quantiles
from typing import Any

import networkx as nx

ROOT = Path(__file__).resolve().parents[1]
ALGORITHMS = ("analysis", "channels", "ir", "ops", "passes", "passmanager", "pruning", "quant")
HOST_LIBRARIES = ("torch.fx", "onnx_graphsurgeon")
HOST_CHECK = re.compile(r"isinstance\([^)]*(FxGraph|OnnxGraph)")
HOME_OF_TABLES = ("ops", "hosts", "engines")
OPERATORS = 3
"""A table that names so many operators is one."""


def sources(root: Path) -> dict[str, ast.Module]:
    """The parsed files of the package by module name; `passes/` and `models/` under the names that the package gives them."""
    found = {}
    for name, folder in (("irtool", "irtool"), ("irtool.passes", "passes"), ("irtool.models", "models")):
        for file in sorted((root / folder).rglob("*.py")):
            parts = file.relative_to(root / folder).with_suffix("").parts
            if name == "irtool" and parts[0] in ("passes", "models"):
                continue
            found[".".join((name, *parts)).removesuffix(".__init__")] = ast.parse(file.read_text(encoding="utf-8"))
    return found


def imports(tree: ast.Module, modules: set[str], *, types: bool = True) -> set[str]:
    """Imports of a module: modules of the package as modules, names of others with the module that has them.

    Without `types`, imports that only a type checker sees are left out.
    """
    found, only_types = set(), set[ast.AST]()
    for node in ast.walk(tree):
        if not types and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            only_types.update(inner for part in node.body for inner in ast.walk(part))
    for node in [node for node in ast.walk(tree) if node not in only_types]:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in modules or not node.module.startswith("irtool") else node.module)
    return found


def folder(module: str) -> str:
    """The folder of the package that a module lies in: `pruning` of `irtool.pruning.absorb.bias`."""
    return [*module.split("."), ""][1]


def files_by_folder(modules: set[str]) -> Counter[str]:
    """The number of files in each folder, `__init__.py` aside."""
    packages = {module.rsplit(".", 1)[0] for module in modules}
    return Counter(module.rsplit(".", 1)[0] for module in modules - packages)


def functions(trees: dict[str, ast.Module]) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions and methods."""
    for tree in trees.values():
        yield from (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def longest_chain(trees: dict[str, ast.Module]) -> int:
    """The most `elif` of one `if`."""
    longest = 0
    for tree in trees.values():
        for node in ast.walk(tree):
            depth = 0
            while isinstance(node, ast.If) and len(node.orelse) == 1 and isinstance(node.orelse[0], ast.If):
                depth, node = depth + 1, node.orelse[0]
            longest = max(longest, depth)
    return longest


def vocabulary(trees: dict[str, ast.Module]) -> set[str]:
    """Names of operators: the keys of the table in `ops`."""
    tree = trees.get("irtool.ops.spec") or trees["irtool.ops.table"]
    words = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return {part for word in words for part in word.split() if re.fullmatch(r"[A-Z][A-Za-z0-9]+", part)}


def operator_tables(trees: dict[str, ast.Module], operators: set[str]) -> dict[str, list[str]]:
    """Assignments at the top of a module whose literals name three operators or more, by module."""
    found: dict[str, list[str]] = {}
    for module, tree in trees.items():
        for node in tree.body:
            value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
            if value is None or (isinstance(value, ast.Constant) and not isinstance(value.value, str)):
                continue
            words = [inner.value for inner in ast.walk(value) if isinstance(inner, ast.Constant) and isinstance(inner.value, str)]
            named = {part for word in words for part in word.split() if part in operators}
            if len(named) >= OPERATORS:
                target = node.targets[0] if isinstance(node, ast.Assign) else node.target  # type: ignore[union-attr]
                found.setdefault(module, []).append(ast.unparse(target))
    return found


def measure(root: Path) -> dict[str, Any]:
    """All figures."""
    trees = sources(root)
    modules = set(trees)
    reads = {module: imports(tree, modules) for module, tree in trees.items()}
    spans = [node.end_lineno - node.lineno + 1 for node in functions(trees) if node.end_lineno]
    cuts = quantiles(spans, n=100)
    public = [node for node in functions(trees) if not node.name.startswith("_")]
    lines = {module: len(ast.unparse(tree)) for module, tree in trees.items()}
    runs = {module: imports(tree, modules, types=False) for module, tree in trees.items()}
    graph = nx.DiGraph((a, b) for a, names in runs.items() for b in names if b in modules and a != b)
    tables = operator_tables(trees, vocabulary(trees))
    text = {module: ast.unparse(tree) for module, tree in trees.items()}
    above = [module for module in modules if folder(module) not in ("hosts", "archive")]
    return {
        "modules": len(modules),
        "function lines, median / p90 / p99 / max": [round(cuts[i]) for i in (49, 89, 98)] + [max(spans)],
        "functions over 40 lines": sum(span > 40 for span in spans),
        "longest chain of elif": longest_chain(trees),
        "annotated returns, %": round(100 * sum(node.returns is not None for node in functions(trees)) / len(spans), 1),
        "public functions with a docstring, %": round(100 * sum(ast.get_docstring(node) is not None for node in public) / len(public), 1),
        "operator tables": sum(map(len, tables.values())),
        "operator tables outside of ops, hosts, engines": {
            module: names for module, names in sorted(tables.items()) if folder(module) not in HOME_OF_TABLES
        },
        "checks for a host outside of hosts and archive": sum(len(HOST_CHECK.findall(text[module])) for module in above),
        "files outside of hosts that import a host's library": sorted(
            module
            for module in modules
            if folder(module) != "hosts"
            and any(name == lib or name.startswith(f"{lib}.") for name in reads[module] for lib in HOST_LIBRARIES)
        ),
        "imports from algorithms into hosts": sum(
            folder(name) == "hosts" for module in modules if folder(module) in ALGORITHMS for name in reads[module] if name in modules
        ),
        "imports of the command line from bench": sum(
            len(re.findall(r"^\s*(?:from|import) irtool\.cli", file.read_text(encoding="utf-8"), re.M))
            for file in (root / "bench").glob("*.py")
        ),
        "files in the largest folders": dict(files_by_folder(modules).most_common(6)),
        "cycles of imports when run": [sorted(part) for part in nx.strongly_connected_components(graph) if len(part) > 1],
        "largest module, characters": max(lines.items(), key=lambda item: item[1])[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout to measure")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    arguments = parser.parse_args()
    found = measure(arguments.root)
    for name, value in found.items():
        few = len(value) if isinstance(value, list | dict) and len(str(value)) > 90 else value
        print(f"{name:60} {few}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
