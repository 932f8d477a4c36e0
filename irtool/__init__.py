"""irtool: compress CNNs by rewriting their graphs, and show that each rewrite is right."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("irtool")
except PackageNotFoundError:  # a checkout on sys.path that nobody installed
    __version__ = "0.0.0+unknown"
