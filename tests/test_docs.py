"""Documents say of irtool what is so: messages that they explain are its messages, commands that they name are its commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from irtool.cli.lazy import command
from irtool.cli.surface import COMMANDS

ROOT = Path(__file__).parents[1]
SOURCE = " ".join("\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "irtool").rglob("*.py"))).split())
DOCS = sorted(path for path in (ROOT / "docs").rglob("*.md") if "adr" not in path.parts)


def test_the_messages_that_are_explained_are_irtools_own() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    messages = [" ".join(found.split()) for found in re.findall(r"\*\*(`.*?`)\.?\*\*", text, re.S)]
    assert len(messages) > 10
    for message in messages:
        if "torchvision::nms" in message:
            continue  # torch's
        pieces = [
            piece.strip()
            for piece in re.split(
                r"\.\.\.|[`'\d]|irtool\[train\]|net\.py|It holds|torchscript|dynamo|budget: macs|masked = sliced|pip install|MNN|Pillow",
                message,
            )
        ]
        for piece in pieces:
            assert len(piece) < 12 or piece.strip(" ,;:.?") in SOURCE, (message, piece)


@pytest.mark.parametrize("path", DOCS, ids=[path.name for path in DOCS])
def test_commands_and_options_in_the_documents_exist(path: Path) -> None:
    known = {
        name: {flag for one in command(name).params for flag in (*one.opts, *one.secondary_opts)} | {"--help", "-h"} for name in COMMANDS
    }
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    fenced = "\n".join(re.findall(r"^```(?:shell|console|text)?\n(.*?)^```", text, re.M | re.S))
    lines = [*re.findall(r"^(?:\$ )?irtool ([a-z].*)$", fenced, re.M), *re.findall(r"`irtool ([a-z][^`]*)`", text)]
    for line in lines:
        words = line.split("#")[0].split()
        assert words[0] in COMMANDS, words
        for flag in (word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)):
            assert flag in known[words[0]], (flag, words)


def test_no_example_is_left_out_without_a_reason() -> None:
    """`# doctest: +SKIP` shows a line that nobody runs: what follows it on the line says why."""
    shown = [
        ROOT / "README.md",
        *DOCS,
        *(ROOT / "irtool").rglob("*.py"),
        *(ROOT / "passes").rglob("*.py"),
        *(ROOT / "models").rglob("*.py"),
    ]
    lines = [(path.name, line) for path in shown for line in path.read_text(encoding="utf-8").splitlines()]
    assert any(">>> " in line for _, line in lines)
    assert not [found for found in lines if re.search(r"doctest:\s*\+SKIP\W*$", found[1])]
