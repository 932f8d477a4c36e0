"""Plans, recipes, reports and zips of images from a stranger, each read in a process of its own that is watched.

Nothing is imported, no file is opened but those given, no process is started but irtool's own, and memory is bounded.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from audited import Report, Watch
from hostile_files import (
    CODE,
    CODE_RECIPE,
    JSON,
    MALFORMED,
    RECIPES,
    SPY,
    UNSOUND,
    ZIPS,
    json_file,
    long_file,
    many_entries,
    pipe,
    report,
    write_json,
)
from image_files import archive, tree
from PIL import Image

import irtool
import irtool.cli.verify  # loaded before files are read: what reading imports is looked at by itself
from irtool.cli.main import run
from irtool.engines.mnn.session import mnn_module
from irtool.pruning import Plan
from irtool.train import load_data
from irtool.train.data.image_files import MOST_ENTRIES
from irtool.workflows.folders.record import read_record
from irtool.workflows.folders.recorded import Recorded
from irtool.workflows.folders.run_folder import page_of
from irtool.workflows.recipe.parse import read_recipe

OWN = (
    *(
        os.path.realpath(place)
        for place in (sys.prefix, sys.base_prefix, *irtool.__path__, *irtool.models.__path__, *irtool.passes.__path__)
    ),
    "/proc/",
    "/sys/",
    "/usr/lib/os-release",
    os.path.expanduser("~/.cache/Microsoft/DeveloperTools/.onnxruntime"),  # onnxruntime's own
)
"""Places where Python and irtool lie, and what `platform` reads."""
MEMORY = 2 << 30
RESIDENT = 1 << 30
COMMAND = tuple(
    re.compile(pattern)
    for pattern in (
        r"marshal\.loads \(b.*",  # with what is imported, which is looked at by itself
        r"os\.listdir \('[^']*/site-packages/onnxruntime(/capi)?',\)",
        r"ctypes\.dlopen \(None,\)",  # flushing what MNN prints
        r"ctypes\.dlsym \(<CDLL 'None'.*, 'fflush'\)",
        r"os\.chdir .*",  # `command` itself
    )
)
"""Calls of the operating system that a command makes, whatever it reads."""
STARTED = re.compile(r"(subprocess\.Popen|os\.posix_spawn|os\.fork) .*")
"""Only the one that first runs a model, and the one that first loads an MNN file; `test_no_other_process` sees which."""


def plan(path: str) -> None:
    Plan.from_json(path)


def recipe(path: str) -> None:
    read_recipe(Path(path))


def record(path: str) -> None:
    Recorded.of(read_record(Path(path)), Path(path))


def page(folder: str) -> int:
    return len(page_of(Path(folder)))


def images(path: str) -> int:
    data = load_data(path, image_size=8)
    return int(sum(len(batch) for split in (data.train, data.test) for batch in split.batches([torch.arange(len(split.labels))])))


def command(arguments: list[str], folder: str) -> list[Any]:
    """A command line, as from a shell that stands in a folder: its exit code, and all it printed."""
    os.chdir(folder)
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = run(arguments)
    return [code, said.getvalue()]


def prepare(scratch: str, made: str) -> None:
    """First uses, whose lazy imports are nobody's fault."""
    torch.set_num_threads(1)
    tempfile.tempdir = scratch
    graph = irtool.trace(torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU()), torch.zeros(1, 1, 8, 8))
    irtool.plan(graph, "l1", 0.5).to_json(Path(scratch) / "plan.json")
    plan(str(Path(scratch) / "plan.json"))
    Image.init()  # its readers, which are asked where none of the usual ones fits
    images(str(archive(Path(scratch) / "a.zip", tree())))
    assert run(["report", made, "--out", f"{scratch}/a.html"]) == 0
    irtool.load_onnx(f"{made}/model.onnx")
    mnn_module()  # imported, not run: its threads do not survive a fork
    (Path(scratch) / "r.toml").write_text('model = "VGG:depth=11"\ndata = "digits"\n[[step]]\ndo = "fold"\n')
    recipe(str(Path(scratch) / "r.toml"))
    import torchvision.models  # noqa: F401


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run."""
    folder = tmp_path_factory.mktemp("made") / "run"
    assert run(["compress", "VGG:depth=11,width=0.0625", "-i", "2x3x32x32", "--runs", "1", "--ratio", "0.3", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def watch(scratch: Path, made: Path) -> Iterator[Watch]:
    with Watch(prepare, str(scratch), str(made)) as started:
        yield started


def expected(function: Callable[..., Any], scratch: Path) -> tuple[re.Pattern[str], ...]:
    """Calls of the operating system made whatever a file holds: readers ask nothing, commands have temporary folders."""
    changes = r"(tempfile\.mkdtemp|os\.mkdir|os\.rmdir|shutil\.rmtree|os\.scandir)"
    below = r"os\.(remove|unlink|rmdir|scandir) \(('[^/']*', )?\d+,?\)"  # by the descriptor of a folder that is removed
    own = (re.compile(rf"{changes} \('{re.escape(str(scratch))}/.*"), re.compile(below))
    return (*COMMAND, STARTED, *own) if function is command else ()


def contents(folder: Path) -> dict[str, int]:
    return {str(path): zlib.crc32(path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def read(watch: Watch, scratch: Path, function: Callable[..., Any], *arguments: Any, place: Path) -> Report:
    """The outcome of a call, of which nothing is seen outside of a folder, and which changes nothing there."""
    before = contents(place) if function is command else {}
    found = watch.call(function, *arguments, allowed=[str(place), str(scratch), os.devnull], memory=MEMORY)
    assert found.ended in ("raised", "returned"), found
    assert {name.partition(".")[0] for name in found.modules} <= ({"onnxruntime"} if function is command else set()), found
    assert not [path for path in found.opened if not path.startswith(OWN)], found
    assert not [event for event in found.events if not any(pattern.match(event) for pattern in expected(function, scratch))], found
    assert found.memory < RESIDENT, found
    assert function is not command or contents(place) == before
    return found


def refused(found: Report) -> str:
    """The one line, which ends with a remedy."""
    assert found.ended == "raised", found
    kind, _, text = found.error.partition(": ")
    assert kind.endswith("Error"), found
    assert kind in ("FileError", "PlanError", "RecipeError", "OptionError", "DataError", "GraphError"), found
    assert len(text.splitlines()) == 1
    return text


@pytest.mark.parametrize("name", JSON)
@pytest.mark.parametrize("reader", [plan, record])
def test_json(reader: Callable[[str], None], name: str, watch: Watch, scratch: Path, tmp_path: Path) -> None:
    assert refused(read(watch, scratch, reader, str(json_file(name, tmp_path / "report.json")), place=tmp_path))


@pytest.mark.parametrize("reader", [plan, record, recipe])
@pytest.mark.parametrize("make", [long_file, pipe])
def test_what_is_no_text(make: Callable[[Path], Path], reader: Callable[[str], None], watch: Watch, scratch: Path, tmp_path: Path) -> None:
    assert refused(read(watch, scratch, reader, str(make(tmp_path / "report.json")), place=tmp_path))


@pytest.mark.parametrize("name", RECIPES)
def test_recipes(name: str, watch: Watch, scratch: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(RECIPES[name])
    assert refused(read(watch, scratch, recipe, str(path), place=tmp_path))


def test_a_recipe_is_read_without_running_what_it_names(watch: Watch, scratch: Path, tmp_path: Path) -> None:
    (tmp_path / "spy.py").write_text(SPY)
    path = tmp_path / "r.toml"
    path.write_text(CODE_RECIPE.format(place=tmp_path / "spy.py"))
    found = read(watch, scratch, recipe, str(path), place=tmp_path)
    assert found.ended == "returned", found
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("file", ["report.json", "plan.json", "graphs.json", "sensitivity.json", "history.json"])
@pytest.mark.parametrize("name", JSON)
def test_pages(name: str, file: str, watch: Watch, scratch: Path, made: Path, tmp_path: Path) -> None:
    """A text that says little may be shown; what cannot be read is told."""
    folder = tmp_path / "run"
    shutil.copytree(made, folder)
    json_file(name, folder / file)
    found = read(watch, scratch, page, str(folder), place=folder)
    if found.ended == "raised":
        refused(found)
    else:
        assert name in ("not a number", "half a surrogate"), found


@pytest.mark.parametrize("name", MALFORMED)
def test_reports_of_other_kinds(name: str, watch: Watch, scratch: Path, tmp_path: Path) -> None:
    path = write_json(tmp_path / "report.json", MALFORMED[name])
    assert "malformed: its" in refused(read(watch, scratch, record, str(path), place=tmp_path))


@pytest.mark.parametrize("model", CODE)
def test_a_report_runs_no_code(model: str, watch: Watch, scratch: Path, made: Path, tmp_path: Path) -> None:
    """Whoever opens a stranger's folder has named no code."""
    folder = tmp_path / "run"
    shutil.copytree(made, folder)
    for name in ("spy.py", "torchvision.py", "MNN.py", "onnxruntime.py"):
        (folder / name).write_text(SPY)
    write_json(folder / "report.json", report(source__model=model.format(folder=folder)))
    found = read(watch, scratch, command, ["verify", str(folder)], str(folder), place=folder)
    code, said = found.value
    assert code == 0, said
    assert "masked = sliced is left out" in said
    assert "irtool runs none that a file names" in " ".join(said.split())
    assert not (folder / "ran").exists()
    assert not [event for event in found.events if "touch" in event]


