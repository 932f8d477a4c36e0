"""Kind (i): tracing leaves no mark. Whatever forward changes, in the model or around it, is as before, and the model runs as before."""

from __future__ import annotations

import collections
import copy
import random
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import irtool
from irtool.errors import TraceError

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)


class Collects(nn.Module):
    """Its first forward registers hooks, and a flag says that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.f = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1), nn.Linear(24, 4)
        self.ready, self.seen = False, []

    def keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.seen.append(output)

    def forward(self, x: Tensor) -> Tensor:
        if not self.ready:
            self.a.register_forward_hook(self.keep)
            self.b.register_forward_hook(self.keep)
            self.ready = True
        self.seen.clear()
        self.b(F.relu(self.a(x)))
        return self.f(torch.cat([t.mean((2, 3)) for t in self.seen], 1))


class PreHook(Base):
    def __init__(self) -> None:
        super().__init__()
        self.handle: Any = None

    def forward(self, x: Tensor) -> Tensor:
        if self.handle is None:
            self.handle = self.b.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
        return self.b(self.a(x))


class Counts(Base):
    calls: ClassVar[int] = 0
    seen: ClassVar[list[int]] = []

    def forward(self, x: Tensor) -> Tensor:
        type(self).calls += 1
        self.seen.append(1)
        return self.b(self.a(x))


class State:
    def __init__(self) -> None:
        self.steps, self.inner = 0, {"last": [0]}


class HoldsObject(Base):
    def __init__(self) -> None:
        super().__init__()
        self.state = State()

    def forward(self, x: Tensor) -> Tensor:
        self.state.steps += 1
        self.state.inner["last"].append(2)
        return self.b(self.a(x))


CALLS = 0
CACHE: dict[str, Any] = {}


class Globals(Base):
    def forward(self, x: Tensor) -> Tensor:
        global CALLS
        CALLS += 1
        CACHE["x"] = 1
        return self.b(self.a(x))


class Clips(Base):
    """Writes into its weights, by the tensor, a view, and another memory."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.a.weight.clamp_(-0.1, 0.1)
            self.b.weight[0].mul_(0.5)
        self.b.bias.data = self.b.bias.data + 1
        return self.b(self.a(x))


class Seeds(Base):
    def forward(self, x: Tensor) -> Tensor:
        torch.manual_seed(3)
        random.seed(3)
        np.random.seed(3)
        torch.set_grad_enabled(False)
        torch.backends.cudnn.benchmark = True
        return self.b(self.a(x))


class Plain(Base):
    """A tensor that is neither parameter nor buffer, written in place, and a layer that is made at the first call."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.extra = torch.zeros(8, 1, 1), None

    def forward(self, x: Tensor) -> Tensor:
        if self.extra is None:
            self.extra = nn.Identity()
        self.mean.add_(1)
        return self.b(self.extra(self.a(x)) - 1)


class Exchanges(Base):
    """A running mean that is a plain tensor, exchanged at each call for one that is computed from the image."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.count = torch.zeros(8), 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        self.count += 1
        self.mean = self.mean.to(y) * (1 - 1 / self.count) + y.detach().mean((0, 2, 3)) / self.count
        return self.b(y - self.mean[:, None, None])


