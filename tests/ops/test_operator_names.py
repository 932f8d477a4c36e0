"""Names of operators: what the hosts call elementwise is what the rules call so."""

from __future__ import annotations

from irtool.hosts.onnx import operators as onnx_operators
from irtool.hosts.torch import operators as torch_operators
from irtool.hosts.torch.tracing.recording.proxies import AUGMENTED
from irtool.ops.spec import ELEMENTWISE, spec_of


def test_elementwise_rows_of_both_hosts_have_the_elementwise_rule() -> None:
    torch_names = {torch_operators.onnx_name(name) for name in (torch_operators.UNARY + torch_operators.BINARY).split()}
    modules = {spec.op for spec in torch_operators.UNARY_MODULES}
    passes = {"StochasticDepth", "OwnBackward"}
    assert (torch_names | modules | onnx_operators.ELEMENTWISE | passes) - {"PRelu"} == ELEMENTWISE
    assert spec_of("PRelu").labels is not spec_of("Relu").labels


def test_augmented_assignments_are_known_by_their_names() -> None:
    assert {function.__name__ for function in AUGMENTED} == torch_operators._AUGMENTED
