"""Faults for irtool's own code, each a small patch that a slip of the pen could make. `test_seeded_faults` needs them caught."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from irtool.analysis.labels import Labels, Walk
from irtool.ir.graph import Node, Value
from irtool.ops import contraction, elementwise, movement, normalisation, products, recurrent, table
from irtool.ops.context import Context, none, on_axis
from irtool.planning import fx_literals, replay, slicing

Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Fault:
    """A patch, and the structures on which it must show.

    Attributes:
        apply: installs the fault.
        nets: names of structures.
        residual: as in `irtool.plan`.
    """

    apply: Callable[[Patch], None]
    nets: tuple[str, ...]
    residual: str = "couple"


FAULTS: dict[str, Fault] = {}


def fault(*nets: str, residual: str = "couple") -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    """Register a patch under its function's name."""

    def register(apply: Callable[[Patch], None]) -> Callable[[Patch], None]:
        FAULTS[apply.__name__] = Fault(apply, nets, residual)
        return apply

    return register


def outputs(patch: Patch, op: str, change: Callable[[Tensor, Node], Tensor]) -> None:
    """After the rule of `op` has run, change the labels of every output that has some."""
    rule = table.RULES[op]

    def faulty(node: Node, ctx: Context) -> None:
        rule(node, ctx)
        for output in node.outputs:
            labels = ctx.of(output)
            if labels.numel() > 1:
                ctx.put(output, change(labels, node))

    patch.setitem(table.RULES, op, faulty)


def longest(labels: Tensor) -> int:
    return max(range(labels.dim()), key=lambda axis: labels.shape[axis])


def rolled(labels: Tensor, node: Node) -> Tensor:
    return labels.roll(1, longest(labels))


def mirrored(labels: Tensor, node: Node) -> Tensor:
    return labels.flip(longest(labels))


# Movement: the labels of a value that was moved.


@fault("densenet", "inception", "csp_spp")
def concat_off_by_one(patch: Patch) -> None:
    outputs(patch, "Concat", rolled)


@fault("densenet", "siamese_concat")
def concat_in_the_wrong_order(patch: Patch) -> None:
    rule = movement.concat

    def faulty(node: Node, ctx: Context) -> None:
        rule(node, ctx)
        pieces = ctx.of(node.output).split([value.sizes[1] for value in node.inputs], 1)
        ctx.put(node.output, torch.cat(pieces[::-1], 1))

    patch.setitem(table.RULES, "Concat", faulty)


@fault("flatten_hw", "space_to_depth", "stacked")
def reshape_off_by_one(patch: Patch) -> None:
    outputs(patch, "Reshape", rolled)


@fault("flatten_hw", "linear_to_map")
def flatten_with_channels_innermost(patch: Patch) -> None:
    def change(labels: Tensor, node: Node) -> Tensor:
        before = node.input.sizes
        if labels.dim() != 2 or len(before) != 4:
            return labels
        return labels.reshape(before[1], -1).T.reshape(1, -1)

    outputs(patch, "Reshape", change)


@fault("unequal_split", "res2net", "conv_lstm")
def split_off_by_one(patch: Patch) -> None:
    outputs(patch, "Split", rolled)


@fault("unequal_split", "shufflenet_v2")
def split_in_the_wrong_order(patch: Patch) -> None:
    rule = table.RULES["Split"]

    def faulty(node: Node, ctx: Context) -> None:
        rule(node, ctx)
        found = [ctx.of(output) for output in node.outputs]
        for output, labels in zip(node.outputs, reversed(found), strict=True):
            if labels.shape[1] == output.sizes[1]:
                ctx.put(output, labels)

    patch.setitem(table.RULES, "Split", faulty)


@fault("slices", "temporal_shift")
def slice_off_by_one(patch: Patch) -> None:
    outputs(patch, "Slice", rolled)


@fault("flips")
def gather_mirrored(patch: Patch) -> None:
    outputs(patch, "Gather", mirrored)


@fault("flips", "flip_residual")
def flip_not_followed(patch: Patch) -> None:
    patch.setitem(table.RULES, "Roll", lambda node, ctx: ctx.put(node.output, ctx.of(node.input)))


@fault("shuffle_literal")
def module_shuffle_not_followed(patch: Patch) -> None:
    patch.setitem(table.RULES, "ChannelShuffle", lambda node, ctx: ctx.put(node.output, ctx.of(node.input)))


