"""Stand-ins for `irtool.engines.speed.whole_graph.GraphClock` that count instead of measuring: the same on every machine."""

from __future__ import annotations

from types import SimpleNamespace

import irtool


class MacsClock:
    """Takes multiply-accumulates for time."""

    fixed = 0.0
    """Part of the original's time that does not shrink."""

    def __init__(self, graph: irtool.Graph, engine: str, threads: int) -> None:
        self.engine, self.macs = engine, irtool.cost(graph).macs

    def __enter__(self) -> MacsClock:
        return self

    def __exit__(self, *args: object) -> None: ...

    def alone(self) -> float:
        return 8.0

    def compared(self, graph: irtool.Graph) -> SimpleNamespace:
        return SimpleNamespace(ratios=(1.0, self.fixed + (1 - self.fixed) * irtool.cost(graph).macs / self.macs))


class MostlyMacsClock(MacsClock):
    """The same beside a tenth of the time that nothing shortens."""

    fixed = 0.1
