"""Reconstruct without images: noise in a graph whose batch norms take it for what they were trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import irtool
from irtool.errors import DataError, OptionError
from irtool.models import PreResNet
from irtool.ops.batch_norm import scale_and_shift
from irtool.pruning.reconstruct.stand_in import gaussian_noise, leaves, noise, noise_batches, norms_of, with_statistics_of
from irtool.pruning.slicing.check import check_refitted


def photographs(count: int, size: int, seed: int) -> Tensor:
    """Images that the nets here were "trained" on: smooth, of another mean and contrast than the noise, and one-sided."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(count, 3, size // 4, size // 4, generator=generator).square()
    return 3 * nn.functional.interpolate(small, (size, size), mode="bilinear") - 0.3


def trained(net: nn.Module, size: int) -> irtool.FxGraph:
    """A net with random weights whose batch norms have the statistics of the photographs."""
    torch.manual_seed(0)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.2, 1.5)
            nn.init.normal_(part.bias, 0, 0.5)
    graph = irtool.trace(net.eval(), torch.zeros(2, 3, size, size))
    return irtool.RecalibrateBatchNorm(photographs(64, size, 1).split(32), method="exact")(graph).graph


def plain(*, twins: bool = False) -> nn.Module:
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 6),
    )  # fmt: skip
    if twins:
        with torch.no_grad():
            net[0].weight[8:] = net[0].weight[:8]
    return net


def without(graph: irtool.FxGraph, removed: list[int]) -> irtool.Plan:
    """A plan that removes these channels of the first layer."""
    plan = irtool.plan(graph, "l1", 0.0, round_to=1)
    data = plan.to_dict()
    data["layers"][0]["removed"] = removed
    return irtool.Plan.from_dict(data)


def error(graph: irtool.Graph, other: irtool.Graph, size: int) -> float:
    x = photographs(64, size, 2)
    expected, got = (torch.as_tensor(net.run(x)[0] if isinstance(net.run(x), list | tuple) else net.run(x)) for net in (graph, other))
    return float((got - expected).square().mean() / expected.var())


def test_twins_of_channels_are_reproduced_on_images_never_seen() -> None:
    """Channels that are the same filter behind batch norms of equal shape: those that stay can say all that went."""
    net = plain(twins=True)
    graph = trained(net, 16)
    first = graph.module.get_submodule("1")
    with torch.no_grad():
        for values in (first.weight, first.bias, first.running_mean, first.running_var):
            values[8:] = values[:8]
    graph = irtool.trace(graph.module, torch.zeros(2, 3, 16, 16))
    found = irtool.reconstruct(graph, without(graph, list(range(8, 16))))
    assert error(graph, irtool.prune(graph, without(graph, list(range(8, 16)))), 16) > 1e-2
    assert error(graph, found, 16) < 1e-9


@pytest.mark.parametrize("make", [plain, lambda: PreResNet(11, width=0.5)], ids=["plain", "residual"])
def test_it_comes_nearer_to_the_original_than_absorbing_on_images_never_seen(make: object) -> None:
    graph = trained(make(), 16)  # type: ignore[operator]
    plan = irtool.plan(graph, "l2", 0.3, "local", "select", round_to=1)
    result = irtool.Reconstruct(plan)(graph)
    absorbed = error(graph, irtool.prune(graph, plan), 16)
    assert error(graph, result.graph, 16) < 0.7 * absorbed
    assert any("no images" in note for note in result.notes)
    checked = check_refitted(graph, plan, result.graph, (photographs(2, 16, 3),))
    assert checked.ok, checked


def test_statistics_are_those_of_the_original_and_the_callers_graph_stays() -> None:
    graph = trained(plain(), 16)
    before = {name: value.data.clone() for name, value in graph.params.items() if value.data is not None}
    removed = [0, 3, 5]
    kept = [place for place in range(16) if place not in removed]
    found = irtool.reconstruct(graph, without(graph, removed))
    for name in ("1.running_mean", "1.running_var"):
        assert torch.equal(found.params[name].data, before[name][kept])
    assert all(torch.equal(value.data, before[name]) for name, value in graph.params.items() if value.data is not None)
    again = irtool.reconstruct(graph, without(graph, removed))
    assert all(torch.equal(value.data, again.params[name].data) for name, value in found.params.items() if value.data is not None)


