"""Recipes: every mistake with its line before anything runs, every result kept, nothing done twice."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import irtool
from irtool.cli.main import run
from irtool.engines import OnnxSession
from irtool.engines.engine import Engine
from irtool.errors import ExportError
from irtool.train import evaluate, load_data
from irtool.workflows.recipe import kinds as recipe_steps
from irtool.workflows.recipe.parse import RecipeError, places, read_recipe

GOOD = """\
model = "VGG:depth=11,width=0.125"
data = "digits"
image_size = 16
limit = 100
seed = 1

[settings]
batch_size = 25
device = "cpu"

[[step]]
do = "sparse"
epochs = 2
strength = 1e-3

[[step]]
do = "prune"
ratio = 0.5
criterion = "bn_scale"

[[step]]
do = "distill"
teacher = "sparse"
epochs = 1

[[step]]
do = "fold"

[[step]]
do = "export"

[[step]]
do = "verify"
"""


def mistakes(tmp_path: Path, text: str) -> dict[int, str]:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        read_recipe(path)
    return {mistake.line: mistake.text for mistake in caught.value.mistakes}


WRONG = """\
model = "VGG:depth=12"
weights = "nothing.pth"  #? no such file: nothing.pth
colour = "red"  #? colour is unknown here: known are model, weights, data

[settings]
epochs = 0  #? Give a whole number of at least 1

[[step]]
do = "prun"  #? no step is called 'prun': choose one of train

[[step]]
do = "prune"
ratio = "half"  #? must be a number
criterion = "l3"  #? Choose one of bn_scale
constants = "keep"  #? Choose absorb or drop

[[step]]
do = "prune"  #? the name 'prune' is taken

[[step]]
do = "distill"
teacher = "nobody"  #? give a step's name, or original
alpha = 2.0  #? alpha from 0 to 1

[[step]]
do = "recalibrate"
images = 1  #? Give at least two images
crop = -1  #? Give a number of pixels

[[step]]
do = "fold"

[[step]]
do = "sparse"  #? sparse after fold
strength = -1  #? Give a number from 0

[[step]]
do = "verify"  #? verify needs a step export before it

[[step]]  #? reduce_width needs ratio
do = "reduce_width"
seed = true  #? must be a whole number

[[step]]
do = "quantize"
method = "best"  #? Choose one of minmax
max_drop = -1  #? 0 or more points
threads = 0.5  #? must be a whole number

[[step]]
do = "quantize"
name = "mnn"
activations = "uint8"  #? MNN has int8 only: leave activations out
engine = "mnn"
"""
"""Recipes with mistakes: what is told of a line stands behind #?. The first line has two mistakes of its own: no VGG is that deep, and there are no data."""


def test_all_mistakes_at_once_each_with_its_line(tmp_path: Path) -> None:
    found = mistakes(tmp_path, WRONG)
    expected = {number: line.split("#? ")[1] for number, line in enumerate(WRONG.splitlines(), 1) if "#? " in line}
    for line, part in expected.items():
        assert part in found[line], f"line {line}: {found[line]}"
    assert set(found) - set(expected) == {1}
    with pytest.raises(RecipeError, match=r"no data: write data.*depth 12|depth 12.*no data: write data"):
        read_recipe(tmp_path / "recipe.toml")


def test_settings_go_to_every_step_that_has_such_an_option(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("""
model = "VGG:depth=11"
data = "digits"

[settings]
crop = 0
epochs = 3

[[step]]
do = "train"
epochs = 1

[[step]]
do = "recalibrate"

[[step]]
do = "fold"
""")
    assert [step.options for step in read_recipe(tmp_path / "r.toml").steps] == [{"crop": 0, "epochs": 1}, {"crop": 0}, {}]


def test_the_command_tells_each_mistake_on_its_own_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.toml").write_text(GOOD.replace('"fold"', '"flod"').replace("strength = 1e-3", "strength = 7"))
    assert run(["compress", "--recipe", str(tmp_path / "r.toml"), "--out", str(tmp_path / "out")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[0].rsplit(" ", 1)[1] for line in lines[:2]] == ["14", "27"]
    assert lines[2].endswith("2 mistakes; nothing was run. Correct the lines above.")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "line", "part"),
    [
        ("model = \n", 1, "not TOML"),
        ('model = "VGG:depth=11"\ndata = "digits"\nstep = 3\n', 3, "write [[step]]"),
        ('model = "VGG:depth=11"\ndata = "digits"\n', 1, "write [[step]]"),
        ('model = "VGG:depth=11"\ndata = "digits"\n[[step]]\n', 3, "a step needs do"),
        ('model = "VGG:depth=11"\ndata = "digits"\n[[step]]\ndo = "fold"\nname = "../x"\n', 5, "use letters"),
        (f'model = "VGG:depth=11"\ndata = "digits"\n[[step]]\ndo = "fold"\nname = "{"x" * 300}"\n', 5, "50 at most"),
        ('model = "VGG:depth=11"\ndata = "digits"\nsettings = 1\n[[step]]\ndo = "fold"\n', 3, "must be a table"),
    ],
)
def test_forms_that_are_no_recipe(text: str, line: int, part: str, tmp_path: Path) -> None:
    assert part in mistakes(tmp_path, text)[line]


