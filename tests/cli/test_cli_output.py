"""Whose an output folder is, what is written over, and what is left when it goes wrong."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from irtool.archive import container
from irtool.atomic_files import locked, replacing
from irtool.cli import train as train_command
from irtool.cli.main import run
from irtool.errors import FileError
from irtool.train.checkpoint import save_checkpoint
from irtool.workflows.folders.output_folder import COMPRESS, QUANTIZE, RECIPE, TRAIN, claimed, makers, output_folder

ROOT = Path(__file__).parents[2]
MODEL = "VGG:depth=11,width=0.0625"
TRAINING = ["--image-size", "16", "--limit", "20", "--epochs", "2", "--batch-size", "10", "--device", "cpu"]
COMPRESSING = ["--input", "2x3x32x32", "--runs", "1"]
RECIPE_TEXT = f'model = "{MODEL}"\ndata = "digits"\nimage_size = 16\nlimit = 20\n[[step]]\ndo = "fold"\n'
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of each command."""
    root = tmp_path_factory.mktemp("runs")
    (root / "r.toml").write_text(RECIPE_TEXT)
    assert run(["train", MODEL, "--data", "digits", *TRAINING, "--out", str(root / "trained")]) == 0
    assert run(["compress", str(root / "trained"), "--runs", "1", "--out", str(root / "small")]) == 0
    assert run(["compress", "--recipe", str(root / "r.toml"), "--out", str(root / "chain")]) == 0
    (root / "int8").mkdir()
    (root / "int8" / "report.json").write_text('{"int8": {}}')
    return root


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def commands(runs: Path, out: Path) -> dict[str, list[str]]:
    return {
        TRAIN: ["train", MODEL, "--data", "digits", *TRAINING, "--out", str(out)],
        "resumed": ["train", MODEL, "--data", "digits", *TRAINING, "--resume", "--out", str(out)],
        COMPRESS: ["compress", MODEL, *COMPRESSING, "--out", str(out)],
        RECIPE: ["compress", "--recipe", str(runs / "r.toml"), "--out", str(out)],
    }


def test_the_maker_is_told_by_its_records(runs: Path) -> None:
    found = [makers(runs / name) for name in ("trained", "small", "chain", "int8", "chain/01-fold")]
    assert found == [{TRAIN}, {COMPRESS}, {RECIPE}, {QUANTIZE}, {RECIPE}]
    assert (runs / "small" / "train.json").exists()  # a copied history makes it no training


@pytest.mark.parametrize(
    ("command", "folder", "owner"),
    [
        (COMPRESS, "trained", TRAIN),
        (COMPRESS, "chain", RECIPE),
        (COMPRESS, "int8", QUANTIZE),
        (TRAIN, "small", COMPRESS),
        ("resumed", "small", COMPRESS),
        (RECIPE, "trained", TRAIN),
    ],
)
def test_a_folder_of_another_command_is_left_alone(command: str, folder: str, owner: str, runs: Path, cli: Cli) -> None:
    before = content(runs / folder)
    code, _, said = cli(*commands(runs, runs / folder)[command])
    assert (code, said) == (1, f"{runs / folder}: holds files of {owner}. Choose another --out.\n")
    assert content(runs / folder) == before


def test_what_only_its_files_tell_is_told_before_they_are_moved(runs: Path) -> None:
    before = content(runs / "small")
    with pytest.raises(FileError, match="holds files of irtool compress"), output_folder(runs / "small") as folder:
        (folder / "report.json").write_text('{"int8": {}}')
    assert content(runs / "small") == before
    with pytest.raises(FileError, match="holds files of irtool compress"), output_folder(runs / "small", QUANTIZE):
        pytest.fail("the work was begun")


def test_a_command_may_replace_what_it_made(runs: Path, tmp_path: Path, cli: Cli) -> None:
    out = shutil.copytree(runs / "small", tmp_path / "small")
    assert cli(*commands(runs, out)[COMPRESS])[0] == 0
    assert json.loads((out / "report.json").read_text())["source"]["model"] == MODEL