@pytest.mark.parametrize("model", UNSOUND)
def test_a_report_names_no_model_that_is_no_model(model: str, watch: Watch, scratch: Path, made: Path, tmp_path: Path) -> None:
    """One that fits no memory, would be downloaded, or cannot be read as a name: it is left out, in a sentence."""
    folder = tmp_path / "run"
    shutil.copytree(made, folder)
    write_json(folder / "report.json", report(source__model=model))
    code, said = read(watch, scratch, command, ["verify", str(folder)], str(scratch), place=folder).value
    assert code == 0, said
    assert "masked = sliced is left out" in said
    assert "weights are not those" not in said  # it was not built


def test_no_other_process(watch: Watch, scratch: Path, made: Path) -> None:
    """Check that what is started is this Python with a file of irtool's own."""
    found = read(watch, scratch, command, ["verify", str(made)], str(scratch), place=made)
    assert found.value[0] == 0
    started = [event for event in found.events if event.startswith("subprocess.Popen")]
    assert started
    own = [str(Path(irtool.__file__).parent / file) for file in ("engines/mnn/child.py", "hosts/onnx/trial.py")]
    assert all(any(file in event for file in own) for event in started), started


def test_a_named_model_is_run(tmp_path: Path, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\nfrom irtool.models import VGG\ndef make():\n    torch.manual_seed(99)\n    return VGG(11, width=0.0625)\n"
    )
    assert run(["verify", str(made), "--model", f"{tmp_path / 'net.py'}:make"]) == 1
    assert "its weights are not those that were compressed" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["model.safetensors", "model.onnx", "model.mnn"])
