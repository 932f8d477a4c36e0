"""Number of threads that an engine may be told to start."""

from __future__ import annotations

import os

MOST_THREADS = max(64, 4 * (os.cpu_count() or 1))
"""Engines start as many threads as they are told to, and die where the system gives no more."""
FEWER_THREADS = f"Give 1 to {MOST_THREADS} threads: this machine runs {os.cpu_count()} at once, and engines die of too many."
