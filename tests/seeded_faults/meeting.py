"""Faults where channels meet: elementwise operators, contractions, norms."""

from __future__ import annotations

from typing import Any

import pytest
from exchanged import exchange
from torch import Tensor

from irtool.channels.labels import Labels
from irtool.ir.graph import Node, Value
from irtool.ops import spec as table
from irtool.ops.rules import contraction, elementwise, normalisation, products
from irtool.ops.rules.context import Context
from irtool.pruning.slicing import proof as replay
from seeded_faults.fault import Patch, fault, outputs

# Elementwise: operands that meet.


def first_operand_only(node: Node, ctx: Context) -> None:
    ctx.put(node.output, ctx.of(node.input))


@fault("resnet_projection", "option_a", "nasnet")
def addition_does_not_unify(patch: Patch) -> None:
    exchange(patch, "Add", labels=first_operand_only)


@fault("se", "conv_lstm", "two_inputs")
def product_does_not_unify(patch: Patch) -> None:
    exchange(patch, "Mul", labels=first_operand_only)


@fault("resnet_projection", "siamese", "repvgg")
def operands_meet_off_by_one(patch: Patch) -> None:
    for kind in (Labels, replay.Replay):
        old = kind.unify
        patch.setattr(kind, "unify", lambda self, node, a, b, old=old: old(self, node, a, b.roll(1)))


@fault("layer_scale", "convnext")
def parameters_are_not_read(patch: Patch) -> None:
    patch.setattr(elementwise, "_meet_param", lambda node, ctx, met, sizes, value: (met, sizes))


@fault("prelu")
def slopes_are_not_read(patch: Patch) -> None:
    exchange(patch, "PRelu", labels=first_operand_only)


# Contractions: what arrives, and what leaves.


@fault("inverted_residual", "unet")
def conv_axes_swapped(patch: Patch) -> None:
    produce, read = Labels.produce, Labels.read

    def other(value: Value, axis: Any) -> Any:
        return 1 - axis if isinstance(axis, int) and len(value.sizes) == 4 and value.sizes[1] > 1 else axis

    patch.setattr(Labels, "produce", lambda self, node, value, axis: produce(self, node, value, other(value, axis)))
    patch.setattr(Labels, "read", lambda self, node, value, axis, arriving: read(self, node, value, other(value, axis), arriving))


@fault("unet", "linear_to_map")
def transposed_conv_taken_for_plain(patch: Patch) -> None:
    rule = contraction.conv

    def faulty(node: Node, ctx: Context) -> None:
        node.op, kept = "Conv", node.op
        rule(node, ctx)
        node.op = kept

    exchange(patch, "ConvTranspose", labels=faulty)


@fault("espcn", "unet", "flatten_hw")
def bias_is_not_read(patch: Patch) -> None:
    patch.setattr(contraction, "_read_bias", lambda node, ctx, out: None)


@fault("espcn", "flatten_hw")
def bias_is_read_mirrored(patch: Patch) -> None:
    old = contraction._read_bias
    patch.setattr(contraction, "_read_bias", lambda node, ctx, out: old(node, ctx, out.flip(0)))


@fault("inverted_residual", "ghostnet")
def depthwise_makes_channels_of_its_own(patch: Patch) -> None:
    patch.setattr(contraction, "_depthwise", lambda node, ctx, weight, arriving, transposed: ctx.produce(node, weight, 0))


@fault("multiplier_2")
def depthwise_multiplier_interleaved(patch: Patch) -> None:
    def faulty(node: Node, ctx: Context, weight: Value, arriving: Tensor, transposed: bool) -> Tensor:
        ctx.read(node, weight, 0, arriving.repeat(weight.sizes[0] // arriving.numel()))
        return ctx.param(weight, 0)

    patch.setattr(contraction, "_depthwise", faulty)


@fault("resnext", "grouped_chain")
def grouped_conv_read_as_plain(patch: Patch) -> None:
    old = Labels.decide
    patch.setattr(Labels, "decide", lambda self, node, key, value: old(self, node, key, value and key != "grouped"))


@fault("resnext", "shufflenet_v1")
def groups_are_not_balanced(patch: Patch) -> None:
    patch.setattr(Labels, "balance", lambda self, node, table: None)


@fault("flatten_hw", "se")
def linear_reads_its_input_mirrored(patch: Patch) -> None:
    old = contraction.channel_vector
    patch.setattr(contraction, "channel_vector", lambda node, ctx, value, axis: old(node, ctx, value, axis).flip(0))


@fault("position_attention", "fused_attention")
def products_do_not_unify(patch: Patch) -> None:
    patch.setattr(products, "_meet_inner", lambda node, ctx, left, right: None)


@fault("scaled_dot_product")
def attention_takes_the_keys_channels(patch: Patch) -> None:
    outputs(patch, "Attention", lambda labels, node: labels.roll(1, -1))


@fault("position_bias")
def an_attention_mask_is_overlooked(patch: Patch) -> None:
    patch.setattr(contraction, "pin_value", lambda node, ctx, value, reason: None)


@fault("einsum")
def einsum_does_not_unify(patch: Patch) -> None:
    rule = table.spec_of("Einsum").labels

    def faulty(node: Node, ctx: Context) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(type(ctx), "unify", lambda self, node, a, b: None)
            rule(node, ctx)

    exchange(patch, "Einsum", labels=faulty)


@fault("many_heads")
def heads_go(patch: Patch) -> None:
    patch.setattr(products, "heads_stay", lambda node, ctx, labels: None)


@fault("turned_pixels")
def places_are_not_looked_at(patch: Patch) -> None:
    patch.setattr(replay, "misplaced", lambda before, after, stays: False)


@fault("siamese", "recursive", "shared_linear")
def shared_weights_are_taken_for_two(patch: Patch) -> None:
    """Each call gets labels of its own; the last call's count."""
    old = Labels.param

    def faulty(self: Labels, value: Value, axis: Any) -> Tensor:
        if len(value.uses) > 1 and (value.name, axis) in self.axes:
            del self.axes[value.name, axis]
        return old(self, value, axis)

    patch.setattr(Labels, "param", faulty)


# Normalisation.


@fault("resnet_projection", "unet")
def batch_norm_statistics_are_not_sliced(patch: Patch) -> None:
    patch.setattr(normalisation, "_PARAMETERS", ("weight", "bias"))


@fault("resnet_projection", "densenet")
def batch_norm_reads_mirrored(patch: Patch) -> None:
    old = normalisation.channel_vector
    patch.setattr(normalisation, "channel_vector", lambda node, ctx, value, axis: old(node, ctx, value, axis).flip(0))


@fault("convnext", "multihead_attention")
def layer_norm_is_not_sliced(patch: Patch) -> None:
    exchange(patch, "LayerNormalization", labels=first_operand_only)


@fault("stacked_sum")
def sums_over_branches_do_not_unify(patch: Patch) -> None:
    patch.setattr(normalisation, "_merge", lambda node, ctx, labels, over: labels.narrow(over[0], 0, 1))
