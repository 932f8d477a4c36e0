"""The chain of equality: what it says of a link that holds, is broken, or has no reference."""

from __future__ import annotations

import pytest
import torch
from rich.console import Console

import irtool
from irtool.cli.tables import chain_table
from irtool.errors import CheckError
from irtool.pruning.slicing.check import MaskedCheck
from irtool.workflows.equality import chain
from irtool.workflows.equality.chain import Chain, Link, masked_links


def shown(*links: Link) -> str:
    console = Console(width=160)
    with console.capture() as written:
        console.print(chain_table(Chain(links)))
    return written.get()


@pytest.mark.parametrize(("unresolved", "relative", "verdict"), [((), 1e-16, "holds"), ((), 0.1, "BROKEN"), (("mixer",), 0.1, "unchecked")])
def test_a_step_without_a_reference_is_neither_right_nor_wrong(
    unresolved: tuple[str, ...], relative: float, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = irtool.trace(irtool.models.VGG(11, width=0.0625).eval(), torch.zeros(1, 3, 32, 32))
    plan = irtool.plan(graph, "l1", 0.5)
    found = MaskedCheck(relative, relative, unresolved, 0.0, 0.0, unresolved, 1e-9)
    monkeypatch.setattr(chain, "check_prune", lambda *arguments: found)
    traced, masked, stored = masked_links(graph, plan, irtool.prune(graph, plan), (torch.zeros(1, 3, 32, 32),))
    assert (traced.name, traced.verdict) == ("model = traced", "holds")
    assert masked.verdict == verdict
    assert stored.verdict == "holds"
    assert [line.split()[-1] for line in shown(masked).splitlines() if "masked" in line and "1e-09" in line] == [verdict]
    if verdict == "BROKEN":
        with pytest.raises(CheckError, match="please report the model"):
            Chain((masked,)).require()
    elif verdict == "unchecked":  # nobody asked for an exception: it fails the run
        with pytest.raises(CheckError, match=r"no reference for mixer.*--allow-unchecked"):
            Chain((masked,)).require()
        Chain((masked,)).require(unchecked=True)
    else:
        Chain((masked,)).require()
    assert ("no reference for mixer: only proven by labels" in masked.note) == bool(unresolved)
    assert Chain((masked,)).to_dict()[0]["verdict"] == verdict


def test_a_graph_that_is_not_its_model_is_told_by_its_own_link(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = irtool.trace(irtool.models.VGG(11, width=0.0625).eval(), torch.zeros(1, 3, 32, 32))
    plan = irtool.plan(graph, "l1", 0.5)
    monkeypatch.setattr(chain, "check_prune", lambda *arguments: MaskedCheck(0.0, 0.0, traced=0.1, fixed=True))
    traced, masked, _ = masked_links(graph, plan, irtool.prune(graph, plan), (torch.zeros(1, 3, 32, 32),))
    assert (traced.verdict, masked.verdict) == ("BROKEN", "holds")
    assert "images of other sizes" in traced.note
