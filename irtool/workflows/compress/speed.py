"""Sentences on a smaller model that got no faster: the reason that its graph shows, and the remedy."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, prod

from irtool.analysis.cost import cost
from irtool.engines.latency import NOISE, is_known
from irtool.engines.speed.stopwatch import is_disturbed, load
from irtool.ir.graph import Graph, Node

_PART = 0.1
"""As many of the convolutions must have a width that an engine dislikes before it is the reason."""
_FEW_MACS = 20
"""Multiply-accumulates for each element that is written: with fewer, memory decides."""
_SMALL = 2_000_000
"""Nets of so few multiply-accumulates take hardly more than what an engine takes for each operator."""


def slower_sentences(
    graph: Graph, ratios: Mapping[str, float], intervals: Mapping[str, tuple[float, float]], threads: int
) -> tuple[str, ...]:
    """Say a sentence of each engine in which a model may be slower: that it is, why, and what helps; or that this cannot be told now.

    Args:
        graph: the smaller model.
        ratios: its time over the original's, by engine: the median of paired runs.
        intervals: the 95 % intervals of these, by engine.
        threads: of the engines when they were timed, just now.
    """
    counted, disturbed = f"{threads} thread{'s' * (threads > 1)}", is_disturbed(threads)
    said = []
    for engine, ratio in ratios.items():
        known = is_known(ratio, intervals[engine]) and not disturbed
        if known and ratio > 1 + NOISE:
            why, remedy = reason(graph)
            said.append(f"Slower than the original in {engine}: {ratio:.2f} times its time, {counted}. {why} {remedy}")
        elif not known and intervals[engine][1] > 1 + NOISE:
            low, high = intervals[engine]
            seen = f"between {low:.2f} and {high:.2f} times the original's time" if high < inf else "too few paired runs"
            busy = f"; {load():.1f} programs want each core" if disturbed else ""
            said.append(f"Not measurable now in {engine}: {seen}, {counted}{busy}. Time both again on an idle machine.")
    return tuple(said)


def reason(graph: Graph) -> tuple[str, str]:
    """Say why a graph is slow for its multiply-accumulates, and what helps, as two sentences."""
    layers = [node for node in graph.nodes if node.op in ("Conv", "ConvTranspose") and node.output.shape is not None]
    odd = [node for node in layers if node.output.sizes[1] % 4 or (node.input.sizes[1] % 4 and node.input.sizes[1] > 4)]
    if len(odd) > _PART * len(layers):
        what = f"{len(odd)} of {len(layers)} convolutions have widths that are no multiple of 4, as {odd[0].location} with "
        return (
            f"{what}{odd[0].output.sizes[1]}: engines compute in blocks of 4 to 16 channels, and leave their fastest layout there.",
            "Leave --round-to at auto, or remove more channels.",
        )
    selects = [node for node in graph.nodes if node.op in ("ChannelSelect", "Gather")]
    if len(selects) > _PART * max(len(layers), 1):
        return (
            f"{len(selects)} selections copy channels out of residual streams, and keep what follows from being fused.",
            "Use --residual couple.",
        )
    macs, written = cost(graph).macs, sum(map(_elements, graph.nodes))
    if macs < _SMALL:
        return (
            f"It has {macs:,} multiply-accumulates, and what an engine takes for each operator outweighs them.",
            "Fewer layers would help, narrower ones do not.",
        )
    thin = [node for node in layers if node.attrs.get("group", 1) > 1]
    if macs < _FEW_MACS * written or len(thin) > _PART * len(layers):
        depth = f"{len(thin)} of {len(layers)} convolutions are depthwise or grouped, and " if thin else ""
        return (
            f"{depth}it has {macs / max(written, 1):.0f} multiply-accumulates for each element that it writes: memory takes the time.",
            "Ask for the time itself: --budget latency=50% --engine ENGINE.",
        )
    return (
        "Nothing in its graph says why.",
        "Time it again on an idle machine, or ask for the time itself: --budget latency=50% --engine ENGINE.",
    )


def _elements(node: Node) -> int:
    """Elements that a node writes for one sample."""
    return prod(node.output.sizes[1:]) if node.outputs and node.output.shape and node.op not in ("Input", "Output") else 0
