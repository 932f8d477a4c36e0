"""Tables on the terminal: what stands side by side agrees."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from irtool.cli.tables import comparison_table
from irtool.workflows.folders.record import Measured


@pytest.mark.parametrize(
    ("times", "cells"),
    [
        ((0.0932, 0.0653), "0.0932 0.0653 70 %"),
        ((0.6, 0.444), "0.600 0.444 74 %"),
        ((9.999, 20.0), "10.00 20.0 200 %"),
        ((1234.4, 617.2), "1,234 617 50 %"),
    ],
)
def test_two_times_tell_the_share_beside_them(times: tuple[float, float], cells: str) -> None:
    """The milliseconds that are read give the per cent that are read, to the last digit."""
    models = [Measured(10, 10, 40, latency_ms={"mnn": time}, runs=50, threads=1) for time in times]
    console = Console(width=200, record=True, file=StringIO())
    console.print(comparison_table([("before", models[0]), ("after", models[1])], "a net"))
    (row,) = [line for line in console.export_text().splitlines() if line.startswith("mnn, ms")]
    assert " ".join(row.split()) == f"mnn, ms {cells}"
    before, after, share = (float(word.replace(",", "")) for word in cells.removesuffix(" %").split())
    assert abs(100 * after / before - share) < 1
