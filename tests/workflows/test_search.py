"""The search for the smallest model that loses at most so much; and images without labels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import irtool
from irtool.cli.main import run
from irtool.errors import OptionError
from irtool.hosts.torch.graph import FxGraph
from irtool.train import Data, Preprocessing
from irtool.train.data.split import MemorySplit
from irtool.workflows.compress.search import Bound, Found, Trial, pareto, search
from irtool.workflows.compress.search_report import is_met, verdict
from irtool.workflows.compress.smaller import as_shares, shares

PREPROCESSING = Preprocessing((0.5,) * 3, (0.25,) * 3, (8, 8), 3)
PLAIN = irtool.Plan((), "l1")


def net(width: int = 16, classes: int = 5) -> nn.Module:
    torch.manual_seed(3)
    layers = [nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)).eval()


def dataset(graph: FxGraph, train: int = 96, test: int = 64) -> Data:
    """Noise, with the graph's own answers for labels: the original is right everywhere."""
    pixels = torch.randint(0, 256, (train + test, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = graph.module(PREPROCESSING.normalise(pixels)).argmax(1)
    classes = tuple("abcde")
    parts = [MemorySplit(pixels[a:b], labels[a:b], classes, PREPROCESSING) for a, b in ((0, train), (train, train + test))]
    return Data("noise", parts[0], parts[1])


@pytest.fixture(scope="module")
def original() -> FxGraph:
    return irtool.trace(net(), torch.randn(2, 3, 8, 8))


class Losing:
    """Stands for planning and refitting: a graph that answers wrongly on a known share of images, by the budget."""

    def __init__(self, graph: FxGraph, lost: Mapping[float, float]) -> None:
        self.graph, self.lost, self.asked = graph, dict(lost), list[float]()

    def prune(self, budget: Mapping[str, float]) -> tuple[irtool.Plan, FxGraph, tuple[str, ...]]:
        share = budget["macs"]
        self.asked.append(share)
        lost = next(value for least, value in sorted(self.lost.items(), reverse=True) if share >= least)
        return PLAIN, wrong(self.graph, lost), (f"{share} of the MACs",)

    def measure(self, graph: FxGraph) -> dict[str, float]:
        return {"macs": self.asked[-1]}


def wrong(graph: FxGraph, share: float) -> FxGraph:
    """The graph with another answer for the darkest images, as many as `share` of those of `dataset`."""

    class Wrong(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = graph.clone().module
            self.register_buffer("border", threshold(graph, share))

        def forward(self, x: Tensor) -> Tensor:
            scores = self.inner(x)
            dark = (x.mean((1, 2, 3)) < self.border).to(x.dtype)[:, None]
            return scores * (1 - 2 * dark)

    return irtool.trace(Wrong().eval(), torch.randn(2, 3, 8, 8))


def threshold(graph: FxGraph, share: float) -> Tensor:
    data = dataset(graph)
    means = PREPROCESSING.normalise(data.test.images).mean((1, 2, 3))  # type: ignore[attr-defined]
    return torch.quantile(means, share) if share else means.min() - 1


def test_a_budget_that_holds_is_the_result(original: FxGraph) -> None:
    losing = Losing(original, {0.0: 0.0})
    found = search(original, dataset(original), losing.prune, losing.measure, Bound(0.02, minutes=0), {"macs": 0.4})
    assert losing.asked == [0.4]
    assert found.met
    assert is_met(found, Bound(0.02))
    assert (found.drop, found.error) == (0.0, 0.0)
    assert found.trials == (Trial({"macs": 0.4}, {"macs": 0.4}, 0, 0.0, 0.0, True, True),)
    assert sum(found.images) == 64


def test_a_budget_that_loses_too_much_is_missed_and_said(original: FxGraph) -> None:
    losing = Losing(original, {0.0: 0.5, 0.6: 0.0})
    bound = Bound(0.02, minutes=0)
    found = search(original, dataset(original), losing.prune, losing.measure, bound, {"macs": 0.4})
    chosen = next(trial for trial in found.trials if trial.chosen)
    assert 0.6 <= chosen.budget["macs"] < 0.66  # four halvings of the way from 0.4 to 1, in logarithms
    assert chosen.holds
    assert not found.met
    assert verdict(found, bound).startswith("NOT MET: the budget was missed; the smallest")


def test_without_a_budget_it_goes_on_until_the_bound_breaks(original: FxGraph) -> None:
    losing = Losing(original, {0.0: 0.5, 0.3: 0.0})
    found = search(original, dataset(original), losing.prune, losing.measure, Bound(0.02, minutes=0))
    assert losing.asked[:2] == [0.5, 0.25]
    assert 0.3 <= next(trial for trial in found.trials if trial.chosen).budget["macs"] < 0.33
    assert found.met


def test_nothing_that_holds_is_said(original: FxGraph) -> None:
    losing = Losing(original, {0.0: 0.5, 0.9: 0.25})
    bound = Bound(0.02, minutes=0)
    found = search(original, dataset(original), losing.prune, losing.measure, bound, {"macs": 0.4})
    assert not found.met
    assert not is_met(found, bound)
    assert verdict(found, bound).startswith("NOT MET: nothing that was tried")


def test_a_drop_on_the_other_images_is_not_met(original: FxGraph) -> None:
    losing = Losing(original, {0.0: 0.0})
    found = search(original, dataset(original), losing.prune, losing.measure, Bound(0.02, minutes=0), {"macs": 0.4})
    worse = replace(found, drop=0.05)
    assert not is_met(worse, Bound(0.02))
    assert "on those that chose, it held" in verdict(worse, Bound(0.02))


def test_training_brings_back_what_refitting_does_not(original: FxGraph) -> None:
    """The layer that gives the answers is spoiled; distilled towards the original it comes back."""

    def prune(budget: Mapping[str, float]) -> tuple[irtool.Plan, FxGraph, tuple[str, ...]]:
        spoiled = original.clone()
        with torch.no_grad():
            for parameter in spoiled.module.get_submodule("7").parameters():
                parameter.mul_(-1)
        return PLAIN, spoiled, ()

    bound = Bound(0.01, epochs=20, minutes=1e6, clock=lambda: 0.0)
    found = search(original, dataset(original, train=512), prune, lambda graph: {"macs": 0.5}, bound, {"macs": 0.5})
    refitted, trained = found.trials[:2]
    assert (refitted.epochs, refitted.holds) == (0, False)
    assert trained.epochs == 10
    assert trained.drop < refitted.drop
    assert next(trial for trial in found.trials if trial.chosen).epochs == 10
    assert any("distilled from the original for 10 epochs" in note for note in found.notes)


def test_pareto() -> None:
    points = [(0.5, 0.01), (0.6, 0.02), (0.4, 0.03), (0.7, 0.0)]
    trials = [Trial({"macs": cost}, {"macs": cost}, 0, drop, 0.0, True) for cost, drop in points]
    assert [(trial.cost["macs"], trial.drop) for trial in pareto(trials, "macs")] == [(0.4, 0.03), (0.5, 0.01), (0.7, 0.0)]


@pytest.mark.parametrize("values", [(-0.1, 1, 1), (1.5, 1, 1), (0.1, -1, 1), (0.1, 1, float("nan")), (0.1, 1, -1.0)])
def test_impossible_bounds(values: tuple[Any, ...]) -> None:
    with pytest.raises(OptionError):
        Bound(*values)


def test_absolute_numbers_become_shares(original: FxGraph) -> None:
    found = irtool.cost(original)
    assert as_shares({"macs": found.macs / 4, "params": 0.5}, original) == {"macs": 0.25, "params": 0.5}
    assert shares(original, original) == {"macs": 1.0, "params": 1.0, "bytes": 1.0}


def _folder(path: Path, count: int) -> Path:
    path.mkdir()
    draws = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(draws.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path / f"{number:03d}.png")
    return path


def test_compress_within_a_bound_on_images_without_labels(tmp_path: Path) -> None:
    images = _folder(tmp_path / "images", 60)
    torch.manual_seed(0)
    done = irtool.compress(net(), tmp_path / "small", example_inputs=torch.randn(2, 3, 8, 8), data=images, budget={"macs": 0.9},
                           max_drop=60, minutes=0, runs=1)  # fmt: skip
    assert done.report.truth == "answers"
    assert done.report.before.accuracy == 1.0
    assert done.report.classes == ()
    assert done.met
    assert done.verdict.startswith("met: ")
    kept = json.loads((tmp_path / "small" / "search.json").read_text())
    assert kept["met"] is True
    assert len(kept["trials"]) == len(done.trials) == 1
    assert (tmp_path / "small" / "search.png").stat().st_size > 1000
    done.report.chain.require()


def test_images_refit_a_model_that_has_no_classes(tmp_path: Path) -> None:
    class Maps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).relu())

    images = _folder(tmp_path / "images", 20)
    done = irtool.compress(Maps().eval(), tmp_path / "small", example_inputs=torch.randn(2, 3, 8, 8), data=images, ratio=0.5, runs=1)
    assert done.report.before.accuracy is None
    assert done.report.options["reconstruct"] == 128
    with pytest.raises(OptionError, match="no scores of classes"):
        irtool.compress(Maps().eval(), tmp_path / "other", example_inputs=torch.randn(2, 3, 8, 8), data=images, max_drop=1, runs=1)


def test_in_the_shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compress", "VGG:depth=11,width=0.0625", "--data", "digits", "--limit", "80", "--budget", "macs=50%", "--max-drop", "0"]
    code = run([*command, "--epochs", "0", "--runs", "1", "--out", str(tmp_path / "small")])
    told = capsys.readouterr().out
    assert "Tried" in told
    assert code == (0 if "\nmet: " in told else 1)
    assert ("NOT MET" in told) is (code == 1)
    assert (tmp_path / "small" / "search.json").is_file()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--max-drop", "1"], "Give --data too"),
        (["--max-drop", "1", "--data", "digits", "--ratio", "0.5"], "Leave --ratio"),
        (["--max-drop", "1", "--data", "digits", "--no-reconstruct"], "Leave --ratio"),
        (["--max-drop", "-1", "--data", "digits"], "Give 0 or more points"),
    ],
)
def test_wishes_that_cannot_be(flags: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compress", "VGG:depth=11,width=0.0625", *flags, "--out", str(tmp_path / "small")]) == 1
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "small").exists()


def test_found_is_kept_in_the_order_of_the_trials(original: FxGraph) -> None:
    losing = Losing(original, {0.0: 0.5, 0.6: 0.0})
    found: Found = search(original, dataset(original), losing.prune, losing.measure, Bound(0.02, minutes=0), {"macs": 0.4})
    assert [trial.budget["macs"] for trial in found.trials] == losing.asked
    assert sum(trial.chosen for trial in found.trials) == 1
