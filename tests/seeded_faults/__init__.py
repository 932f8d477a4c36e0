"""Faults for irtool's own code, each a small patch that a slip of the pen could make. `test_seeded_faults` needs them caught."""

from seeded_faults import meeting, movement, rewriting
from seeded_faults.fault import FAULTS

__all__ = ["FAULTS", "meeting", "movement", "rewriting"]
