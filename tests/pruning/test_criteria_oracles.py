"""Criteria against what they estimate: the loss of a net that lacks one channel; and against their formulas, written out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

import irtool
from irtool.channels.groups import channel_groups
from irtool.pruning.criteria.criteria import CRITERIA, group_scores

LAYERS = ("0", "2")


def small() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 10, 3, padding=1), nn.ReLU(), nn.Conv2d(10, 14, 3, stride=2, padding=1), nn.ReLU(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(56, 6),
    )  # fmt: skip


def trained() -> tuple[nn.Sequential, Tensor]:
    """A net that knows a task, some channels of which matter more than others; and images."""
    net, generator = small(), torch.Generator().manual_seed(0)
    patterns = torch.randn(6, 3, 10, 10, generator=generator)
    labels = torch.randint(0, 6, (384,), generator=generator)
    images = patterns[labels] + 1.5 * torch.randn(384, 3, 10, 10, generator=generator)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for step in range(60):
        part = slice(64 * (step % 6), 64 * (step % 6) + 64)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images[part]), labels[part]).backward()
        optimizer.step()
    return net.eval(), images


@torch.no_grad()
def leave_one_out(net: nn.Sequential, images: Tensor, centred: bool) -> list[float]:
    """Measure how far the outputs' distribution moves (KL) when one channel behind a ReLU is switched to its mean, or to 0."""
    wanted, found = net(images).log_softmax(1), []
    for name in LAYERS:
        read = net[: int(name) + 2](images)
        for channel in range(read.shape[1]):
            changed = read.clone()
            changed[:, channel] = read[:, channel].mean() if centred else 0
            got = net[int(name) + 2 :](changed).log_softmax(1)
            found.append(float(nn.functional.kl_div(got, wanted, reduction="batchmean", log_target=True)))
    return found


def scores_of(graph: irtool.Graph, name: str, images: Tensor | None = None) -> list[float]:
    groups = channel_groups(graph)
    batches = [] if images is None else [(part,) for part in images.split(64)]
    scores = group_scores(groups, CRITERIA[name], 0, batches)
    layers = {layer.node.location: layer.labels.numpy() for layer in groups.layers}
    names = LAYERS if LAYERS[0] in layers else list(layers)[: len(LAYERS)]
    return [float(score) for name in names for score in scores[groups.group[layers[name]]]]


@pytest.mark.parametrize(
    ("name", "centred", "least"), [("fisher", True, 0.75), ("taylor", False, 0.7), ("hessian", False, 0.4), ("activation", True, 0.5)]
)
def test_ranks_channels_as_leaving_each_out_does(name: str, centred: bool, least: float) -> None:
    net, images = trained()
    truth = leave_one_out(net, images, centred)
    found = scores_of(irtool.trace(net, torch.zeros(2, 3, 10, 10)), name, images)
    assert spearmanr(truth, found).statistic > least


def test_random_scores_do_not() -> None:
    net, images = trained()
    truth = leave_one_out(net, images, True)
    assert abs(spearmanr(truth, scores_of(irtool.trace(net, torch.zeros(2, 3, 10, 10)), "random")).statistic) < 0.5


def test_fpgm_and_lamp_are_their_formulas() -> None:
    net = small()
    graph = irtool.trace(net.eval(), torch.zeros(2, 3, 10, 10))
    fpgm, lamp = [], []
    for name in LAYERS:
        rows = net[int(name)].weight.detach().double().flatten(1).numpy()
        far = np.array([sum(np.linalg.norm(a - b) for b in rows) for a in rows])
        fpgm += list(far / far.mean())
        squares = (rows**2).sum(1)
        lamp += [own / squares[squares >= own].sum() for own in squares]
    np.testing.assert_allclose(scores_of(graph, "fpgm"), fpgm, rtol=1e-6)
    np.testing.assert_allclose(scores_of(graph, "lamp"), lamp, rtol=1e-6)


@torch.no_grad()
def test_apoz_counts_zeros_where_channels_are_read() -> None:
    net, images = small().eval(), torch.randn(130, 3, 10, 10, generator=torch.Generator().manual_seed(5))
    first = net[:2](images)
    last = net[:5](images)  # the linear layer reads behind the pooling
    wanted = [(read != 0).double().mean((0, 2, 3)).tolist() for read in (first, last)]
    found = scores_of(irtool.trace(net, torch.zeros(2, 3, 10, 10)), "apoz", images)
    np.testing.assert_allclose(found, [*wanted[0], *wanted[1]], rtol=1e-6)


@torch.no_grad()
def test_activation_is_the_varying_part_of_what_readers_give() -> None:
    net, images = small().eval(), torch.randn(128, 3, 10, 10, generator=torch.Generator().manual_seed(5))
    read = net[:2](images).double()
    variance = read.transpose(0, 1).flatten(1).var(1, correction=0)
    part = variance * net[2].weight.double().square().sum((0, 2, 3))
    found = scores_of(irtool.trace(net, torch.zeros(2, 3, 10, 10)), "activation", images)
    np.testing.assert_allclose(found[:10], part / part.sum(), rtol=1e-5)


def test_onnx_graphs_with_images_are_planned_by_forward_runs(tmp_path: Path) -> None:
    net, images = trained()
    irtool.export_onnx(irtool.trace(net, torch.zeros(2, 3, 10, 10)), tmp_path / "m.onnx")
    graph = irtool.load_onnx(tmp_path / "m.onnx")
    plan = irtool.plan(graph, budget={"macs": 0.5}, data=images)
    assert plan.criterion == "activation"
    assert 0.4 <= irtool.cost(irtool.prune(graph, plan)).macs / irtool.cost(graph).macs <= 0.5
    found = scores_of(graph, "activation", images[:128])
    wanted = scores_of(irtool.trace(net, torch.zeros(2, 3, 10, 10)), "activation", images[:128])
    np.testing.assert_allclose(found, wanted, rtol=1e-3)
