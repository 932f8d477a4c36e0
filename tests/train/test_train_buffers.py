"""Modules whose forward puts other tensors in their buffers' places."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from training import QUICK, same

from irtool.train import Data, evaluate, fit, load_data
from irtool.train.checkpoint import load_checkpoint, load_weights


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data("digits", image_size=12, limit=320)


class Centred(nn.Module):
    """A linear layer on images less a running mean, which each forward puts in the place of the last one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.register_buffer("mean", torch.zeros(144))
        self.linear = nn.Linear(144, 10)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        if self.training:
            self.mean = 0.5 * self.mean + 0.5 * flat.detach().mean(0)
        return self.linear(flat - self.mean)


def test_an_average_follows_a_buffer_that_is_replaced(digits: Data, tmp_path: Path) -> None:
    model, steps = Centred(), []
    model.register_forward_hook(lambda module, inputs, output: steps.append(module.mean.clone()) if module.training else None)
    history = fit(model, digits, QUICK, ema=0.75, out=tmp_path)
    expected = torch.zeros(144)
    for step in steps:
        expected.lerp_(step, 0.25)
    torch.testing.assert_close(model.mean, expected)
    assert same(model.state_dict(), load_weights(tmp_path / "last.pt"))
    assert torch.equal(load_checkpoint(tmp_path / "last.pt")["model"]["mean"], steps[-1])
    assert evaluate(model, digits).loss == history.last.test_loss


class Remembering(nn.Module):
    """Keeps in a buffer what `change` makes of it and of each batch."""

    def __init__(self, first: Tensor | None, change: Callable[[Tensor | None, Tensor], Tensor | None]) -> None:
        super().__init__()
        self.register_buffer("kept", first)
        self.change, self.linear = change, nn.Linear(144, 10)

    def forward(self, x: Tensor) -> Tensor:
        self.kept = self.change(self.kept, x)
        return self.linear(x.flatten(1))


BUFFERS = {
    "size": (torch.zeros(0), lambda old, x: x.mean((1, 2, 3)), (64,), torch.float32),
    "to none": (torch.zeros(2), lambda old, x: None, None, None),
    "from none": (None, lambda old, x: x.mean(), (), torch.float32),
    "type": (torch.zeros((), dtype=torch.int64), lambda old, x: old + 0.25, (), torch.float32),
}


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("kind", BUFFERS)
def test_a_buffer_that_becomes_another_is_kept_as_it_is(digits: Data, kind: str, ema: float) -> None:
    first, change, shape, dtype = BUFFERS[kind]
    model = Remembering(first, change)
    weight = model.linear.weight.data_ptr()
    history = fit(model, digits, QUICK, ema=ema, evaluate_every=1)
    assert history.last.test_loss is not None
    assert model.linear.weight.data_ptr() == weight
    assert (model.kept is None) == (shape is None)
    if model.kept is not None:
        assert model.kept.dtype == dtype
        assert len(model.kept.shape) == len(shape)
        assert bool((model.kept != 0).any())


def test_a_buffer_that_was_replaced_in_scoring_can_be_trained_with(digits: Data) -> None:
    class Scaled(Centred):
        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x.flatten(1)) * self.mean[:10]
            self.mean = self.mean * 0.99 + 0.01
            return y

    model = Scaled()
    model.mean.fill_(1.0)
    evaluate(model, digits)
    assert fit(model, digits, QUICK).last.epoch == 2


def test_an_average_leaves_extra_state_alone(digits: Data) -> None:
    class Noted(Centred):
        def get_extra_state(self) -> dict[str, int]:
            return {"version": 3}

        def set_extra_state(self, state: object) -> None: ...

    assert fit(Noted(), digits, QUICK, epochs=1, ema=0.9).last.epoch == 1
