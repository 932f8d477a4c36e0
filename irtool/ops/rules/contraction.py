"""Operators that sum over channels: what arrives meets the weight's input axis, the output axis brings fresh labels."""

from __future__ import annotations

import torch
from torch import Tensor

from irtool.ir.graph import Node, Value
from irtool.ops.rules.context import NONE, Axis, Context, channel_vector, is_none, none, on_axis, varying
from irtool.ops.rules.opaque import barrier, pin_value, short_name
from irtool.ops.rules.products import heads_stay, matmul_parts, meeting, source_of


def conv(node: Node, ctx: Context) -> None:
    """Convolution, plain, grouped or depthwise, 1d to 3d, and its transpose."""
    weight = node.get("weight")
    if weight is None:
        barrier(node, ctx)
        return
    for labels in ctx.parts(node.input)[1:]:
        ctx.pin(node, labels.reshape(-1), f"{node.callee} reads a product of channels")
    if not weight.is_param:
        computed_conv(node, ctx, weight)
        return
    if ctx.decide(node, "slides", _slides_over_channels(node, ctx.of(node.input), weight)):
        ctx.inexact(node, ctx.of(node.input).movedim(varying(ctx.of(node.input))[-1], -1), "a convolution over channels")
        ctx.put(node.output, ctx.of(node.input))
        return
    value, axis = node.input, channel_axis(node, weight)
    _pin_other_axes(node, ctx, value, axis)
    arriving = channel_vector(node, ctx, value, axis)
    _pin_stored(node, ctx, arriving)
    transposed, groups = node.op == "ConvTranspose", node.attrs["group"]
    alone = groups == value.sizes[axis] > 1 and (weight.sizes[1] == 1 or not transposed) and not is_none(arriving)
    if ctx.decide(node, "depthwise", alone):
        out = _depthwise(node, ctx, weight, arriving, transposed)
    else:
        out = _summed(node, ctx, weight, arriving, transposed)
    _finish(node, ctx, out, axis)


def _summed(node: Node, ctx: Context, weight: Value, arriving: Tensor, transposed: bool) -> Tensor:
    """Sum over all channels, or those of each group, which stay equally many; returns the labels of the filters."""
    groups = node.attrs["group"]
    input_axis, output_axis = (0, 1) if transposed else (1, 0)
    grouped = ctx.decide(node, "grouped", groups > 1)
    read_axis: Axis = (input_axis, groups) if grouped and not transposed else input_axis
    out_axis: Axis = (output_axis, groups) if grouped and transposed else output_axis
    ctx.read(node, weight, read_axis, arriving)
    out = ctx.produce(node, weight, out_axis)
    if grouped and out.numel() == groups and is_none(arriving):
        ctx.pin(node, out, "a filter for each channel of the graph's input")
    if grouped:
        ctx.balance(node, arriving.reshape(groups, -1))
        ctx.balance(node, out.reshape(groups, -1))
    return out


def deform_conv(node: Node, ctx: Context) -> None:
    """Deformable convolution (Zhu et al. 2019): a convolution of what the offsets, which stay, pick from every channel alike."""
    if node.attrs["group"] != 1 or node.attrs["offset_group"] != 1:
        barrier(node, ctx, "a deformable convolution in groups")
        return
    for name in ("offset", "mask"):
        if (value := node.get(name)) is not None:
            pin_value(node, ctx, value, "says where a deformable convolution looks")
    bias = node.get("bias")
    maker = bias.producer if bias is not None else None
    if bias is not None and maker is not None:
        lone = short_name(maker.callee) == "zeros" and len(bias.uses) == 1 and is_none(ctx.of(bias))
        if ctx.decide(node, "no bias", lone):  # torchvision makes zeros of its own, as many as there are filters
            ctx.put(bias, ctx.fresh(maker, bias.sizes[0]))
    conv(node, ctx)


def channel_axis(node: Node, weight: Value) -> int:
    """The axis of a convolution's channels: 1, or 0 for an image without a batch."""
    return len(node.input.sizes) - len(weight.sizes) + 1


def inputs_first(node: Node) -> bool:
    """Whether the weight's first axis is its inputs: transposed convolutions, `x @ W`, ONNX's Gemm."""
    return node.op in ("ConvTranspose", "MatMul") or node.attrs.get("transB") == 0


