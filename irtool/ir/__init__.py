"""The graph view, its torch host, and tracing."""

from irtool.ir.fx_graph import FxGraph
from irtool.ir.fx_trace import trace
from irtool.ir.fx_within import put_back
from irtool.ir.graph import Graph, Node, Value

__all__ = ["FxGraph", "Graph", "Node", "Value", "put_back", "trace"]
