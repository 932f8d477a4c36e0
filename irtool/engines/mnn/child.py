"""MNN in a process of its own: `python child.py convert ARGS.json`, `... run MODEL IN.npz OUT.npz`, `... probe MODEL`,
`... quantise ARGS.json`.

Each may end the process (MNN aborts on some models), and the converter reports failure only in what it prints, so
`mnn_process` starts this file by its path, with a time limit, and looks at what came out. It imports nothing of irtool:
torch would take longer to load than the conversion lasts.

`_tools` is the extension module of MNN's wheel. The wheel's own command-line wrappers around it, `MNN.tools.*`, install and
load a telemetry package when imported; they are never imported here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def convert(arguments: str) -> None:
    """Call the converter with the list of arguments in a JSON file."""
    import _tools

    _tools.mnnconvert(json.loads(Path(arguments).read_text(encoding="utf-8")))


def quantise(arguments: str) -> None:
    """Call MNN's own quantiser with the list of arguments in a JSON file."""
    import _tools

    _tools.mnnquant(json.loads(Path(arguments).read_text(encoding="utf-8")))


def probe(model: str) -> None:
    """Load a model and run it on zeros, with 32 for every size that is free: does the process survive that?"""
    run(model)


def run(model: str, inputs: str | None = None, outputs: str | None = None) -> None:
    """Run a model on the arrays arr_0, arr_1 ... of an .npz file and write its results the same way.

    Then it runs on twice the batch and on the first again: MNN plans anew for a new shape, and with some operators (a slice with a
    negative step) that corrupts memory. What is not meant for another batch fails in words, which is all right.
    """
    import MNN
    import MNN.expr as expr
    import numpy as np

    info = _load(model, [], []).get_info()
    runtime = MNN.nn.create_runtime_manager(({"numThread": 1},))  # the default has four threads, which wait by spinning
    runtime.set_hint(3, 1)  # WINOGRAD_MEMORY_LEVEL: small tiles, which round less; whether the file is right is the question here
    module = _load(model, info["inputNames"], info["outputNames"], runtime_manager=runtime)
    given = np.load(inputs) if inputs else {}
    arrays = []
    for index, held in enumerate(info["inputs"]):
        kind = {expr.dtype.int: np.int32, expr.dtype.uint8: np.uint8}.get(held.dtype, np.float32)
        arrays.append(given[f"arr_{index}"] if inputs else np.zeros([32 if size < 0 else size for size in held.shape], kind))

    results = _forward(module, info["inputs"], arrays)
    if inputs and arrays:
        for repeats in (2, 1):
            try:
                _forward(module, info["inputs"], [np.concatenate([array] * repeats) if array.ndim else array for array in arrays])
            except (RuntimeError, ValueError, SystemError, TypeError):
                break
    if outputs:
        np.savez(outputs, *results)


def _load(model: str, *ends: list[str], **options: Any) -> Any:
    """Load a model, or end the process with one line."""
    import MNN

    try:
        return MNN.nn.load_module_from_file(model, *ends, **options)
    except (RuntimeError, SystemError, ValueError):  # a SystemError says no more than that there was another error
        sys.exit("not an MNN model, or a truncated one")


def _forward(module: Any, inputs: Sequence[Any], arrays: Sequence[Any]) -> list[Any]:
    """Run a loaded model once; `inputs` are MNN's descriptions of what it reads."""
    import MNN.expr as expr
    import numpy as np

    variables = []
    for array, held in zip(arrays, inputs, strict=True):
        variable = expr.placeholder(list(array.shape), held.data_format, held.dtype)
        variable.write(array)
        variables.append(variable)
    results = []
    for result in module.onForward(variables):
        plain = expr.convert(result, expr.data_format.NCHW) if result.data_format == expr.data_format.NC4HW4 else result
        results.append(np.array(plain.read()).reshape(plain.shape))
    return results


ACTIONS: dict[str, Callable[..., None]] = {"convert": convert, "quantise": quantise, "run": run, "probe": probe}

if __name__ == "__main__":
    # Started by path, Python looks for imports in this folder first, where a module could have an installed one's name.
    sys.path = [entry for entry in sys.path if not entry or Path(entry).resolve() != Path(__file__).resolve().parent]
    ACTIONS[sys.argv[1]](*sys.argv[2:])
