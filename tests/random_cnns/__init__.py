"""Random CNNs from the whole operator table, with random plans. Importing this package registers all blocks."""

from random_cnns import blocks, moves
from random_cnns.blocks import BLOCKS
from random_cnns.recipe import Options, Recipe, draw, recipes

__all__ = ["BLOCKS", "Options", "Recipe", "blocks", "draw", "moves", "recipes"]
