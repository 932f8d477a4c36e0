"""Make an ONNX program say what it computes, and no more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from irtool.ir.graph import G
from irtool.passmanager import Pass, Rewritten, onnx_only, register


@register
@dataclass(frozen=True)
class Simplify(Pass):
    """Fold sizes that an ONNX program computes, take out dead and duplicate operators. ONNX graphs only. Weights stay as they are.

    Sizes are written down where ONNX's shape inference proves them for every input: a free batch stays free.

    Given:  %s = Shape(%x); %n = Gather(%s, 0); %t = Concat(%n, [2], [58], [28], [28]); %y = Reshape(%x, %t)
    Result: %y = Reshape(%x, [0, 2, 58, 28, 28])
    """

    name: ClassVar[str] = "simplify"

    def rewrite(self, graph: G) -> Rewritten[G]:
        """Simplify it.

        Raises:
            OptionError: a torch graph, for which there are `fold_constants` and `dead_code`.
        """
        onnx_only(graph, self.name)
        new = graph.clone()
        gone = new.simplify_sizes() + len(new.drop_dead())
        if not gone:
            return Rewritten(graph)
        new.commit()
        return Rewritten(new, (f"{gone} operators fewer: sizes written down, dead and duplicate operators gone",))


def simplify(graph: G) -> G:
    """Fold the sizes that an ONNX graph computes, and take out dead and duplicate operators: `Simplify` in one call.

    Raises:
        OptionError: a torch graph.
    """
    return Simplify()(graph).graph
