"""Reconstruct: what kept channels can express is expressed, and values alone change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import irtool
from irtool.errors import OptionError
from irtool.hosts.torch.channel_select import ChannelSelect
from irtool.models import PreResNet
from irtool.pruning.slicing.check import check_refitted


class Chain(nn.Module):
    """A layer that makes channels, one in between where given, and one that reads them."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Residual(nn.Module):
    """A stream that two branches add to; batch norms between the last convolution and the addition where asked for."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.a, self.b = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 8, 1, bias=not norm)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.last = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x + self.norm(self.b(torch.relu(self.a(x)))))


class Tokens(nn.Module):
    """Linear layers on tokens, around attention."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(12, 12) for _ in range(4))
        self.up, self.down = nn.Linear(12, 16), nn.Linear(16, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.out(nn.functional.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))
        return x + self.down(torch.relu(self.up(x)))


class Flat(nn.Module):
    """A linear layer behind a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 9, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.conv(x)).flatten(1))


class Shared(nn.Module):
    """A convolution that is called twice, and one that reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.last(torch.relu(self.twice(torch.relu(self.twice(x)))))


def chain(*layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: Chain(*layers)


C1, C2, C3 = nn.Conv1d, nn.Conv2d, nn.Conv3d
FAMILIES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "plain": (lambda: Chain(C2(3, 8, 3), nn.ReLU(), C2(8, 6, 3, stride=2, padding=1)), (3, 9, 9), "body.0"),
    "no bias": (lambda: Chain(C2(3, 8, 3, bias=False), nn.ReLU(), C2(8, 6, 3, bias=False)), (3, 9, 9), "body.0"),
    "batch norm": (
        lambda: Chain(C2(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), C2(8, 6, 3, bias=False), nn.BatchNorm2d(6)),
        (3, 9, 9),
        "body.0",
    ),
    "grouped": (lambda: Chain(C2(4, 16, 1), nn.ReLU(), C2(16, 8, 3, padding=(1, 2), dilation=2, groups=2)), (4, 9, 8), "body.0"),
    "depthwise": (lambda: Chain(C2(4, 8, 1), nn.ReLU(), C2(8, 8, 3, padding=1, groups=8), C2(8, 5, 1)), (4, 8, 8), "body.0"),
    "multiplier": (lambda: Chain(C2(4, 8, 1), nn.ReLU(), C2(8, 16, 3, groups=8), C2(16, 5, 1)), (4, 8, 8), "body.0"),
    "transposed": (lambda: Chain(C2(3, 8, 1), nn.ReLU(), nn.ConvTranspose2d(8, 5, 3, 2, 1, 1)), (3, 6, 7), "body.0"),
    "grouped transposed": (lambda: Chain(C2(4, 8, 1), nn.ReLU(), nn.ConvTranspose2d(8, 6, 3, 2, groups=2)), (4, 6, 6), "body.0"),
    "reflected": (lambda: Chain(C2(3, 8, 3), nn.ReLU(), C2(8, 5, 3, padding=1, padding_mode="reflect")), (3, 8, 8), "body.0"),
    "same": (lambda: Chain(C2(3, 8, 3), nn.ReLU(), C2(8, 5, 4, padding="same")), (3, 8, 8), "body.0"),
    "1-D": (lambda: Chain(C1(3, 8, 3), nn.ReLU(), C1(8, 5, 5, padding=2)), (3, 20), "body.0"),
    "3-D": (lambda: Chain(C3(2, 8, 3), nn.ReLU(), C3(8, 4, 2, stride=(1, 2, 1))), (2, 6, 7, 6), "body.0"),
    "linear": (lambda: Chain(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 5)), (6,), "body.0"),
    "tokens": (Tokens, (7, 12), "up"),
    "flat": (Flat, (3, 3, 3), "conv"),
    "residual": (lambda: Residual(False), (3, 8, 8), "a"),
    "residual with batch norm": (lambda: Residual(True), (3, 8, 8), "a"),
}


def parameters_drawn(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)


