"""The tests' own test: every seeded fault is caught by the proof, by the numbers, or by a size that does not fit."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from seeded_faults import FAULTS
from structures import CASES, module

import irtool
from irtool.errors import ProofError
from irtool.pruning.slicing.check import TOLERANCE, check_prune
from irtool.pruning.slicing.proof import PlaceError

planning = sys.modules["irtool.pruning.solver"]

SEED = 5
"""Of random plans that show every fault, and that sound code carries out as planned: not every plan of `flips` can be."""


def caught(name: str, residual: str) -> str:
    """Return how a net's prune is found wrong; empty if it is not.

    `plan` itself falls back where a proof fails, so that refused rewrites are noted on their way.
    """
    refused: list[str] = []
    slice_channels = planning.slice_channels

    def noting(*args: Any) -> Any:
        try:
            return slice_channels(*args)
        except PlaceError:  # no fault: planning asks which channels have to keep their places
            raise
        except ProofError as error:
            refused.append(str(error))
            raise

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "slice_channels", noting)
        try:
            return numbers(name, residual) or (f"proof: {refused[0]}" if refused else "")
        except Exception as error:
            return f"{type(error).__name__}: {error}"


def numbers(name: str, residual: str) -> str:
    case = CASES[name]
    graph = irtool.trace(module(name), tuple(x.double() for x in case.inputs()), leaf=case.leaf)
    for ratio, scope in ((0.5, "local"), (0.3, "global")):
        plan = irtool.plan(graph, "random", ratio, scope, residual=residual, seed=SEED)
        found = check_prune(graph, plan)  # of what planning proved; the next one is made from the plan's layers
        if not found.relative <= TOLERANCE:
            return f"numbers: {found.relative:.1e}"
        irtool.prune(graph.clone(), plan, constants="drop").run(*graph.example_inputs)
    return ""


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_each_fault_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = FAULTS[name]
    fault.apply(monkeypatch)
    assert any(caught(net, fault.residual) for net in fault.nets)


@pytest.mark.parametrize("net", sorted({(net, fault.residual) for fault in FAULTS.values() for net in fault.nets}), ids="-".join)
def test_sound_code_passes_the_same_check(net: tuple[str, str]) -> None:
    assert caught(*net) == ""
