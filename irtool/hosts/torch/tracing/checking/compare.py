"""A model and the graph traced from it, run side by side: on the example, and on other batches and image sizes."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx._lazy_graph_module import _LazyGraphModule
from torch.utils import _pytree as pytree

from irtool.hosts.torch.dtypes import rounding
from irtool.hosts.torch.modules import modules_by_path
from irtool.hosts.torch.tracing.state.sandbox import TraceNotes, untouched
from irtool.hosts.torch.tracing.state.write_back import put_back_writes
from irtool.modes import in_mode
from irtool.nests import map_tensors, tensors_in

TOLERANCE = 1e-4
"""Relative, in float32: a trace may order sums otherwise than the model (fused attention, say)."""
_SURE = 5e-6
"""Below this no difference is looked at again in float64."""


def observed(
    module: nn.Module, inputs: Any, decided: Mapping[str, bool] | None = None, *, training: bool = False, asides: TraceNotes | None = None
) -> Any:
    """The outputs in eval mode (or in train mode), random numbers drawn from one seed, the module left as it was; None if it raises.

    Args:
        module: the model, or a graph's module.
        inputs: the positional arguments; copied first.
        decided: for modules that decide by `self.training`, by path, the mode in which they are run.
        training: run all others in train mode.
        asides: takes note of what the run did to the module.
    """
    if isinstance(module, fx.GraphModule):
        _LazyGraphModule.force_recompile(module)  # inside, the code that its first run generates would be taken back
    with (
        untouched(module, TraceNotes() if asides is None else asides, flags=False),
        in_mode(module, training=training),
        torch.no_grad(),
        torch.random.fork_rng(devices=[]),
    ):
        torch.manual_seed(0)
        if decided:
            tree = modules_by_path(module)
            for path, mode in decided.items():
                tree[path].training = mode
        try:
            with put_back_writes(module):
                called = module.forward if isinstance(module, fx.GraphModule) else module  # which prints what it raises
                return called(*map_tensors(tuple(inputs), torch.clone))
        except Exception:  # the user's code, on inputs that it may not like
            return None


def apart(expected: Any, found: Any) -> float:
    """The largest difference of any output element over the largest expected one; infinite where shapes differ, or one is NaN alone."""
    first, second = (
        [leaf for leaf in pytree.tree_leaves(nest) if isinstance(leaf, Tensor) and leaf.layout is torch.strided]
        for nest in (expected, found)
    )
    if [a.shape for a in first] != [b.shape for b in second]:
        return float("inf")
    worst, scale = 0.0, 0.0
    for a, b in zip(first, second, strict=True):
        if a.numel():
            x, y = (t.to(torch.complex128 if t.is_complex() else torch.float64) for t in (a, b))
            same = (x == y) | (x.isnan() & y.isnan())
            gap = torch.where(same, 0.0, (x - y).abs())
            worst = max(worst, float(torch.nan_to_num(gap, nan=float("inf")).max()))
            finite = x[x.isfinite()]
            scale = max(scale, float(finite.abs().max()) if finite.numel() else 0.0)
    return worst / scale if scale else worst


def tolerance(expected: Any) -> float:
    """The largest difference by which a graph may be apart from its model, for the types of these outputs."""
    types = [leaf.dtype for leaf in pytree.tree_leaves(expected) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return max([TOLERANCE, *(rounding(kind) for kind in types if kind.itemsize < 4)])


def apart_from(
    model: nn.Module, module: fx.GraphModule, inputs: Any, decided: Mapping[str, bool] | None, expected: Any, found: Any
) -> float:
    """Measure the distance of a program's outputs from the model's, in float64 where a choice among nearly equal numbers sets them apart in float32.

    The best 300 of some thousand candidates come in another order where two differ by less than the rounding.

    Args:
        model, module: what made the outputs.
        inputs, decided: as they were observed.
        expected, found: what the model and the program gave.
    """
    off = apart(expected, found)
    if off <= tolerance(expected) or found is None or not _chooses(module):
        return off
    exact = _in_doubles(model, module, inputs, decided)
    return off if exact is None else min(off, exact)


def equal(model: nn.Module, module: fx.GraphModule, inputs: Any, decided: Mapping[str, bool] | None, expected: Any, found: Any) -> bool:
    """Whether a program's outputs are the model's but for rounding; the arguments are those of `apart_from`.

    A fault can be smaller than what is granted to a rounding, where a large bias hides what the image adds: float64 tells them apart.
    """
    off, allowed = apart_from(model, module, inputs, decided, expected, found), tolerance(expected)
    if off > allowed or off <= _SURE or allowed > TOLERANCE:
        return off <= allowed
    exact = _in_doubles(model, module, inputs, decided)
    return exact is None or exact < off / 2


def _in_doubles(model: nn.Module, module: fx.GraphModule, inputs: Any, decided: Mapping[str, bool] | None) -> float | None:
    """The largest relative difference in float64; None where the model does not run in it."""
    try:
        wide, wider = (copy.deepcopy(part).to(torch.float64) for part in (model, module))
    except (RuntimeError, TypeError):  # what cannot be copied, or holds no float64
        return None
    doubles = map_tensors(tuple(inputs), lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
    reference = observed(wide, doubles, decided)
    return None if reference is None else apart(reference, observed(wider, doubles))


_CHOICES = frozenset({"topk", "sort", "argsort", "argmax", "argmin", "max", "min", "nms", "kthvalue", "median", "mode"})
"""Functions whose results hang on the order of numbers."""


def _chooses(module: fx.GraphModule) -> bool:
    calls = (node for node in module.graph.nodes if node.op in ("call_function", "call_method"))
    return any(str(getattr(node.target, "__name__", node.target)).split(".")[0] in _CHOICES for node in calls)


@dataclass(frozen=True)
class Change:
    """Another size of the inputs.

    Attributes:
        what: for people: the batch, the image.
        axes: which axes, by the input's number among the tensors.
        inputs: inputs of that size.
    """

    what: str
    axes: Mapping[int, tuple[int, ...]]
    inputs: tuple[Any, ...]


def larger_batch(inputs: Sequence[Any], more: int = 0) -> Change | None:
    """Twice as many and `more`, along axis 0 of every tensor that has the first one's size there; None where there is no such axis."""
    tensors = _tensors(inputs)
    first = next((tensor for tensor in tensors if tensor.dim() > 1), None)
    if first is None or not first.shape[0]:
        return None
    axes = {n: (0,) for n, tensor in enumerate(tensors) if tensor.dim() > 0 and tensor.shape[0] == first.shape[0]}
    count = 2 * first.shape[0] + more
    return Change("batch", axes, _mapped(inputs, lambda n, tensor: _with_others(tensor, count) if n in axes else tensor))


