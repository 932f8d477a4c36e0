"""x."""

from __future__ import annotations


def diff() -> None:
    """x"""
