"""Nets of a second generator: what people write in forward beyond layers in a row, each compared with its zeroed original."""

from strange_nets.blocks import BLOCKS
from strange_nets.judge import Verdict, judge
from strange_nets.net import StrangeNet, draw

__all__ = ["BLOCKS", "StrangeNet", "Verdict", "draw", "judge"]
