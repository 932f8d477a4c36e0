"""Models, weights and options that nobody can work with: refused by name, in one line, before the work."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import irtool
from irtool.cli.main import run
from irtool.engines.threads import MOST_THREADS

NET = "VGG:depth=11,width=0.0625"
SIZE = ["--input", "2x3x32x32"]
ROOT = Path(__file__).parents[2]
Cli = Callable[..., tuple[int, str, str]]
Fails = Callable[..., str]
MODELS = """
import sys
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=2):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
    def forward(self, x):
        return self.conv(x)

class Exits(Net):
    def forward(self, x):
        sys.exit(0)

class Asks(Net):
    def forward(self, x):
        return self.conv(x) if x.sum() > 0 else x

class Prints(Net):
    def forward(self, x):
        print("forward")
        return self.conv(x)

def leaves():
    sys.exit("bye")
"""


@pytest.fixture
def fails(cli: Cli) -> Fails:
    """Run a command line that must fail with 1 and, beside the names of the stages, one line; that line."""

    def call(*arguments: str | Path) -> str:
        code, out, err = cli(*arguments)
        lines = [line for line in err.splitlines() if not line.endswith(" ...")]
        assert (code, out, len(lines)) == (1, "", 1), err
        assert "please report" not in lines[0].lower()
        return lines[0]

    return call


@pytest.fixture
def models(tmp_path: Path) -> Path:
    path = tmp_path / "net.py"
    path.write_text(MODELS)
    return path


@pytest.mark.parametrize("name", ["Exits", "leaves", None])
def test_a_model_that_ends_the_program_is_an_error(name: str | None, models: Path, fails: Fails) -> None:
    if name is None:
        models.write_text("import sys\nsys.exit(0)\n")
    line = fails("inspect", f"{models}:{name or 'Net'}", *SIZE)
    assert line.startswith(str(models))
    assert "would end the program: sys.exit(" in line


def test_what_a_model_prints_does_not_spoil_the_result(models: Path, cli: Cli) -> None:
    models.write_text(MODELS + "\nprint('import')\n")
    code, out, err = cli("inspect", f"{models}:Prints", *SIZE, "--json")
    assert code == 0
    assert json.loads(out)["cost"]["params"] == 112
    assert {"import", "forward"} <= set(err.split())


@pytest.mark.parametrize(
    ("model", "inputs", "expected"),
    [
        ("Net", ["2x3x9x9", "2x3x9x9"], "its forward does not take 2 inputs"),
        ("Net", ["1x3x999999999x999999999"], "--input: 1x3x999999999x999999999 is more than"),
        ("Net:classes=3,classes=4", ["2x3x9x9"], "MODEL: classes is given more than once"),
    ],
)
def test_arguments_of_a_model_that_contradict_it(model: str, inputs: list[str], expected: str, models: Path, fails: Fails) -> None:
    assert expected in fails("inspect", f"{models}:{model}", *(word for size in inputs for word in ("--input", size)))


def test_a_model_that_cannot_be_traced_is_one_line(models: Path) -> None:
    # A process of its own: torch's log has a handle on the true stderr.
    command = [sys.executable, "-m", "irtool", "inspect", f"{models}:Asks", *SIZE]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "cannot be traced" in line


def _spoilt(path: Path, name: str, value: float) -> Path:
    state = irtool.models.build("VGG", depth=11, width=0.0625).state_dict()
    state[name][0] = value
    torch.save(state, path)
    return path


@pytest.mark.parametrize("command", ["export", "compress", "quantize", "train"])
@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("classifier.weight", float("nan"), "holds NaN"),
        ("classifier.bias", float("inf"), "holds NaN or infinity"),
        ("running_var", -1.0, "negative"),
    ],
)
def test_weights_without_a_use_are_refused_by_name(
    command: str, name: str, value: float, expected: str, tmp_path: Path, fails: Fails
) -> None:
    if name == "running_var":
        name = next(key for key in irtool.models.build("VGG", depth=11, width=0.0625).state_dict() if key.endswith(name))
    weights = _spoilt(tmp_path / "w.pth", name, value)
    digits, out = ["--limit", "20"], ["--out", tmp_path / "out"]
    more = {
        "export": [*SIZE, "--out", tmp_path / "out.mnn"],
        "compress": [*SIZE, *out],
        "quantize": ["--calib", "digits", *digits, *out],
        "train": ["--data", "digits", *digits, *out],
    }
    line = fails(command, NET, "--weights", weights, *more[command])
    assert line.startswith(f"{weights}: {name} ")
    assert expected in line
    assert not (tmp_path / "out").exists()


def test_weights_without_a_use_can_be_looked_at(tmp_path: Path, cli: Cli) -> None:
    assert cli("inspect", NET, *SIZE, "--weights", _spoilt(tmp_path / "w.pth", "classifier.weight", float("nan")))[0] == 0


def test_an_infinite_constant_that_is_no_weight_is_none_of_ours(tmp_path: Path, cli: Cli) -> None:
    path = tmp_path / "net.py"
    mask = "self.register_buffer('mask', torch.tensor([0.0, float('-inf')]))"
    path.write_text(
        "import torch\nclass Net(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        f"        self.fc = torch.nn.Linear(3, 2)\n        {mask}\n"
        "    def forward(self, x):\n        return (self.fc(x) + self.mask).softmax(1)\n"
    )
    code, _, err = cli("export", f"{path}:Net", "--input", "2x3", "--out", tmp_path / "net.onnx")
    assert code == 0, err


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("text", "not a torch checkpoint"),
        ("sparse", "is no dense tensor"),
        ("old pickle", "holds pickled objects"),
        ("script", "not a torch checkpoint"),
    ],
)
def test_weights_of_a_foreign_form_bring_no_warnings(form: str, expected: str, tmp_path: Path) -> None:
    # A process of its own: pytest keeps warnings off stderr.
    path, model = tmp_path / "w.pth", torch.nn.Linear(2, 2)
    if form == "text":
        path.write_text("<html>404</html>")
    elif form == "script":
        torch.jit.save(torch.jit.trace(model, torch.zeros(1, 2)), path)
    else:
        state = irtool.models.build("VGG", depth=11, width=0.0625).state_dict()
        name = next(iter(state))
        state[name] = state[name].to_sparse() if form == "sparse" else Path("object")  # type: ignore[assignment]
        torch.save(state, path, pickle_protocol=2 if form == "sparse" else 4)
    command = [sys.executable, "-m", "irtool", "inspect", NET, *SIZE, "--weights", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert expected in line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["compress", NET, *SIZE, "--calibrate", "10"], "--calibrate: 10 images, and no --data"),
        (["compress", NET, *SIZE, "--calibrate", "-1"], "--calibrate: -1. Give a number of"),
        (["compress", NET, *SIZE, "--seed", "-1"], "--seed: -1. Give 0 to"),
        (["compress", NET, *SIZE, "--threads", "100000"], f"--threads: 100000. Give 1 to {MOST_THREADS} threads"),
        (["quantize", NET, "--calib", "digits", "--threads", "100000"], f"threads 100000. Give 1 to {MOST_THREADS} threads"),
        (["compress", NET, "--data", "digits", "--input", "2x3x64x64"], "--input: 3x64x64, but the images are 3x32x32"),
        (["train", NET, "--data", "digits", "--input", "2x3x64x64"], "--input: 3x64x64, but the images are 3x32x32"),
        (["quantize", NET, "--calib", "digits", "--input", "2x3x64x64"], "--input: 3x64x64, but the images are 3x32x32"),
        (["train", NET, "--data", "digits", "--mean", "nan,0,0"], "--mean: 'nan,0,0' is not from 0 to 1"),
        (["train", NET, "--data", "digits", "--mean", "127,127,127"], "--mean: '127,127,127' is not from 0 to 1"),
        (["train", NET, "--data", "digits", "--image-size", "100000"], "--image-size: 100000 pixels. Give 1 to 8,192"),
        (["train", NET, "--data", "digits", "--seed", "99999999999999999999999"], "seed = 99999999999999999999999"),
        (["compress", "--recipe", "r.toml", "--ratio", "0", "--limit", "3"], "--recipe: --limit, --ratio and a recipe"),
        (["compress", NET, *SIZE, "--limit", "5", "--calibrate", "8"], "--limit: no images that it speaks of"),
        (["compress", NET, *SIZE, "--mean", "0.5,0.5,0.5"], "--mean: no images that it speaks of"),
        (["compress", NET, *SIZE, "--image-size", "8"], "--image-size: no images that it speaks of"),
        (["compress", NET, "--data", "digits", "--limit", "0"], "--limit: 0 images. Give at least 1"),
        (["compress", NET, *SIZE, "--epochs", "3"], "--epochs: 3, and no bound to train for. Give --max-drop"),
        (["compress", NET, *SIZE, "--minutes", "-1"], "--minutes: -1.0, and no bound to train for. Give --max-drop"),
        (["compress", NET, *SIZE, "--stages", "0"], "--stages: 0. Give 1"),
        (["compress", NET, *SIZE, "--opset", "99"], "opset=99. Choose 11 to 26"),
    ],
)
def test_options_that_were_ignored_or_came_to_grief(words: list[str], expected: str, tmp_path: Path, fails: Fails) -> None:
    assert expected in fails(*words, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_limit_holds_for_images_without_classes_too(tmp_path: Path, fails: Fails) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (32, 32), (90 * number, 0, 0)).save(folder / f"{number}.png")
    for limit in ("0", "-1"):
        line = fails("quantize", NET, "--calib", folder, "--limit", limit, "--out", tmp_path / "out")
        assert f"--limit: {limit} images. Give at least 1" in line


def test_an_operator_set_that_no_file_has_is_told_before_the_work(tmp_path: Path, cli: Cli) -> None:
    code, _, err = cli("export", NET, *SIZE, "--opset", "99", "--out", tmp_path / "a.onnx")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "opset=99. Choose 11 to 26" in err


def test_one_image_is_no_dataset(tmp_path: Path, fails: Fails) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert "a.png: is one image. Give the folder" in fails("quantize", NET, "--calib", tmp_path / "a.png", "--out", tmp_path / "out")


def test_onnx_files_that_cannot_be_used_with_images(tmp_path: Path, fails: Fails) -> None:
    import onnx

    file, out = tmp_path / "net.onnx", tmp_path / "out"
    for shape, words, expected in (
        (["n", "h", "w", 3], ["compress", file, "--data", "digits"], "channels last"),
        ([1, 3, 8, 8], ["train", file, "--data", "digits"], "an ONNX file cannot be trained"),
    ):
        value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in "xy"]
        graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "net", value[:1], value[1:])
        onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), file)
        assert expected in fails(*words, "--out", out)


def test_files_are_told_by_their_suffixes(tmp_path: Path, fails: Fails, cli: Cli) -> None:
    assert "two files that end in .onnx. Give one of each kind" in fails(
        "export", NET, *SIZE, "--out", tmp_path / "a.onnx", "--out", tmp_path / "b.onnx"
    )
    assert "no engine has files called net. Give a name that ends in .onnx or .mnn" in fails(
        "export", NET, *SIZE, "--out", tmp_path / "net"
    )
    files = [tmp_path / "a.b" / "net.onnx", tmp_path / "b" / "net.mnn"]
    assert cli("export", NET, *SIZE, "--out", files[0], "--out", files[1])[0] == 0
    assert files[0].read_bytes() != files[1].read_bytes()


@pytest.mark.parametrize(("most", "code", "error"), [(100, 1, "output: File too large. See"), (100_000, 0, "")])
def test_output_that_cannot_be_written_or_shown(most: int, code: int, error: str, models: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk; the name has a letter that the output's encoding lacks."""
    named = models.rename(models.with_name("né.py"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-B", "-m", "irtool", "inspect", f"{named}:Net", *SIZE]
    with (tmp_path / "printed").open("w") as sink:
        done = subprocess.run(
            command,
            stdout=sink,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)),
        )
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith(error)
    assert len(done.stderr.splitlines()) == bool(error)


def test_ctrl_c_that_comes_out_as_another_error(monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    def interrupted(*_: object) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise RuntimeError("Error calling __set_name__") from error

    monkeypatch.setattr("irtool.cli.main.app", lambda *_, **__: interrupted())
    assert run([]) == 130
    assert cli()[2] == "interrupted: nothing was written.\n"


def test_int8_weights_are_parameters(tmp_path: Path, cli: Cli) -> None:
    words = ["--calib", "digits", "--limit", "20", "--runs", "1", "--max-drop", "100", "--no-sensitivity"]
    assert cli("quantize", NET, *words, "--out", tmp_path / "out")[0] == 0
    found = [json.loads(cli("inspect", tmp_path / "out" / f"{name}.onnx", "--json")[1])["cost"]["params"] for name in ("float", "int8")]
    assert found[0] == found[1]
