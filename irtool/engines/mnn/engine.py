"""MNN's record."""

from __future__ import annotations

from irtool.engines.engine import Engine, Int8
from irtool.engines.mnn.account import mnn_account
from irtool.engines.mnn.export import TOLERANCE, export_mnn
from irtool.engines.mnn.instructions import missing_instructions, remedy
from irtool.engines.mnn.int8 import export_mnn_int8
from irtool.engines.mnn.int8_policy import MNN_POLICY
from irtool.engines.mnn.light import write_weights
from irtool.engines.mnn.profile import mnn_profile, mnn_times
from irtool.engines.mnn.session import MnnSession
from irtool.engines.mnn.short_names import short_names
from irtool.quant import Scheme

ENGINE = Engine(
    name="mnn",
    title="MNN",
    package="MNN",
    module="MNN",
    suffix=".mnn",
    tolerance=TOLERANCE,
    session=MnnSession,
    convert=lambda onnx, path, verify: export_mnn(onnx, path, verify=verify),
    exact=lambda path: MnnSession(path, exact=True),
    inside=lambda path, name: MnnSession(path, outputs=[name], exact=True),
    between=lambda path, threads, first, last: MnnSession(path, threads, inputs=[first], outputs=[last]),
    probe=lambda path: MnnSession(path, 1, probe=True),
    times=lambda path, arrays: mnn_times(path, arrays[0]),
    integers=Int8(
        policy=MNN_POLICY,
        scheme=Scheme(activations="int8", symmetric=True),
        activations=("int8",),
        # A residual stream is read in float mostly, and rounds less and is faster as the batch norm that it is.
        lowers=False,
        several_inputs=False,
        write=lambda model, recipe, path: export_mnn_int8(model, recipe, path).missed,
        write_weights=write_weights,
        write_half=lambda source, path: export_mnn(source, path, fp16=True),
        weights_from_least=True,
        packs_bits=True,
        account=lambda path, model, placement, x: mnn_account(mnn_profile(path, x), short_names(model)),
        missing=missing_instructions,
        remedy=remedy,
    ),
)
