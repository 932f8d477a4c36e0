"""The graph view: nodes and values in ONNX's vocabulary, whatever IR holds the program. It knows no host."""

from irtool.ir.graph import Graph, Node, Value

__all__ = ["Graph", "Node", "Value"]
