"""Run a page of commands from its first to its last, and write down what each printed.

A block ```python title="NAME"``` is a file; a block ```console``` holds commands, each a line after `$ `, with what it printed below it. All
commands run in one shell, in a new folder. `fashion-mnist/` in that folder holds the four files of Fashion-MNIST (`--data`).

    python bench/transcript.py docs/from-wheel-to-cpp.md --data FOLDER            # runs everything, the environment with torch too
    python bench/transcript.py docs/from-wheel-to-cpp.md --data FOLDER --check    # compares: the words must be as they are, numbers may differ
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r'^```(console|python title="(?P<name>[^"]+)")\n(?P<body>.*?)^```$', re.M | re.S)
ONCE = ("python3 -m venv", "pip install", "python -m build", "git clone")
"""How commands begin that are left out where an environment is given."""


def commands_of(body: str) -> list[str]:
    """The commands of a console block, without what they printed."""
    return [part.partition("\n")[0] for part in shown(body)]


def shown(body: str) -> list[str]:
    """Each command of a console block with what it printed below it."""
    return [part.rstrip("\n") for part in re.split(r"^\$ ", body, flags=re.M)[1:]]


def run(page: str, folder: Path, environment: Path | None) -> list[tuple[str, str | None]]:
    """Run all commands of a page in one shell; return each with what it printed, None where it was left out."""
    for block in BLOCK.finditer(page):
        if block["name"]:
            (folder / block["name"]).write_text(block["body"], encoding="utf-8")
    every = [command for block in BLOCK.finditer(page) if not block["name"] for command in commands_of(block["body"])]
    lines = []
    for number, command in enumerate(every):
        skipped = environment is not None and command.startswith(ONCE)
        lines += [":" if skipped else command, f"printf '\\n@@ {number} %d\\n' $?"]
    script = "exec 2>&1 </dev/null\n" + "\n".join(lines)
    settings = {"COLUMNS": "110", "NO_COLOR": "1", "IRTOOL": str(ROOT), "PIP_QUIET": "2"}  # what pip warns of is of the machine
    if environment is not None:
        (folder / "clone").symlink_to(ROOT)
        settings["PATH"] = f"{environment.resolve() / 'bin'}{os.pathsep}{os.environ['PATH']}"
    shell = subprocess.Popen(
        ["bash", "-c", script], cwd=folder, env=os.environ | settings, stdout=subprocess.PIPE, text=True, errors="replace"
    )
    assert shell.stdout is not None
    found, printed = list[tuple[str, str | None]](), ""
    for line in shell.stdout:
        ended = re.fullmatch(r"@@ (\d+) (\d+)\n", line)
        if ended is None:
            printed += line
            continue
        command = every[int(ended[1])]
        print(f"$ {command}\n{printed.rstrip()}", flush=True)
        skipped = environment is not None and command.startswith(ONCE)
        found.append((command, None if skipped else printed.strip("\n").replace(str(folder), ".")))
        printed = ""
    shell.wait()
    if len(found) < len(every):
        raise SystemExit(f"The shell ended at: {every[len(found)]}")
    return found


def written(page: str, found: list[tuple[str, str | None]]) -> str:
    """The page with what each command printed now, or before where it was left out."""
    left = iter(found)

    def block(match: re.Match[str]) -> str:
        if match["name"]:
            return match[0]
        texts = []
        for old in shown(match["body"]):
            command, printed = next(left)
            texts.append(f"$ {old}" if printed is None else f"$ {command}" + (f"\n{printed}" if printed else ""))
        return "```console\n" + "\n".join("\n".join(line.rstrip() for line in text.splitlines()) for text in texts) + "\n```"

    return BLOCK.sub(block, page)


def shape(page: str) -> list[str]:
    """A page's words, without numbers and the spaces between them: what may not change."""
    return [" ".join(re.sub(r"[-+]?\d[\d.,:e+-]*", "#", line).split()) for line in page.splitlines()]


def main() -> None:
    """Run the page that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="the folder with Fashion-MNIST's four files")
    parser.add_argument("--environment", type=Path, help="one with irtool in it, in place of a new one")
    parser.add_argument("--check", action="store_true", help="change nothing; fail where words differ")
    given = parser.parse_args()
    page = given.page.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "fashion-mnist").symlink_to(given.data.resolve())
        now = written(page, run(page, Path(folder), given.environment))
    if not given.check:
        given.page.write_text(now, encoding="utf-8")
        return
    odd = [f"- {old}\n+ {new}" for old, new in zip(shape(page), shape(now), strict=False) if old != new]
    print("\n".join(odd) or "As the page says.")
    sys.exit(bool(odd) or len(shape(page)) != len(shape(now)))


if __name__ == "__main__":
    main()
