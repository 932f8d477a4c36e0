"""The default device and the inference mode are the caller's: whatever they are, irtool does the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

import irtool
from irtool.engines.onnxruntime.calibrate import calibrate
from irtool.errors import PlanError
from irtool.train import Settings, fit, load_data

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()


class Cached(nn.Module):
    """A net that keeps a tensor of its first run, as detectors keep their anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net()
        self.register_buffer("grid", None)

    def forward(self, x: Tensor) -> Tensor:
        if self.grid is None:
            self.grid = torch.arange(4.0)
        found: Tensor = self.body(x) + self.grid
        return found


def work(model: nn.Module, folder: Path) -> tuple[Tensor, Tensor, Tensor]:
    """From the model to its files, and what these compute."""
    graph = irtool.trace(model, X)
    plan = irtool.plan(graph, "l1", 0.5)
    smaller = irtool.prune(graph, plan)
    assert irtool.check_prune(graph, plan).ok
    folded = irtool.Pipeline([irtool.FoldConstants(), irtool.RemoveIdentity(), irtool.DeadCode()])(irtool.fold_batchnorm(smaller)).graph
    wide = smaller.to(torch.float64)
    assert irtool.compare(wide, irtool.fold_batchnorm(wide), X.double(), dtype=torch.float64).relative < 1e-9
    assert irtool.compare(smaller, folded, X, dtype=torch.float64).relative < 1e-7  # exact above; here folded weights round to float32
    assert irtool.cost(folded).macs < irtool.cost(graph).macs
    irtool.diff(graph, folded)
    irtool.channel_groups(folded)
    irtool.apply(plan, model, X)
    irtool.save(folded, folder / "net.safetensors")
    irtool.export_onnx(folded, folder / "net.onnx")
    loaded, onnx = irtool.load(folder / "net.safetensors"), irtool.load_onnx(folder / "net.onnx")
    assert all(not parameter.is_inference() for parameter in loaded.module.parameters())
    thinner = irtool.prune(onnx, irtool.plan(onnx, "l1", 0.25))
    irtool.save_onnx(irtool.fold_batchnorm(thinner), folder / "thinner.onnx")
    return loaded.run(X), onnx.run(X)[0], irtool.load_onnx(folder / "thinner.onnx").run(X)[0]


SURROUNDINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "meta": lambda: torch.device("meta"),
    "inference mode": lambda: torch.inference_mode(),
    "no gradients": lambda: torch.no_grad(),
}


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_the_same_whatever_surrounds_it(name: str, tmp_path: Path) -> None:
    model = net()
    expected = work(copy.deepcopy(model), tmp_path)
    with SURROUNDINGS[name]():
        found = work(model, tmp_path)
        assert torch.is_grad_enabled() == (name == "meta")
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_what_reads_data_is_the_same_too(name: str, tmp_path: Path) -> None:
    images = [torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    labels = [torch.arange(8) % 4 for _ in images]
    irtool.export_onnx(irtool.trace(net(), X), tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")

    def found(graph: irtool.FxGraph) -> tuple[object, ...]:
        chosen = irtool.plan(graph, "taylor", 0.5, data=[*zip(images, labels, strict=True)])
        refitted = irtool.reconstruct(graph, chosen, images)
        calibrated = irtool.RecalibrateBatchNorm(images)(irtool.prune(graph, chosen)).graph
        read = load_data("digits", image_size=8, limit=20)
        seen = calibrate(model, [model.graph.input[0].name], [images[0].numpy()])
        return (
            chosen,
            refitted.run(X).sum().item(),
            calibrated.run(X).sum().item(),
            [*map(int, read.train.labels)],
            [(one.moving, one.counts.tolist()) for one in seen.values()],
        )

    graph = irtool.trace(net(), X)
    expected = found(graph)
    with SURROUNDINGS[name]():
        assert found(graph) == expected


def test_trained_whatever_the_default_device() -> None:
    def trained() -> float:
        torch.manual_seed(0)
        with torch.device("cpu"):
            model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
        return fit(model, load_data("digits", image_size=8, limit=20), Settings(epochs=1)).records[0].train_loss

    expected = trained()
    with torch.device("meta"):
        assert trained() == expected


def test_a_model_made_in_inference_mode_is_copied_and_that_is_told(tmp_path: Path) -> None:
    with torch.inference_mode():
        model = net()
    graph = irtool.trace(model, X)
    assert any("made under torch.inference_mode" in note for note in graph.notes)
    assert not any(weight.is_inference() for weight in graph.module.parameters())
    assert all(weight.is_inference() for weight in model.parameters())
    assert torch.equal(work(model, tmp_path)[0], work(net(), tmp_path)[0])


def test_a_buffer_made_in_inference_mode_serves() -> None:
    model = Cached().eval()
    with torch.inference_mode():
        expected = model(X)
    assert model.grid.is_inference()
    assert torch.equal(irtool.trace(model, X).run(X), expected)


def test_a_model_that_holds_no_numbers_is_told() -> None:
    with torch.device("meta"):
        graph = irtool.trace(net(), torch.zeros(2, 3, 8, 8))
        with pytest.raises(PlanError, match="holds no numbers"):
            irtool.plan(graph)


def test_a_graph_of_inference_mode_can_be_trained() -> None:
    model = net()
    with torch.inference_mode():
        graph = irtool.prune(irtool.trace(model, X), irtool.plan(irtool.trace(model, X), "l1", 0.5))
    graph.module.train()(X).sum().backward()
    assert all(parameter.grad is not None for parameter in graph.module.parameters())
