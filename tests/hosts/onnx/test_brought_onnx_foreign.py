"""Operators that onnxruntime does not have: barriers, with the sizes that the file declares, or none at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_nets import Net

import irtool
from irtool.errors import GraphError
from irtool.hosts.onnx.files.load import from_model

Run = Callable[..., tuple[int, str, str]]
FLOAT, INT32 = TensorProto.FLOAT, TensorProto.INT32


def model(
    n: Net, outputs: Sequence[tuple[str, int, Sequence[int | str | None] | None]], stated: dict[str, list[int | str | None]] | None = None,
    domains: Sequence[str] = ("TRT",),
) -> onnx.ModelProto:  # fmt: skip
    """A model with outputs (name, type, sizes), declared sizes inside, and the operator sets of some domains."""
    x = helper.make_tensor_value_info("x", FLOAT, n.shape)
    weights = [numpy_helper.from_array(array, name) for name, array in n.weights.items()]
    infos = [helper.make_tensor_value_info(name, FLOAT, sizes) for name, sizes in (stated or {}).items()]
    graph = helper.make_graph(n.nodes, "net", [x], [helper.make_tensor_value_info(*o) for o in outputs], weights, value_info=infos)
    sets = [helper.make_opsetid("", n.opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=sets, ir_version=8)


def tensorrt(sizes: bool = True) -> onnx.ModelProto:
    """A detector that ends in TensorRT's suppression; its outputs are declared, or not even their rank is."""
    n = Net(17, ("N", 3, 8, 8))
    y = n.op("Reshape", n.conv(n.cbr(n.cbr("x", 3, 16), 16, 12), 12, 6, 1), n.const([0, 6, 64]))
    boxes, scores = n.op("Split", n.op("Transpose", y, perm=[0, 2, 1]), n.const([4, 2]), outputs=2, axis=2)
    out = n.op("EfficientNMS_TRT", boxes, n.op("Sigmoid", scores), outputs=4, domain="TRT", max_output_boxes=9)
    shapes = (["N", 1], ["N", 9, 4], ["N", 9], ["N", 9])
    return model(n, [(o, k, s if sizes else None) for o, k, s in zip(out, (INT32, FLOAT, FLOAT, INT32), shapes, strict=True)])


def inside(stated: bool) -> onnx.ModelProto:
    """A plug-in in the middle; with declared sizes what follows is pruned, too."""
    n = Net(17, ("N", 3, 8, 8))
    y = n.op("FancyShift_TRT", n.cbr(n.cbr("x", 3, 16), 16, 12), domain="plug.in")
    z = n.head(n.cbr(n.cbr(y, 12, 16), 16, 16), 16)
    return model(n, [(z, FLOAT, ["N", 4])], {y: ["N", 12, 8, 8]} if stated else None, ["plug.in"])


def in_standard_domain() -> onnx.ModelProto:
    """TensorRT's plug-ins as older exporters wrote them: in the standard domain, where the checker does not know them."""
    n = Net(13, (1, 3, 8, 8))
    y = n.op("Reshape", n.conv(n.cbr(n.cbr("x", 3, 16), 16, 12), 12, 4, 1), n.const([1, 4, 64]))
    return model(n, [(n.op("BatchedNMSDynamic_TRT", y), FLOAT, [1, 5, 4])], domains=())


def tokens() -> onnx.ModelProto:
    """An extension whose library is not there; what follows has sizes of its own symbols."""
    n = Net(17, (1, 3, 8, 8))
    y = n.cbr(n.cbr("x", 3, 16), 16, 12)
    z = n.op("DecodeImage", n.op("Reshape", n.conv(y, 12, 2, 1), n.const([-1])), domain="ai.onnx.contrib")
    return model(n, [(n.op("Relu", z), FLOAT, ["rows", "columns"]), (n.head(y, 12), FLOAT, [1, 4])], domains=["ai.onnx.contrib"])