@fault("space_to_depth", "shufflenet_v1")
def transpose_keeps_the_order(patch: Patch) -> None:
    def change(labels: Tensor, node: Node) -> Tensor:
        return labels.flatten().sort().values.reshape(labels.shape)

    outputs(patch, "Transpose", change)


@fault("pixel_shuffle_inside")
def pixel_shuffle_with_channels_innermost(patch: Patch) -> None:
    rule = table.RULES["DepthToSpace"]

    def faulty(node: Node, ctx: Context) -> None:
        rule(node, ctx)
        labels = ctx.of(node.input)
        if labels.numel() > 1:
            quarter = labels.reshape(4, -1).T.reshape(labels.shape)
            ctx.put(node.output, ctx.evaluate(node, {node.input: quarter.expand(node.input.sizes)})[0])

    patch.setitem(table.RULES, "DepthToSpace", faulty)


@fault("option_a", "constant_pad")
def pad_before_and_after_swapped(patch: Patch) -> None:
    def change(labels: Tensor, node: Node) -> Tensor:
        before, _ = movement.pad_amounts(node).get(1, (0, 0))
        return labels.roll(1 if before else 0, 1)

    outputs(patch, "Pad", change)


@fault("repeats")
def repeat_taken_for_interleave(patch: Patch) -> None:
    def change(labels: Tensor, node: Node) -> Tensor:
        return labels.reshape(2, -1).T.reshape(labels.shape) if labels.dim() == 4 else labels

    outputs(patch, "Expand", change)


@fault("stacked", "select_kernel")
def stacked_widths_not_balanced(patch: Patch) -> None:
    patch.setitem(table.RULES, "Stack", movement.movement)


# Elementwise: operands that meet.


def first_operand_only(node: Node, ctx: Context) -> None:
    ctx.put(node.output, ctx.of(node.input))


@fault("resnet_projection", "option_a", "nasnet")
def addition_does_not_unify(patch: Patch) -> None:
    patch.setitem(table.RULES, "Add", first_operand_only)


@fault("se", "conv_lstm", "two_inputs")
def product_does_not_unify(patch: Patch) -> None:
    patch.setitem(table.RULES, "Mul", first_operand_only)


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
    patch.setitem(table.RULES, "PRelu", first_operand_only)


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

    patch.setitem(table.RULES, "ConvTranspose", faulty)


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
    rule = table.RULES["Einsum"]

    def faulty(node: Node, ctx: Context) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(type(ctx), "unify", lambda self, node, a, b: None)
            rule(node, ctx)

    patch.setitem(table.RULES, "Einsum", faulty)


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
    patch.setitem(table.RULES, "LayerNormalization", first_operand_only)


@fault("select_kernel")
def sums_over_branches_do_not_unify(patch: Patch) -> None:
    patch.setattr(normalisation, "_merge", lambda node, ctx, labels, over: labels.narrow(over[0], 0, 1))


# Literals of the program.


@fault("shuffle_literal", "flatten_hw", "linear_to_map")
def view_sizes_are_not_rewritten(patch: Patch) -> None:
    patch.delitem(fx_literals.EDITORS, "Reshape")


@fault("unequal_split", "shufflenet_v2", "conv_lstm")
def split_sizes_are_not_rewritten(patch: Patch) -> None:
    patch.delitem(fx_literals.EDITORS, "Split")


@fault("unequal_split", "mixconv")
def split_sizes_are_reversed(patch: Patch) -> None:
    old = fx_literals.EDITORS["Split"]

    def faulty(edits: fx_literals.Literals, node: Node) -> None:
        old(edits, node)
        host = edits.hosts[node.name]
        if len(host.args) > 1 and isinstance(host.args[1], list):
            host.args = (host.args[0], host.args[1][::-1], *host.args[2:])

    patch.setitem(fx_literals.EDITORS, "Split", faulty)


@fault("slices")
def slice_bounds_off_by_one(patch: Patch) -> None:
    old = fx_literals.moved_entry

    def faulty(entry: Any, kept: Any, size: int) -> Any:
        moved = old(entry, kept, size)
        return [max(index - 1, 0) for index in moved] if isinstance(moved, list) else moved

    patch.setattr(fx_literals, "moved_entry", faulty)


@fault("flips", "gather_repeated")
def gathered_indices_are_not_moved(patch: Patch) -> None:
    patch.delitem(fx_literals.EDITORS, "Gather")


@fault("inverted_residual", "multiplier_2")
def depthwise_groups_are_not_rewritten(patch: Patch) -> None:
    patch.delitem(fx_literals.EDITORS, "Conv")


