"""Faults in what becomes of labels when a value is moved."""

from __future__ import annotations

import torch
from exchanged import exchange
from torch import Tensor

from irtool.ir.graph import Node
from irtool.ops import spec as table
from irtool.ops.rules import movement
from irtool.ops.rules.context import Context
from seeded_faults.fault import Patch, fault, mirrored, outputs, rolled


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

    exchange(patch, "Concat", labels=faulty)


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
    rule = table.spec_of("Split").labels

    def faulty(node: Node, ctx: Context) -> None:
        rule(node, ctx)
        found = [ctx.of(output) for output in node.outputs]
        for output, labels in zip(node.outputs, reversed(found), strict=True):
            if labels.shape[1] == output.sizes[1]:
                ctx.put(output, labels)

    exchange(patch, "Split", labels=faulty)


@fault("slices", "temporal_shift")
def slice_off_by_one(patch: Patch) -> None:
    outputs(patch, "Slice", rolled)


@fault("flips")
def gather_mirrored(patch: Patch) -> None:
    outputs(patch, "Gather", mirrored)


@fault("flips", "flip_residual")
def flip_not_followed(patch: Patch) -> None:
    exchange(patch, "Roll", labels=lambda node, ctx: ctx.put(node.output, ctx.of(node.input)))


@fault("shuffle_literal")
def module_shuffle_not_followed(patch: Patch) -> None:
    exchange(patch, "ChannelShuffle", labels=lambda node, ctx: ctx.put(node.output, ctx.of(node.input)))


@fault("space_to_depth", "shufflenet_v1")
def transpose_keeps_the_order(patch: Patch) -> None:
    def change(labels: Tensor, node: Node) -> Tensor:
        return labels.flatten().sort().values.reshape(labels.shape)

    outputs(patch, "Transpose", change)


@fault("pixel_shuffle_inside")
def pixel_shuffle_with_channels_innermost(patch: Patch) -> None:
    rule = table.spec_of("DepthToSpace").labels

    def faulty(node: Node, ctx: Context) -> None:
        labels = ctx.of(node.input)
        if labels.numel() > 1:
            ctx.put(node.input, labels.reshape(4, -1).T.reshape(labels.shape))
        rule(node, ctx)
        ctx.put(node.input, labels)

    exchange(patch, "DepthToSpace", labels=faulty)


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
    exchange(patch, "Stack", labels=movement.movement)
