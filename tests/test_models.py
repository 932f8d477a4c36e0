"""The reference models: their shapes, their published form, and that each way of tracing takes them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from random_norms import randomise
from torch import Tensor, nn

from irtool.models import ChannelSelection, PreResNet, available, build
from irtool.models.preresnet import Bottleneck

PUBLISHED = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "preresnet38"

CASES = {
    "preresnet11": ("PreResNet", {"depth": 11}),
    "preresnet20-half": ("PreResNet", {"depth": 20, "width": 0.5, "num_classes": 7}),
    "vgg11": ("VGG", {"depth": 11, "width": 0.5}),
    "vgg13": ("VGG", {"depth": 13, "width": 0.25, "num_classes": 7}),
    "vgg16": ("VGG", {"depth": 16, "width": 0.25}),
    "vgg19": ("VGG", {"depth": 19, "width": 0.13}),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def model(request: pytest.FixtureRequest) -> nn.Module:
    name, arguments = request.param
    torch.manual_seed(0)
    return randomise(build(name, **arguments)).eval()


def images(size: int = 32) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def classes(model: nn.Module) -> int:
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1].out_features


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("size", [32, 28, 48])
def test_any_image_size_gives_logits(model: nn.Module, size: int) -> None:
    logits = model(images(size))
    assert logits.shape == (2, classes(model))
    assert torch.isfinite(logits).all()
    assert not torch.allclose(logits[0], logits[1])


def test_symbolic_trace_gives_the_same_program(model: nn.Module) -> None:
    traced = torch.fx.symbolic_trace(model)
    assert torch.equal(traced(images()), model(images()))
    kinds = {type(traced.get_submodule(str(node.target))) for node in traced.graph.nodes if node.op == "call_module"}
    assert ChannelSelection not in kinds


def test_export_takes_it(model: nn.Module) -> None:
    exported = torch.export.export(model, (images(),)).module()
    torch.testing.assert_close(exported(images()), model(images()))


def test_every_parameter_gets_a_gradient(model: nn.Module) -> None:
    model.train()(images()).square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.abs().sum()] == []


def test_preresnet38_has_the_published_size() -> None:
    net = PreResNet(38)
    indexes = sum(buffer.numel() for name, buffer in net.named_buffers() if name.endswith("select.indexes"))
    assert parameters(net) == 404_954
    # The published 406.76 K counts the selections' indexes, which are parameters there and buffers here.
    assert parameters(net) + indexes == 406_762


@pytest.mark.parametrize(("depth", "blocks"), [(11, 1), (38, 4), (92, 10)])
def test_preresnet_depth_counts_blocks(depth: int, blocks: int) -> None:
    with torch.device("meta"):
        net = PreResNet(depth)
    assert [len(stage) for stage in (net.layer1, net.layer2, net.layer3)] == [blocks] * 3


@pytest.mark.parametrize("depth", [11, 13, 16, 19])
def test_vgg_depth_counts_weight_layers(depth: int) -> None:
    with torch.device("meta"):
        net = build("VGG", depth=depth)
    # The paper counts three linear layers, of which this net has one.
    assert sum(isinstance(module, nn.Conv2d) for module in net.modules()) + 3 == depth


def test_vgg16_width_divides_the_parameters() -> None:
    with torch.device("meta"):
        full, half, quarter = (parameters(build("VGG", depth=16, width=width)) for width in (1, 1 / 2, 1 / 4))
    # Direct width reduction as published: a half has about a quarter of the parameters, a quarter a sixteenth.
    assert full == 14_724_042
    assert full / half == pytest.approx(4, rel=0.01)
    assert full / quarter == pytest.approx(16, rel=0.01)


@pytest.mark.parametrize("name", ["normal", "sparse"])
def test_published_state_dict_loads(name: str) -> None:
    path = PUBLISHED / f"{name}.pth"
    if not path.is_file():
        pytest.skip(f"no {path.name}: the published checkpoints are not part of this project")
    state = torch.load(path, weights_only=True)["state_dict"]
    net = PreResNet(38)
    net.load_state_dict(state, strict=True)
    assert net.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


class TestChannelSelection:
    mask = torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0])
    stream = torch.arange(2 * 5 * 3.0).reshape(2, 5, 3, 1)

    def test_all_ones_is_the_identity(self) -> None:
        assert ChannelSelection(5)(self.stream) is self.stream

    def test_keeps_the_channels_that_are_not_zero(self) -> None:
        selection = ChannelSelection(5)
        selection.keep(self.mask)
        assert torch.equal(selection(self.stream), self.stream[:, [1, 3, 4]])
        selection.keep(torch.ones(5))
        assert selection(self.stream) is self.stream

    def test_the_choice_travels_in_the_state_dict(self) -> None:
        first, second = ChannelSelection(5), ChannelSelection(5)
        first.keep(self.mask)
        assert first.state_dict().keys() == {"indexes"}
        second.load_state_dict(first.state_dict(), strict=True)
        assert torch.equal(second(self.stream), self.stream[:, [1, 3, 4]])

    def test_a_selection_is_one_gather_in_a_trace(self) -> None:
        net = randomise(Bottleneck(5, 5, 1)).eval()
        net.select.keep(self.mask)
        net.conv1 = nn.Conv2d(3, 5, 1, bias=False)
        traced = torch.fx.symbolic_trace(net)
        assert [node.target for node in traced.graph.nodes if node.op == "get_attr"] == ["select.positions"]
        image = torch.randn(2, 5, 4, 4)
        assert torch.equal(traced(image), net(image))

    def test_refuses_what_cannot_be_selected(self) -> None:
        selection = ChannelSelection(5)
        with pytest.raises(ValueError, match="Give one entry for each of the 5 channels"):
            selection.keep(torch.ones(4))
        with pytest.raises(ValueError, match="At least one entry must not be zero"):
            selection.keep(torch.zeros(5))
        assert selection(self.stream) is self.stream


def test_available_lists_what_build_takes() -> None:
    assert available() == ["PreResNet", "VGG"]
    assert isinstance(build("preresnet", depth=11), PreResNet)


@pytest.mark.parametrize(
    ("name", "arguments", "remedy"),
    [
        ("ResNet", {}, "Choose one of: PreResNet, VGG"),
        ("PreResNet", {"depth": 34}, r"11, 20, 29, 38"),
        ("PreResNet", {"depth": 2}, r"11, 20, 29, 38"),
        ("PreResNet", {"depth": 38, "width": 0.01}, "Choose more than 1/32"),
        ("PreResNet", {"depth": 38, "width": float("nan")}, "Choose more than 1/32"),
        ("PreResNet", {"depth": 38, "num_classes": 0}, "must be 1 or more"),
        ("VGG", {"depth": 12}, "11, 13, 16, 19"),
        ("VGG", {"depth": 16, "width": -1}, "Choose more than 1/128"),
        ("VGG", {"depth": 16, "width": float("inf")}, "width inf"),
        ("VGG", {"depth": 16, "num_classes": 0}, "must be 1 or more"),
    ],
)
def test_bad_arguments_name_the_good_ones(name: str, arguments: dict, remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        build(name, **arguments)