@fault("option_a", "constant_pad")
def pad_amounts_are_not_rewritten(patch: Patch) -> None:
    patch.delitem(fx_literals.EDITORS, "Pad")


@fault("convnext")
def normalized_shape_is_not_rewritten(patch: Patch) -> None:
    patch.delitem(fx_literals.EDITORS, "LayerNormalization")


@fault("scaled_dot_product")
def attention_scale_is_not_kept(patch: Patch) -> None:
    patch.delitem(fx_literals.EDITORS, "Attention")


@fault("preactivation", "densenet", residual="select")
def wrong_index_in_the_selection(patch: Patch) -> None:
    old = fx_literals._select

    def faulty(edits: fx_literals.Literals, node: Node) -> None:
        old(edits, node)
        owner = edits.owner(node)
        assert owner is not None
        owner.index = (owner.index - 1).clamp(min=0)

    patch.setitem(fx_literals.EDITORS, "ChannelSelect", faulty)


@fault("preactivation", "densenet", residual="select")
def selections_are_not_tied(patch: Patch) -> None:
    def faulty(node: Node, ctx: Context) -> None:
        ctx.put(node.output, on_axis(ctx.produce(node, node.operands["index"], 0), 1, len(node.output.sizes)))

    patch.setitem(table.RULES, "ChannelSelect", faulty)


# Slicing.


@fault("resnet_projection", "flatten_hw")
def parameters_are_sliced_off_by_one(patch: Patch) -> None:
    old = slicing.Rewrite._indices

    def faulty(self: slicing.Rewrite, name: str) -> dict[Any, Tensor]:
        return {axis: (found - 1).clamp(min=0) for axis, found in old(self, name).items()}

    patch.setattr(slicing.Rewrite, "_indices", faulty)


@fault("shufflenet_v1", "shufflenet_v2", "stacked")
def arrival_order_is_ignored(patch: Patch) -> None:
    patch.setattr(replay, "_reorder", lambda arriving, expected, own, node: own)


@fault("grouped_chain", "resnext")
def groups_change_places(patch: Patch) -> None:
    old = slicing._take_grouped

    def faulty(data: Tensor, axis: int, groups: int, index: Tensor | None, other: Tensor | None) -> Tensor:
        return old(data, axis, groups, index, other).roll(1, 1 - axis)

    patch.setattr(slicing, "_take_grouped", faulty)


@fault("unet", "detector_tuple", "detector_dataclass")
def outputs_are_not_pinned(patch: Patch) -> None:
    patch.setitem(table.RULES, "Output", lambda node, ctx: None)


@fault("unknown_function", "unknown_leaf", "lstm")
def unknown_operators_are_not_pinned(patch: Patch) -> None:
    def faulty(node: Node, ctx: Context) -> None:
        for output in node.outputs:
            ctx.put(output, none(len(output.sizes)))

    for module in (table, sys.modules["irtool.analysis.labels"]):
        patch.setattr(module, "rule_for", lambda op: table.RULES.get(op, faulty))


@fault("shifted_weight")
def computed_weights_are_not_pinned(patch: Patch) -> None:
    patch.setattr(Labels, "computed", Walk.computed)


@fault("standardised")
def computed_weights_read_other_inputs(patch: Patch) -> None:
    axes = contraction._computed_axes
    patch.setattr(contraction, "_computed_axes", lambda *given: {axis: labels.roll(axis) for axis, labels in axes(*given).items()})


@fault("standardised", "tied_decoder")
def computed_weights_have_no_outputs(patch: Patch) -> None:
    axes = contraction._computed_axes
    patch.setattr(contraction, "_computed_axes", lambda *given: {axis: labels.roll(1 - axis) for axis, labels in axes(*given).items()})


@fault("cross_covariance", "linear_attention")
def products_lose_their_rows(patch: Patch) -> None:
    patch.setattr(products, "_outer", lambda node, ctx, parts, value, other: [labels.roll(1, longest(labels)) for labels in parts])


@fault("lstm")
def recurrent_layers_read_the_wrong_features(patch: Patch) -> None:
    vector = recurrent.channel_vector
    patch.setattr(recurrent, "channel_vector", lambda *given: vector(*given).roll(1))


@fault("zeros_beside")
def zeros_are_not_made_shorter(patch: Patch) -> None:
    patch.delitem(fx_literals.EDITORS, "Constant")
