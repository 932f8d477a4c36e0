"""Running the user's own code: what it prints, and what it must not end."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Iterator

from irtool.errors import OptionError


class Terminated(SystemExit):
    """A signal asked irtool to end: no call of `sys.exit` in a model."""


@contextlib.contextmanager
def foreign(where: str) -> Iterator[None]:
    """The user's code runs in the block. What it prints goes to stderr: stdout is for results, and may be JSON.

    Raises:
        OptionError: it would end the program; `where` names it.
    """
    with contextlib.redirect_stdout(sys.stderr):
        try:
            yield
        except Terminated:
            raise
        except SystemExit as error:
            raise OptionError(
                f"would end the program: sys.exit({error.code!r})", where=where, remedy="Take that call out of the model's code."
            ) from error


@contextlib.contextmanager
def quiet_torch() -> Iterator[None]:
    """While torch traces: it logs, and prints to stderr, some twenty lines about what it cannot follow. The error says it in one."""
    before = logging.root.manager.disable
    if not logging.getLogger("irtool").isEnabledFor(logging.INFO):  # whoever wants to hear of each step hears of torch's too
        logging.disable(max(before, logging.WARNING))
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