def test_damaged_models(name: str, watch: Watch, scratch: Path, made: Path, tmp_path: Path) -> None:
    """Bytes in the middle, many times: no crash."""
    generator = torch.Generator().manual_seed(0)
    content = (made / name).read_bytes()
    for number in range(5):
        folder = tmp_path / str(number)
        shutil.copytree(made, folder)
        damaged = bytearray(content)
        for place in torch.randint(len(content) // 50 if number % 2 else len(content), (20,), generator=generator).tolist():
            damaged[place] ^= 0xFF
        (folder / name).write_bytes(damaged)
        found = read(watch, scratch, command, ["verify", str(folder)], str(scratch), place=folder)
        assert "Traceback" not in found.value[1], found


@pytest.mark.parametrize("name", ZIPS)
def test_zips(name: str, watch: Watch, scratch: Path, tmp_path: Path) -> None:
    assert refused(read(watch, scratch, images, str(ZIPS[name](tmp_path / "a.zip")), place=tmp_path))


def test_a_zip_of_many_entries(watch: Watch, scratch: Path, tmp_path: Path) -> None:
    """50,000 files of no interest beside the pictures."""
    path = archive(tmp_path / "a.zip", tree() | {f"notes/{number}.txt": b"" for number in range(50_000)})
    found = read(watch, scratch, images, str(path), place=tmp_path)
    assert (found.ended, found.value) == ("returned", 20), found


@pytest.mark.parametrize("entries", [MOST_ENTRIES + 1, 10**7])
def test_a_zip_of_too_many_entries(entries: int, watch: Watch, scratch: Path, tmp_path: Path) -> None:
    """Each would be an object in memory: they are counted, or the length of their list is seen, before."""
    path = many_entries(tmp_path / "a.zip", entries)
    found = read(watch, scratch, images, str(path), place=tmp_path)
    assert f"a zip of more than {MOST_ENTRIES:,} files" in refused(found)


def test_the_reports_here_are_as_compress_writes_them(made: Path) -> None:
    real, ours = json.loads((made / "report.json").read_text()), report()
    for name in ("source", "options", "files"):
        assert ours[name].keys() <= real[name].keys()
