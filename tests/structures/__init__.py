"""Small nets, one for each way in which CNNs are wired. Importing this package registers them all."""

from structures import dense, gates, mobile, moved, odd, products, residual, shared
from structures.case import CASES, Case, graph, module

__all__ = ["CASES", "Case", "dense", "gates", "graph", "mobile", "module", "moved", "odd", "products", "residual", "shared"]
