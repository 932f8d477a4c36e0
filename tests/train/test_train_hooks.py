"""A training run with an optimiser, calls and a logger of the caller's own, and an early end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from irtool.errors import OptionError
from irtool.train import Data, Settings, fit, load_data
from irtool.train.history import History, Record
from irtool.train.hooks import stalled


@pytest.fixture(scope="module")
def data() -> Data:
    """A hundred digits."""
    return load_data("digits", limit=100)


def _net(data: Data) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(data.preprocessing.channels * data.preprocessing.size[0] * data.preprocessing.size[1], 10))


class _Log:
    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def log(self, values: dict[str, Any]) -> None:
        self.rows.append(values)


def test_calls_after_steps_and_epochs_and_a_logger(data: Data) -> None:
    steps: list[tuple[int, float]] = []
    log = _Log()
    history = fit(_net(data), data, epochs=2, batch_size=20, lr=0.01, on_step=lambda net, step, loss: steps.append((step, loss)),
                  on_epoch=lambda net, record: {"seen": record.epoch}, logger=log)  # fmt: skip
    assert [step for step, _ in steps] == list(range(1, 11))
    assert all(loss > 0 for _, loss in steps)
    assert [row["epoch"] for row in log.rows] == [1.0, 2.0]
    assert log.rows[-1]["test_accuracy"] == history.last.test_accuracy
    assert log.rows[-1]["seen"] == 2


def test_adamw_and_an_optimiser_of_ones_own(data: Data) -> None:
    first, second = _net(data), _net(data)
    fit(first, data, epochs=1, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.0))
    fit(second, data, epochs=1, lr=1e-3, optimizer="adamw", weight_decay=0.0)
    assert torch.allclose(first[1].weight, second[1].weight, rtol=0, atol=1e-7)
    plain = _net(data)
    fit(plain, data, Settings(lr=1e-3, epochs=1))
    assert not torch.allclose(first[1].weight, plain[1].weight, atol=1e-4)


def test_the_schedule_scales_the_rates_of_each_group(data: Data) -> None:
    rates: list[list[float]] = []
    made: list[torch.optim.Optimizer] = []

    def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        made.append(torch.optim.SGD([{"params": parameters[:1], "lr": 0.1}, {"params": parameters[1:], "lr": 0.001}]))
        return made[0]

    fit(_net(data), data, epochs=2, batch_size=50, schedule="cosine", optimizer=make,
        on_step=lambda net, step, loss: rates.append([group["lr"] for group in made[0].param_groups]))  # fmt: skip
    assert all(a / b == pytest.approx(100) for a, b in rates)
    assert rates[0][0] > rates[-1][0]


def test_mistakes_are_told(data: Data) -> None:
    with pytest.raises(OptionError, match="the factory gave a int"):
        fit(_net(data), data, optimizer=lambda parameters: 3)  # type: ignore[arg-type, return-value]
    with pytest.raises(OptionError, match=r"optimizer = 'lion'\. Choose one of: sgd, adamw"):
        Settings(optimizer="lion")


def _history(*accuracies: float | None) -> History:
    history = History({})
    for number, accuracy in enumerate(accuracies, 1):
        history = history.add(Record(number, 1.0, 0.5, 1.0, accuracy, 0.1, 1.0, 1.0))
    return history


@pytest.mark.parametrize(("accuracies", "patience", "ends"), [
    ((0.5, 0.6, 0.6), 1, True), ((0.5, 0.6, 0.7), 1, False), ((0.9, 0.6, 0.7), 2, True), ((0.9, 0.6), 2, False), ((0.9, 0.1, 0.1), 0, False),
    ((0.5, None, 0.6, None, 0.6), 1, True),
])  # fmt: skip
def test_a_run_ends_after_scorings_that_brought_nothing(accuracies: tuple[float | None, ...], patience: int, ends: bool) -> None:
    assert stalled(_history(*accuracies), patience) is ends


def test_patience_ends_the_run(data: Data) -> None:
    history = fit(_net(data), data, epochs=30, lr=1e-9, patience=2)
    assert len(history.records) == 3
