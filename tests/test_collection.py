"""Holding back the garbage collector: what was on comes back on, what was off stays off."""

import gc
from collections.abc import Iterator

import pytest
import torch
from training import net

import irtool
from irtool.errors import PlanError
from irtool.garbage import uncollected


@pytest.fixture(autouse=True)
def collecting() -> Iterator[None]:
    gc.enable()
    yield
    gc.enable()


def test_off_inside_on_after() -> None:
    with uncollected():
        assert not gc.isenabled()
        with uncollected():
            assert not gc.isenabled()
        assert not gc.isenabled(), "an inner block must not end the outer one"
    assert gc.isenabled()


def test_on_again_after_an_error() -> None:
    graph = irtool.trace(net().eval(), torch.zeros(1, 1, 12, 12))
    with pytest.raises(PlanError):
        irtool.plan(graph, ratio=2)
    assert gc.isenabled()


def test_a_user_who_turned_it_off_finds_it_off() -> None:
    gc.disable()
    graph = irtool.trace(net().eval(), torch.zeros(1, 1, 12, 12))
    irtool.prune(graph, irtool.plan(graph))
    assert not gc.isenabled()
