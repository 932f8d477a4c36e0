"""ONNX files that MNN's converter refuses or misreads, and runs once they are rewritten; inputs that MNN cannot be given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_nets import Net

import irtool
from irtool.engines import MnnSession, OnnxSession
from irtool.errors import ExportError

pytest.importorskip("MNN")


def trunk(opset: int = 17) -> tuple[Net, str]:
    n = Net(opset, ("N", 3, 12, 13))
    return n, n.op("Relu", n.conv("x", 3, 8))


def where_mask() -> onnx.ModelProto:
    n, x = trunk()
    mask = n.const(n.rng.random((12, 13)) > 0.5, np.bool_)
    return n.model(n.head(n.op("Where", mask, n.const(0.5, np.float32), n.op("Where", mask, n.op("Neg", x), x)), 8))


def vector_behind_rows() -> onnx.ModelProto:
    n, x = trunk()
    rows = n.op("Transpose", n.op("Reshape", x, n.const([0, 8, 156])), perm=[0, 2, 1])
    # onnxruntime 1.32 takes a transpose into the product, and is wrong by 0.9 of the largest number if the other factor is a vector.
    return n.model(n.op("MatMul", n.op("Abs", rows), n.weight(8)))


def vector_behind_maps() -> onnx.ModelProto:
    n, x = trunk(11)
    return n.model(n.op("MatMul", x, n.weight(13)), ranks=[3])


def pad_of_two_axes() -> onnx.ModelProto:
    n, x = trunk(18)
    x = n.op("Pad", x, n.const([1, 2, 0, 1]), n.const(0.5, np.float32), n.const([-1, 2]))
    return n.model(n.head(n.op("Pad", x, n.const([2, 1]), "", n.const([3]), mode="reflect"), 8))


def split_in_a_number() -> onnx.ModelProto:
    n, x = trunk(18)
    parts = n.op("Split", x, outputs=3, axis=1, num_outputs=3)
    columns = n.op("Split", n.op("Concat", *reversed(parts), axis=1), outputs=4, axis=-1, num_outputs=4)
    return n.model(n.head(n.op("Concat", *reversed(columns), axis=3), 8))


def split_of_sizes() -> onnx.ModelProto:
    n, x = trunk()
    a, b = n.op("Split", x, n.const([3, 5]), outputs=2, axis=1)
    return n.model(n.head(n.op("Concat", b, a, axis=1), 8))


def constant_divided() -> onnx.ModelProto:
    n, x = trunk()
    x = n.op("Div", n.const(np.arange(1, 9).reshape(8, 1, 1), np.float32), n.op("Add", x, n.const(1.0, np.float32)))
    return n.model(n.head(n.op("Div", n.const(2.0, np.float32), n.op("Add", x, n.const(1.0, np.float32))), 8))


def constant_raised() -> onnx.ModelProto:
    n, x = trunk()
    x = n.op("Pow", n.const(np.linspace(0.5, 2, 8).reshape(8, 1, 1), np.float32), x)
    return n.model(n.head(n.op("Pow", n.const(0.5, np.float32), x), 8))


def constants_first() -> onnx.ModelProto:
    """Before a convolution that is averaged."""
    n, x = trunk()
    for kind, low in (("Sub", -1.0), ("Pow", 0.5), ("Div", 1.0)):
        x = n.op(kind, n.const(np.linspace(low, 2, 8).reshape(1, 8, 1, 1), np.float32), x)
    return n.model(n.head(n.conv(x, 8, 6), 6))


def local_function() -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.random.default_rng(0).normal(size=(8, 3, 3, 3)).astype(np.float32), "w")
    swish = helper.make_function(
        "mine",
        "Swish",
        ["a"],
        ["b"],
        [helper.make_node("Sigmoid", ["a"], ["s"]), helper.make_node("Mul", ["a", "s"], ["b"])],
        [helper.make_opsetid("", 17)],
    )
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Swish", ["c"], ["y"], domain="mine")]
    sizes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *rest]) for name, *rest in (("x", 3, 12, 13), ("y", 8, 10, 11))]
    graph = helper.make_graph(nodes, "net", sizes[:1], sizes[1:], [weight])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8, functions=[swish])


def numbers_by_default() -> onnx.ModelProto:
    """Steps of pools, the epsilon of a norm, the slope of a rectifier."""
    n, x = trunk()
    x = n.op("InstanceNormalization", n.op("LeakyRelu", n.op("Neg", x)), n.weight(8), n.weight(8))
    x = n.op("AveragePool", n.op("MaxPool", x, kernel_shape=[3, 3], pads=[1] * 4), kernel_shape=[2, 2])
    return n.model(n.head(x, 8))


def values_of_three() -> onnx.ModelProto:
    n, x = trunk()
    x = n.op("Max", n.const(0.3, np.float32), n.op("Mean", x, n.op("Sin", x)), n.op("Neg", x))
    return n.model(n.head(n.op("Min", x, n.op("Sum", x, x, n.op("Cos", x)), n.const(0.7, np.float32)), 8))


def lower_borders() -> onnx.ModelProto:
    """An odd border in front, and a transposed convolution that states the sizes of its result."""
    n, x = trunk()
    x = n.op("Conv", x, n.weight(6, 8, 4, 3), n.weight(6), auto_pad="SAME_LOWER", strides=[2, 2])
    x = n.op("MaxPool", x, kernel_shape=[2, 2], auto_pad="SAME_LOWER", strides=[1, 1])
    return n.model(n.head(n.op("ConvTranspose", x, n.weight(6, 8, 3, 4), strides=[2, 2], output_shape=[12, 15]), 8))


def resized(opset: int = 19) -> onnx.ModelProto:
    n, x = trunk(opset)
    x = n.op("Resize", x, "", n.const([1, 1, 1.5, 2], np.float32), mode="cubic", coordinate_transformation_mode="half_pixel")
    x = n.op("Resize", x, "", "", n.const([9, 13]), axes=[2, 3], mode="linear", antialias=1)
    return n.model(
        n.head(
            n.op("Resize", x, "", n.const([1, 1, 2, 2], np.float32), coordinate_transformation_mode="asymmetric", nearest_mode="ceil"), 8
        )
    )


def products() -> onnx.ModelProto:
    n, x = trunk()
    rows = n.op("Reshape", x, n.const([0, 8, 156]))
    scores = n.op("Softmax", n.op("Einsum", n.op("Einsum", rows, n.weight(8, 5), equation="bcl,cd->bdl"), rows, equation="bdl,bcl->bdc"))
    mixed = n.op("Einsum", scores, rows, equation="bdc,bcl->bld")
    pooled = n.op("Transpose", n.op("ReduceMean", mixed, axes=[1], keepdims=0), perm=[1, 0])
    return n.model(n.op("Gemm", pooled, n.weight(5, 4), n.weight(4), transA=1, alpha=0.5))


def defined_by_others() -> onnx.ModelProto:
    """Operators that ONNX defines in the words of others, and reductions whose axes are an input."""
    n, x = trunk(21)
    x = n.op("GroupNormalization", n.op("Mish", x), n.weight(8), n.weight(8), num_groups=2)
    x = n.op("Div", x, n.op("ReduceL2", x, n.const([1]), keepdims=1))
    return n.model(n.op("ReduceLogSumExp", x, n.const([2, 3]), keepdims=0))


def signals() -> onnx.ModelProto:
    n, x = trunk()
    return n.model(n.op("Relu", n.op("Conv", n.op("Reshape", x, n.const([0, 8, -1])), n.weight(4, 8, 3), n.weight(4))), ranks=[3])


def places() -> onnx.ModelProto:
    """Classes as columns of ones, and what is not a number left out."""
    n, x = trunk()
    scores = n.head(n.op("Where", n.op("IsNaN", x), n.const(0.0, np.float32), x), 8)
    best = n.op("ArgMax", scores, axis=1, keepdims=0)
    return n.model(n.op("Add", scores, n.op("OneHot", best, n.const(4), n.const([0.5, 2.0], np.float32))))


def sparse_constants() -> onnx.ModelProto:
    n, x = trunk()
    model = n.model(n.op("Gemm", n.op("Flatten", n.op("GlobalAveragePool", x)), n.weight(8, 4)))
    weight = model.graph.initializer[-1]
    array = numpy_helper.to_array(weight) * (np.arange(32).reshape(8, 4) % 3 == 0)
    places = np.flatnonzero(array)
    values = numpy_helper.from_array(array.ravel()[places].astype(np.float32), weight.name)
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, numpy_helper.from_array(places), [8, 4]))
    del model.graph.initializer[-1]
    return model


KINDS: dict[str, Callable[[], onnx.ModelProto]] = {
    "where with a constant mask": where_mask,
    "a vector behind rows": vector_behind_rows,
    "a vector behind maps": vector_behind_maps,
    "a pad of two axes": pad_of_two_axes,
    "a split in a number of pieces": split_in_a_number,
    "a split of sizes": split_of_sizes,
    "a constant divided by a tensor": constant_divided,
    "a constant raised to a tensor": constant_raised,
    "constants of channels that come first": constants_first,
    "a local function": local_function,
    "numbers that are left to their defaults": numbers_by_default,
    "an operator of three values": values_of_three,
    "borders that are computed": lower_borders,
    "ways of resizing": resized,
    "products of matrices": products,
    "operators that others define": defined_by_others,
    "signals as results": signals,
    "sparse constants": sparse_constants,
    "places of the largest": places,
}


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_converted_with_their_numbers(kind: str, tmp_path: Path) -> None:
    model = KINDS[kind]()
    onnx.save(model, tmp_path / "net.onnx")
    irtool.export_mnn(tmp_path / "net.onnx", tmp_path / "net.mnn")
    assert onnx.load(tmp_path / "net.onnx") == model  # the file itself is not rewritten
    ours, theirs = MnnSession(tmp_path / "net.mnn"), OnnxSession(tmp_path / "net.onnx")
    for batch in (1, 3):
        x = np.random.default_rng(batch).normal(size=(batch, 3, 12, 13)).astype(np.float32)
        (got,), (wanted,) = ours.run(x), theirs.run(x)
        assert got.shape == wanted.shape
        assert float(np.abs(got - wanted).max()) <= 1e-3 * float(np.abs(wanted).max())


def test_flips_along_free_sizes(tmp_path: Path) -> None:
    n = Net(17, ("N", 3, "H", "W"))
    x = n.op("Relu", n.conv("x", 3, 8))
    back, far = n.const([-1]), n.const([-(2**63) + 1])
    flipped = n.op("Slice", x, back, far, n.const([3]), n.const([-1]))
    inside = n.op("Slice", x, n.const([-2, 1]), n.const([-7, 9]), n.const([-2, 3]), n.const([-2, 2]))
    model = n.model(n.conv(n.op("Sub", x, flipped), 8, 4), inside, ranks=[4, 4])
    onnx.save(model, tmp_path / "net.onnx")
    irtool.export_mnn(tmp_path / "net.onnx", tmp_path / "net.mnn")
    ours, theirs = MnnSession(tmp_path / "net.mnn"), OnnxSession(tmp_path / "net.onnx")
    for sizes in ((1, 3, 9, 8), (2, 3, 12, 15), (1, 3, 4, 6)):
        x = np.random.default_rng(0).normal(size=sizes).astype(np.float32)
        for got, wanted in zip(ours.run(x), theirs.run(x), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "told", "remedy"),
    [
        (TensorProto.FLOAT16, "float16", "Export the model in float32; fp16=True"),
        (TensorProto.DOUBLE, "float64", r"Export the model in float32 \(model.float\(\)\)"),
        (TensorProto.BOOL, "bool", "a Cast to bool behind it"),
        (TensorProto.INT16, "int16", "with an input of one of these types"),
    ],
)
def test_inputs_that_mnn_cannot_be_given_are_named(kind: int, told: str, remedy: str, tmp_path: Path) -> None:
    n = Net(17, (1, 3, 6, 6))
    y = n.head(n.op("Mul", n.conv("x", 3, 4), n.op("Cast", "other", to=TensorProto.FLOAT)), 4)
    other = helper.make_tensor_value_info("other", kind, [1, 4, 6, 6])
    weights = [numpy_helper.from_array(array, name) for name, array in n.weights.items()]
    x, out = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", [1, 3, 6, 6]), (y, [1, 4])))
    graph = helper.make_graph(n.nodes, "net", [x, other], [out], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "net.onnx")
    with pytest.raises(ExportError, match=f"its input 'other' is {told}: MNN takes float32, int32, int64 and uint8. .*{remedy}"):
        irtool.export_mnn(tmp_path / "net.onnx", tmp_path / "net.mnn")
    assert not (tmp_path / "net.mnn").exists()
