"""Hooks and functions with a backward of their own: the graph computes what the model computes, or says what it leaves out."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from odd_nets import Net, X, make
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import irtool
from irtool.errors import TraceError

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.ReLU(), nn.Conv2d(16, 4, 1))
    nn.init.uniform_(net[1].weight, 0.5, 2)
    nn.init.normal_(net[1].running_mean)
    return net.eval()


def _reorders(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output.flip(1)


def _sized(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output * torch.arange(16.0).view(1, -1, 1, 1)


def _shifts(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output + 1


def _asks_kind(module: nn.Module, args: Any, output: Any) -> Any:
    return output * 2 if isinstance(output, Tensor) else None


def _asks_class(module: nn.Module, args: Any, output: Any) -> Any:
    return output * 2 if type(output) is Tensor else None


def _leaves_torch(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output * 2 + torch.from_numpy(output.detach().numpy())


class _Callable:
    """A hook whose code is not at hand to be read."""

    __call__ = staticmethod(functools.partial(_shifts))


def _kept(graph: irtool.FxGraph) -> list[str]:
    return [node.callee for node in graph.nodes if node.op == "Opaque"]


@pytest.mark.parametrize("hook", [_reorders, _sized, _shifts, functools.partial(_shifts), _asks_kind])
def test_what_hooks_return_is_in_the_graph_once(hook: Any) -> None:
    model = _net()
    model[0].register_forward_hook(hook)
    graph = irtool.trace(model, IMAGE)
    plan = irtool.plan(graph, "l1", 0.5, "local")
    with torch.no_grad():
        for traced in (graph, irtool.fold_batchnorm(graph), graph.clone()):
            torch.testing.assert_close(traced.module(IMAGE), model(IMAGE))
        irtool.prune(graph, plan, "drop").module(IMAGE)
    assert irtool.check_prune(graph, plan).ok
    assert plan.removed == 16
    assert not _kept(graph)
    assert graph.notes == ("0 have forward hooks: what they return is in the graph, which does not call them",)
    assert len(model[0]._forward_hooks) == 1


def test_hooks_before_a_layer_and_around_a_block() -> None:
    model = nn.Sequential(_net(), nn.Identity())
    model[0][1].register_forward_pre_hook(lambda module, args: (args[0].abs(),))
    model[0][3].register_forward_pre_hook(lambda module, args, kwargs: ((args[0] * 2,), kwargs), with_kwargs=True)
    model[0].register_forward_hook(_shifts)
    graph = irtool.trace(model, IMAGE)
    with torch.no_grad():
        torch.testing.assert_close(irtool.fold_batchnorm(graph).module(IMAGE), model(IMAGE))
    assert irtool.check_prune(graph, irtool.plan(graph, "l1", 0.5)).ok


@pytest.mark.parametrize("hook", [_asks_class, _leaves_torch, _Callable()])
def test_a_hook_that_cannot_be_followed_keeps_its_layer_whole(hook: Any) -> None:
    model = _net()
    handle = model[3].register_forward_hook(hook)
    graph = irtool.trace(model, IMAGE)
    plan = irtool.plan(graph, "l1", 0.5, "local")
    assert _kept(graph) == ["Conv2d with forward hooks (handle.remove() before tracing takes one off)"]
    with torch.no_grad():
        torch.testing.assert_close(irtool.fold_batchnorm(graph).module(IMAGE), model(IMAGE))
    assert irtool.check_prune(graph, plan).ok
    assert "handle.remove()" in plan.summary()
    handle.remove()
    assert not _kept(irtool.trace(model, IMAGE))


def test_a_layer_called_twice_and_a_block_whose_hook_cannot_be_followed() -> None:
    model = make(lambda net, x: net.head(net.b(net.b(net.a(x)))))
    model.b.register_forward_hook(_shifts)
    outer = nn.Sequential(model, nn.Conv2d(4, 4, 1))
    with torch.no_grad():
        torch.testing.assert_close(irtool.trace(outer, X).module(X), outer(X))
        model.register_forward_hook(_asks_class)
        graph = irtool.trace(outer, X)
        torch.testing.assert_close(graph.module(X), outer(X))
    assert len(_kept(graph)) == 1


def test_weights_that_a_hook_computes_are_computed_in_the_graph() -> None:
    model = _net()
    for layer in (model[0], model[3]):
        torch_prune.l1_unstructured(layer, "weight", amount=0.3)
    graph = irtool.trace(model, IMAGE)
    plan = irtool.plan(graph, "l1", 0.5, "local")
    with torch.no_grad():
        torch.testing.assert_close(graph.module(IMAGE), model(IMAGE))
    assert irtool.check_prune(graph, plan).ok
    assert plan.removed == 16


def test_hooks_that_keep_what_they_see() -> None:
    class Tapped(Net):
        def tap(self, module: nn.Module, args: Any, output: Tensor) -> None:
            self.taps["b"] = output

    model = Tapped(lambda net, x: net.head(net.b(net.a(x))), taps={}).eval()
    handle = model.b.register_forward_hook(model.tap)
    model(X)  # with gradients: what is kept has a past
    kept = model.taps["b"]
    for leaf in ([], ["b"]):
        graph = irtool.trace(model, X, leaf=leaf)
        plan = irtool.plan(graph, "l1", 0.5, "local")
        assert model.taps["b"] is kept or leaf
        assert irtool.check_prune(graph, plan).ok
        assert len(irtool.prune(graph, plan).module(X)) == 2
    handle.remove()


class Collector:
    """Keeps what it sees, and a list of it."""

    def __init__(self) -> None:
        self.last: Any = None
        self.all: list[Any] = []

    def see(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.last = output
        self.all.append(output)


SEEN: dict[str, Any] = {"a": 1}


def _sees(module: nn.Module, args: Any, output: Tensor) -> None:
    SEEN["a"] = output


def test_what_hooks_leave_outside_the_model_is_taken_back() -> None:
    model, collector, local = _net(), Collector(), {"deep": [1]}
    model[0].register_forward_hook(collector.see)
    model[3].register_forward_hook(_sees)
    model[3].register_forward_hook(lambda module, args, output: local["deep"].append(output))
    graph = irtool.trace(model, IMAGE)
    assert (collector.last, collector.all, SEEN, local) == (None, [], {"a": 1}, {"deep": [1]})
    assert irtool.check_prune(graph, irtool.plan(graph, "l1", 0.5)).ok
    skip: dict[str, Tensor] = {}
    model = make(lambda net, x: net.head(net.b(net.a(x)) + skip["a"]))
    model.a.register_forward_hook(lambda module, args, output: skip.update(a=output))
    with torch.no_grad():
        torch.testing.assert_close(irtool.trace(model, X).module(X), model(X))


def test_a_tensor_with_a_past_in_a_layer_of_the_users() -> None:
    class Keeping(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            self.last = super().forward(x)
            self.all = [self.last]
            return self.last

    model = nn.Sequential(nn.Conv2d(3, 8, 1), Keeping(8, 8, 1), nn.Conv2d(8, 2, 1)).eval()
    model(IMAGE)
    graph = irtool.trace(model, IMAGE, leaf=["1"])
    torch.testing.assert_close(graph.clone().run(IMAGE), model(IMAGE).detach())


def test_hooks_of_all_modules_are_refused() -> None:
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: None)
    try:
        with pytest.raises(TraceError, match=r"handle.remove\(\)"):
            irtool.trace(_net(), IMAGE)
    finally:
        handle.remove()


@pytest.mark.filterwarnings("ignore:For backward hooks")
def test_hooks_on_gradients_are_called_or_told() -> None:
    seen: list[int] = []
    model = nn.Sequential(_net(), nn.Conv2d(4, 2, 1))
    model[1].register_full_backward_hook(lambda module, grads, outputs: seen.append(1))
    graph = irtool.trace(model, IMAGE)
    graph.module(IMAGE).sum().backward()
    assert (seen, graph.notes) == ([1], ())
    model[0].register_full_backward_hook(lambda module, grads, outputs: None)
    assert irtool.trace(model, IMAGE).notes == ("0 have backward hooks, which the graph does not call",)
    model = nn.Sequential(_net(), nn.Conv2d(4, 2, 1))
    model[0].register_backward_hook(lambda module, grads, outputs: None)
    assert len(_kept(irtool.trace(model, IMAGE, leaf=["0"]))) == len(_kept(irtool.trace(model, IMAGE))) == 1


class Round(torch.autograd.Function):
    """Straight through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Any = 1) -> Tensor:
        return torch.round(x * (scale() if callable(scale) else scale))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0], None