def test_places_of_keys() -> None:
    found = places('a = 1\n[settings]  # here\n"b" = [\n  1,\n]\n[[step]]\nc = 1\n[[step]]\n\nc = 2\n')
    assert found[("", 0, "a")] == 1
    assert found[("settings", 0, "b")] == 3
    assert (found[("step", 0, "c")], found[("step", 1, "c")], found[("step", 1, "")]) == (7, 10, 8)


def command(path: Path, out: Path) -> list[str]:
    return ["compress", "--recipe", str(path), "--out", str(out)]


def test_a_recipe_from_training_to_mnn_goes_on_where_it_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = tmp_path / "r.toml", tmp_path / "out"
    path.write_text(GOOD)

    def fail(*_: object, **options: object) -> None:
        raise irtool.errors.ExportError("the disk is full", remedy="Make room.")

    with monkeypatch.context() as patch:
        patch.setattr(recipe_steps, "export_onnx", fail)
        assert run(command(path, out)) == 1
    assert "Make room" in capsys.readouterr().err
    made = {step: (out / step / "model.safetensors").stat().st_mtime_ns for step in ("01-sparse", "02-prune", "03-distill", "04-fold")}

    assert run(command(path, out)) == 0
    shown = capsys.readouterr().out
    assert all(f"{name}: done before" in shown for name in ("sparse", "prune", "distill", "fold"))
    assert "export: done before" not in shown
    assert {step: (out / step / "model.safetensors").stat().st_mtime_ns for step in made} == made
    summary = json.loads((out / "recipe.json").read_text())["steps"]
    assert [step["name"] for step in summary] == ["original", "sparse", "prune", "distill", "fold", "export", "verify"]
    # The figure comes from the files: onnxruntime on the exported model, on the same images.
    data = load_data("digits", image_size=16, limit=100, channels=3)
    score = evaluate(OnnxSession(out / "05-export" / "model.onnx").run, data)
    assert f"onnxruntime: {100 * score.accuracy:.2f} % of 100 test images" in summary[-1]["notes"]
    assert summary[2]["params"] < summary[1]["params"]


INT8 = """
[[step]]
do = "quantize"
images = 32
runs = 2
max_drop = 60
sensitivity = false
"""
KILLED = """
import importlib, os, signal, sys
from irtool.cli.main import run

module, name, times = importlib.import_module(sys.argv[1]), sys.argv[2], int(sys.argv[3])
work, calls = getattr(module, name), []

def work_or_die(*args, **options):
    calls.append(1)
    if len(calls) == times:
        os.kill(os.getpid(), signal.SIGKILL)
    return work(*args, **options)

setattr(module, name, work_or_die)
run(sys.argv[4:])
"""


