"""Slicing the user's own module in place: equal to the pruned graph, or refused and untouched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision.models as tv
from archive_nets import Recurrent, Tied, WithOwn, densenet
from random_norms import randomise
from torch import Tensor, nn

import irtool
from irtool.errors import OptionError, PlanError


class Sizes(nn.Module):
    """Modules that note sizes of their own: depthwise, layer norm over channels, group norm of one channel, PReLU, a raw scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.deep = nn.Conv2d(8, 8, 3, groups=8, padding=1)
        self.norm = nn.GroupNorm(8, 8)
        self.act = nn.PReLU(8)
        self.scale = nn.Parameter(torch.rand(8, 1, 1))
        self.mix = nn.Linear(8, 12)
        self.layer = nn.LayerNorm(12)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.deep(self.stem(x)))) * self.scale
        return self.describe(self.layer(self.mix(x.mean((2, 3)))))

    def describe(self, x: Tensor) -> Tensor:
        """A method that the class keeps."""
        return self.head(x.relu())


class Baked(nn.Module):
    """A net whose forward states a size, by the way `kind`."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        ways: dict[str, Callable[[Tensor], Tensor]] = {
            "view": lambda x: x.view(-1, 8, x.shape[2] * x.shape[3])[..., None],
            "split": lambda x: torch.cat(torch.split(x, [3, 5], dim=1), 1),
            "slice": lambda x: torch.cat((x[:, 3:8], x[:, :3]), 1),
            "size": lambda x: x.flatten(2).view(x.size(0), x.size(1), -1)[..., None],
        }
        return self.head(self.b(ways[self.kind](x)).relu().mean((2, 3)))


class Raw(nn.Module):
    """A convolution without a bias that no module holds."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.weight = nn.Parameter(torch.randn(4, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.bn(self.a(x)).relu(), self.weight).mean((2, 3))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "preresnet": (lambda: irtool.models.PreResNet(11), (2, 3, 32, 32)),
    "vgg": (lambda: irtool.models.VGG(11, width=0.25), (2, 3, 32, 32)),
    "mobilenet_v2": (lambda: tv.mobilenet_v2(width_mult=0.25, num_classes=5), (2, 3, 64, 64)),
    "densenet": (densenet, (2, 3, 64, 64)),
    "squeezenet": (lambda: tv.squeezenet1_1(num_classes=5), (2, 3, 64, 64)),
    "sizes": (Sizes, (2, 3, 8, 8)),
    "tied": (Tied, (2, 3, 8, 8)),
    "recurrent": (Recurrent, (2, 1, 8, 12)),
    "computed size": (lambda: Baked("size"), (2, 3, 8, 8)),
}