def in_a_body() -> onnx.ModelProto:
    n = Net(17, (1, 3, 8, 8))
    y = n.op("Reshape", n.conv(n.cbr(n.cbr("x", 3, 16), 16, 12), 12, 2, 1), n.const([1, 128]))
    branches = {}
    for name, (kind, domain) in {"then_branch": ("Plug", "TRT"), "else_branch": ("Relu", "")}.items():
        out = helper.make_tensor_value_info(f"{name}_out", FLOAT, None)
        branches[name] = helper.make_graph([helper.make_node(kind, [y], [f"{name}_out"], domain=domain)], name, [], [out])
    positive = n.op("Greater", n.op("ReduceSum", "x", keepdims=0), n.const(0, np.float32))
    return model(n, [(n.op("If", positive, **branches), FLOAT, [1, 128])])


def no_kernel() -> onnx.ModelProto:
    """Operators that onnxruntime describes, and has no code for on a CPU."""
    n = Net(17, (1, 3, 8, 8))
    y = n.op("Transpose", n.cbr(n.cbr("x", 3, 16), 16, 12), perm=[0, 2, 3, 1])
    y = n.op("GroupNorm", y, n.weight(12), n.weight(12), domain="com.microsoft", groups=4, activation=0, epsilon=1e-5)
    z = n.head(n.cbr(n.op("Transpose", y, perm=[0, 3, 1, 2]), 12, 16), 16)
    return model(n, [(z, FLOAT, [1, 4])], {y: [1, 8, 8, 12]}, ["com.microsoft"])


NETS: dict[str, tuple[Callable[[], onnx.ModelProto], int]] = {
    "tensorrt": (tensorrt, 10), "undeclared": (lambda: tensorrt(False), 10), "inside": (lambda: inside(True), 20),
    "inside_undeclared": (lambda: inside(False), 7), "tokens": (tokens, 7), "in_a_body": (in_a_body, 10), "no_kernel": (no_kernel, 14),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_operators_of_other_engines_are_barriers(name: str, tmp_path: Path) -> None:
    make, least = NETS[name]
    graph = from_model(make())
    plan = irtool.plan(graph, "random", 0.5)
    assert sum(len(layer.removed) for layer in plan.layers) >= least
    assert irtool.check_prune(graph, plan).ok
    small = irtool.fold_batchnorm(irtool.prune(graph, plan, constants="drop"))
    irtool.save_onnx(small, tmp_path / "small.onnx")
    again = irtool.load_onnx(tmp_path / "small.onnx", [tuple(graph.example_inputs[0].shape)])
    assert irtool.compare(small, again, graph.example_inputs).ok()
    assert [node.host.op for node in again.nodes if node.op == "Opaque"] == [node.host.op for node in graph.nodes if node.op == "Opaque"]


@pytest.mark.parametrize("name", NETS)
def test_a_wrong_weight_before_such_an_operator_is_seen(name: str) -> None:
    graph = from_model(NETS[name][0]())
    wrong = graph.clone()
    weight = next(name for name, value in wrong.params.items() if len(value.sizes) == 4)
    wrong.set_param(weight, wrong.params[weight].data * 1.05)
    assert not irtool.compare(graph, wrong, (torch.randn(1, 3, 8, 8),)).ok()


@pytest.mark.parametrize("name", ["tensorrt", "inside_undeclared", "tokens"])
def test_the_main_job_takes_them(cli: Run, name: str, tmp_path: Path) -> None:
    onnx.save(NETS[name][0](), tmp_path / "net.onnx")
    code, out, err = cli("compress", tmp_path / "net.onnx", "--ratio", "0.5", "--runs", "1", "--out", tmp_path / "out")
    assert code == 0, err
    assert "onnxruntime does not run" in out + err
    assert (tmp_path / "out" / "model.onnx").stat().st_size < (tmp_path / "net.onnx").stat().st_size


def test_a_value_that_cannot_be_computed_is_said_to_be_one() -> None:
    graph = from_model(tensorrt(False))
    with pytest.raises(GraphError, match=r"onnxruntime does not run TRT.EfficientNMS_TRT.*value_info"):
        graph.run(torch.randn(1, 3, 8, 8))
