"""Mistakes of users: one clear line, an exit code that is not zero, nothing half-written."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import irtool
from irtool.cli.main import run

MODEL = "VGG:depth=11,width=0.0625"
ROOT = Path(__file__).parents[2]
Fails = Callable[..., str]


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Fails]:
    """Run a command line that must fail with 1 (or `code`) and one line beside the names of the stages; that line.

    Afterwards the output folder must not be there, nor anything temporary beside it.
    """

    def call(*arguments: str | Path, code: int = 1) -> str:
        capsys.readouterr()
        assert run([str(argument) for argument in arguments]) == code
        lines = [line for line in capsys.readouterr().err.splitlines() if not line.endswith(" ...")]
        assert len(lines) == 1, lines
        assert "Traceback" not in lines[0]
        assert "internal error" not in lines[0]
        return lines[0]

    yield call
    assert not (tmp_path / "out").exists()
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return irtool.models.build("VGG", depth=11, width=0.0625).state_dict()


def _compress(tmp_path: Path, *more: str | Path, size: bool = True) -> list[str | Path]:
    return ["compress", MODEL, "--out", tmp_path / "out", *(["--input", "2x3x32x32"] if size else []), *more]


class Malicious:
    """Runs a command when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("name", ["gone.pth", "gone.safetensors"])
def test_missing_weights(name: str, tmp_path: Path, fails: Fails) -> None:
    assert (
        fails(*_compress(tmp_path, "--weights", tmp_path / name))
        == f"{tmp_path / name}: no such file. Give the path of a .pth or .safetensors file."
    )


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors", "empty", "text"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_truncated_weights(form: str, share: float, state: dict[str, torch.Tensor], tmp_path: Path, fails: Fails) -> None:
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_file(state, path)
    elif form in ("zip", "legacy"):
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    whole = {"empty": b"", "text": b"these are no weights " * 9}.get(form) or path.read_bytes() if form != "empty" else b""
    path.write_bytes(whole[: int(len(whole) * share)])
    line = fails(*_compress(tmp_path, "--weights", path))
    assert line.startswith(f"{path}: not a ")
    assert line.endswith("or a truncated one. Copy or save it again.")


def test_weights_of_another_model(state: dict[str, torch.Tensor], tmp_path: Path, fails: Fails) -> None:
    path = tmp_path / "w.pth"
    torch.save({"state_dict": {f"net.{name}" if name == "classifier.weight" else name: tensor for name, tensor in state.items()}}, path)
    line = fails(*_compress(tmp_path, "--weights", path))
    assert "1 weights missing, the first is 'classifier.weight'; 1 unexpected, the first is 'net.classifier.weight'" in line
    torch.save({name: tensor[:1] if name == "classifier.weight" else tensor for name, tensor in state.items()}, path)
    assert "classifier.weight has shape 1x32, the model's has 10x32" in fails(*_compress(tmp_path, "--weights", path))


def test_weights_with_nothing_in_them(tmp_path: Path, fails: Fails) -> None:
    path = tmp_path / "w.pth"
    for content in ({}, [1, 2], {"epoch": 3}, torch.zeros(2)):
        torch.save(content, path)
        assert "holds no state dict. Save the weights alone" in fails(*_compress(tmp_path, "--weights", path))


