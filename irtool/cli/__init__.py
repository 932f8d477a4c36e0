"""The command line, one module for each command."""

from __future__ import annotations

from irtool.cli.interrupts import leaving_at_once


def main() -> None:
    """The console script."""
    with leaving_at_once():
        from irtool.cli.main import main as run

    run()
