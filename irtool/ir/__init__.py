"""The graph view, its two hosts (torch.fx and ONNX), tracing and loading."""

from irtool.ir.fx_graph import FxGraph
from irtool.ir.fx_trace import trace
from irtool.ir.fx_within import put_back
from irtool.ir.graph import Graph, Node, Value
from irtool.ir.onnx_graph import OnnxGraph
from irtool.ir.onnx_load import load_onnx, save_onnx

__all__ = ["FxGraph", "Graph", "Node", "OnnxGraph", "Value", "load_onnx", "put_back", "save_onnx", "trace"]
