"""Graphs in an engine, timed whole against each other."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from irtool.atomic_files import scratch_folder
from irtool.engines.flat_module import Source
from irtool.engines.latency import PairedLatency, latency_pairs
from irtool.engines.onnxruntime.export import export_onnx
from irtool.engines.session import Session
from irtool.engines.speed.stopwatch import clock_of
from irtool.engines.table import engine as find_engine
from irtool.errors import GraphError
from irtool.hosts.onnx.files.load import save_onnx
from irtool.ir.graph import Graph
from irtool.nests import map_tensors, tensors_in

SECONDS = 4.0
"""Seconds of one comparison."""
_ROUNDS, _WARM = 400, 3


def single_inputs(graph: Graph) -> tuple[Any, ...]:
    """Inputs for one run: the first sample of the example, or the whole example where its batch is written into the graph."""
    one: tuple[Any, ...] = map_tensors(graph.example_inputs, lambda tensor: tensor[:1] if tensor.dim() else tensor)
    try:
        graph.run(*one)
    except (RuntimeError, ValueError, AssertionError, GraphError):
        return graph.example_inputs
    return one


def graph_session(graph: Graph, engine: str, folder: Path, threads: int = 1) -> Session:
    """Open a graph in an engine, at batch 1 where it takes that. Its numbers are not checked.

    Args:
        graph: of either host.
        engine: a key of `irtool.engines.table.ENGINES`.
        folder: where its files go; they may be deleted once it is open.
        threads: of the engine.

    Raises:
        ExportError: the engine lacks an operator.
        OptionError: another engine.
    """
    row = find_engine(engine)
    file = folder / "graph.onnx"
    if isinstance(graph, Source):
        export_onnx(graph, file, example_inputs=single_inputs(graph), dynamic_batch=False, verify=False)
    else:
        save_onnx(graph, file)  # type: ignore[arg-type]  # what holds no module is an ONNX graph, or refused by name
    return row.session(row.written(file, verify=False), threads)


class GraphClock:
    """The time of other graphs over that of one, in an engine.

    Args:
        graph: the original.
        engine: a key of `irtool.engines.table.ENGINES`.
        threads: of the engine.

    Use it as a context manager: it holds files.
    """

    def __init__(self, graph: Graph, engine: str, threads: int = 1) -> None:
        self.engine, self.threads = engine, threads
        self._arrays = [tensor.numpy() for tensor in tensors_in(single_inputs(graph))]
        with ExitStack() as held:
            self._folder = held.enter_context(scratch_folder())
            self._first = self._opened(graph, "original")
            self._held = held.pop_all()

    def __enter__(self) -> GraphClock:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._held.__exit__(kind, error, trace)

    def alone(self) -> float:
        """Median milliseconds of the original."""
        return self._pairs([self._first], SECONDS / 2).latencies[0].median_ms

    def compared(self, graph: Graph) -> PairedLatency:
        """The original, and a graph that takes the same inputs."""
        return self._pairs([self._first, self._opened(graph, "other")], SECONDS)

    def _pairs(self, sessions: list[Session], seconds: float) -> PairedLatency:
        clock = clock_of(self.threads)
        return latency_pairs(sessions, self._arrays, runs=_ROUNDS, warmup=_WARM, seconds=seconds, clock=clock)

    def _opened(self, graph: Graph, name: str) -> Session:
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        return graph_session(graph, self.engine, folder, self.threads)
