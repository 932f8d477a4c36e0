"""Graphs and results as Python and notebooks show them, as other tools take them, and pickled."""

from __future__ import annotations

import copy
import pickle
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import torch
from exported import by_export
from torch import nn

import irtool
from irtool.ir.pictures import MOST_DRAWN, operators

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


class Residual(nn.Module):
    def __init__(self, depth: int = 1) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 8, 3, padding=1), nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(depth))
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for layer in self.body:
            x = x + torch.relu(layer(x))
        return self.head(self.norm(x).mean((2, 3)).view(x.shape[0], -1))


def _graphs(tmp_path: Path, depth: int = 1) -> list[irtool.Graph]:
    torch.manual_seed(0)
    model = Residual(depth).eval()
    with torch.no_grad():
        for layer in model.body:
            layer.weight.mul_(0.01)
    irtool.export_onnx(graph := irtool.trace(model, X), tmp_path / "net.onnx")
    exported = irtool.trace(model, X)
    return [graph, irtool.load_onnx(tmp_path / "net.onnx"), irtool.prune(exported, irtool.plan(exported, ratio=0.5))]


def test_each_result_is_one_short_line_and_a_table(tmp_path: Path) -> None:
    graph, read, small = _graphs(tmp_path)
    plan = irtool.plan(graph, ratio=0.5)
    found = [
        (graph, "<FxGraph: "), (read, "<OnnxGraph: "), (plan, "<Plan: "), (irtool.channel_groups(graph), "<ChannelGroups: "),
        (irtool.cost(graph), "<Cost: "), (irtool.diff(graph, small), "<Diff: "), (irtool.compare(graph, graph, X), "<Comparison: equal at "),
    ]  # fmt: skip
    for thing, beginning in found:
        assert repr(thing).startswith(beginning)
        assert "\n" not in repr(thing)
        assert len(repr(thing)) < 200
        page = thing._repr_html_()  # type: ignore[attr-defined]
        tree = ElementTree.fromstring(f"<div>{page}</div>")  # well-formed, nothing unescaped
        assert tree.find(".//svg") is not None if isinstance(thing, irtool.Graph) else tree.find(".//tbody") is not None
    assert "2x3x16x16 -> 2x4" in repr(graph)
    assert str(plan) == plan.summary()
    assert plan.layers[0].name in plan._repr_html_()


def test_a_graph_becomes_dot_and_networkx(tmp_path: Path) -> None:
    for graph in _graphs(tmp_path):
        made = graph.to_networkx()
        assert nx.is_directed_acyclic_graph(made)
        inner = [name for name, data in made.nodes(data=True) if data["op"] not in ("Input", "Output")]
        assert inner == [node.name for node in operators(graph)]
        params = set(graph.params.values())
        reads = sum(value not in params for node in operators(graph) for value in node.inputs) + len(graph.outputs)
        assert made.number_of_edges() == reads
        dot = graph.to_dot()
        assert dot.startswith("digraph {")
        assert dot.count(" -> ") == reads
        assert all(f'"{node.name}" [label=' in dot for node in operators(graph))


def test_quotes_and_tags_in_names_stay_text() -> None:
    graph = irtool.trace(Residual().eval(), X)
    operators(graph)[0].location = 'a"<b>'
    assert 'a\\"<b>' in graph.to_dot()
    ElementTree.fromstring(f"<div>{graph._repr_html_()}</div>")
    ElementTree.fromstring(irtool.cost(graph)._repr_html_())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda graph: pickle.loads(pickle.dumps(graph))], ids=["deepcopy", "pickle"])
def test_graphs_are_copied_and_pickled_at_any_depth(copied: Any, tmp_path: Path) -> None:
    for graph in _graphs(tmp_path, depth=400):  # recursion from node to node would go 1,200 deep
        new = copied(graph)
        assert new.text() == graph.text()
        assert torch.equal(*(torch.as_tensor(one.run(X)[0]) for one in (graph, new)))
        assert (new.tracer, new.notes, new.history) == (graph.tracer, graph.notes, graph.history)
    assert len(graph.nodes) > MOST_DRAWN
    assert "nodes more" in graph._repr_html_()


def test_a_copy_shares_no_weights_and_can_be_pruned_and_trained() -> None:
    graph = irtool.trace(Residual().eval(), X)
    new = pickle.loads(pickle.dumps(graph))
    with torch.no_grad():
        next(new.module.parameters()).zero_()
    assert next(graph.module.parameters()).detach().abs().sum() > 0
    small = irtool.prune(new, irtool.plan(new, ratio=0.5))
    assert irtool.check_prune(new, irtool.plan(new, ratio=0.5)).ok
    small.module(X).sum().backward()


def test_an_exported_program_is_pickled_too() -> None:
    with by_export():
        graph = irtool.trace(Residual().eval(), X)
    assert graph.tracer == "export"
    new = pickle.loads(pickle.dumps(graph))
    assert new.text() == graph.text()
    assert torch.equal(new.module(X), graph.module(X))
