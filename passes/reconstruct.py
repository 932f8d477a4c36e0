"""Prune, and refit every layer to what the original gave."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar

import torch

from irtool.errors import OptionError
from irtool.garbage import uncollected
from irtool.ir.frontier import Batch
from irtool.ir.graph import G, Graph
from irtool.passmanager import Pass, Rewritten, register
from irtool.progress import Progress, silent
from irtool.pruning.absorb.bias import add_biases, add_to_biases, outputs_of
from irtool.pruning.absorb.calibration import measured
from irtool.pruning.plan import Plan
from irtool.pruning.reconstruct.distance import Aims
from irtool.pruning.reconstruct.distil import Distillation
from irtool.pruning.reconstruct.images import image_batches, live_bytes, require_information, size_of, split_to_fit
from irtool.pruning.reconstruct.reconstruct import Outcome, Reconstruction
from irtool.pruning.reconstruct.stand_in import IMAGES, noise_batches, statistics, with_statistics_of
from irtool.pruning.slicing.plan_slicing import find_slicing, on_copy, put_constants
from irtool.pruning.slicing.slicing import Slicing

CHUNK = 32
"""Images that run together."""
JUDGES = 64
"""Images of other noise, which say whether refitting on noise gained."""
RATE = 5e-5
"""Learning rate of Adam. Refitted nets stand no more: at 1e-3 they are lost."""


@register
@dataclass(frozen=True)
class Reconstruct(Pass):
    """Prune as a plan says, then refit the weights of every convolution and linear layer by ridge regression, without labels.

    Layers are taken in the order in which they run. Each is fitted to what the original gave at its kept outputs, on what it
    reads in the pruned net so far; where its output goes straight into an addition (a batch norm may lie between), to the
    original's sum less the other operand as it is now. The strength of the penalty is chosen on a quarter of the images,
    which are held out; where nothing fits better than what slicing left, that stays. Statistics of batch norms stay. See
    `irtool.pruning.reconstruct.reconstruct` for the formula and its sources.

    Without images noise takes their place in a graph whose batch norms are told that it is what they were trained on. See
    `irtool.pruning.reconstruct.stand_in`. It gains less than images do, and more than absorbing constants does.

    Given:  %conv1 = Conv(%x:1x3x8x8, @conv1.weight:4x3x3x3); %conv2 = Conv(%conv1, @conv2.weight:8x4x3x3)
    Result: %conv1 = Conv(%x:1x3x8x8, @conv1.weight:2x3x3x3); %conv2 = Conv(%conv1, @conv2.weight:8x2x3x3, @absorbed_conv2:8)

    Attributes:
        plan: what goes.
        images: calibration images, prepared as for inference: a tensor (N, C, H, W), a list of batches, a DataLoader; a tuple
            holds the arguments of `forward` first, and what follows (labels) is not looked at. 128 are enough. None: noise and the
            statistics of batch norms.
        weights: refit weights and biases. False: biases alone, which then hold what is missing on average.
        ignore: module paths, or one, whose layers keep the values that slicing leaves.
        positions: of each layer's output, sampled from each image.
        limit: at most so many images are used.
        memory: bytes that values of all images at one place of the net may take, and again the samples. Images beyond it are
            left out, with a note.
        seed: of the sampled positions.
        distil: then let the whole net follow the original's outputs on all images (beyond `limit` too), each looked at so many times,
            in small steps along the gradient, without labels. One batch in eight is held back; what does not gain there is undone. It
            takes as long as training does, and needs a torch graph.
        rate: the largest step of a parameter while distilling.
        original: the graph that the one to prune was made from by pruning, whose outputs are the aim then: where channels go in
            stages, the errors of the first are not copied by the next. None: the graph itself.
        progress: called with a `Status` as the work goes on.
    """

    name: ClassVar[str] = "reconstruct"
    exact: ClassVar[bool] = False

    plan: Plan
    images: Any = None
    weights: bool = True
    ignore: str | tuple[str, ...] = ()
    positions: int = 128
    limit: int = 512
    memory: int = 1 << 30
    seed: int = 0
    distil: int = 0
    rate: float = RATE
    original: Graph | None = None
    progress: Progress = silent

    def __post_init__(self) -> None:
        for name, least in (("positions", 1), ("limit", 1), ("memory", 1 << 20), ("seed", 0), ("distil", 0)):
            value = getattr(self, name)
            if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
                raise OptionError(f"{name} {value!r} is no number to work with", remedy=f"Give a whole number of at least {least:,}.")
        if isinstance(self.rate, bool) or not isinstance(self.rate, Real) or not 0 < float(self.rate) < 1:
            raise OptionError(f"rate {self.rate!r} is no rate", remedy="Give a small number above 0, as 5e-5.")
        if self.distil and not self.weights:
            raise OptionError("distilling changes weights, and weights=False", where="distil", remedy="Leave one of them out.")
        if self.images is None and (self.distil or self.original is not None):
            name = "distil" if self.distil else "original"
            raise OptionError("there are no images", where=name, remedy="Give images (no labels are needed), or leave it out.")

    def rewrite(self, graph: G) -> Rewritten[G]:
        """Prune and refit.

        Raises:
            PlanError: the plan belongs to another model.
            OptionError: `original` is not what the graph was pruned from.
            DataError: these are no images for this model, or say nothing about it, or there are none; or none are given, and noise cannot take their place.
            LayerError: a name in `ignore` that no layer has.
            ProofError: the slicing could not be proven; nothing is returned.
        """
        if self.images is None:
            return self._without_images(graph)
        with uncollected():
            slicing = find_slicing(graph, self.plan)
            batches = split_to_fit(self.original or graph, image_batches(graph, self.images, self.limit, CHUNK))
            require_information(batches)
            put_constants(slicing, self.plan, batches)
            new = slicing.fill()
        slicings: list[Slicing[Any]] = [*_before(self.original, graph), slicing]
        batches, notes = self._within_memory(new, batches)
        new, found = self._refit(slicings, new, batches)
        if self.distil:
            images = image_batches(graph, self.images, sys.maxsize, CHUNK)
            seen = split_to_fit(slicings[0].labels.graph, images)
            notes = [
                *notes,
                Distillation(self.original or graph, new, seen, self.distil, self.rate, self._left, int(self.seed), self.progress).run(),
            ]
        return self._result(new, slicing, found, notes)

    def _without_images(self, graph: G) -> Rewritten[G]:
        """Refit in a graph whose batch norms have the statistics of noise, and put the real ones back.

        Where that gains nothing on other noise, absorbed constants are what is left to do.
        """
        batches = noise_batches(graph, min(self.limit, IMAGES), CHUNK, int(self.seed), self.memory)
        with uncollected():
            world = with_statistics_of(graph, batches, self.progress)
            slicing = on_copy(find_slicing(graph, self.plan), world, self.plan)
            put_constants(slicing, self.plan, batches)  # behind a batch norm its shift, whatever it is measured on
            new = slicing.fill()
        new, found = self._refit([slicing], new, batches)
        judge = Aims.of(world, noise_batches(graph, JUDGES, CHUNK, int(self.seed) + 1, self.memory))
        refitted, absorbed = judge.distance(new), judge.distance(_absorbed(slicing)[0])
        if not refitted <= absorbed:
            lost = (
                f"no images: refitting on noise gains nothing on other noise ({absorbed:.3g} -> {refitted:.3g}), so constants are absorbed"
            )
            return self._without_refitting(graph, lost)
        for name, data in statistics(graph).items():
            if name in new.params:  # else it went with a branch
                new.set_param(name, slicing.sliced(name, data))
        used = sum(map(size_of, batches))
        return self._result(new, slicing, found, [f"no images: refitted on {used} of noise, by the statistics of batch norms"])

    def _without_refitting(self, graph: G, why: str) -> Rewritten[G]:
        """Slice, and let biases take up what removed channels gave on average."""
        slicing = find_slicing(graph, self.plan)
        put_constants(slicing, self.plan)
        new, names = _absorbed(slicing)
        total = sum(layer.total for layer in self.plan.layers)
        return Rewritten(new, (f"{self.plan.removed} of {total} channels removed", why), {"plan": self.plan.to_dict(), "biases": names})

    @property
    def _left(self) -> tuple[str, ...]:
        """Layers that keep their values."""
        return (self.ignore,) if isinstance(self.ignore, str) else tuple(self.ignore)

    def _refit(self, slicings: list[Slicing[Any]], new: G, batches: list[Batch]) -> tuple[G, Outcome]:
        """The walk; layers get the biases that it found."""
        found = Reconstruction(
            slicings, new, batches, self.weights, self._left, self.positions, self.memory, int(self.seed), self.progress
        ).run()
        return (add_to_biases(new, found.gains) if found.gains else new), found

    def _result(self, new: G, slicing: Slicing[Any], found: Outcome, notes: list[str]) -> Rewritten[G]:
        record = {"plan": self.plan.to_dict(), "biases": list(found.gains)}
        return Rewritten(new, (*notes, *_notes(self.plan, slicing.inexact(), found)), record)

    def options(self) -> dict[str, Any]:
        """The plan is recorded with the layers that were given biases; how they were fitted does not matter when it is repeated."""
        return {}

    @classmethod
    def replay(cls, graph: G, step: Mapping[str, Any]) -> G:
        """Slice, and give layers the biases that they were given; the weights that are loaded afterwards have the values."""
        new = find_slicing(graph, Plan.from_dict(step["plan"])).fill()
        zeros = {name: torch.zeros(outputs_of(new, name)) for name in step["biases"]}
        return add_to_biases(new, zeros) if zeros else new

    def _within_memory(self, graph: Graph, batches: list[Batch]) -> tuple[list[Batch], list[str]]:
        """Return as many batches as may be held side by side."""
        most, each = max(1, self.memory // max(live_bytes(graph), 1)), list(map(size_of, batches))
        kept = [batch for number, batch in enumerate(batches) if number == 0 or sum(each[: number + 1]) <= most]
        if len(kept) == len(batches):
            return kept, []
        used = sum(map(size_of, kept))
        return kept, [f"{used} of {sum(each)} images used: more would take above {self.memory / (1 << 30):.3g} GiB (memory= says how much)"]


def _absorbed(slicing: Slicing[G]) -> tuple[G, list[str]]:
    """The sliced graph with what removed channels gave on average in its biases, and the layers that were given some."""
    found = measured(slicing.labels, slicing.keep, None)
    new = slicing.fill()
    return (add_biases(new, slicing.labels, slicing.keep, found.biases) if found.biases else new), sorted(found.biases)


def _before(original: Graph | None, graph: Graph) -> list[Slicing[Graph]]:
    """The slicings that led from `original` to the graph."""
    if original is None:
        return []
    done = len(original.history)
    steps = graph.history[done:]
    strange = next((step["step"] for step in steps if step["step"] not in ("prune", "reconstruct", "recalibrate_batchnorm")), None)
    if type(original) is not type(graph) or graph.history[:done] != original.history or strange is not None:
        why = "the graph was not made from it" if strange is None else f"{strange} lies between it and the graph"
        raise OptionError(why, where="original", remedy="Give the graph that was pruned, and prune what irtool made of it.")
    found, current = list[Slicing[Graph]](), original
    for step in steps:
        if step["step"] == "prune":
            found.append(find_slicing(current, Plan.from_dict(step["plan"])))
            current = found[-1].fill()
    return found


def _notes(plan: Plan, inexact: list[str], found: Outcome) -> list[str]:
    total = sum(layer.total for layer in plan.layers)
    notes = [f"{plan.removed} of {total} channels removed"]
    if inexact:
        notes.append(f"inexact where channels are mixed: {'; '.join(inexact)}")
    changed = sum(bool(layer.changed) for layer in found.layers)
    notes.append(f"{changed} layers refitted; error relative to the spread of each output, on images held out:")
    return [*notes, *map(str, found.layers), *found.notes]


def reconstruct(graph: G, plan: Plan, images: Any = None, **options: Any) -> G:
    """Prune a graph as a plan says and refit its layers on images, or without any; see `Reconstruct`, whose fields are the options.

    Raises:
        OptionError: there is no such option, or it has an impossible value.
    """
    try:
        made = Reconstruct(plan, images, **options)
    except TypeError as error:
        raise OptionError(
            str(error).removeprefix("Reconstruct."), where="reconstruct", remedy="See the fields of irtool.Reconstruct."
        ) from error
    return made(graph).graph
