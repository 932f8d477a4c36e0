"""Modules and nodes that a name covers."""

from __future__ import annotations

import pytest

from irtool.pruning.names import fits, is_at


@pytest.mark.parametrize(
    ("path", "given", "at", "fitting"),
    [
        ("layer1", "layer1", True, True),
        ("layer1.0.conv1", "layer1", True, True),
        ("layer10", "layer1", False, False),
        ("layer1", "layer1.0", False, False),
        ("layer3.1.conv1", "layer3.*", False, True),
        ("layer3", "layer3.*", False, False),
        ("layer3.1.conv1", "*.conv[12]", False, True),
        ("Layer1", "layer1", False, False),
    ],
)
def test_a_name_covers_what_lies_below_and_a_pattern_what_meets_it(path: str, given: str, at: bool, fitting: bool) -> None:
    assert (is_at(path, given), fits(path, given)) == (at, fitting)