def test_on_noise_every_batch_norm_gives_the_moments_that_it_gives_on_the_real_images() -> None:
    graph = trained(PreResNet(11, width=0.25), 16)
    batches = noise_batches(graph, 64, 32)
    new = with_statistics_of(graph, batches)
    seen: dict[str, list[Tensor]] = {}
    norms = norms_of(new)
    for batch in batches:
        new.observe(batch, {node.name for node in norms}, lambda name, value: seen.setdefault(name, []).append(value.clone()))
    for node in norms:
        scale, _ = scale_and_shift(node)
        read = node.operands["running_var"].data.double().sqrt() * scale.abs()
        made = torch.cat(seen[node.name]).double().transpose(0, 1).flatten(1)
        torch.testing.assert_close(made.mean(1), node.operands["bias"].data.double(), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(made.std(1, correction=0), read, rtol=1e-3, atol=1e-4)


def test_noise_is_smooth_and_has_edges_and_one_colour() -> None:
    x = noise((64, 3, 32, 32), seed=0)
    assert torch.equal(x, noise((64, 3, 32, 32), seed=0))
    assert not torch.equal(x, noise((64, 3, 32, 32), seed=1))
    for part in (
        gaussian_noise((64, 3, 32, 32), torch.Generator().manual_seed(0)),
        leaves((64, 3, 32, 32), torch.Generator().manual_seed(0)),
    ):
        assert abs(float(part.std()) - 1) < 1e-3
        near, far = (float((part[..., step:] * part[..., :-step]).mean()) for step in (1, 16))
        assert near > 0.6 > 2 * far
        assert float((part[:, 0] * part[:, 1]).mean()) > 0.7
    flat = (leaves((64, 3, 32, 32), torch.Generator().manual_seed(0)).diff(dim=3) == 0).double().mean()
    assert float(flat) > 0.5
    assert noise((8, 5)).shape == (8, 5)
    assert noise((8, 1, 64)).shape == (8, 1, 64)


def test_the_result_saves_and_loads(tmp_path: Path) -> None:
    graph = trained(PreResNet(11, width=0.25), 16)
    found = irtool.reconstruct(graph, irtool.plan(graph, "bn_scale", 0.5, "global", "select", round_to=1))
    x = photographs(4, 16, 3)
    irtool.save(found, tmp_path / "m.safetensors")
    assert torch.equal(irtool.load(tmp_path / "m.safetensors").run(x), found.run(x))


def test_batch_norms_of_an_onnx_graph_tell_too(tmp_path: Path) -> None:
    source = trained(plain(), 16)
    irtool.export_onnx(source, tmp_path / "m.onnx")
    graph = irtool.load_onnx(tmp_path / "m.onnx")
    plan = irtool.plan(graph, "l2", 0.3, "local", round_to=1)
    if not norms_of(graph):
        pytest.skip("the exporter folds batch norms")
    found = irtool.reconstruct(graph, plan)
    assert error(graph, found, 16) < 0.7 * error(graph, irtool.prune(graph, plan), 16)


@pytest.mark.parametrize("options", [{"distil": 2}, {"images": None, "original": plain()}])
def test_what_needs_images_is_refused_without(options: dict[str, object]) -> None:
    plan = irtool.plan(trained(plain(), 16), "l1", 0.3)
    with pytest.raises(OptionError, match="there are no images"):
        irtool.Reconstruct(plan, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("net", "example", "text"), [
    (nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)), torch.zeros(1, 3, 16, 16), "no batch norms"),
    (nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)), torch.zeros(2, dtype=torch.int64), "no input"),
], ids=["no batch norm", "whole numbers"])  # fmt: skip
def test_a_net_that_noise_says_nothing_about_is_refused_in_a_line(net: nn.Module, example: Tensor, text: str) -> None:
    graph = irtool.trace(net.eval(), example)
    with pytest.raises(DataError, match=text) as raised:
        irtool.reconstruct(graph, irtool.plan(graph, "l1", 0.3))
    assert "\n" not in str(raised.value)


def test_refitting_that_gains_nothing_on_other_noise_gives_way_to_absorbed_constants(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    graph = trained(plain(), 12)
    plan = irtool.plan(graph, "l1", 0.5)
    refit = irtool.Reconstruct._refit

    def spoilt(self: irtool.Reconstruct, slicings: Any, new: Any, batches: Any) -> Any:
        new, found = refit(self, slicings, new, batches)
        for name, value in new.params.items():
            if name.endswith("3.weight"):
                new.set_param(name, value.data * 3)
        return new, found

    monkeypatch.setattr(irtool.Reconstruct, "_refit", spoilt)
    result = irtool.Reconstruct(plan)(graph)
    assert any("gains nothing on other noise" in note for note in result.notes)
    x = photographs(8, 12, 3)
    assert torch.equal(result.graph.run(x), irtool.prune(graph, plan).run(x))
    irtool.save(result.graph, tmp_path / "net.safetensors")
    assert torch.equal(irtool.load(tmp_path / "net.safetensors").run(x), result.graph.run(x))
    assert torch.equal(irtool.load(tmp_path / "net.safetensors", plain().eval()).run(x), result.graph.run(x))
