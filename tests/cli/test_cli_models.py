"""How models and weights are named on the command line, and found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from irtool.errors import FileError, OptionError
from irtool.models import PreResNet
from irtool.workflows.loading.spec import ModelSpec
from irtool.workflows.loading.weights import load_weights, read_weights


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("PreResNet:depth=38", ("", "PreResNet", {"depth": 38})),
        ("VGG:depth=11,width=0.5", ("", "VGG", {"depth": 11, "width": 0.5})),
        ("torchvision.models:resnet18", ("torchvision.models", "resnet18", {})),
        (
            "net.py:Net:sizes=(1, 2),name=small,deep=true,head=None",
            ("net.py", "Net", {"sizes": (1, 2), "name": "small", "deep": True, "head": None}),
        ),
    ],
)
def test_model_syntax(text: str, expected: tuple[str, str, dict[str, object]]) -> None:
    spec = ModelSpec.parse(text)
    assert (spec.place, spec.name, spec.arguments) == expected


@pytest.mark.parametrize("text", ["", "a:b:c", "VGG:depth=", "VGG:depth=11,,", ":VGG", "VGG:depth=1 2", "VGG:*a=1"])
def test_model_syntax_errors_name_a_right_way(text: str) -> None:
    with pytest.raises(OptionError, match=r"Write |Built in are"):
        ModelSpec.parse(text).build()


@pytest.mark.parametrize("name", ["plain", "state_dict", "model", "parallel", "safetensors"])
def test_weights_are_found_where_people_put_them(name: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = {"a.weight": torch.arange(4.0), "a.bias": torch.ones(2)}
    path = tmp_path / ("w.safetensors" if name == "safetensors" else "w.pth")
    forms = {"plain": state, "parallel": {f"module.{key}": value for key, value in state.items()}}
    if name == "safetensors":
        save_file(state, path)
    else:
        torch.save(forms.get(name, {name: state, "epoch": 3}), path)
    found = read_weights(path)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)


def test_a_traced_net_has_no_selections_of_all_channels_and_its_weights_fit_the_class(tmp_path: Path) -> None:
    trained, fresh = PreResNet(11, width=0.25), PreResNet(11, width=0.25)
    traced = {name: tensor for name, tensor in trained.state_dict().items() if not name.endswith("select.indexes")}
    assert len(traced) == len(trained.state_dict()) - 4
    torch.save(traced, tmp_path / "best.pt")
    load_weights(fresh, tmp_path / "best.pt")
    assert all(torch.equal(fresh.state_dict()[name], tensor) for name, tensor in trained.state_dict().items())
    fresh.layer1[0].select.keep(torch.arange(len(fresh.layer1[0].select.indexes)) % 2)  # what a selection of some keeps must be told
    with pytest.raises(FileError, match=r"1 weights missing, the first is 'layer1.0.select.indexes'"):
        load_weights(fresh, tmp_path / "best.pt")