def computed_conv(node: Node, ctx: Context, weight: Value) -> None:
    """A convolution whose weight is computed from parameters in the graph (weight standardisation)."""
    groups, transposed = node.attrs["group"], node.op == "ConvTranspose"
    if (transposed and groups > 1) or not ctx.is_constant(weight):
        _pin_all(node, ctx, weight)
        barrier(node, ctx, "its weight is computed, not a parameter")
        return
    axis = channel_axis(node, weight)
    _pin_other_axes(node, ctx, node.input, axis)
    arriving = channel_vector(node, ctx, node.input, axis)
    depthwise = ctx.decide(node, "depthwise", groups == node.input.sizes[axis] > 1)
    if depthwise:
        _copy(node, ctx, weight)
    along = _computed_axes(node, ctx, weight)
    if transposed:
        along = {0: along[1], 1: along[0]}
    if depthwise:
        ctx.unify(node, arriving.repeat_interleave(along[0].numel() // max(arriving.numel(), 1)), along[0])
    else:
        ctx.unify(node, arriving, along[1].repeat(groups))
    if ctx.decide(node, "grouped", groups > 1 and groups != node.input.sizes[axis]):
        ctx.balance(node, arriving.reshape(groups, -1))
        ctx.balance(node, along[0].reshape(groups, -1))
    _make(node, ctx, weight, along[0])
    _finish(node, ctx, along[0], axis)


def _copy(node: Node, ctx: Context, weight: Value) -> None:
    """One kernel that is copied for each channel (a blur): the copies are channels that the copying makes, as padding does."""
    maker, rank = weight.producer, len(weight.sizes)
    if maker is None or maker.op != "Expand":
        return
    one = maker.input.sizes[:1] == (1,) and len(maker.input.sizes) == rank and len(weight.uses) == 1
    parts = ctx.parts(weight)
    if ctx.decide(node, "copies", one and all(labels.shape[0] == 1 for labels in parts)):
        ctx.put_parts(weight, (on_axis(ctx.fresh(maker, weight.sizes[0]), 0, rank), *(found for found in parts if not is_none(found))))


def _pin_all(node: Node, ctx: Context, weight: Value | None) -> None:
    """A weight that depends on the input (dynamic convolution) is left alone, and so is what flows into it."""
    for value in (node.input, weight):
        for labels in ctx.parts(value) if value is not None else ():
            ctx.pin(node, labels.reshape(-1), "its weight is computed from what flows in")


def _computed_axes(node: Node, ctx: Context, weight: Value, arriving: Tensor | None = None) -> dict[int, Tensor]:
    """The labels along the output and input axis of a weight that is computed from parameters; `arriving`: what meets the latter."""
    along = {axis: torch.full((weight.sizes[axis],), NONE, dtype=torch.int64) for axis in (0, 1)}
    parts = dict(enumerate(ctx.parts(weight)))
    inner = [number for number, labels in parts.items() if ctx.decide(node, f"weight {number} arrives", varying(labels) == [1])]
    matched = meeting(node, ctx, [parts[number] for number in inner], [arriving]) if arriving is not None and len(inner) > 1 else None
    if matched is not None:
        parts = {number: labels for number, labels in parts.items() if number not in inner or number == inner[matched[0]]}
    for number, labels in parts.items():
        axes = varying(labels)
        for axis in range(len(weight.sizes)):
            if ctx.decide(node, f"weight {number} at {axis}", axes == [axis]):
                if axis > 1:
                    ctx.pin(node, labels.reshape(-1), "taps of a kernel are no channels")
                else:
                    along[axis] = labels.reshape(-1)
                break
        else:
            ctx.pin(node, labels.reshape(-1), "its weight carries channels along several axes")
    return along


def _make(node: Node, ctx: Context, weight: Value, out: Tensor) -> None:
    """List the node as the layer that makes its outputs, if one parameter's axis holds them."""
    made = None if is_none(out) else source_of(node, ctx, weight, out)
    if made is not None:
        ctx.produce(node, *made)


def computed_linear(node: Node, ctx: Context, weight: Value) -> None:
    """A linear layer whose weight is computed from parameters (a tied decoder's transpose)."""
    arriving = channel_vector(node, ctx, node.input, len(node.input.sizes) - 1)
    along = _computed_axes(node, ctx, weight, arriving)
    ctx.unify(node, arriving, along[1])
    _make(node, ctx, weight, along[0])
    _finish(node, ctx, along[0], axis=len(node.output.sizes) - 1)


def _depthwise(node: Node, ctx: Context, weight: Value, arriving: Tensor, transposed: bool) -> Tensor:
    """Every input channel has `multiplier` outputs of its own; they go when it goes."""
    if transposed or weight.sizes[0] == arriving.numel():
        ctx.read(node, weight, 0, arriving)
        return ctx.param(weight, 0)
    repeated = arriving.repeat_interleave(weight.sizes[0] // arriving.numel())
    ctx.read(node, weight, 0, repeated)
    return ctx.param(weight, 0)


def _slides_over_channels(node: Node, labels: Tensor, weight: Value) -> bool:
    """Whether a filter of one map runs along an axis of channels and gives each its own output (ECA's gate)."""
    axes = varying(labels)
    return len(axes) == 1 and axes[0] > channel_axis(node, weight) and weight.sizes[:2] == (1, 1) and node.output.sizes == node.input.sizes


def _pin_other_axes(node: Node, ctx: Context, value: Value, axis: int) -> None:
    labels = ctx.of(value)
    if labels.shape[axis] == 1 and labels.numel() > 1:
        ctx.pin(node, labels.reshape(-1), f"{node.callee} works along an axis that carries channels")


def _pin_stored(node: Node, ctx: Context, arriving: Tensor) -> None:
    """Channels of what is stored are not zero where they are removed, so that a sum over them would be another one."""
    if node.input.is_param:
        ctx.pin(node, arriving, "a sum over stored channels")


def linear(node: Node, ctx: Context) -> None:
    """`x @ W.T + b` over the last axis. Labels on other axes alone mean that positions are mixed, not channels."""
    weight = node.get("weight")
    for labels in ctx.parts(node.input)[1:]:
        ctx.pin(node, labels.reshape(-1), f"{node.callee} reads a product of channels")
    if weight is None or not (weight.is_param or ctx.is_constant(weight)):
        _pin_all(node, ctx, weight)
        barrier(node, ctx, "its weight is computed, not a parameter")
    elif not weight.is_param:
        computed_linear(node, ctx, weight)
    elif node.attrs["transB"] == 0:  # ONNX may store it as (inputs, outputs)
        _dense(node, ctx, weight, 0, 1)
    else:
        _dense(node, ctx, weight, 1, 0)


def _dense(node: Node, ctx: Context, weight: Value, input_axis: int, output_axis: int) -> None:
    value = node.input
    labels = ctx.of(value)
    mixes_positions = ctx.decide(node, "positions", labels.shape[-1] == 1 and labels.numel() > 1)
    if mixes_positions:
        out = ctx.produce(node, weight, output_axis)
        ctx.pin(node, out, "mixes positions, not channels")
        ctx.read(node, weight, input_axis, torch.full((value.sizes[-1],), NONE, dtype=torch.int64))
        _read_bias(node, ctx, out)
        ctx.put(node.output, labels)
        return
    arriving = channel_vector(node, ctx, value, -1 % len(value.sizes))
    _pin_stored(node, ctx, arriving)
    ctx.read(node, weight, input_axis, arriving)
    _finish(node, ctx, ctx.produce(node, weight, output_axis), axis=len(node.output.sizes) - 1)


def addmm(node: Node, ctx: Context) -> None:
    """`bias + x @ w` where w is the transpose of a parameter (ATen's form of a linear layer): left alone."""
    barrier(node, ctx, "addmm with a computed weight")


def _read_bias(node: Node, ctx: Context, out: Tensor) -> None:
    bias = node.get("bias")
    if bias is None:
        return
    if bias.is_param:
        ctx.read(node, bias, 0, out)
    else:
        ctx.unify(node, channel_vector(node, ctx, bias, len(bias.sizes) - 1), out)


_QUANTISED = ("weight_scale", "weight_zero_point", "bias_scale", "bias_zero_point")


def _finish(node: Node, ctx: Context, out: Tensor, axis: int) -> None:
    _read_bias(node, ctx, out)
    for role in _QUANTISED:
        value = node.get(role)
        if value is not None:
            ctx.read(node, value, 0, out)
    ctx.put(node.output, on_axis(out, axis, len(node.output.sizes)))


def embedding(node: Node, ctx: Context) -> None:
    """A table of vectors: fresh labels along the vector."""
    weight = node.operands["weight"]
    if not weight.is_param:
        barrier(node, ctx, "its table is computed")
        return
    if node.attrs.get("max_norm") is not None:
        barrier(node, ctx, "its rows are scaled to a largest norm over all channels")
        return
    for value in node.inputs:
        if value is not weight and not value.is_param:
            ctx.pin(node, ctx.of(value).reshape(-1), "says which vectors to take")
    ctx.put(node.output, on_axis(ctx.produce(node, weight, 1), len(node.output.sizes) - 1, len(node.output.sizes)))


def matmul(node: Node, ctx: Context) -> None:
    """A linear layer where one side is a parameter, a product of two values otherwise."""
    a, b = (node.inputs[0], node.inputs[-1])  # x @ x^T may be one value twice
    if len(a.sizes) < 2 or len(b.sizes) < 2:
        barrier(node, ctx, "matrix product with a vector")
        return
    if b.is_param and len(b.sizes) == 2 and not a.is_param and len(ctx.parts(a)) == 1:
        _dense(node, ctx, b, 0, 1)
        return
    matmul_parts(node, ctx, a, b)


def attention(node: Node, ctx: Context) -> None:
    """softmax(q k^T * scale + mask) v: q and k lose the same entries of each head; the result has v's channels; heads stay."""
    mask = node.get("attn_mask")
    if mask is not None:
        pin_value(node, ctx, mask, "an attention mask weighs all channels of a head")
    q, k, v = ctx.of(node.input), ctx.of(node.operands["key"]), ctx.of(node.operands["value"])
    for labels, value in ((q, node.input), (k, node.operands["key"]), (v, node.operands["value"])):
        if value.sizes[-2] > 1 and labels.shape[-2] > 1:
            ctx.pin(node, labels.reshape(-1), "attention over channels")
        heads_stay(node, ctx, labels)
    x, y = torch.broadcast_tensors(q, k)
    if not (is_none(q) and is_none(k)):
        ctx.unify(node, x.reshape(-1), y.reshape(-1))
    rank = len(node.output.sizes)
    ctx.put(node.output, v if ctx.decide(node, "value", len(varying(v)) > 0 and v.shape[-2] == 1) else none(rank))
