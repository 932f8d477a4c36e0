"""Runs that are killed, resumed, stopped by NaN, or shared by two processes."""

from __future__ import annotations

import csv
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from training import QUICK, RESUMABLE, net, same

from irtool.errors import OptionError, TrainError
from irtool.train import Data, Record, Settings, distill, evaluate, fit, load_data, sparse
from irtool.train.checkpoint import load_checkpoint, load_weights
from irtool.train.data.split import MemorySplit

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data("digits", image_size=12, limit=320)


def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(digits: Data, tmp_path: Path) -> None:
    def explode(logits: Tensor, batch: object) -> Tensor:
        explode.calls += 1  # type: ignore[attr-defined]
        return logits.sum() * (math.nan if explode.calls > 14 else 1e-3)  # type: ignore[attr-defined]

    explode.calls = 0  # type: ignore[attr-defined]
    with pytest.raises(
        TrainError, match=r"no longer finite by step 10 of epoch 2. Lower lr \(now 0.05\).*clip=1.*weights after epoch 1 are in"
    ):
        fit(net(), digits, QUICK, loss=explode, out=tmp_path)
    kept = load_checkpoint(tmp_path / "last.pt")
    assert len(kept["history"]["records"]) == 1
    assert all(torch.isfinite(tensor).all() for tensor in kept["model"].values())


KILLED = """
import os, signal, sys
import torch
torch.set_num_threads(int(sys.argv[2]))
sys.path.insert(0, sys.argv[3])
from training import RESUMABLE, net
from irtool.train import load_data, sparse

def strength(position):
    if position > 0.5:  # the middle of the second of three epochs
        os.kill(os.getpid(), signal.SIGKILL)
    return 1e-3

sparse(net(dropout=0.3), load_data("digits", image_size=12, limit=320), strength=strength, out=sys.argv[1], **RESUMABLE)
"""


