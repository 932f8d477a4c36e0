"""Kind (iii): a size of the example that a graph holds is never silent. It is told, with the line, and refused where numbers would differ."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import irtool
from irtool.errors import ExportError
from irtool.hosts.torch.tracing import trace as tracing


class Net(nn.Module):
    def __init__(self, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 5, 1)
        self.register_buffer("idx", torch.tensor([0, 3, 3, 6, 1, 2, 4, 5]))
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def _scatter(net: Any, x: Tensor) -> Tensor:
    x = net.a(x)
    i = net.idx.view(1, -1, 1, 1).expand(x.shape[0], -1, x.shape[2], x.shape[3])
    return net.b(torch.zeros_like(x).scatter_add(1, i, x))


def _gather(net: Any, x: Tensor) -> Tensor:
    x = net.a(x)
    return net.b(x.gather(1, net.idx.view(1, -1, 1, 1).repeat(int(x.shape[0]), 1, *map(int, x.shape[2:]))))


def _only_first(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.b(torch.stack([y[i] * (i + 1) for i in range(len(x))]))


def _half_width(net: Any, x: Tensor) -> Tensor:
    return net.b(net.a(x))[..., : int(x.shape[-1]) // 2]


def _scale(net: Any, x: Tensor) -> Tensor:
    return net.b(net.a(x)) * float(x.shape[2])


def _crop(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    cut = [slice(None, int(size) // 2 * 2) for size in y.shape[2:]]
    return net.b(y[:, :, cut[0], cut[1]])


def _by_width(net: Any, x: Tensor) -> Tensor:
    y = net.b(net.a(x))
    return y if x.shape[-1] < 12 else y * 2


NETS = [_by_width, _scatter, _gather, _only_first, _half_width, _scale, _crop]


@pytest.mark.parametrize("function", NETS)
@pytest.mark.parametrize("batch", [1, 2])
def test_at_every_size_right_or_refused_and_told(function: Callable[[Any, Tensor], Any], batch: int) -> None:
    torch.manual_seed(0)
    model = Net(function).eval()
    graph = irtool.trace(model, torch.randn(batch, 3, 8, 8))
    plan = irtool.plan(graph, "l1", 0.5)
    found, pruned = irtool.check_prune(graph, plan), irtool.prune(graph, plan)
    fixed = False
    for shape in [(4, 3, 8, 8), (1, 3, 8, 8), (batch, 3, 16, 16), (batch, 3, 8, 16), (3, 3, 16, 24)]:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            try:
                got = graph.run(x)
            except (RuntimeError, AssertionError, IndexError, ValueError):
                fixed = True
                with pytest.raises((RuntimeError, AssertionError, IndexError, ValueError)):
                    pruned.run(x)
                continue
            torch.testing.assert_close(got, model(x))
    assert found.ok
    assert found.fixed == fixed
    assert bool([note for note in graph.notes if "is fixed at" in note]) == fixed


def test_the_note_says_by_which_line() -> None:
    line = _by_width.__code__.co_firstlineno + 2
    graph = irtool.trace(Net(_by_width).eval(), torch.randn(2, 3, 8, 8))
    assert graph.fixed
    assert graph.notes == (
        f"the image is fixed at 8 (axis 3 of input 0), by test_brought_sizes.py:{line}: the model takes other sizes, this graph does not",
    )


def test_a_file_claims_a_free_batch_only_where_numbers_are_equal(tmp_path: Path) -> None:
    graph = irtool.trace(Net(_only_first).eval(), torch.randn(2, 3, 8, 8))
    for made in (graph, irtool.prune(graph, irtool.plan(graph, "l1", 0.5))):
        with pytest.raises(ExportError, match="no other batch size"):
            irtool.export_onnx(made, tmp_path / "m.onnx")
        irtool.export_onnx(made, tmp_path / "m.onnx", dynamic_batch=False)
        assert onnx.load(tmp_path / "m.onnx").graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2


@pytest.mark.parametrize("function", [_half_width, _scale, _crop])
def test_sizes_that_become_whole_numbers_are_computed_by_the_graph(function: Callable[[Any, Tensor], Any]) -> None:
    assert not irtool.trace(Net(function).eval(), torch.randn(1, 3, 8, 8)).fixed


def test_a_model_that_takes_one_size_has_no_note() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()
    graph = irtool.trace(model, torch.randn(2, 3, 8, 8))
    assert (graph.notes, graph.fixed) == ((), ())


def _by_fours(net: Any, x: Tensor) -> Tensor:
    return net.b(net.a(x)) * (int(x.shape[0]) // 4 + 1)


@pytest.mark.parametrize("traced", [False, True])
def test_a_file_is_compared_at_an_odd_batch_too(traced: bool, tmp_path: Path) -> None:
    """A number that is the same for one image and for two."""
    model = Net(_by_fours).eval()
    x = torch.randn(5, 3, 8, 8)
    try:
        if traced:
            irtool.export_onnx(irtool.trace(model, x[:1]), tmp_path / "m.onnx")
        else:
            irtool.export_onnx(model, tmp_path / "m.onnx", example_inputs=x[:1])
    except ExportError:
        return
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), model(x), rtol=1e-4, atol=1e-5)


def test_an_exported_graph_with_numbers_made_of_sizes_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "ATTEMPTS", (("export", False),))

    def function(net: Any, x: Tensor) -> Tensor:
        y = net.a(x).clone()
        y[:, :4] = y[:, :4].relu()
        return net.b(y) * (int(x.shape[2] / 4) + max(x.shape[3], 12)) * float(x.shape[0])

    model = Net(function).eval()
    graph = irtool.trace(model, torch.randn(1, 3, 8, 8))
    assert (graph.tracer, graph.fixed) == ("export", ())
    irtool.save(graph, tmp_path / "m.irt")
    loaded = irtool.load(tmp_path / "m.irt")
    for shape in [(1, 3, 8, 8), (5, 3, 12, 20), (2, 3, 16, 8)]:
        x = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(loaded.run(x), model(x))


def _pooled_if_even(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.b(F.avg_pool2d(y, 2) if y.shape[-1] % 16 == 0 else y)


def _pooled_if_large(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.b(F.avg_pool2d(y, 2) if y.shape[-2] > 40 and y.shape[-1] > 40 else y)


def _padded_if_odd(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    if y.shape[-1] % 2:
        y = F.pad(y, (0, 1))
    return net.b(F.max_pool2d(y, 2))


def _doubled_if_listed(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.b(y * 2 if 17 in y.shape else y)


def _halved_if_huge(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.b(y / 2 if y.shape[-2] > 200 else y)


@pytest.mark.parametrize(
    ("function", "right", "otherwise"),
    [(_halved_if_huge, (2, 3, 96, 48), (1, 3, 208, 16)), (_doubled_if_listed, (2, 3, 16, 48), (1, 3, 16, 17)), (_pooled_if_even, (2, 3, 16, 48), (1, 3, 16, 24)), (_pooled_if_large, (2, 3, 24, 24), (1, 3, 64, 64)), (_padded_if_odd, (2, 3, 10, 20), (1, 3, 16, 17))],
)  # fmt: skip
def test_a_decision_by_size_is_told_and_guarded_where_it_falls_otherwise(function: Any, right: Any, otherwise: Any) -> None:
    """Other sizes at which the model decides as on the example stay free."""
    model = Net(function).eval()
    graph = irtool.trace(model, torch.randn(1, 3, 16, 16))
    assert any("decides by the size of the image, by test_brought_sizes.py:" in note for note in graph.notes)
    x = torch.randn(right)
    torch.testing.assert_close(graph.module(x), model(x))
    model(torch.randn(otherwise))
    with pytest.raises(AssertionError, match=r"decides otherwise at this size, by test_brought_sizes.py:"):
        graph.module.forward(torch.randn(otherwise))


def test_a_decision_is_guarded_beside_a_batch_that_is_fixed_and_no_size_is_run_twice() -> None:
    ran: list[tuple[int, ...]] = []

    class Decides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 8, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            if type(x) is Tensor:
                ran.append(tuple(x.shape))
            y = torch.cat([self.a(x)[i : i + 1] * (i + 1) for i in range(len(x))])
            return y * 2 if x.shape[2] > 40 else y

    graph = irtool.trace(Decides().eval(), torch.randn(1, 3, 16, 16))
    elsewhere = [shape for shape in ran if shape != (1, 3, 16, 16)]
    assert elsewhere
    assert len(elsewhere) == len(set(elsewhere))
    assert [entry.what for entry in graph.fixed] == ["batch", "image"]
    for shape in ((3, 3, 16, 16), (1, 3, 64, 16)):
        with pytest.raises(AssertionError):
            graph.module.forward(torch.randn(shape))


def test_what_a_model_kept_of_an_earlier_run_is_made_anew() -> None:
    """A model that ran before it is traced holds the grid of the example's size: the graph makes it at each size."""

    class Kept(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.size = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1), None

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            size = list(y.shape[-2:])
            if self.size != size:
                self.grid, self.size = torch.ones(1, 1, *size).cumsum(-1), size
            return self.b(y * self.grid)

    model = Kept().eval()
    x = torch.randn(1, 3, 16, 16)
    model(x)
    grid = model.grid
    graph = irtool.trace(model, x)
    assert not graph.fixed
    assert model.grid is grid
    for shape in [(1, 3, 16, 16), (3, 3, 24, 20)]:
        x = torch.randn(shape)
        torch.testing.assert_close(graph.module(x), model(x))
