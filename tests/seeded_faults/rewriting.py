"""Faults in what is written: literals of the program, sliced parameters."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from exchanged import exchange
from torch import Tensor

from irtool.channels.labels import Labels, Walk
from irtool.hosts.torch.sizes import write_attrs
from irtool.ir.attributes import Attrs
from irtool.ir.graph import Node
from irtool.ir.sizes import Sizes
from irtool.ops import spec as table
from irtool.ops.facets import resize
from irtool.ops.rules import contraction, products, recurrent
from irtool.ops.rules.context import Context, none, on_axis
from irtool.pruning.slicing import proof as replay
from irtool.pruning.slicing import slicing
from seeded_faults.fault import Patch, fault, longest

# Sizes in the program.


@fault("shuffle_literal", "flatten_hw", "linear_to_map")
def view_sizes_are_not_rewritten(patch: Patch) -> None:
    exchange(patch, "Reshape", resize=resize.nothing)


@fault("unequal_split", "shufflenet_v2", "conv_lstm")
def split_sizes_are_not_rewritten(patch: Patch) -> None:
    exchange(patch, "Split", resize=resize.nothing)


@fault("unequal_split", "mixconv")
def split_sizes_are_reversed(patch: Patch) -> None:
    def faulty(node: Node, sizes: Sizes) -> Attrs:
        return {name: value[::-1] for name, value in resize.split(node, sizes).items()}

    exchange(patch, "Split", resize=faulty)


@fault("slices")
def slice_bounds_off_by_one(patch: Patch) -> None:
    old = write_attrs.cut

    def faulty(*given: Any) -> Any:
        found = old(*given)
        return found if isinstance(found, np.ndarray) or found[1] is None else (found[0], found[1] - 1, found[2])

    patch.setattr(write_attrs, "cut", faulty)


@fault("flips", "gather_repeated")
def gathered_indices_are_not_moved(patch: Patch) -> None:
    exchange(patch, "Gather", resize=resize.nothing)


@fault("inverted_residual", "multiplier_2")
def depthwise_groups_are_not_rewritten(patch: Patch) -> None:
    exchange(patch, "Conv", resize=resize.nothing)


@fault("option_a", "constant_pad")
def pad_amounts_are_not_rewritten(patch: Patch) -> None:
    exchange(patch, "Pad", resize=resize.nothing)


@fault("convnext")
def normalized_shape_is_not_rewritten(patch: Patch) -> None:
    exchange(patch, "LayerNormalization", resize=resize.nothing)


@fault("scaled_dot_product")
def attention_scale_is_not_kept(patch: Patch) -> None:
    exchange(patch, "Attention", resize=resize.nothing)


@fault("preactivation", "densenet", residual="select")
def wrong_index_in_the_selection(patch: Patch) -> None:
    def faulty(node: Node, sizes: Sizes) -> Attrs:
        return {name: np.maximum(index - 1, 0) for name, index in resize.select(node, sizes).items()}

    exchange(patch, "ChannelSelect", resize=faulty)


@fault("preactivation", "densenet", residual="select")
def selections_are_not_tied(patch: Patch) -> None:
    def faulty(node: Node, ctx: Context) -> None:
        ctx.put(node.output, on_axis(ctx.produce(node, node.operands["index"], 0), 1, len(node.output.sizes)))

    exchange(patch, "ChannelSelect", labels=faulty)


# Slicing.


@fault("resnet_projection", "flatten_hw")
def parameters_are_sliced_off_by_one(patch: Patch) -> None:
    old = slicing.Slicing._indices

    def faulty(self: slicing.Slicing, name: str) -> dict[Any, Tensor]:
        return {axis: (found - 1).clamp(min=0) for axis, found in old(self, name).items()}

    patch.setattr(slicing.Slicing, "_indices", faulty)


@fault("shufflenet_v1", "shufflenet_v2", "stacked")
def arrival_order_is_ignored(patch: Patch) -> None:
    patch.setattr(replay, "_reorder", lambda arriving, expected, own, node: own)


@fault("grouped_chain", "resnext")
def groups_change_places(patch: Patch) -> None:
    old = slicing._take_grouped

    def faulty(data: Tensor, groups: int, columns: Tensor | None, rows: Tensor | None) -> Tensor:
        return old(data, groups, columns, rows).roll(1, 0)

    patch.setattr(slicing, "_take_grouped", faulty)


@fault("unet", "detector_tuple", "detector_dataclass")
def outputs_are_not_pinned(patch: Patch) -> None:
    exchange(patch, "Output", labels=lambda node, ctx: None)


@fault("unknown_function", "unknown_leaf", "lstm")
def unknown_operators_are_not_pinned(patch: Patch) -> None:
    def faulty(node: Node, ctx: Context) -> None:
        for output in node.outputs:
            ctx.put(output, none(len(output.sizes)))

    for module in (table, sys.modules["irtool.channels.labels"]):
        patch.setattr(module, "rule_for", lambda op: table.SPECS[op].labels if op in table.SPECS else faulty)


@fault("shifted_weight")
def computed_weights_are_not_pinned(patch: Patch) -> None:
    patch.setattr(Labels, "computed", Walk.computed)


@fault("standardised")
def computed_weights_read_other_inputs(patch: Patch) -> None:
    axes = contraction._computed_axes
    patch.setattr(contraction, "_computed_axes", lambda *given: {axis: labels.roll(axis) for axis, labels in axes(*given).items()})


@fault("standardised", "tied_decoder")
def computed_weights_make_other_outputs(patch: Patch) -> None:
    axes, made = contraction._computed_axes, contraction._make
    patch.setattr(contraction, "_computed_axes", lambda *given: {axis: labels.roll(1 - axis) for axis, labels in axes(*given).items()})
    # The layer is found all the same; a layer that is not found is left alone, which is no wrong result.
    patch.setattr(contraction, "_make", lambda node, ctx, weight, out: made(node, ctx, weight, out.roll(-1)))


@fault("cross_covariance", "linear_attention")
def products_lose_their_rows(patch: Patch) -> None:
    patch.setattr(products, "_outer", lambda node, ctx, parts, value, other: [labels.roll(1, longest(labels)) for labels in parts])


@fault("lstm")
def recurrent_layers_read_the_wrong_features(patch: Patch) -> None:
    vector = recurrent.channel_vector
    patch.setattr(recurrent, "channel_vector", lambda *given: vector(*given).roll(1))


@fault("zeros_beside")
def zeros_are_not_made_shorter(patch: Patch) -> None:
    exchange(patch, "Constant", resize=resize.nothing)
