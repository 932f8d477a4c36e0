"""A saved model at other sizes than its own: read at them where its program lets it, refused where not, and never without a word."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

import irtool

Cli = Callable[..., tuple[int, str, str]]


class Free(nn.Module):
    """Takes images of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


class Bound(Free):
    """Takes images of one size."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8 * 16 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(x)).flatten(1))


class Deciding(Free):
    """Does something else on large images."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.shape[-1] <= 16 else x[..., ::2, ::2])


def saved(net: nn.Module, folder: Path) -> Path:
    torch.manual_seed(0)
    path = folder / "net.safetensors"
    irtool.save(irtool.trace(net.eval(), torch.zeros(1, 3, 16, 16)), path)
    return path


def test_costs_and_files_are_of_the_sizes_that_are_asked_for(tmp_path: Path, cli: Cli) -> None:
    path, out = saved(Free(), tmp_path), tmp_path / "net.onnx"
    costs = {
        size: json.loads(cli("inspect", path, "--json", *(["--input", size] if size else []))[1])["cost"]["macs"]
        for size in ("", "1x3x16x16", "1x3x32x32")
    }
    assert costs[""] == costs["1x3x16x16"]
    assert costs["1x3x32x32"] - 8 * 4 == 4 * (costs[""] - 8 * 4)
    assert cli("export", path, "--input", "1x3x32x32", "--out", out)[0] == 0
    sizes = onnx.load(out).graph.input[0].type.tensor_type.shape.dim
    assert [size.dim_value for size in sizes][1:] == [3, 32, 32]


@pytest.mark.parametrize("net", [Bound, Deciding])
@pytest.mark.parametrize("command", ["inspect", "export", "compress"])
def test_sizes_that_a_program_has_written_into_it_are_kept(net: type[nn.Module], command: str, tmp_path: Path, cli: Cli) -> None:
    path = saved(net(), tmp_path)
    out = [] if command == "inspect" else ["--out", tmp_path / "out.onnx"]
    code, _, err = cli(command, path, "--input", "1x3x32x32", *out)
    assert code == 1
    assert "saved for inputs of 1x3x16x16" in err.splitlines()[-1]
    assert "1x3x32x32 is asked for. Leave --input out" in err.splitlines()[-1]
    assert not (tmp_path / "out.onnx").exists()
    assert cli("inspect", path, "--input", "1x3x16x16")[0] == 0


@pytest.mark.parametrize("sizes", [["1x3x16x16", "1x3x16x16"], ["1x4x16x16"], ["16x16"]])
def test_sizes_that_do_not_fit_the_inputs_are_refused(sizes: list[str], tmp_path: Path, cli: Cli) -> None:
    path = saved(Free(), tmp_path)
    code, _, err = cli("inspect", path, *(word for size in sizes for word in ("--input", size)))
    assert code == 1
    assert "is asked for" in err or "2 sizes, and 1 of the model's inputs" in err
