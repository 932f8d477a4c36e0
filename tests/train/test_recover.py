"""`recover`: each remedy is tried, scored on images held back, and kept only where it helps; the time is kept too."""

from __future__ import annotations

import pytest
import torch
from clock import clocked
from torch import nn

import irtool
from irtool.errors import OptionError
from irtool.train import Data, evaluate, fit, load_data, recover

CLOCKS = ["irtool.train.recover", "irtool.train.fit"]


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data("digits", image_size=12, limit=600)


@pytest.fixture(scope="module")
def trained(digits: Data) -> irtool.FxGraph:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for channels, out in ((1, 12), (12, 16), (16, 16)):
        layers += [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    fit(net, digits, epochs=12, lr=0.1, batch_size=16, device="cpu", evaluate_every=0)
    return irtool.trace(net.eval(), torch.zeros(2, 1, 12, 12))


def test_recovery_takes_what_helps_and_trains_with_the_rest(digits: Data, trained: irtool.FxGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    clocked(monkeypatch, CLOCKS, 0.002)
    plan = irtool.plan(trained, "l1", 0.4)
    before = {name: value.data.clone() for name, value in trained.params.items()}
    found = recover(trained, plan, digits, seconds=2.0, calibrate=128, held_back=100, lr=0.05, batch_size=32, epochs=50, device="cpu")
    assert [attempt.name for attempt in found.attempts] == ["drop", "absorb", "recalibrate", "recalibrate, augmented", "finetune"]
    best = float("inf")
    for attempt in found.attempts:
        assert attempt.kept == (attempt.loss < best)
        best = min(best, attempt.loss)
    assert found.history is not None
    assert found.history.facts["train_images"] == 500
    assert 1 < len(found.history.records) < 50  # the budget ends the training
    dropped = evaluate(irtool.prune(trained, plan, "drop"), digits)
    assert evaluate(found.graph, digits).loss < dropped.loss / 2
    assert all(torch.equal(trained.params[name].data, data) for name, data in before.items())


def test_a_remedy_that_harms_is_not_kept(digits: Data, trained: irtool.FxGraph) -> None:
    """Nothing is removed, and two images for the statistics of a net whose own are good: it is best as it is."""
    graph = irtool.RecalibrateBatchNorm(digits.sample(600).split(64))(trained).graph
    found = recover(graph, irtool.plan(graph, "l1", 0.0), digits, seconds=0, calibrate=2, held_back=100)
    assert [(attempt.name, attempt.kept) for attempt in found.attempts] == [
        ("drop", True),
        ("absorb", False),
        ("recalibrate", False),
        ("recalibrate, augmented", False),
    ]
    assert found.history is None
    x = torch.randn(2, 1, 12, 12)
    assert torch.equal(found.graph.run(x), graph.run(x))


def test_distilling_from_the_unpruned_net(digits: Data, trained: irtool.FxGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    clocked(monkeypatch, CLOCKS, 0.002)
    found = recover(trained, irtool.plan(trained, "l1", 0.4), digits, seconds=1.0, held_back=100, teacher=trained, epochs=1, device="cpu")
    assert found.attempts[-1].name == "distill"
    assert found.history is not None
    assert found.history.facts["stage"] == "distill"


@pytest.mark.parametrize("change", [{"seconds": -1}, {"calibrate": 1}, {"held_back": 0}, {"held_back": 600}])
def test_numbers_that_can_never_work(digits: Data, trained: irtool.FxGraph, change: dict[str, float]) -> None:
    with pytest.raises(OptionError, match="2 or more images to calibrate"):
        recover(trained, irtool.plan(trained, "l1", 0.4), digits, **change)  # type: ignore[arg-type]
