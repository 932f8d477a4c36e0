"""Archives of what people bring: results in classes of a library's own, tensors that forward reads numbers from, flags joined by operators."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from exported import by_export
from torch import Tensor, nn

import irtool

X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@dataclasses.dataclass
class Output:
    logits: Tensor
    hidden: Any = None


class Pair(NamedTuple):
    logits: Tensor
    mean: Tensor


class Net(nn.Module):
    def __init__(self, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.scale, self.pair = torch.tensor(2.0), torch.tensor([1.0, 3.0])
        self.function, self.task = function, "seg"

    def forward(self, x: Tensor) -> Any:
        return self.function(self, self.a(x))


def there_and_back(function: Callable[[Any, Tensor], Any], path: Path) -> tuple[Any, Any]:
    """The outputs of a pruned graph, and of what is loaded again."""
    graph = irtool.trace(Net(function).eval(), X)
    small = irtool.prune(graph, irtool.plan(graph, "l1", 0.5, "local"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        irtool.save(small, path)
    return small.module(X), irtool.load(path).module(X)


def test_a_dataclass_comes_back_as_a_dict_of_what_it_holds(tmp_path: Path) -> None:
    before, after = there_and_back(lambda net, y: Output(net.b(y), (Output(y.mean()), y)), tmp_path / "net.safetensors")
    assert isinstance(before, Output)
    assert set(after) == {"logits", "hidden"}
    assert torch.equal(after["logits"], before.logits)
    assert set(after["hidden"][0]) == {"logits"}  # the field that is None is left out
    assert torch.equal(after["hidden"][0]["logits"], before.hidden[0].logits)
    assert torch.equal(after["hidden"][1], before.hidden[1])


def test_a_named_tuple_comes_back_as_a_tuple(tmp_path: Path) -> None:
    before, after = there_and_back(lambda net, y: {"found": Pair(net.b(y), mean=y.mean())}, tmp_path / "net.safetensors")
    assert isinstance(before["found"], Pair)
    assert type(after["found"]) is tuple
    assert all(map(torch.equal, after["found"], before["found"]))


def test_loaded_into_the_model_it_is_of_its_class(tmp_path: Path) -> None:
    model = Net(lambda net, y: Output(net.b(y))).eval()
    graph = irtool.trace(model, X)
    irtool.save(irtool.prune(graph, irtool.plan(graph, "l1", 0.5, "local")), tmp_path / "net.safetensors")
    assert isinstance(irtool.load(tmp_path / "net.safetensors", model=model).module(X), Output)


READ: dict[str, Callable[[Any, Tensor], Any]] = {
    "item": lambda net, y: net.b(y * net.scale.item()),
    "new_full": lambda net, y: net.b(y + y.new_full((1, 1, 1, 1), net.scale)),
    "full_like": lambda net, y: net.b(y + torch.full_like(y, net.pair[1])),
    "masked_fill": lambda net, y: net.b(y.masked_fill(y > 0, net.scale)),
    "clamp": lambda net, y: net.b(y.clamp(-net.pair[1].item(), net.scale.item())),
    "tolist": lambda net, y: net.b(y * max(net.pair.tolist())),
    "whole numbers": lambda net, y: net.b(y)[..., : int(y.shape[3] / 2)] * float(y.shape[2]) / max(round(y.shape[2] * 0.5), 2),
    "a spectrum": lambda net, y: net.b(torch.fft.fftn(y, dim=(2, 3)).real),
    "an outer product": lambda net, y: net.b(y + torch.outer(torch.arange(y.shape[2]).to(y), torch.ones(y.shape[3]))),
    "a complex product": lambda net, y: net.b((torch.complex(y, y.flip(3)) * torch.polar(y.abs(), y)).imag),
    "a sound": lambda net, y: net.b(
        y
        + torch.istft(
            torch.stft(y.flatten(1), 16, window=torch.hann_window(16), return_complex=True), 16, window=torch.hann_window(16)
        ).mean()
    ),
    "a spectrogram": lambda net, y: net.b(
        y + torch.stft(y.flatten(2).mean(1), 16, window=torch.hann_window(16), return_complex=True).abs().mean()
    ),
    "a word": lambda net, y: net.b(y) if net.task == "seg" else net.b(y).mean((2, 3)),
    "unset memory": lambda net, y: net.b(y + torch.empty(y.shape).fill_(1.0)),
    "sizes in a tensor": lambda net, y: net.b(y * torch.tensor([y.shape[2], y.shape[3]]).sum()),
    "flags": lambda net, y: net.b(torch.where(~(((y > 0) & (y < 1)) | (y > 2)) ^ (y < -2), y, -y)),
}


@pytest.mark.parametrize("name", READ)
def test_what_is_saved_loads_and_computes_the_same(name: str, tmp_path: Path) -> None:
    before, after = there_and_back(READ[name], tmp_path / "net.safetensors")
    assert torch.equal(after, before)


class Scaled(torch.autograd.Function):
    """Keeps less for its backward than torch would, and takes a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, by: float) -> Tensor:
        ctx.save_for_backward(x, gate)
        ctx.by = by
        return x * torch.sigmoid(gate) * by

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        x, gate = ctx.saved_tensors
        opened = torch.sigmoid(gate)
        return grad * opened * ctx.by, grad * x * opened * (1 - opened) * ctx.by, None


