"""Ranges at the edges of bins, and what is said about input that cannot work."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quant_nets import exported
from torch import nn

from irtool.engines.onnxruntime.calibrate import calibrate
from irtool.errors import DataError
from irtool.quant import Scheme, Statistics, grid, make_recipe, observe, place


def seen(values: np.ndarray) -> Statistics:
    stats = Statistics()
    stats.update(values.astype(np.float32))
    return stats


@settings(max_examples=60, deadline=None)
@given(
    top=st.one_of(st.floats(1e-3, 1e3), st.integers(1, 64).map(lambda n: n / 8)), share=st.floats(0.01, 1), sign=st.sampled_from([1, -1])
)
def test_kl_keeps_the_only_value_that_there_is(top: float, share: float, sign: int) -> None:
    """A value may lie on the edge of a bin, as 3, 6 and all powers of two do."""
    values = np.zeros(1000)
    values[: max(1, int(1000 * share))] = sign * top
    params = observe(seen(values), "kl", grid("uint8"))
    assert max(map(abs, params.range)) == pytest.approx(top, rel=1e-3)


@pytest.mark.parametrize("bound", [1.0, 2.9, 3.0, 6.0])
def test_kl_keeps_what_an_activation_clips_to(bound: float) -> None:
    values = np.clip(np.random.default_rng(0).normal(bound / 2, bound, 100_000), 0, bound)
    assert observe(seen(values), "kl", grid("uint8")).range[1] == pytest.approx(bound, rel=1e-2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    return exported(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)), tmp_path_factory.mktemp("net"))


def test_a_recipe_needs_statistics(model: onnx.ModelProto) -> None:
    placement = place(model)
    with pytest.raises(DataError, match=r"no statistics of 'input' \(3 of 3 tensors have none\).*calibrate\(model, placement.tensors"):
        make_recipe(model, placement, {}, Scheme())
    some = calibrate(model, ["input"], [np.ones((2, 3, 16, 16), np.float32)])
    with pytest.raises(DataError, match="2 of 3 tensors have none"):
        make_recipe(model, placement, some, Scheme())


@pytest.mark.parametrize("batches", [None, 3])
def test_batches_that_are_none(model: onnx.ModelProto, batches: Any) -> None:
    with pytest.raises(DataError, match=r"batches are a (NoneType|int).*Give a list"):
        calibrate(model, ["input"], batches)
