"""`irtool`: the commands together, and what happens when one fails.

Whatever a user can do wrong ends in one line on stderr and exit code 1; a wrong command line in 2; Ctrl-C in 130.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import signal
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

import irtool
from irtool.cli.codes import INTERRUPTED, TERMINATED
from irtool.cli.lazy import HELP, Commands
from irtool.cli.surface import COMMANDS
from irtool.errors import Interrupted, IrtoolError, OptionError
from irtool.workflows.loading.user_code import Terminated

UsageError: type[Any] = typer.BadParameter.__bases__[0]
"""Of a wrong command line. Releases of typer keep the class in three places; this one they share."""

app = typer.Typer(
    name="irtool",
    cls=Commands,
    context_settings=HELP,
    help="Compress CNNs by rewriting their graphs: prune, fold, export to ONNX and MNN, and show that every step is right.",
    invoke_without_command=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"irtool {irtool.__version__}")
        raise typer.Exit()


@app.callback()
def _irtool(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and stop.", callback=_show_version, is_eager=True)] = False,
) -> None:
    """Compress CNNs by rewriting their graphs: prune, fold, export to ONNX and MNN, and show that every step is right."""
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


SYNONYMS = {"prune": "compress", "fold": "compress", "optimize": "compress", "convert": "export", "finetune": "train", "distill": "train",
            "benchmark": "compress", "visualize": "view", "compare": "diff", "quantise": "quantize"}  # fmt: skip
"""What others call the work of a command."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (that of the process by default) and return its exit code. Nothing is raised."""
    try:
        _refuse_empty(sys.argv[1:] if arguments is None else arguments)
        code = app(None if arguments is None else list(arguments), standalone_mode=False, prog_name="irtool")
        sys.stdout.flush()  # a full disk is better told here than by Python at exit
    except Interrupted as error:
        complain(str(error))
        return INTERRUPTED
    except IrtoolError as error:
        complain(str(error))
        return 2 if _is_diff(arguments) else 1
    except UsageError as error:
        complain(f"{_sentence(error)}{_nearest(arguments)} See {_command(error)} --help.")
        return error.exit_code
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        code = INTERRUPTED if _came_of_ctrl_c(error) else _unexpected(error)
    if code == INTERRUPTED:
        complain("interrupted: nothing was written.")
    return code if isinstance(code, int) else 0


def _sentence(error: Any) -> str:
    """A mistake in a command line as a sentence, with the option that a mistyped one is nearest to."""
    option, known = getattr(error, "option_name", None), getattr(error, "possibilities", None)
    if known is not None:
        near = difflib.get_close_matches(option, known, 1, 0.7)
        return f"No option is called {option}." + (f" Did you mean {near[0]}?" if near else "")
    return error.format_message().replace("Value error, ", "").rstrip(".") + "."


def _command(error: Any) -> str:
    """The command whose help tells what was mistaken: that of the line, or irtool itself."""
    context = getattr(error, "ctx", None)
    return context.command_path if context is not None else "irtool"


def _nearest(arguments: Sequence[str] | None) -> str:
    """A sentence with the command that a mistyped one is nearest to; empty if none is near, or it was none."""
    word = next((word for word in (sys.argv[1:] if arguments is None else arguments) if not word.startswith("-")), "")
    if word in COMMANDS or not word:
        return ""
    near = [SYNONYMS[word]] if word in SYNONYMS else difflib.get_close_matches(word, COMMANDS, 1)
    return f" Did you mean {near[0]}?" if near else ""


def complain(text: str) -> None:
    """One line on stderr."""
    print(" ".join(text.split()), file=sys.stderr)


def _refuse_empty(words: Sequence[str]) -> None:
    """Refuse an empty name: as a path it would be the folder that the user is in."""
    for before, word in zip(("", *words), words, strict=False):
        option, given, value = word.partition("=")
        named = option.startswith("--") and given and not value
        if not word or named:
            where = option if named else before if before.startswith("-") else None
            raise OptionError("an empty name", where=where, remedy="Give a name; . is the folder that you are in.")


def _unexpected(error: Exception) -> int:
    """Say what no part of irtool has words for: trouble with a file or stdout, or a fault of irtool's own."""
    if os.environ.get("IRTOOL_TRACEBACK"):
        raise error
    if not isinstance(error, OSError):
        reason = next(iter(str(error).strip().splitlines()), "")
        complain(f"internal error: {type(error).__name__}: {reason}. Please report it; IRTOOL_TRACEBACK=1 shows where it happened.")
        return 1
    with contextlib.suppress(OSError, ValueError):  # Python would complain about stdout once more at exit; but it may be no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if not isinstance(error, BrokenPipeError):  # whoever reads our output has seen enough
        complain(f"{error.filename or 'output'}: {error.strerror or error}. See that it can be read, or has room and may be written.")
    return 1


def _came_of_ctrl_c(error: BaseException | None) -> bool:
    """While modules are imported Ctrl-C can come out as another error."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _is_diff(arguments: Sequence[str] | None) -> bool:
    """`irtool diff` keeps 1 for "they differ", as diff(1) does."""
    given = sys.argv[1:] if arguments is None else arguments
    return next((word for word in given if not word.startswith("-")), "") == "diff"


def _terminate(_signal: int, _frame: object) -> None:
    raise Terminated(TERMINATED)  # unwinds, so that temporary files go


def main() -> None:
    """The console script."""
    signal.signal(signal.SIGTERM, _terminate)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is no reason to fail
    sys.exit(run())
