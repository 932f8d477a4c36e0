"""Writing graphs for other engines, and running them there.

`export_onnx` and `export_mnn` write files and check them; `TorchSession`, `OnnxSession` and `MnnSession` run them behind
one interface; `latency` and `latency_pairs` time them. MNN and onnxruntime are imported when first used.
"""

from __future__ import annotations

from irtool.backends.latency import Latency, PairedLatency, latency, latency_pairs
from irtool.backends.mnn_export import MnnExport, export_mnn
from irtool.backends.mnn_session import MnnSession
from irtool.backends.onnx_export import OnnxExport, export_onnx
from irtool.backends.onnx_session import OnnxSession
from irtool.backends.session import Session, TensorSpec
from irtool.backends.source import Source
from irtool.backends.torch_session import TorchSession

__all__ = [
    "Latency",
    "MnnExport",
    "MnnSession",
    "OnnxExport",
    "OnnxSession",
    "PairedLatency",
    "Session",
    "Source",
    "TensorSpec",
    "TorchSession",
    "export_mnn",
    "export_onnx",
    "latency",
    "latency_pairs",
]