@pytest.mark.parametrize("form", ["module", "torch", "legacy", "pickle"])
def test_code_in_a_pickle_is_refused_and_not_run(form: str, tmp_path: Path, fails: Fails) -> None:
    path, target = tmp_path / "w.pth", tmp_path / "it_ran"
    if form == "pickle":
        path.write_bytes(pickle.dumps({"weight": Malicious(target)}, protocol=2))
    else:
        content = irtool.models.build("VGG", depth=11, width=0.0625) if form == "module" else {"weight": Malicious(target)}
        torch.save(content, path, _use_new_zipfile_serialization=form != "legacy")
    line = fails(*_compress(tmp_path, "--weights", path))
    assert not target.exists()
    if form == "pickle":
        assert "not a torch checkpoint" in line or "could run code" in line
    else:
        assert "holds pickled objects, which could run code when loaded: refused. Save the weights alone" in line


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--ratio", "1.5"], "ratio 1.5 is not a fraction of channels to remove. Give 0 <= ratio < 1"),
        (["--ratio", "-0.1"], "ratio -0.1 is not a fraction"),
        (["--ratio", "nan"], "ratio nan is not a fraction"),
        (["--ignore", "featurs.0"], "ignore: no layer is called 'featurs.0'. Did you mean features.0"),
        (["--criterion", "magic"], "criterion 'magic' does not exist. Choose one of"),
        (["--min-channels", "0"], "must be at least 1"),
        (["--round-to", "0"], "must be at least 1"),
        (["--opset", "3"], "opset=3. Choose 11 to 26"),
        (["--runs", "0"], "--runs 0 and --threads 1 must be at least 1. Leave them out"),
        (["--input", "3x"], "--input: '3x' is no size. Write it like 1x3x224x224"),
        (["--input", "2x5x32x32"], "Give --input of sizes that the model takes, batch first"),
    ],
)
def test_options_that_can_never_work(options: list[str], expected: str, tmp_path: Path, fails: Fails) -> None:
    assert expected in fails(*_compress(tmp_path, *options, size="--input" not in options))


@pytest.mark.parametrize(
    ("options", "code", "expected"),
    [
        (["--ratio", "half"], 2, "'--ratio': 'half' is not a number."),
        (["--scope", "both"], 2, "'both' is not one of"),
        (["--nonsense"], 2, "No option is called --nonsense."),
    ],
)
def test_a_wrong_command_line_is_one_line_too(options: list[str], code: int, expected: str, tmp_path: Path, fails: Fails) -> None:
    assert expected in fails(*_compress(tmp_path, *options), code=code)


def test_missing_options_and_unknown_commands(tmp_path: Path, fails: Fails) -> None:
    assert "Missing option" in fails("compress", MODEL, code=2)
    assert "No such command 'shrink'" in fails("shrink", code=2)
    assert "the size of the input is not known. Give --input 1x3x32x32, or --data" in fails("compress", MODEL, "--out", tmp_path / "out")
    assert "Missing option" in fails("export", MODEL, code=2)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("ResNet:depth=38", "no built-in model is called 'ResNet'. Built in are PreResNet, VGG."),
        ("PreResNet:depth=37", "PreResNet: cannot be built: PreResNet has no depth 37"),
        ("VGG:deep=11", "VGG: cannot be built: "),
        ("no.such.module:net", "no.such.module: cannot be imported: No module named 'no'"),
        ("torchvision.models:resnet19", "torchvision.models: has no 'resnet19'"),
        ("math:pi", "pi is a float, which cannot be called"),
        ("builtins:dict", "dict: gave a dict, not an nn.Module"),
        ("gone.py:Net", "gone.py: no such file"),
        ("gone.safetensors", "gone.safetensors: no such file"),
        ("runs/gone", "runs/gone: no such file or folder"),
    ],
)
def test_models_that_are_not_there(model: str, expected: str, fails: Fails) -> None:
    assert expected in fails("inspect", model, "--input", "1x3x32x32")


