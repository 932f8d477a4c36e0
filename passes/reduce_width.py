"""Make every layer narrower, for training from scratch or from the best channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar, Literal

from irtool.errors import GraphError, OptionError
from irtool.ir.graph import G
from irtool.passmanager import Pass, Rewritten, register
from irtool.pruning.planner import Plan, plan
from irtool.pruning.slicing.plan_slicing import find_slicing

Init = Literal["fresh", "best"]


@register
@dataclass(frozen=True)
class ReduceWidth(Pass):
    """Keep the same share of every layer's channels: what a `width` argument does to a model that has one, for any graph.

    Given:  %conv1 = Conv(%x:1x3x8x8, @conv1.weight:16x3x3x3); %conv2 = Conv(%conv1, @conv2.weight:32x16x3x3)
    Result: %conv1 = Conv(%x:1x3x8x8, @conv1.weight:4x3x3x3); %conv2 = Conv(%conv1, @conv2.weight:8x4x3x3)

    Left alone, as with any plan: the outputs, and layers that cannot be sliced. Residual streams are narrowed with all that
    write to them.

    Attributes:
        ratio: the share of channels that stays, rounded up a layer, in (0, 1]: 1/2 leaves about a quarter of the weights.
        init: `"fresh"`: layers start anew, each as its own `reset_parameters` has it. `"best"`: the channels that `criterion`
            ranks highest keep their weights.
        criterion: for `"best"`: see `plan`.
        seed: of the fresh weights, and of the random criterion.
        ignore: module paths whose layers keep their width.
    """

    name: ClassVar[str] = "reduce_width"
    exact: ClassVar[bool] = False

    ratio: float
    init: Init = "fresh"
    criterion: str = "l1"
    seed: int = 0
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.ratio, Real) or not 0 < self.ratio <= 1:
            raise OptionError(
                f"ratio {self.ratio!r} is not a share of channels to keep", remedy="Give 0 < ratio <= 1; 1/2 and 1/4 are usual."
            )
        if not isinstance(self.seed, Integral) or not 0 <= self.seed < 2**64:
            raise OptionError(f"seed {self.seed!r} starts no generator", remedy="Give a whole number from 0 to 2**64 - 1.")
        if self.init not in ("fresh", "best"):
            raise OptionError(f"init {self.init!r} does not exist", remedy="Choose fresh or best.")

    def rewrite(self, graph: G) -> Rewritten[G]:
        """Slice, then give the layers that have weights new ones.

        Raises:
            PlanError: an unknown criterion, or an unknown name in `ignore`.
            GraphError: fresh weights for an ONNX graph.
        """
        if self.init == "fresh" and not graph.trainable:
            raise GraphError(
                "an ONNX graph does not say how its layers are initialised", remedy='Reduce the torch model, or use init="best".'
            )
        # Ranking by the old weights would make fresh nets of different width depend on them; the order does not matter.
        criterion = self.criterion if self.init == "best" else "random"
        made = plan(graph, criterion, 1 - self.ratio, "local", round_to=1, ignore=self.ignore, seed=self.seed)
        new = find_slicing(graph, made).fill()
        notes = [f"{sum(layer.total for layer in made.layers) - made.removed} of {sum(layer.total for layer in made.layers)} channels stay"]
        if self.init == "fresh":
            notes += [f"{name}: nothing tells how it is initialised: it keeps its values" for name in new.initialise(self.seed)]
            new.commit()
        return Rewritten(new, notes, {"plan": made.to_dict()})

    @classmethod
    def replay(cls, graph: G, step: Mapping[str, Any]) -> G:
        """Slice as the recorded plan says."""
        return find_slicing(graph, Plan.from_dict(step["plan"])).fill()
