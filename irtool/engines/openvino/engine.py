"""OpenVINO's record."""

from __future__ import annotations

from irtool.engines.cpu import lacks_vnni
from irtool.engines.engine import Engine, Int8
from irtool.engines.onnxruntime.engine import write_qdq, write_weights
from irtool.engines.openvino.profile import openvino_times
from irtool.engines.openvino.session import OpenvinoSession, probe
from irtool.quant import Scheme
from irtool.quant.boundaries import account
from irtool.quant.placement import PLAIN

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
    probe=probe,
    times=openvino_times,
    int8=Int8(
        policy=PLAIN,
        # As in onnxruntime: without VNNI, sums of two products of 8 bits are cut off at 16.
        scheme=Scheme(weight_bits=7),
        activations=("uint8", "int8"),
        lowers=True,
        several_inputs=True,
        write=write_qdq,
        write_weights=write_weights,
        account=lambda path, model, placement, x: account(model, placement),
        missing=lambda: "this CPU has no VNNI instructions, which is where int8 gains" if lacks_vnni() else "",
    ),
)
