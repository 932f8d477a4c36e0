"""The graph view, its two hosts (torch.fx and ONNX), tracing and loading."""

from irtool.hosts.onnx.graph import OnnxGraph
from irtool.hosts.onnx.load import load_onnx, save_onnx
from irtool.hosts.torch.graph import FxGraph
from irtool.hosts.torch.tracing.submodule import put_back
from irtool.hosts.torch.tracing.trace import trace
from irtool.ir.graph import Graph, Node, Value

__all__ = ["FxGraph", "Graph", "Node", "OnnxGraph", "Value", "load_onnx", "put_back", "save_onnx", "trace"]
