"""Small nets, one for each way in which CNNs are wired. Importing this package registers them all."""

from structures import dense, gates, mobile, moved, odd, residual, shared
from structures.case import CASES, Case, graph, module, randomise

__all__ = ["CASES", "Case", "dense", "gates", "graph", "mobile", "module", "moved", "odd", "randomise", "residual", "shared"]
