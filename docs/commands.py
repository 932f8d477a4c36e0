"""A hook of mkdocs: a page for each command, from what `--help` knows, the list of decisions, SECURITY.md. None is written twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from irtool.cli.lazy import command
from irtool.cli.surface import COMMANDS

DECISIONS = Path(__file__).parent / "adr"
SECURITY = Path(__file__).parents[1] / "SECURITY.md"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the generated pages into the navigation."""
    assert config.nav is not None
    for entry in config.nav:
        if "Commands" in entry:
            entry["Commands"] = [{"All": "commands/index.md"}, *({name: f"commands/{name}.md"} for name in _commands())]
        if "Extend" in entry:
            entry["Extend"][-1]["Decisions"] = [{"All": "adr/index.md"}, *({title: f"adr/{file}"} for file, title in _decisions())]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Make the pages."""
    pages = {f"commands/{name}.md": _page(name, command) for name, command in _commands().items()}
    lines = [f"| [`{name}`]({name}.md) | {_text(command).splitlines()[0]} |" for name, command in _commands().items()]
    pages["commands/index.md"] = "\n".join(
        ["# Commands", "", "`irtool COMMAND --help` prints the same.", "", "| command | |", "|---|---|", *lines, ""]
    )
    decisions = [f"- [{title}]({file})" for file, title in _decisions()]
    pages["adr/index.md"] = "\n".join(
        ["# Decisions", "", "Choices that bind more than one part, and what was refused.", "", *decisions, ""]
    )
    pages["security.md"] = SECURITY.read_text(encoding="utf-8").replace("(docs/", "(")
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def _commands() -> dict[str, Any]:
    return {name: command(name) for name in sorted(COMMANDS)}


def _decisions() -> list[tuple[str, str]]:
    return [(path.name, path.read_text().splitlines()[0].removeprefix("# ")) for path in sorted(DECISIONS.glob("[0-9]*.md"))]


def _text(command: Any) -> str:
    return (command.help or "").strip()


def _page(name: str, command: Any) -> str:
    """One command: what it does, its example, its arguments and options."""
    blocks = [" ".join(block.split()) for block in _text(command).split("\n\n")]
    said = [f"```shell\n{block.removeprefix('Example: ')}\n```" if block.startswith("Example: ") else block for block in blocks]
    rows = [
        "| | | default |",
        "|---|---|---|",
        *(_row(parameter) for parameter in command.params if not getattr(parameter, "hidden", False)),
    ]
    return "\n".join([f"# irtool {name}", "", "\n\n".join(said), "", *rows, ""])


def _row(parameter: Any) -> str:
    argument = parameter.param_type_name == "argument"
    names = [parameter.metavar or parameter.name.upper()] if argument else [*parameter.opts, *parameter.secondary_opts]
    takes = "" if argument or parameter.is_flag else parameter.metavar or "VALUE"
    default = "required" if parameter.required else getattr(parameter.default, "value", parameter.default)
    plain = "" if default in (None, False) or callable(default) or default in ([], ()) else str(default)
    return f"| {', '.join(f'`{name}`' for name in names)} {takes} | {_cell(parameter.help or '')} | {plain} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