def with_combinations(model: nn.Module, path: str) -> None:
    """Make the second half of a layer's channels twice the first half's, so that a ReLU keeps them so; then they need not be there."""
    layer = model.get_submodule(path)
    half = layer.weight.shape[0] // 2
    with torch.no_grad():
        layer.weight[half:] = layer.weight[:half] * 2
        if layer.bias is not None:
            layer.bias[half:] = layer.bias[:half] * 2
        for module in model.modules():  # and a batch norm between keeps them so
            if isinstance(module, nn.BatchNorm2d) and module.num_features == 2 * half and path == "body.0":
                for own in (module.weight, module.bias):
                    own[half:] = own[:half]
                module.running_mean[half:] = module.running_mean[:half] * 2
                module.running_var[half:] = (module.running_var[:half] + module.eps) * 4 - module.eps


def plan_without(graph: irtool.FxGraph, path: str, removed: list[int]) -> irtool.Plan:
    """A plan that takes these channels of one layer, and what lives and dies with them."""
    empty = irtool.plan(graph, "random", 0.0)
    groups = irtool.channel_groups(graph)
    layer = next(layer for layer in groups.layers if layer.node.location == path)
    gone = set(groups.group[layer.labels.numpy()][removed].tolist())
    data = empty.to_dict()
    by_place = {(one.key[0], one.key[1] if isinstance(one.key[1], int) else one.key[1][0]): one for one in groups.layers}
    for entry in data["layers"]:
        own = groups.group[by_place[entry["parameter"], entry["axis"]].labels.numpy()]
        entry["removed"] = [place for place, group in enumerate(own.tolist()) if group in gone]
    return irtool.Plan.from_dict(data)


