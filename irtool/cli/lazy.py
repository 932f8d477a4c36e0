"""Commands whose modules are loaded when they are called: help and a typing mistake are answered without torch."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import typer
import typer.core
import typer.main

COMMANDS: Mapping[str, str] = {
    "inspect": "List each layer that makes channels: which ones share them, how many can be pruned, and why the others cannot.",
    "train": "Train a model: from scratch, sparse, finetuned, distilled, or with the rounding of an int8 file.",
    "compress": "Prune, fold and export a model, with every step shown right; compare it with the original.",
    "quantize": "Write an int8 model, and compare its accuracy, bytes and latency with the float model's.",
    "report": "Make the page of a run: graphs side by side, channels kept, costs, the chain of equality, training and sensitivity curves.",
    "diff": "Show what changed between two models: nodes, channels, parameters, totals.",
    "export": "Write a model as files for engines, compared with torch and with each other before they appear.",
    "simplify": "Fold the sizes that an .onnx file computes, and take out operators that are dead, repeated or do nothing.",
    "verify": "Check the chain of equality from the files: masked = sliced = folded = ONNX = engines.",
    "demo": "Train a small net on scikit-learn's digits, prune it, fold it, export it, check every step, and show what it brought.",
}
"""Each command, and the first paragraph of its help. `irtool.cli.<name>` has the function of that name."""


def command(name: str) -> Any:
    """The command itself; its module, and with it torch, is loaded now."""
    function = getattr(importlib.import_module(f"irtool.cli.{name}"), name)
    alone = typer.Typer(add_completion=False, rich_markup_mode="rich", context_settings=HELP)
    alone.command(name=name)(function)
    return typer.main.get_command(alone)


HELP = {"help_option_names": ["-h", "--help"]}


class Commands(typer.core.TyperGroup):
    """A group that knows the names of its commands and what they do, and loads the one that is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names, in the order of the work."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command's entry for help; None if there is none of this name."""
        if cmd_name not in COMMANDS:
            return None
        return typer.core.TyperCommand(cmd_name, help=COMMANDS[cmd_name], short_help=COMMANDS[cmd_name], rich_markup_mode="rich")

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the words call, loaded."""
        name, found, rest = super().resolve_command(ctx, args)
        return (name, found, rest) if found is None else (name, command(str(found.name)), rest)
