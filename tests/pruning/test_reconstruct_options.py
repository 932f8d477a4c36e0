"""Reconstruct: what its options ask for holds, and what it cannot take is refused in a line."""

from __future__ import annotations

import pytest
import torch
from test_reconstruct import half_pruned, images

import irtool
from irtool.errors import DataError, LayerError, OptionError
from irtool.progress import Status


@pytest.mark.parametrize("weights", [True, False])
def test_biases_alone_leave_every_weight_as_it_was_sliced(weights: bool) -> None:
    graph, plan = half_pruned()
    sliced = irtool.prune(graph, plan, "drop")
    found = irtool.reconstruct(graph, plan, images((3, 16, 16), 32), weights=weights)
    same = [torch.equal(found.params[n].data, v.data) for n, v in sliced.params.items() if v.data.dim() > 1]
    assert all(same) == (not weights)
    assert not torch.equal(found.run(images((3, 16, 16), 2).float()), sliced.run(images((3, 16, 16), 2).float()))


def test_ignored_layers_keep_their_values() -> None:
    graph, plan = half_pruned()
    sliced = irtool.prune(graph, plan, "drop")
    found = irtool.Reconstruct(plan, images((3, 16, 16), 32), ignore="layer2")(graph)
    inside = [name for name, value in sliced.params.items() if name.startswith("layer2") and value.data.dim() == 4]
    assert inside
    assert all(torch.equal(found.graph.params[name].data, sliced.params[name].data) for name in inside)
    assert any("ignored" in note for note in found.notes)
    with pytest.raises(LayerError, match="no layer is called 'layer9'"):
        irtool.reconstruct(graph, plan, images((3, 16, 16), 32), ignore="layer9")


def test_a_plan_that_removes_nothing_changes_nothing() -> None:
    graph, _ = half_pruned()
    found = irtool.Reconstruct(irtool.plan(graph, "l1", 0.0), images((3, 16, 16), 16))(graph)
    assert not found.changed
    assert all(torch.equal(value.data, graph.params[name].data) for name, value in found.graph.params.items())


def test_too_many_images_for_the_memory_are_left_out_with_a_note() -> None:
    graph, plan = half_pruned()
    found = irtool.Reconstruct(plan, images((3, 16, 16), 512), memory=1 << 21)(graph)
    assert any("of 512 images used" in note for note in found.notes)


def test_progress_runs_to_its_end() -> None:
    graph, plan = half_pruned()
    seen: list[Status] = []
    irtool.reconstruct(graph, plan, images((3, 16, 16), 16), progress=seen.append)
    assert seen[0].task == "run the original"
    assert seen[-1].done == seen[-1].total > 0


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (torch.zeros(0, 3, 16, 16), "a batch is empty"),
        ([], "there are no images"),
        (3, "a int holds no images"),
        ("folder", "a str holds no images"),
        ({"x": torch.zeros(2, 3, 16, 16)}, "a dict holds no images"),
        (torch.zeros(4, 3, 16, 16, dtype=torch.uint8), "Prepare them as for inference"),
        (torch.full((4, 3, 16, 16), float("nan")), "not finite"),
        (torch.zeros(4, 3, 16, 16, dtype=torch.complex64), r"holds complex numbers \(torch.complex64\), the model takes real numbers"),
        (torch.ones(4, 3, 16, 16).to_sparse(), "is a sparse tensor"),
        (torch.zeros(4, 1, 16, 16), "the model does not run on these images"),
        (torch.zeros(4, 3, 16, 16, 2), r"an argument has shape \(4, 3, 16, 16, 2\), the example \(2, 3, 16, 16\)"),
        ([{"x": 1}], "a batch is a dict"),
        ([()], "a batch holds 0 of the 1 arguments"),
        ([("a", 1)], "the model takes a tensor"),
    ],
)
def test_bad_images_are_refused_in_a_line(given: object, text: str) -> None:
    graph, plan = half_pruned()
    with pytest.raises(DataError, match=text) as caught:
        irtool.reconstruct(graph, plan, given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"positions": 0}, {"limit": 0}, {"memory": 5}, {"seed": -1}, {"positions": "many"}, {"size": 3}])
def test_impossible_options_are_refused(options: dict[str, object]) -> None:
    graph, plan = half_pruned()
    with pytest.raises(OptionError, match=r"reconstruct|no number to work with"):
        irtool.reconstruct(graph, plan, images((3, 16, 16), 8), **options)


def _mute() -> list[torch.Tensor | list[torch.Tensor]]:
    colour = torch.tensor([0.3, -2.0, 1.0])[:, None, None]
    return [torch.zeros(8, 3, 16, 16), colour.expand(8, 3, 16, 16), [colour.expand(4, 3, 16, 16)] * 3, torch.ones(1, 3, 16, 16)]


@pytest.mark.parametrize("mute", _mute(), ids=["black", "one colour", "batches of one colour", "one image"])
def test_images_that_say_nothing_are_refused_by_all_that_looks_at_them(mute: torch.Tensor | list[torch.Tensor]) -> None:
    graph, plan = half_pruned()
    with pytest.raises(DataError, match="one value in every position, which says nothing about the net"):
        irtool.reconstruct(graph, plan, mute)
    with pytest.raises(DataError, match="says nothing about the net"):
        irtool.plan(graph, budget={"macs": 0.5}, data=mute)


def test_images_of_different_colours_are_taken() -> None:
    graph, plan = half_pruned()
    colours = torch.arange(24.0).reshape(8, 3, 1, 1).expand(8, 3, 16, 16)
    assert irtool.reconstruct(graph, plan, colours).history


@pytest.mark.parametrize("values", [torch.zeros(6, 5), torch.rand(1, 5).expand(6, 5)], ids=["zeros", "one vector"])
def test_vectors_that_are_all_one_are_refused_and_a_single_one_is_not(values: torch.Tensor) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
    graph = irtool.trace(net, torch.rand(2, 5))
    plan = irtool.plan(graph, "l1", 0.5)
    with pytest.raises(DataError, match="all 6 images hold one value in every position"):
        irtool.reconstruct(graph, plan, values)
    assert irtool.reconstruct(graph, plan, torch.rand(1, 5)).history


def test_layers_that_read_constants_keep_their_weights_and_are_told() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 1), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 1), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 1)
    ).eval()
    net[0].bias.data -= 100  # every channel is dead on these images
    net[0].bias.data[:4] += 200
    net[0].weight.data[:4] = 0
    graph = irtool.trace(net, torch.rand(2, 3, 8, 8))
    plan = irtool.plan(graph, "l1", 0.5, "local", round_to=1, ignore="0")
    sliced, found = irtool.prune(graph, plan, "drop"), irtool.Reconstruct(plan, torch.rand(8, 3, 8, 8))(graph)
    assert any(note.startswith("2 of 3 layers, as 2, read the same everywhere on these images") for note in found.notes)
    assert all(torch.equal(found.graph.params[f"{layer}.weight"].data, sliced.params[f"{layer}.weight"].data) for layer in (0, 2, 4))
    x = torch.rand(5, 3, 8, 8)
    assert torch.allclose(found.graph.run(x), net(x), atol=1e-5)  # the biases take up all that there is
