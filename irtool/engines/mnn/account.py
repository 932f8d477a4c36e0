"""Boundaries between integers and floats in an MNN file, read from the operators that MNN runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from irtool.engines.mnn.profile import MnnRun
from irtool.engines.mnn.short_names import long_name
from irtool.quant.boundaries import Account, Step

_CASTS = {"FloatToInt8": "quantise", "Int8ToFloat": "dequantise"}
_IN_MNN = {
    "BinaryOp": "MNN joins tensors faster in float, or it holds a scale back",
    "Interp": "MNN interpolates wrong in integers",
    "Pooling": "MNN rounds means too much in integers, and takes wrong maxima of negative values; or the input is in float",
    "Scale": "a batch norm that cannot be folded rounds less in float",
    "While": "MNN has no integer form of a selection by indices",
}
"""Reasons for which MNN computes an operator in float; any other has no int8 form there, or its result has no scale."""


def mnn_account(runs: Sequence[MnnRun], names: Mapping[str, str] = MappingProxyType({})) -> Account:
    """The account of a file for MNN, from what MNN runs: it decides by itself, by the scales in the file.

    Args:
        runs: what ran.
        names: the short names in the file by the model's own.
    """
    readers = {run.name: run for run in runs if run.kind not in _CASTS}  # a change of layout for an operator comes before it
    found = []
    for index, run in enumerate(runs):
        if run.kind in _CASTS:
            reader, integer = (readers[run.name].kind, readers[run.name].integer) if run.name in readers else ("output", False)
            made = "its input was computed in float" if index else "the model's input is float"
            why = (
                made
                if run.integer
                else "something else reads it in float"
                if integer
                else _IN_MNN.get(reader, "the model's output is float" if reader == "output" else f"{reader} is in float")
            )
            found.append(Step(_CASTS[run.kind], long_name(run.name, names), f"-> {reader}", why))
    rest = [run for run in runs if run.kind not in _CASTS]
    floating = Counter((run.kind, _IN_MNN.get(run.kind, "it has no integer form in MNN, or no scale")) for run in rest if not run.integer)
    return Account(tuple(found), sum(run.integer for run in rest), floating)
