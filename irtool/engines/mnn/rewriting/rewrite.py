"""Rewriting a model for MNN's converter: one rule an operator, and what holds for all of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from irtool.engines.mnn.rewriting.definitions import inlined
from irtool.engines.mnn.rewriting.products import einsum, gemm, matmul
from irtool.engines.mnn.rewriting.resizes import resize
from irtool.engines.mnn.rewriting.slices import sliced
from irtool.engines.mnn.rewriting.values import chained, constant_first, mean, not_a_number, one_hot, pad, split
from irtool.engines.mnn.rewriting.windows import conv, conv_transpose, pool
from irtool.engines.mnn.rewriting.work import Rule, Work


def rewrite(model: onnx.ModelProto) -> bool:
    """Rewrite a model in place; whether there was anything to rewrite.

    - Calls of local functions, and reductions that MNN reads no axes of, become what these do.
    - Sparse constants are written out.
    - Attributes that are left to their defaults are written down: MNN has defaults of its own.
    - Each operator that MNN refuses or misreads becomes others of the same numbers, where its sizes are known.
    """
    inside = any(node.op_type in _REDUCTIONS and len(node.input) > 1 for node in model.graph.node)
    changed = inlined(model, _REDUCTIONS if inside else ())
    changed |= _dense(model)
    changed |= _defaults(model)
    if not any(node.op_type in _RULES for node in model.graph.node):
        return changed
    work = Work.of(model)
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        rule = _RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        nodes += (rule(work, node) if rule is not None else None) or [node]
    if not work.changed:
        return changed
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    model.graph.ClearField("node")
    model.graph.node.extend(copies)
    return True


_RULES: Mapping[str, Rule] = {
    "AveragePool": pool,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Div": constant_first,
    "Einsum": einsum,
    "Gemm": gemm,
    "IsNaN": not_a_number,
    "LpPool": pool,
    "MatMul": matmul,
    "Max": chained,
    "MaxPool": pool,
    "Mean": mean,
    "Min": chained,
    "OneHot": one_hot,
    "Pad": pad,
    "Pow": constant_first,
    "Resize": resize,
    "Slice": sliced,
    "Split": split,
    "Sub": constant_first,
    "Sum": chained,
}
"""Rules by operator."""
_REDUCTIONS = frozenset({"ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"})
"""Reductions whose axes MNN does not read where they are an input."""


def _dense(model: onnx.ModelProto) -> bool:
    """Write sparse constants out: MNN takes them for absent, and reads beside its memory."""
    for sparse in model.graph.sparse_initializer:
        values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
        places = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), tuple(sparse.dims))
        dense = np.zeros(int(np.prod(sparse.dims)), values.dtype)
        dense[places] = values
        model.graph.initializer.append(numpy_helper.from_array(dense.reshape(sparse.dims), sparse.values.name))
    changed = bool(model.graph.sparse_initializer)
    del model.graph.sparse_initializer[:]
    return changed


def _defaults(model: onnx.ModelProto) -> bool:
    """Write down the numbers that attributes have by default."""
    version = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=13)
    changed = False
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type):
            continue
        try:
            schema = onnx.defs.get_schema(node.op_type, version)
        except onnx.defs.SchemaError:  # the operator is younger, or older, than the file
            continue
        stated = {attribute.name for attribute in node.attribute}
        for name, attribute in schema.attributes.items():
            default = attribute.default_value
            if name not in stated and default.type in (onnx.AttributeProto.FLOAT, onnx.AttributeProto.INT):
                node.attribute.append(helper.make_attribute(name, helper.get_attribute_value(default)))
                changed = True
    return changed
