"""The training loops: what they compute, how they stop, and how they go on."""

from __future__ import annotations

import copy
import csv
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from irtool.errors import DataError, OptionError, TrainError
from irtool.train import (
    Data,
    History,
    Settings,
    Status,
    distill,
    distillation_loss,
    evaluate,
    find_strength,
    finetune,
    fit,
    load_data,
    small_scales,
    sparse,
)
from irtool.train.augment import Augment
from irtool.train.checkpoint import load_checkpoint, load_weights
from irtool.train.distill import attention_loss
from irtool.train.settings import learning_rate
from irtool.train.sparse import strength_of

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data("digits", image_size=12, limit=320)


def net(seed: int = 0, dropout: float = 0.0) -> nn.Sequential:
    """A small CNN with batch norm for 12x12 grey images."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Flatten(),
        nn.Linear(576, 10),
    )


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


QUICK = Settings(epochs=2, lr=0.05, batch_size=32)


def test_fit_learns_and_tells(digits: Data) -> None:
    reports: list[Status] = []
    model = net()
    before = torch.get_rng_state()
    history = fit(model, digits, QUICK, epochs=5, progress=reports.append)
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.training
    assert history.last.test_accuracy is not None
    assert history.last.test_accuracy > 0.85
    assert history.last.train_loss < history.records[0].train_loss / 2
    score = evaluate(model, digits)
    assert (score.accuracy, score.loss) == (history.last.test_accuracy, history.last.test_loss)
    trained = [report for report in reports if report.task == "train epoch 5/5"]
    assert trained[-1].done == trained[-1].total == 320
    assert trained[-1].loss == pytest.approx(history.last.train_loss)
    assert trained[-1].seconds_left is not None
    assert trained[-1].seconds_left < 1
    assert History.from_dict(history.to_dict()) == history


def test_a_run_is_a_function_of_its_seed(digits: Data) -> None:
    models = [net(dropout=0.3) for _ in range(3)]
    for number, (model, seed) in enumerate(zip(models, (1, 1, 2), strict=True)):
        torch.manual_seed(number)  # the caller's own random state has no say
        fit(model, digits, QUICK, epochs=1, seed=seed, mixup=0.2, evaluate_every=0)
    assert same(models[0].state_dict(), models[1].state_dict())
    assert not same(models[0].state_dict(), models[2].state_dict())


def test_the_bare_loop_gives_the_same_weights(digits: Data) -> None:
    model, plain = net(), net()
    fit(model, digits, QUICK, epochs=1, crop=0, weight_decay=1e-3)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    order = torch.from_numpy(np.random.default_rng([0, 1]).permutation(320))
    plain.train()
    for step, index in enumerate(order.split(32)):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 + math.cos(math.pi * (step + 0.5) / 10)) / 2
        (images,) = digits.train.batches([index])
        optimizer.zero_grad()
        nn.functional.cross_entropy(plain(digits.preprocessing.normalise(images)), digits.train.labels[index]).backward()
        optimizer.step()
    assert same(model.state_dict(), plain.state_dict())


def test_graphs_are_trained_by_their_module(digits: Data) -> None:
    class Graph:
        def __init__(self, module: nn.Module) -> None:
            self.module = torch.fx.symbolic_trace(module)

    graph, plain = Graph(net()), net()
    fit(graph, digits, QUICK, epochs=1)
    fit(plain, digits, QUICK, epochs=1)
    assert same(graph.module.state_dict(), plain.state_dict())
    assert evaluate(graph, digits).accuracy == evaluate(plain, digits).accuracy
    with pytest.raises(OptionError, match=r"Give a torch.nn.Module, or a graph"):
        fit("net", digits)


def test_sparse_training_brings_scales_to_zero(digits: Data) -> None:
    free, shrunk = net(), net()
    fit(free, digits, QUICK, epochs=6, lr=0.1)
    history = sparse(shrunk, digits, QUICK, epochs=6, lr=0.1, strength=0.1)
    assert small_scales(free) == 0
    assert small_scales(shrunk) > 0.3
    assert history.last.extra == {"strength": 0.1, "small_scales": small_scales(shrunk)}
    assert history.facts["stage"] == "sparse"
    assert evaluate(shrunk, digits).accuracy > 0.8


def test_the_penalty_is_the_subgradient_of_l1(digits: Data) -> None:
    """One step of plain SGD: the scales differ by lr * strength * sign(gamma) from those without a penalty, others not at all."""
    one = Settings(epochs=1, lr=0.1, batch_size=320, momentum=0.0, weight_decay=0.0, schedule="constant")
    free, shrunk = net(), net()
    for model in (free, shrunk):
        nn.init.uniform_(model[1].weight, -1, 1, generator=torch.Generator().manual_seed(0))
    signs = free[1].weight.detach().sign()
    fit(free, digits, one)
    sparse(shrunk, digits, one, strength=lambda position: 0.02 * position, ignore=("5",))
    torch.testing.assert_close(free[1].weight - shrunk[1].weight, 0.1 * 0.01 * signs, rtol=0, atol=1e-6)
    assert torch.equal(free[5].weight, shrunk[5].weight)
    assert torch.equal(free[0].weight, shrunk[0].weight)


def test_strengths() -> None:
    assert strength_of("1e-4") == 1e-4
    ramp = strength_of("0:1e-3")
    assert callable(ramp)
    assert (ramp(0), ramp(0.5), ramp(1)) == (0, 5e-4, 1e-3)
    for bad in ("much", "-1", "1:2:3", 5):
        with pytest.raises(OptionError, match=r"Give a number from 0 to below 1 \(1e-4 to 1e-3 are usual\)"):
            strength_of(bad)
    with pytest.raises(TrainError, match=r"no batch norm with a trainable scale.*Train before folding"):
        small_scales(nn.Linear(3, 3))


def test_auto_strength_rises_with_the_wanted_share_and_stops_at_the_bound(digits: Data) -> None:
    settings = Settings(epochs=60, lr=0.1, batch_size=32)
    model = net()
    before = copy.deepcopy(model.state_dict())
    few = find_strength(model, digits, settings, share=0.1, steps=10, bound=0.5)
    many = find_strength(model, digits, settings, share=0.9, steps=10, bound=10.0)
    held = find_strength(model, digits, settings, share=0.9, steps=10, bound=1e-9)
    assert held <= few < many
    assert same(model.state_dict(), before)
    with pytest.raises(OptionError, match="Give 0 < share < 1"):
        find_strength(model, digits, settings, share=1.5)


def test_auto_strength_is_not_searched_again_on_resuming(digits: Data, tmp_path: Path) -> None:
    a = sparse(net(), digits, QUICK, strength="auto", out=tmp_path)
    assert isinstance(a.facts["strength"], float)
    b = sparse(net(seed=7), digits, QUICK, strength="auto", out=tmp_path, resume=True)
    assert a == b


def test_distillation_loss_by_hand() -> None:
    random = np.random.default_rng(0)
    student, teacher = random.normal(size=(4, 5)) * 3, random.normal(size=(4, 5)) * 3
    labels, alpha, temperature = np.array([0, 2, 4, 1]), 0.7, 4.0

    def softmax(x: np.ndarray) -> np.ndarray:
        e = np.exp(x - x.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    ce = -np.log(softmax(student)[np.arange(4), labels]).mean()
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    kl = (p * np.log(p / q)).sum() / 4  # summed over classes, averaged over the batch
    expected = (1 - alpha) * ce + alpha * temperature**2 * kl
    found = distillation_loss(torch.from_numpy(student), torch.from_numpy(teacher), torch.from_numpy(labels), alpha, temperature)
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_distilling_follows_the_teacher_and_leaves_it_alone(digits: Data) -> None:
    teacher = net(1)
    fit(teacher, digits, QUICK, epochs=4)
    teacher.train()
    before = copy.deepcopy(teacher.state_dict())
    by_module, by_session, by_cache = net(2), net(2), net(2)
    options = {"epochs": 2, "batch_size": 32, "alpha": 1.0, "crop": 0, "lr": 0.05}
    distill(by_module, teacher, digits, **options)
    assert teacher.training
    assert same(teacher.state_dict(), before)
    frozen = copy.deepcopy(teacher).eval()
    distill(by_session, lambda images: frozen(torch.from_numpy(images)).detach().numpy(), digits, **options)
    distill(by_cache, teacher, digits, cache=True, **options)
    for other in (by_session, by_cache):  # without augmentation, all three see the same teacher
        for a, b in zip(by_module.state_dict().values(), other.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert evaluate(by_module, digits).accuracy > 0.7  # alpha 1: it never saw a label
    with pytest.raises(OptionError, match="Give a copy"):
        distill(teacher, teacher, digits)
    with pytest.raises(OptionError, match="leave cache out"):
        distill(net(), teacher, digits, cache=True, mixup=0.2)
    with pytest.raises(OptionError, match="Give alpha from 0 to 1"):
        distill(net(), teacher, digits, alpha=1.5)


def test_hints_draw_features_together_whatever_their_channels(digits: Data) -> None:
    teacher, plain = net(1), net(2)
    fit(teacher, digits, QUICK)
    narrow = nn.Sequential(nn.Conv2d(8, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
    plain[4], plain[5], plain[9] = narrow[0], narrow[1], nn.Linear(144, 10)
    hinted = copy.deepcopy(plain)
    options = {"epochs": 3, "batch_size": 32, "crop": 0, "lr": 0.05}
    distill(plain, teacher, digits, **options)
    distill(hinted, teacher, digits, hints={"6": "6"}, hint_weight=10.0, **options)
    images = digits.sample(64)
    target = teacher[:7](images)
    assert attention_loss(hinted[:7](images), target) < 0.8 * attention_loss(plain[:7](images), target)
    assert not hinted[6]._forward_hooks
    with pytest.raises(OptionError, match=r"the student has no module 'nothing'.*named_modules"):
        distill(hinted, teacher, digits, hints={"nothing": "6"})
    with pytest.raises(OptionError, match="Choose maps of equal height and width"):
        distill(hinted, teacher, digits, hints={"0": "6"}, **options)


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


RESUMABLE = {
    "epochs": 3,
    "lr": 0.05,
    "batch_size": 32,
    "mixup": 0.2,
    "ema": 0.9,
    "label_smoothing": 0.1,
    "schedule": "one-cycle",
    "warmup": 1,
}

KILLED = """
import os, signal, sys
import torch
torch.set_num_threads(int(sys.argv[2]))
sys.path.insert(0, sys.argv[3])
from test_train import RESUMABLE, net
from irtool.train import load_data, sparse

