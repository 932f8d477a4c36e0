"""The training loop: what it computes and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from clock import clocked
from torch import nn
from training import QUICK, net, same

from irtool.errors import DataError, OptionError, TrainError
from irtool.train import Data, History, Settings, Status, evaluate, finetune, fit, load_data, recover
from irtool.train.settings import share_of_peak


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data("digits", image_size=12, limit=320)


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


def test_ema_by_hand() -> None:
    from irtool.train.ema import Average

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
    assert [share_of_peak(cosine, p) for p in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])
    warm = replace(cosine, warmup=1, schedule="constant")
    assert [share_of_peak(warm, p) for p in (0.05, 0.1, 0.5)] == pytest.approx([0.5, 1, 1])
    step = replace(cosine, schedule="step", milestones=(0.5, 0.75), drop=0.1)
    assert [share_of_peak(step, p) for p in (0.49, 0.5, 0.8)] == pytest.approx([1, 0.1, 0.01])
    parameter = nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([parameter], lr=0.2)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.2, total_steps=1001, pct_start=0.3, div_factor=25, final_div_factor=400
    )
    ours = replace(cosine, schedule="one-cycle")
    for number in range(1001):
        if number % 50 == 0:
            assert 0.2 * share_of_peak(ours, number / 1000) == pytest.approx(theirs.get_last_lr()[0], rel=0.03, abs=1e-4)
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
        ({"seed": -1}, "seed = -1. Give a whole number of at least 0"),
        ({"seed": 1.5}, "seed = 1.5. Give a whole number of at least 0"),
        ({"seed": 2**70}, "seed = .*Give a whole number of at least 0"),
        ({"nesterov": True, "momentum": 0}, "nesterov without momentum. Give a momentum too"),
        ({"nesterov": "no"}, "nesterov = 'no'. Give True or False"),
        ({"flip": 2}, "flip = 2. Give True or False"),
        ({"crop": 1.5}, "crop = 1.5. Give a number of pixels: a whole one"),
        ({"evaluate_every": 0.5}, "evaluate_every = 0.5. Give a whole number of at least 0"),
        ({"lr": "0.1"}, "lr = '0.1'. Give a number greater than 0"),
        ({"lr": 10**400}, "Give a number greater than 0"),
        ({"lr": True}, "lr = True. Give a number greater than 0"),
        ({"warmup": torch.tensor(1.0)}, "warmup = .*Give a number of at least 0"),
        ({"label_smoothing": None}, "label_smoothing = None. Give a number from 0 up to"),
        ({"milestones": 0.5}, "milestones = 0.5. Give fractions of the run"),
        ({"milestones": ["a"]}, "milestones = .*Give fractions of the run"),
        ({"schedule": ["cosine"]}, "schedule = .*Choose one of: cosine"),
        ({"device": 0}, "device = 0. Choose auto, cpu, cuda or mps"),
        ({"out": 5}, "out = 5. Give the path of a folder"),
    ],
)
def test_options_that_can_never_work(change: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Settings.merged(Settings(), change)


def test_settings_are_settings_in_python_s_own_types() -> None:
    given = Settings(lr=np.float32(0.5), epochs=np.int64(3), nesterov=np.bool_(True), milestones=np.array([0.5]), out="folder")  # type: ignore[arg-type]
    assert given == Settings(lr=0.5, epochs=3, nesterov=True, milestones=(0.5,), out=Path("folder"))
    assert [type(value) for value in (given.lr, given.epochs, given.nesterov, given.milestones[0])] == [float, int, bool, float]
    with pytest.raises(OptionError, match=r"the settings are a dict. Give Settings\(...\), or options by name"):
        fit(net(), None, {"epochs": 3})  # type: ignore[arg-type]


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


class Odd(nn.Module):
    """A linear layer whose forward does something around it."""

    def __init__(self, forward: Callable[..., object]) -> None:
        super().__init__()
        self.linear, self.run = nn.Linear(144, 10), forward

    def forward(self, x: torch.Tensor) -> object:
        return self.run(self.linear, x)


def watchful(linear: nn.Module, x: torch.Tensor) -> object:
    assert x.shape[2] == 224, "Wrong image height"
    return linear(x.flatten(1))


ODD_MODELS = {
    "assertion": (lambda: Odd(watchful), DataError, r"refuses an input of .*Wrong image height.*image_size"),
    "two inputs": (lambda: Odd(lambda linear, x: linear(x, x)), DataError, r"refuses an input of .*positional arguments.*image_size"),
    "more rows": (lambda: Odd(lambda linear, x: linear(x.repeat(2, 1, 1, 1).flatten(1))), DataError, r"has 64 rows for 32 images.*view"),
    "detached": (lambda: Odd(lambda linear, x: linear(x.flatten(1)).detach()), TrainError, r"depends on no parameter.*detach\(\)"),
    "lazy": (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(10)), TrainError, r"has no weights yet. Run the model once"),
}


@pytest.mark.parametrize("kind", ODD_MODELS)
def test_models_that_do_something_odd_are_named(digits: Data, kind: str) -> None:
    make, error, message = ODD_MODELS[kind]
    with pytest.raises(error, match=message):
        fit(make(), digits, QUICK)
    if error is DataError:
        with pytest.raises(error, match=message):
            evaluate(make(), digits, 32)


@pytest.mark.parametrize("size", [0, -1, 1.5, "8"])
def test_batch_sizes_of_scoring_that_can_never_work(digits: Data, size: object) -> None:
    with pytest.raises(OptionError, match=r"batch_size = .*Give a whole number of at least 1"):
        evaluate(net(), digits, size)  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"seconds": math.nan}, {"seconds": "1"}, {"calibrate": 2.5}, {"held_back": 320}])
def test_numbers_with_which_nothing_can_be_recovered(digits: Data, change: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=r"of 320 training images. Give seconds of at least 0"):
        recover(None, None, digits, **{"held_back": 64, **change})  # type: ignore[arg-type]


def test_frozen_parameters_stay(digits: Data) -> None:
    model = net()
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    fit(model, digits, QUICK, epochs=1)
    assert torch.equal(model[0].weight, before)


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


def test_a_time_budget_ends_the_run_and_its_schedule(digits: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    clocked(monkeypatch, ["irtool.train.fit"], 0.01)
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
    from irtool.workflows.demo import demo_settings

    demo, quick = demo_settings(), demo_settings(quick=True, seed=3)
    before = torch.get_rng_state()
    assert same(demo.model().state_dict(), quick.model().state_dict())
    assert torch.equal(torch.get_rng_state(), before)
    assert (quick.settings.seed, demo.settings.seed) == (3, 0)
    assert quick.settings.epochs < demo.settings.epochs
    logits = demo.model().eval()(demo.data().sample(4))
    assert logits.shape == (4, 10)
