"""Folders change as one: whichever operation on a file a process is killed at, who reads then sees all of the old or all of the new."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from audited import Watch
from killed import NEW, OLD, compress, killed_at, large_model, net, outputs, prepare, recipe, trained

import irtool
from irtool import temporary
from irtool.atomic_files import LOCK, locked, replacing
from irtool.cli.main import run as command
from irtool.commit import committed, restore
from irtool.engines import export_onnx
from irtool.errors import FileError
from irtool.temporary import MOVING, new_name, sweep
from irtool.workflows.folders.output_folder import COMPRESS, claimed
from irtool.workflows.loading.models import saved_model

DIGEST = hashlib.sha256(b"precious").hexdigest()
ENDLESS = 1_000_000
MOST = 400
"""Operations of the longest work: a loop without end is no test."""


@pytest.fixture(scope="module")
def watch() -> Iterator[Watch]:
    with Watch(prepare) as made:
        yield made


def each_kill(watch: Watch, work: str, start: Callable[[Path], None], place: Path) -> Iterator[Path]:
    """The folder as each kill leaves it, made anew each time; at last as the finished work does."""
    for number in range(1, MOST):
        folder = place / str(number) / "out"
        folder.parent.mkdir()
        start(folder)
        report = watch.call(killed_at, number, work, str(folder))
        assert report.ended in ("signal SIGKILL", "returned"), report
        yield folder
        if report.ended == "returned":
            assert number > 3  # the hook counts
            return
        shutil.rmtree(folder.parent)
    pytest.fail("the work has no end")


def texts(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def irtools(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".irtool")]


def old(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in {**OLD, "notes.txt": "mine", ".irtool.mine": "mine"}.items():
        (folder / name).write_text(text)


def test_outputs(watch: Watch, tmp_path: Path) -> None:
    """A newer result in place of an older one. What is nobody's result stays; what the older had besides goes."""
    found = []
    for folder in each_kill(watch, "outputs", old, tmp_path):
        restore(folder)
        seen = texts(folder)
        result = {name: text for name, text in seen.items() if not name.startswith(".irtool.") and name != "notes.txt"}
        assert result in (OLD, NEW), result
        found.append(result == NEW)
        assert (seen["notes.txt"], seen[".irtool.mine"]) == ("mine", "mine")
        outputs(folder, NEW)  # the next run
        assert irtools(folder) == [".irtool.mine"]
        assert {name for name in texts(folder) if name != "notes.txt" and name != ".irtool.mine"} == set(NEW)
    assert found == sorted(found)
    assert len(set(found)) == 2


def test_a_folder_that_was_not_there(watch: Watch, tmp_path: Path) -> None:
    for folder in each_kill(watch, "nested", lambda folder: None, tmp_path):
        if folder.exists():
            restore(folder)
            assert {name for name in texts(folder) if not name.startswith(".irtool.")} in (set(), {"a/file", "b/file"})


def test_who_finishes_may_be_killed_too(watch: Watch, tmp_path: Path) -> None:
    """At each operation of a reader, after each kill that left something to be finished."""
    kills = 0
    for folder in each_kill(watch, "outputs", old, tmp_path):
        if not (folder / MOVING).exists():
            continue
        for number in range(1, MOST):
            copy = folder.parent / f"copy-{number}"
            shutil.copytree(folder, copy)
            report = watch.call(killed_at, number, "read", str(copy))
            restore(copy)
            assert {name: text for name, text in texts(copy).items() if name in OLD} == NEW
            kills += 1
            if report.ended == "returned":
                break
    assert kills > 20


def test_one_file(watch: Watch, tmp_path: Path) -> None:
    def start(folder: Path) -> None:
        folder.mkdir()
        (folder / "file.txt").write_text("old")

    for folder in each_kill(watch, "one file", start, tmp_path):
        assert (folder / "file.txt").read_text() in ("old", "new")
        with replacing(folder / "other.txt") as draft:
            draft.write_text("")
        assert irtools(folder) == []


def test_a_training(watch: Watch, tmp_path: Path) -> None:
    """The model and what is told about it belong together."""

    def start(folder: Path) -> None:
        shutil.copytree(tmp_path / "old", folder)

    (tmp_path / "old").mkdir()
    trained(tmp_path / "old", 0)
    results = {}
    for seed in (0, 1):
        results[seed] = net(seed).run(torch.ones(2, 1, 8, 8))[0]
    for folder in each_kill(watch, "training", start, tmp_path):
        file = saved_model(str(folder))
        assert file is not None
        seed = json.loads((folder / "train.json").read_text())["seed"]
        assert torch.equal(irtool.load(file).run(torch.ones(2, 1, 8, 8))[0], results[seed])