class StraightThrough(torch.autograd.Function):
    """Rounds, and passes gradients on as they are."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x * 4) / 4

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad


def test_a_function_with_the_gradient_of_its_operators_is_saved_as_these(tmp_path: Path) -> None:
    graph = irtool.trace(Net(lambda net, y: net.b(Scaled.apply(y, y + 1, 3.0))).eval(), X)
    small = irtool.prune(graph, irtool.plan(graph, "l1", 0.5, "local"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        irtool.save(small, tmp_path / "net.safetensors")
    loaded = irtool.load(tmp_path / "net.safetensors")
    assert torch.equal(loaded.module(X), small.module(X))
    gradients = [torch.autograd.grad(made.module(X).square().sum(), list(made.module.parameters())) for made in (small, loaded)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_a_function_with_another_gradient_needs_its_code(tmp_path: Path) -> None:
    model = Net(lambda net, y: net.b(StraightThrough.apply(y))).eval()
    graph = irtool.trace(model, X)
    small = irtool.prune(graph, irtool.plan(graph, "l1", 0.5, "local"))
    with pytest.warns(UserWarning, match="StraightThrough is a function whose backward is code of your own"):
        irtool.save(small, tmp_path / "net.safetensors")
    assert torch.equal(irtool.load(tmp_path / "net.safetensors", model).module(X), small.module(X))


WINDOWS: dict[str, Callable[[Tensor], Tensor]] = {
    **{
        f"{name} {how}": lambda y, name=name, options=options: getattr(torch, f"{name}_window")(y.shape[-1], **options)
        for name in ("hann", "hamming", "blackman", "bartlett", "kaiser")
        for how, options in {"of its length": {}, "symmetric": {"periodic": False}, "of a type": {"dtype": torch.float32}}.items()
    },
    "of the type and device of what it meets": lambda y: torch.blackman_window(y.shape[-1], dtype=y.dtype, device=y.device),
    "of torch.signal": lambda y: torch.signal.windows.cosine(y.shape[-1]),
    "frequencies": lambda y: torch.fft.fftfreq(y.shape[-1], 0.5),
    "steps of a power": lambda y: torch.logspace(0, 1, y.shape[-1]),
    "in a short-time Fourier transform": lambda y: (
        torch.stft(y.flatten(2).mean(1), 16, window=torch.hann_window(16), return_complex=True).abs().mean()
    ),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_windows_that_forward_makes(name: str, tmp_path: Path) -> None:
    before, after = there_and_back(lambda net, y: net.b(y * WINDOWS[name](y)), tmp_path / "net.safetensors")
    assert torch.equal(before, after)


def _exported_flags(net: Any, y: Tensor) -> Tensor:
    kept = torch.zeros_like(y)
    kept[:, :, 1:] = y[:, :, 1:]
    return net.b(torch.where(((y > 0) & (y < 1)) | (y > 2) ^ (y < -2), y, kept))


def test_flags_joined_in_an_exported_program_are_saved(tmp_path: Path) -> None:
    with by_export():
        assert irtool.trace(Net(_exported_flags).eval(), X).tracer == "export"
        before, after = there_and_back(_exported_flags, tmp_path / "net.safetensors")
    assert torch.equal(after, before)


class Tasked(nn.Module):
    """An argument is a word, which the example leaves at its default."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor, task: str = "seg") -> Tensor:
        y: Tensor = self.b(self.a(x).relu())
        return y if task == "seg" else y.mean((2, 3))


def test_an_argument_that_is_a_word_is_saved(tmp_path: Path) -> None:
    graph = irtool.trace(Tasked().eval(), X)
    small = irtool.prune(graph, irtool.plan(graph, "l1", 0.5))
    irtool.save(small, tmp_path / "net.safetensors")
    assert torch.equal(irtool.load(tmp_path / "net.safetensors").module(X), small.module(X))
