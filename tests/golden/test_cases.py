"""Each file below `cases/` shows a pass at work: the graph before it, the graph after it, and what is said.

    # RUN: fold-batchnorm                the pipeline, in the text form of passes
    # HOSTS: torch onnx                  where it runs; both if left out
    input  %input:1x3x8x8                the graph before, as `Graph.text()` prints it
    ...
    # AFTER                              the graph after; `# AFTER onnx` where a host names new parameters in its own way;
                                         `# UNCHANGED` where the pass leaves it, `# REFUSED: ...` where it raises
    ...
    # NOTE: part of a note

Outputs are compared too, in float64 in torch, unless the pipeline holds a pass that is not exact.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

import irtool
from golden.written import Written
from irtool.analysis.compare import difference
from irtool.errors import IrtoolError
from irtool.ir.graph import Graph
from irtool.passmanager import REGISTRY, Pipeline

CASES = Path(__file__).parent / "cases"
WITHOUT_TEXT = {
    "prune": "a plan is data: tests/pruning",
    "reconstruct": "it needs images: tests/pruning/test_reconstruct.py",
    "recalibrate_batchnorm": "it needs batches: tests/passes/test_recalibrate_batchnorm.py",
    "simplify": "what it folds is not in the view: tests/hosts/onnx",
}
"""Passes that no text shows, and where they are tested."""


@dataclass
class Case:
    """A case as its file tells it."""

    run: str = ""
    hosts: tuple[str, ...] = ("torch", "onnx")
    before: str = ""
    after: dict[str, str] = field(default_factory=dict)
    """By host; under an empty name for those that have none of their own."""
    notes: list[str] = field(default_factory=list)
    refused: str | None = None

    @classmethod
    def read(cls, path: Path) -> Case:
        """Read a file. Raises ValueError where a line has no meaning."""
        case, into = cls(), "before"
        texts: dict[str, list[str]] = {"before": []}
        for line in path.read_text(encoding="utf-8").splitlines():
            found = re.match(r"# (RUN|HOSTS|NOTE|REFUSED|AFTER|UNCHANGED)(?:: (.*)| (torch|onnx))?$", line)
            if not line.startswith("#"):
                texts[into] += [line] if line.strip() else []
            elif found is None:
                if line.startswith("# ") and line[2:].split(":")[0].isupper():
                    raise ValueError(f"{path.name}: {line!r}")
            elif found[1] == "AFTER":
                into = found[3] or ""
                texts[into] = []
            else:
                case._take(found[1], found[2] or "")
        case.before = "\n".join(texts.pop("before"))
        case.after = {host: "\n".join(lines) for host, lines in texts.items()}
        return case

    def _take(self, word: str, value: str) -> None:
        if word == "RUN":
            self.run = value
        elif word == "HOSTS":
            self.hosts = tuple(value.split())
        elif word == "REFUSED":
            self.refused = value
        elif word == "NOTE":
            self.notes.append(value)


FILES = sorted(CASES.rglob("*.ir"))
RUNS = [
    pytest.param(path, host, id=f"{path.relative_to(CASES).with_suffix('')}-{host}") for path in FILES for host in Case.read(path).hosts
]


def graph_of(text: str, host: str, folder: Path) -> Graph:
    """The graph of a text on a host."""
    model = Written(text)
    traced = irtool.trace(model, model.inputs)
    if host == "torch":
        return traced
    irtool.export_onnx(traced, folder / "case.onnx", dynamic_batch=False)
    return irtool.load_onnx(folder / "case.onnx")


@pytest.mark.parametrize(("path", "host"), RUNS)
def test_case(path: Path, host: str, tmp_path: Path) -> None:
    case = Case.read(path)
    graph = graph_of(case.before, host, tmp_path)
    assert graph.text() == case.before, "the graph that was written is not the one that was read"
    pipeline = Pipeline.parse(case.run)
    if case.refused is not None:
        with pytest.raises(IrtoolError, match=re.escape(case.refused)):
            pipeline(graph)
        return
    made = pipeline(graph)
    assert made.graph.text() == case.after.get(host, case.after.get("", case.before))
    assert made.changed == bool(case.after)
    for note in case.notes:
        assert any(note in said for said in made.notes), made.notes
    assert graph.text() == case.before, "the caller's graph was changed"
    if all(step.exact for step in pipeline.passes):
        wide = graph.widened()  # before the pass: what it computes is rounded to the weights' type
        inputs = tuple(torch.randn(x.shape, dtype=graph.arithmetic) if x.is_floating_point() else x for x in wide.example_inputs)
        found = difference(wide.run_as(inputs), pipeline(wide).graph.run_as(inputs))[1]
        assert found <= (1e-9 if graph.arithmetic is torch.float64 else 1e-4)


def test_every_pass_has_a_case() -> None:
    shown = {step.name for path in FILES for step in Pipeline.parse(Case.read(path).run).passes}
    own = {name for name, kind in REGISTRY.items() if kind.__module__.startswith("irtool.passes")}
    assert own - shown == set(WITHOUT_TEXT)


def test_a_line_that_is_none_is_told() -> None:
    with pytest.raises(ValueError, match="no operator 'Nothing'"):
        Written("input  %input:1x3x8x8\n%a:1x3x8x8 = Nothing(%input)\noutput %a:1x3x8x8")
    with pytest.raises(ValueError, match="cannot be read"):
        Written("input  %input:1x3x8x8\n%a Relu\noutput %a:1x3x8x8")
