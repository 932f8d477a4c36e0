"""Insert a channel selection before every batch norm that reads a stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from irtool.ir.graph import G
from irtool.passmanager import Pass, Rewritten, register
from irtool.pruning.residual import insert_selects


@register
@dataclass(frozen=True)
class InsertSelects(Pass):
    """Let batch norms that read a residual stream be sliced by themselves.

    Given:  %bn1 = BatchNormalization(%add)
    Result: %select_0 = ChannelSelect(%add); %bn1 = BatchNormalization(%select_0)
    """

    name: ClassVar[str] = "insert_selects"

    def rewrite(self, graph: G) -> Rewritten[G]:
        """Insert selections of all channels; the outputs stay bit-equal."""
        new = insert_selects(graph)
        if new is graph:
            return Rewritten(graph)
        return Rewritten(new)