def _gradients(module: nn.Module) -> list[Tensor]:
    module.zero_grad()
    module(X).square().sum().backward()
    return [parameter.grad.clone() for parameter in module.parameters() if parameter.grad is not None]


def _twice(net: Net, x: Tensor) -> Tensor:
    return net.head(Round.apply(net.b(Round.apply(net.a(x), 3)), 2))


def test_a_function_with_a_backward_of_its_own_keeps_it(tmp_path: Path) -> None:
    model = make(_twice)
    graph = irtool.trace(model, X)
    torch.testing.assert_close(_gradients(graph.module), _gradients(model))
    plan = irtool.plan(graph, "l1", 0.5)
    torch.testing.assert_close(_gradients(irtool.prune(graph, plan).module), _gradients(model))
    assert graph.notes == ()
    assert "flows into Round.apply" in plan.summary()
    assert not hasattr(model, "Round")
    torch.testing.assert_close(_gradients(graph.clone().module), _gradients(model))
    path = tmp_path / "net.safetensors"
    with pytest.warns(UserWarning, match="does not stand alone: Round"):
        irtool.save(graph, path)
    torch.testing.assert_close(_gradients(irtool.load(path, model).module), _gradients(model))


def test_a_backward_that_no_graph_can_hold_is_told() -> None:
    graph = irtool.trace(make(lambda net, x: net.head(Round.apply(net.a(x), lambda: 2))), X)
    assert graph.notes == ("Round have a backward of their own (torch.autograd.Function), which is not in the graph",)


def test_a_checkpointed_block_is_traced_into() -> None:
    model = make(lambda net, x: net.head(torch.utils.checkpoint.checkpoint(net.b, net.a(x), use_reentrant=True)))
    graph = irtool.trace(model, X)
    assert graph.notes == ()
    torch.testing.assert_close(_gradients(graph.module), _gradients(model))
    assert irtool.plan(graph, "l1", 0.5).removed