def other_batches(inputs: Sequence[Any], *, few: bool = False) -> list[Change]:
    """An odd number of images, then twice as many: a size that is held where torch.export ran on twice as many shows at the first alone.

    Args:
        inputs: the example.
        few: an odd number that is not much larger.
    """
    return [change for more in (1 if few else 3, 0) if (change := larger_batch(inputs, more)) is not None]


def _with_others(tensor: Tensor, count: int) -> Tensor:
    """Return a tensor with more entries along the batch, none of which is the same as another."""
    turned = tensor.is_floating_point() and tensor.dim() > 1
    parts = [tensor.roll(number, -1) if turned and number else tensor for number in range(-(-count // tensor.shape[0]))]
    return torch.cat(parts)[:count]


def other_images(inputs: Sequence[Any], only: int | None = None, rules: Sequence[Any] | None = None) -> Iterator[Change]:
    """Other sizes of images, sounds, clips: of axes 2 and up of each tensor of real numbers; of axis 1 where a model takes none of those.

    Smaller ones first, which cost less, and height and width apart, so that one taken for the other shows.

    Args:
        inputs: the example.
        only: change this axis alone, counted from the end (-1: the width).
        rules: how: functions of a size and its axis.
    """
    tensors = _tensors(inputs)
    rank = max((tensor.dim() for tensor in tensors if tensor.is_floating_point()), default=0)
    lists: list[dict[int, tuple[int, ...]]] = []
    if rank > 2:
        lists.append({n: tuple(range(2 - t.dim(), 0)) for n, t in enumerate(tensors) if t.is_floating_point() and t.dim() == rank})
    if rank <= 3:
        lists.append(
            {n: (1 - t.dim(),) for n, t in enumerate(tensors) if t.dim() in (2, 3) and (t.dim() == 3 or not t.is_floating_point())}
        )
    for axes in filter(None, lists):
        chosen = {n: tuple(a for a in found if only in (None, a)) for n, found in axes.items()}
        for rule in rules or _RULES:
            yield Change("image", chosen, _mapped(inputs, lambda n, t, rule=rule, chosen=chosen: _resized(t, chosen.get(n, ()), rule)))


def _resized(tensor: Tensor, axes: Sequence[int], rule: Any) -> Tensor:
    for axis in axes:
        size = tensor.shape[axis]
        new = rule(size, axis)
        repeated = torch.cat([tensor] * -(-new // max(size, 1)), axis) if size else tensor
        tensor = repeated.narrow(axis, 0, new) if size else tensor
    return tensor


def _lower(size: int, axis: int) -> int:
    """About half as high and three quarters as wide, in steps of 32 where the size is a multiple of that."""
    if size < 64:
        return size * (2 if axis == -2 else 3)
    if size % 32:
        return size // 2 + 1 if axis == -2 else size * 3 // 4
    steps = size // 32
    return 32 * (max(steps // 2, 1) if axis == -2 else steps * 3 // 4 if steps > 3 else steps + 1)


_RULES = (_lower, lambda size, axis: size + 32 if size >= 64 else 2 * size, lambda size, axis: 2 * size)


def rules_from(number: int) -> tuple[Any, ...]:
    """The rules of `other_images`, that of its size `number` first."""
    start = number % len(_RULES)
    return (*_RULES[start:], *_RULES[:start])


DECIDING_RULES = (
    lambda size, axis: size + max((size & -size) // 2, 1),  # no multiple any more of the largest power of two that it is one of
    lambda size, axis: size + 1,
    lambda size, axis: max(size // 2, 1),
    lambda size, axis: 4 * size,
)
"""Sizes at which a model may decide otherwise: by what they are multiples of, or whether they are small or large."""


def far_rules(inputs: Sequence[Any]) -> tuple[Any, ...]:
    """Much larger sizes of a small example, up to 1024 along an axis, at which a model can still be run."""
    count = sum(tensor.numel() for tensor in _tensors(inputs))
    return tuple(
        lambda size, axis, times=times: size * times if axis >= -2 and size * times <= 1024 else size
        for times in (8, 16, 32, 64)
        if count * times**2 <= _LARGEST
    )


_LARGEST = 2**22
"""Numbers in inputs that a model is run on for its decisions alone."""


def _tensors(inputs: Sequence[Any]) -> list[Tensor]:
    return tensors_in(tuple(inputs))


def _mapped(inputs: Sequence[Any], change: Any) -> tuple[Any, ...]:
    count = iter(range(10**6))
    made: tuple[Any, ...] = map_tensors(tuple(inputs), lambda tensor: change(next(count), tensor))
    return made


def like_weights(module: nn.Module, inputs: Sequence[Any]) -> tuple[Any, ...]:
    """Inputs where the weights are, and of their type."""
    like = next((tensor for tensor in module.parameters() if tensor.is_floating_point()), None)
    if like is None:
        return tuple(inputs)

    def placed(tensor: Tensor) -> Tensor:
        if tensor.is_meta and not like.is_meta:  # made under a default device without memory
            tensor = torch.zeros(tensor.shape, dtype=tensor.dtype, device=like.device)
        return tensor.to(like) if tensor.is_floating_point() else tensor.to(like.device)

    made: tuple[Any, ...] = map_tensors(tuple(inputs), placed)
    return made


def shares_weights(model: nn.Module, module: nn.Module) -> bool:
    """Whether all weights of a graph's module are the model's own."""
    held = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    return all(tensor.data_ptr() in held for tensor in module.parameters())
