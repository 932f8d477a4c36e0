"""Distillation without labels behind a reconstruction."""

from __future__ import annotations

import pytest
import torch
from test_reconstruct import images
from torch import Tensor, nn

import irtool
from irtool.errors import OptionError
from irtool.pruning.reconstruct.distil import Distillation
from irtool.pruning.reconstruct.images import layout
from irtool.pruning.slicing.check import check_refitted


def wide_net() -> irtool.FxGraph:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 6),
    )  # fmt: skip
    return irtool.trace(net.eval(), torch.zeros(1, 3, 8, 8))


def test_distilling_comes_nearer_to_the_original_on_other_images() -> None:
    graph, given, other = wide_net(), images((3, 8, 8), 256).float(), images((3, 8, 8), 256, seed=2).float()
    plan = irtool.plan(graph, "l2", 0.5)
    wanted = graph.module(other)
    before = irtool.reconstruct(graph, plan, given)
    made = irtool.Reconstruct(plan, given, distil=8, rate=1e-3)(graph)
    errors = [float((net.module(other) - wanted).square().mean().detach()) for net in (before, made.graph)]
    assert errors[1] < errors[0]
    assert any(note.startswith("distilled: ") for note in made.notes)
    assert check_refitted(graph, plan, made.graph, (other[:4],)).ok


def test_distilling_that_gains_nothing_is_undone() -> None:
    graph, given = wide_net(), images((3, 8, 8), 128).float()
    plan = irtool.plan(graph, "l2", 0.5)
    made = irtool.Reconstruct(plan, given, distil=1, rate=0.9)(graph)
    assert any(note.startswith("distilling undone") for note in made.notes)
    plain = irtool.reconstruct(graph, plan, given)
    assert torch.equal(made.graph.module(given), plain.module(given))


def test_distilling_leaves_ignored_layers_and_refuses_fixed_weights() -> None:
    graph, given = wide_net(), images((3, 8, 8), 128).float()
    plan = irtool.plan(graph, "l2", 0.5)
    sliced, made = irtool.prune(graph, plan, "drop"), irtool.reconstruct(graph, plan, given, distil=2, rate=1e-3, ignore="8")
    assert torch.equal(made.params["8.weight"].data, sliced.params["8.weight"].data)
    with pytest.raises(OptionError, match="distilling changes weights"):
        irtool.reconstruct(graph, plan, given, distil=1, weights=False)


class Laid(nn.Module):
    """Notes how the images lie in memory that it is run on; with `view` it takes one layout alone."""

    def __init__(self, *, viewed: bool) -> None:
        super().__init__()
        self.viewed, self.conv, self.head = viewed, nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 16, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        flat: Tensor = self.head(x.view(x.size(0), -1) if self.viewed else torch.flatten(x, 1))
        return flat


@pytest.mark.parametrize("viewed", [True, False])
def test_batches_are_laid_out_as_the_program_can_take_them(viewed: bool, capfd: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    graph, given = irtool.trace(Laid(viewed=viewed).eval(), torch.zeros(1, 3, 4, 4)), images((3, 4, 4), 128).float()
    (laid,) = layout([graph], (given,))((given,))
    assert torch.equal(laid, given)
    assert laid.is_contiguous(memory_format=torch.channels_last) is not viewed
    made = irtool.Reconstruct(irtool.plan(graph, "l2", 0.5), given, distil=1)(graph)
    assert any(note.startswith("distil") for note in made.notes)
    assert not capfd.readouterr().err


def test_distilling_holds_back_batches_from_all_over() -> None:
    """Images may come class by class: the last eighth would be of the last class alone."""
    held: list[list[float]] = []

    class Looking(Distillation):
        def _loss(self, descent, pairs):  # type: ignore[no-untyped-def]
            held.append([float(batch[0].mean()) for batch, _ in pairs])
            return super()._loss(descent, pairs)

    model = nn.Linear(4, 3).eval()
    graph = irtool.trace(model, torch.zeros(2, 4))
    Looking(graph, graph, [(torch.full((2, 4), float(number)),) for number in range(32)], 1, 1e-4).run()
    assert held[0] == [7.0, 15.0, 23.0, 31.0]
