"""Take out what nobody reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from irtool.ir.graph import G
from irtool.passmanager import Pass, Rewritten, register


@register
@dataclass(frozen=True)
class DeadCode(Pass):
    """Remove operators whose results nobody reads. What writes into its inputs, or may do more than compute, stays.

    Inputs stay: a caller passes them. Weights that only removed operators read go with them.

    Given:  %a = Conv(%x, ...); %b = Conv(%x, ...); output %a
    Result: %a = Conv(%x, ...); output %a
    """

    name: ClassVar[str] = "dead_code"

    def rewrite(self, graph: G) -> Rewritten[G]:
        """Remove them."""
        new = graph.clone()
        dead = new.drop_dead()
        if not dead:
            return Rewritten(graph)
        new.commit()
        return Rewritten(new, (f"{len(dead)} dead operators removed: {', '.join(dead)}",))
