"""How models and weights are named on the command line, and found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from irtool.cli.models import ModelSpec
from irtool.cli.weights import read_weights
from irtool.errors import OptionError


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