def test_a_model_with_its_weights_beside_it(watch: Watch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are two files: none, rather than one with the weights of another."""

    def start(folder: Path) -> None:
        shutil.copytree(tmp_path / "old", folder)
        for seed in (0, 1):
            shutil.copy(tmp_path / f"{seed}.onnx", folder.parent)

    x, results = torch.ones(2, 1, 8, 8), {}
    for seed in (0, 1):
        export_onnx(net(seed), tmp_path / f"{seed}.onnx")
        results[seed] = irtool.load_onnx(tmp_path / f"{seed}.onnx").run(x)[0].numpy()
    monkeypatch.setattr("irtool.hosts.onnx.files.file.INLINE_LIMIT", 100)
    (tmp_path / "old").mkdir()
    large_model(tmp_path / "old", 0)
    assert (tmp_path / "old" / "m.onnx.data").is_file()
    seen = set()
    for folder in each_kill(watch, "large model", start, tmp_path):
        try:
            found = irtool.load_onnx(folder / "m.onnx").run(x)[0].numpy()
        except FileError as error:
            seen.add("none" if "cannot be read" in error.what else str(error))
            continue
        seen.add(next(seed for seed in results if np.allclose(found, results[seed], atol=1e-6)))
    assert seen == {0, 1, "none"}


@pytest.mark.slow
def test_a_compress_run(watch: Watch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run in place of an older one, killed while it makes files and at every third change while they are put in place."""
    made = {"old": tmp_path / "old", "new": tmp_path / "whole" / "out"}
    compress(made["old"], 0.3)
    shutil.copytree(made["old"], made["new"])
    changes = watch.call(killed_at, ENDLESS, "compress", str(made["new"])).value
    same = ("model.safetensors", "model.onnx", "plan.json")  # a report tells times
    results = {name: [(folder / file).read_bytes() for file in same] for name, folder in made.items()}
    found = []
    for number in (2, changes // 4, changes // 2, *range(changes - 26, changes + 1, 3)):
        folder = tmp_path / str(number) / "out"
        shutil.copytree(made["old"], folder)
        assert watch.call(killed_at, number, "compress", str(folder)).ended == "signal SIGKILL"
        assert command(["verify", str(folder)]) == 0, capsys.readouterr().err
        read = [(folder / file).read_bytes() for file in same]
        found.append(next(name for name, result in results.items() if result == read))
        with claimed(folder, COMPRESS):  # as the next run does first
            assert irtools(folder) == [LOCK]
        assert sorted(os.listdir(folder)) == sorted(os.listdir(made["old"]))
    assert len(found) == 12
    assert found == sorted(found, reverse=True)
    assert set(found) == {"old", "new"}


@pytest.mark.slow
def test_a_recipe(watch: Watch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A step that is changed: its folder is the old step's, refused, or the new one's; and the same command always goes on."""
    recipe(tmp_path / "old", "old")
    refusals: set[str] = set()
    for folder in each_kill(watch, "recipe", lambda folder: shutil.copytree(tmp_path / "old", folder) and None, tmp_path):
        for name in ("old", "new"):
            step = folder / f"01-{name}"
            try:
                file = saved_model(str(step)) if step.exists() else None
            except FileError as error:
                refusals.add(error.what)
                continue
            if file is not None:
                irtool.load(file)
                assert json.loads((step / "step.json").read_text())["name"] == name
        recipe(folder, "new")
        assert irtools(folder) == []
        assert json.loads((folder / "recipe.json").read_text())["steps"][1]["name"] == "new"
    assert all("not finished" in what or "holds no model" in what for what in refusals), refusals


def a_name(**parts: str | int) -> str:
    """A name of a temporary file of this process, with other parts."""
    machine, namespace, pid, begun = new_name().split(".")[2].split("-")
    shown = {"machine": machine, "namespace": namespace, "pid": pid, "begun": begun} | parts
    return f".irtool.{shown['machine']}-{shown['namespace']}-{shown['pid']}-{shown['begun']}.0123456789ab"


def dead() -> int:
    """The number of a process that has ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


@pytest.mark.skipif(sys.platform != "linux", reason="when a process began is read in /proc")
def test_what_dead_processes_left_goes_and_all_else_stays(tmp_path: Path) -> None:
    gone = [a_name(pid=dead()), a_name(begun=12345), a_name(pid=dead()) + ".onnx"]
    stays = [a_name(), a_name(pid=1, begun=0), a_name(pid=dead(), machine="0" * 12), a_name(pid=dead(), namespace="0" * 8)]
    stays += [".irtool.mine", ".irtool.abcdefgh", "x" + a_name(pid=dead()), a_name(pid=dead()) + ".a.b"]
    for index, name in enumerate([*gone, *stays]):
        if index % 2 and not name.endswith(".onnx"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "file").touch()
        else:
            (tmp_path / name).touch()
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(stays)


def test_a_link_by_such_a_name_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    (tmp_path / a_name(pid=dead())).symlink_to(tmp_path / "mine")
    sweep(tmp_path)
    assert (tmp_path / "mine" / "file").exists()


def test_two_runs_at_once(tmp_path: Path) -> None:
    """The temporary folder of a process that lives stays, whoever else writes beside it."""
    with locked(tmp_path), committed(tmp_path) as new:
        (new / "a").write_text("a")
        (tmp_path / "b").write_text("b")
        script = "import sys; from irtool.atomic_files import replacing\nwith replacing(sys.argv[1]) as t: t.write_text('c')"
        environment = {**os.environ, "PYTHONPATH": str(Path(irtool.__file__).parents[1])}
        subprocess.run([sys.executable, "-c", script, str(tmp_path / "b")], check=True, env=environment)
        assert (new / "a").exists()
        with pytest.raises(FileError, match="another irtool"), locked(tmp_path):
            pass
    assert texts(tmp_path) == {"a": "a", "b": "c"}


@pytest.mark.parametrize("make", [lambda lock: lock.symlink_to(lock.parents[1] / "far"), os.mkfifo, Path.mkdir])
def test_a_lock_of_a_stranger_makes_no_file_elsewhere(make: Callable[[Path], None], tmp_path: Path) -> None:
    """Through a link a file would be made; a pipe would be waited for."""
    (folder := tmp_path / "out").mkdir()
    make(folder / LOCK)
    (folder / MOVING).touch()
    with pytest.raises(FileError, match=r"its \.irtool\.lock is no file that irtool made\. Remove"):
        restore(folder)
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize(
    "record",
    [
        {"from": "..", "files": ["x"], "stale": {}},
        {"from": "mine", "files": ["x"], "stale": {}},
        {"files": ["../x"]},
        {"files": ["/etc/passwd"]},
        {"files": ["link/x"]},
        {"files": [1]},
        {"files": [".irtool.lock"]},
        {"files": "x"},
        {"stale": {"../precious": DIGEST}},
        {"stale": {"sub/precious": DIGEST}},
        {"stale": {"precious": None}},
        {"stale": ["precious"]},
        {"stale": "precious"},
        {"files": None},
        [],
        "[" * 100_000,
        "",
    ],
)
def test_a_record_of_a_stranger_moves_nothing(record: object, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    staged = folder / a_name(pid=dead())
    for made in (staged, folder / "sub", folder / "mine", tmp_path / "far"):
        made.mkdir(parents=True)
    for path in (tmp_path / "precious", folder / "sub" / "precious", folder / "mine" / "x", staged / "x", folder / "precious"):
        path.write_text(path.name)
    (folder / "link").symlink_to(tmp_path / "far")
    text = record if isinstance(record, str) else json.dumps(record)
    if isinstance(record, dict):
        text = json.dumps({"from": staged.name, "files": [], "stale": {}, **record})
    (folder / MOVING).write_text(text)
    before = texts(tmp_path)
    with pytest.raises(FileError, match=r"its record of files to be moved is damaged\. Remove \.irtool\.moving"):
        restore(folder)
    assert texts(tmp_path) == before


def test_a_record_removes_no_file_that_it_does_not_know(tmp_path: Path) -> None:
    """It tells what the older result held by its bytes: what somebody put there since, or had there before, stays."""
    (staged := tmp_path / a_name(pid=dead())).mkdir()
    for name in ("precious", "other"):
        (tmp_path / name).write_text(name)
    stale = {"precious": DIGEST, "other": DIGEST, "absent": DIGEST}
    (tmp_path / MOVING).write_text(json.dumps({"from": staged.name, "files": [], "stale": stale}))
    restore(tmp_path)
    assert texts(tmp_path) == {"other": "other"}


def test_a_folder_where_a_file_goes_is_told_before_anything_changes(tmp_path: Path) -> None:
    old(tmp_path)
    (tmp_path / "model.mnn").unlink(missing_ok=True)
    (tmp_path / "model.mnn").mkdir()
    before = texts(tmp_path)
    with pytest.raises(FileError, match="directory"):
        outputs(tmp_path, {**NEW, "model.mnn": "new"})
    assert texts(tmp_path) == before


def test_a_process_number_may_be_given_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where nothing tells when a process began, one that lives is taken for the same."""
    monkeypatch.setattr(temporary, "_begun", lambda pid: None)
    for name in (alive := a_name(begun=1), a_name(pid=dead(), begun=1)):
        (tmp_path / name).touch()
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [alive]


def test_what_cannot_be_moved_is_told_and_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record is there, so the next command, or reader, goes on."""
    rename = os.replace

    def refuse(source: Path, target: Path) -> None:
        if Path(target).name != MOVING:
            raise PermissionError(13, "Permission denied")
        rename(source, target)

    old(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(FileError, match="made, but its files cannot be moved"):
            outputs(tmp_path)
        assert (tmp_path / MOVING).exists()
        with pytest.raises(FileError, match="cannot be moved"):
            restore(tmp_path)
    restore(tmp_path)
    assert irtools(tmp_path) == [".irtool.mine"]
    assert (tmp_path / "report.json").read_text() == NEW["report.json"]
