"""onnxruntime's record."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import ModelProto

from irtool.engines.cpu import lacks_vnni
from irtool.engines.engine import Engine, Feeds, Int8
from irtool.engines.onnxruntime.prepare import prepared
from irtool.engines.onnxruntime.profile import operator_times
from irtool.engines.onnxruntime.qdq import to_qdq
from irtool.engines.onnxruntime.refine import refined
from irtool.engines.onnxruntime.session import OnnxSession
from irtool.engines.onnxruntime.stored_weights import weights_to_half, weights_to_integers
from irtool.hosts.onnx.files.load import load_onnx
from irtool.quant import Recipe, Scheme
from irtool.quant.boundaries import account
from irtool.quant.placement import PLAIN
from irtool.quant.scales import weights_recipe


def _write(model: ModelProto, recipe: Recipe, path: Path) -> tuple[str, ...]:
    """Write an int8 ONNX file with QuantizeLinear and DequantizeLinear. Every layer of the placement is in integers."""
    onnx.save(to_qdq(model, recipe), str(path))
    return ()


def _write_half(source: Path, path: Path) -> None:
    """Write an ONNX file whose weights are half floats."""
    onnx.save(weights_to_half(prepared(onnx.load(str(source)))), str(path))


def _write_weights(source: Path, path: Path, scheme: Scheme, feeds: Feeds) -> None:
    """Write an ONNX file whose weights alone are integers, fitted to what the layers read where there are images."""
    model = prepared(onnx.load(str(source)))
    recipe = weights_recipe(model, scheme.weights, scheme.weight_bits)
    recipe = refined(model, recipe, feeds, shared=False) if feeds else recipe
    onnx.save(weights_to_integers(model, recipe), str(path))


QDQ = Int8(
    policy=PLAIN,
    # Without VNNI, sums of two products of 8 bits are cut off at 16.
    scheme=Scheme(weight_bits=7),
    activations=("uint8", "int8"),
    lowers=True,
    several_inputs=True,
    write=_write,
    write_weights=_write_weights,
    write_half=_write_half,
    weights_from_least=False,
    packs_bits=False,
    account=lambda path, model, placement, x: account(model, placement),
    missing=lambda: "this CPU has no VNNI instructions, which is where int8 gains" if lacks_vnni() else "",
)
"""int8 by QuantizeLinear and DequantizeLinear, for every engine that reads them."""

ENGINE = Engine(
    name="onnxruntime",
    title="ONNX",
    package="onnxruntime",
    module="onnxruntime",
    suffix=".onnx",
    tolerance=1e-4,
    session=OnnxSession,
    convert=None,
    exact=None,
    inside=lambda path, name: OnnxSession(path, values=[name]),
    between=None,
    probe=load_onnx,
    times=lambda path, arrays: operator_times(path, list(arrays)),
    integers=QDQ,
)