def made(out: Path) -> dict[str, bytes]:
    """The files that a recipe makes; MNN's converter writes a random number into each of its own."""
    kinds = ("model.safetensors", "plan.json", "*.onnx", "*.mnn", "steps.txt")
    uuid = re.compile(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
    return {str(path.relative_to(out)): uuid.sub(b"", path.read_bytes(), 1) for kind in kinds for path in out.rglob(kind)}


def test_killed_in_the_middle_of_steps_it_ends_in_the_same_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, whole, killed = tmp_path / "r.toml", tmp_path / "whole", tmp_path / "killed"
    path.write_text(GOOD[: GOOD.index('[[step]]\ndo = "verify"')] + INT8 + 'name = "int8"\n' + INT8 + 'engine = "mnn"\n')
    # In the second epoch, before its checkpoint; and with the int8 file written, before it is timed.
    for module, name, times in (("irtool.train.fit", "save_checkpoint", 2), ("irtool.workflows.quantize.forms", "latency_pairs", 1)):
        call = [sys.executable, "-c", KILLED, module, name, str(times), *command(path, killed)]
        assert subprocess.run(call, capture_output=True, timeout=900).returncode == -signal.SIGKILL
    assert not json.loads((killed / "06-int8" / "step.json").read_text())["done"]
    assert run(command(path, killed)) == 0
    shown = capsys.readouterr().out
    assert [f"{name}: done before" in shown for name in ("sparse", "export", "int8")] == [True, True, False]
    assert run(command(path, whole)) == 0
    assert made(killed) == made(whole)
    assert {"06-int8/int8.onnx", "07-quantize/int8.mnn", "07-quantize/model.safetensors"} <= set(made(whole))


def test_int8_of_a_recipe_is_guarded_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = tmp_path / "r.toml", tmp_path / "out"
    path.write_text(GOOD[: GOOD.index("[settings]")] + INT8.replace("60", "1"))
    with monkeypatch.context() as patch:
        patch.setattr("irtool.workflows.quantize.judge.Judge.expected_drop", lambda self, path: 0.8)
        patch.setattr("irtool.workflows.quantize.trials.Trials._sensitivities", lambda self: [])
        assert run(command(path, out)) == 1
    assert "int8 is expected to lose 80.00 points" in (said := capsys.readouterr().err)
    assert "a larger --max-drop (max_drop in a recipe)" in said
    assert run(command(path, out)) == 0
    said = capsys.readouterr().out
    state, report = (json.loads((out / "01-quantize" / name).read_text()) for name in ("step.json", "report.json"))
    assert state["accuracy"] == report["int8"]["accuracy"]
    assert report["steps"][0] == {"kind": "quantise", "tensor": "input", "between": "input -> Conv", "why": "the model's input is float"}
    assert f"quantise   input: {report['steps'][0]['between']}: the model's input is float" in said
    assert f"{report['int8']['bytes']:,} bytes" in said
    ratio = report["latency_ratio"]
    assert ("SLOWER" in said) == (ratio is not None and ratio > 1.05)
    assert ("not measurable now" in said) == (ratio is None)


def test_a_changed_option_makes_its_step_and_what_follows_invalid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "r.toml", tmp_path / "out"
    head = GOOD[: GOOD.index("[settings]")]
    steps = '[[step]]\ndo = "reduce_width"\nratio = 0.5\n[[step]]\ndo = "prune"\nratio = {ratio}\n[[step]]\ndo = "fold"\n'
    params = []
    for ratio in (0.5, 0.3):
        path.write_text(head + steps.format(ratio=ratio))
        assert run(command(path, out)) == 0
        params.append(json.loads((out / "recipe.json").read_text())["steps"][2]["params"])
    assert params[1] > params[0]
    shown = capsys.readouterr().out
    assert [f"{name}: done before" in shown for name in ("original", "reduce_width", "prune", "fold")] == [True, True, False, False]
    assert run(command(path, out)) == 0
    assert capsys.readouterr().out.count("done before") == 4


def test_other_steps(tmp_path: Path) -> None:
    """Narrow, train, recover, recalibrate: from the head of the good recipe."""
    head = GOOD[: GOOD.index("[[step]]")]
    steps = """
[[step]]
do = "reduce_width"
ratio = 0.5

[[step]]
do = "train"
epochs = 1

[[step]]
do = "recover"
ratio = 0.3
seconds = 0
calibrate = 20
held_back = 20
teacher = "train"

[[step]]
do = "recalibrate"
images = 50
augment = false

[[step]]
do = "finetune"
epochs = 1
"""
    (tmp_path / "r.toml").write_text(head + steps)
    assert run(command(tmp_path / "r.toml", tmp_path / "out")) == 0
    states = json.loads((tmp_path / "out" / "recipe.json").read_text())["steps"]
    assert states[1]["params"] < states[0]["params"] / 3
    assert [note.split(":")[0] for note in states[3]["notes"]] == ["drop", "absorb", "recalibrate", "recalibrate, augmented"]
    assert states[5]["history"]["facts"]["stage"] == "finetune"
    assert states[5]["history"]["facts"]["batch_size"] == 25
    assert states[5]["history"]["facts"]["seed"] == 1


def test_an_engine_that_refuses_the_model_is_left_out_of_export_and_verify(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `compress` has it: the files of the other engines are right, and stay."""
    path, written = tmp_path / "r.toml", Engine.written

    def refusing(self: Engine, onnx: Path, folder: Path | None = None, *, verify: bool = True) -> Path:
        if self.name == "mnn":
            raise ExportError("there is no such layer", where=str(onnx), remedy="Use another.")
        return written(self, onnx, folder, verify=verify)

    monkeypatch.setattr(Engine, "written", refusing)
    path.write_text(GOOD[: GOOD.index("[settings]")] + '[[step]]\ndo = "export"\n[[step]]\ndo = "verify"\n')
    assert run(command(path, tmp_path / "out")) == 0
    said = capsys.readouterr().out
    assert "export: no MNN file: there is no such layer" in said
    assert "verify: folded = ONNX" in said
    assert "ONNX = MNN" not in said
    assert not (tmp_path / "out" / "01-export" / "model.mnn").exists()
