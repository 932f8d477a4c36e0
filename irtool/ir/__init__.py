"""The graph view, its torch host, and tracing."""

from irtool.ir.fx_graph import FxGraph
from irtool.ir.fx_trace import trace
from irtool.ir.graph import Graph, Node, Value

__all__ = ["FxGraph", "Graph", "Node", "Value", "trace"]