def state(model: nn.Module) -> dict[str, Any]:
    """All that may change: tensors by identity, and attributes by value."""
    tensors = {name: id(tensor) for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    notes = {
        f"{path}.{key}": str(value)
        for path, m in model.named_modules()
        for key, value in vars(m).items()
        if isinstance(value, int | tuple | str)
    }
    return {**tensors, **notes}


@pytest.mark.parametrize("constants", ["drop", "absorb"])
@pytest.mark.parametrize("name", NETS)
def test_the_class_computes_what_the_pruned_graph_computes(name: str, constants: Any) -> None:
    torch.manual_seed(0)
    build, shape = NETS[name]
    model = randomise(build()).train()
    kind, names = type(model), list(dict(model.named_parameters()))
    graph = irtool.trace(model, torch.zeros(shape))
    plan = irtool.plan(graph, "l1", 0.4)
    pruned = irtool.prune(graph, plan, constants)
    before = sum(parameter.numel() for parameter in model.parameters())
    assert irtool.apply(plan, model, torch.zeros(shape), constants) is model
    assert type(model) is kind
    assert model.training
    assert set(names) <= set(dict(model.named_parameters()))
    assert sum(parameter.numel() for parameter in model.parameters()) < before
    x = torch.randn(shape)
    with torch.no_grad():  # an LSTM takes another kernel when it records gradients
        assert torch.equal(model.eval()(x), pruned.run(x))
    model.train()(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def test_sizes_that_modules_note_are_right() -> None:
    torch.manual_seed(0)
    model = Sizes()
    model.scale.requires_grad = False
    x = torch.zeros(2, 3, 8, 8)
    plan = irtool.plan(irtool.trace(model, x), "l1", 0.5, scope="local", ignore=[])
    irtool.apply(plan, model, x)
    kept = {layer.name: layer.kept for layer in plan.layers}
    assert kept["stem"] < 8
    assert (model.deep.groups, model.deep.in_channels, model.deep.out_channels) == (kept["stem"],) * 3
    assert (model.norm.num_groups, model.norm.num_channels, model.act.num_parameters) == (kept["stem"],) * 3
    assert model.scale.shape == (kept["stem"], 1, 1)
    assert not model.scale.requires_grad
    assert (model.mix.in_features, model.mix.out_features) == (kept["stem"], kept["mix"])
    assert model.layer.normalized_shape == (kept["mix"],)
    again = irtool.plan(irtool.trace(model, x), "l1", 0.3)
    irtool.apply(again, model, x)
    assert model.describe(torch.zeros(1, model.layer.normalized_shape[0])).shape == (1, 3)


def test_tied_weights_stay_tied() -> None:
    torch.manual_seed(0)
    model, x = randomise(Tied()), torch.zeros(2, 3, 8, 8)
    irtool.apply(irtool.plan(irtool.trace(model, x), "l1", 0.5), model, x)
    assert model.b.weight is model.a.weight
    assert model.a.weight.shape[0] < 8


def test_what_a_plan_leaves_alone_keeps_its_parameters() -> None:
    torch.manual_seed(0)
    model, x = irtool.models.VGG(11, width=0.25), torch.zeros(1, 3, 32, 32)
    graph = irtool.trace(model, x)
    first = next(name for name, parameter in model.named_parameters())
    parameter = dict(model.named_parameters())[first]
    irtool.apply(irtool.plan(graph, "l1", 0.3, ignore=[first.rpartition(".")[0]]), model, x)
    assert dict(model.named_parameters())[first] is parameter


@pytest.mark.parametrize(("kind", "place"), [("view", "view"), ("split", "split"), ("slice", "getitem")])
def test_a_size_in_forward_is_refused_with_its_place(kind: str, place: str) -> None:
    torch.manual_seed(0)
    model, x = Baked(kind), torch.zeros(2, 3, 8, 8)
    before = state(model)
    plan = irtool.plan(irtool.trace(model, x), "l1", 0.5)
    with pytest.raises(PlanError, match=rf"{place}.*forward has a size written into it.*Use prune\(graph, plan\)"):
        irtool.apply(plan, model, x)
    assert state(model) == before


def test_a_selection_is_refused() -> None:
    torch.manual_seed(0)
    model, x = randomise(irtool.models.PreResNet(11)), torch.zeros(1, 3, 32, 32)
    before = state(model)
    plan = irtool.plan(irtool.trace(model, x), "bn_scale", 0.5, residual="select")
    with pytest.raises(PlanError, match=r"bn.*: the plan selects channels here.*residual='couple' or 'keep'"):
        irtool.apply(plan, model, x)
    assert state(model) == before


def test_a_selection_of_everything_is_none() -> None:
    torch.manual_seed(0)
    model, x = randomise(irtool.models.PreResNet(11)), torch.zeros(1, 3, 32, 32)
    plan = irtool.plan(
        irtool.trace(model, x),
        "bn_scale",
        0.2,
        residual="select",
        ignore=[f"{path}.bn1" for path in stream_readers(model)] + ["bn", "select_0"],
    )
    plan = irtool.pruning.Plan.from_dict({**plan.to_dict(), "layers": [{**layer, "removed": []} for layer in plan.to_dict()["layers"]]})
    irtool.apply(plan, model, x)
    assert model(x).shape == (1, 10)


def stream_readers(model: nn.Module) -> list[str]:
    """The blocks of a PreResNet."""
    return [path for path, module in model.named_modules() if hasattr(module, "bn1")]


def test_a_chunk_of_unlike_parts_is_put_back() -> None:
    torch.manual_seed(0)
    model, x = randomise(tv.shufflenet_v2_x0_5(num_classes=5)), torch.zeros(2, 3, 64, 64)
    before = state(model)
    plan = irtool.plan(irtool.trace(model, x), "l1", 0.3)
    with pytest.raises(PlanError, match=r"stage2.*chunk.*it was put back as it was. Use prune"):
        irtool.apply(plan, model, x)
    assert state(model) == before


def test_a_forward_that_looks_at_its_layers_is_put_back() -> None:
    class Strict(Sizes):
        """Takes another way where its stem is not as wide as it was built."""

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (1 if self.stem.out_channels == 8 else 2)

    torch.manual_seed(0)
    model, x = Strict(), torch.zeros(2, 3, 8, 8)
    before = state(model)
    plan = irtool.plan(irtool.trace(model, x), "l1", 0.5)
    with pytest.raises(PlanError, match=r"Strict: the sliced class does not compute what the pruned graph computes; it was put back"):
        irtool.apply(plan, model, x)
    assert state(model) == before


def test_a_bias_that_no_module_can_hold_is_refused() -> None:
    torch.manual_seed(0)
    model, x = randomise(Raw()), torch.zeros(2, 3, 8, 8)
    before = state(model)
    plan = irtool.plan(irtool.trace(model, x), "l1", 0.5)
    with pytest.raises(PlanError, match=r"absorbed_.*Use constants='drop'"):
        irtool.apply(plan, model, x, "absorb")
    assert state(model) == before
    irtool.apply(plan, model, x, "drop")
    assert model.weight.shape[1] < 8


def test_wrong_arguments() -> None:
    model, x = Sizes(), torch.zeros(2, 3, 8, 8)
    plan = irtool.plan(irtool.trace(model, x), "l1", 0.5)
    with pytest.raises(OptionError, match=r"example_inputs: .*Pass the inputs that trace"):
        irtool.apply(plan, model)
    with pytest.raises(OptionError, match="Choose absorb or drop"):
        irtool.apply(plan, model, x, "forget")  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="Use the plan with the model it was made for"):
        irtool.apply(plan, WithOwn(), x)
