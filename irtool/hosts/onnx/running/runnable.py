"""An ONNX program as far as onnxruntime can run it: operators that it does not have are left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs
from onnx import ModelProto

from irtool.hosts.onnx.files.foreign import cannot_run, declared_types, without
from irtool.hosts.onnx.files.subgraphs import all_nodes, has_inside
from irtool.hosts.onnx.running.evaluate import Array, Open, Seen, element_type
from irtool.hosts.onnx.running.interpreter import run_model
from irtool.hosts.onnx.sizes.data_sizes import reads
from irtool.hosts.onnx.trial import observed_types

LOOP_SECONDS = 120.0
"""Seconds that a model with a Loop may take on the example after an edit: as it came from its file it has ended in a process of its own."""


class Runnable:
    """The part of a program that can be run.

    Args:
        host: the program.
        header: the file's own description, which states sizes of results that nothing else tells.
        sizes: a concrete shape for each input.
        foreign: operators (domain, name) that onnxruntime does not have.

    Attributes:
        foreign: those of them that the program has.
        declared: what the file says of their results, by name; None if it says nothing.
    """

    def __init__(
        self, host: gs.Graph, header: ModelProto, sizes: Mapping[str, tuple[int, ...]], foreign: frozenset[tuple[str, str]]
    ) -> None:
        self.host, self.header, self.sizes = host, header, sizes
        self.foreign = foreign & {(node.domain or "", node.op) for node in all_nodes(host)} if foreign else foreign
        self.results = {
            tensor.name
            for node in host.nodes
            if self.foreign and ((node.domain or "", node.op) in self.foreign or has_inside(node, self.foreign))
            for tensor in node.outputs
        }
        self.declared: dict[str, Open | None] = self._stated(sizes)

    def _stated(self, sizes: Mapping[str, tuple[int, ...]]) -> dict[str, Open | None]:
        """Types that the file states of the results of operators that onnxruntime does not have, for some sizes of the inputs."""
        found = declared_types(self.header, self.results, sizes) if self.results else {}
        return {name: found.get(name) for name in self.results}

    def _cut(self, model: ModelProto, sizes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, Array], set[str]]:
        """Cut a model, in place, to what can be run: numbers for the inputs that it gets, and the names of the values left."""
        feed = without(model, self.foreign, {name: kind for name, kind in self._stated(sizes).items() if kind is not None})
        return feed, {name for node in model.graph.node for name in node.output} | {value.name for value in model.graph.input}

    def run(self, model: ModelProto, feed: Mapping[str, Array], names: Sequence[str]) -> dict[str, Array]:
        """Values by name.

        Args:
            model: the program as a model; cut to what can be run, in place.
            feed: its inputs by name.
            names: values anywhere in it.

        Raises:
            GraphError: onnxruntime is absent, refuses the model or the inputs, or lacks an operator that a value hangs on.
        """
        names = list(dict.fromkeys(names))
        if self.foreign:
            more, left = self._cut(model, {name: array.shape for name, array in feed.items()})
            if missing := [name for name in names if name not in left]:
                raise cannot_run(missing, self.foreign)
            feed = {**feed, **more}
        # Older releases of onnxruntime (1.24, say) give uninitialised memory for an input that is an output too, so it is not asked for those.
        made = [name for name in names if name not in feed]
        found = dict(zip(made, run_model(model, feed, made), strict=True)) if made else {}
        return {name: feed[name] if name in feed else found[name] for name in names}

    def given(self, model: ModelProto, sizes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, Array], set[str]]:
        """Numbers in the place of what onnxruntime cannot make, by name, and the names of all values that a run with them gives.

        Args:
            model: the program as a model; cut to what can be run, in place.
            sizes: of its inputs.
        """
        if not self.foreign:
            return {}, {name for node in model.graph.node for name in node.output}
        return self._cut(model, sizes)

    def left(self, model: ModelProto, names: Sequence[str]) -> list[str]:
        """Those of some values that `run` can give for the example's sizes; the model is cut in place."""
        if not self.foreign:
            return list(names)
        _, left = self._cut(model, self.sizes)
        return [name for name in names if name in left]

    def behind(self) -> set[str]:
        """The results of operators that onnxruntime does not have, and all that follows on one: no run tells what they are."""
        found = set(self.results)
        outside = set(self.host.tensors()) if found else set()
        for node in self.host.nodes if found else ():
            if any(tensor.name in found for tensor in reads(node, outside)):
                found.update(tensor.name for tensor in node.outputs)
        return found

    def observe(self, model: ModelProto, names: Sequence[str], *, apart: bool) -> Mapping[str, Seen]:
        """Types of those of some values that can be run, on ones.

        Args:
            model: the program as a model; cut to what can be run, in place.
            names: values anywhere in it.
            apart: in a process of its own, since nobody knows yet what the program does.
        """
        more: dict[str, Array] = {}
        if self.foreign:
            more, left = self._cut(model, self.sizes)
            names = [name for name in names if name in left]
        if not names:
            return {}
        if apart:
            feed = {tensor.name: (np.dtype(tensor.dtype).name, self.sizes[tensor.name]) for tensor in self.host.inputs}
            return observed_types(model, feed, names, more)
        ones = {tensor.name: np.ones(self.sizes[tensor.name], tensor.dtype) for tensor in self.host.inputs}
        found = run_model(model, {**ones, **more}, names, LOOP_SECONDS)
        return {n: None if isinstance(a, list) else (element_type(a.dtype), a.shape) for n, a in zip(names, found, strict=True)}