class Frozen(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.a.weight.requires_grad_(False)
        self.b.eval()
        return self.b(self.a(x))


def _state(model: nn.Module) -> Any:
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [(p.requires_grad, p.data_ptr()) for p in model.parameters()], [m.training for m in model.modules()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    return tensors, flags, hooks, {key: copy.copy(value) for key, value in vars(model).items() if key[0] != "_"}


class Normalises(Base):
    """Batch norm's statistics, which torch updates without a word, beside a layer that only torch.export follows."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(8)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        if "act" not in self._modules:
            self.act = nn.LeakyReLU(0.2)
        y = self.b(self.act(self.norm(self.a(x))))
        return F.batch_norm(y, self.mean, self.var, training=self.training)


class Makes(collections.OrderedDict[str, Any]):
    """A table that makes what it is asked for, as packages' tables of activations do."""

    def __getitem__(self, key: str) -> Any:
        kind, options = super().__getitem__(key)
        return kind(**options)

    def values(self) -> Any:
        raise AssertionError("asked for all that it could make")


MAKES = Makes(swish=(nn.SiLU, {}), parts=(nn.Bilinear, {}), last=(list, {}))


class Looks(Base):
    """A layer that is fetched from such a table, whose order forward changes."""

    def forward(self, x: Tensor) -> Tensor:
        MAKES.move_to_end("swish")
        MAKES["seen"] = (dict, {})
        out: Tensor = self.b(MAKES["swish"](self.a(x)))
        return out


def test_a_table_that_makes_what_it_is_asked_for_is_put_back() -> None:
    before, model = list(MAKES), Looks().eval()
    graph = irtool.trace(model, X)
    assert list(MAKES) == before
    assert irtool.check_prune(graph, irtool.plan(graph, "l1", 0.5)).ok


@pytest.mark.parametrize("kind", [Normalises, Collects, PreHook, Counts, HoldsObject, Globals, Clips, Seeds, Plain, Exchanges, Frozen])
@pytest.mark.parametrize("training", [False, True])
def test_tracing_leaves_no_mark(kind: Callable[[], nn.Module], training: bool) -> None:
    torch.manual_seed(0)
    model = kind().train(training)
    fresh, before = copy.deepcopy(model), _state(model)
    around = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
    states = (torch.is_grad_enabled(), torch.backends.cudnn.benchmark, CALLS, dict(CACHE), Counts.calls, list(Counts.seen))
    graph = irtool.trace(model, X)
    irtool.check_prune(graph, irtool.plan(graph, "l1", 0.5))
    assert states == (torch.is_grad_enabled(), torch.backends.cudnn.benchmark, CALLS, dict(CACHE), Counts.calls, list(Counts.seen))
    assert torch.equal(torch.get_rng_state(), around[0])
    assert random.getstate() == around[1]
    assert np.random.get_state()[1].tolist() == around[2]
    after = _state(model)
    assert (after[1], after[2]) == (before[1], before[2])
    assert all(torch.equal(after[0][name], tensor) for name, tensor in before[0].items())
    if isinstance(model, HoldsObject):
        assert vars(model.state) == {"steps": 0, "inner": {"last": [0]}}
    with torch.random.fork_rng(), torch.no_grad():
        try:
            for _ in range(2):
                torch.testing.assert_close(model(X), fresh(X), rtol=0, atol=0)
        finally:
            torch.set_grad_enabled(True)
            torch.backends.cudnn.benchmark = False


def test_an_exchanged_tensor_is_followed_and_told() -> None:
    model = Exchanges().eval()
    graph = irtool.trace(model, X)
    assert graph.tracer == "symbolic"
    assert any(note.startswith("mean, count set by forward") for note in graph.notes)
    assert set(vars(model)) == set(vars(Exchanges()))


def test_a_part_of_a_model_leaves_no_mark_either() -> None:
    model = HoldsObject().eval()
    x = X.clone()
    irtool.trace(model, x, within="b")
    assert vars(model.state) == {"steps": 0, "inner": {"last": [0]}}
    assert not model.b._forward_pre_hooks
    assert torch.equal(x, X)


class Late(nn.Module):
    """Makes a layer on its first call: the weights are drawn then."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.late = nn.Conv2d(3, 8, 3, padding=1), None

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if self.late is None:
            self.late = nn.Conv2d(y.shape[1], 4, 1)
        return self.late(y)


def test_a_layer_that_forward_makes_is_asked_for_before() -> None:
    model = Late().eval()
    with pytest.raises(TraceError, match=r"late: is made by forward on its first call.*Run the model once"):
        irtool.trace(model, X)
    assert model.late is None
    expected = model(X)
    graph = irtool.trace(model, X)
    assert torch.equal(graph.module(X), expected)
    assert irtool.plan(graph, "l1", 0.5).removed == 4
