"""Exit codes beside 0, 1 (a failure, told in a line) and 2 (a wrong command line)."""

from __future__ import annotations

INTERRUPTED = 130
TERMINATED = 143
