"""`lower_affine` in other types than float32."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from irtool.hosts.onnx.files.load import from_model
from irtool.passes import LowerAffine


@pytest.mark.parametrize(("kind", "changed"), [(np.float16, True), (np.float32, True), (np.float64, False), (np.int32, False)])
def test_a_chain_keeps_its_type_or_stays(kind: type[np.generic], changed: bool) -> None:
    """A convolution by float32 weights takes no other input, and engines have none in float64 or integers."""
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    scale = numpy_helper.from_array(np.arange(1, 5).astype(kind).reshape(1, 4, 1, 1), "scale")
    inputs, outputs = (helper.make_tensor_value_info(name, element, (2, 4, 3, 3)) for name in "xy")
    net = helper.make_graph([helper.make_node("Mul", ["x", "scale"], ["y"])], "net", [inputs], [outputs], [scale])
    graph = from_model(helper.make_model(net, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    result = LowerAffine()(graph)
    assert result.changed is changed
    onnx.checker.check_model(result.graph.proto, full_check=True)
    x = (graph.example_inputs[0] + 3).to(graph.inputs[0].dtype)
    assert result.graph.run(x)[0].equal(graph.run(x)[0])
    assert TensorProto.DataType.Name(result.graph.proto.graph.output[0].type.tensor_type.elem_type) == TensorProto.DataType.Name(element)
