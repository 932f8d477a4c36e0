"""One facet of an operator's row, exchanged for the length of a test."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from irtool.ops import spec


def exchange(patch: pytest.MonkeyPatch, op: str, **facets: Any) -> None:
    """Give an operator other facets (`labels`, `moments`, ...) than its row has."""
    patch.setitem(spec.SPECS, op, replace(spec.spec_of(op), **facets))
