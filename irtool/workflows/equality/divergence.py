"""The place where a foreign file parts from its source: intermediate results of both, exposed and compared.

Values are matched by the weights that make them, which keep their names from the module to the ONNX file, and by tensor
names from there to an engine's file. What cannot be matched is passed over, so the answer is the first *matched* node that differs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch.utils import _pytree as pytree

from irtool.atomic_files import scratch_folder
from irtool.engines import OnnxSession
from irtool.engines.agreement import relative_error
from irtool.engines.engine import Engine
from irtool.errors import IrtoolError
from irtool.hosts.onnx.files.file import write_draft
from irtool.hosts.torch.graph import FxGraph
from irtool.hosts.torch.running.interpreter import steps
from irtool.nests import tensors_in
from irtool.ops.properties import HAS_WEIGHT


def first_in_onnx(graph: FxGraph, path: Path, inputs: tuple[Any, ...], tolerance: float) -> str:
    """The module path of the first weighted layer whose result in the ONNX file is not the graph's; "" if none is found."""
    model = onnx.load(str(path))
    makers = {name: node.output[0] for node in model.graph.node if node.op_type in HAS_WEIGHT for name in node.input[1:2]}
    exposed = _exposed(model, list(makers.values()), inputs)
    for node, _, value in steps(graph, inputs):
        weight = node.get("weight") if node is not None else None
        if node is None or weight is None or weight.name not in makers:
            continue
        got = exposed.get(makers[weight.name])
        expected = tensors_in(value)[0].detach().cpu().numpy()
        if got is not None and got.shape == expected.shape and relative_error(got, expected) > tolerance:
            return node.location
    return ""


def first_in_engine(engine: Engine, onnx_path: Path, path: Path, inputs: tuple[Any, ...]) -> str:
    """The first ONNX node whose result in an engine's file is another; "" if none is found, or the engine shows nothing inside.

    Engines keep the tensor names of what they do not fuse away; each is asked for as an output of its own.
    """
    if engine.inside is None:
        return ""
    model = onnx.load(str(onnx_path))
    names = [(node.name or node.output[0], node.output[0]) for node in model.graph.node]
    exposed = _exposed(model, [output for _, output in names], inputs)
    arrays = _arrays(inputs)
    for name, output in names:
        expected = exposed.get(output)
        if expected is None or expected.dtype != np.float32:
            continue
        got = _inside(engine, path, output, arrays)
        if got is not None and got.shape == expected.shape and relative_error(got, expected) > engine.tolerance:
            return name
    return ""


def before_saturation(engine: Engine, onnx_path: Path, path: Path, inputs: tuple[Any, ...]) -> tuple[float, float] | None:
    """The errors of an engine's file, absolute and relative, with outputs that a softmax or sigmoid makes compared before it.

    A softmax multiplies a relative error of its input by up to the input's size: logits of 15 that are right to 4e-4 give
    probabilities that are right to 1.5e-3.

    Returns:
        None if there is no such output, or the engine fused its input away.
    """
    model = onnx.load(str(onnx_path))
    sources = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type in ("Softmax", "Sigmoid")}
    names = [sources.get(output.name, output.name) for output in model.graph.output]
    if not any(output.name in sources for output in model.graph.output):
        return None
    arrays = _arrays(inputs)
    exposed = _exposed(model, names, inputs)
    pairs = [(exposed.get(name), _inside(engine, path, name, arrays)) for name in names]
    absolute = relative = 0.0
    for expected, got in pairs:
        if expected is None or got is None or expected.shape != got.shape:
            return None
        absolute = max(absolute, float(np.abs(expected - got).max()))
        relative = max(relative, relative_error(got, expected))
    return absolute, relative


def _exposed(model: onnx.ModelProto, names: list[str], inputs: tuple[Any, ...]) -> dict[str, np.ndarray]:
    """The named values inside an ONNX model, run in onnxruntime."""
    have = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in have)
    with scratch_folder() as folder:  # not beside the original: where files are only checked, nothing is written
        path = folder / "model.onnx"
        write_draft(model, path)
        try:
            session = OnnxSession(path)
            return dict(zip((spec.name for spec in session.outputs), session.run(*_arrays(inputs)), strict=True))
        except IrtoolError:
            return {}  # the search for a place must not hide the failure that it explains


def _inside(engine: Engine, path: Path, name: str, arrays: list[np.ndarray]) -> np.ndarray | None:
    """One value inside an engine's file; None where the engine fused it away, or shows nothing inside."""
    if engine.inside is None:
        return None
    try:
        return engine.inside(path, name).run(*arrays)[0]
    except IrtoolError:
        return None


def _arrays(inputs: tuple[Any, ...]) -> list[np.ndarray]:
    """The tensors and arrays among the inputs, as arrays."""
    leaves = pytree.tree_leaves(inputs)
    return [
        np.asarray(leaf.detach().cpu() if isinstance(leaf, torch.Tensor) else leaf)
        for leaf in leaves
        if isinstance(leaf, torch.Tensor | np.ndarray)
    ]
