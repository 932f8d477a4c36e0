"""A random CNN as data: which blocks, in which order, from which seed. A shorter list of blocks is a simpler net."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from hypothesis import strategies as st

from random_cnns.blocks import BLOCKS
from random_cnns.heads import HEADS, STEMS

WIDTHS = (4, 8, 12, 16)


@dataclass(frozen=True)
class Options:
    """The arguments of `irtool.plan`."""

    criterion: str = "l1"
    ratio: float = 0.5
    scope: str = "local"
    residual: str = "couple"
    min_channels: int = 1
    round_to: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Recipe:
    """A net: a stem, blocks with a seed each (their inner choices), a head; and a plan's options."""

    stem: str
    width: int
    blocks: tuple[tuple[str, int], ...]
    head: str
    seed: int
    options: Options = field(default_factory=Options)


def draw(seed: int) -> Recipe:
    """A recipe from a seed alone, without hypothesis: what the bench draws."""
    rng = random.Random(seed)
    blocks = tuple((rng.choice(sorted(BLOCKS)), rng.randrange(1 << 16)) for _ in range(rng.randint(1, 7)))
    options = Options(rng.choice(["l1", "l2", "random", "bn_scale"]), rng.choice([0.1, 0.3, 0.5, 0.7, 0.9]), rng.choice(["local", "global"]),
                      rng.choice(["couple", "couple", "select", "keep"]), rng.choice([1, 1, 2, 3]), rng.choice([1, 1, 2, 4]), rng.randrange(100))  # fmt: skip
    return Recipe(rng.choice(sorted(STEMS)), rng.choice(WIDTHS), blocks, rng.choice(sorted(HEADS)), rng.randrange(1 << 16), options)


def recipes() -> st.SearchStrategy[Recipe]:
    """Recipes for hypothesis; it shrinks them to few blocks and plain options."""
    options = st.builds(Options, st.sampled_from(["l1", "l2", "random", "bn_scale"]), st.sampled_from([0.5, 0.3, 0.1, 0.7, 0.9]), st.sampled_from(["local", "global"]),
                        st.sampled_from(["couple", "select", "keep"]), st.sampled_from([1, 2, 3]), st.sampled_from([1, 2, 4]), st.integers(0, 99))  # fmt: skip
    block = st.tuples(st.sampled_from(sorted(BLOCKS)), st.integers(0, (1 << 16) - 1))
    return st.builds(Recipe, st.sampled_from(sorted(STEMS)), st.sampled_from(WIDTHS), st.lists(block, min_size=1, max_size=6).map(tuple),
                     st.sampled_from(sorted(HEADS)), st.integers(0, (1 << 16) - 1), options)  # fmt: skip