def images(sizes: tuple[int, ...], count: int = 96, seed: int = 1) -> Tensor:
    return torch.randn(count, *sizes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def drawn(make: Callable[[], nn.Module], sizes: tuple[int, ...], path: str) -> irtool.FxGraph:
    torch.manual_seed(0)
    model = make()
    parameters_drawn(model)
    with_combinations(model, path)
    return irtool.trace(model.eval(), torch.zeros(2, *sizes)).to(torch.float64)


def removed_of(name: str, graph: irtool.FxGraph, path: str) -> list[int]:
    """Of each pair of like channels one, equally many from each group."""
    half = next(len(layer.labels) for layer in irtool.channel_groups(graph).layers if layer.node.location == path) // 2
    if name.startswith("grouped"):  # pairs lie across the two groups of the reader
        return []
    return [half + place for place in range(half)]


@pytest.mark.parametrize("name", FAMILIES)
def test_what_kept_channels_can_express_is_reproduced(name: str) -> None:
    make, sizes, path = FAMILIES[name]
    graph = drawn(make, sizes, path)
    layer = graph.module.get_submodule(path)
    removed = removed_of(name, graph, path)
    if not removed:  # pairs within each group: channels 0, 1 of each group are twice 2, 3 ...
        removed = pairs_within(layer)
        graph = graph.clone()
    if name in ("depthwise", "multiplier"):
        like_filters(graph)
    result = irtool.Reconstruct(plan_without(graph, path, removed), images(sizes))(graph)
    x = images(sizes, 5, 2)
    expected, got = graph.run(x), result.graph.run(x)
    assert result.changed
    dropped = irtool.prune(graph, plan_without(graph, path, removed), "drop").run(x)
    assert (dropped - expected).abs().max() > 1e-2 * expected.abs().max()
    assert (got - expected).abs().max() <= 1e-6 * expected.abs().max(), result.notes
    checked = check_refitted(graph, plan_without(graph, path, removed), result.graph, (x,))
    assert checked.ok, checked


def pairs_within(layer: nn.Module) -> list[int]:
    """Rearrange like channels so that each group of two halves holds both of a pair; returns one of each pair."""
    count = layer.weight.shape[0]
    quarter = count // 4
    order = [*range(quarter), *range(2 * quarter, 3 * quarter), *range(quarter, 2 * quarter), *range(3 * quarter, count)]
    with torch.no_grad():
        layer.weight.copy_(layer.weight[order].clone())
        layer.bias.copy_(layer.bias[order].clone())
    return [place for place in range(count) if place % (2 * quarter) >= quarter]


def like_filters(graph: irtool.FxGraph) -> None:
    """A depthwise layer that treats like channels alike, so that they stay combinations behind it."""
    layer = graph.module.get_submodule("body.2")
    half = layer.weight.shape[0] // 2
    with torch.no_grad():
        layer.weight[half:] = layer.weight[:half]
        layer.bias[half:] = layer.bias[:half] * 2


@pytest.mark.parametrize("norm", [False, True])
def test_a_branch_makes_up_for_what_the_stream_lacks(norm: bool) -> None:
    """The first layer's outputs are cut where the second reads them; only the sum can put right what comes after."""
    graph = drawn(lambda: Residual(norm), (3, 8, 8), "a")
    plan = irtool.plan(graph, "l1", 0.4, "local", residual="keep")
    x = images((3, 8, 8), 64, 2)
    expected = graph.run(x)
    full, biases = (irtool.reconstruct(graph, plan, images((3, 8, 8)), weights=weights).run(x) for weights in (True, False))
    absorbed = irtool.prune(graph, plan, calibration=[images((3, 8, 8))]).run(x)
    errors = [float((got - expected).square().mean()) for got in (full, biases, absorbed)]
    assert errors[0] < 0.7 * errors[1]
    assert errors[1] <= 1.01 * errors[2]


def half_pruned() -> tuple[irtool.FxGraph, irtool.Plan]:
    torch.manual_seed(0)
    model = PreResNet(11, width=0.25)
    parameters_drawn(model)
    graph = irtool.trace(model.eval(), torch.zeros(2, 3, 16, 16))
    return graph, irtool.plan(graph, "bn_scale", 0.5, "global", "select", round_to=1)


def test_every_layer_of_a_residual_net_gains_on_other_images() -> None:
    graph, plan = half_pruned()
    result = irtool.Reconstruct(plan, images((3, 16, 16)))(graph)
    x = images((3, 16, 16), 64, 2).float()
    expected = graph.run(x)
    errors = [float((net.run(x) - expected).square().mean()) for net in (result.graph, irtool.prune(graph, plan))]
    assert errors[0] < errors[1]
    changes = [note for note in result.notes if "->" in note]
    assert changes
    for note in changes:
        before, after = (float(part) for part in note.split("error ")[1].split(" (")[0].split(" -> "))
        assert after < before


def test_the_callers_graph_stays_and_two_runs_are_equal() -> None:
    graph, plan = half_pruned()
    before = {name: value.data.clone() for name, value in graph.params.items()}
    training = [module.training for module in graph.module.modules()]
    first, second = (irtool.reconstruct(graph, plan, images((3, 16, 16), 32)) for _ in range(2))
    assert all(torch.equal(value.data, before[name]) for name, value in graph.params.items())
    assert [module.training for module in graph.module.modules()] == training
    assert all(torch.equal(value.data, second.params[name].data) for name, value in first.params.items())


def test_how_images_are_cut_hardly_matters() -> None:
    graph, plan = half_pruned()
    x = images((3, 16, 16), 64)
    labelled = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x.float(), torch.zeros(64)), batch_size=10)
    ways = [x, list(x), list(x.split(7)), labelled, x.numpy(), torch.utils.data.TensorDataset(x.float(), torch.zeros(64))]
    nets = [irtool.reconstruct(graph, plan, way, positions=10_000) for way in ways]
    probe = images((3, 16, 16), 4, 3).float()
    outputs = [net.run(probe) for net in nets]
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0], rtol=1e-3, atol=1e-3)


def test_the_result_saves_loads_replays_folds_exports_and_traces(tmp_path: Path) -> None:
    graph, plan = half_pruned()
    found = irtool.reconstruct(graph, plan, images((3, 16, 16), 32))
    x = images((3, 16, 16), 4, 2).float()
    expected = found.run(x)
    irtool.save(found, tmp_path / "m.safetensors")
    assert torch.equal(irtool.load(tmp_path / "m.safetensors").run(x), expected)
    model = PreResNet(11, width=0.25)
    assert torch.equal(irtool.load(tmp_path / "m.safetensors", model=model).run(x), expected)
    torch.testing.assert_close(irtool.trace(found.module, torch.zeros(2, 3, 16, 16)).run(x), expected)
    folded = irtool.fold_batchnorm(found)
    torch.testing.assert_close(folded.run(x), expected, rtol=1e-4, atol=1e-4)
    irtool.export_onnx(folded, tmp_path / "m.onnx")
    torch.testing.assert_close(irtool.load_onnx(tmp_path / "m.onnx").run(x)[0], expected, rtol=1e-4, atol=1e-4)


