"""Random CNNs, random plans: no plan fails in `prune`, and what is left equals the masked original in float64."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from random_cnns import BLOCKS, Recipe, draw, recipes
from random_cnns.net import failure, plan, trace
from torch import Tensor
from torch.utils import _pytree as pytree

import irtool
from irtool.analysis.compare import difference

SHARDS, EACH = 8, 25
"""200 nets, in parts that workers can share."""


@pytest.mark.parametrize("shard", range(SHARDS))
def test_random_nets_prune_exactly(shard: int) -> None:
    @hypothesis.seed(shard)
    @hypothesis.settings(
        max_examples=EACH,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(recipes())
    def check(recipe: Recipe) -> None:
        assert failure(recipe) == ""

    check()


@pytest.mark.parametrize("block", sorted(BLOCKS))
def test_every_block_loses_channels(block: str) -> None:
    """A block that is left alone would be tested in name only."""
    removed = 0
    for seed in range(4):
        recipe = Recipe("one", 8, (("Plain", 1), (block, seed), ("Plain", 2)), "pooled", seed)
        assert failure(recipe) == ""
        made = plan(trace(recipe), recipe)
        inside = [layer for layer in made.layers if layer.name.startswith("blocks.1")]
        removed += sum(len(layer.removed) for layer in inside or made.layers)
    assert removed > 0


def leaves(result: object) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


@pytest.mark.parametrize("seed", range(10))
def test_onnx_agrees(seed: int, tmp_path: Path) -> None:
    backends = pytest.importorskip("irtool.engines")
    recipe = draw(1000 + seed)
    graph = trace(recipe)
    pruned = irtool.fold_batchnorm(irtool.prune(graph, plan(graph, recipe), constants="drop")).clone(
        lambda t: t.float() if t.is_floating_point() else t.clone()
    )
    inputs = tuple(x.float() for x in graph.example_inputs)
    single = irtool.FxGraph(pruned.module, inputs)
    backends.export_onnx(single, tmp_path / "net.onnx", dynamic_batch=False)
    got = backends.OnnxSession(tmp_path / "net.onnx", threads=1).run(*(x.numpy() for x in inputs))
    for expected, array in zip(leaves(single.run(*inputs)), got, strict=True):
        np.testing.assert_allclose(array, expected.numpy(), rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("seed", range(10))
def test_reloading_agrees(seed: int, tmp_path: Path) -> None:
    archive = pytest.importorskip("irtool.archive")
    recipe = draw(2000 + seed)
    graph = trace(recipe)
    pruned = irtool.prune(graph, plan(graph, recipe), constants="drop")
    archive.save(pruned, tmp_path / "net.safetensors")
    loaded = archive.load(tmp_path / "net.safetensors")
    replayed = archive.load(tmp_path / "net.safetensors", trace(recipe))
    with torch.no_grad():
        expected = pruned.run(*graph.example_inputs)
        for other in (loaded, replayed):
            assert difference(expected, other.run(*graph.example_inputs))[0] == 0.0


@pytest.mark.parametrize("seed", range(20))
def test_folding_and_pruning_again_agree(seed: int) -> None:
    recipe = draw(3000 + seed)
    graph = trace(recipe)
    once = irtool.prune(graph, plan(graph, recipe), constants="drop")
    folded = irtool.fold_batchnorm(once)
    assert difference(once.run(*graph.example_inputs), folded.run(*graph.example_inputs))[1] <= 1e-9
    again = irtool.plan(folded, "l2", 0.4, seed=seed)
    assert irtool.pruning.slicing.check.check_prune(folded, again).relative <= 1e-9


@pytest.mark.parametrize("seed", range(20))
def test_a_plan_from_a_file_gives_the_same_net(seed: int, tmp_path: Path) -> None:
    recipe = draw(4000 + seed)
    made = plan(trace(recipe), recipe)
    made.to_json(tmp_path / "plan.json")
    read = irtool.Plan.from_json(tmp_path / "plan.json")
    assert read == made
    one, two = (irtool.prune(trace(recipe), p, constants="drop") for p in (made, read))
    assert one.text() == two.text()
    assert difference(one.run(*one.example_inputs), two.run(*two.example_inputs))[0] == 0.0
