"""The command line answers at once: its surface is data, and no command needs torch before it runs."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import irtool
from irtool.cli.lazy import command
from irtool.cli.main import run
from irtool.cli.screen import Mode, Screen, answer, shown_as
from irtool.cli.surface import COMMANDS, FILE, summary, surface, written
from irtool.progress import Status

Run = Callable[..., tuple[int, str, str]]
NET = "VGG:depth=11,width=0.0625"
HEAVY = {"torch", "numpy", "onnx", "onnxruntime", "scipy", "matplotlib", "sklearn", "irtool.hosts", "irtool.workflows.compress"}


def test_the_surface_is_what_the_commands_take() -> None:
    assert FILE.read_text(encoding="utf-8") == written(), "run: make surface"


def test_nothing_heavy_is_imported_before_a_command_runs() -> None:
    mistakes = [
        ["train", "x", "--epochs", "foo"],
        ["compress", "--outt"],
        ["verify", "x", "--seed", "-3"],
        ["compress", "x", "--scope", "y"],
    ]
    words = [["--version"], [], ["-h"], ["compres"], *mistakes, *([name, "-h"] for name in COMMANDS)]
    script = f"import sys\nfrom irtool.cli.main import run\nprint([run(words) for words in {words}], file=sys.stderr)\nprint(sorted({HEAVY} & set(sys.modules)), file=sys.stderr)"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    *_, codes, loaded = done.stderr.splitlines()
    assert codes == str([0, 0, 0, 2, 2, 2, 2, 2, *[0] * len(COMMANDS)])
    assert loaded == "[]"


@pytest.mark.parametrize(("typed", "offered"), [("irtool comp", "compress"), ("irtool compress --layer-l", "--layer-limit"), ("irtool train x --qu", "--quiet")])  # fmt: skip
def test_shells_complete_commands_and_options_without_torch(typed: str, offered: str) -> None:
    words = {"_IRTOOL_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    script = "import sys, atexit\natexit.register(lambda: print('torch' in sys.modules))\nfrom irtool.cli import main\nmain()"
    done = subprocess.run([sys.executable, "-c", script], env=os.environ | words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, [offered, "False"]), done.stderr


MISTAKES = {
    "train x --epochs foo": "Invalid value for '--epochs': 'foo' is not a whole number.",
    "train x --lr 1,5": "Invalid value for '--lr': '1,5' is not a number.",
    "verify x --seed -3": "Invalid value for '--seed': -3 is not within 0 to 9223372036854775807.",
    "compress x --scope foo": "Invalid value for '--scope': 'foo' is not one of 'global', 'local', 'isomorphic'.",
    "compress x --outt y": "No option is called --outt. Did you mean --out?",
    "compress x --zzzzzz": "No option is called --zzzzzz.",
    "trian x": "No such command 'trian'. Did you mean train?",
    "prune x": "No such command 'prune'. Did you mean compress?",
    "diff a b --out x": "No option is called --out.",
    "--frob": "No option is called --frob.",
    "verify": "Missing argument 'PATH'.",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_told_in_one_clean_sentence(words: str, cli: Run) -> None:
    code, printed, complaint = cli(*words.split())
    assert (code, printed) == (2, "")
    first = words.split()[0]
    assert complaint == f"{MISTAKES[words]} See {f'irtool {first}' if first in COMMANDS else 'irtool'} --help.\n"


def test_irtool_alone_shows_its_commands(cli: Run) -> None:
    code, printed, complaint = cli()
    assert (code, complaint) == (0, "")
    assert all(name in printed and summary(name).split()[0] in printed for name in COMMANDS)


def test_help_shows_what_a_value_is_and_no_python_type(cli: Run) -> None:
    assert "<float ...>" in cli("train", "--help")[1]
    assert "<int 0..>" in cli("verify", "--help")[1]
    for name in COMMANDS:
        assert not any(word in cli(name, "--help")[1] for word in ("tuple[", "int range"))


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_can_print_json_and_be_quiet_or_verbose(name: str) -> None:
    flags = {flag for parameter in command(name).params for flag in parameter.opts}
    assert flags >= {"--json", "--quiet", "--verbose", "-h"} - {"-h"}
    assert all(parameter["name"] not in ("as_json", "quiet", "verbose") for parameter in surface()[name]["parameters"])


def test_json_is_all_that_is_printed(tmp_path: Path, cli: Run) -> None:
    path = tmp_path / "net.onnx"
    code, printed, _ = cli("export", NET, "--input", "1x3x32x32", "--out", path, "--json")
    assert code == 0
    told = json.loads(printed)
    assert told["files"] == {str(path): path.stat().st_size}
    assert [link["verdict"] for link in told["chain"]] == ["holds"] * len(told["chain"])
    assert json.loads(cli("inspect", path, "--json")[1])["cost"]["macs"] > 0
    assert json.loads(cli("verify", path, "--json")[1])["chain"]
    simple = json.loads(cli("simplify", path, "--out", tmp_path / "simple.onnx", "--json")[1])
    assert simple["operators"][1] <= simple["operators"][0]
    assert json.loads(cli("diff", path, tmp_path / "simple.onnx", "--json")[1])["same"]


def test_quiet_prints_nothing_and_keeps_the_exit_code(tmp_path: Path, cli: Run) -> None:
    path = tmp_path / "net.onnx"
    assert cli("export", NET, "--input", "1x3x32x32", "--out", path, "--quiet") == (0, "", "")
    assert path.exists()
    assert cli("diff", path, "VGG:depth=13,width=0.0625", "-q") == (1, "", "")
    code, printed, complaint = cli("inspect", tmp_path / "none.onnx", "--quiet")
    assert (code, printed) == (1, "")
    assert complaint.count("\n") == 1


def test_verbose_tells_the_steps_on_stderr_and_other_runs_nothing(cli: Run) -> None:
    _, quiet, nothing = cli("inspect", NET, "--input", "1x3x32x32")
    code, printed, told = cli("inspect", NET, "--input", "1x3x32x32", "--verbose")
    assert (code, printed, nothing) == (0, quiet, "")
    assert " irtool" in told
    assert "traced by" in told
    assert not logging.getLogger("irtool").isEnabledFor(logging.INFO)


def test_epochs_are_told_line_by_line_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    for done in (10, 20):
        Screen(None)(Status("train epoch 1/2", done, 20, 0.5, 0.75))
    Screen(None)(Status("decode train", 20, 20))
    with shown_as(Mode(quiet=True)):
        Screen(None)(Status("train epoch 2/2", 20, 20, 0.5, 0.75))
    assert capsys.readouterr().err == "train epoch 1/2: accuracy 75.0 %  loss 0.500\n"


def test_json_has_no_value_that_json_has_not(capsys: pytest.CaptureFixture[str]) -> None:
    facts: dict[str, Any] = {"a": float("nan"), "b": [float("inf"), 1.5], 3: Path("x")}
    with shown_as(Mode(json=True)):
        answer(facts)
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5], "3": "x"}
    assert run(["--version"]) == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example(name: str, cli: Run) -> None:
    code, printed, _ = cli(name, "--help")
    assert code == 0
    assert f"Example: irtool {name} " in printed


def test_the_examples_are_all_commands() -> None:
    assert list(COMMANDS) == ["inspect", "view", "train", "compress", "quantize", "report", "diff", "export", "simplify", "verify", "demo"]


def test_version(cli: Run) -> None:
    assert cli("--version")[:2] == (0, f"irtool {irtool.__version__}\n")
