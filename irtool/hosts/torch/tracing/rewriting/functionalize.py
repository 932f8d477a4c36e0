"""Augmented assignments of a traced program: what need not write is made plain, what must keeps writing."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from typing import Any

import torch
from torch import fx, nn

from irtool.hosts.torch.modules import attribute, submodule
from irtool.hosts.torch.operators import function_spec, module_spec
from irtool.hosts.torch.purity import writes
from irtool.hosts.torch.tracing.recording.proxies import AUGMENTED

_FRESH = frozenset(
    "Conv ConvTranspose Gemm MatMul Einsum Attention BatchNormalization InstanceNormalization LayerNormalization GroupNormalization "
    "RMSNormalization LRN Softmax Pool Concat Stack Add Sub Mul Div Pow Neg Max Min Relu LeakyRelu Elu Gelu Swish Sigmoid Tanh Clip "
    "HardSwish HardSigmoid Mish Exp Sqrt Reduce PRelu".split()
)
"""Operators whose result is memory of its own, unless they were told to work in place."""
_ALIASES = frozenset("Identity Dropout StochasticDepth Reshape Transpose Slice Split Expand To Float TypeAs Alias".split())
"""Operators whose result may be their first input, or a part of it."""


_MEASURES = frozenset({"size", "numel", "nelement", "dim", "ndimension", "len"})
_SHAPES = frozenset({"shape", "ndim"})
"""Calls and attributes that make numbers of tensors."""
_PARTS = frozenset({"data", "real", "imag", "T", "mT", "H", "mH"})
"""Attributes that are the tensor itself or a view of it."""


def written_buffers(module: fx.GraphModule, model: nn.Module) -> list[str]:
    """The model's buffers that a program writes into, whole or a part of them."""
    places = {_place(attribute(module, str(node.args[0].target))) for node in _stores(module)}  # type: ignore[union-attr]
    return [path for path, buffer in model.named_buffers() if _place(buffer) in places] if places else []


def forget_writes(module: fx.GraphModule, model: nn.Module, paths: Collection[str]) -> None:
    """Take out what is written into some of the model's buffers: a part of what the model writes would leave other numbers there."""
    places = {_place(attribute(model, path)) for path in paths}
    for node in _stores(module):
        target: Any = node.args[0]
        if _place(attribute(module, str(target.target))) in places:
            node.replace_all_uses_with(target)
            module.graph.erase_node(node)


def _stores(module: fx.GraphModule) -> Iterator[fx.Node]:
    """Calls that write into a tensor that the program holds."""
    for node in list(module.graph.nodes):
        target = node.args[0] if node.args else None
        if isinstance(target, fx.Node) and target.op == "get_attr" and node.op.startswith("call_") and writes(module, node):
            yield node


def _place(tensor: Any) -> int:
    """Return the address of a tensor's memory, which views share; 0 for what is no tensor, or has no memory."""
    known = isinstance(tensor, torch.Tensor) and not nn.parameter.is_lazy(tensor) and tensor.layout is torch.strided
    return tensor.untyped_storage().data_ptr() if known else 0


def functionalize_writes(module: fx.GraphModule, inputs: Sequence[Any]) -> dict[fx.Node, Any]:
    """Make writes into a tensor visible as data: what reads it later reads the result of the write, which is the same tensor.

    `x += y` becomes `x = x + y` wherever no other name of x is read afterwards. A residual net's `out += identity` is the
    usual case: then every pass sees a plain addition. Numbers are not written into.

    Returns:
        The nodes made plain, and what they called before: see `restore_writes`.
    """
    nodes = list(module.graph.nodes)
    written = [node for node in nodes if node.op.startswith("call_") and node.target is not operator.setitem and writes(module, node)]
    if not written:
        return {}
    position = {node: index for index, node in enumerate(nodes)}
    numbers = _numbers(nodes, inputs)
    for node in written:
        target = _first(node)
        if target is None or target in numbers:
            continue
        for user in [user for user in target.users if position[user] > position[node]]:
            user.replace_input_with(target, node)
    if not any(node.target in AUGMENTED for node in written):
        return {}
    roots: dict[fx.Node, fx.Node | None] = {}
    for node in nodes:
        roots[node] = _root(module, node, roots)
    plain = {
        node: node.target
        for node in written
        if node.target in AUGMENTED and (_first(node) in numbers or _is_last_name(node, roots, position))
    }
    for node, before in plain.items():
        node.target = AUGMENTED[before]
    return plain


def restore_writes(plain: Mapping[fx.Node, Any], dtype: Callable[[fx.Node], Any]) -> bool:
    """Make a write of it again where the operands differ in type: a write keeps the first one's. True if the program changed."""
    changed = False
    for node, before in plain.items():
        types = {found for used in node.all_input_nodes if (found := dtype(used)) is not None}
        if len(types) > 1:
            node.target, changed = before, True
    return changed


def _first(node: fx.Node) -> fx.Node | None:
    """Return the argument that a call writes into, if it writes: `out`, or its first argument."""
    first = node.kwargs.get("out", node.args[0] if node.args else None)
    return first if isinstance(first, fx.Node) else None


def _numbers(nodes: Sequence[fx.Node], inputs: Sequence[Any]) -> Set[fx.Node]:
    """Nodes that hold numbers (or shapes) and no tensors."""
    given = dict(zip((node for node in nodes if node.op == "placeholder"), inputs, strict=False))
    found: set[fx.Node] = {node for node, example in given.items() if isinstance(example, int | float)}
    for node in nodes:
        if node.target is getattr:
            measured = node.args[1] in _SHAPES
        else:
            name = str(getattr(node.target, "__name__", node.target))
            plain = getattr(node.target, "__module__", "") in ("_operator", "operator", "math", "builtins")
            computed = plain and bool(node.all_input_nodes) and found.issuperset(node.all_input_nodes)
            measured = computed or (name in _MEASURES and node.op.startswith("call_"))
        if measured:
            found.add(node)
    return found


def _is_last_name(node: fx.Node, roots: Mapping[fx.Node, fx.Node | None], position: Mapping[fx.Node, int]) -> bool:
    """Whether what is written into is memory that some operator made, and nothing reads it by an older name later on."""
    root, here = roots[node], position[node]
    names = [other for other, found in roots.items() if found is root and position[other] < here]
    return root is not None and not any(position[user] > here for name in names for user in name.users)


def _root(module: fx.GraphModule, node: fx.Node, roots: Mapping[fx.Node, fx.Node | None]) -> fx.Node | None:
    """The node whose memory this one's result may lie in: itself if it makes its own, None if that is not known."""
    if node.op == "placeholder":
        return node
    first = _first(node)
    if node.op not in ("call_module", "call_function", "call_method"):
        return None
    if writes(module, node) and node.target is not operator.setitem:
        return roots.get(first) if first is not None else None
    if node.target is getattr:
        return roots.get(first) if first is not None and node.args[1] in _PARTS else None
    spec = module_spec(submodule(module, str(node.target))) if node.op == "call_module" else function_spec(node.target)
    op = spec.op if spec is not None else ""
    if op in _FRESH or (node.op == "call_method" and node.target == "clone"):
        return node
    return roots.get(first) if op in _ALIASES and first is not None else None
