"""From a recipe to a net, and the comparison of what is left of it with the masked original."""

from __future__ import annotations

import random

import torch
from random_norms import randomise
from torch import Tensor, nn

import irtool
from irtool.pruning.slicing.check import check_prune
from random_cnns import moves  # noqa: F401  (registers its blocks)
from random_cnns.blocks import BLOCKS, Plan
from random_cnns.heads import HEADS, STEMS
from random_cnns.recipe import Recipe

TOLERANCE = 1e-9


class RandomCNN(nn.Module):
    """A stem, blocks and a head."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        plan = Plan(random.Random(recipe.seed), recipe.width, 8)
        self.stem, blocks = STEMS[recipe.stem](plan), []
        for name, seed in recipe.blocks:
            plan.rng = random.Random(seed)
            blocks.append(BLOCKS[name](plan))
        plan.rng = random.Random(recipe.seed + 1)
        self.blocks, self.head = nn.Sequential(*blocks), HEADS[recipe.head](plan)

    def forward(self, x: Tensor) -> object:
        return self.head(self.blocks(self.stem(x)))


class TwoInputCNN(RandomCNN):
    """The same with two inputs."""

    def forward(self, x: Tensor, y: Tensor) -> object:
        return self.head(self.blocks(self.stem(x, y)))


def build(recipe: Recipe) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The net in float64, with random weights and statistics, and inputs for it."""
    torch.manual_seed(recipe.seed)
    net = (TwoInputCNN if len(STEMS[recipe.stem].shapes) == 2 else RandomCNN)(recipe)
    scale_up(net)
    return randomise(net).double().eval(), tuple(torch.randn(shape, dtype=torch.float64) for shape in net.stem.shapes)


def scale_up(net: nn.Module) -> None:
    """He's initialisation: with torch's own the signal fades over many layers, and differences with it."""
    for child in net.modules():
        if isinstance(child, nn.Conv2d | nn.Linear | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(child.weight)
            if child.bias is not None:
                nn.init.normal_(child.bias, std=0.3)


def trace(recipe: Recipe) -> irtool.FxGraph:
    """The traced net."""
    net, inputs = build(recipe)
    return irtool.trace(net, inputs)


def plan(graph: irtool.FxGraph, recipe: Recipe) -> irtool.Plan:
    """The plan that the recipe asks for."""
    o = recipe.options
    return irtool.plan(graph, o.criterion, o.ratio, o.scope, o.residual, o.min_channels, o.round_to, seed=o.seed)


def failure(recipe: Recipe) -> str:
    """Why the net's prune is wrong; empty if it is right: it runs, is exact, and the masked original computes the same."""
    graph = trace(recipe)
    made = irtool.Plan.from_dict(plan(graph, recipe).to_dict())  # a plan is complete as data
    found = check_prune(graph, made)
    if found.unresolved:
        return f"no reference for {found.unresolved}"
    if not found.relative <= TOLERANCE:
        return f"relative error {found.relative:.2e}"
    short = [layer for layer in made.layers if layer.kept < min(recipe.options.min_channels, layer.total)]
    if short:
        return f"below the minimum: {short[0]}"
    unproven = [layer for layer in made.layers if "no proof" in layer.reason]
    return f"pinned for want of a proof: {unproven[0].reason}" if unproven else ""