NET = "from irtool.models import VGG\n\n\ndef net():\n    return VGG(depth=11, width=0.0625)\n"


@pytest.mark.parametrize(
    "words",
    [
        ["export", "net.py:net", "-i", "2x3x32x32", "--out", "net.py"],
        ["export", "net.py:net", "-i", "2x3x32x32", "--out", "link.py"],
        ["export", "small/model.onnx", "--out", "small/model.onnx"],
        ["export", "small/model.onnx", "--out", "other.mnn", "--out", "small/model.onnx"],
        ["export", MODEL, "-i", "2x3x32x32", "-w", "w.pth", "--out", "w.pth"],
        ["compress", "small", "--out", "small"],
        ["train", "mine/model.safetensors", "--data", "digits", *TRAINING, "--out", "mine"],
        ["report", "small", "--out", "small/report.json"],
        ["compress", "--recipe", "own.toml", "--out", "chain"],
    ],
)
def test_what_is_read_is_not_written_over(words: list[str], runs: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("small", "chain"):
        shutil.copytree(runs / name, tmp_path / name)
    (tmp_path / "mine").mkdir()
    shutil.copy(runs / "small" / "model.safetensors", tmp_path / "mine")
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "link.py").symlink_to("net.py")
    (tmp_path / "w.pth").touch()
    (tmp_path / "own.toml").write_text(RECIPE_TEXT.replace(MODEL, "chain/01-fold"))
    monkeypatch.chdir(tmp_path)
    before = content(tmp_path)
    code, _, said = cli(*words)
    assert code == 1
    assert said.endswith("is read by this very command, and would be written over. Write elsewhere.\n")
    assert {name: data for name, data in content(tmp_path).items() if "__pycache__" not in name} == before


@pytest.mark.parametrize("kind", ["device", "pipe", "folder"])
def test_what_is_no_file_is_not_replaced(kind: str, runs: Path, tmp_path: Path, cli: Cli) -> None:
    target = Path(os.devnull) if kind == "device" else tmp_path / kind
    if kind != "device":
        os.mkfifo(target) if kind == "pipe" else target.mkdir()
    mode = target.stat().st_mode
    code, _, said = cli("report", runs / "small", "--out", target)
    assert (code, said) == (1, f"{target}: is there, and no regular file. Give the path of a file.\n")
    assert target.stat().st_mode == mode


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far" / "file")
    for text in ("one", "two"):  # the first time it points to nothing
        with replacing(tmp_path / "link") as temporary:
            temporary.write_text(text)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "far" / "file").read_text() == text


@pytest.mark.parametrize("command", [TRAIN, COMPRESS, RECIPE])
def test_one_process_at_a_time(command: str, runs: Path, tmp_path: Path, cli: Cli) -> None:
    with claimed(tmp_path / "out"):
        code, _, said = cli(*commands(runs, tmp_path / "out")[command])
        assert (code, said) == (1, f"{tmp_path / 'out'}: another irtool is writing here. Wait for its end, or choose another --out.\n")
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_killed_process_holds_nobody(tmp_path: Path) -> None:
    text = "import os, sys\nfrom irtool.atomic_files import locked\nwith locked(__import__('pathlib').Path(sys.argv[1])):\n    os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", text, str(tmp_path)], cwd=ROOT, check=False)
    assert [path.name for path in tmp_path.iterdir()] == [".irtool.lock"]
    with locked(tmp_path), pytest.raises(FileError, match="another irtool"), locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [TRAIN, RECIPE])
