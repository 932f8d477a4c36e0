"""Parts that no tracer can follow, since they compute with the values of tensors: they stay whole, and the rest is pruned."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import irtool
from irtool.errors import TraceError


class Peaks(nn.Module):
    """Refine the highest place of each map by its neighbours, map by map, in Python."""

    def forward(self, x: Tensor) -> Tensor:
        n, c, _, w = x.shape
        where = x.flatten(2).argmax(2)
        found = torch.stack([where % w, where // w], 2).float()
        for image in range(n):
            for number in range(c):
                column = int(found[image, number, 0])
                if 0 < column < w - 1:
                    found[image, number, 0] += (x[image, number, 0, column + 1] - x[image, number, 0, column - 1]).sign() * 0.25
        return found


class Points(nn.Module):
    """As many points as there are places above a threshold: lists that differ in length from image to image."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(12, 1, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for heat in self.head(x):
            points = torch.nonzero(heat[0] > heat.mean())
            for point in points:
                assert point[0] < x.shape[2]
            found.append(points)
        return found


class AtPoints(nn.Module):
    def forward(self, x: Tensor, lists: list[Tensor]) -> list[Tensor]:
        found = []
        for number, points in enumerate(lists):
            places = points.float()
            places[:, 0] = places[:, 0] / x.shape[2]
            found.append(F.grid_sample(x[number : number + 1], places[None, None], align_corners=True)[0, :, 0].t())
        return found


class Pose(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 12, 3, padding=1), nn.Conv2d(12, 5, 1)
        self.peaks = Peaks()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.peaks(self.c(F.relu(self.b(F.relu(self.a(x))))))
        return out


class Keypoints(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 12, 3, padding=1)
        self.points, self.at = Points(), AtPoints()

    def forward(self, x: Tensor) -> list[Tensor]:
        assert x.size(1) == 3
        y = F.relu(self.b(F.relu(self.a(x))))
        out: list[Tensor] = self.at(y, self.points(y))
        return out


@pytest.mark.parametrize(("kind", "whole", "held"), [(Pose, ["peaks"], "c"), (Keypoints, ["points"], "b")])
def test_what_computes_with_values_stays_whole_and_the_trunk_is_pruned(kind: type[nn.Module], whole: list[str], held: str) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    graph = irtool.trace(model, torch.rand(1, 3, 8, 8))
    assert [note.split()[0] for note in graph.notes if "stays whole" in note] == whole
    plan = irtool.plan(graph, "l1", 0.5, round_to=1)
    left = {layer.name: layer.total - len(layer.removed) for layer in plan.layers}
    assert left["a"] == 8, "the trunk loses half"
    assert next(layer for layer in plan.layers if layer.name == held).reason.startswith("flows into")
    assert irtool.check_prune(graph, plan).ok
    images = torch.rand(1 if graph.fixed else 3, 3, 10, 8)
    expected, found = model(images), graph.module(images)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other)
    if kind is Keypoints:  # it goes over a list with an entry for each image
        with pytest.raises(AssertionError, match="batch is fixed at 1"):
            graph.module.forward(torch.rand(3, 3, 10, 8))


class Wrapped(nn.Module):
    """The whole net hangs in one part, whose own code looks at values: around it there is nothing to prune."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Deciding()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


class Deciding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        out: Tensor = self.b(x if float(x.mean()) > 0 else -x)
        return out


def test_a_model_is_refused_that_would_stay_whole_itself(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TraceError, match=r"cannot be traced .*name its module in leaf="):
        irtool.trace(Wrapped().eval(), torch.rand(1, 3, 8, 8))
    assert capfd.readouterr() == ("", ""), "the exporter's own words are kept back"


def test_a_file_that_cannot_hold_such_a_part_says_which(tmp_path: Path) -> None:
    torch.manual_seed(0)
    graph = irtool.trace(Pose().eval(), torch.rand(1, 3, 8, 8))
    with pytest.raises(irtool.errors.ExportError, match=r"peaks could not be traced and does not go into a file either"):
        irtool.export_onnx(graph, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())