def test_files_that_are_no_models(tmp_path: Path, state: dict[str, torch.Tensor], fails: Fails) -> None:
    weights, plain, folder = tmp_path / "w.pth", tmp_path / "w.safetensors", tmp_path / "folder"
    torch.save(state, weights)
    save_file(state, plain)
    folder.mkdir()
    (tmp_path / "net.py").write_text("def is no python")
    assert "weights alone are no model. Pass them as --weights" in fails("inspect", weights)
    assert f"{plain}: " in fails("inspect", plain)
    assert "holds no model.safetensors. Give the --out folder" in fails("inspect", folder)
    assert "cannot be imported: invalid syntax" in fails("inspect", f"{tmp_path / 'net.py'}:Net")
    assert "the file is empty. Write the file again" in fails("inspect", _empty(tmp_path / "net.onnx"))
    assert "report.json: cannot be read" in fails("verify", folder)
    assert "gone.onnx: no such file" in fails("verify", tmp_path / "gone.onnx", weights)
    assert "lost.mnn: no such file" in fails("verify", weights, tmp_path / "lost.mnn")  # before the other is read
    assert "lost.pth: no such file" in fails("verify", folder, "--weights", tmp_path / "lost.pth")
    assert "lost.py: no such file" in fails("verify", folder, "--model", f"{tmp_path / 'lost.py'}:Net")
    assert "does not exist" in fails("verify", folder, "--engine", "lost")
    assert "cannot compare" in fails("verify", weights)


def _empty(path: Path) -> Path:
    path.write_bytes(b"")
    return path


def test_data_that_cannot_be_used(tmp_path: Path, fails: Fails) -> None:
    empty = tmp_path / "pictures"
    (empty / "train" / "cat").mkdir(parents=True)
    (empty / "test" / "cat").mkdir(parents=True)
    for source, expected in ((tmp_path / "gone", "no such folder, zip or dataset"), (empty, "no "), (_empty(tmp_path / "a.zip"), "zip")):
        line = fails(*_compress(tmp_path, "--data", source, size=False))
        assert line.startswith(str(source))
        assert expected in line
    assert "--mean: cannot read '1,2'. Write three numbers" in fails(*_compress(tmp_path, "--data", "digits", "--mean", "1,2", size=False))
    assert "--limit: 0 images. Give at least 1, or leave it out for all." in fails(
        *_compress(tmp_path, "--data", "digits", "--limit", "0", size=False)
    )


def test_data_of_other_classes(tmp_path: Path, fails: Fails) -> None:
    line = fails("compress", f"{MODEL},num_classes=7", "--data", "digits", "--limit", "20", "--out", tmp_path / "out")
    assert "the output is (20, 7), but the data has 10 classes" in line


def test_output_that_cannot_be_written(tmp_path: Path, fails: Fails) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for out in (file, file / "below", "/proc/irtool/out"):
        line = fails("compress", MODEL, "--input", "2x3x32x32", "--out", out)
        assert line.startswith(f"{out}: ")
        assert line.endswith("Choose another --out, or make room.")
    assert "cannot write here" in fails("export", MODEL, "--input", "2x3x32x32", "--out", file / "net.onnx")
    assert file.read_text() == "mine"


def _interruptible() -> None:
    """Undo what a shell gives to programs that it starts in the background, the suite perhaps: they ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("stage", ["plan", "export to ONNX", "convert for other engines, check folded = ONNX = engines", "time torch"])
def test_ctrl_c_leaves_nothing(stage: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "irtool", *map(str, _compress(tmp_path, "--runs", "100000"))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=_interruptible
    ) as process:
        assert process.stderr is not None
        seen = []
        for line in process.stderr:
            seen.append(line.strip())
            if line.startswith(stage):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
        assert process.wait(900) == 130, seen
    assert rest.splitlines()[-1] == "interrupted: nothing was written."
    assert "Traceback" not in rest
    assert list(tmp_path.iterdir()) == []


def test_termination_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "irtool", *map(str, _compress(tmp_path, "--runs", "100000"))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        next(line for line in process.stderr if line.startswith("export the original"))
        process.terminate()
        assert "Traceback" not in process.stderr.read()
        assert process.wait(900) == 143
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("import sys, time\nprint('importing', file=sys.stderr, flush=True)\ntime.sleep(3600)\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    with subprocess.Popen(
        [sys.executable, "-m", "irtool", "inspect", "net.onnx"],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=_interruptible,
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == "interrupted: nothing was written.\n"
        assert process.wait(900) == 130