def test_ctrl_c_says_what_is_kept(command: str, runs: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    out, remedy = tmp_path / "out", {TRAIN: "add --resume to go on", RECIPE: "the same command goes on there"}[command]
    with monkeypatch.context() as patch:
        patch.setattr("irtool.cli.train.keep" if command == TRAIN else "irtool.workflows.recipe.run.cost", stop)
        code, _, said = cli(*commands(runs, out)[command])
    assert code == 130
    assert said.splitlines()[-1].startswith(f"{out}: interrupted. ")
    assert remedy in said
    assert cli(*commands(runs, out)["resumed" if command == TRAIN else command])[0] == 0


def test_ctrl_c_before_the_first_epoch_keeps_nothing(runs: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train_command, "train_stage", stop)
    code, _, said = cli(*commands(runs, tmp_path / "new" / "out")[TRAIN])
    assert (code, said.splitlines()[-1]) == (130, "interrupted: nothing was written.")
    assert list(tmp_path.iterdir()) == []


def images(root: Path, shade: int) -> Path:
    for split in ("train", "test"):
        for label in range(2):
            (root / split / str(label)).mkdir(parents=True, exist_ok=True)
            for number in range(10):
                Image.new("RGB", (16, 16), (shade + number, 50 * label, 0)).save(root / split / str(label) / f"{number}.bmp")
    return root


def test_a_training_does_not_go_on_with_other_data(tmp_path: Path, cli: Cli) -> None:
    """Of the same names, sizes and number; where they lie does not count."""
    words = ["train", f"{MODEL},num_classes=2", *TRAINING, "--out", tmp_path / "out"]
    assert cli(*words, "--data", images(tmp_path / "data", 0))[0] == 0
    before = content(tmp_path / "out")
    images(tmp_path / "data", 100)
    code, _, said = cli(*words, "--data", tmp_path / "data", "--resume")
    assert code == 1
    assert "train-data.json: begun with other options: data was '40 files of" in said
    assert "mean was" in cli(*words, "--data", images(tmp_path / "moved", 0), "--resume", "--mean", "0.5,0.5,0.5")[2]
    assert content(tmp_path / "out") == before
    assert cli(*words, "--data", tmp_path / "moved", "--resume")[0] == 0


def test_a_recipe_is_done_anew_with_other_data(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "r.toml").write_text(RECIPE_TEXT.replace(MODEL, f"{MODEL},num_classes=2"))
    words = ["compress", "--recipe", tmp_path / "r.toml", "--out", tmp_path / "out", "--data", tmp_path / "data"]
    done = []
    for shade in (0, 0, 100):
        images(tmp_path / "data", shade)
        code, shown, _ = cli(*words)
        assert code == 0
        done.append(shown.count("done before"))
    assert done == [0, 2, 0]


@contextmanager
def full_disk() -> Iterator[None]:
    """Let no file grow beyond 10 kB: as a full disk, it shows when data is written. Not for a whole test: what runs it may write a log."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("kind", ["checkpoint", "archive"])
def test_a_full_disk_is_told_as_such(kind: str, tmp_path: Path) -> None:
    weights = {"weight": torch.zeros(10_000)}
    text = r"nothing was written \(File too large\). Choose another --out, or make room."
    with pytest.raises(FileError, match=text), full_disk():
        save_checkpoint(tmp_path / "file", weights) if kind == "checkpoint" else container.write(tmp_path / "file", {}, weights)
    assert list(tmp_path.iterdir()) == []


def test_an_archive_has_the_bytes_that_safetensors_would_write(tmp_path: Path) -> None:
    weights = {"b": torch.rand(3), "a": torch.rand(2, 2).half()}
    container.write(tmp_path / "ours", {}, weights)
    save_file(weights, tmp_path / "theirs", metadata={"irtool": '{"version":1}'})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


@pytest.mark.parametrize("command", [COMPRESS, RECIPE])
def test_stdout_that_takes_nothing_costs_no_file(command: str, runs: Path, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    words = [sys.executable, "-m", "irtool", *commands(runs, tmp_path / "out")[command]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, text=True, env=environment, timeout=900, check=False)
    os.close(writing)
    assert done.returncode == 1
    assert "rror" not in done.stderr
    assert makers(tmp_path / "out") == {command}
