"""OpenVINO's record."""

from __future__ import annotations

from irtool.engines.engine import Engine
from irtool.engines.onnxruntime.engine import QDQ
from irtool.engines.openvino.profile import openvino_times
from irtool.engines.openvino.session import OpenvinoSession
from irtool.hosts.onnx.files.load import load_onnx

ENGINE = Engine(
    name="openvino",
    title="OpenVINO",
    package="openvino",
    module="openvino",
    suffix=".onnx",
    tolerance=1e-3,  # Winograd convolutions, and approximate exponentials
    session=OpenvinoSession,
    convert=None,
    exact=None,
    inside=lambda path, name: OpenvinoSession(path, value=name),
    between=None,
    probe=load_onnx,
    times=openvino_times,
    integers=QDQ,
)
