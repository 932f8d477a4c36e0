"""The engines that are installed beside onnxruntime, and their links of the chain."""

from __future__ import annotations

from irtool.engines.table import OTHERS

ADDED = tuple(row.name for row in OTHERS if row.installed)
LINKS = tuple(f"ONNX = {row.title}" for row in OTHERS if row.installed)
OWN_LINKS = tuple(f"ONNX = {row.title}" for row in OTHERS if row.installed and row.convert is not None)
"""Of engines with files of their own, which `verify` reads."""
