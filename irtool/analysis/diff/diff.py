"""Differences between two graphs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from irtool.analysis.cost import Cost, cost
from irtool.analysis.diff.changes import Change, ChannelChange, NodeRef, PairDiff, ParameterDelta, Replacement, ref, shape_text
from irtool.analysis.diff.matching import match_nodes
from irtool.analysis.diff.picture import Picture, by_node, picture
from irtool.analysis.diff.replacements import Unmatched, find_replacements
from irtool.ir.graph import Graph, Node
from irtool.ir.pictures import html_table
from irtool.page import diff_page
from irtool.tensor_defaults import plain_tensors


@dataclass(frozen=True, slots=True)
class Diff:
    """The differences. Names are for people: a node that was only renamed is listed in `renamed` and is no difference.

    Attributes:
        added, removed: nodes without a partner.
        replaced: nodes whose place others took.
        lowered: nodes that compute the same by other operators, or do nothing on one side: no difference.
        attributes: attributes that differ.
        wiring: operands that come from another node than the partner's (nodes without a partner in between are followed through).
        channels: channel counts that differ.
        shapes: shapes and types that differ, of parameters, of inputs and of outputs; a bias that came or went.
        parameters: numbers that differ.
        renamed: (before, after) names of partners.
        before, after: what the two graphs cost.
        picture: both graphs in one, as `irtool.analysis.diff.picture` has it.
    """

    added: tuple[NodeRef, ...]
    removed: tuple[NodeRef, ...]
    replaced: tuple[Replacement, ...]
    lowered: tuple[Replacement, ...]
    attributes: tuple[Change, ...]
    wiring: tuple[Change, ...]
    channels: tuple[ChannelChange, ...]
    shapes: tuple[Change, ...]
    parameters: tuple[ParameterDelta, ...]
    renamed: tuple[tuple[str, str], ...]
    before: Cost
    after: Cost
    picture: Picture = field(compare=False, repr=False)

    @property
    def same(self) -> bool:
        """Whether both graphs compute the same by the same nodes and numbers."""
        return not any((self.added, self.removed, self.replaced, self.attributes, self.wiring, self.channels, self.shapes, self.parameters))

    def __repr__(self) -> str:
        count = len(list(self._lines()))
        macs = f"{self.before.macs:,} -> {self.after.macs:,} MACs"
        return f"<Diff: {'no difference' if self.same else f'{count:,} differences'}, {macs}>"

    def _repr_html_(self) -> str:
        marks = {"-": "removed", "+": "added", "~": "changed"}
        return html_table(("", "what"), [(marks.get(mark, mark), line) for mark, line in self._lines()], repr(self)[1:-1])

    def text(self, color: bool = False) -> str:
        """A line a difference (`-` removed, `+` added, `~` changed), the lowerings (`=`) and the totals.

        Args:
            color: with ANSI colours, for a terminal.
        """
        lowered = [f"{_COLORS['=']}= {line}{_RESET}" if color else f"= {line}" for line in self._lowerings()]
        lines = list(self._lines()) or [("", "no difference")]
        body = [f"{_COLORS[mark]}{mark} {line}{_RESET}" if color and mark else f"{mark} {line}".strip() for mark, line in lines]
        return "\n".join([*body, *lowered, *self._totals()])

    def to_dict(self) -> dict[str, Any]:
        """Return the difference as JSON data."""
        names = ("added", "removed", "replaced", "lowered", "attributes", "wiring", "channels", "shapes", "parameters")
        found: dict[str, Any] = {
            "format": FORMAT,
            "same": self.same,
            **{name: [asdict(item) for item in getattr(self, name)] for name in names},
        }
        found["renamed"] = [list(pair) for pair in self.renamed]
        found["totals"] = {name: [getattr(self.before, name), getattr(self.after, name)] for name in _TOTALS}
        return found

    def to_json(self) -> str:
        """`to_dict` as text; docs/formats.md describes it."""
        return json.dumps(self.to_dict(), indent=1)

    def to_html(self, before: str = "before", after: str = "after") -> str:
        """One page that needs nothing else: both graphs side by side, and the list of differences.

        Args:
            before: what to call the first graph.
            after: what to call the second.
        """
        return diff_page(self.to_dict(), self.picture, self.text(), (before, after))

    def _lines(self) -> Iterator[tuple[str, str]]:
        yield from (("-", f"{node} {shape_text(node.shape)}") for node in self.removed)
        yield from (("+", f"{node} {shape_text(node.shape)}") for node in self.added)
        yield from (("~", str(one)) for one in self.replaced)
        yield from (("~", f"{one.node}: {one.what} {one.before} -> {one.after}") for one in self.attributes)
        yield from (("~", f"{one.node}: {one.what} from {one.before} -> from {one.after}") for one in self.wiring)
        yield from (("~", f"{one.node}: channels {one}") for one in self.channels)
        told = {channel.node for channel in self.channels}
        yield from (("~", f"{one.node}: {one.what} {one.before} -> {one.after}") for one in self.shapes if one.node not in told)
        for delta in self.parameters:
            other = "" if delta.other == delta.name else f" ({delta.other})"
            yield "~", f"{delta.name}{other}: differs by norm {delta.norm:.3g} (relative {delta.relative:.2e}), at most {delta.max_abs:.3g}"

    def _lowerings(self) -> Iterator[str]:
        """Told by kind, since an exporter does the same thing many times."""
        counts = Counter(
            " -> ".join(" + ".join(node.op for node in side) or "nothing" for side in (one.before, one.after)) for one in self.lowered
        )
        yield from (f"lowering: {kind}{f' ({count} times)' if count > 1 else ''}" for kind, count in counts.items())

    def _totals(self) -> Iterator[str]:
        for name, label in _TOTALS.items():
            a, b = getattr(self.before, name), getattr(self.after, name)
            share = f" ({(b - a) / a:+.1%})" if a and a != b else ""
            yield f"{label}: {a:,}{f' -> {b:,}' if a != b else ''}{share}"


FORMAT = 1
_TOTALS: Mapping[str, str] = {"params": "parameters", "buffers": "buffer entries", "macs": "MACs", "weight_bytes": "bytes of weights"}
_COLORS: Mapping[str, str] = {"-": "\x1b[31m", "+": "\x1b[32m", "~": "\x1b[33m", "=": "\x1b[36m"}
_RESET = "\x1b[0m"


@plain_tensors()
def diff(a: Graph, b: Graph) -> Diff:
    """Compare two graphs of any hosts by structure, channels and numbers.

    Nodes are matched as `irtool.analysis.diff.matching` says: by what they do, hold and neighbour, not by name alone. Where
    others stand between the same neighbours, both are run on random numbers: if they agree it is a lowering, no difference.
    An ONNX graph whose free axes have other example sizes than the other graph is read at that one's sizes.
    """
    b = b.like(a)
    a = a.like(b)
    pairs = match_nodes(a, b)
    found = find_replacements(a, b, pairs)
    changes = PairDiff(a, b, pairs)
    for x, y in pairs.items():
        if x not in found.explained:
            changes.compare(x, y, numbers=x not in found.rewritten)
    costs = cost(a), cost(b)
    return Diff(
        added=tuple(map(ref, found.added)), removed=tuple(map(ref, found.removed)),
        replaced=_replacements(found.replaced), lowered=_replacements(found.lowered),
        attributes=tuple(changes.attributes), wiring=tuple(changes.wiring), channels=tuple(changes.channels), shapes=tuple(changes.shapes),
        parameters=tuple(changes.parameters), renamed=tuple((x.name, y.name) for x, y in pairs.items() if x.name != y.name),
        before=costs[0], after=costs[1],
        picture=picture((a, costs[0]), (b, costs[1]), pairs, *_told(a, pairs, found, changes)),
    )  # fmt: skip


def _told(a: Graph, pairs: Mapping[Node, Node], found: Unmatched, changes: PairDiff) -> tuple[dict[Node, str], dict[Node, list[str]]]:
    """The status of each node that is not the same, and what there is to say about it."""
    named = {node.name: node for node in a.nodes}
    owners = {value.name: node for node in reversed(a.nodes) for value in node.inputs if value.is_param}
    told = [(named[one.node.name], f"{one.what} {one.before} -> {one.after}") for one in changes.attributes]
    told += [(named[one.node.name], f"{one.what} from {one.before} -> from {one.after}") for one in changes.wiring]
    told += [(named[one.node.name], f"channels {one}") for one in changes.channels]
    shaped = {one.node.name for one in changes.channels}
    told += [(named[one.node.name], f"{one.what} {one.before} -> {one.after}") for one in changes.shapes if one.node.name not in shaped]
    told += [
        (owners[one.name], f"{one.name} differs by {one.relative:.2e} of its norm") for one in changes.parameters if one.name in owners
    ]
    status = dict.fromkeys((node for node, _ in told), "changed")
    status |= {**dict.fromkeys(found.removed, "removed"), **dict.fromkeys(found.added, "added")}
    for kind, stretches in (("lowered", found.lowered), ("replaced", found.replaced)):
        for before, after in stretches:
            text = " -> ".join(" + ".join(node.op for node in side) or "nothing" for side in (before, after))
            for node in (*before, *after):
                status[node] = kind if node not in pairs or kind == "lowered" else "changed"
                told.append((node, f"{'lowering' if kind == 'lowered' else 'replaced'}: {text}"))
    return status, by_node(told)


def _replacements(found: Iterable[tuple[list[Node], list[Node]]]) -> tuple[Replacement, ...]:
    return tuple(Replacement(tuple(map(ref, before)), tuple(map(ref, after))) for before, after in found)