def strength(position):
    if position > 0.5:  # the middle of the second of three epochs
        os.kill(os.getpid(), signal.SIGKILL)
    return 1e-3

sparse(net(dropout=0.3), load_data("digits", image_size=12, limit=320), strength=strength, out=sys.argv[1], **RESUMABLE)
"""


def test_killed_in_mid_epoch_and_resumed_is_bit_equal_to_uninterrupted(digits: Data, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    arguments = [str(tmp_path / "killed"), str(torch.get_num_threads()), str(Path(__file__).parent)]
    child = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments], env=environment, capture_output=True, text=True, timeout=300, check=False
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


def test_ema_by_hand() -> None:
    from irtool.train.average import Average

    linear = nn.Linear(1, 1, bias=False)
    nn.init.constant_(linear.weight, 1.0)
    average = Average(linear, 0.75)
    for value in (5.0, 9.0):
        nn.init.constant_(linear.weight, value)
        average.update()
    assert float(average.weights["weight"]) == 0.75 * (0.75 * 1 + 0.25 * 5) + 0.25 * 9
    with average.swapped():
        assert linear.weight.item() == 3.75
    assert linear.weight.item() == 9.0


def test_schedules() -> None:
    cosine = Settings(epochs=10, lr=0.2)
    assert learning_rate(cosine, 0) == pytest.approx(0.2)
    assert learning_rate(cosine, 0.5) == pytest.approx(0.1)
    assert learning_rate(cosine, 1) == pytest.approx(0)
    warm = replace(cosine, warmup=1, schedule="constant")
    assert [learning_rate(warm, p) for p in (0.05, 0.1, 0.5)] == pytest.approx([0.1, 0.2, 0.2])
    step = replace(cosine, schedule="step", milestones=(0.5, 0.75), drop=0.1)
    assert [learning_rate(step, p) for p in (0.49, 0.5, 0.8)] == pytest.approx([0.2, 0.02, 0.002])
    parameter = nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([parameter], lr=0.2)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.2, total_steps=1001, pct_start=0.3, div_factor=25, final_div_factor=400
    )
    ours = replace(cosine, schedule="one-cycle")
    for number in range(1001):
        if number % 50 == 0:
            assert learning_rate(ours, number / 1000) == pytest.approx(theirs.get_last_lr()[0], rel=0.03, abs=1e-4)
        if number < 1000:
            optimizer.step()
            theirs.step()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs = 0. Give a whole number of at least 1"),
        ({"lr": -1.0}, "lr = -1.0. Give a number greater than 0"),
        ({"lr": math.nan}, "lr = nan. Give a number greater than 0"),
        ({"schedule": "linear"}, "schedule = 'linear'. Choose one of: cosine, step, one-cycle, constant"),
        ({"momentum": 1.0}, "momentum = 1.0. Give a number from 0 up to, not including, 1"),
        ({"precision": "16-mixed"}, "Choose 32-true or bf16-mixed"),
        ({"epoch": 3}, "no such training option: epoch. Known: batch_size"),
    ],
)
def test_options_that_can_never_work(change: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Settings.settle(Settings(), change)


def test_models_that_cannot_be_trained(digits: Data) -> None:
    frozen = net().requires_grad_(False)
    with pytest.raises(TrainError, match=r"no parameter requires a gradient. Unfreeze"):
        fit(frozen, digits, QUICK)
    wrong = net()
    wrong[9] = nn.Linear(576, 7)
    with pytest.raises(DataError, match=r"the output is \(32, 7\), but the data has 10 classes.*num_classes=10"):
        fit(wrong, digits, QUICK)
    colour = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(400, 10))
    with pytest.raises(DataError, match=r"refuses an input of \(32, 1, 12, 12\).*image_size and channels"):
        finetune(colour, digits, QUICK)


def test_frozen_parameters_stay(digits: Data) -> None:
    model = net()
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    fit(model, digits, QUICK, epochs=1)
    assert torch.equal(model[0].weight, before)


def test_crops_are_shifts_with_black_borders_and_flips_mirror() -> None:
    images = torch.randint(1, 256, (64, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    augment = Augment(crop=2, flip=True)
    draws = augment.draw(np.random.default_rng(0), 64)
    found = augment.apply(images, draws)
    padded = nn.functional.pad(images, (2, 2, 2, 2))
    for number in range(64):
        top, left = int(draws.top[number]), int(draws.left[number])
        expected = padded[number, :, top : top + 8, left : left + 8]
        assert torch.equal(found[number], expected.flip(2) if draws.mirror[number] else expected)
    assert {int(value) for value in draws.top} == set(range(5))
    assert 16 < int(draws.mirror.sum()) < 48
    assert torch.equal(Augment(crop=0, flip=False).apply(images, draws), images)


def test_mixup_blends_neighbours_and_their_labels() -> None:
    augment = Augment(crop=0, flip=False, mixup=1.0)
    draws = augment.draw(np.random.default_rng(0), 5)
    images, labels = torch.arange(5.0).view(5, 1, 1, 1), torch.tensor([0, 1, 2, 0, 1])
    mixed, targets = augment.mix(images, labels, 3, draws)
    mix = draws.mix
    assert 0 < mix < 1
    torch.testing.assert_close(mixed.flatten(), torch.tensor([1 - mix, mix, 2 * mix + 3 * (1 - mix), 3 * mix + 2 * (1 - mix), 4.0]))
    torch.testing.assert_close(targets[0], torch.tensor([mix, 1 - mix, 0]))
    torch.testing.assert_close(targets.sum(1), torch.ones(5))


def test_channels_last_changes_speed_not_results(digits: Data) -> None:
    a, b = net(), net()
    fit(a, digits, QUICK, epochs=1)
    views = {name: tensor.detach() for name, tensor in b.state_dict().items()}  # what a graph's view holds
    fit(b, digits, QUICK, epochs=1, channels_last=True)
    assert b[4].weight.is_contiguous()
    assert all(views[name].data_ptr() == tensor.data_ptr() for name, tensor in b.state_dict().items())
    for left, right in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-2, atol=1e-3)


def test_bf16_runs_and_learns(digits: Data) -> None:
    model = net()
    history = fit(model, digits, QUICK, precision="bf16-mixed")
    assert model[0].weight.dtype == torch.float32
    assert history.last.train_loss < history.records[0].train_loss


def test_a_time_budget_ends_the_run_and_its_schedule(digits: Data) -> None:
    history = fit(net(), digits, QUICK, epochs=10_000, time_budget=1.0)
    assert 1 <= len(history.records) < 10_000
    assert history.last.test_accuracy is not None
    assert history.last.lr < 0.05 * 0.1


def test_tensorboard_has_every_epoch(digits: Data, tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed")
    history = fit(net(), digits, QUICK, out=tmp_path, tensorboard=True)
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("test_accuracy")]
    assert found == [(record.epoch, pytest.approx(record.test_accuracy)) for record in history.records]


def test_the_demo_starts_from_the_same_net_each_time() -> None:
    from irtool.train.demo import demo_settings

    demo, quick = demo_settings(), demo_settings(quick=True, seed=3)
    before = torch.get_rng_state()
    assert same(demo.model().state_dict(), quick.model().state_dict())
    assert torch.equal(torch.get_rng_state(), before)
    assert (quick.settings.seed, demo.settings.seed) == (3, 0)
    assert quick.settings.epochs < demo.settings.epochs
    logits = demo.model().eval()(demo.data().sample(4))
    assert logits.shape == (4, 10)


TWO = """
import json, os, sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[2])
from test_train import net
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
        str(Path(__file__).parent),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert child.returncode == 0, child.stderr
    two = json.loads(result.read_text())
    one = net()
    history = fit(one, digits, epochs=3, lr=0.05, batch_size=64, mixup=0.2, ema=0.9)
    np.testing.assert_allclose([[r.train_loss, r.test_loss] for r in history.records], two["loss"], rtol=1e-4)
    for name, tensor in one.state_dict().items():
        np.testing.assert_allclose(tensor.numpy(), two["weights"][name], rtol=1e-2, atol=1e-4, err_msg=name)