def test_stages_aim_at_the_first_graph() -> None:
    graph, first = half_pruned()
    x, probe = images((3, 16, 16)), images((3, 16, 16), 64, 2).float()
    expected = graph.run(probe)
    middle = irtool.reconstruct(graph, first, x)
    second = irtool.plan(middle, "bn_scale", 0.3, "global", "select")
    aimed, copied = (irtool.reconstruct(middle, second, x, original=original) for original in (graph, None))
    errors = [float((net.run(probe) - expected).square().mean()) for net in (aimed, copied)]
    assert errors[0] <= errors[1]
    with pytest.raises(OptionError, match="the graph was not made from it"):
        irtool.reconstruct(graph, first, x, original=middle)
    folded = irtool.fold_batchnorm(middle)
    after = irtool.plan(folded, "l1", 0.2)
    with pytest.raises(OptionError, match="fold_batchnorm lies between"):
        irtool.reconstruct(folded, after, x, original=graph)


def test_two_stages_of_combinations_are_reproduced() -> None:
    make, sizes, path = FAMILIES["plain"]
    graph = drawn(make, sizes, path)
    middle = irtool.reconstruct(graph, plan_without(graph, path, [1, 4]), images(sizes))
    # 0 2 3 5 6 7 were left; without 2 and 7 each of the four pairs has one.
    last = irtool.reconstruct(middle, plan_without(middle, path, [1, 5]), images(sizes), original=graph)
    x = images(sizes, 5, 2)
    assert last.params["body.0.weight"].sizes[0] == 4
    assert (last.run(x) - graph.run(x)).abs().max() <= 1e-6 * graph.run(x).abs().max()


def test_a_shared_layer_is_left_alone_with_a_note() -> None:
    torch.manual_seed(0)
    graph = irtool.trace(Shared().eval(), torch.zeros(2, 3, 8, 8))
    found = irtool.Reconstruct(irtool.plan(graph, "l1", 0.5), images((3, 8, 8), 16))(graph)
    assert any("its weight serves 2 calls" in note for note in found.notes)
    assert any("last" in note and "->" in note for note in found.notes)


@pytest.mark.parametrize("name", ["plain", "no bias", "grouped", "depthwise", "transposed", "1-D", "linear", "residual", "tokens", "flat"])
def test_onnx_graphs_are_reconstructed_as_torch_graphs_are(name: str, tmp_path: Path) -> None:
    make, sizes, _ = FAMILIES[name]
    torch.manual_seed(0)
    model = make()
    irtool.export_onnx(irtool.trace(model.eval(), torch.zeros(2, *sizes)), tmp_path / "m.onnx")
    graph = irtool.load_onnx(tmp_path / "m.onnx")
    plan = irtool.plan(graph, "l1", 0.4, "local", residual="keep")
    result = irtool.Reconstruct(plan, images(sizes).float())(graph)
    x = images(sizes, 32, 2).float()
    expected = graph.run(x)[0]
    errors = [float((net.run(x)[0] - expected).square().mean()) for net in (result.graph, irtool.prune(graph, plan))]
    assert errors[0] < 0.9 * errors[1], result.notes
    checked = check_refitted(graph, plan, result.graph, (x,))
    assert checked.ok, checked
    irtool.save_onnx(result.graph, tmp_path / "small.onnx")
    torch.testing.assert_close(irtool.load_onnx(tmp_path / "small.onnx").run(x)[0], result.graph.run(x)[0])


def test_a_net_whose_structure_is_wrong_does_not_pass_as_refitted() -> None:
    graph, plan = half_pruned()
    x, found = (images((3, 16, 16), 4, 2).float(),), irtool.reconstruct(graph, plan, images((3, 16, 16), 32))
    assert check_refitted(graph, plan, found, x).ok
    wrong = found.clone()
    selects = [module for module in wrong.module.modules() if isinstance(module, ChannelSelect)]
    longest = max(selects, key=lambda module: len(module.index))
    longest.index = longest.index.flip(0)
    assert not check_refitted(graph, plan, wrong, x).ok
