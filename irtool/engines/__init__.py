"""Writing graphs for other engines, and running them there.

`export_onnx` and `export_mnn` write files and check them; `TorchSession`, `OnnxSession` and `MnnSession` run them behind
one interface; `latency` and `latency_pairs` time them. MNN and onnxruntime are imported when first used.
"""

from __future__ import annotations

from irtool.engines.flat_module import Source
from irtool.engines.latency import Latency, PairedLatency, latency, latency_pairs
from irtool.engines.mnn.export import MnnExport, export_mnn
from irtool.engines.mnn.session import MnnSession
from irtool.engines.onnxruntime.export import OnnxExport, export_onnx
from irtool.engines.onnxruntime.session import OnnxSession
from irtool.engines.session import Session, TensorSpec
from irtool.engines.torch import TorchSession

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