def test_killed_in_mid_epoch_and_resumed_is_bit_equal_to_uninterrupted(digits: Data, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    arguments = [str(tmp_path / "killed"), str(torch.get_num_threads()), str(Path(__file__).parents[1])]
    child = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments], env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert len(load_checkpoint(tmp_path / "killed" / "last.pt")["history"]["records"]) == 1
    resumed, whole = net(seed=5, dropout=0.3), net(dropout=0.3)  # the fresh weights are replaced by the checkpoint's
    a = sparse(resumed, digits, strength=lambda position: 1e-3, out=tmp_path / "killed", resume=True, **RESUMABLE)
    b = sparse(whole, digits, strength=lambda position: 1e-3, out=tmp_path / "whole", **RESUMABLE)
    assert same(resumed.state_dict(), whole.state_dict())
    assert [record.train_loss for record in a.records] == [record.train_loss for record in b.records]
    left, right = (load_checkpoint(tmp_path / name / "last.pt") for name in ("killed", "whole"))
    assert same(left["model"], right["model"])
    assert same(left["ema"], right["ema"])
    rows = list(csv.DictReader((tmp_path / "killed" / "log.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[-1]["small_scales"]) == a.last.extra["small_scales"]


def test_a_finished_run_resumes_to_itself(digits: Data, tmp_path: Path) -> None:
    first, second = net(), net(seed=3)
    a = fit(first, digits, QUICK, out=tmp_path)
    b = fit(second, digits, QUICK, out=tmp_path, resume=True)
    assert a == b
    assert same(first.state_dict(), second.state_dict())


def test_what_cannot_be_resumed(digits: Data, tmp_path: Path) -> None:
    fit(net(), digits, QUICK, out=tmp_path)
    with pytest.raises(TrainError, match=r"last.pt: begun with other options: lr was 0.05, now 0.01.*Resume with the old options"):
        fit(net(), digits, QUICK, out=tmp_path, resume=True, lr=0.01)
    other = net()
    other[0] = nn.Conv2d(1, 8, 5, padding=2, bias=False)
    with pytest.raises(TrainError, match=r"do not fit this model. Resume with the model it was begun with"):
        fit(other, digits, QUICK, out=tmp_path, resume=True)
    path = tmp_path / "last.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(TrainError, match=r"cannot be resumed from .*Remove the file to start anew"):
        fit(net(), digits, QUICK, out=tmp_path, resume=True)
    torch.save({"model": {}}, path)
    with pytest.raises(TrainError, match="not a training checkpoint"):
        fit(net(), digits, QUICK, out=tmp_path, resume=True)
    with pytest.raises(OptionError, match="Give out=FOLDER too"):
        Settings(resume=True)


def _without(part: str, name: object, value: object = None) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        inner = state
        for step in part.split("/"):
            inner = inner[int(step) if step.isdigit() else step]
        inner.pop(name) if value is None else inner.update({name: value})

    return change


NOT_OURS, OTHER = r"last.pt: not a training checkpoint of this version. Remove the file", r"do not fit this model. .*remove the file"
TAMPERED = {
    "no facts": (_without("history", "facts"), NOT_OURS),
    "listed facts": (_without("history", "facts", [1]), NOT_OURS),
    "a fact that is a tensor": (_without("history/facts", "lr", torch.zeros(3)), NOT_OURS),
    "no records": (_without("history", "records", 5), NOT_OURS),
    "a lacking field": (_without("history/records/0", "lr"), NOT_OURS),
    "another epoch": (_without("history/records/0", "epoch", 2), NOT_OURS),
    "a text for a number": (_without("history/records/0", "test_accuracy", "high"), NOT_OURS),
    "another model": (lambda state: state.update(model=[1]), NOT_OURS),
    "a name that is none": (_without("model", 5, 5), OTHER),
    "no averages": (lambda state: state.update(ema=None), OTHER),
    "a lacking average": (_without("ema", "0.weight"), OTHER),
    "an average's shape": (_without("ema", "0.weight", torch.zeros(2)), OTHER),
    "a momentum's shape": (_without("optimizer/state/0", "momentum_buffer", torch.zeros(3)), OTHER),
    "a momentum's kind": (_without("optimizer/state/0", "momentum_buffer", "fast"), OTHER),
    "no momenta": (_without("optimizer", "state"), OTHER),
    "listed momenta": (_without("optimizer", "state", [1]), OTHER),
    "no groups": (_without("optimizer", "param_groups"), OTHER),
}


@pytest.fixture(scope="module")
def begun(digits: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("begun")
    fit(net(), digits, QUICK, ema=0.9, out=folder)
    return folder / "last.pt"


@pytest.mark.parametrize("kind", TAMPERED)
def test_a_tampered_checkpoint_is_refused(digits: Data, begun: Path, tmp_path: Path, kind: str) -> None:
    change, message = TAMPERED[kind]
    state = load_checkpoint(begun)
    change(state)
    torch.save(state, tmp_path / "last.pt")
    with pytest.raises(TrainError, match=message):
        fit(net(), digits, QUICK, ema=0.9, out=tmp_path, resume=True)


@pytest.mark.parametrize("what", ["labels", "mean"])
def test_a_run_goes_on_with_the_data_that_it_was_begun_with(digits: Data, begun: Path, tmp_path: Path, what: str) -> None:
    (tmp_path / "last.pt").write_bytes(begun.read_bytes())
    train, pre = digits.train, digits.preprocessing
    labels = train.labels.roll(1) if what == "labels" else train.labels
    pre = pre if what == "labels" else replace(pre, mean=tuple(value + 0.1 for value in pre.mean))
    images = next(iter(train.batches([torch.arange(len(train))])))
    other = Data(digits.name, MemorySplit(images, labels, train.classes, pre), digits.test, digits.flip)
    with pytest.raises(TrainError, match=f"begun with other options: {what} was"):
        fit(net(), other, QUICK, ema=0.9, out=tmp_path, resume=True)
    same_again = Data(digits.name, MemorySplit(images, train.labels, train.classes, digits.preprocessing), digits.test, digits.flip)
    fit(net(), same_again, QUICK, ema=0.9, out=tmp_path, resume=True)


@pytest.mark.parametrize("content", [b"hello", b"", bytes(range(256)), b"\x80\x02K\x05."])
def test_a_foreign_file_is_refused(digits: Data, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "last.pt").write_bytes(content)
    with pytest.raises(TrainError, match=r"last.pt: no whole checkpoint: cannot be resumed from .*Remove the file to start anew"):
        fit(net(), digits, QUICK, out=tmp_path, resume=True)
    with pytest.raises(TrainError, match="no whole checkpoint"):
        sparse(net(), digits, QUICK, strength="auto", out=tmp_path, resume=True)


def test_the_options_of_a_tampered_optimizer_are_those_of_the_run(digits: Data, tmp_path: Path) -> None:
    whole, resumed = net(), net(seed=5)
    fit(whole, digits, QUICK, out=tmp_path / "whole")

    def stop(model: nn.Module, record: Record) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        fit(net(), digits, QUICK, out=tmp_path, on_epoch=lambda model, record: stop(model, record) if record.epoch == 2 else None)
    state = load_checkpoint(tmp_path / "last.pt")
    state["optimizer"]["param_groups"][0].update(momentum="fast", weight_decay=5.0)
    torch.save(state, tmp_path / "last.pt")
    fit(resumed, digits, QUICK, out=tmp_path, resume=True)
    assert same(resumed.state_dict(), whole.state_dict())


def test_numpy_s_numbers_do_not_spoil_a_checkpoint(digits: Data, tmp_path: Path) -> None:
    def measure(model: nn.Module, record: Record) -> dict[str, float]:
        return {"found": np.float64(record.epoch)}

    a = fit(net(), digits, QUICK, lr=np.float64(0.05), out=tmp_path, on_epoch=measure)
    assert fit(net(), digits, QUICK, lr=0.05, out=tmp_path, on_epoch=measure, resume=True) == a
    distilled = [
        distill(net(), net(1), digits, QUICK, alpha=np.float64(0.5), out=tmp_path / "distilled", resume=resume) for resume in (False, True)
    ]
    assert distilled[0] == distilled[1]


def test_a_checkpoint_with_code_in_it_is_not_run(digits: Data, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"format": 1, "model": Bomb()}, tmp_path / "last.pt")
    with pytest.raises(TrainError, match="cannot be resumed from"):
        fit(net(), digits, QUICK, out=tmp_path, resume=True)
    assert not (tmp_path / "ran").exists()


def test_best_is_the_best_scored_epoch_and_ema_is_what_is_scored(digits: Data, tmp_path: Path) -> None:
    model = net()
    history = fit(model, digits, QUICK, epochs=4, lr=0.3, schedule="constant", ema=0.8, out=tmp_path)
    assert history.best.test_accuracy == max(record.test_accuracy or 0 for record in history.records)
    stored = load_checkpoint(tmp_path / "best.pt")
    assert len(stored["history"]["records"]) == history.best.epoch
    best = net(seed=9)
    best.load_state_dict(load_weights(tmp_path / "best.pt"))
    assert evaluate(best, digits).accuracy == history.best.test_accuracy
    assert same(model.state_dict(), load_weights(tmp_path / "last.pt"))
    assert not torch.equal(model[0].weight, load_checkpoint(tmp_path / "last.pt")["model"]["0.weight"])


TWO = """
import json, os, sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[2])
from training import net
from irtool.train import fit, load_data

model = net()
history = fit(model, load_data("digits", image_size=12, limit=320), epochs=3, lr=0.05, batch_size=32, mixup=0.2, ema=0.9)
if os.environ["RANK"] == "0":
    weights = {name: tensor.tolist() for name, tensor in model.state_dict().items()}
    with open(sys.argv[1], "w") as file:
        json.dump({"loss": [[r.train_loss, r.test_loss] for r in history.records], "weights": weights}, file)
"""


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available() or sys.platform == "win32", reason="needs torch.distributed with gloo")
def test_two_processes_train_as_one_with_the_doubled_batch(digits: Data, tmp_path: Path) -> None:
    import json

    script, result = tmp_path / "two.py", tmp_path / "two.json"
    script.write_text(TWO)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(script),
        str(result),
        str(Path(__file__).parents[1]),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert child.returncode == 0, child.stderr
    two = json.loads(result.read_text())
    one = net()
    history = fit(one, digits, epochs=3, lr=0.05, batch_size=64, mixup=0.2, ema=0.9)
    np.testing.assert_allclose([[r.train_loss, r.test_loss] for r in history.records], two["loss"], rtol=1e-4)
    for name, tensor in one.state_dict().items():
        np.testing.assert_allclose(tensor.numpy(), two["weights"][name], rtol=1e-2, atol=1e-4, err_msg=name)
